package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"pier/internal/bucket"
	"pier/internal/oci"
)

// A Store keeps snapshots in a bucket. The objects that a manifest names are there before it.
type Store struct {
	Bucket bucket.Bucket
	Jobs   int    // objects that are dealt with at once; 0: 1
	Meter  *Meter // told of the bytes; nil: nobody is

	pool pool // of what is read ahead
}

// asked is how many objects a bucket elsewhere is asked for at once, at least: such questions wait and cost nothing.
const asked = 16

// Manifest returns the manifest of a snapshot. The error wraps [oci.ErrNotFound] if there is no such snapshot, and
// [oci.ErrDigestMismatch] or [ErrManifest] if what is there is not that.
func (s *Store) Manifest(ctx context.Context, id Digest) (Manifest, error) {
	r, err := s.Bucket.Open(ctx, id.ManifestKey(), 0, -1)
	if errors.Is(err, oci.ErrNotFound) {
		return nil, fmt.Errorf("snapshot %s: there is none in %s: %w", id, s.Bucket, err)
	}
	if err != nil {
		return nil, err
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, MaxManifest+1))
	if err != nil {
		return nil, err
	}
	m, err := Parse(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("%s/%s: %w", s.Bucket, id.ManifestKey(), err)
	}
	if got := m.ID(); got != id {
		return nil, fmt.Errorf("%s/%s: manifest of snapshot %s: %w", s.Bucket, id.ManifestKey(), got, oci.ErrDigestMismatch)
	}
	return m, nil
}

// has reports whether the manifest of a snapshot is there, by its size.
func (s *Store) has(ctx context.Context, id Digest, size int) (bool, error) {
	o, err := s.Bucket.Stat(ctx, id.ManifestKey())
	if errors.Is(err, oci.ErrNotFound) {
		return false, nil
	}
	return err == nil && o.Size == int64(size), err
}

// putManifest stores the manifest of a snapshot whose objects are there, in place of one that may be damaged.
func (s *Store) putManifest(ctx context.Context, id Digest, text []byte) error {
	if err := s.Bucket.Sync(ctx); err != nil {
		return err
	}
	if err := s.Bucket.Put(ctx, id.ManifestKey(), int64(len(text)), bytes.NewReader(text), true); err != nil {
		return err
	}
	return s.Bucket.Sync(ctx)
}

// objects returns the contents of the files of m, each once, in the order of their first file.
func (m Manifest) objects() (objects []object) {
	seen := make(map[Digest]bool)
	for _, e := range m {
		if !e.Dir() && !seen[e.Digest] {
			seen[e.Digest] = true
			objects = append(objects, object{e.Digest, e.Size})
		}
	}
	return objects
}

func bytesOf(objects []object) (n int64) {
	for _, o := range objects {
		n += o.size
	}
	return n
}

// sizes returns the sizes of those of the objects that are in the bucket. It lists them all or asks for each, whichever takes fewer
// requests: digests are spread evenly, so the part of all keys that the first page of a list gets through tells how many there are.
func (s *Store) sizes(ctx context.Context, objects []object) (map[Digest]int64, error) {
	s.Meter.Begin("comparing", 0)
	page := s.Bucket.Page()
	if page == 0 || len(objects) <= 2 {
		return s.stat(ctx, objects)
	}
	wanted := make(map[string]Digest, len(objects))
	for _, o := range objects {
		wanted[o.key()] = o.digest
	}
	found := make(map[Digest]int64)
	n := 0
	for o, err := range s.Bucket.List(ctx, objectsPrefix) {
		if err != nil {
			return nil, err
		}
		if d, ok := wanted[o.Key]; ok {
			found[d] = o.Size
		}
		if n++; n == page && estimate(n, o.Key)/page > len(objects) {
			return s.stat(ctx, objects)
		}
	}
	return found, nil
}

const (
	objectsPrefix   = ".objects/"
	manifestsPrefix = ".manifests/"
)

// estimate returns how many objects there are if n have keys up to key.
func estimate(n int, key string) int {
	const digits = 6 // two levels of three
	part := 0
	seen := 0
	for i := len(objectsPrefix); i < len(key) && seen < digits; i++ {
		var v int
		switch c := key[i]; {
		case c >= '0' && c <= '9':
			v = int(c - '0')
		case c >= 'a' && c <= 'f':
			v = int(c-'a') + 10
		default:
			continue
		}
		part = part<<4 | v
		seen++
	}
	for ; seen < digits; seen++ {
		part <<= 4
	}
	return n * (1 << (4 * digits)) / (part + 1)
}

