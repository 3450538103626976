package snapshot

import (
	"context"
	"io"
	"sync"
)

const (
	rangeSize = 2 << 20 // bytes of a large object that are asked for at once
	maxRanges = 4       // that are asked for, or wait to be read, at once, of all objects of a Store
)

// A pool lends buffers of rangeSize bytes, maxRanges at most.
type pool struct {
	once sync.Once
	free chan []byte
}

func (p *pool) get(ctx context.Context) ([]byte, error) {
	p.once.Do(func() {
		p.free = make(chan []byte, maxRanges)
		for range maxRanges {
			p.free <- nil // made when first needed
		}
	})
	select {
	case b := <-p.free:
		if b == nil {
			b = make([]byte, rangeSize)
		}
		return b, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (p *pool) put(b []byte) { p.free <- b }

// read returns an object from offset on, unproven. Of a large one in a bucket elsewhere several ranges come at once.
func (s *Store) read(ctx context.Context, o object, offset int64) (io.ReadCloser, error) {
	if s.Bucket.Page() == 0 || o.size-offset <= 2*rangeSize {
		return s.Bucket.Open(ctx, o.key(), offset, -1)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	r := &ranges{store: s, ctx: ctx, cancel: cancel, next: make(chan chan part, maxRanges)}
	go r.fetch(o, offset)
	return r, nil
}

// ranges reads an object, a few ranges ahead.
type ranges struct {
	store  *Store
	ctx    context.Context //nolint:containedctx // of the read that it is the result of
	cancel context.CancelCauseFunc
	next   chan chan part // in order; closed at the end
	rest   []byte         // of the part being read
	buffer []byte         // that it is in
	err    error          // that it ended with
}

// A part is the bytes of a range, or why there are none.
type part struct {
	b      []byte
	buffer []byte
	err    error
}

// fetch asks for the ranges, the first first: whoever has a buffer needs no other to go on.
func (r *ranges) fetch(o object, offset int64) {
	defer close(r.next)
	for at := offset; at < o.size; at += rangeSize {
		buffer, err := r.store.pool.get(r.ctx)
		if err != nil {
			return
		}
		got := make(chan part, 1)
		select {
		case r.next <- got:
		case <-r.ctx.Done():
			r.store.pool.put(buffer)
			return
		}
		go func() {
			b := buffer[:min(rangeSize, o.size-at)]
			n, err := r.store.readRange(r.ctx, o, at, b)
			got <- part{b[:n], buffer, err}
		}()
	}
}

func (s *Store) readRange(ctx context.Context, o object, offset int64, b []byte) (int, error) {
	from, err := s.Bucket.Open(ctx, o.key(), offset, int64(len(b)))
	if err != nil {
		return 0, err
	}
	defer from.Close()
	return io.ReadFull(from, b)
}

func (r *ranges) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		r.giveBack()
		got, ok := <-r.next
		if !ok {
			if r.err = context.Cause(r.ctx); r.err == nil {
				r.err = io.EOF
			}
			continue
		}
		one := <-got
		r.rest, r.buffer, r.err = one.b, one.buffer, one.err
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *ranges) giveBack() {
	if r.buffer != nil {
		r.store.pool.put(r.buffer)
		r.buffer = nil
	}
}

// Close implements io.Closer. It waits for what is under way, which ends with the context.
func (r *ranges) Close() error {
	r.cancel(context.Canceled)
	r.giveBack()
	for got := range r.next {
		r.store.pool.put((<-got).buffer)
	}
	return nil
}
