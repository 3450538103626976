package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// fineRatio is for bounds of a few percent.
const fineRatio unit = "%.3f ×"

// A proxied is one pull each way: straight, and through the proxy of a new node.
type proxied struct {
	direct, through time.Duration
	cpu             time.Duration // of the node
}

// cold measures pulls of what the node does not have.
func (f *forwarding) cold(ctx context.Context) error {
	rounds := make([][]proxied, f.set.cold) // by round and protocol
	for i := range rounds {
		f.say("pulls through the proxy, cold, %d of %d", i+1, len(rounds))
		rounds[i] = make([]proxied, len(protocols()))
		var steps []func() error
		for k, by := range protocols() {
			p := &rounds[i][k]
			steps = append(steps,
				func() (err error) { p.direct, err = f.pull(ctx, by, nil); return err },
				func() error { return f.coldOne(ctx, by, p) })
		}
		if err := inTurn(i, steps...); err != nil {
			return err
		}
	}
	r := &f.report
	r.section("Cold: an image of %d MB through the proxy, and an upstream that sends %d MB/s", f.set.layer/mb, upstreamRate/mb)
	for k, by := range protocols() {
		figures := func(get func(proxied) float64) series {
			return collect(rounds, func(all []proxied) float64 { return get(all[k]) })
		}
		r.check(by.name+": pull through the proxy, to direct", fineRatio, atMost(1.05),
			figures(func(p proxied) float64 { return float64(p.through) / float64(p.direct) }))
		r.note(by.name+": direct", figures(func(p proxied) float64 { return p.direct.Seconds() }).text(seconds))
		r.note(by.name+": CPU time of the node per GB", figures(func(p proxied) float64 { return f.perGB(p.cpu, 1) }).text(milliseconds))
	}
	return nil
}

// perGB is a CPU time per GB in milliseconds, after n pulls of the image.
func (f *forwarding) perGB(cpu time.Duration, n int) float64 {
	return in(cpu, time.Millisecond) / (float64(n) * float64(f.set.layer) / 1e9)
}

// pull pulls the image, straight or through a node, and returns how long that took.
func (f *forwarding) pull(ctx context.Context, by protocol, through *proxyNode) (time.Duration, error) {
	start := time.Now()
	err := pullVerified(ctx, f.client(by, through), by.server(f.upstream.addr, f.secure), f.image)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", by.name, err)
	}
	return time.Since(start), nil
}

func (f *forwarding) coldOne(ctx context.Context, by protocol, p *proxied) (err error) {
	n, err := f.startProxy(ctx, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.stop()) }()
	p.cpu, _, err = usage(n.process, func() (err error) { p.through, err = f.pull(ctx, by, n); return err })
	return err
}

// A warmPull is the layer several times from a node that has it, and from a server that does nothing but send it.
type warmPull struct {
	node, bare work
	pull       time.Duration // a whole pull from the node
}

// warm measures what the node has.
func (f *forwarding) warm(ctx context.Context) (err error) {
	f.say("warm: filling a cache")
	n, err := f.startProxy(ctx, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.stop()) }()
	// The second pull is the one in which the node proves what is in its cache.
	for range 2 {
		if _, err := f.pull(ctx, protocols()[0], n); err != nil {
			return err
		}
	}
	bare, secure, err := f.startSecure(ctx, "files")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bare.stop()) }()
	rounds := make([][]warmPull, f.set.warm) // by round and protocol
	doors := make([]work, f.set.warm)
	for i := range rounds {
		f.say("pulls through the proxy, warm, %d of %d", i+1, len(rounds))
		rounds[i] = make([]warmPull, len(protocols()))
		steps := []func() error{func() (err error) {
			doors[i], err = f.layers(ctx, n.process, http.DefaultClient, protocol{}, server{addr: n.node, query: "?ns=" + f.upstream.addr})
			return err
		}}
		for k, by := range protocols() {
			p := &rounds[i][k]
			steps = append(steps,
				func() (err error) {
					p.node, err = f.layers(ctx, n.process, f.client(by, n), by, by.server(f.upstream.addr, f.secure))
					return err
				},
				func() (err error) {
					p.bare, err = f.layers(ctx, bare, f.client(by, nil), by, by.server(bare.addr, secure))
					return err
				},
				func() (err error) { p.pull, err = f.pull(ctx, by, n); return err })
		}
		if err := inTurn(i, steps...); err != nil {
			return err
		}
	}
	f.reportWarm(rounds, doors)
	return nil
}

