package zlib

import "math/bits"

// codes are those of a block, and what describes them in it.
type codes struct {
	literal, distance           code // of this block, with the frequencies of its tokens
	fixedLiteral, fixedDistance code // of RFC 1951, 3.2.6

	size code // of the symbols in runs
	runs [literals + distances]run
	n    int // runs
}

// sizeOrder is the order in which the sizes of codeSizes are sent, RFC 1951, 3.2.7.
var sizeOrder = [codeSizes]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// lengthSymbols has for every length less minMatch its symbol less endOfBlock+1, RFC 1951, 3.2.5.
var lengthSymbols = func() (t [maxMatch - minMatch + 1]uint8) {
	for i := range t {
		t[i] = uint8(i)
		if i >= 8 {
			n := bits.Len(uint(i)) - 3
			t[i] = uint8(4*n + i>>n)
		}
	}
	t[len(t)-1] = 28 // has a symbol of its own
	return t
}()

// lengthExtra returns how many extra bits a length's symbol less endOfBlock+1 has.
func lengthExtra(symbol int) uint {
	if symbol < 8 || symbol == 28 {
		return 0
	}
	return uint(symbol/4 - 1)
}

// distanceSymbol returns the symbol of a distance less 1, and how many extra bits it has.
func distanceSymbol(d uint32) (symbol uint32, extra uint) {
	if d < 4 {
		return d, 0
	}
	n := uint(bits.Len32(d)) - 2
	return uint32(2*n) + d>>n, n
}

func distanceExtra(symbol int) uint {
	if symbol < 4 {
		return 0
	}
	return uint(symbol/2 - 1)
}

// setFixed makes the codes of RFC 1951, 3.2.6.
func (c *codes) setFixed() {
	var count [maxSize + 1]int
	for s := range c.fixedLiteral.size {
		size := 8
		switch {
		case s >= 144 && s < 256:
			size = 9
		case s >= 256 && s < 280:
			size = 7
		}
		c.fixedLiteral.size[s] = uint8(size)
		count[size]++
	}
	c.fixedLiteral.assign(maxSymbols, &count)
	for s := range distances {
		c.fixedDistance.size[s] = 5
	}
	c.fixedDistance.assign(distances, &[maxSize + 1]int{5: distances})
}

// count sets the frequencies of a block.
func (c *codes) count(tokens []token) {
	lit, dist := &c.literal.freq, &c.distance.freq
	*lit, *dist = [maxSymbols]uint32{endOfBlock: 1}, [maxSymbols]uint32{}
	for _, t := range tokens {
		if t.literal() {
			lit[uint8(t)]++
		} else {
			lit[endOfBlock+1+int(lengthSymbols[uint8(t)])]++
			s, _ := distanceSymbol(t.distance())
			dist[s&31]++
		}
	}
}

// bits returns how many bits the counted tokens take in a code.
func (c *codes) bits(literal, distance *code) int {
	n := 0
	for s, f := range c.literal.freq[:literals] {
		size := uint(literal.size[s])
		if s > endOfBlock {
			size += lengthExtra(s - endOfBlock - 1)
		}
		n += int(f) * int(size)
	}
	for s, f := range c.distance.freq[:distances] {
		n += int(f) * int(uint(distance.size[s])+distanceExtra(s))
	}
	return n
}
