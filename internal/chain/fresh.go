package chain

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/singleflight"

	"pier/internal/oci"
)

// FreshConfig says who is asked for what. Content, Local and Log are needed.
type FreshConfig struct {
	Content   oci.Source // opens and resolves digests
	Local     oci.Source // what this node has: the last known answer for a tag
	Authority oci.Source // the registries themselves; nil never to ask them
	Own       oci.Source // tags that nobody knows but this node, as they were pushed to it; may be nil
	Others    oci.Source // other nodes, for a tag that Local does not know while Authority cannot be asked; may be nil
	Record    Recorder   // told what a tag names, whenever the authority said so to anybody who asks; may be nil

	TTL     time.Duration // how long the authority's answer is taken for granted; 0: it is asked each time
	Timeout time.Duration // how long the authority may take while a last known answer waits, and others at all; 0: 5 s

	Log     *slog.Logger
	Metrics *metrics.Set // nil: a set of its own
}

// A Recorder knows the tags that it was told.
type Recorder interface {
	oci.Source
	oci.Tagger
}

// Fresh returns a Source whose tags are never stale while their registry can be asked: a tag is what the authority says
// it is. If the authority cannot be asked (unreachable, overloaded, rate limited), the last known answer is given and marked
// [oci.Descriptor.Stale]: this node's, or else that of other nodes. That it refuses, or does not know the tag, is an answer.
// Lists of tags and referrers go the same way, but never to other nodes.
func Fresh(c FreshConfig) oci.Source {
	if c.Timeout == 0 {
		c.Timeout = 5 * time.Second
	}
	if c.Metrics == nil {
		c.Metrics = metrics.NewSet()
	}
	return &fresh{
		c: c, known: make(map[tagKey]answer), wanted: make(map[string]time.Time),
		hits:  c.Metrics.NewCounter(`pier_tag_lookups_total{result="remembered"}`),
		asked: c.Metrics.NewCounter(`pier_tag_lookups_total{result="asked"}`),
		stale: c.Metrics.NewCounter(`pier_tag_lookups_total{result="stale"}`),
	}
}

// maxAnswers bounds the answers remembered: about 1 MB. Over it, those that ended are dropped, then any.
const maxAnswers = 4096

// graceTimeout is the authority's time where nothing is known that could be given instead: long enough for a new TLS
// connection, a token and an answer over a satellite.
const graceTimeout = 30 * time.Second

// tagKey keeps clients with different credentials apart: what one may see says nothing about another.
type tagKey struct {
	name string
	auth [sha256.Size]byte // all zero without credentials
}

type answer struct {
	desc oci.Descriptor
	ends time.Time
}

type fresh struct {
	c      FreshConfig
	flight singleflight.Group

	hits, asked, stale *metrics.Counter

	mu     sync.Mutex // guards all below
	known  map[tagKey]answer
	wanted map[string]time.Time // tags that clients asked for, and when last
}

func (f *fresh) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	return f.c.Content.Open(ctx, ref, offset, length)
}

func (f *fresh) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	if ref.Digest != "" {
		return f.c.Content.Resolve(ctx, ref)
	}
	if f.c.Own != nil {
		if desc, err := f.c.Own.Resolve(ctx, ref); err == nil {
			return desc, nil
		}
	}
	f.want(ref, time.Now())
	if f.c.Authority == nil {
		return f.offline(ctx, ref)
	}
	key := tagKey{name: ref.String()}
	if auth := oci.Authorization(ctx); auth != "" {
		key.auth = sha256.Sum256([]byte(auth))
	}
	if desc, ok := f.remembered(key); ok {
		f.hits.Inc()
		return desc, nil
	}
	// The question is everybody's who asks it now: it does not end because one of them leaves. But a node that asks for
	// its own clients must not wait for a question that waits for that node.
	ch := f.flight.DoChan(key.name+string(key.auth[:])+oci.Via(ctx), func() (any, error) {
		return f.ask(context.WithoutCancel(ctx), ref, key)
	})
	select {
	case res := <-ch:
		desc, _ := res.Val.(oci.Descriptor)
		return desc, res.Err
	case <-ctx.Done():
		return oci.Descriptor{}, ctx.Err()
	}
}

