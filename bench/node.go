package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// A node is a running pier that upstream can be pulled through.
type node struct {
	*process
	server
	doors
	client *http.Client // reaches it
	cache  string       // its cache directory; empty if it keeps nothing
}

// doors are the addresses a node listens at.
type doors struct {
	node, peer, metrics string
	gossip              string // empty: none, it has no peers
}

// A nodeConfig says what kind of node to start. The zero value has neither cache nor peers.
type nodeConfig struct {
	cached bool
	in     string // a cache directory that is there, and stays; empty: as cached says
	shares bool   // has peers, or may get some
	join   *node  // one of them; nil: none yet
	key    string // the file of the cluster key; empty: none
}

// startNode starts a node on loopback, with an empty cache directory if it has one. One that joins another has found it when
// startNode returns.
func (b *bench) startNode(ctx context.Context, c nodeConfig) (n *node, err error) {
	n = &node{client: http.DefaultClient}
	if n.doors, err = b.freeDoors(c.shares); err != nil {
		return nil, err
	}
	n.server = server{addr: n.doors.node, query: "?ns=" + b.upstream.addr}
	args, err := b.serveArgs(n.doors, b.upstream.addr)
	if err != nil {
		return nil, err
	}
	if c.join != nil {
		args = append(args, "--peers", c.join.gossip)
	}
	if c.key != "" {
		args = append(args, "--cluster-key-file", c.key)
	}
	if c.cached {
		if n.cache, err = os.MkdirTemp(b.dir, "cache-"); err != nil {
			return nil, err
		}
		args = append(args, "--cache-dir", n.cache)
	}
	if c.in != "" {
		args = append(args, "--cache-dir", c.in)
	}
	if n.process, err = b.start(ctx, "pier", n.doors.node, nil, b.pier, args...); err != nil {
		return nil, errors.Join(err, os.RemoveAll(n.cache))
	}
	return n, nil
}

// freeDoors returns doors on loopback that nobody listens at. A node that shares has an address of its own, by which others
// know it.
func (b *bench) freeDoors(shares bool) (doors, error) {
	host := "127.0.0.1"
	if shares {
		b.hosts++
		host = fmt.Sprintf("127.0.%d.%d", 1+b.hosts/250, 1+b.hosts%250)
	}
	addrs, err := freeAddrs(host, 4)
	if err != nil {
		return doors{}, err
	}
	d := doors{node: addrs[0], peer: addrs[1], metrics: addrs[2]}
	if shares {
		d.gossip = addrs[3]
	}
	return d, nil
}

// serveArgs are the arguments of a node that pulls from one upstream and keeps nothing.
func (b *bench) serveArgs(d doors, upstream string) ([]string, error) {
	file := filepath.Join(b.dir, "upstreams.yaml")
	if err := os.WriteFile(file, []byte("- name: "+upstream+"\n  scheme: http\n"), 0o644); err != nil {
		return nil, err
	}
	return append(d.args(), "--proxy-listen", "none", "--store", "none", "--upstreams", file), nil
}

// args are the arguments of a node with these doors.
func (d doors) args() []string {
	gossip := d.gossip
	if gossip == "" {
		gossip = "none"
	}
	return []string{"serve", "--listen", d.node, "--peer-listen", d.peer, "--metrics-listen", d.metrics, "--gossip-listen", gossip, "--mdns=false"}
}

// stop ends the node and removes what it kept.
func (n *node) stop() error {
	err := n.process.stop()
	if n.cache != "" {
		err = errors.Join(err, os.RemoveAll(n.cache))
	}
	return err
}

// blob is the file in the cache directory that holds the first layer.
func (n *node) blob(i image) string {
	d := i.layers[0].Digest
	return filepath.Join(n.cache, "blobs", d.Algorithm().String(), d.Encoded())
}

// idle returns how many bytes are resident once the node had some rest.
func (n *node) idle(ctx context.Context, rest time.Duration) (float64, error) {
	if err := sleep(ctx, rest); err != nil {
		return 0, err
	}
	now, _, err := n.memory()
	return now, err
}

// usage is the CPU time of p while f runs, and how long that takes.
func usage(p *process, f func() error) (cpu, wall time.Duration, err error) {
	cpus, wall, err := usages([]*process{p}, f)
	if err != nil {
		return 0, 0, err
	}
	return cpus[0], wall, nil
}

// usages is the CPU time of each process while f runs, and how long that takes.
func usages(all []*process, f func() error) (cpus []time.Duration, wall time.Duration, err error) {
	cpus = make([]time.Duration, len(all))
	for i, p := range all {
		if cpus[i], err = p.cpu(); err != nil {
			return nil, 0, err
		}
	}
	start := time.Now()
	if err := f(); err != nil {
		return nil, 0, fmt.Errorf("%s: %w", all[0].name, err)
	}
	wall = time.Since(start)
	for i, p := range all {
		after, err := p.cpu()
		if err != nil {
			return nil, 0, err
		}
		cpus[i] = after - cpus[i]
	}
	return cpus, wall, nil
}
