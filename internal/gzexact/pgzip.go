package gzexact

import (
	"bytes"
	"io"

	k120 "github.com/klauspost/compress/flate"
	k117 "pier.invalid/klauspost117/flate"
)

// pgzipBefore is how much of the block before it pgzip primes the encoder of a block with, in bytes.
const pgzipBefore = 16 << 10

// klauspost is the encoder of klauspost/compress, in whatever version.
type klauspost interface {
	io.WriteCloser
	Flush() error
	ResetDict(w io.Writer, dict []byte)
}

func newKlauspost117(w io.Writer, level int) (klauspost, error) {
	return k117.NewWriterDict(w, level, nil)
}
func newKlauspost120(w io.Writer, level int) (klauspost, error) {
	return k120.NewWriterDict(w, level, nil)
}

// pgzip is the encoder that klauspost/pgzip makes of newEncoder: a block for itself, ended by a flush, after the last bytes of the one
// before it.
func pgzip(name string, block int, levels []int8, newEncoder func(io.Writer, int) (klauspost, error)) codec {
	return codec{
		name: name, levels: levels, block: block, before: pgzipBefore, emptyLast: true,
		stream: func(w io.Writer, level int) (io.WriteCloser, error) {
			e, err := newEncoder(w, level)
			return &pgzipWriter{encoder: e, w: w, block: block, left: block}, err
		},
		blocks: func(level int) (blockEncoder, error) {
			e, err := newEncoder(io.Discard, level)
			return func(dst, before, content []byte, last bool) ([]byte, error) {
				return pgzipEncode(e, dst, before, content, last)
			}, err
		},
	}
}

func pgzipEncode(e klauspost, dst, before, content []byte, last bool) ([]byte, error) {
	out := bytes.NewBuffer(dst)
	e.ResetDict(out, before)
	if _, err := e.Write(content); err != nil {
		return nil, err
	}
	if err := e.Flush(); err != nil {
		return nil, err
	}
	if last {
		if err := e.Close(); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

// pgzipWriter makes one block after the other, and holds none of them.
type pgzipWriter struct {
	encoder klauspost
	w       io.Writer
	block   int    // bytes of content in a block
	left    int    // of them, those that are not written
	tail    []byte // the last bytes of the block so far
}

// Write implements [io.Writer].
func (z *pgzipWriter) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		piece := p[:min(len(p), z.left)]
		if _, err := z.encoder.Write(piece); err != nil {
			return written, err
		}
		written += len(piece)
		p = p[len(piece):]
		z.left -= len(piece)
		z.keep(piece)
		if z.left == 0 {
			if err := z.encoder.Flush(); err != nil {
				return written, err
			}
			z.encoder.ResetDict(z.w, z.tail)
			z.tail = z.tail[:0]
			z.left = z.block
		}
	}
	return written, nil
}

// keep notes the last bytes of what is written.
func (z *pgzipWriter) keep(piece []byte) {
	piece = piece[max(len(piece)-pgzipBefore, 0):]
	if z.left >= pgzipBefore {
		return
	}
	if over := len(z.tail) + len(piece) - pgzipBefore; over > 0 {
		z.tail = append(z.tail[:0], z.tail[over:]...)
	}
	z.tail = append(z.tail, piece...)
}

// Close ends the last block, which may be empty, and the stream.
func (z *pgzipWriter) Close() error {
	if err := z.encoder.Flush(); err != nil {
		return err
	}
	return z.encoder.Close()
}
