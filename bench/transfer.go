package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// A transferRound is one transfer of each kind.
type transferRound struct {
	nginx, nginxFile, door time.Duration   // to a curl: of nginx, without and with a file, and of a node's peer door
	wires                  []wireTransfers // by wire
}

// wireTransfers are transfers from node A to node B.
type wireTransfers struct {
	through, receive ends
}

// ends are what a transfer took at both.
type ends struct {
	wall         time.Duration
	sent, gotten time.Duration // CPU time of A and of B
}

// transfer measures a blob on its way from node to node.
func (s *sharing) transfer(ctx context.Context) (err error) {
	var holders []*node
	defer func() {
		for _, n := range holders {
			err = errors.Join(err, n.stop())
		}
	}()
	for _, w := range s.wires() {
		s.say("transfer, %s: filling a cache", w.name)
		n, err := s.holder(ctx, w, nil, s.image)
		if err != nil {
			return err
		}
		holders = append(holders, n)
	}
	web, err := s.startNginx(ctx, s.nginx, filepath.Dir(holders[0].blob(s.image)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, web.stop()) }()
	if _, err := s.counts(ctx); err != nil { // what was asked to fill the caches
		return err
	}
	rounds := make([]transferRound, s.set.rounds)
	for i := range rounds {
		s.say("transfer, %d of %d", i+1, len(rounds))
		if err := s.transferRound(ctx, i, &rounds[i], holders, web); err != nil {
			return err
		}
	}
	counts, err := s.counts(ctx)
	if err != nil {
		return err
	}
	asked := 0
	for what, n := range counts {
		if strings.HasPrefix(what, "GET ") && strings.Contains(what, "/blobs/") {
			asked += n
		}
	}
	s.reportTransfer(rounds, asked)
	return nil
}

func (s *sharing) transferRound(ctx context.Context, i int, r *transferRound, holders []*node, web *process) error {
	const nowhere = "/dev/null"
	path, size := s.image.path("blobs", s.image.layers[0].Digest.String()), s.image.layers[0].Size
	file := "http://" + web.addr + "/" + filepath.Base(holders[0].blob(s.image))
	plain := holders[0]
	steps := []func() error{
		func() (err error) { r.nginx, err = fetch(ctx, s.curl, file, nowhere, size); return err },
		func() (err error) {
			r.nginxFile, err = fetch(ctx, s.curl, file, filepath.Join(s.dir, "curl.out"), size)
			return err
		},
		func() (err error) {
			r.door, err = fetch(ctx, s.curl, "http://"+plain.peer+path+plain.query, nowhere, size)
			return err
		},
	}
	r.wires = make([]wireTransfers, len(holders))
	for k, w := range s.wires() {
		t := &r.wires[k]
		steps = append(steps,
			func() (err error) {
				t.through, err = s.fromPeer(ctx, w, holders[k], false, func(b *node) (time.Duration, error) {
					return fetch(ctx, s.curl, "http://"+b.doors.node+path+b.query, nowhere, size)
				})
				return err
			},
			func() (err error) {
				last := fmt.Sprintf("%d-", size-1)
				t.receive, err = s.fromPeer(ctx, w, holders[k], true, func(b *node) (time.Duration, error) {
					return fetch(ctx, s.curl, "http://"+b.doors.node+path+b.query, nowhere, 1, "-r", last)
				})
				return err
			})
	}
	return inTurn(i, steps...)
}

// fromPeer starts a node that knows where the image is, and measures get.
func (s *sharing) fromPeer(ctx context.Context, w wire, a *node, cached bool, get func(b *node) (time.Duration, error)) (e ends, err error) {
	b, err := s.startNode(ctx, nodeConfig{cached: cached, shares: true, key: w.key, join: a})
	if err != nil {
		return e, err
	}
	defer func() { err = errors.Join(err, b.stop()) }()
	if err := b.locates(ctx, s.image, a); err != nil {
		return e, err
	}
	cpus, _, err := usages([]*process{b.process, a.process}, func() (err error) { e.wall, err = get(b); return err })
	if err != nil {
		return e, err
	}
	e.gotten, e.sent = cpus[0], cpus[1]
	return e, nil
}

func (s *sharing) reportTransfer(rounds []transferRound, asked int) {
	r := &s.report
	size := float64(s.image.layers[0].Size)
	figures := func(f func(transferRound) float64) series { return collect(rounds, f) }
	over := func(name string, wall func(transferRound) time.Duration) {
		r.note(name, figures(func(t transferRound) float64 { return size / mb / wall(t).Seconds() }).text(rate))
	}
	r.section("Transfer of a blob of %d MB from node to node, against nginx with sendfile and curl", s.set.layer/mb)
	r.check("peer door of A → curl, to nginx → curl: throughput", ratio, atLeast(0.8),
		figures(func(t transferRound) float64 { return float64(t.nginx) / float64(t.door) }))
	for k, w := range s.wires() {
		to := func(base func(transferRound) time.Duration, e func(wireTransfers) ends) series {
			return figures(func(t transferRound) float64 { return float64(base(t)) / float64(e(t.wires[k]).wall) })
		}
		file := func(t transferRound) time.Duration { return t.nginxFile }
		discard := func(t transferRound) time.Duration { return t.nginx }
		receive, through := func(t wireTransfers) ends { return t.receive }, func(t wireTransfers) ends { return t.through }
		// No bounds: B also digests what it receives, for which nothing stands beside it.
		r.note(w.name+": A → B, to nginx → curl into a file: throughput", to(file, receive).text(ratio))
		r.note(w.name+": A → B → curl, to nginx → curl into a file: throughput", to(file, through).text(ratio))
		r.note(w.name+": A → B → curl, to nginx → curl: throughput", to(discard, through).text(ratio))
	}
	r.check("GETs of the blob that reach upstream", count, exactly(0), series{float64(asked)})
	over("nginx → curl", func(t transferRound) time.Duration { return t.nginx })
	over("nginx → curl into a file", func(t transferRound) time.Duration { return t.nginxFile })
	over("peer door of A → curl", func(t transferRound) time.Duration { return t.door })
	for k, w := range s.wires() {
		over(w.name+": A → B", func(t transferRound) time.Duration { return t.wires[k].receive.wall })
		over(w.name+": A → B → curl", func(t transferRound) time.Duration { return t.wires[k].through.wall })
		cost := func(name string, cpu func(wireTransfers) time.Duration) {
			r.note(w.name+": CPU time per GB, "+name, figures(func(t transferRound) float64 {
				return in(cpu(t.wires[k]), time.Millisecond) / (size / 1e9)
			}).text(milliseconds))
		}
		cost("A, sending", func(t wireTransfers) time.Duration { return t.receive.sent })
		cost("B, receiving", func(t wireTransfers) time.Duration { return t.receive.gotten })
		cost("B, receiving and passing on", func(t wireTransfers) time.Duration { return t.through.gotten })
	}
}
