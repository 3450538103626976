package goflate

import (
	"math/bits"
	"slices"
)

// A code is the bits that stand for a symbol, first bit lowest. length is 0 for a symbol that has none.
type code struct {
	bits   uint16
	length uint8
}

const maxSymbols = 286 // literals, end of block and lengths: no alphabet of the format is larger

// huffman builds the codes of one alphabet. A zero huffman is ready; it is reused from block to block.
type huffman struct {
	codes  [maxSymbols]code
	leaves [maxSymbols]uint64 // frequency << 16 | symbol, ascending
	merge  packageMerge
}

// build gives every symbol with a frequency the code that Go gives it: an optimal one of at most limit bits.
func (h *huffman) build(freq []int32, limit int) {
	n := 0
	for symbol, f := range freq {
		h.codes[symbol] = code{}
		if f != 0 {
			h.leaves[n] = uint64(f)<<16 | uint64(symbol)
			n++
		}
	}
	leaves := h.leaves[:n]
	if n <= 2 {
		for i, leaf := range leaves {
			h.codes[leaf&0xffff] = code{bits: uint16(i), length: 1}
		}
		return
	}
	slices.Sort(leaves)
	// How many leaves have each length; the rarest, and of equals the lower symbols, have the longest.
	count := h.merge.lengths(leaves, min(limit, n-1))
	var next [16]uint16 // first code of each length, RFC 1951, 3.2.2
	end, first := n, uint16(0)
	for length := 1; length < len(count); length++ {
		first = (first + uint16(count[length-1])) << 1
		next[length] = first
		for _, leaf := range leaves[end-count[length] : end] {
			h.codes[leaf&0xffff].length = uint8(length)
		}
		end -= count[length]
	}
	for symbol := range freq {
		if c := &h.codes[symbol]; c.length != 0 {
			c.bits = bits.Reverse16(next[c.length]) >> (16 - c.length)
			next[c.length]++
		}
	}
}

// size is what symbols of these frequencies take, in bits.
func (h *huffman) size(freq []int32) int {
	total := 0
	for symbol, f := range freq {
		total += int(f) * int(h.codes[symbol].length)
	}
	return total
}

// packageMerge is the algorithm of Larmore and Hirschberg ("A fast algorithm for optimal length-limited Huffman codes", 1990): a list of
// every depth has the leaves and the pairs of the list below, by weight. Among the optimal codes Go's is the one for which, at equal
// weight, pairs come before leaves.
type packageMerge struct {
	leaf    [16][2 * maxSymbols]bool // of every depth: is the item a leaf?
	weights [2][2 * maxSymbols]uint64
	count   [16]int
}

// lengths returns how many of the leaves, which are in ascending order, get a code of each length from 0 to limit.
func (m *packageMerge) lengths(leaves []uint64, limit int) []int {
	n := len(leaves)
	want := 2*n - 2 // items of the top list that make the code
	below := m.weights[0][:0]
	for depth := limit; depth >= 1; depth-- {
		isLeaf := &m.leaf[depth]
		here := m.weights[depth&1][:want]
		l, pair, items := 0, 0, 0
		for items < want && (l < n || pair+1 < len(below)) {
			isPair := pair+1 < len(below) && (l == n || below[pair]+below[pair+1] <= leaves[l]>>16)
			if isPair {
				here[items] = below[pair] + below[pair+1]
				pair += 2
			} else {
				here[items] = leaves[l] >> 16
				l++
			}
			isLeaf[items] = !isPair
			items++
		}
		below = here[:items]
	}
	// Each of the leaves among the items wanted of a list adds a bit to its code; each pair wants two items of the list below.
	count := m.count[:limit+1]
	clear(count)
	for depth := 1; depth <= limit; depth++ {
		l := 0
		for _, isLeaf := range m.leaf[depth][:want] {
			if isLeaf {
				l++
			}
		}
		count[depth] = l
		want = 2 * (want - l)
	}
	for depth := 1; depth < limit; depth++ {
		count[depth] -= count[depth+1]
	}
	return count
}
