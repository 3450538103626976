package zlib

import (
	"encoding/binary"
	"math/bits"
)

// reaches says whether a match at pos may begin at cur, the last position of the same hash.
func (e *encoder) reaches(pos, cur int) bool {
	return cur != 0 && pos-cur <= maxDistance && (pos <= farEnd || !e.gnu)
}

// longest looks along the chain from cur for a match at pos that has more than best bytes, of content that ends at end. It returns
// the length and position of the first of the longest, or best or less for the length if there is none.
func (e *encoder) longest(pos, end, cur, best int) (length, start int) {
	if best >= end-pos {
		return end - pos, 0
	}
	limit := maxMatch
	if !e.gnu { // see finish
		limit = min(limit, end-pos)
	}
	w, nice, chain := &e.window, min(e.nice, limit), e.chain
	if best >= e.good {
		chain /= 4
	}
	oldest := max(pos-maxDistance, 0)
	first, last := load64(w, pos), load16(w, pos+best-1)
	for {
		if load16(w, cur+best-1) == last { // or it has no more than best
			n := bits.TrailingZeros64(load64(w, cur)^first) / 8
			if n == 8 {
				n = common(w, pos, cur, limit)
			}
			if n = min(n, limit); n > best {
				best, start = n, cur
				if n >= nice {
					break
				}
				last = load16(w, pos+best-1)
			}
		}
		cur -= int(e.prev[cur&(windowSize-1)])
		chain--
		if cur <= oldest || chain == 0 {
			break
		}
	}
	return min(best, end-pos), start
}

// common returns how many bytes are the same at pos and cur, given that eight are. It may be more than limit.
func common(w *window, pos, cur, limit int) int {
	for n := 8; n < limit; n += 8 {
		if x := load64(w, pos+n) ^ load64(w, cur+n); x != 0 {
			return n + bits.TrailingZeros64(x)/8
		}
	}
	return limit
}

func load64(w *window, i int) uint64 { return binary.LittleEndian.Uint64(w[i : i+8 : i+8]) }

func load16(w *window, i int) uint16 { return binary.LittleEndian.Uint16(w[i : i+2 : i+2]) }