// layers gets the layer several times from p, over one connection.
func (f *forwarding) layers(ctx context.Context, p *process, client *http.Client, by protocol, s server) (w work, err error) {
	defer client.CloseIdleConnections()
	layer := f.image.layers[0]
	w.amount = float64(f.set.gets) * float64(layer.Size)
	w.cpu, w.wall, err = usage(p, func() error {
		for range f.set.gets {
			resp, err := s.open(ctx, client, f.image.path("blobs", layer.Digest.String()))
			if err != nil {
				return err
			}
			n, err := io.Copy(io.Discard, resp.Body)
			if err = errors.Join(err, resp.Body.Close()); err != nil {
				return err
			}
			if n != layer.Size || (resp.ProtoMajor == 2) != by.http2 {
				return fmt.Errorf("layer from %s has %d bytes, want %d, and came by %s", s.addr, n, layer.Size, resp.Proto)
			}
		}
		return nil
	})
	return w, err
}

func (f *forwarding) reportWarm(rounds [][]warmPull, doors []work) {
	r := &f.report
	r.section("Warm: the layer of %d MB from the cache, through the proxy, against a net/http server of the same file", f.set.layer/mb)
	for k, by := range protocols() {
		figures := func(get func(warmPull) float64) series {
			return collect(rounds, func(all []warmPull) float64 { return get(all[k]) })
		}
		r.note(by.name+": throughput, to bare", figures(func(p warmPull) float64 { return p.node.rate() / p.bare.rate() }).text(ratio))
		r.note(by.name+": CPU time per GB, to bare", figures(func(p warmPull) float64 { return p.node.cost() / p.bare.cost() }).text(ratio))
		r.note(by.name+": throughput", figures(func(p warmPull) float64 { return p.node.rate() / mb }).text(rate))
		r.note(by.name+": CPU time of the node per GB", figures(func(p warmPull) float64 { return p.node.cost() * 1e12 }).text(milliseconds))
		r.note(by.name+": a whole pull, all digests checked", figures(func(p warmPull) float64 { return p.pull.Seconds() }).text(seconds))
	}
	r.note("the node's own door, without the proxy: throughput", collect(doors, func(w work) float64 { return w.rate() / mb }).text(rate))
	r.note("the node's own door, without the proxy: CPU time per GB", collect(doors, func(w work) float64 { return w.cost() * 1e12 }).text(milliseconds))
}

// settled is after how long a node that started has given back what it needed for that.
const settled = 2 * time.Second

// A proxyCrowd is many pulls at once, cold, through the proxy of a new node.
type proxyCrowd struct {
	cpu, wall time.Duration
	peak      float64 // resident bytes, at most
}

// many measures many cold pulls at once: all of the same image, and each of one of its own.
func (f *forwarding) many(ctx context.Context) error {
	same := make([]image, clients)
	for i := range same {
		same[i] = f.image
	}
	kinds := []struct {
		name   string
		images []image
		served float64 // GB
	}{
		{"the same image", same, clients * float64(f.set.layer) / 1e9},
		{fmt.Sprintf("%d images", clients), f.others, float64(f.set.layer) / 1e9},
	}
	crowds := make(map[string][]proxyCrowd)
	key := func(by protocol, kind string) string { return by.name + ": " + kind }
	for i := range f.set.many {
		f.say("%d pulls at once through the proxy, %d of %d", clients, i+1, f.set.many)
		var steps []func() error
		for _, by := range protocols() {
			for _, k := range kinds {
				steps = append(steps, func() error {
					c, err := f.crowd(ctx, by, k.images)
					crowds[key(by, k.name)] = append(crowds[key(by, k.name)], c)
					return err
				})
			}
		}
		if err := inTurn(i, steps...); err != nil {
			return err
		}
	}
	r := &f.report
	r.section("Cold: %d clients at once through the proxy, %d MB through an upstream that sends %d MB/s", clients, f.set.layer/mb, upstreamRate/mb)
	for _, by := range protocols() {
		for _, k := range kinds {
			name, all := key(by, k.name), crowds[key(by, k.name)]
			r.check(name+": resident memory, at most", megabytes, never(25), collect(all, func(c proxyCrowd) float64 { return c.peak / mb }))
			r.note(name+": all done", collect(all, func(c proxyCrowd) float64 { return c.wall.Seconds() }).text(seconds))
			r.note(name+": CPU time of the node per GB served", collect(all, func(c proxyCrowd) float64 { return in(c.cpu, time.Millisecond) / k.served }).text(milliseconds))
		}
	}
	return nil
}

func (f *forwarding) crowd(ctx context.Context, by protocol, images []image) (c proxyCrowd, err error) {
	n, err := f.startProxy(ctx, false)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, n.stop()) }()
	if err := sleep(ctx, settled); err != nil {
		return c, err
	}
	c.cpu, c.wall, err = usage(n.process, func() error {
		return each(images, func(_ int, i image) error {
			return pullVerified(ctx, f.client(by, n), by.server(f.upstream.addr, f.secure), i)
		})
	})
	if err != nil {
		return c, fmt.Errorf("%s: %w", by.name, err)
	}
	_, c.peak, err = n.memory()
	return c, err
}
