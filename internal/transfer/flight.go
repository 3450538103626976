package transfer

import (
	"context"
	"crypto/sha256"
	"encoding"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"pier/internal/oci"
)

const (
	chunk       = 256 << 10              // bytes read, digested and written at once; the memory of a flight
	maxAttempts = 6                      // opens in a row that brought nothing
	firstPause  = 100 * time.Millisecond // before the second such attempt; doubles, with full jitter
	maxPause    = 3 * time.Second
)

// A flight is one download.
type flight struct {
	e      *Engine
	digest oci.Digest
	kind   oci.Kind
	ctx    context.Context // ends the download; detached from the requests it serves
	cancel context.CancelFunc

	// Guarded by e.mu.
	origins []origin // whom to ask, in order; asked ones stay
	next    int      // the first of origins not asked yet
	readers int

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
	ctx  context.Context // values only
	ref  oci.Reference
	auth [sha256.Size]byte
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
	return h, h.(encoding.BinaryUnmarshaler).UnmarshalBinary(p.state)
}

func newFlight(e *Engine, ref oci.Reference) *flight {
	f := &flight{e: e, digest: ref.Digest, kind: ref.Kind, changed: make(chan struct{})}
	f.ctx, f.cancel = context.WithCancel(e.ctx)
	return f
}

// addOrigin notes whom else to ask. The caller holds e.mu.
func (f *flight) addOrigin(ctx context.Context, ref oci.Reference) {
	o := origin{ctx: context.WithoutCancel(ctx), ref: ref, auth: sha256.Sum256([]byte(oci.Authorization(ctx)))}
	for _, have := range f.origins {
		if have.ref == o.ref && have.auth == o.auth {
			return
		}
	}
	if len(f.origins) < 64 { // more names for one blob at one moment are not worth remembering
		f.origins = append(f.origins, o)
	}
}

// nextOrigin returns the first origin not asked yet. If there is none, the flight is over: nobody can join it any more.
func (f *flight) nextOrigin() (origin, bool) {
	f.e.mu.Lock()
	defer f.e.mu.Unlock()
	if f.next == len(f.origins) {
		f.e.land(f)
		return origin{}, false
	}
	f.next++
	return f.origins[f.next-1], true
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
	desc.Missing = desc.Size - f.available
	return desc, nil
}

// run is the whole life of a flight.
func (f *flight) run() {
	defer f.e.wg.Done()
	defer f.cancel()
	p, err := f.e.spool.Begin(f.digest)
	if err == nil {
		var w *writer
		if w, err = f.recover(p); err == nil {
			f.download(p, w)
			return
		}
	}
	f.e.diskFailed(f.digest, err)
	end := func() error { return nil }
	if p != nil {
		end = p.Discard // not readable: nothing is lost
	}
	start, perr := newProof(f.digest, f.digest.Algorithm().Hash(), 0)
	f.end(end, func() { f.broken, f.err = start, perr })
}

// A writer appends to the file of a flight.
type writer struct {
	file *os.File
	hash hash.Hash
	at   int64
	old  int64 // bytes of them that an earlier transfer left
}

// recover reads again what an interrupted transfer left, to know the digest's state after it.
func (f *flight) recover(p oci.Partial) (*writer, error) {
	w := &writer{file: p.File(), hash: f.digest.Algorithm().Hash()}
	n, err := io.Copy(w.hash, w.file)
	w.at, w.old = n, n
	f.change(func() { f.file, f.available = w.file, n }) // f closes it, in end
	f.e.resumedBytes.Add(int(n))
	return w, err
}

