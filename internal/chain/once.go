package chain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/oci"
)

// Once returns a Source that proves the content of src, which calls itself origin, against its digest the first time it is
// served whole, since the disk may have changed it while nobody looked; from then on it is handed through as it is.
// Content found wrong is logged and blamed on src; if src does not mind (see [oci.Blamer]), Once itself does not offer
// it for ten minutes. A part of content not proven yet is served as it is, and the whole is read and judged in
// the background.
func Once(log *slog.Logger, origin string, src oci.Source) oci.Source {
	return &once{
		Source: src, origin: origin, log: log, bad: make(map[oci.Digest]time.Time), good: make(map[oci.Digest]struct{}),
		checking: make(map[oci.Digest]bool), turn: make(chan struct{}, 1),
	}
}

const (
	quarantine = 10 * time.Minute // until content found wrong is looked at again: the runtime may have replaced it
	maxProven  = 1 << 16          // digests remembered as proven: about 6 MB; over it, some are proven again
	maxWaiting = 64               // contents that wait to be judged in the background; the rest when they are asked for again
)

type once struct {
	oci.Source
	origin string
	log    *slog.Logger
	turn   chan struct{} // held by the one background check that reads

	mu       sync.Mutex // guards all below
	good     map[oci.Digest]struct{}
	bad      map[oci.Digest]time.Time // when it was found wrong
	checking map[oci.Digest]bool      // waiting for its turn, or being read
}

func (o *once) state(d oci.Digest) (good, bad bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, good = o.good[d]
	since, bad := o.bad[d]
	if bad && time.Since(since) > quarantine {
		delete(o.bad, d)
		bad = false
	}
	return good, bad
}

func (o *once) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	desc, err := o.Source.Resolve(ctx, ref)
	if err != nil {
		return desc, err
	}
	if _, bad := o.state(desc.Digest); bad {
		return oci.Descriptor{}, fmt.Errorf("%s is quarantined: %w", desc.Digest, oci.ErrNotFound)
	}
	return desc, nil
}

func (o *once) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	good, bad := o.state(ref.Digest)
	if bad {
		return nil, oci.Descriptor{}, fmt.Errorf("%s is quarantined: %w", ref.Digest, oci.ErrNotFound)
	}
	rc, desc, err := o.Source.Open(ctx, ref, offset, length)
	switch {
	case err != nil || good:
		return rc, desc, err
	case whole(offset, length, desc):
		return &proving{&verifier{r: rc, desc: desc, hash: desc.Digest.Algorithm().Hash()}, o, ref}, desc, nil
	}
	o.check(ref)
	return rc, desc, nil
}

// Tags implements [oci.Lister] for a Source that does.
func (o *once) Tags(ctx context.Context, registry, repository string) ([]string, error) {
	if l, ok := o.Source.(oci.Lister); ok {
		return l.Tags(ctx, registry, repository)
	}
	return nil, oci.ErrUnsupported
}

// Referrers implements [oci.Lister] for a Source that does.
func (o *once) Referrers(ctx context.Context, ref oci.Reference) ([]v1.Descriptor, error) {
	if l, ok := o.Source.(oci.Lister); ok {
		return l.Referrers(ctx, ref)
	}
	return nil, oci.ErrUnsupported
}

// check proves ref in the background, unless that is under way already. One at a time: the disk is for clients.
func (o *once) check(ref oci.Reference) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.checking[ref.Digest] || len(o.checking) >= maxWaiting {
		return
	}
	o.checking[ref.Digest] = true
	go func() {
		o.turn <- struct{}{}
		defer func() {
			<-o.turn
			o.mu.Lock()
			defer o.mu.Unlock()
			delete(o.checking, ref.Digest)
		}()
		if good, _ := o.state(ref.Digest); good {
			return // proven meanwhile
		}
		// A fault here says nothing about the content; whoever asks next meets it too, and reports it.
		rc, _, err := o.Open(context.Background(), ref, 0, -1)
		if err != nil {
			return
		}
		defer rc.Close()
		_, _ = io.Copy(io.Discard, rc)
	}()
}

// proving is the first reader of content: what it finds is remembered.
type proving struct {
	*verifier
	o   *once
	ref oci.Reference
}

func (p *proving) Read(b []byte) (int, error) {
	n, err := p.verifier.Read(b)
	switch {
	case err == io.EOF:
		p.o.proven(p.ref.Digest)
	case errors.Is(err, oci.ErrDigestMismatch):
		p.o.Blame(p.ref, p.o.origin)
	}
	return n, err
}

func (o *once) proven(d oci.Digest) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.good) >= maxProven {
		for victim := range o.good { // any: it is proven again when it is asked for again
			delete(o.good, victim)
			break
		}
	}
	o.good[d] = struct{}{}
}

// Blame implements [oci.Blamer].
func (o *once) Blame(ref oci.Reference, origin string) {
	if origin != o.origin {
		return
	}
	o.log.Error("content on this node is damaged or cannot be read; it is not offered any more, and fetched again when asked for",
		"digest", ref.Digest, "source", origin)
	b, ok := o.Source.(oci.Blamer)
	if ok {
		b.Blame(ref, origin)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.good, ref.Digest)
	if !ok {
		o.bad[ref.Digest] = time.Now()
	}
}
