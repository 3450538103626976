package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"pier/internal/oci"
)

const (
	partSize = 256 << 10 // bytes read from one source at a time
	maxParts = 8         // parts in memory at once, of all transfers together: 2 MiB
	maxLanes = 4         // sources that one transfer reads from at once

	minStriped = 8 * partSize // less is read from one source
)

// A lane opens parts of content at one source.
type lane struct {
	name string
	open func(ctx context.Context, offset, length int64) (io.ReadCloser, error)
	fail func(error) // told once, when the lane is given up
	near bool        // a neighbour: it is left when it hangs or is slow. Registries watch over themselves
}

// A part is one piece of the window ahead of the reader.
type part struct {
	begin, end int64
	buf        *[partSize]byte
	first      io.ReadCloser // opened already; nil: it is to be opened
	done       chan struct{} // closed when buf is full
}

// A striped reader reads the parts of content from several sources at once, and gives them in order. A source that fails is
// not asked again, and its part is read by another; when none is left the reader fails where it is.
type striped struct {
	s      *Source
	ctx    context.Context // of its lanes
	cancel context.CancelFunc
	wg     sync.WaitGroup

	at, end int64
	window  []*part // in order, the first one being read; only the reader touches it
	begun   int64   // where the next part begins
	todo    chan *part

	mu    sync.Mutex // guards all below
	lanes int
	best  time.Duration // least time that a part took
	err   error         // of the lane that failed last

	dead chan struct{} // closed when no lane is left
}

// newStriped returns a reader of content from at to end, or nil if there is no memory for a part. First is a reader of the
// first part that is open already, or nil; the striped reader closes it.
func (s *Source) newStriped(ctx context.Context, at, end int64, lanes []lane, first io.ReadCloser) *striped {
	st := &striped{s: s, at: at, end: end, begun: at, todo: make(chan *part, maxParts), lanes: len(lanes), dead: make(chan struct{})}
	st.fill(first)
	if len(st.window) == 0 {
		return nil
	}
	st.ctx, st.cancel = context.WithCancel(ctx)
	for _, l := range lanes {
		st.wg.Go(func() { st.run(l) })
	}
	return st
}

// fill makes parts as far as there is memory for them.
func (st *striped) fill(first io.ReadCloser) {
	for st.begun < st.end && len(st.window) < maxParts {
		select {
		case st.s.parts <- struct{}{}:
		default:
			return
		}
		st.add(st.s.pool.Get().(*[partSize]byte), first)
		first = nil
	}
}

// add makes one part.
func (st *striped) add(buf *[partSize]byte, first io.ReadCloser) {
	p := &part{begin: st.begun, end: min(st.begun+partSize, st.end), buf: buf, first: first, done: make(chan struct{})}
	st.begun = p.end
	st.window = append(st.window, p)
	st.todo <- p // never full: the window is no longer
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

// read fills one part. A neighbour that gives nothing for a while, or is slow, fails.
func (st *striped) read(l lane, p *part) error {
	ctx, cancel := context.WithCancelCause(st.ctx)
	defer cancel(nil)
	alive := func() {}
	if l.near {
		timer := time.AfterFunc(headerTimeout, func() { cancel(errHung) })
		defer timer.Stop()
		alive = func() { timer.Reset(hung) }
	}
	begun := time.Now()
	rc, err := p.open(ctx, l)
	if err != nil {
		return why(ctx, err)
	}
	defer rc.Close()
	for n, size := int64(0), p.end-p.begin; n < size; {
		alive()
		m, err := rc.Read(p.buf[n:size])
		n += int64(m)
		switch {
		case n == size:
			st.took(time.Since(begun))
		case err != nil:
			return why(ctx, fmt.Errorf("%d of %d bytes: %w: %w", n, size, io.ErrUnexpectedEOF, err))
		case l.near && st.slow(time.Since(begun), n, size):
			return errSlow
		}
	}
	return nil
}

// open opens the part at a source.
func (p *part) open(ctx context.Context, l lane) (io.ReadCloser, error) {
	if rc := p.first; rc != nil {
		p.first = nil
		return rc, nil
	}
	return l.open(ctx, p.begin, p.end-p.begin)
}

// why returns the reason for which a context was ended, or else err.
func why(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// took notes how long a part took.
func (st *striped) took(d time.Duration) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.best == 0 || d < st.best {
		st.best = d
	}
}

// slow reports whether a source that gave n of size bytes in a time is slow, by the measures of a [watch]: of the others,
// the fastest of those that this reader reads from is what counts.
func (st *striped) slow(d time.Duration, n, size int64) bool {
	if d <= paceOver {
		return false
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	projected := time.Duration(float64(d) * float64(size) / float64(n))
	return float64(n) < floor*d.Seconds() || st.lanes > 1 && st.best > 0 && projected > slowPart*st.best
}

var (
	errHung = fmt.Errorf("gave nothing for %s: %w", hung, oci.ErrUnavailable)
	errSlow = fmt.Errorf("slow: %w", oci.ErrUnavailable)
)

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
		if len(st.window) == 0 && st.begun < st.end {
			st.add(p.buf, nil) // kept: others cannot take all the memory and stop this one
		} else {
			st.free(p)
		}
		st.fill(nil)
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
		if p.first != nil {
			p.first.Close()
		}
		st.free(p)
	}
	st.window = nil
	return nil
}

