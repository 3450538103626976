package main

import (
	"context"
	"errors"
	"strings"
	"time"
)

// clients is how many pull at once.
const clients = 20

// A coldRound is one pull of each kind, of what the node does not have.
type coldRound struct {
	direct, cached, spooled pull
	many                    crowd
}

// A crowd is many cold clients at once.
type crowd struct {
	all                 time.Duration // until the last one has everything
	blob, manifest      float64       // GETs that upstream saw, of the blob most asked for and of manifests
	fresh, peak, rested float64       // resident bytes: after the start, at most, and some rest after the pull
	cpu                 time.Duration
}

// cold measures pulls by one client, with and without a cache, and by many at once.
func (b *single) cold(ctx context.Context) error {
	rounds := make([]coldRound, b.set.cold)
	for i := range rounds {
		r := &rounds[i]
		b.say("cold pulls, %d of %d", i+1, b.set.cold)
		err := inTurn(i,
			func() (err error) { r.direct, err = pullImage(ctx, server{addr: b.upstream.addr}, b.image); return err },
			func() (err error) { r.cached, err = b.coldOne(ctx, true); return err },
			func() (err error) { r.spooled, err = b.coldOne(ctx, false); return err },
			func() (err error) { r.many, err = b.coldMany(ctx); return err },
		)
		if err != nil {
			return err
		}
	}
	b.reportCold(rounds)
	return nil
}

// coldOne has one client pull through a new node.
func (b *single) coldOne(ctx context.Context, cached bool) (p pull, err error) {
	n, err := b.startNode(ctx, nodeConfig{cached: cached})
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, n.stop()) }()
	return pullImage(ctx, n.server, b.image)
}

// coldMany has many clients pull through a new node.
func (b *single) coldMany(ctx context.Context) (c crowd, err error) {
	n, err := b.startNode(ctx, nodeConfig{cached: true})
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, n.stop()) }()
	if c.fresh, err = n.idle(ctx, time.Second); err != nil {
		return c, err
	}
	if c, err = b.crowd(ctx, n.process, n.server, b.image, c); err != nil {
		return c, err
	}
	if c.rested, err = n.idle(ctx, b.set.rest); err != nil {
		return c, err
	}
	_, c.peak, err = n.memory()
	return c, err
}

// crowd has many clients pull an image through p, and adds what that took to c.
func (b *single) crowd(ctx context.Context, p *process, s server, i image, c crowd) (crowd, error) {
	if _, err := b.counts(ctx); err != nil { // what was asked before
		return c, err
	}
	var err error
	c.cpu, c.all, err = usage(p, func() error { return pullAll(ctx, clients, s, i) })
	if err != nil {
		return c, err
	}
	counts, err := b.counts(ctx)
	for asked, n := range counts {
		switch {
		case strings.HasPrefix(asked, "GET ") && strings.Contains(asked, "/blobs/"):
			c.blob = max(c.blob, float64(n))
		case strings.HasPrefix(asked, "GET ") && strings.Contains(asked, "/manifests/"):
			c.manifest += float64(n)
		}
	}
	return c, err
}

func (b *single) reportCold(rounds []coldRound) {
	r := &b.report
	figures := func(f func(coldRound) float64) series { return collect(rounds, f) }
	r.section("Cold: a layer of %d MB through an upstream that sends %d MB/s", b.set.layer/mb, upstreamRate/mb)
	directTotal := figures(func(c coldRound) float64 { return in(c.direct.layer, time.Second) })
	r.note("direct, without Pier: first byte", figures(func(c coldRound) float64 { return in(c.direct.first, time.Millisecond) }).text(milliseconds))
	r.note("direct, without Pier: whole layer", directTotal.text(seconds))
	for _, k := range []struct {
		name string
		pull func(coldRound) pull
	}{
		{"with a cache", func(c coldRound) pull { return c.cached }},
		{"without a cache", func(c coldRound) pull { return c.spooled }},
	} {
		r.check(k.name+": first byte, later than direct", milliseconds, atMost(50),
			figures(func(c coldRound) float64 { return in(k.pull(c).first-c.direct.first, time.Millisecond) }))
		r.check(k.name+": whole layer, to direct", ratio, atMost(1.05),
			figures(func(c coldRound) float64 { return float64(k.pull(c).layer) / float64(c.direct.layer) }))
	}

	r.section("Cold: %d clients at once, the same image through one node with a cache", clients)
	r.check("GETs of a blob that reach upstream", count, exactly(1), figures(func(c coldRound) float64 { return c.many.blob }))
	r.note("GETs of the manifest that reach upstream", figures(func(c coldRound) float64 { return c.many.manifest }).text(count))
	r.check("all done, to one client through a node", ratio, atMost(1.1),
		figures(func(c coldRound) float64 { return float64(c.many.all) / float64(c.cached.all) }))
	r.note("CPU time of the node per GB served", figures(func(c coldRound) float64 {
		return in(c.many.cpu, time.Millisecond) / (clients * float64(b.set.layer) / 1e9)
	}).text(milliseconds))
	r.check("resident memory, at most", megabytes, never(25), figures(func(c coldRound) float64 { return c.many.peak / mb }))
	r.check("resident memory, a second after the start", megabytes, never(15), figures(func(c coldRound) float64 { return c.many.fresh / mb }))
	r.check("resident memory, "+b.set.rest.String()+" after the pulls", megabytes, never(15),
		figures(func(c coldRound) float64 { return c.many.rested / mb }))
}
