//go:build e2e

package zlib

import (
	"errors"
	"fmt"
)

// A dumped block is a block as its decoder sees it.
type dumped struct {
	kind   int
	at     int // its first bit
	bits   int // all of it
	last   bool
	sizes  []uint8 // of the words of both codes, if dynamic
	tokens []token // none if stored
	bytes  int     // of content
}

func (d dumped) String() string {
	return fmt.Sprintf("kind %d at bit %d: %d bits, last %v, %d tokens, %d bytes of content", d.kind, d.at, d.bits, d.last, len(d.tokens), d.bytes)
}

// A dumper reads the bits of a deflate stream, and past its end zeros.
type dumper struct {
	in  []byte
	bit int
}

func (d *dumper) get(n uint) (v int) {
	for i := range n {
		if d.bit/8 < len(d.in) {
			v |= int(d.in[d.bit/8]>>(d.bit%8)&1) << i
		}
		d.bit++
	}
	return v
}

// dump decodes a deflate stream by RFC 1951 and nothing of this package's, to blocks.
func dump(in []byte) ([]dumped, error) {
	d := &dumper{in: in}
	var blocks []dumped
	for {
		b := dumped{at: d.bit, last: d.get(1) == 1, kind: d.get(2)}
		if d.bit > 8*len(in) || b.kind == 3 {
			return blocks, errors.New("no deflate stream")
		}
		if b.kind == blockStored {
			d.bit = (d.bit + 7) &^ 7
			b.bytes = d.get(16)
			d.bit += 16 + 8*b.bytes
		} else {
			if err := d.coded(&b); err != nil {
				return blocks, err
			}
		}
		b.bits = d.bit - b.at
		blocks = append(blocks, b)
		if b.last {
			return blocks, nil
		}
	}
}

func (d *dumper) coded(b *dumped) error {
	lits := 288
	b.sizes = make([]uint8, 288+30)
	for i := range b.sizes {
		b.sizes[i] = 8
		switch {
		case i >= 288:
			b.sizes[i] = 5
		case i >= 256 && i < 280:
			b.sizes[i] = 7
		case i >= 144 && i < 256:
			b.sizes[i] = 9
		}
	}
	if b.kind == blockDynamic {
		lits = 257 + d.get(5)
		b.sizes = b.sizes[:0]
		dists, n := 1+d.get(5), 4+d.get(4)
		var sizes [19]uint8
		for i := range n {
			sizes[[...]int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}[i]] = uint8(d.get(3))
		}
		word := words(sizes[:])
		for len(b.sizes) < lits+dists {
			switch s := d.symbol(word); s {
			case -1:
				return errors.New("no such word")
			case 16:
				for range 3 + d.get(2) {
					b.sizes = append(b.sizes, b.sizes[len(b.sizes)-1])
				}
			case 17:
				b.sizes = append(b.sizes, make([]uint8, 3+d.get(3))...)
			case 18:
				b.sizes = append(b.sizes, make([]uint8, 11+d.get(7))...)
			default:
				b.sizes = append(b.sizes, uint8(s))
			}
		}
	}
	lit, dist := words(b.sizes[:lits]), words(b.sizes[lits:])
	for {
		s := d.symbol(lit)
		switch {
		case s < 0:
			return errors.New("no such word")
		case s == 256:
			return nil
		case s < 256:
			b.tokens = append(b.tokens, token(s))
			b.bytes++
			continue
		}
		s -= 257
		length := s
		if s >= 8 && s < 28 {
			n := uint(s/4 - 1)
			length = (4+s%4)<<n + d.get(n)
		} else if s == 28 {
			length = 255
		}
		t := d.symbol(dist)
		distance := t
		if t >= 4 {
			n := uint(t/2 - 1)
			distance = (2+t%2)<<n + d.get(n)
		}
		b.tokens = append(b.tokens, token((distance+1)<<16|length))
		b.bytes += length + 3
	}
}

// words maps size<<16|word, first bit highest, to symbols.
func words(sizes []uint8) map[int]int {
	m := make(map[int]int)
	code := 0
	for size := 1; size <= 15; size++ {
		for s, n := range sizes {
			if int(n) == size {
				m[size<<16|code] = s
				code++
			}
		}
		code <<= 1
	}
	return m
}

func (d *dumper) symbol(m map[int]int) int {
	v := 0
	for n := 1; n <= 15; n++ {
		v = v<<1 | d.get(1)
		if s, ok := m[n<<16|v]; ok {
			return s
		}
	}
	return -1
}
