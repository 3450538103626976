package chain

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sort"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/oci"
)

// A Holder is a Source that can say what it holds, so that others can be told. What is known to be damaged is left out.
type Holder interface {
	// Holdings returns the digests of all content that is whole, in any order. It reads directories. An error comes with what could
	// be read all the same.
	Holdings() ([]oci.Digest, error)

	// Names returns the tags known, each with the digest it names, at most [MaxNames]: the rest is not told to others.
	Names() []oci.Reference

	// Changed returns a time that differs from the one returned before if Holdings or Names may have changed since. Changes
	// within a few milliseconds of each other may share one. It is cheap enough to be asked every second.
	Changed() time.Time
}

// MaxNames bounds the names that a [Holder] returns: about 1 MB of memory here, and as much for whoever is told.
const MaxNames = 4096

// BoundNames sorts names and drops those over [MaxNames], the same each time.
func BoundNames(names []oci.Reference) []oci.Reference {
	sort.Slice(names, func(i, j int) bool {
		a, b := &names[i], &names[j]
		return cmp.Or(cmp.Compare(a.Registry, b.Registry), cmp.Compare(a.Repository, b.Repository), cmp.Compare(a.Tag, b.Tag)) < 0
	})
	return names[:min(len(names), MaxNames)]
}

// holdings returns what src holds; nothing of a Source that cannot say it.
func holdings(src oci.Source) ([]oci.Digest, error) {
	if h, ok := src.(Holder); ok {
		return h.Holdings()
	}
	return nil, nil
}

func names(src oci.Source) []oci.Reference {
	if h, ok := src.(Holder); ok {
		return h.Names()
	}
	return nil
}

func changed(src oci.Source) time.Time {
	if h, ok := src.(Holder); ok {
		return h.Changed()
	}
	return time.Time{}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// Holdings implements [Holder].
func (f *first) Holdings() ([]oci.Digest, error) {
	var all []oci.Digest
	var errs []error
	seen := make(map[oci.Digest]struct{})
	for _, src := range f.sources {
		list, err := holdings(src)
		errs = append(errs, err)
		for _, d := range list {
			if _, again := seen[d]; !again {
				seen[d] = struct{}{}
				all = append(all, d)
			}
		}
	}
	return all, errors.Join(errs...)
}

// Names implements [Holder]. Of a tag that several know, the first one's digest counts, as in Resolve.
func (f *first) Names() []oci.Reference {
	var all []oci.Reference
	seen := make(map[oci.Reference]struct{})
	for _, src := range f.sources {
		for _, ref := range names(src) {
			if _, again := seen[ref.WithDigest("")]; !again {
				seen[ref.WithDigest("")] = struct{}{}
				all = append(all, ref)
			}
		}
	}
	return BoundNames(all)
}

// Changed implements [Holder].
func (f *first) Changed() (latest time.Time) {
	for _, src := range f.sources {
		latest = later(latest, changed(src))
	}
	return latest
}

// Doubt implements [Doubter]: it tells all that want to know.
func (f *first) Doubt(ref oci.Reference) {
	for _, src := range f.sources {
		if d, ok := src.(Doubter); ok {
			d.Doubt(ref)
		}
	}
}

// Holdings implements [Holder].
func (o *once) Holdings() ([]oci.Digest, error) {
	list, err := holdings(o.Source)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pardon()
	return slices.DeleteFunc(list, func(d oci.Digest) bool {
		_, bad := o.bad[d]
		return bad
	}), err
}

// Names implements [Holder].
func (o *once) Names() []oci.Reference {
	list := names(o.Source)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pardon()
	return slices.DeleteFunc(list, func(ref oci.Reference) bool {
		_, bad := o.bad[ref.Digest]
		return bad
	})
}

// Changed implements [Holder].
func (o *once) Changed() time.Time {
	t := changed(o.Source)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pardon()
	return later(t, o.changed)
}

// lists is a Source with the lists of one that has any.
type lists struct{ oci.Source }

// Tags implements [oci.Lister] for a Source that does.
func (s lists) Tags(ctx context.Context, registry, repository string) ([]string, error) {
	if l, ok := s.Source.(oci.Lister); ok {
		return l.Tags(ctx, registry, repository)
	}
	return nil, oci.ErrUnsupported
}

// Referrers implements [oci.Lister] for a Source that does.
func (s lists) Referrers(ctx context.Context, ref oci.Reference) ([]v1.Descriptor, error) {
	if l, ok := s.Source.(oci.Lister); ok {
		return l.Referrers(ctx, ref)
	}
	return nil, oci.ErrUnsupported
}
