package goflate

import (
	"encoding/binary"
	"io"
)

// A token is a literal, or a match: matchFlag | (length - 3) << 15 | (distance - 1).
type token uint32

const matchFlag = 1 << 30

func match(length, distance int) token {
	return token(matchFlag | (length-3)<<15 | (distance - 1))
}

const (
	endOfBlock  = 256
	lengthCodes = 257 // symbol of the first length code
	distances   = 30  // distance codes

	stored, fixed, dynamic = 0, 1, 2 // types of block, RFC 1951, 3.2.3
)

// The extra bits and first values of length and distance codes, RFC 1951, 3.2.5; lengths less 3, distances less 1.
var (
	lengthExtra   = [29]uint8{8: 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5}
	lengthBase    = lengthBases()
	lengthCode    = lengthCodeTable()
	distanceExtra = [distances]uint8{4: 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13}
	distanceBase  = distanceBases()
	nearCode      = distanceCodeTable(0) // of distances to 256
	farCode       = distanceCodeTable(7) // of distances / 128

	fixedLiterals  = fixedLiteralCodes()
	fixedDistances = fixedDistanceCodes()
	onlyDistance   = &huffman{codes: [maxSymbols]code{{length: 1}}} // of blocks without matches

	// codeOrder is the order of the lengths of the code length codes, RFC 1951, 3.2.7.
	codeOrder = [19]int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
)

func lengthBases() (base [29]int) {
	for c := 1; c < 28; c++ {
		base[c] = base[c-1] + 1<<lengthExtra[c-1]
	}
	base[28] = maxMatch - 3
	return base
}

func lengthCodeTable() (t [256]uint8) {
	for c := range 28 {
		for l := lengthBase[c]; l < lengthBase[c]+1<<lengthExtra[c] && l < 255; l++ {
			t[l] = uint8(c)
		}
	}
	t[255] = 28
	return t
}

func distanceBases() (base [distances]int) {
	for c := 1; c < distances; c++ {
		base[c] = base[c-1] + 1<<distanceExtra[c-1]
	}
	return base
}

func distanceCodeTable(shift int) (t [256]uint8) {
	c := 0
	for i := range t {
		for c+1 < distances && distanceBase[c+1] <= i<<shift {
			c++
		}
		t[i] = uint8(c)
	}
	return t
}

func distanceCode(distance int) uint8 {
	if distance < 256 {
		return nearCode[distance]
	}
	return farCode[distance>>7]
}

func fixedLiteralCodes() *huffman {
	h := &huffman{}
	next := map[uint8]uint16{7: 0, 8: 0x30, 9: 0x190}
	for s := range maxSymbols {
		length := uint8(8)
		switch {
		case s >= 144 && s < 256:
			length = 9
		case s >= 256 && s < 280:
			length = 7
		}
		value := next[length]
		if s == 280 {
			value = 0xc0
		}
		h.codes[s] = code{bits: reverse(value, length), length: length}
		next[length] = value + 1
	}
	return h
}

func fixedDistanceCodes() *huffman {
	h := &huffman{}
	for s := range distances {
		h.codes[s] = code{bits: reverse(uint16(s), 5), length: 5}
	}
	return h
}

func reverse(value uint16, length uint8) uint16 {
	var r uint16
	for range length {
		r = r<<1 | value&1
		value >>= 1
	}
	return r
}

// A blockWriter writes blocks, and chooses the type of each as Go did. After an error of w it does nothing; the error is in err.
type blockWriter struct {
	w   io.Writer
	err error

	buf  []byte
	acc  uint64 // bits not yet in buf, first lowest
	nacc uint   // how many; less than 32 between calls

	literalFreq  [maxSymbols]int32
	distanceFreq [distances]int32
	lengthsFreq  [19]int32
	literals     huffman
	distances    huffman
	lengths      huffman
	runs         []run // the code lengths of literals and distances, run-length encoded
}

// A run is a symbol of the code length alphabet with its extra bits.
type run struct{ symbol, extra uint8 }

const flushBytes = 32 << 10 // what is collected for a write; a block may exceed it, by less than 400 KB

func newBlockWriter(w io.Writer) *blockWriter {
	return &blockWriter{w: w, buf: make([]byte, 0, flushBytes+16), runs: make([]run, 0, maxSymbols+distances)}
}

// bits writes v, which has n bits, n at most 32.
func (b *blockWriter) bits(v uint64, n uint8) {
	b.acc |= v << b.nacc
	b.nacc += uint(n)
	if b.nacc >= 32 {
		b.buf = binary.LittleEndian.AppendUint32(b.buf, uint32(b.acc))
		b.acc >>= 32
		b.nacc -= 32
	}
}

func (b *blockWriter) send() {
	if b.err == nil {
		_, b.err = b.w.Write(b.buf)
	}
	b.buf = b.buf[:0]
}

// align pads with zero bits to a whole byte.
func (b *blockWriter) align() {
	for ; b.nacc > 0; b.nacc -= min(b.nacc, 8) {
		b.buf = append(b.buf, byte(b.acc))
		b.acc >>= 8
	}
}

// flush writes all there is; the stream must be at a whole byte.
func (b *blockWriter) flush() {
	b.align()
	b.send()
}

func (b *blockWriter) header(kind uint64, last bool) {
	v := kind << 1
	if last {
		v |= 1
	}
	b.bits(v, 3)
}

func (b *blockWriter) storedHeader(n int, last bool) {
	b.header(stored, last)
	b.align()
	b.bits(uint64(n), 16)
	b.bits(uint64(^uint16(n)), 16)
}

