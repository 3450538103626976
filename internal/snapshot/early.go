package snapshot

import (
	"bytes"
	"context"
	"errors"
	"sync"

	"pier/internal/bucket"
)

// An early puts small contents into a store while a tree is scanned, so that each is read once. That pays where it costs nothing to find
// that an object is there.
type early struct {
	store *Store
	ctx   context.Context //nolint:containedctx // of the one push

	mu    sync.Mutex       // guards all below
	hold  *hold            // from the first object on
	sizes map[Digest]int64 // of what is there, or just goes there
	sent  int
	size  int64 // bytes of those sent
}

// take puts an object, unless it is there. Its content is the caller's again afterwards.
func (e *early) take(ctx context.Context, o object, content []byte) error {
	first, err := e.first(o)
	if !first {
		return err
	}
	err = e.store.Bucket.Put(ctx, o.key(), o.size, bytes.NewReader(content), false)
	if errors.Is(err, bucket.ErrExists) {
		there, err := e.store.Bucket.Stat(ctx, o.key())
		if err != nil || there.Size == o.size {
			return err
		}
		if err := e.store.Bucket.Put(ctx, o.key(), o.size, bytes.NewReader(content), true); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sent++
	e.size += o.size
	return nil
}

// first reports whether an object did not come before, and has those that come stay until they are named.
func (e *early) first(o object) (first bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.hold == nil {
		if e.hold, err = e.store.hold(e.ctx); err != nil {
			return false, err
		}
	}
	if _, seen := e.sizes[o.digest]; seen {
		return false, nil
	}
	e.sizes[o.digest] = o.size
	return true, nil
}

// hand gives away the announcement, with the sizes of the objects that are there since. They are nil if there are none.
func (e *early) hand() (h *hold, sizes map[Digest]int64) {
	if e == nil {
		return nil, nil
	}
	h, sizes = e.hold, e.sizes
	e.hold, e.sizes = nil, nil
	return h, sizes
}

// end ends the announcement, if nobody took it.
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
