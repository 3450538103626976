package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A node is a running pier that upstream can be pulled through.
type node struct {
	*process
	server
	cache string // its cache directory; empty if it keeps nothing
}

// startNode starts a node with an empty cache directory, or with none.
func (b *bench) startNode(ctx context.Context, cached bool) (n *node, err error) {
	var doors [3]string // all that a node has by default, each at an address of its own: a free port may be given twice
	for i := range doors {
		addr, err := freeAddr()
		if err != nil {
			return nil, err
		}
		doors[i] = strings.Replace(addr, "127.0.0.1", fmt.Sprintf("127.0.0.%d", i+1), 1)
	}
	n = &node{server: server{addr: doors[0], query: "?ns=" + b.upstream.addr}}
	upstreams := filepath.Join(b.dir, "upstreams.yaml")
	if err := os.WriteFile(upstreams, []byte("- name: "+b.upstream.addr+"\n  scheme: http\n"), 0o644); err != nil {
		return nil, err
	}
	args := []string{
		"serve", "--listen", doors[0], "--peer-listen", doors[1], "--metrics-listen", doors[2], "--store", "none", "--upstreams", upstreams,
	}
	if cached {
		if n.cache, err = os.MkdirTemp(b.dir, "cache-"); err != nil {
			return nil, err
		}
		args = append(args, "--cache-dir", n.cache)
	}
	if n.process, err = b.start(ctx, "pier", doors[0], nil, b.pier, args...); err != nil {
		return nil, errors.Join(err, os.RemoveAll(n.cache))
	}
	return n, nil
}

// stop ends the node and removes what it kept.
func (n *node) stop() error {
	err := n.process.stop()
	if n.cache != "" {
		err = errors.Join(err, os.RemoveAll(n.cache))
	}
	return err
}

// blob is the file in the cache directory that holds the layer.
func (n *node) blob(i image) string {
	return filepath.Join(n.cache, "blobs", i.layer.Algorithm().String(), i.layer.Encoded())
}

// idle returns how many bytes are resident once the node had some rest.
func (n *node) idle(ctx context.Context, rest time.Duration) (float64, error) {
	select {
	case <-time.After(rest):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	now, _, err := n.memory()
	return now, err
}

// usage is the CPU time of p while f runs, and how long that takes.
func usage(p *process, f func() error) (cpu, wall time.Duration, err error) {
	before, err := p.cpu()
	if err != nil {
		return 0, 0, err
	}
	start := time.Now()
	if err := f(); err != nil {
		return 0, 0, fmt.Errorf("%s: %w", p.name, err)
	}
	wall = time.Since(start)
	after, err := p.cpu()
	return after - before, wall, err
}
