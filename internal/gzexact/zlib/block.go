package zlib

// kinds of blocks, RFC 1951, 3.2.3
const (
	blockStored  = 0
	blockFixed   = 1
	blockDynamic = 2
)

// block writes the tokens, which stand for the content from blockStart to pos, in the way that takes the fewest bytes.
func (e *encoder) block(last bool) {
	var final uint64
	if last {
		final = 1
	}
	c := &e.codes
	c.count(e.tokens[:e.n])
	lits := c.literal.build(literals, maxSize)
	dists := c.distance.build(distances, maxSize)
	c.describe(lits, dists)
	c.size.build(codeSizes, maxCodeSize)
	sizes := codeSizes
	for ; sizes > 4 && c.size.size[sizeOrder[sizes-1]] == 0; sizes-- {
	}
	dynamic := 5 + 5 + 4 + 3*sizes + c.describedBits() + c.bits(&c.literal, &c.distance)
	fixed := c.bits(&c.fixedLiteral, &c.fixedDistance)
	dynamicBytes, fixedBytes := (dynamic+3+7)/8, (fixed+3+7)/8

	b := &e.bits
	switch stored := e.pos - e.blockStart; {
	case e.blockStart >= 0 && stored+4 <= min(dynamicBytes, fixedBytes):
		b.stored(e.window[e.blockStart:e.pos], final)
	case fixedBytes <= dynamicBytes:
		b.put(final|blockFixed<<1, 3)
		b.tokens(e.tokens[:e.n], &c.fixedLiteral, &c.fixedDistance, fixedBytes)
	default:
		b.put(final|blockDynamic<<1, 3)
		b.put(uint64(lits-257), 5)
		b.put(uint64(dists-1), 5)
		b.put(uint64(sizes-4), 4)
		for _, s := range sizeOrder[:sizes] {
			b.put(uint64(c.size.size[s]), 3)
		}
		for _, r := range c.runs[:c.n] {
			b.put(uint64(c.size.word[r.symbol]), uint(c.size.size[r.symbol]))
			b.put(uint64(r.extra), runExtra(r.symbol))
		}
		b.tokens(e.tokens[:e.n], &c.literal, &c.distance, dynamicBytes)
	}
	if last {
		b.align()
	}
	e.blockStart = e.pos
	e.startBlock()
}
