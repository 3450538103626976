package snapshot

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Retention says which snapshots stay. The zero Retention keeps all. A snapshot goes if all that is said lets it go.
type Retention struct {
	Last  int           // the last so many of each name, or of what came from one place, stay; 0: that says nothing
	Older time.Duration // only what was brought longer ago goes; 0: that says nothing
}

// A Collection says what GC removed.
type Collection struct {
	Snapshots []Digest `json:"snapshots"` // removed
	Kept      int      `json:"kept"`      // snapshots
	Objects   int      `json:"objects"`   // removed
	Bytes     int64    `json:"bytes"`     // of them
	Stays     int64    `json:"stays"`     // bytes of those that stay
	Uploads   int      `json:"uploads"`   // cut uploads that were dropped
	DryRun    bool     `json:"dryRun,omitempty"`
}

// unfinished is how old what is left of an upload must be to be dropped: nobody goes on with it anymore.
const unfinished = 7 * 24 * time.Hour

// GC removes the snapshots that need not stay, then the objects that none names. While a push or sync is under way it does nothing, and
// returns an error wrapping [ErrBusy]. A manifest that cannot be read or is damaged is an error, too: what it names would be lost.
func (s *Store) GC(ctx context.Context, keep Retention, dryRun bool) (Collection, error) {
	c := Collection{Snapshots: []Digest{}, DryRun: dryRun}
	for _, err := range s.Bucket.List(ctx, manifestsPrefix) {
		if err != nil {
			return c, err // there is no such store: an announcement would make one
		}
		break
	}
	h, err := s.holdAlone(ctx)
	if err != nil {
		return c, err
	}
	defer h.release()
	ctx = h.ctx
	going, err := s.going(ctx, keep, h)
	if err != nil {
		return c, err
	}
	named := make(map[Digest]bool)
	for o, err := range s.Bucket.List(ctx, manifestsPrefix) {
		if err != nil {
			return c, err
		}
		id, err := digestOfKey(o.Key, manifestsPrefix)
		if err != nil {
			return c, fmt.Errorf("%s/%s: that is no key of a manifest (%w): remove it", s.Bucket, o.Key, err)
		}
		if going[id] {
			c.Snapshots = append(c.Snapshots, id)
			continue
		}
		m, err := s.Manifest(ctx, id)
		if err != nil {
			return c, fmt.Errorf("%w: what it names would be removed: mend it by a push with --repair, or remove it", err)
		}
		c.Kept++
		for _, e := range m {
			named[e.Digest] = true
		}
	}
	var garbage []string
	for o, err := range s.Bucket.List(ctx, objectsPrefix) {
		if err != nil {
			return c, err
		}
		if d, err := digestOfKey(o.Key, objectsPrefix); err != nil || named[d] {
			c.Stays += o.Size // what is nothing of ours stays
			continue
		}
		garbage = append(garbage, o.Key)
		c.Objects++
		c.Bytes += o.Size
	}
	if dryRun {
		return c, nil
	}
	return c, s.sweep(ctx, h, &c, garbage)
}

// sweep removes manifests, then objects: at no time is there a manifest without its objects.
func (s *Store) sweep(ctx context.Context, h *hold, c *Collection, garbage []string) error {
	remove := func(ctx context.Context, key string) error {
		if err := h.check(); err != nil {
			return err
		}
		s.Meter.Add(1)
		return s.Bucket.Delete(ctx, key)
	}
	s.Meter.Begin("removing", int64(len(garbage)+len(c.Snapshots)))
	manifests := make([]string, len(c.Snapshots))
	for i, id := range c.Snapshots {
		manifests[i] = id.ManifestKey()
	}
	for _, keys := range [][]string{manifests, garbage} {
		if err := each(ctx, max(s.Jobs, asked), keys, remove); err != nil {
			return err
		}
		if err := s.Bucket.Sync(ctx); err != nil {
			return err
		}
	}
	if err := s.forget(ctx, c.Snapshots); err != nil {
		return err
	}
	var incoming []string
	for o, err := range s.Bucket.List(ctx, incomingPrefix) {
		if err != nil {
			return err
		}
		incoming = append(incoming, o.Key)
	}
	if err := each(ctx, max(s.Jobs, asked), incoming, remove); err != nil {
		return err
	}
	var err error
	c.Uploads, err = s.Bucket.Clean(ctx, time.Now().Add(-unfinished))
	return err
}

