package chain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"pier/internal/oci"
)

// Once returns a Source that proves the content of src, which calls itself origin, against its digest the first time it is
// served whole, since the disk may have changed it while nobody looked; from then on it is handed through as it is, for
// as long as its file stays the same: another file, or one written to since, is proven again. Content that came since Once was
// called was proven by who stored it, and is not read again. What is in no file is proven once and for all.
//
// Content found wrong is logged and blamed on src; if src does not mind (see [oci.Blamer]), Once itself does not offer
// it for ten minutes. Before a part of content not proven yet is served, all of it is read; see [Proved] for those who must not be given
// the whole before that, either.
//
// It is also a [Holder], of what src holds, a [Doubter] and an [oci.Lister].
func Once(log *slog.Logger, origin string, src oci.Source) oci.Source {
	return &once{
		lists: lists{src}, origin: origin, log: log, era: era{start: time.Now(), newest: changed(src)},
		good: make(map[oci.Digest]stamp), bad: make(map[oci.Digest]time.Time), doubted: make(map[oci.Digest]time.Time),
		checking: make(map[oci.Digest]bool), proofs: make(map[oci.Digest]*proof),
		turn: make(chan struct{}, 1), reads: make(chan struct{}, maxProofs),
	}
}

const (
	quarantine = 10 * time.Minute // until content found wrong is looked at again: the runtime may have replaced it
	maxProven  = 1 << 15          // digests remembered as proven: about 6 MB; over it, some are proven again
)

type once struct {
	lists
	origin string
	log    *slog.Logger
	era    era
	turn   chan struct{} // held by the one background check that is at work
	reads  chan struct{} // held by whoever reads content only to prove it

	mu       sync.Mutex // guards all below
	good     map[oci.Digest]stamp
	bad      map[oci.Digest]time.Time // when it was found wrong
	doubted  map[oci.Digest]time.Time // when somebody said it was wrong
	checking map[oci.Digest]bool      // waiting for its turn in the background, or being read there
	proofs   map[oci.Digest]*proof    // under way
	changed  time.Time                // when what is bad last changed
	damaged  uint64                   // copies found wrong
}

// quarantined returns an error wrapping [oci.ErrNotFound] for content that was found wrong.
func (o *once) quarantined(d oci.Digest) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	since, bad := o.bad[d]
	if !bad {
		return nil
	}
	if time.Since(since) > quarantine {
		o.pardon()
		return nil
	}
	return fmt.Errorf("%s is quarantined: %w", d, oci.ErrNotFound)
}

// pardon ends what quarantines are over. The caller holds mu.
func (o *once) pardon() {
	now := time.Now()
	for d, since := range o.bad {
		if now.Sub(since) > quarantine {
			delete(o.bad, d)
			o.changed = now
		}
	}
}

// proven reports whether the content of d in the file with stamp s is proven.
func (o *once) proven(d oci.Digest, s stamp) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	have, ok := o.good[d]
	if !ok && o.era.saw(s, time.Now(), time.Since(o.era.start)) { // nothing was held against it yet
		o.remember(d, s)
		return true
	}
	return ok && have == s && s != unknown
}

func (o *once) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	desc, err := o.Source.Resolve(ctx, ref)
	if err == nil {
		err = o.quarantined(desc.Digest)
	}
	if err != nil {
		return oci.Descriptor{}, err
	}
	return desc, nil
}

func (o *once) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	rc, desc, s, err := o.open(ctx, ref, offset, length)
	switch {
	case err != nil || o.proven(ref.Digest, s):
		return rc, desc, err
	case whole(offset, length, desc):
		return &proving{&verifier{r: rc, desc: desc, hash: desc.Digest.Algorithm().Hash()}, o, ref, s}, desc, nil
	}
	// A part proves nothing by itself, so all of it is read first: once, as long as the file stays what it is.
	rc.Close()
	if _, err := o.settle(ctx, ref); err != nil {
		if ctx.Err() != nil {
			o.check(ref, false) // clients that do not wait for it must not be what keeps it from ever being proven
		}
		return nil, oci.Descriptor{}, err
	}
	rc, desc, s, err = o.open(ctx, ref, offset, length)
	if err == nil && !o.proven(ref.Digest, s) {
		rc.Close()
		err = fmt.Errorf("%s changed while it was proven: %w", ref.Digest, oci.ErrUnavailable)
	}
	if err != nil {
		return nil, oci.Descriptor{}, err
	}
	return rc, desc, nil
}

// open opens content that is not quarantined, and says which file it is in.
func (o *once) open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, stamp, error) {
	if err := o.quarantined(ref.Digest); err != nil {
		return nil, oci.Descriptor{}, stamp{}, err
	}
	rc, desc, err := o.Source.Open(ctx, ref, offset, length)
	if err != nil {
		return nil, desc, stamp{}, err
	}
	return rc, desc, stampOfReader(rc), nil
}

// proving is a reader of content that nobody proved before: what it finds is remembered.
type proving struct {
	*verifier
	o     *once
	ref   oci.Reference
	stamp stamp // of the file when it was opened
}

func (p *proving) Read(b []byte) (int, error) {
	n, err := p.verifier.Read(b)
	switch {
	case err == io.EOF:
		p.o.prove(p.ref.Digest, p.stamp)
	case errors.Is(err, oci.ErrDigestMismatch):
		p.o.Blame(p.ref, p.o.origin)
		err = fmt.Errorf("%w: %w", oci.ErrDamaged, err)
	}
	return n, err
}

// prove notes that the content of d was found right in the file with stamp s.
func (o *once) prove(d oci.Digest, s stamp) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.remember(d, s)
}

// remember makes room by forgetting any other, which is proven again when it is asked for again. The caller holds mu.
func (o *once) remember(d oci.Digest, s stamp) {
	if _, known := o.good[d]; !known && len(o.good) >= maxProven {
		for victim := range o.good {
			delete(o.good, victim)
			break
		}
	}
	o.good[d] = s
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
	o.damaged++
	o.remember(ref.Digest, unknown)
	if !ok {
		o.bad[ref.Digest], o.changed = time.Now(), time.Now()
	}
}

// Damaged returns how many copies src, which Once or First returned, found wrong so far.
func Damaged(src oci.Source) (copies uint64) {
	switch s := src.(type) {
	case *first:
		for _, src := range s.sources {
			copies += Damaged(src)
		}
	case *once:
		s.mu.Lock()
		defer s.mu.Unlock()
		copies = s.damaged
	}
	return copies
}