// offline returns what a tag names here, or else on other nodes: nobody may be asked who could know it better.
func (f *fresh) offline(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	desc, err := f.c.Local.Resolve(ctx, ref)
	if err != nil && ctx.Err() == nil {
		if others := f.others(ctx, ref); others.err == nil {
			return others.desc, nil
		}
	}
	return desc, err
}

// said is an answer to what a tag names.
type said struct {
	desc oci.Descriptor
	err  error
}

// ask returns what the authority says of a tag, or else the last known answer.
func (f *fresh) ask(ctx context.Context, ref oci.Reference, key tagKey) (oci.Descriptor, error) {
	last := f.last(ctx, ref, key)
	f.asked.Inc()
	desc, err := f.authority(ctx, ref, &last)
	switch {
	case err == nil && desc.Stale: // it could not ask itself
		f.stale.Inc()
		f.remember(key, desc, min(f.c.TTL, f.c.Timeout))
		return desc, nil
	case err == nil:
		f.remember(key, desc, f.c.TTL)
		f.record(ctx, ref, desc)
		return desc, nil
	case !unasked(err):
		return oci.Descriptor{}, err
	}
	if last.err != nil { // it may have come meanwhile
		last = f.last(ctx, ref, key)
	}
	if last.err != nil {
		last = f.others(ctx, ref)
	}
	if last.err != nil {
		return oci.Descriptor{}, err
	}
	f.c.Log.WarnContext(ctx, "registry cannot be asked, answering with the last known digest",
		"ref", ref.String(), "digest", last.desc.Digest, "source", last.desc.Source, "err", err)
	f.stale.Inc()
	last.desc.Stale = true
	f.remember(key, last.desc, min(f.c.TTL, f.c.Timeout)) // a registry in trouble is not asked by everybody all the time
	return last.desc, nil
}

// authority asks the registry. Where no last answer is known, it has more time, but others are asked too once it has been silent for
// Timeout: what they know becomes the last answer, and that the registry is silent the error.
func (f *fresh) authority(ctx context.Context, ref oci.Reference, last *said) (oci.Descriptor, error) {
	timeout := f.c.Timeout
	if last.err != nil {
		timeout = graceTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if last.err == nil || !f.mayAskOthers(ctx) {
		return f.c.Authority.Resolve(ctx, ref)
	}
	var others <-chan said // nil while they are not being asked
	registry := begin(func() said {
		desc, err := f.c.Authority.Resolve(ctx, ref)
		return said{desc, err}
	})
	silent := time.NewTimer(f.c.Timeout)
	defer silent.Stop()
	for {
		select {
		case a := <-registry:
			return a.desc, a.err
		case <-silent.C:
			others = begin(func() said { return f.others(ctx, ref) })
		case a := <-others:
			if a.err == nil {
				*last = a
				return oci.Descriptor{}, fmt.Errorf("%s: no answer for %s: %w", ref, f.c.Timeout, oci.ErrUnavailable)
			}
			others = nil
		}
	}
}

// begin asks, and returns where the answer will be.
func begin(ask func() said) <-chan said {
	answer := make(chan said, 1)
	go func() { answer <- ask() }()
	return answer
}

// last returns the last known answer. A client with credentials of its own can have its requests fail in many ways; it
// learns from that what those credentials showed before, and what anybody may see: not what the runtime pulled with its own.
func (f *fresh) last(ctx context.Context, ref oci.Reference, key tagKey) said {
	src := f.c.Local
	if oci.Authorization(ctx) != "" {
		f.mu.Lock()
		a, ok := f.known[key]
		f.mu.Unlock()
		if ok {
			return said{desc: a.desc}
		}
		if f.c.Record == nil {
			return said{err: oci.ErrNotFound}
		}
		src = f.c.Record
	}
	desc, err := src.Resolve(ctx, ref)
	return said{desc, err}
}

// mayAskOthers: what other nodes know may come from anybody's credentials, so it is not for a client that has its own.
func (f *fresh) mayAskOthers(ctx context.Context) bool {
	return f.c.Others != nil && oci.Authorization(ctx) == ""
}

// others asks other nodes what a tag names.
func (f *fresh) others(ctx context.Context, ref oci.Reference) said {
	if !f.mayAskOthers(ctx) {
		return said{err: oci.ErrNotFound}
	}
	ctx, cancel := context.WithTimeout(ctx, f.c.Timeout)
	defer cancel()
	desc, err := f.c.Others.Resolve(ctx, ref)
	return said{desc, err}
}

// unasked reports whether err means that the authority could not be asked, rather than that it answered.
func unasked(err error) bool {
	for _, answer := range []error{
		oci.ErrNotFound, oci.ErrUnauthorized, oci.ErrDenied, oci.ErrNotAllowed, oci.ErrNameInvalid, oci.ErrTagInvalid, oci.ErrUnsupported,
	} {
		if errors.Is(err, answer) {
			return false
		}
	}
	return true
}

// A Forgetter remembers what tags name, and forgets it when it is told that a tag names something else by now.
type Forgetter interface {
	Forget(ref oci.Reference) // ref has a tag
}

// Forget implements [Forgetter]: for all who asked, whatever their credentials.
func (f *fresh) Forget(ref oci.Reference) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := ref.WithDigest("").String()
	for key := range f.known {
		if key.name == name {
			delete(f.known, key)
		}
	}
}

