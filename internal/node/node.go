// Package node puts the parts together: Sources into chains, chains behind doors, doors on listeners, and all of it under
// one life. It holds wiring and nothing else.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"pier/internal/cache"
	"pier/internal/chain"
	"pier/internal/config"
	"pier/internal/oci"
	"pier/internal/registry"
	"pier/internal/transfer"
	"pier/internal/upstream"
)

// A Node is everything one `pier serve` runs.
type Node struct {
	cfg     config.Config
	name    string // in Via headers; new at each start
	version string
	log     *slog.Logger
	metrics *metrics.Set
	started time.Time

	stores    stores
	forward   forward
	cache     *cache.Cache         // nil without a cache
	disk      oci.Source           // the cache, proven
	upstreams *upstream.Registries // nil if air-gapped
	engine    *transfer.Engine
	peers     peers
	local     oci.Source   // what this node has, and what its runtime is receiving
	whole     chain.Chain  // what it has, but for what it has to make
	made      chain.Holder // what it has to make; nil: nothing
	full      oci.Source   // what this node can get
	watched   []watched

	hangup  chan os.Signal // SIGHUP
	serving atomic.Int64   // requests under way
	served  atomic.Uint64  // requests that ended
	worked  uint64         // how many had ended at the last look, see rest
	rested  bool           // memory was given back since
	memory  memory

	doors []*door
}

// New builds a node, but for the listening. On an error it has let go of everything; else Run must be called.
func New(ctx context.Context, cfg config.Config, version string, log *slog.Logger) (*Node, error) {
	n := &Node{hangup: make(chan os.Signal, 1), cfg: cfg, name: fmt.Sprintf("pier-%08x", rand.Uint32()), version: version, log: log, metrics: metrics.NewSet(), started: time.Now()}
	signal.Notify(n.hangup, syscall.SIGHUP) // from now on, so that an early one ends nothing
	if err := n.open(ctx); err != nil {
		return nil, errors.Join(err, n.release(ctx))
	}
	n.measure()
	return n, nil
}

// open builds what the configuration names, and wires it.
func (n *Node) open(ctx context.Context) error {
	if err := errors.Join(n.openStores(ctx), n.openCache(), n.openUpstreams()); err != nil {
		return err
	}
	return n.wire()
}

// wire is the whole of how content flows through a node.
func (n *Node) wire() error {
	engine := transfer.Config{Dir: oci.TempDir(), Max: n.cfg.CacheMaxBytes, Timeout: n.cfg.PullTimeout, Log: n.log, Metrics: n.metrics}
	found := n.held() // on disk, by others: proven when it is first served
	var proven []oci.Source
	var made oci.Source = chain.First(n.log)
	if d := n.stores.docker; d != nil {
		files := transfer.Temporary(oci.TempDir())
		if n.cache != nil {
			files = n.cache
		}
		engine.Spool = d.Spool(files)
		found = append(found, chain.Once(n.log, "docker", d.Kept()))
		proven = []oci.Source{d.Configs(), d.Arrived()}
		n.made = d.Rebuilt().(chain.Holder)
		made = making{n.stores.rebuilds, n.made, d}
	}
	var record chain.Recorder
	var own oci.Source
	if n.cache != nil {
		own = n.cache.Pushed()
		disk := chain.Once(n.log, "cache", n.cache)
		n.disk = disk
		found, record = append(found, disk), n.cache
		engine.Store = kept{n.cache, disk}
		if engine.Spool != nil {
			engine.Store = kept{engine.Spool, disk}
		}
	}
	ingest := n.receiving()
	var registries oci.Source // stays nil if air-gapped
	if n.upstreams != nil {
		registries = n.upstreams
	}
	n.whole = chain.First(n.log, slices.Concat(found, proven)...)
	local := chain.First(n.log, n.whole, made) // what this node has
	n.local = chain.First(n.log, local, ingest)
	elsewhere, err := n.openPeers(registries) // what other nodes and registries have
	if err != nil {
		return err
	}
	engine.Source = elsewhere
	n.engine = transfer.New(engine)

	// What this node has, proven before a byte of it goes to another, and what is on its way to it.
	offered := chain.First(n.log, chain.Proved(chain.First(n.log, found...)), chain.First(n.log, proven...), n.engine.InFlight(), made, ingest)
	here := chain.First(n.log, local, n.engine.InFlight(), ingest)
	n.full = chain.Fresh(chain.FreshConfig{ // what this node can get
		Content:   chain.First(n.log, chain.Resume(n.log, n.local, n.engine), n.engine),
		Local:     local,
		Own:       own,
		Others:    n.peers.source.Names(),
		Authority: registries,
		Record:    record,
		TTL:       n.cfg.TagTTL,
		Log:       n.log,
		Metrics:   n.metrics,
	})
	handler := registry.Config{Name: n.name, Local: here, DefaultRegistry: n.cfg.DefaultRegistry, Log: n.log, Metrics: n.metrics}
	return n.openDoors(handler, listed{chain.Limited(offered, limiter(n.cfg.PeerRate)), local})
}

