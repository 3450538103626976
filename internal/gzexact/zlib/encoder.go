package zlib

const (
	minMatch = 3   // bytes, RFC 1951
	maxMatch = 258 // bytes, RFC 1951

	windowSize = 32 << 10 // how far a match may reach back, in bytes; RFC 1951

	// minLookahead is how many bytes there must be from a position on before it is encoded, unless the input ends: for a match
	// there and the hash of the byte after it.
	minLookahead = maxMatch + minMatch + 1

	// maxDistance of a match in bytes. The originals do without the farthest, so that what they compare never leaves their window.
	maxDistance = windowSize - minLookahead

	// farEnd is the position from which on the window moves when less than minLookahead is left.
	farEnd = windowSize + maxDistance

	maxHashBits = 16
	maxTokens   = 32 << 10
)

// A window has room for two times windowSize, and eight bytes more because so many are read at once.
type window [2*windowSize + 8]byte

// An encoder makes tokens of content and blocks of tokens. A position is an index into its window, which moves on by windowSize when it
// is used up. Position 0 stands for none: nothing ever matches the first byte of a window. As all this is the originals' way, matches
// are found and missed as they do. It takes 400 KB and what a block takes compressed.
type encoder struct {
	settings

	window   window
	pos      int // next to be encoded
	end      int // of the content that is there
	unhashed int // positions before pos that are in no chain because a block ended there

	head [1 << maxHashBits]uint16 // last position of each hash
	prev [windowSize]uint16       // at a position modulo windowSize: how far before it the last one of the same hash is

	// of a lazy level
	length, start int  // of the match at pos-1; length is minMatch-1 if there is none
	pending       bool // the byte at pos-1 is in no token yet

	tokens     [maxTokens]token
	n          int // tokens in the block
	blockStart int // of the block's content; negative when the window has moved past it
	weighing

	codes codes
	bits  bitWriter
}

func (e *encoder) init(s settings) {
	e.settings = s
	e.codes.setFixed()
	e.reset()
}

// reset forgets all content. The bits written before stay.
func (e *encoder) reset() {
	e.pos, e.end, e.unhashed, e.blockStart = 0, 0, 0, 0
	e.length, e.pending = minMatch-1, false
	e.startBlock()
	clear(e.head[:1<<e.hashBits])
	if e.gnu {
		clear(e.window[:]) // it reads past the end, see finish
	}
}

// fill takes what it has room for from p, and returns how many bytes that is: at least one. It is called when less than minLookahead is left.
func (e *encoder) fill(p []byte) int {
	if e.pos >= farEnd {
		e.slide()
	}
	n := copy(e.window[e.end:2*windowSize], p)
	e.end += n
	for e.unhashed > 0 && e.end-e.pos+e.unhashed >= minMatch {
		e.insert(e.pos-e.unhashed, e.hash(e.pos-e.unhashed))
		e.unhashed--
	}
	return n
}

// full says that it is time to encode: doing so before would only make the cutting of the input matter.
func (e *encoder) full() bool { return e.end == 2*windowSize }

// slide moves the window by windowSize. What is past the end stays there.
func (e *encoder) slide() {
	copy(e.window[:windowSize], e.window[windowSize:2*windowSize])
	e.pos -= windowSize
	e.end -= windowSize
	e.start -= windowSize
	e.blockStart -= windowSize
	head := e.head[:1<<e.hashBits]
	for i, h := range head {
		head[i] = h & 0x7fff & -(h >> 15) // h - windowSize, at least 0
	}
}

// finish is called whenever less than minLookahead is left and no more comes; again says that it was before.
//
// The variants differ here. zlib moves the window whenever it is used up. GNU gzip does so only once, when it reads and finds
// that nothing comes; behind farEnd it then takes no matches. It compares content past the end as well, be it zeros, two of which follow the
// end, or old content, and cuts the match only then: what looks longest may be cut to one that is no longer, but farther away.
func (e *encoder) finish(again bool) {
	if again && e.gnu {
		return
	}
	if e.pos >= farEnd {
		e.slide()
	}
	if e.gnu {
		clear(e.window[e.end : e.end+2])
	}
}

// prime makes dict, at most windowSize bytes, what came before. It is called after reset; dict may be a part of the window.
func (e *encoder) prime(dict []byte) {
	e.end = copy(e.window[:], dict)
	for i := range max(e.end-minMatch+1, 0) {
		e.insert(i, e.hash(i))
	}
	e.pos, e.blockStart, e.unhashed = e.end, e.end, min(e.end, minMatch-1)
}

// hash returns the hash of the minMatch bytes at i.
func (e *encoder) hash(i int) uint32 {
	return e.roll(e.firstTwo(i), e.window[i+2])
}

// firstTwo returns what roll makes the hash at i of, together with the third byte.
func (e *encoder) firstTwo(i int) uint32 {
	return e.roll(uint32(e.window[i]), e.window[i+1])
}

// roll returns the hash of the minMatch bytes up to b from that of those up to the byte before. It shifts so far that a byte has left
// when minMatch others have come.
func (e *encoder) roll(h uint32, b byte) uint32 {
	shift := (e.hashBits + minMatch - 1) / minMatch
	return (h<<(shift&31) ^ uint32(b)) & (1<<(e.hashBits&31) - 1)
}

// insert makes i the last position of hash h and returns the one before.
func (e *encoder) insert(i int, h uint32) int {
	last := e.head[uint16(h)]
	e.prev[i&(windowSize-1)] = uint16(i) - last
	e.head[uint16(h)] = uint16(i)
	return int(last)
}
