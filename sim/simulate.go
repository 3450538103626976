package main

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"time"

	"pier/internal/directory"
)

// A result is what came of one size.
type result struct {
	settings
	lookups  lookups
	mean     rates // of all nodes, in the steady state
	busiest  rates // of the node with most bytes
	memory   int64 // bytes of the directory of a node, but for the list of members
	list     int64 // bytes of that
	rollouts []outcome
}

// rates are of one node, per second.
type rates struct{ messages, bytes float64 }

// simulate runs one size. It tells done of each part that is over.
func simulate(s settings, seed uint64, done func(what string)) (*result, error) {
	r := rand.New(rand.NewPCG(seed, uint64(s.nodes)))
	w := &world{
		settings: s, rand: r, nodes: make(map[directory.ID]*node), views: views{lists: make(map[uint64]*view)},
		content: newContent(r, s.nodes),
	}
	before := heap()
	w.start()
	w.run(w.now + s.warmUp)
	done("all announced")
	res := &result{settings: s}
	w.settle(res)
	done("steady state")
	res.memory = (heap() - before) / int64(len(w.live))
	res.list = 24 * int64(s.nodes)
	for _, roll := range s.rollouts {
		o, err := w.roll(roll)
		if err != nil {
			return nil, fmt.Errorf("roll-out %s: %w", roll.name, err)
		}
		res.rollouts = append(res.rollouts, o)
		done("roll-out " + roll.name)
	}
	for _, n := range w.live {
		n.Close()
	}
	return res, nil
}

// heap returns the bytes in use.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// start makes all nodes, which know each other and announce what they have within half the time to warm up.
func (w *world) start() {
	members := make([]directory.Member, 0, w.settings.nodes)
	for range w.settings.nodes {
		members = append(members, w.newNode().self)
	}
	slices.SortFunc(members, func(a, b directory.Member) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	for _, n := range w.live {
		w.views.assign(n, 1, func() []directory.Member { return members })
		w.after(time.Duration(w.rand.Int64N(int64(w.warmUp/2))), func() { w.content.fill(n) })
	}
}

// settle measures the steady state: nodes come and go, and look for content.
func (w *world) settle(res *result) {
	for _, n := range w.live {
		n.before = n.both()
	}
	present := slices.Clone(w.live)
	w.churn(w.steady)
	for range int(lookupRate * float64(w.settings.nodes) * w.steady.Seconds()) {
		w.after(time.Duration(w.rand.Int64N(int64(w.steady))), func() { w.look(w.some()) })
	}
	begun := w.now
	w.run(w.now + w.steady)
	res.lookups = w.lookups
	seconds := (w.now - begun).Seconds()
	n := 0
	for _, node := range present {
		if node.index < 0 {
			continue
		}
		n++
		did := node.both()
		did.messages -= node.before.messages
		did.bytes -= node.before.bytes
		is := rates{float64(did.messages) / seconds, float64(did.bytes) / seconds}
		res.mean.messages += is.messages
		res.mean.bytes += is.bytes
		if is.bytes > res.busiest.bytes {
			res.busiest = is
		}
	}
	res.mean.messages /= float64(n)
	res.mean.bytes /= float64(n)
}

// both returns what a node sent and received.
func (n *node) both() traffic {
	return traffic{n.sent.messages + n.received.messages, n.sent.bytes + n.received.bytes}
}
