package chain

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/oci"
)

// First returns a Source that asks the given Sources in turn. A miss is silent; a fault is logged and the next is asked;
// the last Source is the authority, and its error is returned. Without Sources everything is [oci.ErrNotFound].
//
// Its lists, and what it says it holds, join what those of its Sources know that can say. Blame and doubt are told to all that
// want to know.
func First(log *slog.Logger, sources ...oci.Source) Chain {
	return &first{log: log, sources: sources}
}

// A Chain is a Source of Sources.
type Chain interface {
	oci.Source
	oci.Lister
	oci.Blamer
	Holder
	Doubter
}

type first struct {
	log     *slog.Logger
	sources []oci.Source
}

// answers reports whether err settles the matter for the whole chain: the caller left, or asked for the impossible.
func answers(ctx context.Context, err error) bool {
	return err == nil || ctx.Err() != nil || errors.Is(err, oci.ErrRange)
}

func (f *first) fault(ctx context.Context, ref oci.Reference, err error) {
	if !errors.Is(err, oci.ErrNotFound) {
		f.log.WarnContext(ctx, "source failed, asking the next", "ref", ref.String(), "err", err)
	}
}

func (f *first) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	err := oci.ErrNotFound
	for i, src := range f.sources {
		var desc oci.Descriptor
		if desc, err = src.Resolve(ctx, ref); answers(ctx, err) {
			return desc, err
		}
		if i < len(f.sources)-1 {
			f.fault(ctx, ref, err)
		}
	}
	return oci.Descriptor{}, err
}

func (f *first) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	err := oci.ErrNotFound
	for i, src := range f.sources {
		var rc io.ReadCloser
		var desc oci.Descriptor
		if rc, desc, err = src.Open(ctx, ref, offset, length); answers(ctx, err) {
			return rc, desc, err
		}
		if i < len(f.sources)-1 {
			f.fault(ctx, ref, err)
		}
	}
	return nil, oci.Descriptor{}, err
}

// Blame implements [oci.Blamer].
func (f *first) Blame(ref oci.Reference, origin string) {
	for _, src := range f.sources {
		blame(src, ref, origin)
	}
}

// Tags implements [oci.Lister].
func (f *first) Tags(ctx context.Context, registry, repository string) ([]string, error) {
	list, err := join(f.sources, func(l oci.Lister) ([]string, error) { return l.Tags(ctx, registry, repository) })
	slices.Sort(list)
	return slices.Compact(list), err
}

// Referrers implements [oci.Lister].
func (f *first) Referrers(ctx context.Context, ref oci.Reference) ([]v1.Descriptor, error) {
	list, err := join(f.sources, func(l oci.Lister) ([]v1.Descriptor, error) { return l.Referrers(ctx, ref) })
	seen := make(map[oci.Digest]bool, len(list))
	return slices.DeleteFunc(list, func(d v1.Descriptor) bool {
		again := seen[d.Digest]
		seen[d.Digest] = true
		return again
	}), err
}

// join collects what the Listers among sources know. It fails only if none knows anything, with the last fault, or else
// with [oci.ErrNotFound].
func join[T any](sources []oci.Source, ask func(oci.Lister) ([]T, error)) ([]T, error) {
	var all []T
	known := false
	err := oci.ErrNotFound
	for _, src := range sources {
		l, ok := src.(oci.Lister)
		if !ok {
			continue
		}
		switch list, lerr := ask(l); {
		case lerr == nil:
			known = true
			all = append(all, list...)
		case !errors.Is(lerr, oci.ErrNotFound) && !errors.Is(lerr, oci.ErrUnsupported):
			err = lerr
		}
	}
	if known {
		return all, nil
	}
	return nil, err
}

// blame tells src, if it wants to know.
func blame(src oci.Source, ref oci.Reference, origin string) {
	if b, ok := src.(oci.Blamer); ok {
		b.Blame(ref, origin)
	}
}
