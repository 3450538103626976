package upstream

import (
	"context"
	"errors"
	"time"

	"pier/internal/oci"
)

// avoid has a mirror that could not be asked, or broke off, left out for a while.
func (t target) avoid(err error) {
	if t.ns != "" && errors.Is(err, oci.ErrUnavailable) {
		t.blamed.set(t.name, time.Now().Add(avoidFor))
	}
}

// An inquiry asks the mirrors of one registry, and the registry itself, the same thing.
type inquiry[T any] struct {
	*Registries
	ref       oci.Reference
	directory *directory
	authority *endpoint
	final     func(T) bool // reports whether a mirror's answer is one, or others may know better
	f         func(target) (T, error)

	spare *T // the first answer of a mirror that was not final
}

// ask has f ask the mirrors of ref's registry in turn, then the registry itself, whose error is returned. If the registry
// cannot be asked, the mirrors that were left out are, for a doubtful copy is better than none, since it is proven;
// and at last an answer that was not final is one.
func ask[T any](ctx context.Context, r *Registries, ref oci.Reference, final func(T) bool, f func(target) (T, error)) (T, error) {
	var none T
	if err := ref.Validate(); err != nil {
		return none, err
	}
	d := r.current.Load()
	authority, err := d.endpoint(ref.Registry)
	if err == nil {
		err = d.permits(authority, ref.Repository)
	}
	if err != nil {
		return none, err
	}
	q := inquiry[T]{Registries: r, ref: ref, directory: d, authority: authority, final: final, f: f}
	v, err := q.all(ctx)
	if unasked(err) && q.spare != nil {
		return *q.spare, nil
	}
	return v, err
}

// unasked reports whether err says that nothing was learned.
func unasked(err error) bool {
	return errors.Is(err, oci.ErrUnavailable) || errors.Is(err, oci.ErrRateLimited)
}

func (q *inquiry[T]) all(ctx context.Context) (T, error) {
	var none T
	var doubtful []string
	for _, name := range q.authority.mirrors {
		now := time.Now()
		if q.blamed.until(name).After(now) || q.blamed.until(name+" "+q.ref.Digest.String()).After(now) {
			doubtful = append(doubtful, name)
			continue
		}
		if v, settled, err := q.mirror(ctx, name); settled {
			return v, err
		}
	}
	t := target{Registries: q.Registries, endpoint: q.authority, repository: q.ref.Repository, retries: maxRetries}
	var err error
	if t.account, err = q.accountFor(ctx, q.authority); err != nil {
		return none, err
	}
	v, err := q.f(t)
	if !unasked(err) || ctx.Err() != nil {
		return v, err
	}
	for _, name := range doubtful {
		if v, settled, err := q.mirror(ctx, name); settled {
			return v, err
		}
	}
	return none, err
}

// mirror asks one mirror and reports whether there is nobody else to ask: it has the answer, or the caller left. A mirror that used up the caller's time is left out for a while, too.
func (q *inquiry[T]) mirror(ctx context.Context, name string) (v T, settled bool, err error) {
	t := target{Registries: q.Registries, endpoint: q.directory.listed[name], repository: q.ref.Repository, ns: q.authority.name}
	t.account = q.own(t.endpoint)
	v, err = q.f(t)
	switch {
	case err == nil && !q.final(v):
		if q.spare == nil {
			q.spare = &v
		}
		return v, false, nil
	case err == nil, errors.Is(ctx.Err(), context.Canceled):
		return v, true, err
	}
	t.avoid(err)
	if !errors.Is(err, oci.ErrNotFound) && !errors.Is(err, oci.ErrRange) { // its copy may be short
		q.log.WarnContext(ctx, "mirror failed", "mirror", name, "registry", q.authority.name, "err", err)
	}
	return v, ctx.Err() != nil, err
}
