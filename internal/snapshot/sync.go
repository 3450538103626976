package snapshot

import (
	"context"
	"errors"
	"fmt"

	"pier/internal/bucket"
	"pier/internal/oci"
)

// Sync brings a snapshot of another store into this one.
func (s *Store) Sync(ctx context.Context, from *Store, id Digest, opt Options) (Summary, error) {
	m, err := from.Manifest(ctx, id)
	if err != nil {
		return Summary{ID: id}, err
	}
	return s.send(ctx, m, from, opt, nil)
}

// give implements giver.
func (s *Store) give(ctx context.Context, to *Store, o object, replace bool) error {
	err := s.copyWithin(ctx, to, o)
	if !errors.Is(err, oci.ErrUnsupported) {
		return err
	}
	r, err := s.read(ctx, o, 0)
	if err != nil {
		return fmt.Errorf("object %s: %w", o.digest, s.lost(err))
	}
	defer r.Close()
	return s.lost(to.put(ctx, o, r, replace))
}

// copyWithin has the service copy an object that was proven before, if both stores are in one. Only one way is saved so, as the bytes
// must be seen.
func (s *Store) copyWithin(ctx context.Context, to *Store, o object) error {
	if s.Bucket.Page() == 0 || to.Bucket.Page() == 0 {
		return oci.ErrUnsupported
	}
	type kind interface{ SameService(bucket.Bucket) bool }
	if k, ok := to.Bucket.(kind); !ok || !k.SameService(s.Bucket) {
		return oci.ErrUnsupported
	}
	was, err := s.Bucket.Stat(ctx, o.key())
	if err != nil {
		return s.lost(err)
	}
	r, err := s.read(ctx, o, 0)
	if err != nil {
		return s.lost(err)
	}
	defer r.Close()
	if err := o.prove(to.Meter.reader(r)).discard(); err != nil {
		return fmt.Errorf("%s/%s: %w", s.Bucket, o.key(), s.lost(err))
	}
	return to.Bucket.Copy(ctx, s.Bucket, was, o.key())
}

// lost adds to an error what can be done about content that this store does not have as it should.
func (s *Store) lost(err error) error {
	if errors.Is(err, oci.ErrNotFound) || errors.Is(err, oci.ErrDigestMismatch) {
		return fmt.Errorf("%w: the object in %s is missing or damaged; 'pier snapshot verify' there tells which are, and a push or sync with --repair mends them", err, s.Bucket)
	}
	return err
}