// stripe returns a reader over several of the neighbours that have all of the content, in the place of the one that replied
// first, or nil if that would gain nothing. Where the directory sends this node to one that is receiving itself, the others
// are busy with those who came before.
func (r *relay) stripe(first *reply, list []candidate) *striped {
	if !first.Whole() || r.end-r.at < minStriped || first.missing > 0 || len(r.s.trust.doubts(r.key)) > 0 {
		return nil // of content that was wrong, one copy at a time is read: it shows which
	}
	lanes := []lane{r.lane(first.candidate)}
	for _, c := range list {
		near := c.Zone == first.Zone && !r.s.trust.troubled(c.ID)
		if c.Whole() && !c.Late() && c.ID != first.ID && near && len(lanes) < maxLanes {
			lanes = append(lanes, r.lane(c))
		}
	}
	if len(lanes) == 1 {
		return nil
	}
	st := r.s.newStriped(r.ctx, r.at, r.end, lanes, nil)
	if st != nil {
		first.body.Close()
	}
	return st
}

func (r *relay) lane(c candidate) lane {
	s, ref, key, size := r.s, r.ref, r.key, r.desc.Size
	return lane{
		name: "peer " + c.Name, near: true,
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
			switch {
			case errors.Is(err, errHung):
				s.leave(c.ID, leftHung)
			case errors.Is(err, errSlow):
				s.leave(c.ID, leftSlow)
			default:
				_ = s.judge(c, nil, err, 0, -1, &out)
			}
			s.c.Log.Info("neighbour gives no more parts", "peer", c.Name, "ref", ref.String(), "err", err)
		},
	}
}

// fetch opens content at the registry: over several connections, if there are to be several and it has several parts.
func (s *Source) fetch(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	up := s.upstream()
	if s.c.Fetchers < 2 || length >= 0 {
		return up.Open(ctx, ref, offset, length)
	}
	// The first part tells how large the whole is. More is not asked for: what is on its way when a connection ends is lost.
	first, desc, err := up.Open(ctx, ref, offset, partSize)
	if err != nil || desc.Size >= 0 && desc.Size-offset <= partSize {
		return first, desc, err
	}
	if desc.Size >= 0 {
		lanes := make([]lane, min(s.c.Fetchers, maxParts))
		for i := range lanes {
			lanes[i] = registryLane(up, ref, desc)
		}
		if st := s.newStriped(ctx, offset, desc.Size, lanes, first); st != nil {
			return st, desc, nil
		}
	}
	first.Close()
	return up.Open(ctx, ref, offset, length)
}

func registryLane(up oci.Source, ref oci.Reference, whole oci.Descriptor) lane {
	return lane{
		name: whole.Source,
		open: func(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
			rc, part, err := up.Open(ctx, ref, offset, length)
			if err == nil && part.Size != whole.Size {
				rc.Close()
				err = errUnfit
			}
			return rc, err
		},
		fail: func(error) {},
	}
}
