package main

import (
	"context"
	"crypto/tls"
	"errors"
	"sync/atomic"
	"time"

	"pier/internal/clusterkey"
)

// readers is how many read from a node's peer door at once.
const readers = 8

// A load is a node that serves and receives at once.
type load struct {
	peak   float64       // resident bytes, at most
	wall   time.Duration // until what it receives is there
	served int64         // bytes
}

// serving measures the memory of a node that serves one image's layer to many while it receives another's.
func (s *sharing) serving(ctx context.Context) error {
	loads := make([][]load, len(s.wires()))
	for i := range s.set.serving {
		var steps []func() error
		for k, w := range s.wires() {
			steps = append(steps, func() error {
				s.say("serving and receiving, %s, %d of %d", w.name, i+1, s.set.serving)
				l, err := s.load(ctx, w)
				loads[k] = append(loads[k], l)
				return err
			})
		}
		if err := inTurn(i, steps...); err != nil {
			return err
		}
	}
	r := &s.report
	r.section("A node that serves %d, and receives a blob of %d MB from another node meanwhile", readers, s.set.layer/mb)
	for k, w := range s.wires() {
		r.check(w.name+": resident memory, at most", megabytes, never(30), collect(loads[k], func(l load) float64 { return l.peak / mb }))
		r.note(w.name+": served meanwhile", collect(loads[k], func(l load) float64 { return float64(l.served) / mb / l.wall.Seconds() }).text(rate))
		r.note(w.name+": received", collect(loads[k], func(l load) float64 { return float64(s.set.layer) / mb / l.wall.Seconds() }).text(rate))
	}
	return nil
}

// load starts two nodes, each with an image of its own, and has one serve many and receive the other's.
func (s *sharing) load(ctx context.Context, w wire) (l load, err error) {
	a, err := s.holder(ctx, w, nil, s.image)
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, a.stop()) }()
	b, err := s.holder(ctx, w, a, s.other)
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, b.stop()) }()
	if err := a.locates(ctx, s.other, b); err != nil {
		return l, err
	}
	door := server{addr: a.peer, query: a.query}
	if door.tls, err = clientTLS(w); err != nil {
		return l, err
	}
	if err := a.forgetPeak(); err != nil {
		return l, err
	}
	if l.served, err = s.readWhile(ctx, door, func() error {
		start := time.Now()
		_, err := pullImage(ctx, a.server, s.other)
		l.wall = time.Since(start)
		return err
	}); err != nil {
		return l, err
	}
	_, l.peak, err = a.memory()
	return l, err
}

// clientTLS is what a member of the cluster dials with; nil without a key.
func clientTLS(w wire) (*tls.Config, error) {
	if w.key == "" {
		return nil, nil
	}
	keys, err := clusterkey.Read(w.key)
	if err != nil {
		return nil, err
	}
	_, client := clusterkey.TLS(func() clusterkey.Keys { return keys })
	return client, nil
}

// readWhile has many read the image's layer again and again while f runs, and returns how many bytes they got. Each of them
// has had it once before f begins.
func (s *sharing) readWhile(ctx context.Context, door server, f func() error) (served int64, err error) {
	path := s.image.path("blobs", s.image.layers[0].Digest.String())
	var over atomic.Bool
	var total atomic.Int64
	warm, ended := make(chan struct{}, readers), make(chan error, 1)
	go func() {
		ended <- atOnce(readers, func() error {
			first := true
			defer func() {
				if first {
					warm <- struct{}{} // it failed
				}
			}()
			c, err := dial(ctx, door)
			if err != nil {
				return err
			}
			defer c.Close()
			for !over.Load() {
				_, _, n, err := c.get(path)
				if err != nil {
					return err
				}
				total.Add(n)
				if first {
					first = false
					warm <- struct{}{}
				}
			}
			return nil
		})
	}()
	for range readers {
		<-warm
	}
	before := total.Load()
	err = f()
	served = total.Load() - before
	over.Store(true)
	return served, errors.Join(err, <-ended)
}
