package zlib

import (
	"errors"
	"io"
	"math"
)

// A Writer compresses what is written to it. It is not for use by several goroutines at a time.
type Writer struct {
	w      io.Writer
	blocks Variant // Pigz and PigzSingle have blocks of their own
	left   int     // bytes of content to the end of the block
	e      encoder
	err    error
	closed bool
}

// NewWriter returns a Writer of a raw deflate stream to w, in pieces of up to 64 KiB or so. It takes about half a megabyte, however long
// the stream is. The error is about c.
func NewWriter(w io.Writer, c Config) (*Writer, error) {
	s, err := c.settings()
	if err != nil {
		return nil, err
	}
	z := &Writer{blocks: c.Variant}
	z.e.init(s)
	z.start(w)
	return z, nil
}

// Reset makes z what NewWriter returned, but to w.
func (z *Writer) Reset(w io.Writer) {
	z.e.reset()
	z.start(w)
}

func (z *Writer) start(w io.Writer) {
	z.w, z.err, z.closed = w, nil, false
	z.e.bits = bitWriter{out: z.e.bits.out[:0]}
	z.left = math.MaxInt
	if z.blocks == Pigz || z.blocks == PigzSingle {
		z.left = PigzBlock
	}
}

// Write implements [io.Writer]. After an error, which is that of the writer below, nothing more is written.
func (z *Writer) Write(p []byte) (int, error) {
	if z.closed {
		return 0, errors.New("zlib: write after close")
	}
	n := 0
	for n < len(p) && z.err == nil {
		if z.left == 0 { // now it is known that the block is not the last
			z.e.endPart()
			if z.blocks == Pigz {
				z.e.restart()
			}
			z.left = PigzBlock
		}
		took := z.e.fill(p[n : n+min(z.left, len(p)-n)])
		n += took
		z.left -= took
		if z.e.full() {
			z.e.encode(false)
			z.flush()
		}
	}
	return n, z.err
}

// Close ends the stream. It does not close the writer below, and does nothing the second time.
func (z *Writer) Close() error {
	if z.err != nil || z.closed {
		return z.err
	}
	z.closed = true
	z.e.endAll()
	z.flush()
	return z.err
}

func (z *Writer) flush() {
	if out := z.e.bits.out; z.err == nil && len(out) > 0 {
		_, z.err = z.w.Write(out)
	}
	z.e.bits.out = z.e.bits.out[:0]
}

// endAll ends the stream.
func (e *encoder) endAll() {
	e.encode(true)
	e.block(true)
}
