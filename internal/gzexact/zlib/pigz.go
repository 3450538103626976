package zlib

// A BlockEncoder makes blocks of [Pigz], in any order. It is not for use by several goroutines at a time.
type BlockEncoder struct{ e encoder }

// NewBlockEncoder returns a BlockEncoder for a level from 1 to 9. It takes about half a megabyte, and no more later.
func NewBlockEncoder(level int) (*BlockEncoder, error) {
	s, err := Config{Variant: Pigz, Level: level}.settings()
	if err != nil {
		return nil, err
	}
	b := new(BlockEncoder)
	b.e.init(s)
	return b, nil
}

// Encode appends a block to dst and returns that, which the caller owns. dict is the content before the block; of more than 32 KiB
// the last count. All blocks but the last are of [PigzBlock] bytes; content that ends with a whole block has none after it, and
// no content at all is an empty last one.
func (b *BlockEncoder) Encode(dst, dict, block []byte, last bool) []byte {
	e := &b.e
	e.reset()
	e.prime(dict[max(len(dict)-windowSize, 0):])
	e.bits = bitWriter{out: dst}
	for len(block) > 0 {
		block = block[e.fill(block):]
		if e.full() {
			e.encode(false)
		}
	}
	if last {
		e.endAll()
	} else {
		e.endPart()
	}
	dst, e.bits.out = e.bits.out, nil
	return dst
}

// endPart writes the end of a block of pigz's that is not the last: everything is encoded, and empty blocks fill up to a byte. It takes
// a stored one, which a decoder can look for, if an odd number of bits is there, else fixed ones, which have ten.
func (e *encoder) endPart() {
	e.encode(true)
	if e.n > 0 {
		e.block(false)
	}
	if e.bits.n%2 == 1 {
		e.bits.stored(nil, 0)
	}
	for e.bits.n > 0 {
		e.bits.put(blockFixed<<1, 10)
	}
}

// restart forgets everything but the last windowSize bytes of content.
func (e *encoder) restart() {
	dict := e.window[max(e.pos-windowSize, 0):e.pos]
	e.reset()
	e.prime(dict)
}
