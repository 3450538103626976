// Package goflate makes the raw deflate streams (RFC 1951) that compress/flate made in Go 1.9 to 1.26, bit for bit, whatever toolchain
// builds it: docker push, BuildKit, containerd, crane and kaniko of those years compressed their layers with it. It is written from the
// algorithm; its test compares it with the standard library's where that is of those years, and with golden digests always.
//
// Preset dictionaries, Flush in mid-stream and reading are not here: no layer needs them, or the standard library has them.
package goflate

import (
	"fmt"
	"io"
)

// HuffmanOnly is the level that looks for no matches. The others are 0, which stores, to 9.
const HuffmanOnly = -2

const (
	blockBytes  = 65535   // content of a block at levels below 2: the most that a stored block holds
	blockTokens = 1 << 14 // literals and matches in a block from level 2 on
	minMatch    = 4       // shortest match that is looked for; the format allows 3
	maxMatch    = 258     // longest match of the format
	windowSize  = 1 << 15 // farthest match of the format
)

// An encoder turns content into blocks of a stream.
type encoder interface {
	// write takes all of p, and writes the blocks that are complete.
	write(p []byte)
	// finish writes what is left.
	finish()
}

// A Writer compresses what is written to it. It holds at most 2 MB, and does not start goroutines.
type Writer struct {
	enc    encoder
	out    *blockWriter
	closed bool
}

// NewWriter returns a Writer to w at level: HuffmanOnly, or 0 to 9. It reports a level that does not exist.
func NewWriter(w io.Writer, level int) (*Writer, error) {
	out := newBlockWriter(w)
	z := &Writer{out: out}
	switch {
	case level == 0:
		z.enc = newBlocks(out, func(content []byte, _ bool) { out.writeStored(content) })
	case level == HuffmanOnly:
		z.enc = newBlocks(out, func(content []byte, _ bool) { out.writeLiterals(content) })
	case level == 1:
		f := &fast{out: out}
		z.enc = newBlocks(out, f.block)
	case level >= 2 && level <= 9:
		z.enc = newChains(out, levels[level])
	default:
		return nil, fmt.Errorf("goflate: level %d is not -2 to 9", level)
	}
	return z, nil
}

// Write compresses p. Compressed bytes may reach the underlying writer later; its first error is returned from then on.
func (z *Writer) Write(p []byte) (int, error) {
	if z.out.err != nil {
		return 0, z.out.err
	}
	z.enc.write(p)
	if z.out.err != nil {
		return 0, z.out.err
	}
	return len(p), nil
}

// Close ends the stream: Go ends it with an empty stored block. It does not close the underlying writer.
func (z *Writer) Close() error {
	if z.closed {
		return z.out.err
	}
	z.closed = true
	z.enc.finish()
	z.out.storedHeader(0, true)
	z.out.flush()
	return z.out.err
}

// blocks is the encoder of the levels that make a block of every 65535 bytes.
type blocks struct {
	out     *blockWriter
	content []byte
	block   func(content []byte, last bool) // writes the block; last: content is what is left, and may be shorter
}

func newBlocks(out *blockWriter, block func([]byte, bool)) *blocks {
	return &blocks{out: out, content: make([]byte, 0, blockBytes), block: block}
}

func (b *blocks) write(p []byte) {
	for len(p) > 0 && b.out.err == nil {
		n := min(len(p), blockBytes-len(b.content))
		b.content = append(b.content, p[:n]...)
		p = p[n:]
		if len(b.content) == blockBytes {
			b.block(b.content, false)
			b.content = b.content[:0]
		}
	}
}

func (b *blocks) finish() {
	if len(b.content) > 0 {
		b.block(b.content, true)
	}
}
