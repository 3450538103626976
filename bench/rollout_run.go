package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"pier/e2e/netns"
)

// Ports of nodes and upstream, each of which has an address of its own.
const (
	nodePort    = 5000
	peerPort    = 5001
	metricsPort = 9090
	gossipPort  = 7946
	filesPort   = 5080
)

// An outcome is what one roll-out came to.
type outcome struct {
	took []time.Duration // by node, from its own start
	wan  netns.Count     // from upstream to the site
	cpu  time.Duration   // of all nodes together
	busy float64         // share of the machine's processors, 0 to 1
	peak float64         // resident bytes of the node that had most
}

// startUpstream makes the image, and serves it beyond the WAN.
func (r *rollout) startUpstream(ctx context.Context) (err error) {
	r.say("making an image of %d MB", sum(r.set.layers)/mb)
	root := filepath.Join(r.dir, "upstream")
	if r.image, err = makeImage(root, "team/app", r.set.layers...); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	place := r.site.Upstream()
	addr := place.HostPort(filesPort)
	r.upstream, err = r.startCommand(ctx, "upstream", addr, place.DialContext, place.Command(self, "files", addr, root))
	return err
}

// roll starts new nodes and has all of them pull the image.
func (r *rollout) roll(ctx context.Context, w *way) (o outcome, err error) {
	var nodes []*node
	defer func() { err = errors.Join(err, each(nodes, func(_ int, n *node) error { return n.stop() })) }()
	for k := range r.set.nodes {
		n, err := r.startAt(ctx, k+1, w.peers)
		if err != nil {
			return o, err
		}
		nodes = append(nodes, n)
	}
	if w.peers {
		if err := each(nodes, func(_ int, n *node) error { return n.meets(ctx, nodes) }); err != nil {
			return o, err
		}
	}
	_, before, err := r.site.WAN(ctx)
	if err != nil {
		return o, err
	}
	var processes []*process
	for _, n := range nodes {
		processes = append(processes, n.process)
	}
	idle, err := idleTime()
	if err != nil {
		return o, err
	}
	cpus, wall, err := usages(processes, func() (err error) { o.took, err = r.pullAll(ctx, nodes, r.starts(w.staggered)); return err })
	if err != nil {
		return o, err
	}
	for _, cpu := range cpus {
		o.cpu += cpu
	}
	after, err := idleTime()
	if err != nil {
		return o, err
	}
	o.busy = 1 - float64(after-idle)/float64(wall)
	_, o.wan, err = r.site.WAN(ctx)
	o.wan = o.wan.Sub(before)
	for _, n := range nodes {
		_, peak, merr := n.memory()
		o.peak, err = max(o.peak, peak), errors.Join(err, merr)
	}
	return o, err
}

// pullAll has every node pull the image, each after its delay, and returns how long each of them took.
func (r *rollout) pullAll(ctx context.Context, nodes []*node, delays []time.Duration) ([]time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, r.patience())
	defer cancel()
	took := make([]time.Duration, len(nodes))
	err := each(nodes, func(k int, n *node) error {
		err := sleep(ctx, delays[k])
		start := time.Now()
		if err == nil {
			err = pullVerified(ctx, n.client, n.server, r.image)
		}
		took[k] = time.Since(start)
		if err != nil {
			cancel() // the others'
			return fmt.Errorf("node %d: %w\n%s", k+1, err, n.tail())
		}
		return nil
	})
	return took, err
}

// startAt starts a node in its namespace, with an empty cache directory.
func (r *rollout) startAt(ctx context.Context, k int, peers bool) (*node, error) {
	place := r.site.Node(k)
	local := func(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
	n := &node{
		server: server{addr: local(nodePort), query: "?ns=" + r.upstream.addr},
		doors:  doors{node: local(nodePort), peer: place.HostPort(peerPort), metrics: local(metricsPort)},
		client: &http.Client{Transport: place.Transport()},
	}
	if peers {
		n.gossip = place.HostPort(gossipPort)
	}
	args, err := r.serveArgs(n.doors, r.upstream.addr)
	if err != nil {
		return nil, err
	}
	if peers && k > 1 {
		args = append(args, "--peers", r.site.Node(1).HostPort(gossipPort))
	}
	if n.cache, err = os.MkdirTemp(memoryDir(r.dir), "pier-bench-cache-"); err != nil {
		return nil, err
	}
	args = append(args, "--cache-dir", n.cache)
	n.process, err = r.startCommand(ctx, "pier", n.doors.node, place.DialContext, place.Command(r.pier, args...))
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(n.cache))
	}
	return n, nil
}

// bare measures what the links carry with nothing but a file server on each node, from which the next one pulls.
func (r *rollout) bare(ctx context.Context) (err error) {
	var runs []outcome
	var sources []string
	for k := range r.set.nodes {
		place := r.site.Node(k + 1)
		l, err := place.Listen(ctx, "tcp", place.HostPort(filesPort))
		if err != nil {
			return err
		}
		s := &http.Server{Handler: files(filepath.Join(r.dir, "upstream")), ReadHeaderTimeout: 10 * time.Second}
		go func() { _ = s.Serve(l) }() // until it is closed
		defer func() { err = errors.Join(err, s.Close()) }()
		sources = append(sources, l.Addr().String())
	}
	for i := range r.set.bare {
		r.say("bare servers, %d of %d", i+1, r.set.bare)
		o, err := r.ring(ctx, sources)
		if err != nil {
			return err
		}
		runs = append(runs, o)
	}
	t := &r.report
	t.section("What this machine carries: %d nodes, each pulls the image from a bare server on the next one, LAN %d Mbit/s each way",
		r.set.nodes, r.set.lan/netns.Mbit)
	slowest := func(o outcome) time.Duration { return slices.Max(o.took) }
	t.note("last node, to F/LAN", collect(runs, func(o outcome) float64 { return slowest(o).Seconds() / r.carry(1, r.set.lan).Seconds() }).text(ratio))
	t.note("last node", collect(runs, func(o outcome) float64 { return slowest(o).Seconds() }).text(seconds))
	t.note("processors busy", collect(runs, func(o outcome) float64 { return o.busy * 100 }).text(percent))
	return nil
}

// ring has every node pull the image from the next one's server.
func (r *rollout) ring(ctx context.Context, sources []string) (o outcome, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.patience())
	defer cancel()
	idle, err := idleTime()
	if err != nil {
		return o, err
	}
	start := time.Now()
	o.took = make([]time.Duration, len(sources))
	if err := each(sources, func(k int, _ string) error {
		transport := r.site.Node(k + 1).Transport()
		defer transport.CloseIdleConnections()
		err := pullVerified(ctx, &http.Client{Transport: transport}, server{addr: sources[(k+1)%len(sources)]}, r.image)
		o.took[k] = time.Since(start)
		return err
	}); err != nil {
		return o, err
	}
	wall := time.Since(start)
	after, err := idleTime()
	o.busy = 1 - float64(after-idle)/float64(wall)
	return o, err
}

// memoryDir is where files cost no disk; dir where there is no such place.
func memoryDir(dir string) string {
	const memory = "/dev/shm"
	if f, err := os.CreateTemp(memory, "pier-bench-"); err == nil {
		_ = errors.Join(f.Close(), os.Remove(f.Name())) // it was a try
		return memory
	}
	return dir
}
