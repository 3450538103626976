// Package upstream is a Source over registries elsewhere: it asks them with the right credentials, over the right
// transport, again where that helps, and only where the operator allows. Content is unverified, and a broken body is
// not resumed: both are left to whoever reads it.
package upstream

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"oras.land/oras-go/v2/registry/remote/auth"

	"pier/internal/oci"
)

// A Config says which registries there are and how they are asked.
type Config struct {
	Upstreams []Upstream // those with settings of their own; all of them may be asked

	// Allow are patterns of further registries that may be asked, over TLS: "docker.io", "*.example.com" (its
	// subdomains), "host:port", "host:*", "*"; or of repositories of such, "docker.io/library/*". A registry that a pattern other than "*" allows may have a private
	// address. Empty means any registry with a public name and public addresses, and so does "*".
	Allow []string

	// Timeout is how long a registry may take to answer, all attempts together; 0 means 60 s. Mirrors get less, and a read
	// of a body that brings nothing ends after a quarter of it; see bodyTimeout.
	Timeout time.Duration

	UserAgent string       // "" means "pier"
	Name      string       // of this node in the Via header of requests to mirrors and HTTP proxies; "" means none
	OwnProxy  string       // host:port where this node is an HTTP proxy itself, which its environment may name; "" means nowhere
	Log       *slog.Logger // nil: nothing is logged
	Metrics   *metrics.Set // nil: a set of its own

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
	met     *deadlines // registries that answered
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

	// mirrorTimeout is how long a mirror may take to answer, if Config.Timeout is not shorter.
	mirrorTimeout = 10 * time.Second
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
		limited: newDeadlines(1024), blamed: newDeadlines(1024), met: newDeadlines(1024),
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

// Knows reports whether the operator told this node how to reach a registry: it is listed, or there are credentials for it.
func (r *Registries) Knows(ctx context.Context, registry string) bool {
	name, _ := oci.Canonical(registry, "")
	return r.current.Load().listed[name] != nil || r.docker.get(ctx, name) != auth.EmptyCredential
}

// metFor is how long a registry is known to be one.
const metFor = 30 * 24 * time.Hour

// Met reports whether a registry gave this node content, by its canonical name.
func (r *Registries) Met(registry string) bool { return time.Now().Before(r.met.until(registry)) }

// Resolve implements [oci.Source]. A tag's descriptor is marked stale where whoever answered said so, and nobody else could.
func (r *Registries) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	final := func(desc oci.Descriptor) bool { return !desc.Stale }
	return ask(ctx, r, ref, final, func(t target) (oci.Descriptor, error) { return t.resolve(ctx, ref) })
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
	final := func(content) bool { return true }
	c, err := ask(ctx, r, ref, final, func(t target) (content, error) { return t.open(ctx, ref, offset, length) })
	return c.ReadCloser, c.desc, err
}

// Blame implements [oci.Blamer]: a mirror whose content was wrong is not asked for it again for ten minutes.
func (r *Registries) Blame(ref oci.Reference, origin string) {
	r.blamed.set(origin+" "+ref.Digest.String(), time.Now().Add(blameFor))
	r.metrics.failed(origin, "blamed")
}
