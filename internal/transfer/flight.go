package transfer

import (
	"context"
	"encoding"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"pier/internal/chain"
	"pier/internal/oci"
)

// A flight is one download.
type flight struct {
	e *Engine
	key
	ctx    context.Context // ends the download; detached from the requests it serves
	cancel context.CancelFunc

	// Guarded by e.mu.
	origins []origin // whom to ask, in order; asked ones stay
	next    int      // the first of origins not asked yet
	readers int
	empty   int  // how often the last reader left
	closed  bool // no further origin is asked: who comes now is better off alone

	mu        sync.Mutex    // guards all below
	changed   chan struct{} // closed, and replaced, when anything below changes
	desc      oci.Descriptor
	known     bool     // desc is
	available int64    // bytes of the content in file
	file      *os.File // nil when it is closed
	done      bool     // all bytes are there, and proven
	err       error    // final: the flight failed
	broken    *proof   // the disk failed: no more bytes come through file, but the content may be had elsewhere
}

// An origin is a name under which a client asked, with the credentials it did so: another name or other credentials may
// open what the first did not.
type origin struct {
	ref                oci.Reference
	authorization, via string // see oci.WithAuthorization, oci.WithVia
	fallback           bool   // see oci.WithFallback
}

// context returns ctx as the client's request had it.
func (o origin) context(ctx context.Context) context.Context {
	ctx = oci.WithVia(oci.WithAuthorization(ctx, o.authorization), o.via)
	if o.fallback {
		ctx = oci.WithFallback(ctx)
	}
	return ctx
}

// A proof is the state of a digest after at bytes.
type proof struct {
	at     int64
	digest oci.Digest // names the algorithm
	state  []byte
}

func newProof(d oci.Digest, h hash.Hash, at int64) (*proof, error) {
	m, ok := h.(encoding.BinaryMarshaler)
	if !ok {
		return nil, fmt.Errorf("digest algorithm %s: %w", d.Algorithm(), oci.ErrUnsupported)
	}
	state, err := m.MarshalBinary()
	return &proof{at: at, digest: d, state: state}, err
}

func (p *proof) hash() (hash.Hash, error) {
	h := p.digest.Algorithm().Hash()
	if p.at == 0 {
		return h, nil
	}
	return h, h.(encoding.BinaryUnmarshaler).UnmarshalBinary(p.state)
}

func newFlight(e *Engine, ref oci.Reference) *flight {
	f := &flight{e: e, key: keyOf(ref), changed: make(chan struct{})}
	f.ctx, f.cancel = context.WithCancel(e.ctx)
	return f
}

// maxOrigins bounds whom a flight asks: more names for one blob of one registry at one moment are not honest.
const maxOrigins = 64

// addOrigin notes whom else to ask. It reports false if there are too many already: then the caller is better off alone. The
// caller holds e.mu.
func (f *flight) addOrigin(ctx context.Context, ref oci.Reference) bool {
	o := origin{ref, oci.Authorization(ctx), oci.Via(ctx), oci.HasFallback(ctx)}
	if o.authorization != "" {
		o.ref.Tag = "" // what a tag names for this client is not for others to learn
	}
	if slices.Contains(f.origins, o) {
		return !f.closed
	}
	if f.closed || len(f.origins) == maxOrigins {
		return false
	}
	f.origins = append(f.origins, o)
	return true
}

// nextOrigin returns the first origin not asked yet. If there is none, the flight is closed.
func (f *flight) nextOrigin() (origin, bool) {
	f.e.mu.Lock()
	defer f.e.mu.Unlock()
	if f.next == len(f.origins) {
		f.closed = true
		return origin{}, false
	}
	f.next++
	return f.origins[f.next-1], true
}

// idle reports whether nobody reads.
func (f *flight) idle() bool {
	f.e.mu.Lock()
	defer f.e.mu.Unlock()
	return f.readers == 0
}

// change runs set under the lock and wakes everybody who waits.
func (f *flight) change(set func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	set()
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *flight) describe() (oci.Descriptor, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.known || f.broken != nil || f.err != nil {
		return oci.Descriptor{}, fmt.Errorf("%s is in flight, but nothing of it is here: %w", f.digest, oci.ErrNotFound)
	}
	desc := f.desc
	desc.Missing = desc.Size - f.limit()
	return desc, nil
}

// limit is up to where readers may read: short of the bytes that wait for the proof. The caller holds mu.
func (f *flight) limit() int64 {
	switch {
	case f.done, f.broken != nil: // what is in a broken flight's file is proven together with the rest
		return f.available
	case f.kind == oci.Manifest:
		return 0 // it is small, and what it says is acted upon
	}
	return max(0, min(f.available, f.desc.Size-chain.HoldBack))
}

// sized reports whether the size is known, or not asked for yet.
func (f *flight) sized() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.known || f.desc.Digest == ""
}

// isKnown reports whether a source has answered.
func (f *flight) isKnown() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.known
}

