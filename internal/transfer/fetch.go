package transfer

import (
	"context"
	"encoding"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"pier/internal/chain"
	"pier/internal/oci"
)

const (
	chunk       = 64 << 10               // bytes read, digested and written at once; the memory of a flight
	maxAttempts = 6                      // in a row that brought nothing
	firstPause  = 100 * time.Millisecond // before the second such attempt; doubles, with full jitter
	maxPause    = 3 * time.Second

	// A read that waited and then brought less than small is followed by a pause, in which more arrives: over a thin link, one
	// piece for everybody who reads along instead of every packet saves most of the work.
	small  = 8 << 10
	gather = 8 * time.Millisecond
	waited = 100 * time.Microsecond

	// maxUnsized bounds content whose size no registry tells: 16 GiB, more than any layer that was met.
	maxUnsized = 16 << 30
)

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
		if w.at-before >= chunk { // less is no way to get anywhere
			attempt, last = 1, time.Now()
		}
		if attempt >= maxAttempts && w.old > 0 && w.at == w.old {
			return f.mismatch(o, w, "") // the source answers, but what is here cannot be gone on with
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
	if chain.Matches(w.hash, f.digest) {
		return nil
	}
	f.mu.Lock()
	from := f.desc.Source
	f.mu.Unlock()
	return f.mismatch(o, w, from)
}

// mismatch reports wrong content, and blames the source unless the fault may be in what an earlier transfer left.
func (f *flight) mismatch(o origin, w *writer, from string) error {
	if w.old > 0 {
		f.e.mismatched.Inc()
		f.e.c.Log.Warn("what an interrupted transfer left does not belong to the content: starting anew", "digest", f.digest)
		return fmt.Errorf("%s: resumed: %w", o.ref, oci.ErrDigestMismatch)
	}
	f.e.blame(o.ref.WithDigest(f.digest), from)
	return fmt.Errorf("%s from %s: %w", o.ref, from, oci.ErrDigestMismatch)
}

// attempt opens the source at the offset reached and appends what comes. It returns nil when all bytes are there.
func (f *flight) attempt(o origin, w *writer) error {
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	rc, desc, err := f.e.c.Source.Open(o.context(ctx), o.ref, w.at, -1)
	switch {
	case errors.Is(err, oci.ErrRange) && w.at > 0: // what is here is longer than the content
		return f.mismatch(o, w, desc.Source)
	case err != nil && w.at == w.old:
		return &openError{f.stalled(ctx, err)}
	case err != nil:
		return f.stalled(ctx, err)
	}
	defer rc.Close()
	if err := f.fits(o, desc.Size); err != nil {
		return err
	}
	if first, ok := f.describeAs(desc); !ok { // readers were promised another size, by a source that did not deliver
		return f.mismatch(o, w, first)
	}
	if desc.Size < 0 && f.idle() { // who asked for it left before it was known that nobody can tell its end
		f.cancel()
		return ctx.Err()
	}
	// Sources watch over themselves. This is for one that does not.
	idle := max(f.e.c.Timeout/2, time.Second)
	watch := time.AfterFunc(idle, cancel)
	defer watch.Stop()
	buf := buffers.Get().(*[chunk]byte)
	defer buffers.Put(buf)
	for {
		began := time.Now()
		n, err := rc.Read(buf[:])
		thin := n < small && time.Since(began) > waited
		if n > 0 {
			watch.Reset(idle)
			if err := f.append(w, buf[:n]); err != nil {
				return err
			}
			if err := f.fits(o, w.at); err != nil {
				return err
			}
		}
		switch {
		case desc.Size >= 0 && w.at > desc.Size:
			return f.mismatch(o, w, desc.Source)
		case err == io.EOF && desc.Size >= 0 && w.at < desc.Size:
			return fmt.Errorf("%s: %d of %d bytes: %w: %w", o.ref, w.at, desc.Size, io.ErrUnexpectedEOF, oci.ErrUnavailable)
		case err == io.EOF:
			return nil
		case err != nil:
			return f.stalled(ctx, err)
		case thin:
			time.Sleep(gather)
		}
	}
}

// fits reports whether so many bytes are too many.
func (f *flight) fits(o origin, size int64) error {
	switch limit := f.e.c.Max; {
	case f.kind == oci.Manifest && size > oci.MaxManifest, size > maxUnsized && !f.sized():
		return fmt.Errorf("%s: %d bytes: %w", o.ref, size, oci.ErrTooLarge)
	case limit > 0 && size > limit:
		return &diskError{fmt.Errorf("%s: %d bytes, of which %d may be kept: %w", o.ref, size, limit, oci.ErrTooLarge)}
	}
	return nil
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

// describeAs publishes what a source says of the content. It reports false, and who said so, if readers were told of another
// size before.
func (f *flight) describeAs(desc oci.Descriptor) (first string, ok bool) {
	f.mu.Lock()
	first = f.desc.Source
	other := f.known && desc.Size >= 0 && f.desc.Size != desc.Size
	f.mu.Unlock()
	if other {
		return first, false
	}
	desc.Digest = f.digest
	f.change(func() {
		if !f.known {
			f.known = desc.Size >= 0
		} else {
			desc.Size = f.desc.Size
		}
		f.desc = desc
	})
	return "", true
}

// append digests and writes b, and lets readers have it.
func (f *flight) append(w *writer, b []byte) error {
	if err := w.append(b); err != nil {
		return &diskError{err}
	}
	f.change(func() { f.available = w.at })
	return nil
}

// append writes and digests b, both at once: on a fast link they are the two largest costs, about the same. After an error the
// digest is that of what was there before.
func (w *writer) append(b []byte) error {
	before, ok := w.hash.(encoding.BinaryAppender)
	if ok && len(b) >= chunk/2 {
		var err error
		if w.state, err = before.AppendBinary(w.state[:0]); err != nil {
			return err
		}
		done := make(chan struct{})
		go func() {
			w.hash.Write(b)
			close(done)
		}()
		_, err = w.file.WriteAt(b, w.at)
		<-done
		if err != nil {
			return errors.Join(err, w.hash.(encoding.BinaryUnmarshaler).UnmarshalBinary(w.state))
		}
	} else {
		if _, err := w.file.WriteAt(b, w.at); err != nil {
			return err
		}
		w.hash.Write(b)
	}
	w.at += int64(len(b))
	return nil
}