// stat is sizes, with a request for each.
func (s *Store) stat(ctx context.Context, objects []object) (map[Digest]int64, error) {
	var mu sync.Mutex // guards found
	found := make(map[Digest]int64)
	jobs := max(s.Jobs, 1)
	if s.Bucket.Page() > 0 {
		jobs = max(jobs, asked)
	}
	err := each(ctx, jobs, objects, func(ctx context.Context, o object) error {
		got, err := s.Bucket.Stat(ctx, o.key())
		if errors.Is(err, oci.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		found[o.digest] = got.Size
		return nil
	})
	return found, err
}

// each calls do for all of list, up to jobs at once, until one fails.
func each[T any](ctx context.Context, jobs int, list []T, do func(context.Context, T) error) error {
	group, ctx := errgroup.WithContext(ctx)
	next := make(chan T)
	for range min(max(jobs, 1), len(list)) {
		group.Go(func() error {
			for one := range next {
				if err := do(ctx, one); err != nil {
					return err
				}
			}
			return nil
		})
	}
	group.Go(func() error {
		defer close(next)
		for _, one := range list {
			select {
			case next <- one:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	return group.Wait()
}

// A Summary says what a push or sync did.
type Summary struct {
	ID       Digest `json:"id"`
	Files    int    `json:"files"`   // of the tree
	Bytes    int64  `json:"bytes"`   // of all files
	Objects  int    `json:"objects"` // different contents
	Sent     int    `json:"sent"`    // objects that the store did not have
	SentSize int64  `json:"sentBytes"`
	Skipped  int    `json:"skipped"`    // objects that it had
	Repaired int    `json:"repaired"`   // of those sent, objects that were damaged there
	Saved    int64  `json:"savedBytes"` // of all files, what was not sent
	DryRun   bool   `json:"dryRun,omitempty"`
}

func (m Manifest) summary() Summary {
	sum := Summary{ID: m.ID()}
	for _, e := range m {
		if !e.Dir() {
			sum.Files++
			sum.Bytes += e.Size
		}
	}
	return sum
}

// Options are what a push and a sync may be told.
type Options struct {
	Repair bool     // read the objects that are there, and replace those that are damaged
	DryRun bool     // only say what would be sent
	Origin Revision // what is kept of it in the store; the ID and the time are set
}

// A giver gives content: of a directory, a registry, or another store.
type giver interface {
	// give stores an object in the bucket, proven. replace says whether there is a damaged one.
	give(ctx context.Context, to *Store, o object, replace bool) error
}

// send brings a snapshot into the store. before is what put some of its objects there, or nil.
func (s *Store) send(ctx context.Context, m Manifest, from giver, opt Options, before *early) (Summary, error) {
	sum := m.summary()
	objects := m.objects()
	sum.Objects = len(objects)
	sum.DryRun = opt.DryRun
	text := m.Text()
	s.Meter.Begin("comparing", 0)
	there, err := s.has(ctx, sum.ID, len(text))
	if err != nil {
		return sum, err
	}
	if there && !opt.Repair {
		sum.Skipped, sum.Saved = len(objects), sum.Bytes
		if opt.DryRun {
			return sum, nil
		}
		return sum, s.record(ctx, sum, opt.Origin)
	}
	if opt.DryRun {
		_, _, err := s.missing(ctx, objects, nil, opt, &sum)
		return sum, err
	}
	for {
		err := s.bring(ctx, text, objects, from, opt, before, &sum)
		if err == nil {
			return sum, s.record(ctx, sum, opt.Origin)
		}
		if !errors.Is(err, errNotHeard) {
			return sum, err
		}
		opt.Repair, before = false, nil // that was done; the rest is looked for again
	}
}

// bring puts the objects that are missing, then the manifest.
func (s *Store) bring(ctx context.Context, text []byte, objects []object, from giver, opt Options, before *early, sum *Summary) (err error) {
	hold, there := before.hand()
	if hold == nil {
		if hold, err = s.hold(ctx); err != nil {
			return err
		}
	}
	defer hold.release()
	ctx = hold.ctx
	missing, damaged, err := s.missing(ctx, objects, there, opt, sum)
	if err != nil {
		return err
	}
	s.Meter.Begin("sending", sum.SentSize)
	if err := each(ctx, s.Jobs, missing, func(ctx context.Context, o object) error {
		return from.give(ctx, s, o, damaged[o.digest])
	}); err != nil {
		return err
	}
	if err := hold.check(); err != nil {
		return err
	}
	return s.putManifest(ctx, sum.ID, text)
}

// missing returns those of the objects that must be sent, and which of them are there but damaged. The sizes of some may be known.
func (s *Store) missing(ctx context.Context, objects []object, known map[Digest]int64, opt Options, sum *Summary) (missing []object, damaged map[Digest]bool, err error) {
	asked := slices.DeleteFunc(slices.Clone(objects), func(o object) bool { _, ok := known[o.digest]; return ok })
	sizes, err := s.sizes(ctx, asked)
	if err != nil {
		return nil, nil, err
	}
	maps.Copy(sizes, known)
	damaged = make(map[Digest]bool)
	sum.Skipped, sum.Repaired = 0, 0
	if opt.Repair {
		faults, err := s.prove(ctx, objects, sizes)
		if err != nil {
			return nil, nil, err
		}
		for _, f := range faults {
			damaged[f.Digest] = f.Fault != FaultMissing
		}
	}
	for _, o := range objects {
		size, there := sizes[o.digest]
		if there && size != o.size {
			damaged[o.digest] = true // whatever put it there, it is not what it should be
		}
		if there && !damaged[o.digest] {
			sum.Skipped++
			continue
		}
		missing = append(missing, o)
		if damaged[o.digest] {
			sum.Repaired++
		}
	}
	sum.Sent, sum.SentSize = len(missing), bytesOf(missing)
	sum.Saved = sum.Bytes - sum.SentSize
	return missing, damaged, nil
}

// put stores an object whose content comes from r, which is proven.
func (s *Store) put(ctx context.Context, o object, r io.Reader, replace bool) error {
	err := s.Bucket.Put(ctx, o.key(), o.size, s.Meter.reader(o.prove(r)), replace)
	if !errors.Is(err, bucket.ErrExists) {
		return err
	}
	there, err := s.Bucket.Stat(ctx, o.key()) // somebody else put it there meanwhile
	if err == nil && there.Size != o.size {
		err = fmt.Errorf("%s/%s: somebody put %d bytes there, want %d: run this again, it replaces them", s.Bucket, o.key(), there.Size, o.size)
	}
	return err
}
