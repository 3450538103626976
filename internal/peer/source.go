// Package peer is a Source over the other nodes, in front of the one over registries: what a neighbour has, or is receiving,
// is read there; and of all nodes that want the same at the same time, one fetches it from the registry.
//
// [Source.Open] asks the directory who has the content (relay.go), opens the best of them (choose.go, door.go), and reads
// from it, or from several at once (stripe.go), while it is watched (watch.go): a neighbour that is gone, hangs, is slow or
// wrong is left for the next one at the same offset, and at last for the registry. Who is not to be asked again for a
// while is in trust.go; where the runtime itself fetches, in runtime.go; tags, in names.go.
//
// Who the nodes are, and who has what, is left to others; so is the proof: bytes of a neighbour are as unverified as those of
// any Source.
package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"

	"github.com/VictoriaMetrics/metrics"

	"pier/internal/directory"
	"pier/internal/oci"
)

// origin is what Descriptor.Source says.
const origin = "peer"

// A Peer is another node.
type Peer struct {
	Name string // for log and metrics
	Door string // host:port of its peer door; "": it has none
	TLS  bool   // its peer door speaks TLS
	Zone string
}

// Config configures a [Source]. Directory and Find are needed.
type Config struct {
	Upstream  oci.Source // the registries; nil: they are never asked
	Directory *directory.Directory
	Find      func(directory.ID) (Peer, bool) // who a member of the directory is

	Doorless bool // others cannot read from this node: it is no source, and fetches for itself alone
	Zone     string
	TLS      *tls.Config // for doors that speak TLS; nil: those are not asked
	Fetchers int         // connections with which large content is fetched from a registry; 0: 1

	// Runtime says that there is a runtime that keeps what it fetches by itself. What a client with a way of its own (see
	// [oci.HasFallback]) wants, and nobody has, is left to it where Knows says that this node was not told how to reach the
	// registry, and where the registry refuses this node: the client is answered that it is not found, and others
	// read here what the runtime then writes.
	Runtime bool
	Knows   func(registry string) bool // needed with Runtime
	Local   oci.Source                 // what the runtime has, and what it is receiving; needed with Runtime

	Log     *slog.Logger // nil: silent
	Metrics *metrics.Set // nil: a set of its own
}

// A Source is the Source of what neighbours have, and of what registries have.
type Source struct {
	c      Config
	client *http.Client
	trust  trust
	meter  meter

	parts chan struct{} // a token for each part in memory, see stripe.go
	pool  sync.Pool     // of *[partSize]byte

	ctx  context.Context // ends what follows the runtime
	stop context.CancelFunc
	wg   sync.WaitGroup // what follows the runtime

	mu       sync.Mutex                     // guards awaiting and bytes
	awaiting map[flightKey]*directory.Track // left to the runtime
	bytes    map[string]*metrics.Counter    // by neighbour
}

type meter struct {
	set         *metrics.Set
	tookOver    *metrics.Counter
	fetched     *metrics.Counter
	left        map[string]*metrics.Counter // by reason
	quarantined *metrics.Counter
}

// Reasons for which a neighbour is left.
const (
	leftGone   = "gone"   // it cannot be reached, or its connection broke
	leftHung   = "hung"   // it does not go on
	leftSlow   = "slow"   // others are faster
	leftCrawls = "crawls" // anything is faster
	leftDrips  = "drips"  // it passes on next to nothing: this node fetches
	leftProves = "proves" // it has yet to prove what it has, which takes too long
	leftBusy   = "busy"   // all its slots are taken
	leftEmpty  = "empty"  // it does not have the content
	leftWrong  = "wrong"  // what it gave did not match its digest, or is of another size
)

