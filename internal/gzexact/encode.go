package gzexact

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// An Encoder makes the stream of a recipe.
type Encoder struct {
	Recipe  Recipe
	Workers int // blocks that are compressed at once, where the stream has blocks; 0 means 1. Each takes 2 MB and three blocks
}

// Encode makes the stream of r from content and writes it to w. It returns the first error of ctx, content or w; a Read or Write that
// hangs it does not end. Memory does not grow with its size: see [Recipe.Memory].
func (r Recipe) Encode(ctx context.Context, w io.Writer, content io.Reader) error {
	return Encoder{Recipe: r}.Encode(ctx, w, content)
}

// Encode is as [Recipe.Encode].
func (e Encoder) Encode(ctx context.Context, w io.Writer, content io.Reader) error {
	content = &checked{ctx: ctx, r: content}
	if e.Recipe.codec == identity {
		_, err := io.Copy(w, content)
		return err
	}
	c := e.Recipe.find()
	if c == nil {
		return errors.New("encode: no recipe")
	}
	if e.Workers > 1 && c.block > 0 {
		_, err := e.Index(ctx, w, content)
		return err
	}
	if _, err := io.WriteString(w, e.Recipe.header); err != nil { // of zstd there is none
		return err
	}
	z, err := c.stream(w, int(e.Recipe.level))
	if err != nil {
		return fmt.Errorf("encode %s: %w", e.Recipe, err)
	}
	if f, ok := z.(interface{ Flush() error }); ok && e.Recipe.first > 0 {
		if _, err := io.CopyN(z, content, int64(e.Recipe.first)); err != nil && err != io.EOF {
			return err
		}
		if err := f.Flush(); err != nil {
			return err
		}
	}
	digest := crc32.NewIEEE()
	if !c.zstd {
		content = io.TeeReader(content, digest)
	}
	// The encoder is fed whole buffers, of io.Copy's size: how content arrives must not show, not even in when a window moves.
	n, err := io.CopyBuffer(struct{ io.Writer }{z}, &full{content}, make([]byte, 32<<10))
	if err != nil {
		return err
	}
	if err := z.Close(); err != nil || c.zstd {
		return err
	}
	return writeTrailer(w, digest.Sum32(), n)
}

func writeTrailer(w io.Writer, crc uint32, n int64) error {
	b := binary.LittleEndian.AppendUint32(nil, crc)
	b = binary.LittleEndian.AppendUint32(b, uint32(n)) // modulo 2^32, RFC 1952, 2.3.1
	_, err := w.Write(b)
	return err
}

// checked ends with its context.
type checked struct {
	ctx context.Context //nolint:containedctx // lives as long as the call of Encode
	r   io.Reader
}

func (c *checked) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// full fills what it is given to read into, but at the end.
type full struct{ r io.Reader }

func (f *full) Read(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var more int
		more, err = f.r.Read(p[n:])
		n += more
	}
	if n > 0 && err == io.EOF {
		err = nil // the next Read says so again
	}
	return n, err
}