// download asks one origin after the other until the content is there, and settles what becomes of the file.
func (f *flight) download(p oci.Partial, w *writer) {
	err := f.collect(w)
	var disk *diskError
	switch {
	case err == nil:
		f.finish(p, w)
	case errors.As(err, &disk):
		f.e.diskFailed(f.digest, disk.err)
		state, perr := newProof(f.digest, w.hash, w.at)
		f.end(p.Discard, func() { f.broken, f.err = state, perr }) // gives the space back; readers hold the file open
	case f.ctx.Err() != nil:
		f.end(p.Suspend, func() { f.err = fmt.Errorf("transfer of %s ended: %w", f.digest, oci.ErrUnavailable) })
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
	if w.old > 0 && matches(w.hash, f.digest) { // the process died between the last byte and keeping it
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
		if err == nil || f.ctx.Err() != nil || errors.Is(err, oci.ErrDigestMismatch) || errors.As(err, &disk) {
			return err
		}
	}
}

// end takes f out of the table and publishes how it ended, before the file goes where how says.
func (f *flight) end(how func() error, set func()) {
	f.e.mu.Lock()
	f.e.land(f)
	f.e.mu.Unlock()
	var file *os.File
	f.change(func() { set(); file, f.file = f.file, nil })
	if err := how(); err != nil {
		f.e.c.Log.Warn("file of a transfer not put away", "digest", f.digest, "err", err)
	}
	if file != nil {
		_ = file.Close() // what had to reach the disk was synced before
	}
}

// finish gives the last bytes free, and then keeps the content, or waits for the last reader where nothing is kept.
func (f *flight) finish(p oci.Partial, w *writer) {
	f.change(func() {
		f.desc.Size, f.known = w.at, true
		f.available, f.done = w.at, true
	})
	if f.e.c.Store == nil {
		<-f.ctx.Done()
		f.end(p.Discard, func() {})
		return
	}
	f.e.mu.Lock()
	ref := f.origins[max(f.next-1, 0)].ref
	f.e.mu.Unlock()
	if err := p.Commit(ref, f.desc); err != nil {
		f.e.diskFailed(f.digest, err)
	} else {
		f.e.diskWorks()
	}
	f.end(func() error { return nil }, func() {})
}

// A diskError is a fault of the spool, not of the source.
type diskError struct{ err error }

func (d *diskError) Error() string { return "spool: " + d.err.Error() }
func (d *diskError) Unwrap() error { return d.err }

// fetch appends to w from o until the content is whole and proven, resuming where the source breaks.
func (f *flight) fetch(o origin, w *writer) error {
	last := time.Now() // of progress
	for attempt := 1; ; attempt++ {
		before := w.at
		err := f.attempt(o, w)
		if err == nil {
			return f.prove(o, w)
		}
		if f.ctx.Err() != nil || final(err) {
			return err
		}
		if w.at > before {
			attempt, last = 1, time.Now()
		}
		if attempt >= maxAttempts || time.Since(last) > f.e.c.Timeout {
			return fmt.Errorf("%s: no progress in %d attempts over %s: %w", o.ref, attempt, time.Since(last).Round(time.Millisecond), err)
		}
		f.e.c.Log.Warn("transfer interrupted, resuming", "digest", f.digest, "offset", w.at, "err", err)
		select {
		case <-time.After(rand.N(min(firstPause<<attempt, maxPause))):
		case <-f.ctx.Done():
			return f.ctx.Err()
		}
	}
}

// final reports whether asking the same origin again is pointless.
func final(err error) bool {
	for _, class := range []error{
		oci.ErrNotFound, oci.ErrUnauthorized, oci.ErrDenied, oci.ErrNotAllowed, oci.ErrRateLimited, oci.ErrNameInvalid,
		oci.ErrDigestInvalid, oci.ErrTooLarge, oci.ErrUnsupported, oci.ErrDigestMismatch,
	} {
		if errors.Is(err, class) {
			return true
		}
	}
	var disk *diskError
	var unopened *openError
	return errors.As(err, &disk) || errors.As(err, &unopened)
}

// An openError is the failure to open a source that has not given a byte yet: it had its own attempts.
type openError struct{ error }

func (o *openError) Unwrap() error { return o.error }

// prove compares the whole with its digest.
func (f *flight) prove(o origin, w *writer) error {
	if matches(w.hash, f.digest) {
		return nil
	}
	f.mu.Lock()
	from := f.desc.Source
	f.mu.Unlock()
	return f.mismatch(o, w, from)
}

// mismatch reports wrong content, and blames the source unless the fault may be in what an earlier transfer left.
func (f *flight) mismatch(o origin, w *writer, from string) error {
	f.e.mismatched.Inc()
	if w.old > 0 {
		f.e.c.Log.Warn("what an interrupted transfer left does not belong to the content: starting anew", "digest", f.digest)
		return fmt.Errorf("%s: resumed: %w", o.ref, oci.ErrDigestMismatch)
	}
	f.e.c.Log.Error("source supplied wrong content; nothing of it is kept", "ref", o.ref.String(), "digest", f.digest, "source", from)
	if b, ok := f.e.c.Source.(oci.Blamer); ok {
		b.Blame(o.ref, from)
	}
	return fmt.Errorf("%s from %s: %w", o.ref, from, oci.ErrDigestMismatch)
}

func matches(h hash.Hash, d oci.Digest) bool {
	return fmt.Sprintf("%x", h.Sum(nil)) == d.Encoded()
}

// attempt opens the source at the offset reached and appends what comes. It returns nil when all bytes are there.
func (f *flight) attempt(o origin, w *writer) error {
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	// A source that opens slowly may be waiting its turn upstream; one that stalls in mid-content is better asked anew.
	watch := time.AfterFunc(f.e.c.Timeout, cancel)
	defer watch.Stop()
	rc, desc, err := f.e.c.Source.Open(oci.WithAuthorization(ctx, oci.Authorization(o.ctx)), o.ref, w.at, -1)
	switch {
	case errors.Is(err, oci.ErrRange) && w.at > 0: // what is here is longer than the content
		return f.mismatch(o, w, desc.Source)
	case err != nil && w.at == w.old:
		return &openError{f.stalled(ctx, err)}
	case err != nil:
		return f.stalled(ctx, err)
	}
	defer rc.Close()
	if f.kind == oci.Manifest && desc.Size > oci.MaxManifest {
		return fmt.Errorf("%s: %d bytes: %w", o.ref, desc.Size, oci.ErrTooLarge)
	}
	if !f.describeAs(desc) { // it had another size before: one of the two lies, and readers were promised the first
		return f.mismatch(o, w, desc.Source)
	}
	idle := max(f.e.c.Timeout/4, time.Second)
	watch.Reset(idle)
	buf := buffers.Get().(*[chunk]byte)
	defer buffers.Put(buf)
	for {
		n, err := rc.Read(buf[:])
		if n > 0 {
			watch.Reset(idle)
			if werr := f.append(w, buf[:n]); werr != nil {
				return werr
			}
		}
		switch {
		case desc.Size >= 0 && w.at > desc.Size:
			return f.mismatch(o, w, desc.Source)
		case f.kind == oci.Manifest && w.at > oci.MaxManifest:
			return fmt.Errorf("%s: more than %d bytes: %w", o.ref, w.at, oci.ErrTooLarge)
		case err == io.EOF && desc.Size >= 0 && w.at < desc.Size:
			return fmt.Errorf("%s: %d of %d bytes: %w: %w", o.ref, w.at, desc.Size, io.ErrUnexpectedEOF, oci.ErrUnavailable)
		case err == io.EOF:
			return nil
		case err != nil:
			return f.stalled(ctx, err)
		}
	}
}

// buffers are shared by all flights.
var buffers = sync.Pool{New: func() any { return new([chunk]byte) }}

// stalled names the reason where the watch ended an attempt.
func (f *flight) stalled(ctx context.Context, err error) error {
	if ctx.Err() != nil && f.ctx.Err() == nil {
		return fmt.Errorf("stalled: %w: %w", oci.ErrUnavailable, err)
	}
	return err
}

// describeAs publishes what a source says of the content. It reports false if readers were told of another size before.
func (f *flight) describeAs(desc oci.Descriptor) bool {
	f.mu.Lock()
	if f.known && desc.Size >= 0 && f.desc.Size != desc.Size {
		f.mu.Unlock()
		return false
	}
	f.mu.Unlock()
	desc.Digest = f.digest
	f.change(func() {
		if !f.known {
			f.known = desc.Size >= 0
		} else {
			desc.Size = f.desc.Size
		}
		f.desc = desc
	})
	return true
}

// append digests and writes b, and lets readers have it.
func (f *flight) append(w *writer, b []byte) error {
	if _, err := w.file.WriteAt(b, w.at); err != nil {
		return &diskError{err}
	}
	w.hash.Write(b)
	w.at += int64(len(b))
	f.change(func() { f.available = w.at })
	return nil
}
