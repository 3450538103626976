package goflate

// Symbols of the code length alphabet, RFC 1951, 3.2.7.
const (
	repeat    = 16 // the last length, 3 to 6 times
	zeros     = 17 // 3 to 10 zeros
	manyZeros = 18 // 11 to 138 zeros
)

var runExtra = [19]uint8{repeat: 2, zeros: 3, manyZeros: 7}

// describe encodes the code lengths of literals and of dists into b.runs, and builds the code for that. It returns how many code length
// codes there are, and the size of a dynamic block in bits without the extra bits of its matches.
func (b *blockWriter) describe(literals, dists int, distCodes *huffman) (codes, size int) {
	b.runs = b.runs[:0]
	clear(b.lengthsFreq[:])
	last, count := b.literals.codes[0].length, 1
	for i := 1; i < literals; i++ {
		last, count = b.extend(last, count, b.literals.codes[i].length)
	}
	for i := range dists {
		last, count = b.extend(last, count, distCodes.codes[i].length)
	}
	b.run(last, count)

	b.lengths.build(b.lengthsFreq[:], 7)
	for codes = len(codeOrder); codes > 4 && b.lengthsFreq[codeOrder[codes-1]] == 0; codes-- {
	}
	size = 3 + 5 + 5 + 4 + 3*codes + b.lengths.size(b.lengthsFreq[:]) +
		b.literals.size(b.literalFreq[:]) + distCodes.size(b.distanceFreq[:])
	for symbol, n := range runExtra {
		size += int(b.lengthsFreq[symbol]) * int(n)
	}
	return codes, size
}

// extend adds a length to a run of equal ones; if it is another, the run is encoded and a new one begins.
func (b *blockWriter) extend(last uint8, count int, length uint8) (newLast uint8, newCount int) {
	if length == last {
		return last, count + 1
	}
	b.run(last, count)
	return length, 1
}

// run encodes count times length. The longest runs come first, and what is too short for a symbol of its own is written out.
func (b *blockWriter) run(length uint8, count int) {
	if length != 0 {
		b.symbol(length, 0)
		count--
		for ; count >= 3; count -= min(count, 6) {
			b.symbol(repeat, min(count, 6)-3)
		}
	} else {
		for ; count >= 11; count -= min(count, 138) {
			b.symbol(manyZeros, min(count, 138)-11)
		}
		if count >= 3 {
			b.symbol(zeros, count-3)
			count = 0
		}
	}
	for ; count > 0; count-- {
		b.symbol(length, 0)
	}
}

func (b *blockWriter) symbol(symbol uint8, extra int) {
	b.runs = append(b.runs, run{symbol, uint8(extra)})
	b.lengthsFreq[symbol]++
}

func (b *blockWriter) dynamicHeader(literals, dists, codes int) {
	b.header(dynamic, false)
	b.bits(uint64(literals-lengthCodes), 5)
	b.bits(uint64(dists-1), 5)
	b.bits(uint64(codes-4), 4)
	for _, symbol := range codeOrder[:codes] {
		b.bits(uint64(b.lengths.codes[symbol].length), 3)
	}
	for _, r := range b.runs {
		c := b.lengths.codes[r.symbol]
		b.bits(uint64(c.bits), c.length)
		b.bits(uint64(r.extra), runExtra[r.symbol])
	}
}
