package zlib

import "testing"

// Frequencies like Fibonacci's numbers make the longest words, which are then cut: the code is complete all the same.
func TestCodeWithinLimit(t *testing.T) {
	for _, c := range []struct{ symbols, limit, used int }{{literals, maxSize, 22}, {codeSizes, maxCodeSize, 12}} {
		cut := false
		for seed := range 500 {
			s := newSource(seed)
			var h code
			for range c.used {
				h.freq[s.below(c.symbols)] = 1
			}
			a, b := uint32(1), uint32(1)
			for i, f := range h.freq {
				if f > 0 {
					h.freq[i] = a
					a, b = b, a+b
				}
			}
			h.build(c.symbols, c.limit)
			var kraft int
			for _, size := range h.size {
				if int(size) > c.limit {
					t.Fatalf("seed %d: a word of %d bits, over %d", seed, size, c.limit)
				}
				if size > 0 {
					kraft += 1 << (maxSize - size)
				}
				cut = cut || int(size) == c.limit
			}
			if kraft != 1<<maxSize {
				t.Errorf("seed %d: words take %d of %d", seed, kraft, 1<<maxSize)
			}
		}
		if !cut {
			t.Errorf("%d symbols: no word of %d bits", c.symbols, c.limit)
		}
	}
}
