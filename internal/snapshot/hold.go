package snapshot

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"pier/internal/bucket"
	"pier/internal/oci"
)

// Who brings a snapshot relies on objects that are there already, and who removes those that no snapshot names must not remove them
// meanwhile. Both announce themselves by an object of their own, and only then look for that of the other: with buckets that show at
// once what was put, as all three kinds do, at least one of two sees the other. An announcement is renewed while work goes on. One that is
// old is of a process that is gone. Its age is told by the bucket's clock alone.
const (
	holdsPrefix = ".pier/pushes/"
	removalKey  = ".pier/gc"

	renewed = 15 * time.Second // how often an announcement is
	stale   = 2 * time.Minute  // from then on it counts for nothing
	trusted = stale / 2        // how long after the last renewal work may be finished

	patience = 10 * time.Minute // how long a push waits for objects to be removed
)

// ErrBusy is the error for work that has to wait for other work in the same store.
var ErrBusy = errors.New("the store is in use")

// errNotHeard is the error for an announcement that may have been taken for stale.
var errNotHeard = errors.New("the store did not hear of this process for too long")

// A hold is an announcement that somebody is at work.
type hold struct {
	store *Store
	key   string
	put   func(ctx context.Context, replace bool) error
	ctx   context.Context //nolint:containedctx // of the work: it ends with the hold
	end   context.CancelCauseFunc
	done  chan struct{}                     // closed when nothing renews it anymore
	last  chan time.Time                    // holds the time of the last renewal, by the wall clock
	age   func(bucket.Object) time.Duration // by the bucket's clock
}

// hold announces that somebody brings a snapshot. While objects are removed it waits, and announces nothing: the removal must not wait in turn.
func (s *Store) hold(ctx context.Context) (*hold, error) {
	for end := time.Now().Add(patience); ; {
		h, err := s.announce(ctx, holdsPrefix+rand.Text())
		if err != nil {
			return nil, err
		}
		other, err := s.Bucket.Stat(ctx, removalKey)
		if errors.Is(err, oci.ErrNotFound) {
			return h, nil
		}
		who := s.who(ctx, removalKey)
		if err == nil && (h.age(other) > stale || who.gone()) {
			return h, nil
		}
		h.release()
		if err == nil && time.Now().After(end) {
			err = fmt.Errorf("%s: %w by %s: try again later", s.Bucket, ErrBusy, who)
		}
		if err == nil {
			s.Meter.Begin("waiting for "+who.String(), 0)
			err = sleep(ctx, time.Second)
		}
		if err != nil {
			return nil, err
		}
	}
}

// holdAlone announces that somebody removes objects. It waits for those who may be gone, and not for those who are seen at work.
func (s *Store) holdAlone(ctx context.Context) (*hold, error) {
	h, err := s.announce(ctx, removalKey)
	if err != nil {
		return nil, err
	}
	seen := make(map[string]time.Time)
	for end := time.Now().Add(stale + renewed); ; {
		who, working, err := h.others(seen)
		switch {
		case err != nil:
		case who == nil:
			return h, nil
		case working || time.Now().After(end):
			err = fmt.Errorf("%s: %w by %s: try again later", s.Bucket, ErrBusy, who)
		default:
			s.Meter.Begin("waiting for "+who.String(), 0)
			err = sleep(h.ctx, time.Second)
		}
		if err != nil {
			h.release()
			return nil, err
		}
	}
}

