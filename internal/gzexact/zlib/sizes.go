package zlib

// Symbols of codeSizes that stand for a run, RFC 1951, 3.2.7.
const (
	repeat    = 16 // the size before, 3 to 6 times
	zeros     = 17 // 3 to 10
	manyZeros = 18 // 11 to 138
)

// A run is a symbol of the code of code sizes, and the value of its extra bits.
type run struct{ symbol, extra uint8 }

func runExtra(symbol uint8) uint {
	switch symbol {
	case repeat:
		return 2
	case zeros:
		return 3
	case manyZeros:
		return 7
	}
	return 0
}

// describe makes the runs of the sizes of both codes and counts their symbols. A run does not go on from one code to the other.
func (c *codes) describe(lits, dists int) {
	c.n = 0
	c.size.freq = [maxSymbols]uint32{}
	c.describeOne(c.literal.size[:lits])
	c.describeOne(c.distance.size[:dists])
}

// describeOne takes sizes from the front in runs as long as may be. What cannot be told as a repetition is told one by one.
func (c *codes) describeOne(sizes []uint8) {
	before := -1
	for i := 0; i < len(sizes); {
		size := sizes[i]
		longest := repeatMax(size, before)
		n := 1
		for n < longest && i+n < len(sizes) && sizes[i+n] == size {
			n++
		}
		c.run(size, n, before)
		i += n
		before = int(size)
	}
}

// repeatMax is how many of the same size are taken at once: a size that was not the one before is told first.
func repeatMax(size uint8, before int) int {
	switch {
	case size == 0:
		return 138
	case int(size) == before:
		return 6
	}
	return 7
}

func (c *codes) run(size uint8, n, before int) {
	switch {
	case size == 0 && n >= 11:
		c.add(manyZeros, n-11)
	case size == 0 && n >= 3:
		c.add(zeros, n-3)
	case size != 0 && int(size) == before && n >= 3:
		c.add(repeat, n-3)
	case size != 0 && int(size) != before && n >= 4:
		c.add(size, 0)
		c.add(repeat, n-4)
	default:
		for range n {
			c.add(size, 0)
		}
	}
}

func (c *codes) add(symbol uint8, extra int) {
	c.runs[c.n] = run{symbol, uint8(extra)}
	c.n++
	c.size.freq[symbol]++
}

// describedBits returns how many bits the runs take.
func (c *codes) describedBits() int {
	n := 0
	for s, f := range c.size.freq[:codeSizes] {
		n += int(f) * int(uint(c.size.size[s])+runExtra(uint8(s)))
	}
	return n
}
