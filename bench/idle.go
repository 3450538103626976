package main

import (
	"context"
	"errors"
	"time"
)

// idle measures what the members of a cluster cost while nobody asks them for anything.
func (s *sharing) idle(ctx context.Context) (err error) {
	s.say("%d idle nodes, for %s", s.set.members, s.set.rest+s.set.watch)
	var nodes []*node
	defer func() { err = errors.Join(err, each(nodes, func(_ int, n *node) error { return n.stop() })) }()
	var first *node
	for range s.set.members {
		n, err := s.startNode(ctx, nodeConfig{cached: true, shares: true, join: first})
		if err != nil {
			return err
		}
		if nodes = append(nodes, n); first == nil {
			first = n
		}
	}
	if err := each(nodes, func(_ int, n *node) error { return n.meets(ctx, nodes) }); err != nil {
		return err
	}
	if err := sleep(ctx, s.set.rest); err != nil {
		return err
	}
	var processes []*process
	for _, n := range nodes {
		processes = append(processes, n.process)
	}
	cpus, wall, err := usages(processes, func() error { return sleep(ctx, s.set.watch) })
	if err != nil {
		return err
	}
	var memory series
	for _, n := range nodes {
		now, _, err := n.memory()
		if err != nil {
			return err
		}
		memory = append(memory, now/mb)
	}
	r := &s.report
	r.section("%d idle members of one cluster, %s after they met, for %s", s.set.members, s.set.rest, s.set.watch)
	r.check("CPU time of each", percent, never(0.2), collect(cpus, func(d time.Duration) float64 { return 100 * float64(d) / float64(wall) }))
	r.check("resident memory of each", megabytes, never(15), memory)
	return nil
}