// openDoors puts the chains behind the doors: what the node can get behind its own, and behind that of peers what is offered to them.
func (n *Node) openDoors(handler registry.Config, offered oci.Source) error {
	peer := handler
	if n.upstreams == nil {
		handler.Missing = "this node is air-gapped and asks no registry; pier load brings what it is to have"
	}
	node := handler
	node.Door, node.Source, node.PassAuthorization, node.API = "node", n.full, true, n.api("node")
	if err := n.acceptPush(&node); err != nil {
		return err
	}
	peer.Door, peer.Source, peer.API = "peer", offered, n.api("peer")
	peer.Slots = n.slots()

	nodeTLS, err := n.nodeTLS()
	if err != nil {
		return err
	}
	if err := n.openProxy(handler); err != nil {
		return err
	}
	nodeDoor := n.counted(registry.New(node))
	for _, addr := range n.cfg.Listen {
		n.doors = append(n.doors, &door{name: "node", addr: addr, tls: nodeTLS, handler: nodeDoor})
	}
	n.doors = append(n.doors, []*door{
		{name: "peer", addr: n.cfg.PeerListen, tls: n.peers.server, handler: n.counted(registry.New(peer))},
		{name: "metrics", addr: n.cfg.MetricsListen, handler: n.metricsHandler()},
	}...)
	if n.forward.proxy != nil {
		n.doors = append(n.doors, &door{name: "proxy", addr: n.cfg.ProxyListen, handler: n.forward.proxy, drain: n.forward.proxy.Shutdown})
	}
	n.openControl()
	n.doors = slices.DeleteFunc(n.doors, func(d *door) bool { return d.addr == "" })
	return nil
}

// counted counts the requests, so that the node knows when it rests.
func (n *Node) counted(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.serving.Add(1)
		defer func() {
			n.serving.Add(-1)
			n.served.Add(1)
		}()
		h.ServeHTTP(w, r)
	})
}

// kept is a Store whose content is proven before it is served.
type kept struct {
	oci.Spool
	oci.Source
}

// listed is a Source with another one's lists.
type listed struct {
	oci.Source
	oci.Lister
}

// OwnCacheDir is where a node keeps images when there is neither a runtime nor a configured directory.
func OwnCacheDir() string {
	if dir, err := os.UserCacheDir(); err == nil {
		return filepath.Join(dir, "pier", "images")
	}
	return "/var/cache/pier/images" // a service without a home
}

// lockedFor is how long a cache that is locked is waited for: a command may have it for a moment, pier list for example.
const lockedFor = 5 * time.Second

func (n *Node) openCache() error {
	if n.cfg.CacheDir == "" {
		if len(n.cfg.Preload) > 0 || n.cfg.Refresh > 0 {
			return errors.New("preload and refresh are for a cache, and there is none: give cache-dir")
		}
		return nil
	}
	var err error
	n.cache, err = cache.Open(cache.Config{Dir: n.cfg.CacheDir, MaxBytes: n.cfg.CacheMaxBytes, Log: n.log, Metrics: n.metrics, Wait: lockedFor})
	return err
}

func (n *Node) openUpstreams() error {
	if n.cfg.AirGapped {
		return nil
	}
	list, err := n.readUpstreams()
	if err != nil {
		return err
	}
	n.upstreams, err = upstream.New(upstream.Config{
		Upstreams: list, Allow: n.cfg.AllowUpstream, Timeout: n.cfg.PullTimeout,
		UserAgent: "pier/" + n.version, Name: n.name, OwnProxy: n.cfg.ProxyListen, Log: n.log, Metrics: n.metrics,
	})
	if err != nil || n.cfg.Upstreams == "" {
		return err
	}
	n.watch("upstreams", n.upstreamFiles, func() error {
		list, err := n.readUpstreams()
		if err != nil {
			return err
		}
		if n.forward.gate != nil {
			err = n.forward.gate.Reload(list)
		}
		return errors.Join(err, n.upstreams.Reload(list))
	})
	return nil
}

func (n *Node) readUpstreams() ([]upstream.Upstream, error) {
	if n.cfg.Upstreams == "" {
		return nil, nil
	}
	return upstream.ReadFile(n.cfg.Upstreams)
}

// release lets go of all that open opened, and waits for transfers at most until ctx ends.
func (n *Node) release(ctx context.Context) error {
	var errs []error
	if n.engine != nil {
		errs = append(errs, n.engine.Close(ctx))
	}
	errs = append(errs, n.stores.close(ctx))
	if n.forward.proxy != nil {
		n.forward.proxy.Shutdown(ctx) // again, in case its door never opened
		n.forward.gate.Close()
	}
	if n.peers.source != nil {
		n.peers.source.Close()
		n.peers.directory.Close()
	}
	if n.cache != nil {
		errs = append(errs, n.cache.Close())
	}
	return errors.Join(errs...)
}
