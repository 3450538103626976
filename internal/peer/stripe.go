package peer

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"pier/internal/oci"
)

const (
	partSize = 512 << 10 // bytes read from one source at a time
	maxParts = 8         // parts in memory at once, of all transfers together: 4 MiB
	maxLanes = 4         // sources that one transfer reads from at once

	minStriped = 8 * partSize // less is read from one source
)

// A lane opens parts of content at one source.
type lane struct {
	name string
	open func(ctx context.Context, offset, length int64) (io.ReadCloser, error)
	fail func(error) // told once, when the lane is given up
}

// A part is one piece of the window ahead of the reader.
type part struct {
	begin, end int64
	buf        *[partSize]byte
	tries      int
	done       chan struct{} // closed when buf is full
}

// A striped reader reads the parts of content from several sources at once, and gives them in order. A source that fails is
// not asked again, and its part is read by another; when none is left the reader fails where it is.
type striped struct {
	s      *Source
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	at, end int64
	window  []*part // in order, the first one being read; only the reader touches it
	begun   int64   // where the next part begins
	todo    chan *part

	mu    sync.Mutex // guards lanes and err
	lanes int
	err   error // of the lane that failed last
	dead  chan struct{}
}

func (s *Source) newStriped(ctx context.Context, at, end int64, lanes []lane) *striped {
	st := &striped{s: s, at: at, end: end, begun: at, todo: make(chan *part, maxParts), lanes: len(lanes), dead: make(chan struct{})}
	st.ctx, st.cancel = context.WithCancel(ctx)
	st.fill()
	for _, l := range lanes {
		st.wg.Go(func() { st.run(l) })
	}
	return st
}

// fill makes parts as far as there is memory for them, and at least one.
func (st *striped) fill() {
	for st.begun < st.end && len(st.window) < maxParts {
		select {
		case st.s.parts <- struct{}{}:
		default:
			if len(st.window) > 0 {
				return
			}
			select {
			case st.s.parts <- struct{}{}:
			case <-st.ctx.Done():
				return
			}
		}
		p := &part{begin: st.begun, end: min(st.begun+partSize, st.end), buf: st.s.pool.Get().(*[partSize]byte), done: make(chan struct{})}
		st.begun = p.end
		st.window = append(st.window, p)
		st.todo <- p // never full: the window is no longer
	}
}

// run reads parts from one source until it fails, or all is over.
func (st *striped) run(l lane) {
	for {
		select {
		case p := <-st.todo:
			if err := st.read(l, p); err != nil {
				st.todo <- p
				st.drop(l, err)
				return
			}
			close(p.done)
		case <-st.ctx.Done():
			return
		}
	}
}

func (st *striped) drop(l lane, err error) {
	if st.ctx.Err() != nil {
		return
	}
	l.fail(err)
	st.mu.Lock()
	defer st.mu.Unlock()
	st.err = fmt.Errorf("%s: %w", l.name, err)
	if st.lanes--; st.lanes == 0 {
		close(st.dead)
	}
}

// read fills one part. A source that gives nothing for a while, or is slow, fails.
func (st *striped) read(l lane, p *part) error {
	ctx, cancel := context.WithCancelCause(st.ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(hung+headerTimeout, func() { cancel(errHung) })
	defer stalled.Stop()
	rc, err := l.open(ctx, p.begin, p.end-p.begin)
	if err != nil {
		return err
	}
	defer rc.Close()
	for n := int64(0); n < p.end-p.begin; {
		m, err := rc.Read(p.buf[n : p.end-p.begin])
		n += int64(m)
		if m > 0 {
			stalled.Reset(hung)
		}
		switch {
		case n == p.end-p.begin:
		case context.Cause(ctx) != nil:
			return context.Cause(ctx)
		case err != nil:
			return fmt.Errorf("%d of %d bytes: %w: %w", n, p.end-p.begin, io.ErrUnexpectedEOF, err)
		}
	}
	return nil
}

var errHung = fmt.Errorf("gave nothing for %s: %w", hung, oci.ErrUnavailable)

// Read implements io.Reader.
func (st *striped) Read(b []byte) (int, error) {
	if st.at == st.end {
		return 0, io.EOF
	}
	p := st.window[0]
	select {
	case <-p.done:
	case <-st.dead:
		select {
		case <-p.done:
		default:
			st.mu.Lock()
			defer st.mu.Unlock()
			return 0, st.err
		}
	case <-st.ctx.Done():
		return 0, st.ctx.Err()
	}
	n := copy(b, p.buf[st.at-p.begin:p.end-p.begin])
	st.at += int64(n)
	if st.at == p.end {
		st.window = st.window[1:]
		st.free(p)
		st.fill()
	}
	return n, nil
}

// free gives the memory of a part that nobody writes to any more to others.
func (st *striped) free(p *part) {
	st.s.pool.Put(p.buf)
	<-st.s.parts
}

// Close implements io.Closer.
func (st *striped) Close() error {
	st.cancel()
	st.wg.Wait() // before their buffers are anybody else's
	for _, p := range st.window {
		st.free(p)
	}
	st.window = nil
	return nil
}

// stripe returns a reader over several of the neighbours that have all of the content, in the place of the one that replied
// first, or nil if that would gain nothing. Where the directory sends this node to one that is receiving itself, the others
// are busy with those who came before.
func (r *relay) stripe(first *reply, list []candidate) io.ReadCloser {
	if !first.Whole() || r.end-r.at < minStriped || first.missing > 0 {
		return nil
	}
	lanes := []lane{r.lane(first.candidate)}
	for _, c := range list {
		near := c.Zone == first.Zone && !r.s.trust.troubled(c.ID)
		if c.Whole() && c.ID != first.ID && near && len(lanes) < maxLanes {
			lanes = append(lanes, r.lane(c))
		}
	}
	if len(lanes) == 1 {
		return nil
	}
	first.body.Close()
	return r.s.newStriped(r.ctx, r.at, r.end, lanes)
}

func (r *relay) lane(c candidate) lane {
	s, ref, key, size := r.s, r.ref, r.key, r.desc.Size
	return lane{
		name: "peer " + c.Name,
		open: func(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
			reply, err := s.open(ctx, c, ref, offset, length)
			if err != nil {
				return nil, err
			}
			if reply.desc.Size != size {
				reply.body.Close()
				return nil, errUnfit
			}
			return s.counted(reply, key), nil
		},
		fail: func(err error) {
			var out outcome
			_ = s.judge(c, nil, err, 0, -1, &out)
			s.c.Log.Info("neighbour left", "reason", "part", "peer", c.Name, "ref", ref.String(), "err", err)
		},
	}
}

// fetch opens content at the registry: over several connections, if there are to be several and it is worth them.
func (s *Source) fetch(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	rc, desc, err := s.upstream().Open(ctx, ref, offset, length)
	if err != nil || s.c.Fetchers < 2 || length >= 0 || desc.Size-offset < minStriped {
		return rc, desc, err
	}
	// The first connection, which told the size, is not used: a part is read by range.
	rc.Close()
	lanes := make([]lane, min(s.c.Fetchers, maxParts))
	for i := range lanes {
		lanes[i] = lane{
			name: desc.Source,
			open: func(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
				rc, part, err := s.upstream().Open(ctx, ref, offset, length)
				if err == nil && part.Size != desc.Size {
					rc.Close()
					err = errUnfit
				}
				return rc, err
			},
			fail: func(error) {},
		}
	}
	return s.newStriped(ctx, offset, desc.Size, lanes), desc, nil
}
