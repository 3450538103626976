package main

import (
	"context"
	"errors"
	"path/filepath"
	"time"
)

// connections is how many clients ask for a manifest at once.
const connections = 8

// A warmRound is the same work for a node and for the server it is compared with.
type warmRound struct {
	node, other work
}

// A work is what a measured piece of it took.
type work struct {
	cpu, wall time.Duration
	amount    float64 // bytes or requests
}

func (w work) rate() float64 { return w.amount / w.wall.Seconds() }
func (w work) cost() float64 { return w.cpu.Seconds() / w.amount }

// warm measures what the node has: a blob against nginx, and a manifest against a bare handler.
func (b *single) warm(ctx context.Context) (err error) {
	b.say("warm: filling a cache")
	n, err := b.startNode(ctx, nodeConfig{cached: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.stop()) }()
	// The second pull is the one in which the node proves what is in its cache.
	for range 2 {
		if _, err := pullImage(ctx, n.server, b.image); err != nil {
			return err
		}
	}
	return errors.Join(b.warmBlob(ctx, n), b.warmManifest(ctx, n))
}

// warmBlob compares a node with nginx, which serves the node's own file.
func (b *single) warmBlob(ctx context.Context, n *node) (err error) {
	web, err := b.startNginx(ctx, b.nginx, filepath.Dir(n.blob(b.image)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, web.stop()) }()
	path, file := b.image.path("blobs", b.image.layers[0].Digest.String()), "/"+filepath.Base(n.blob(b.image))
	rounds := make([]warmRound, b.set.warm)
	for i := range rounds {
		r := &rounds[i]
		b.say("warm blob, %d of %d", i+1, len(rounds))
		err := inTurn(i,
			func() (err error) { r.node, err = b.blobs(ctx, n.process, n.server, path); return err },
			func() (err error) { r.other, err = b.blobs(ctx, web, server{addr: web.addr}, file); return err },
		)
		if err != nil {
			return err
		}
	}
	r := &b.report
	figures := func(f func(warmRound) float64) series { return collect(rounds, f) }
	r.section("Warm: the layer from the cache, one connection, against nginx with sendfile on the same file")
	r.check("throughput, to nginx", ratio, atLeast(0.9), figures(func(w warmRound) float64 { return w.node.rate() / w.other.rate() }))
	r.check("CPU time of the server per GB, to nginx", ratio, atMost(1.3), figures(func(w warmRound) float64 { return w.node.cost() / w.other.cost() }))
	r.note("throughput of the node", figures(func(w warmRound) float64 { return w.node.rate() / mb }).text(rate))
	r.note("throughput of nginx", figures(func(w warmRound) float64 { return w.other.rate() / mb }).text(rate))
	r.note("CPU time of the node per GB", figures(func(w warmRound) float64 { return w.node.cost() * 1e12 }).text(milliseconds))
	r.note("CPU time of nginx per GB", figures(func(w warmRound) float64 { return w.other.cost() * 1e12 }).text(milliseconds))
	return nil
}

// blobs gets the layer several times over one connection.
func (b *single) blobs(ctx context.Context, p *process, s server, path string) (w work, err error) {
	c, err := dial(ctx, s)
	if err != nil {
		return w, err
	}
	defer c.Close()
	w.amount = float64(b.set.gets) * float64(b.set.layer)
	w.cpu, w.wall, err = usage(p, func() error { return c.repeat(path, b.set.gets) })
	return w, err
}

// warmManifest compares a node with a handler that does nothing but write the same bytes.
func (b *single) warmManifest(ctx context.Context, n *node) (err error) {
	path := b.image.path("manifests", tag)
	bare, err := b.startSelf(ctx, "bare", "http://"+n.server.addr+path+n.query)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bare.stop()) }()
	rounds := make([]warmRound, b.set.warm)
	for i := range rounds {
		r := &rounds[i]
		b.say("warm manifest, %d of %d", i+1, len(rounds))
		err := inTurn(i,
			func() (err error) { r.node, err = b.manifests(ctx, n.process, n.server, path); return err },
			func() (err error) {
				r.other, err = b.manifests(ctx, bare, server{addr: bare.addr, query: n.query}, path)
				return err
			},
		)
		if err != nil {
			return err
		}
	}
	r := &b.report
	figures := func(f func(warmRound) float64) series { return collect(rounds, f) }
	r.section("Warm: a manifest by tag, %d connections, against a net/http handler that writes the same bytes", connections)
	r.check("requests per second, to bare", ratio, atLeast(0.5), figures(func(w warmRound) float64 { return w.node.rate() / w.other.rate() }))
	r.note("CPU time of the server per request, to bare", figures(func(w warmRound) float64 { return w.node.cost() / w.other.cost() }).text(ratio))
	r.note("requests per second of the node", figures(func(w warmRound) float64 { return w.node.rate() }).text(perSecond))
	r.note("requests per second of the bare handler", figures(func(w warmRound) float64 { return w.other.rate() }).text(perSecond))
	r.note("CPU time of the node per request", figures(func(w warmRound) float64 { return w.node.cost() * 1e6 }).text(microseconds))
	r.note("CPU time of the bare handler per request", figures(func(w warmRound) float64 { return w.other.cost() * 1e6 }).text(microseconds))
	return nil
}

// manifests gets a manifest many times over several connections.
func (b *single) manifests(ctx context.Context, p *process, s server, path string) (w work, err error) {
	each := b.set.requests / connections
	w.amount = float64(each * connections)
	w.cpu, w.wall, err = usage(p, func() error {
		return atOnce(connections, func() error {
			c, err := dial(ctx, s)
			if err != nil {
				return err
			}
			defer c.Close()
			return c.repeat(path, each)
		})
	})
	return w, err
}