// New returns a Source.
func New(c Config) *Source {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = metrics.NewSet()
	}
	s := &Source{
		c: c, client: newClient(c.TLS), trust: newTrust(),
		parts: make(chan struct{}, maxParts), pool: sync.Pool{New: func() any { return new([partSize]byte) }},
		awaiting: make(map[flightKey]*directory.Track), bytes: make(map[string]*metrics.Counter),
		meter: meter{
			set:         c.Metrics,
			tookOver:    c.Metrics.NewCounter("pier_takeovers_total"),
			fetched:     c.Metrics.NewCounter("pier_leases_total"),
			quarantined: c.Metrics.NewCounter(`pier_quarantines_total{copy="neighbour"}`),
			left:        make(map[string]*metrics.Counter),
		},
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	for _, reason := range []string{leftGone, leftHung, leftSlow, leftCrawls, leftDrips, leftProves, leftBusy, leftEmpty, leftWrong} {
		s.meter.left[reason] = c.Metrics.NewCounter(fmt.Sprintf("pier_peer_left_total{reason=%q}", reason))
	}
	return s
}

// Close ends what goes on without a reader, and lets go of connections that rest.
func (s *Source) Close() {
	s.mu.Lock()
	s.stop() // under the lock, so that nothing begins after it
	s.mu.Unlock()
	s.wg.Wait()
	s.client.CloseIdleConnections()
}

// Resolve implements [oci.Source]. It is not for tags: see [Source.Names].
func (s *Source) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	if ref.Digest != "" {
		if desc, err := s.describe(ctx, ref); err == nil || ctx.Err() != nil {
			return desc, err
		}
	}
	return s.upstream().Resolve(ctx, ref)
}

// describe asks the neighbours that have ref what it is.
func (s *Source) describe(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	a, err := s.c.Directory.Lookup(ctx, directory.Want{Key: directory.KeyOf(ref), Scope: directory.ScopeOf(ref)})
	if err != nil {
		return oci.Descriptor{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	for _, c := range s.candidates(directory.KeyOf(ref), a.Sources, nil) {
		if desc, err := s.head(ctx, c, ref); err == nil {
			return desc, nil
		}
	}
	return oci.Descriptor{}, fmt.Errorf("%s: no neighbour tells: %w", ref, oci.ErrNotFound)
}

// Open implements [oci.Source].
func (s *Source) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	if !s.c.Directory.Others() {
		return s.fetch(ctx, ref, offset, length)
	}
	return s.relay(ctx, ref, offset, length)
}

// Blame implements [oci.Blamer]. Where neighbours supplied any of the content, they are blamed, and not the registry: each
// copy is looked at where it is, and not asked for again from here for a while.
func (s *Source) Blame(ref oci.Reference, from string) {
	key := directory.KeyOf(ref)
	suppliers := s.trust.suppliers(key)
	if b, ok := s.c.Upstream.(oci.Blamer); ok && len(suppliers) == 0 && from != origin {
		b.Blame(ref, from)
	}
	s.quarantine(ref, len(suppliers) > 1, suppliers...)
}

// quarantine has neighbours not asked for ref for a while, and tells them. Shared says that not all of them need be wrong.
func (s *Source) quarantine(ref oci.Reference, shared bool, ids ...directory.ID) {
	key := directory.KeyOf(ref)
	for _, id := range ids {
		s.trust.quarantine(id, key, shared)
		s.meter.quarantined.Inc()
		s.meter.left[leftWrong].Inc()
		s.c.Directory.Doubt(id, key)
		peer, _ := s.c.Find(id)
		s.c.Log.Warn("content that a neighbour supplied a part of did not match its digest; it is not asked for it again for a while",
			"digest", ref.Digest, "peer", peer.Name)
	}
}

// upstream is the Source of registries, or of nothing.
func (s *Source) upstream() oci.Source {
	if s.c.Upstream == nil {
		return nothing{}
	}
	return s.c.Upstream
}

// nothing is the Source of a node that asks no registry.
type nothing struct{}

var errAirGapped = fmt.Errorf("no node has it, and no registry is asked: %w", oci.ErrNotFound)

func (nothing) Resolve(context.Context, oci.Reference) (oci.Descriptor, error) {
	return oci.Descriptor{}, errAirGapped
}

func (nothing) Open(context.Context, oci.Reference, int64, int64) (io.ReadCloser, oci.Descriptor, error) {
	return nil, oci.Descriptor{}, errAirGapped
}

// errMiss says that a neighbour does not have the content, or not yet.
var errMiss = errors.New("not here")

// errBusy says that all slots of a neighbour are taken.
var errBusy = errors.New("busy")