// others returns one of those who bring snapshots, and whether any of them was seen to renew its announcement since it was seen first. Those that
// count for nothing are removed.
func (h *hold) others(seen map[string]time.Time) (who *origin, working bool, err error) {
	for o, err := range h.store.Bucket.List(h.ctx, holdsPrefix) {
		if err != nil {
			return nil, false, err
		}
		one := h.store.who(h.ctx, o.Key)
		if h.age(o) > stale || one.gone() {
			_ = h.store.Bucket.Delete(h.ctx, o.Key) // it only takes room
			continue
		}
		who = &one
		before, again := seen[o.Key]
		working = working || again && !before.Equal(o.Modified)
		seen[o.Key] = o.Modified
	}
	return who, working, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// announce puts an announcement under key, in the place of one that counts for nothing.
func (s *Store) announce(ctx context.Context, key string) (*hold, error) {
	text, err := json.Marshal(newOrigin())
	if err != nil {
		return nil, err
	}
	h := &hold{store: s, key: key, done: make(chan struct{}), last: make(chan time.Time, 1)}
	h.put = func(ctx context.Context, replace bool) error {
		return s.Bucket.Put(ctx, key, int64(len(text)), bytes.NewReader(text), replace)
	}
	err = h.put(ctx, false)
	if key == removalKey && errors.Is(err, bucket.ErrExists) {
		err = s.supersede(ctx, h)
	}
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	own, err := s.Bucket.Stat(ctx, key)
	if err != nil {
		return nil, err
	}
	h.age = func(o bucket.Object) time.Duration { return own.Modified.Add(time.Since(begin)).Sub(o.Modified) }
	h.ctx, h.end = context.WithCancelCause(ctx)
	h.last <- begin.Round(0)
	go h.renew()
	return h, nil
}

// supersede puts h in place of another announcement of the same key, if that counts for nothing.
func (s *Store) supersede(ctx context.Context, h *hold) error {
	probe, err := s.announce(ctx, holdsPrefix+rand.Text()) // for the time there
	if err != nil {
		return err
	}
	defer probe.release()
	other, err := s.Bucket.Stat(ctx, h.key)
	switch who := s.who(ctx, h.key); {
	case errors.Is(err, oci.ErrNotFound):
	case err != nil:
		return err
	case probe.age(other) <= stale && !who.gone():
		return fmt.Errorf("%s: %w by %s: try again later", s.Bucket, ErrBusy, who)
	}
	if err := s.Bucket.Delete(ctx, h.key); err != nil {
		return err
	}
	return h.put(ctx, false) // of two who found it stale one gets it
}

// renew renews h until its work ends.
func (h *hold) renew() {
	defer close(h.done)
	ticker := time.NewTicker(renewed)
	defer ticker.Stop()
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-ticker.C:
		}
		at := time.Now().Round(0)
		if h.put(h.ctx, true) != nil {
			continue // the next time may do; check looks at when it last did
		}
		last := <-h.last
		if inTime(last, at) {
			last = at // else it may have been taken for stale meanwhile, and that stays so
		}
		h.last <- last
	}
}

// inTime reports whether a renewal comes before anybody may have taken the one before for stale.
func inTime(last, now time.Time) bool { return now.Sub(last).Abs() <= trusted }

// check returns an error if h may have been taken for stale, as after a sleep of the machine.
func (h *hold) check() error {
	last := <-h.last
	h.last <- last
	if now := time.Now().Round(0); !inTime(last, now) {
		return fmt.Errorf("%s: %w, %v: run it again, it goes on where it was", h.store.Bucket, errNotHeard, now.Sub(last).Round(time.Second))
	}
	return nil
}

// release ends the announcement. Objects may still be sent, but nothing may rely on those that are there.
func (h *hold) release() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(h.ctx), 10*time.Second)
	defer cancel()
	h.end(context.Canceled)
	<-h.done
	_ = h.store.Bucket.Delete(ctx, h.key) // if that cannot be, it becomes stale
}

// who reads who announced something.
func (s *Store) who(ctx context.Context, key string) (o origin) {
	r, err := s.Bucket.Open(ctx, key, 0, 1<<10)
	if err != nil {
		return o // unknown
	}
	defer r.Close()
	_ = json.NewDecoder(io.LimitReader(r, 1<<10)).Decode(&o) // unknown, too
	return o
}
