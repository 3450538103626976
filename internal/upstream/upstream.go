// Package upstream is a Source over registries elsewhere: it asks them with the right credentials, over the right
// transport, again where that helps, and only where the operator allows. Content is unverified, and a broken body is
// not resumed: both are left to whoever reads it.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"pier/internal/oci"
)

// A Config says which registries there are and how they are asked.
type Config struct {
	Upstreams []Upstream // those with settings of their own; all of them may be asked

	// Allow are patterns of further registries that may be asked, over TLS: "docker.io", "*.example.com" (its
	// subdomains), "host:port", "host:*", "*". A registry that a pattern other than "*" allows may have a private
	// address. Empty means any registry with a public name and public addresses, and so does "*".
	Allow []string

	Timeout   time.Duration // without progress, after which a request or a read ends; 0 means 60 s
	UserAgent string        // "" means "pier"
	Log       *slog.Logger  // nil: nothing is logged
	Metrics   *metrics.Set  // nil: a set of its own

	resolver *net.Resolver // of names; nil: the system's
	backoff  time.Duration // before the first retry, at most; 0: see retryBase
}

// Registries is a Source over all registries that the configuration allows, an [oci.Lister] and an [oci.Blamer].
type Registries struct {
	cfg     Config
	log     *slog.Logger
	metrics *instruments
	docker  *dockerConfig
	clients *clients
	limited *deadlines // hosts that asked to come back later
	blamed  *deadlines // mirrors that are left out for a while
	current atomic.Pointer[directory]
}

var (
	_ oci.Source = (*Registries)(nil)
	_ oci.Lister = (*Registries)(nil)
	_ oci.Blamer = (*Registries)(nil)
)

const (
	defaultTimeout = 60 * time.Second

	// A mirror whose content was wrong is not asked for it for so long, and one that could not be asked is not asked
	// for anything for so long.
	blameFor = 10 * time.Minute
	avoidFor = 10 * time.Second
)

// New returns the registries of cfg. The error joins all faults of the configuration.
func New(cfg Config) (*Registries, error) {
	if cfg.Timeout <= 0 {
		cfg.Timeout = defaultTimeout
	}
	if cfg.UserAgent == "" {
		cfg.UserAgent = "pier"
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.backoff <= 0 {
		cfg.backoff = retryBase
	}
	r := &Registries{
		cfg: cfg, log: cfg.Log, metrics: newInstruments(cfg.Metrics),
		docker: &dockerConfig{log: cfg.Log}, clients: newClients(cfg.Timeout),
		limited: newDeadlines(1024), blamed: newDeadlines(1024),
	}
	if err := r.Reload(cfg.Upstreams); err != nil {
		return nil, err
	}
	return r, nil
}

// Reload replaces the upstreams, and reads their certificates anew. Requests under way go on with the old ones. On an
// error, which joins all faults, everything stays as it was.
func (r *Registries) Reload(upstreams []Upstream) error {
	d, err := newDirectory(r.cfg, upstreams)
	if err != nil {
		return err
	}
	for name := range d.listed {
		r.metrics.label(name) // before strangers take all labels
	}
	if old := r.current.Swap(d); old != nil {
		old.closeIdle()
	}
	return nil
}

// Resolve implements [oci.Source].
func (r *Registries) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	return ask(ctx, r, ref, func(t target) (oci.Descriptor, error) { return t.resolve(ctx, ref) })
}

// Open implements [oci.Source]. The descriptor's size is -1 where the registry does not tell it. A read that fails
// wraps [oci.ErrUnavailable], and io.ErrUnexpectedEOF where the content broke off.
func (r *Registries) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	if ref.Digest == "" {
		return nil, oci.Descriptor{}, fmt.Errorf("open of %s without a digest: %w", ref, oci.ErrDigestInvalid)
	}
	if offset < 0 {
		return nil, oci.Descriptor{}, fmt.Errorf("offset %d: %w", offset, oci.ErrRange)
	}
	c, err := ask(ctx, r, ref, func(t target) (content, error) { return t.open(ctx, ref, offset, length) })
	return c.ReadCloser, c.desc, err
}

// Blame implements [oci.Blamer]: a mirror whose content was wrong is not asked for it again for ten minutes.
func (r *Registries) Blame(ref oci.Reference, origin string) {
	r.blamed.set(origin+" "+ref.Digest.String(), time.Now().Add(blameFor))
	r.metrics.failed(origin, "blamed")
}

// avoid has a mirror that could not be asked, or broke off, left out for a while.
func (t target) avoid(err error) {
	if t.ns != "" && errors.Is(err, oci.ErrUnavailable) {
		t.blamed.set(t.name, time.Now().Add(avoidFor))
	}
}

// ask has f ask the mirrors of ref's registry in turn, then the registry itself, whose error is returned, and at last, if the
// registry cannot be asked, the mirrors that were left out: a doubtful copy is better than none, since it is proven.
func ask[T any](ctx context.Context, r *Registries, ref oci.Reference, f func(target) (T, error)) (T, error) {
	var none T
	if err := ref.Validate(); err != nil {
		return none, err
	}
	d := r.current.Load()
	authority, err := d.endpoint(ref.Registry)
	if err != nil {
		return none, err
	}
	mirror := func(name string) (T, error) {
		t := target{Registries: r, endpoint: d.listed[name], repository: ref.Repository, ns: authority.name}
		t.account = r.own(t.endpoint)
		v, err := f(t)
		if err != nil && ctx.Err() == nil {
			t.avoid(err)
			if !errors.Is(err, oci.ErrNotFound) {
				r.log.WarnContext(ctx, "mirror failed", "mirror", name, "registry", authority.name, "err", err)
			}
		}
		return v, err
	}
	var doubtful []string
	for _, name := range authority.mirrors {
		now := time.Now()
		if r.blamed.until(name).After(now) || r.blamed.until(name+" "+ref.Digest.String()).After(now) {
			doubtful = append(doubtful, name)
			continue
		}
		if v, err := mirror(name); settled(ctx, err) {
			return v, err
		}
	}
	t := target{Registries: r, endpoint: authority, repository: ref.Repository, retries: maxRetries}
	if t.account, err = r.accountFor(ctx, authority); err != nil {
		return none, err
	}
	v, err := f(t)
	if settled(ctx, err) || !errors.Is(err, oci.ErrUnavailable) && !errors.Is(err, oci.ErrRateLimited) {
		return v, err
	}
	for _, name := range doubtful {
		if v, err := mirror(name); settled(ctx, err) {
			return v, err
		}
	}
	return none, err
}

// settled reports whether there is nobody else to ask: it was answered, the content has no such offset, or the caller left.
func settled(ctx context.Context, err error) bool {
	return err == nil || ctx.Err() != nil || errors.Is(err, oci.ErrRange)
}