func (f *fresh) remembered(key tagKey) (oci.Descriptor, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, ok := f.known[key]
	return a.desc, ok && time.Now().Before(a.ends)
}

func (f *fresh) remember(key tagKey, desc oci.Descriptor, ttl time.Duration) {
	if ttl <= 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.known) >= maxAnswers {
		now := time.Now()
		for k, a := range f.known {
			if now.After(a.ends) {
				delete(f.known, k)
			}
		}
		for k := range f.known {
			if len(f.known) < maxAnswers {
				break
			}
			delete(f.known, k)
		}
	}
	f.known[key] = answer{desc, time.Now().Add(ttl)}
}

// record notes what a tag names for everybody. What it names for a client with credentials of its own is nobody else's
// to learn, not even when the registry is away.
func (f *fresh) record(ctx context.Context, ref oci.Reference, desc oci.Descriptor) {
	if f.c.Record == nil || oci.Authorization(ctx) != "" {
		return
	}
	if err := f.c.Record.Tag(ctx, ref, desc); err != nil {
		f.c.Log.ErrorContext(ctx, "tag not recorded; offline it will be unknown", "ref", ref.String(), "err", err)
	}
}

// Tags implements [oci.Lister].
func (f *fresh) Tags(ctx context.Context, registry, repository string) ([]string, error) {
	ask := func(l oci.Lister, ctx context.Context) ([]string, error) { return l.Tags(ctx, registry, repository) }
	all, err := list(ctx, f, ask)
	mine := own(ctx, f, ask)
	if len(mine) == 0 {
		return all, err
	}
	all = append(all, mine...)
	sort.Strings(all)
	return slices.Compact(all), nil
}

// Referrers implements [oci.Lister].
func (f *fresh) Referrers(ctx context.Context, ref oci.Reference) ([]v1.Descriptor, error) {
	ask := func(l oci.Lister, ctx context.Context) ([]v1.Descriptor, error) { return l.Referrers(ctx, ref) }
	all, err := list(ctx, f, ask)
	for _, d := range own(ctx, f, ask) {
		err = nil
		if !slices.ContainsFunc(all, func(have v1.Descriptor) bool { return have.Digest == d.Digest }) {
			all = append(all, d)
		}
	}
	return all, err
}

// own asks what was pushed to this node.
func own[T any](ctx context.Context, f *fresh, ask func(oci.Lister, context.Context) ([]T, error)) []T {
	l, ok := f.c.Own.(oci.Lister)
	if !ok {
		return nil
	}
	list, err := ask(l, ctx)
	if err != nil {
		return nil // it knows nothing of that
	}
	return list
}

// list asks the authority, and this node only if the authority cannot be asked.
func list[T any](ctx context.Context, f *fresh, ask func(oci.Lister, context.Context) ([]T, error)) ([]T, error) {
	var err error
	if a, ok := f.c.Authority.(oci.Lister); ok {
		actx, cancel := context.WithTimeout(ctx, graceTimeout)
		defer cancel()
		var all []T
		if all, err = ask(a, actx); err == nil || !unasked(err) || oci.Authorization(ctx) != "" {
			return all, err
		}
	}
	l, ok := f.c.Local.(oci.Lister)
	if !ok {
		return nil, errors.Join(err, oci.ErrUnsupported)
	}
	all, lerr := ask(l, ctx)
	if lerr != nil && err != nil {
		return nil, err
	}
	return all, lerr
}
