package goflate

import (
	"encoding/binary"
	"math/bits"
)

const (
	fastTableBits = 14
	fastMargin    = 15  // no match begins in the last bytes of a block
	fastLeast     = 17  // shorter blocks are literals
	huffmanLeast  = 128 // a shorter last block is not searched for matches
	storedMost    = 16  // one of up to these is stored
	maxPosition   = 1 << 30
)

// fast is level 1: one candidate for each 4 bytes, looked up at growing steps while there is no match, as Snappy does.
type fast struct {
	out    *blockWriter
	buf    []byte  // the block before this one, then this one
	base   int     // position of buf[0]; positions grow over the whole stream
	table  []int32 // position of 4 bytes, by their hash
	tokens []token
}

func fastHash(u uint32) uint32 { return u * 0x1e35a7bd >> (32 - fastTableBits) }

// block writes the block of content.
func (f *fast) block(content []byte, last bool) {
	if last && len(content) < huffmanLeast {
		if len(content) <= storedMost {
			f.out.writeStored(content)
		} else {
			f.out.writeLiterals(content)
		}
		return
	}
	if f.buf == nil {
		f.start()
	}
	if f.base > maxPosition {
		f.rebase()
	}
	copy(f.buf[blockBytes:], content)
	f.tokens = f.tokens[:0]
	f.search(blockBytes + len(content))
	if len(f.tokens) > len(content)-len(content)>>4 {
		f.out.writeLiterals(content)
	} else {
		f.out.writeDynamic(f.tokens, content)
	}
	copy(f.buf, f.buf[blockBytes:])
	f.base += blockBytes
}

// start is put off to the first block that needs it: most small layers do not.
func (f *fast) start() {
	f.buf = make([]byte, 2*blockBytes)
	f.table = make([]int32, 1<<fastTableBits)
	f.tokens = make([]token, 0, blockBytes)
	f.base = blockBytes // so that what is in no table entry is too far away
}

// rebase starts positions anew before they overflow. Those out of reach stay so.
func (f *fast) rebase() {
	delta := int32(f.base - blockBytes)
	for i, p := range f.table {
		f.table[i] = max(p, delta) - delta
	}
	f.base -= int(delta)
}

// search makes the tokens of buf[blockBytes:end].
func (f *fast) search(end int) {
	if end-blockBytes < fastLeast {
		f.literals(f.buf[blockBytes:end])
		return
	}
	buf, table := f.buf[:end], f.table
	limit := end - fastMargin
	emitted := blockBytes // up to here there are tokens
	s := blockBytes
	cur := binary.LittleEndian.Uint32(buf[s:])
	for {
		// Look for a match.
		var candidate int
		for skip, next := 32, s; ; {
			s = next
			step := skip >> 5
			next += step
			skip += step
			if next > limit {
				f.literals(buf[emitted:])
				return
			}
			entry := &table[fastHash(cur)]
			candidate = int(*entry) - f.base
			*entry = int32(s + f.base)
			if s-candidate <= windowSize && binary.LittleEndian.Uint32(buf[candidate:]) == cur {
				break
			}
			cur = binary.LittleEndian.Uint32(buf[next:])
		}
		f.literals(buf[emitted:s])
		// Matches, as long as the next follows at once.
		for {
			length := matchLength(buf[candidate:], buf[s:min(s+maxMatch, end)])
			f.tokens = append(f.tokens, match(length, s-candidate))
			s += length
			emitted = s
			if s >= limit {
				f.literals(buf[emitted:])
				return
			}
			x := binary.LittleEndian.Uint64(buf[s-1:])
			table[fastHash(uint32(x))] = int32(s - 1 + f.base)
			cur = uint32(x >> 8)
			entry := &table[fastHash(cur)]
			candidate = int(*entry) - f.base
			*entry = int32(s + f.base)
			if s-candidate > windowSize || binary.LittleEndian.Uint32(buf[candidate:]) != cur {
				cur = uint32(x >> 16)
				s++
				break
			}
		}
	}
}

func (f *fast) literals(b []byte) {
	for _, c := range b {
		f.tokens = append(f.tokens, token(c))
	}
}

// matchLength is how many bytes of a and b, from the first, are equal. a is at least as long as b.
func matchLength(a, b []byte) int {
	n := 0
	for len(b)-n >= 8 {
		if x := binary.LittleEndian.Uint64(a[n:]) ^ binary.LittleEndian.Uint64(b[n:]); x != 0 {
			return n + bits.TrailingZeros64(x)>>3
		}
		n += 8
	}
	for n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}
