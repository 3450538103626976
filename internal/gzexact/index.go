package gzexact

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"golang.org/x/sync/errgroup"
)

// An Index knows the places where a stream can be begun. It grows by 16 bytes for every 4 MiB of content.
type Index struct {
	Content int64   // bytes of content
	Stream  int64   // bytes of the stream
	CRC     uint32  // of the content
	Points  []Point // ascending
}

// A Point is a place where a stream can be begun.
type Point struct {
	Content int64 // bytes of content before it
	Stream  int64 // bytes of the stream before it
}

// At returns the last point that is not after offset, in bytes of the stream; ok is false if there is none, and the stream must be made
// from its start.
func (x Index) At(offset int64) (p Point, ok bool) {
	i, _ := slices.BinarySearchFunc(x.Points, offset+1, func(p Point, end int64) int { return cmp.Compare(p.Stream, end) })
	if i == 0 {
		return Point{}, false
	}
	return x.Points[i-1], true
}

// pointBytes is how far points are apart, in bytes of content.
const pointBytes = 4 << 20

// Before returns how many bytes of content before a point [Encoder.EncodeFrom] needs, and whether streams of r have points: those of
// pgzip and pigz do. The others must be made from the start, for what they emit depends on all that came before.
func (r Recipe) Before() (n int64, ok bool) {
	if c := r.find(); c != nil && c.block > 0 {
		return int64(c.before), true
	}
	return 0, false
}

// Index is as [Encoder.Encode], and returns the index of the stream.
func (e Encoder) Index(ctx context.Context, w io.Writer, content io.Reader) (Index, error) {
	if _, ok := e.Recipe.Before(); !ok {
		return Index{}, fmt.Errorf("index: a stream of %s cannot be begun in its middle", e.Recipe.codec)
	}
	if _, err := io.WriteString(w, e.Recipe.header); err != nil {
		return Index{}, err
	}
	index := Index{Stream: int64(len(e.Recipe.header))}
	err := e.encodeBlocks(ctx, content, nil, func(b *block) error {
		last := int64(0)
		if n := len(index.Points); n > 0 {
			last = index.Points[n-1].Content
		}
		if index.Content-last >= pointBytes {
			index.Points = append(index.Points, Point{index.Content, index.Stream})
		}
		index.CRC = b.crc
		index.Content += int64(len(b.content))
		index.Stream += int64(len(b.out))
		_, err := w.Write(b.out)
		return err
	})
	if err != nil {
		return Index{}, err
	}
	index.Stream += trailerBytes
	return index, writeTrailer(w, index.CRC, index.Content)
}

// EncodeFrom writes the stream from point on, which must be one of index. content begins as many bytes before point.Content as
// [Recipe.Before] says.
func (e Encoder) EncodeFrom(ctx context.Context, w io.Writer, content io.Reader, index Index, point Point) error {
	n, ok := e.Recipe.Before()
	if !ok || !slices.Contains(index.Points, point) {
		return errors.New("encode: the stream cannot be begun there")
	}
	before := make([]byte, n)
	if _, err := io.ReadFull(content, before); err != nil {
		return fmt.Errorf("encode: content before %d: %w", point.Content, err)
	}
	err := e.encodeBlocks(ctx, content, before, func(b *block) error {
		_, err := w.Write(b.out)
		return err
	})
	if err != nil {
		return err
	}
	return writeTrailer(w, index.CRC, index.Content)
}

// A block is content on its way to the stream.
type block struct {
	before, content []byte
	last            bool
	crc             uint32 // of the content so far
	out             []byte
	done            chan struct{} // receives when out is there
}

// encodeBlocks calls emit with each block in turn, never twice at once.
func (e Encoder) encodeBlocks(ctx context.Context, content io.Reader, before []byte, emit func(*block) error) error {
	c := e.Recipe.find()
	encoders := make([]blockEncoder, max(e.Workers, 1))
	for i := range encoders {
		var err error
		if encoders[i], err = c.blocks(int(e.Recipe.level)); err != nil {
			return fmt.Errorf("encode %s: %w", e.Recipe, err)
		}
	}
	// Each block is in one of these, or with who took it from there. All blocks fit in each: nobody waits to send.
	blocks := len(encoders) + 1
	free, todo, order := make(chan *block, blocks), make(chan *block, blocks), make(chan *block, blocks)
	for range blocks {
		free <- &block{content: make([]byte, 0, c.block), done: make(chan struct{}, 1)}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(todo)
		defer close(order)
		return c.split(ctx, content, before, free, func(b *block) { todo <- b; order <- b })
	})
	for _, encode := range encoders {
		group.Go(func() error {
			for b := range todo {
				var err error
				if b.out, err = encode(b.out[:0], b.before, b.content, b.last); err != nil {
					return err
				}
				b.done <- struct{}{}
			}
			return nil
		})
	}
	group.Go(func() error {
		for b := range order {
			select {
			case <-b.done:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if err := emit(b); err != nil {
				return err
			}
			free <- b
		}
		return nil
	})
	return group.Wait()
}

// split cuts content into blocks and sends them.
func (c *codec) split(ctx context.Context, content io.Reader, before []byte, free <-chan *block, send func(*block)) error {
	in := bufio.NewReader(content)
	crc := uint32(0)
	for {
		var b *block
		select {
		case b = <-free:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		n, err := io.ReadFull(in, b.content[:c.block])
		b.content = b.content[:n]
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return err
		}
		b.last = err != nil
		if !b.last && !c.emptyLast {
			_, err := in.Peek(1)
			if err != nil && err != io.EOF {
				return err
			}
			b.last = err != nil
		}
		b.before = append(b.before[:0], before...)
		before = append(before[:0], b.content[max(n-c.before, 0):]...)
		crc = crc32.Update(crc, crc32.IEEETable, b.content)
		b.crc = crc
		last := b.last // b is another's once it is sent
		send(b)
		if last {
			return nil
		}
	}
}
