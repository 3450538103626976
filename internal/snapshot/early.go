package snapshot

import (
	"bytes"
	"context"
	"errors"
	"sync"

	"pier/internal/bucket"
	"pier/internal/oci"
)

// An early puts small contents into a store while a tree is scanned, so that each is read once. That pays where it costs nothing to ask whether an
// object is there.
type early struct {
	store *Store
	ctx   context.Context //nolint:containedctx // of the one push

	mu   sync.Mutex // guards all below
	hold *hold      // from the first object that was put
	seen map[Digest]bool
	sent int
	size int64 // bytes of those sent
}

// take puts an object that is not there. Its content is the caller's again afterwards.
func (e *early) take(ctx context.Context, o object, content []byte) error {
	e.mu.Lock()
	seen := e.seen[o.digest]
	e.seen[o.digest] = true
	e.mu.Unlock()
	if seen {
		return nil
	}
	there, err := e.store.Bucket.Stat(ctx, o.key())
	if err == nil && there.Size == o.size {
		return nil
	}
	if err != nil && !errors.Is(err, oci.ErrNotFound) {
		return err
	}
	if err := e.announce(); err != nil {
		return err
	}
	damaged := err == nil
	err = e.store.Bucket.Put(ctx, o.key(), o.size, bytes.NewReader(content), damaged)
	if errors.Is(err, bucket.ErrExists) {
		return nil // somebody else put it there meanwhile; send looks at it again
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sent++
	e.size += o.size
	return err
}

// announce has the objects stay until they are named.
func (e *early) announce() (err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.hold == nil {
		e.hold, err = e.store.hold(e.ctx)
	}
	return err
}

// end ends the announcement.
func (e *early) end() {
	if e.hold != nil {
		e.hold.release()
	}
}

// count adds what was put to what a push says of itself, which found it there.
func (e *early) count(sum *Summary) {
	sum.Sent += e.sent
	sum.SentSize += e.size
	sum.Skipped -= e.sent
	sum.Saved = sum.Bytes - sum.SentSize
}
