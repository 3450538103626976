package docker

import (
	"context"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/semaphore"

	"pier/internal/oci"
)

// A turn is the right to use one of the processors that layers are made on. Whoever has one gives it up while the disk or a client
// keeps it waiting, and every turnBytes: so all who make layers get on at the same time, and nobody waits for the whole of a
// large one.
type turn struct {
	ctx context.Context // of the work that it is for
	s   *Store

	mu   sync.Mutex // guards held, and is held while the turn is given up
	held bool
}

// turnBytes is how much is made in one turn, in bytes: some milliseconds, with the slowest encoders a tenth of a second.
const turnBytes = 256 << 10

// take waits for a turn. Who waits longest is next.
func (s *Store) take(ctx context.Context) (*turn, error) {
	t := &turn{ctx: ctx, s: s}
	return t, t.wait()
}

func (t *turn) wait() error {
	select {
	case t.s.processors <- struct{}{}:
		t.held = true
		return nil
	case <-t.ctx.Done():
		return t.ctx.Err()
	}
}

// end gives the turn up for good.
func (t *turn) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pass()
}

func (t *turn) pass() {
	if t.held {
		t.held = false
		<-t.s.processors
	}
}

// aside does what keeps waiting while others have the turn. Of several goroutines that work in the same turn, one gives it up.
func (t *turn) aside(do func() error) error {
	if !t.mu.TryLock() {
		return do()
	}
	defer t.mu.Unlock()
	t.pass()
	if err := do(); err != nil {
		return err
	}
	return t.wait()
}

// turnWriter writes to w while others have the turn.
type turnWriter struct {
	*turn
	w io.Writer
}

func (t turnWriter) Write(p []byte) (n int, err error) {
	err = t.aside(func() error {
		n, err = t.w.Write(p)
		return err
	})
	return n, err
}

// turnReader reads from r while others have the turn.
type turnReader struct {
	*turn
	r io.ReaderAt
}

func (t turnReader) ReadAt(p []byte, offset int64) (n int, err error) {
	err = t.aside(func() error {
		n, err = t.r.ReadAt(p, offset)
		if err == io.EOF && n > 0 {
			return nil // the next read has none
		}
		return err
	})
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// idle takes the processors that nobody uses, for who has one already.
func (s *Store) idle() (n int, done func()) {
	for {
		select {
		case s.processors <- struct{}{}:
			n++
			continue
		default:
		}
		return n, func() {
			for range n {
				<-s.processors
			}
		}
	}
}

// maxMaking is how many layers are made at once, whatever the processors, and makingBytes is what each may take: those of encoders with a
// large window count for several. Those beyond wait until one is done.
const (
	maxMaking   = 4
	makingBytes = 10 << 20
)

// place waits for room for making a layer that takes so much memory, or a part of one, which a client may read slowly. Whoever has it
// calls done; with an error it does nothing.
func (s *Store) place(ctx context.Context, memory int64, part bool) (done func(), err error) {
	if part {
		return s.acquire(ctx, memory, s.parts)
	}
	return s.acquire(ctx, memory, s.places)
}

// backPlace is as place, for work that no client waits for: it leaves a place to those who do.
func (s *Store) backPlace(ctx context.Context, memory int64) (done func(), err error) {
	return s.acquire(ctx, memory, s.background, s.places)
}

func (s *Store) acquire(ctx context.Context, memory int64, places ...*semaphore.Weighted) (done func(), err error) {
	n := min((memory+makingBytes-1)/makingBytes, maxMaking-1)
	for i, p := range places {
		if err := p.Acquire(ctx, n); err != nil {
			for _, had := range places[:i] {
				had.Release(n)
			}
			return func() {}, fmt.Errorf("docker: as many layers are being made as there is room for: %w: %w", oci.ErrUnavailable, err)
		}
	}
	s.c.Reserve(memory)
	return func() {
		s.c.Reserve(-memory)
		for _, p := range places {
			p.Release(n)
		}
	}, nil
}