// becomesKnown waits until a source has answered, at most for knownFor, and reports whether one did.
func (f *flight) becomesKnown(ctx context.Context) bool {
	late := time.NewTimer(knownFor)
	defer late.Stop()
	for {
		f.mu.Lock()
		known, over, changed := f.known, f.err != nil || f.broken != nil, f.changed
		f.mu.Unlock()
		if known || over {
			return known && !over
		}
		select {
		case <-changed:
		case <-late.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// run is the whole life of a flight.
func (f *flight) run() {
	defer f.e.wg.Done()
	defer f.cancel()
	p, err := f.e.spool.Begin(f.origin())
	if err == nil {
		var w *writer
		if w, err = f.recover(p); err == nil || f.ctx.Err() != nil {
			f.download(p, w)
			return
		}
	}
	f.e.diskFailed(f.digest, err)
	end := func() error { return nil }
	if p != nil {
		end = p.Discard // not readable: nothing is lost
	}
	f.end(end, func() { f.broken = &proof{digest: f.digest} })
}

// origin is the reference of the origin asked last, or to be asked first.
func (f *flight) origin() oci.Reference {
	f.e.mu.Lock()
	defer f.e.mu.Unlock()
	return f.origins[max(f.next-1, 0)].ref
}

// A writer appends to the file of a flight.
type writer struct {
	file *os.File
	hash hash.Hash
	at   int64
	old  int64 // bytes of them that an earlier transfer left

	state []byte // of the digest, before what is being written
}

// recover reads again what an interrupted transfer left, to know the digest's state after it.
func (f *flight) recover(p oci.Partial) (*writer, error) {
	w := &writer{file: p.File(), hash: f.digest.Algorithm().Hash()}
	n, err := io.Copy(w.hash, &stoppable{f.ctx, w.file})
	w.at, w.old = n, n
	f.change(func() { f.file, f.available = w.file, n }) // f closes it, in end
	f.e.resumedBytes.Add(int(n))
	return w, err
}

// stoppable is a reader that ends with its context.
type stoppable struct {
	ctx context.Context
	r   io.Reader
}

func (s *stoppable) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.r.Read(p)
}

// download asks one origin after the other until the content is there, and settles what becomes of the file.
func (f *flight) download(p oci.Partial, w *writer) {
	err := f.collect(w)
	var disk *diskError
	switch {
	case err == nil:
		f.finish(p, w)
	case errors.As(err, &disk):
		if !errors.Is(err, oci.ErrTooLarge) {
			f.e.diskFailed(f.digest, disk.err)
		}
		state, perr := newProof(f.digest, w.hash, w.at)
		f.end(p.Discard, func() { f.broken, f.err = state, perr }) // gives the space back; readers hold the file open
	case f.ctx.Err() != nil:
		why := oci.ErrUnavailable // the engine was closed
		if f.e.ctx.Err() == nil {
			why = errLanded // nobody read it; who comes now boards the next
		}
		f.end(p.Suspend, func() { f.err = fmt.Errorf("transfer of %s ended: %w", f.digest, why) })
	case errors.Is(err, oci.ErrDigestMismatch), errors.Is(err, oci.ErrTooLarge):
		f.e.failed.Inc()
		f.end(p.Discard, func() { f.err = err })
	default:
		f.e.failed.Inc()
		f.end(p.Suspend, func() { f.err = err })
	}
}

// collect fills w from the origins.
func (f *flight) collect(w *writer) error {
	if err := f.ctx.Err(); err != nil {
		return err
	}
	if w.old > 0 && chain.Matches(w.hash, f.digest) { // the process died between the last byte and keeping it
		f.describeAs(oci.Descriptor{Size: w.at, Source: "cache"})
		return nil
	}
	err := fmt.Errorf("%s: nobody to ask: %w", f.digest, oci.ErrNotFound)
	for {
		o, ok := f.nextOrigin()
		if !ok {
			return err
		}
		var disk *diskError
		err = f.fetch(o, w)
		if err == nil || f.ctx.Err() != nil || errors.As(err, &disk) ||
			errors.Is(err, oci.ErrDigestMismatch) || errors.Is(err, oci.ErrTooLarge) {
			return err
		}
	}
}

// end settles the file as how says, and only then takes f out of the table and publishes how it ended: the next flight of
// this content, which readers may start at once, begins with the same file.
func (f *flight) end(how func() error, set func()) {
	if err := how(); err != nil {
		f.e.c.Log.Warn("file of a transfer not put away", "digest", f.digest, "err", err)
	}
	f.e.mu.Lock()
	f.e.land(f)
	f.e.mu.Unlock()
	var file *os.File
	f.change(func() { set(); file, f.file = f.file, nil })
	if file != nil {
		_ = file.Close() // what had to reach the disk was synced before
	}
}

// finish gives the last bytes free, and then keeps the content, and waits for the last reader where there is no Store to read
// it from.
func (f *flight) finish(p oci.Partial, w *writer) {
	f.change(func() {
		f.desc.Size, f.known = w.at, true
		f.available, f.done = w.at, true
	})
	switch err := p.Commit(f.origin(), f.desc); {
	case err == nil:
		f.e.diskWorks()
	case errors.Is(err, oci.ErrUnsupported):
		f.e.c.Log.Warn("served, but not kept", "digest", f.digest, "err", err)
	default:
		f.e.diskFailed(f.digest, err)
	}
	if f.e.c.Store == nil {
		<-f.ctx.Done()
	}
	f.end(func() error { return nil }, func() {})
}

// A diskError is a fault of the spool, not of the source.
type diskError struct{ err error }

func (d *diskError) Error() string { return "spool: " + d.err.Error() }
func (d *diskError) Unwrap() error { return d.err }