// writeStored writes content, at most 65535 bytes, uncompressed.
func (b *blockWriter) writeStored(content []byte) {
	b.storedHeader(len(content), false)
	b.align()
	if b.send(); b.err == nil {
		_, b.err = b.w.Write(content)
	}
}

// storedSize is the size of content as a stored block, in bits, as Go reckons it; ok is false where it cannot be one.
func storedSize(content []byte) (size int, ok bool) {
	return (len(content) + 5) * 8, content != nil && len(content) <= blockBytes
}

// count fills the frequencies, and returns how many literal and distance codes there are and the sum of their extra bits.
func (b *blockWriter) count(tokens []token) (literals, dists, extra int) {
	clear(b.literalFreq[:])
	clear(b.distanceFreq[:])
	for _, t := range tokens {
		if t < matchFlag {
			b.literalFreq[t&0xff]++
			continue
		}
		b.literalFreq[lengthCodes+int(lengthCode[t>>15&0xff])]++
		b.distanceFreq[distanceCode(int(t&0x7fff))]++
	}
	b.literalFreq[endOfBlock] = 1
	for c, n := range lengthExtra {
		extra += int(b.literalFreq[lengthCodes+c]) * int(n)
	}
	for c, n := range distanceExtra {
		extra += int(b.distanceFreq[c]) * int(n)
	}
	for literals = maxSymbols; b.literalFreq[literals-1] == 0; literals-- {
	}
	for dists = distances; dists > 0 && b.distanceFreq[dists-1] == 0; dists-- {
	}
	if dists == 0 {
		b.distanceFreq[0] = 1 // a block has one distance code at least
		dists = 1
	}
	b.literals.build(b.literalFreq[:], 15)
	b.distances.build(b.distanceFreq[:], 15)
	return literals, dists, extra
}

// writeBest writes tokens as the smallest of the three types of block. content is what they stand for; nil if it is no longer at hand,
// which excludes the stored type.
func (b *blockWriter) writeBest(tokens []token, content []byte) {
	literals, dists, extra := b.count(tokens)
	size := 3 + fixedLiterals.size(b.literalFreq[:]) + fixedDistances.size(b.distanceFreq[:]) + extra
	kind := uint64(fixed)
	codes, dynamicSize := b.describe(literals, dists, &b.distances)
	if dynamicSize+extra < size {
		size, kind = dynamicSize+extra, dynamic
	}
	if n, ok := storedSize(content); ok && n < size {
		b.writeStored(content)
		return
	}
	if kind == fixed {
		b.header(fixed, false)
		b.tokens(tokens, fixedLiterals, fixedDistances)
		return
	}
	b.dynamicHeader(literals, dists, codes)
	b.tokens(tokens, &b.literals, &b.distances)
}

// writeDynamic writes tokens as a dynamic block, unless a stored one is about as small.
func (b *blockWriter) writeDynamic(tokens []token, content []byte) {
	literals, dists, _ := b.count(tokens)
	codes, size := b.describe(literals, dists, &b.distances)
	if n, ok := storedSize(content); ok && n < size+size>>4 {
		b.writeStored(content)
		return
	}
	b.dynamicHeader(literals, dists, codes)
	b.tokens(tokens, &b.literals, &b.distances)
}

// writeLiterals writes content without matches, or stored if that is about as small.
func (b *blockWriter) writeLiterals(content []byte) {
	clear(b.literalFreq[:])
	for _, c := range content {
		b.literalFreq[c]++
	}
	b.literalFreq[endOfBlock] = 1
	clear(b.distanceFreq[:])
	b.distanceFreq[0] = 1
	b.literals.build(b.literalFreq[:], 15)
	codes, size := b.describe(endOfBlock+1, 1, onlyDistance)
	if n, ok := storedSize(content); ok && n < size+size>>4 {
		b.writeStored(content)
		return
	}
	b.dynamicHeader(endOfBlock+1, 1, codes)
	for _, c := range content {
		b.bits(uint64(b.literals.codes[c].bits), b.literals.codes[c].length)
	}
	b.end(&b.literals)
}

// end writes the end of a block.
func (b *blockWriter) end(literals *huffman) {
	c := literals.codes[endOfBlock]
	b.bits(uint64(c.bits), c.length)
	if len(b.buf) >= flushBytes {
		b.send()
	}
}

// tokens writes the compressed data of a block and its end.
func (b *blockWriter) tokens(tokens []token, literals, dists *huffman) {
	buf, acc, nacc := b.buf, b.acc, b.nacc
	for _, t := range tokens {
		if t < matchFlag {
			c := literals.codes[t&0xff]
			acc |= uint64(c.bits) << (nacc & 31)
			nacc += uint(c.length)
		} else {
			// At most 20 bits of length, and 28 of distance.
			length := int(t >> 15 & 0xff)
			lc := lengthCode[length]
			c := literals.codes[lengthCodes+int(lc)]
			acc |= (uint64(c.bits) | uint64(length-lengthBase[lc])<<c.length) << (nacc & 31)
			nacc += uint(c.length + lengthExtra[lc])
			if nacc >= 32 {
				buf = binary.LittleEndian.AppendUint32(buf, uint32(acc))
				acc >>= 32
				nacc -= 32
			}
			distance := int(t & 0x7fff)
			dc := distanceCode(distance)
			c = dists.codes[dc]
			acc |= (uint64(c.bits) | uint64(distance-distanceBase[dc])<<c.length) << (nacc & 31)
			nacc += uint(c.length + distanceExtra[dc])
		}
		if nacc >= 32 {
			buf = binary.LittleEndian.AppendUint32(buf, uint32(acc))
			acc >>= 32
			nacc -= 32
		}
	}
	b.buf, b.acc, b.nacc = buf, acc, nacc
	b.end(literals)
}