// forget removes the revisions of snapshots that are gone.
func (s *Store) forget(ctx context.Context, gone []Digest) error {
	if len(gone) == 0 {
		return nil
	}
	isGone := make(map[Digest]bool)
	for _, id := range gone {
		isGone[id] = true
	}
	revisions, err := s.Revisions(ctx, "", "")
	if err != nil {
		return err
	}
	var keys []string
	for _, r := range revisions {
		if isGone[r.ID] {
			keys = append(keys, r.key)
		}
	}
	return each(ctx, max(s.Jobs, asked), keys, s.Bucket.Delete)
}

// going returns the snapshots that need not stay.
func (s *Store) going(ctx context.Context, keep Retention, h *hold) (map[Digest]bool, error) {
	going := make(map[Digest]bool)
	if keep == (Retention{}) {
		return going, nil
	}
	revisions, err := s.Revisions(ctx, "", "")
	if err != nil {
		return nil, err
	}
	latest := make(map[Digest]time.Time) // when each was last brought
	last := make(map[string][]Digest)    // of each series, the latest last
	for _, r := range revisions {
		if t := r.latest(); t.After(latest[r.ID]) {
			latest[r.ID] = t
		}
		in := r.Series()
		last[in] = append(last[in], r.ID)
	}
	for o, err := range s.Bucket.List(ctx, manifestsPrefix) {
		if err != nil {
			return nil, err
		}
		id, err := digestOfKey(o.Key, manifestsPrefix)
		if err != nil {
			continue // GC says so
		}
		age := h.age(o)
		if t, ok := latest[id]; ok {
			age = min(age, time.Since(t))
		}
		_, known := latest[id]
		going[id] = age >= keep.Older && (known || keep.Last == 0) // what nobody knows the age of among others is no series
	}
	for _, ids := range last {
		distinct := make(map[Digest]bool)
		for i := len(ids) - 1; i >= 0 && keep.Last > 0; i-- {
			if distinct[ids[i]] = true; len(distinct) > keep.Last {
				break
			}
			delete(going, ids[i])
		}
	}
	return going, nil
}

// An Item is a snapshot in a store.
type Item struct {
	ID       Digest    `json:"id"`
	Modified time.Time `json:"modified"` // when its manifest came, by the store's clock
	Manifest int64     `json:"manifestBytes"`
	Names    []string  `json:"names,omitempty"` // of its revisions
}

// Snapshots returns what is in the store, by ID.
func (s *Store) Snapshots(ctx context.Context) ([]Item, error) {
	items := []Item{}
	for o, err := range s.Bucket.List(ctx, manifestsPrefix) {
		if err != nil {
			return nil, err
		}
		if id, err := digestOfKey(o.Key, manifestsPrefix); err == nil {
			items = append(items, Item{ID: id, Modified: o.Modified, Manifest: o.Size})
		}
	}
	return items, nil
}

// digestOfKey is the reverse of ObjectKey and ManifestKey.
func digestOfKey(key, prefix string) (Digest, error) {
	s := key[len(prefix):]
	var digits []byte
	for i := range len(s) {
		if s[i] != '/' {
			digits = append(digits, s[i])
		}
	}
	d, err := ParseDigest(string(digits))
	if err == nil && d.key(prefix[:len(prefix)-1]) != key {
		err = errors.New("its slashes are at other places")
	}
	return d, err
}
