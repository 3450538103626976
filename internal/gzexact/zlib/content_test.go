package zlib

import (
	"fmt"
	"math/bits"
	"strings"
)

// A source is a generator of numbers that stay the same for ever (xorshift64*), for the golden digests stand on them.
type source uint64

func (s *source) next() uint64 {
	x := uint64(*s)
	x ^= x >> 12
	x ^= x << 25
	x ^= x >> 27
	*s = source(x)
	return x * 0x2545f4914f6cdd1d
}

func (s *source) below(n int) int { return int(s.next() >> 33 % uint64(n)) }

func newSource(seed int) *source {
	s := source(uint64(seed+1) * 0x9e3779b97f4a7c15)
	return &s
}

func random(n, seed int) []byte {
	s := newSource(seed)
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(s.next() >> 56)
	}
	return b
}

// text returns n bytes of words with the frequencies of a language's.
func text(n, seed int) []byte {
	s := newSource(seed)
	var words []string
	for range 2000 {
		w := ""
		for range 2 + s.below(4) {
			w += string("bcdfghklmnprstvw"[s.below(16)]) + string("aeiou"[s.below(5)])
		}
		words = append(words, w[:len(w)-s.below(2)])
	}
	b := make([]byte, 0, n+32)
	for len(b) < n {
		b = append(b, words[s.below(1+s.below(len(words)))]...)
		b = append(b, " \n,. (=    "[s.below(11)])
	}
	return b[:n]
}

// skewed returns n bytes that the longest words of a code are for: each value is half as frequent as the one before, and noise
// between them prevents matches.
func skewed(n, seed int) []byte {
	s := newSource(seed)
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(64 + s.below(192))
		if s.below(3) == 0 {
			b[i] = byte(bits.TrailingZeros64(s.next()>>20 | 1<<20))
		}
	}
	return b
}

// archive returns n bytes like a tar archive's: headers, text, programs, what cannot be compressed, and zeros.
func archive(n, seed int) []byte {
	s := newSource(seed)
	var b []byte
	for len(b) < n {
		size := 1 + s.below(1+s.below(300_000))
		name := fmt.Sprintf("usr/lib/x%d/%d.so", s.below(9), s.below(999))
		header := fmt.Sprintf("%-100s%07o\x00%07o\x00%07o\x00%011o\x00%011o\x00", name, 0o644, 0, 0, size, 1_700_000_000+s.below(9999))
		b = append(b, strings.ReplaceAll(header, " ", "\x00")...)
		b = append(b, make([]byte, 512-len(header))...)
		switch s.below(6) {
		case 0:
			b = append(b, random(size, s.below(1e9))...)
		case 1:
			b = append(b, make([]byte, size)...)
		case 2:
			b = append(b, structured(size, s.below(1e9))...)
		case 3: // machine code has few kinds of records, and numbers in them
			for i := range size {
				x := byte(i)
				if i%8 < 4 {
					x = byte(s.below(1 + s.below(256)))
				}
				b = append(b, x)
			}
		default:
			b = append(b, text(size, s.below(1e9))...)
		}
		b = append(b, make([]byte, -len(b)&511)...)
	}
	return b[:n]
}

// structured returns n bytes of runs, repetitions from all distances that matter, and noise of all densities, which goes
// through more of the encoders' decisions a byte than content that means something.
func structured(n, seed int) []byte {
	s := newSource(seed)
	b := make([]byte, 0, n+1<<17)
	letters := 1 + s.below(256)
	near := []int{1, 2, 3, 4, 8, 255, 256, tooFar, maxDistance, windowSize, 65536 - 262, 65536, 131072}
	sizes := []int{1, 2, 3, 4, 5, 8, 16, 32, 128, 258, 262, 512, 4096, 16384, 32768}
	around := func(list []int) int { return max(1, list[s.below(len(list))]+s.below(5)-2) }
	for len(b) < n {
		switch s.below(8) {
		case 0:
			letters = 1 + s.below(1+s.below(256))
		case 1:
			x, size := byte(s.next()>>40), around(sizes)
			for range size {
				b = append(b, x)
			}
		case 2, 3, 4, 5: // a repetition
			distance, size := around(near), around(sizes[:12])
			if s.below(2) == 0 {
				distance = 1 + s.below(33_000)
			}
			if distance > len(b) {
				continue
			}
			for range size {
				b = append(b, b[len(b)-distance])
			}
		default:
			for range around(sizes) {
				b = append(b, byte(s.below(letters)))
			}
		}
	}
	return b[:n]
}
