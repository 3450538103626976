package zlib

import (
	"encoding/binary"
	"slices"
)

// A bitWriter appends to out, the first bit lowest (RFC 1951, 3.1.1).
type bitWriter struct {
	out []byte
	acc uint64 // not yet in out, the upper bits 0
	n   uint   // how many bits of acc, less than 8 between calls
}

// put writes the lower n bits of v, at most 48; the upper ones are 0.
func (b *bitWriter) put(v uint64, n uint) {
	b.acc |= v << b.n
	for b.n += n; b.n >= 8; b.n -= 8 {
		b.out = append(b.out, byte(b.acc))
		b.acc >>= 8
	}
}

// align writes zeros up to the next byte.
func (b *bitWriter) align() {
	if b.n > 0 {
		b.put(0, 8-b.n)
	}
}

// stored writes content, at most 65535 bytes, as a block that is not compressed.
func (b *bitWriter) stored(content []byte, last uint64) {
	b.put(last|blockStored<<1, 3)
	b.align()
	n := len(content)
	b.out = append(b.out, byte(n), byte(n>>8), ^byte(n), ^byte(n>>8))
	b.out = append(b.out, content...)
}

// tokens writes a block's tokens and its end, which is about size bytes.
func (b *bitWriter) tokens(tokens []token, literal, distance *code, size int) {
	var lengths [len(lengthSymbols)]uint32 // word and extra bits, and in the upper 8 bits how many
	for i, s := range lengthSymbols {
		n, extra := uint(literal.size[endOfBlock+1+int(s)]), lengthExtra(int(s))
		v := uint32(literal.word[endOfBlock+1+int(s)]) | uint32(i)&(1<<extra-1)<<n
		lengths[i] = v | uint32(n+extra)<<24
	}
	b.out = slices.Grow(b.out, size+16) // and eight bytes at a time
	out, at := b.out[:cap(b.out)], len(b.out)
	acc, n := b.acc, b.n
	for _, t := range tokens {
		if t.literal() {
			acc |= uint64(literal.word[uint8(t)]) << (n & 63)
			n += uint(literal.size[uint8(t)])
		} else {
			l := lengths[uint8(t)]
			acc |= uint64(l&(1<<24-1)) << (n & 63)
			n += uint(l >> 24)
			d := t.distance()
			s, extra := distanceSymbol(d)
			size := uint(distance.size[s&31])
			acc |= (uint64(distance.word[s&31]) | uint64(d&(1<<extra-1))<<size) << (n & 63)
			n += size + extra
		}
		binary.LittleEndian.PutUint64(out[at:], acc)
		at += int(n / 8)
		acc >>= n &^ 7 & 63
		n %= 8
	}
	b.out, b.acc, b.n = out[:at], acc, n
	b.put(uint64(literal.word[endOfBlock]), uint(literal.size[endOfBlock]))
}
