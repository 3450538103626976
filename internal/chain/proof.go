package chain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"pier/internal/oci"
)

const (
	maxProofs  = 2  // contents read at once only to prove them: the disk is for clients
	maxWaiting = 64 // contents that wait to be judged in the background; the rest when they are asked for again
	maxDoubted = 64 // digests that are read again because somebody doubted them, in doubtAgain

	// doubtAgain is how long content that somebody doubted is left alone after it: who is wrong, or lies, costs one reading.
	doubtAgain = 10 * time.Minute
)

// A Doubter is told that content it holds is said to be wrong. It finds out for itself, in the background.
type Doubter interface {
	Doubt(ref oci.Reference)
}

// Doubt implements [Doubter]: the content is read again, and offered as before until it is found wrong, since whoever doubts may
// lie. The same content is so doubted at most once in ten minutes.
func (o *once) Doubt(ref oci.Reference) {
	if ref.Digest == "" {
		return
	}
	if _, err := o.Resolve(context.Background(), ref); err != nil {
		return // nothing here that could be wrong
	}
	if o.doubt(ref.Digest) {
		o.log.Info("content on this node is said to be wrong, reading it again", "digest", ref.Digest, "source", o.origin)
		if !o.check(ref, true) {
			o.mu.Lock()
			defer o.mu.Unlock()
			delete(o.doubted, ref.Digest) // another time
		}
	}
}

// doubt reports whether the content is to be read again.
func (o *once) doubt(d oci.Digest) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	if at, ok := o.doubted[d]; ok && now.Sub(at) < doubtAgain {
		return false
	}
	if len(o.doubted) >= maxDoubted {
		for old, at := range o.doubted {
			if now.Sub(at) >= doubtAgain {
				delete(o.doubted, old)
			}
		}
	}
	if len(o.doubted) >= maxDoubted {
		return false // somebody doubts everything
	}
	o.doubted[d] = now
	return true
}

// check proves ref in the background, unless that is under way already or too much waits; with again, also if it is proven. One
// at a time.
func (o *once) check(ref oci.Reference, again bool) (begun bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.checking[ref.Digest] || len(o.checking) >= maxWaiting {
		return false
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
		// What it finds is noted where it is found. A fault before the first byte says nothing about the content; whoever asks next
		// meets it too, and reports it.
		if again {
			_, _ = o.read(oci.WithInspection(context.Background()), ref, true)
		} else {
			_, _ = o.settle(oci.WithInspection(context.Background()), ref)
		}
	}()
	return true
}

// A proof is one reading of content, for all who wait for it.
type proof struct {
	done  chan struct{} // closed when it is over; nothing below changes after
	stamp stamp         // of the file that was read
	err   error
	left  bool // whoever read gave up, which says nothing
}

// settle returns once the content of ref is proven, with the stamp of the file it is in, or an error that says why it is not
// ([oci.ErrDigestMismatch] if it is wrong). It reads the content, in turn with others, unless somebody is reading
// it already.
func (o *once) settle(ctx context.Context, ref oci.Reference) (stamp, error) {
	for {
		o.mu.Lock()
		p, joined := o.proofs[ref.Digest]
		if !joined {
			p = &proof{done: make(chan struct{})}
			o.proofs[ref.Digest] = p
		}
		o.mu.Unlock()
		if !joined {
			p.stamp, p.err = o.read(ctx, ref, false)
			p.left = p.err != nil && ctx.Err() != nil
			o.mu.Lock()
			delete(o.proofs, ref.Digest)
			o.mu.Unlock()
			close(p.done)
			return p.stamp, p.err
		}
		select {
		case <-p.done:
			if !p.left {
				return p.stamp, p.err
			}
		case <-ctx.Done():
			return stamp{}, ctx.Err()
		}
	}
}

// read waits for its turn and reads all of ref, if it is not proven by then, or again.
func (o *once) read(ctx context.Context, ref oci.Reference, again bool) (stamp, error) {
	select {
	case o.reads <- struct{}{}:
		defer func() { <-o.reads }()
	case <-ctx.Done():
		return stamp{}, ctx.Err()
	}
	rc, desc, s, err := o.open(ctx, ref, 0, -1)
	if err != nil {
		return stamp{}, err
	}
	defer rc.Close()
	if !again && o.proven(ref.Digest, s) {
		return s, nil
	}
	err = drain(ctx, Verify(rc, desc))
	var path *fs.PathError
	switch {
	case err == nil:
		o.prove(ref.Digest, s)
	case errors.Is(err, oci.ErrDigestMismatch) || errors.As(err, &path): // wrong, or cannot be read
		o.Blame(ref, o.origin)
	}
	return s, err
}

// drain reads r to its end, or until ctx ends.
func drain(ctx context.Context, r io.Reader) error {
	buf := make([]byte, 64<<10)
	for {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if _, err := r.Read(buf); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("proving content: %w", err)
		}
	}
}
