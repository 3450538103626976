package goflate

import "encoding/binary"

// effort says how hard a level looks for matches.
type effort struct {
	lazy  int // a match this long is not compared with one at the next byte; 0: no match is
	nice  int // a match this long ends the search
	chain int // candidates tried
	skip  int // of matches longer than this, the bytes become no candidates; only where lazy is 0
}

var levels = [10]effort{
	2: {nice: 16, chain: 8, skip: 5},
	3: {nice: 32, chain: 32, skip: 6},
	4: {lazy: 4, nice: 16, chain: 16},
	5: {lazy: 16, nice: 32, chain: 32},
	6: {lazy: 16, nice: 128, chain: 128},
	7: {lazy: 32, nice: 128, chain: 256},
	8: {lazy: 128, nice: 258, chain: 1024},
	9: {lazy: 258, nice: 258, chain: 4096},
}

const (
	chainTableBits = 17
	ahead          = minMatch + maxMatch // bytes that must lie ahead for a search, but at the end
	nearby         = 4096                // a match of 4 bytes is worth it up to this distance
)

// chains is levels 2 to 9: the positions of equal hashes are linked, newest first.
type chains struct {
	out    *blockWriter
	effort effort

	window     [2 * windowSize]byte
	end, at    int // what is in the window, and how far tokens reach, but for a byte held back
	blockStart int // where the block begins; -1 if that has left the window

	// Positions of window[i] are base + i; 0 is none.
	base uint32
	head [1 << chainTableBits]uint32 // newest position, by hash
	prev [windowSize]uint32          // of each position, the one before it with the same hash

	tokens []token
	// Of the lazy levels: the match at the byte before at; and whether that byte has no token yet.
	length, distance int
	pending          bool
}

func newChains(out *blockWriter, e effort) *chains {
	return &chains{out: out, effort: e, base: 1, tokens: make([]token, 0, blockTokens), length: minMatch - 1}
}

func (c *chains) write(p []byte) {
	for len(p) > 0 && c.out.err == nil {
		if c.at >= len(c.window)-ahead {
			c.slide()
		}
		n := copy(c.window[c.end:], p)
		p = p[n:]
		c.end += n
		c.search(ahead)
	}
}

func (c *chains) finish() {
	c.search(1)
	if c.pending {
		c.add(token(c.window[c.at-1]), c.at)
		c.pending = false
	}
	if len(c.tokens) > 0 {
		c.block(c.at)
	}
}

// slide makes room: the second half of the window becomes the first.
func (c *chains) slide() {
	copy(c.window[:], c.window[windowSize:])
	c.end -= windowSize
	c.at -= windowSize
	c.base += windowSize
	if c.blockStart >= windowSize {
		c.blockStart -= windowSize
	} else {
		c.blockStart = -1
	}
	if c.base > maxPosition {
		delta := c.base - 1
		for i, p := range c.head {
			c.head[i] = max(p, delta) - delta
		}
		for i, p := range c.prev {
			c.prev[i] = max(p, delta) - delta
		}
		c.base = 1
	}
}

// search makes tokens while at least so many bytes lie ahead.
func (c *chains) search(least int) {
	if c.effort.lazy == 0 {
		c.greedy(least)
	} else {
		c.lazy(least)
	}
}

// insert makes i a candidate, and returns the newest one of its hash before it; negative if there is none.
func (c *chains) insert(i int) int {
	h := &c.head[binary.BigEndian.Uint32(c.window[i:])*0x1e35a7bd>>(32-chainTableBits)]
	old := *h
	c.prev[i&(windowSize-1)] = old
	*h = c.base + uint32(i)
	return int(old) - int(c.base)
}

// greedy takes every match. (Levels 2 and 3.)
func (c *chains) greedy(least int) {
	insertable := c.end - (minMatch - 1)
	for c.end-c.at >= least {
		length, distance := 0, 0
		if c.at < insertable {
			length, distance = c.find(c.insert(c.at))
		}
		if length < minMatch {
			c.at++
			c.add(token(c.window[c.at-1]), c.at)
			continue
		}
		if length <= c.effort.skip {
			for i := c.at + 1; i < min(c.at+length, insertable); i++ {
				c.insert(i)
			}
		}
		c.at += length
		c.add(match(length, distance), c.at)
	}
}

// lazy takes a match only if there is no longer one at the next byte. (Levels 4 to 9.)
func (c *chains) lazy(least int) {
	insertable := c.end - (minMatch - 1)
	for c.end-c.at >= least {
		oldLength, oldDistance := c.length, c.distance
		c.length, c.distance = minMatch-1, 0
		if c.at < insertable {
			candidate := c.insert(c.at)
			if oldLength < c.effort.lazy && c.end-c.at > oldLength {
				if length, distance := c.find(candidate); length != 0 {
					c.length, c.distance = length, distance
				}
			}
		}
		if oldLength >= minMatch && c.length <= oldLength {
			next := c.at + oldLength - 1
			for i := c.at + 1; i < min(next, insertable); i++ {
				c.insert(i)
			}
			c.at = next
			c.pending = false
			c.length = minMatch - 1
			c.add(match(oldLength, oldDistance), c.at)
			continue
		}
		if c.pending {
			c.add(token(c.window[c.at-1]), c.at)
		}
		c.at++
		c.pending = true
	}
}

// find returns the longest match at c.at in the chain that begins with candidate, and of equals the nearest; 0 if there is none.
func (c *chains) find(candidate int) (length, distance int) {
	at := c.at
	least := max(at-windowSize, 0)
	if candidate < least {
		return 0, 0
	}
	want := c.window[at:min(at+maxMatch, c.end)]
	nice := min(c.effort.nice, len(want))
	best := minMatch - 1
	for range c.effort.chain {
		if c.window[candidate+best] == want[best] {
			n := matchLength(c.window[candidate:], want)
			if n > best && (n > minMatch || at-candidate <= nearby) {
				best, length, distance = n, n, at-candidate
				if n >= nice {
					break
				}
			}
		}
		candidate = int(c.prev[candidate&(windowSize-1)]) - int(c.base)
		if candidate < least {
			break
		}
	}
	return length, distance
}

// add appends a token; content up to end has tokens then. A full block is written.
func (c *chains) add(t token, end int) {
	c.tokens = append(c.tokens, t)
	if len(c.tokens) == blockTokens {
		c.block(end)
	}
}

// block writes the tokens, which stand for the content from the start of the block to end.
func (c *chains) block(end int) {
	var content []byte
	if c.blockStart >= 0 && c.blockStart <= end {
		content = c.window[c.blockStart:end]
	}
	c.blockStart = end
	c.out.writeBest(c.tokens, content)
	c.tokens = c.tokens[:0]
}
