package main

import (
	"fmt"
	"math/rand/v2"
	"time"

	"pier/internal/directory"
)

// A world is all nodes, the network between them, and what they have.
type world struct {
	clock
	settings
	rand    *rand.Rand
	nodes   map[directory.ID]*node
	live    []*node // in no order
	named   int     // nodes so far
	views   views
	content content

	lookups lookups
}

// A node is a directory, and what the models know of it.
type node struct {
	*directory.Directory
	self  directory.Member
	world *world
	index int // in live; negative: it crashed
	view  uint64
	holds []int32 // ranks in the population
	pull  *pull   // its part in the roll-out under way, or nil
	sent, received,
	before traffic // before is what it had at a point in time
}

type traffic struct{ messages, bytes int64 }

func (t *traffic) add(size int) {
	t.messages++
	t.bytes += int64(size + overhead)
}

// newNode makes a node that knows nobody, and that nobody knows.
func (w *world) newNode() *node {
	w.named++
	id := directory.IDOf(fmt.Sprintf("10.%d.%d.%d:7946", w.named>>16&0xff, w.named>>8&0xff, w.named&0xff))
	n := &node{self: directory.Member{ID: id}, world: w, index: len(w.live)}
	n.Directory = directory.New(directory.Config{
		Self: n.self, Now: w.time, After: w.after,
		Send: func(to directory.ID, msg []byte) { w.send(n, to, msg) },
	})
	w.live = append(w.live, n)
	w.nodes[id] = n
	return n
}

// send delivers a message after the latency, perhaps. Who crashed sends nothing.
func (w *world) send(from *node, to directory.ID, msg []byte) {
	if from.index < 0 {
		return
	}
	from.sent.add(len(msg))
	if n := w.nodes[to]; n != nil && w.rand.Float64() >= loss {
		w.add(w.now+w.latency(), slot{to: n, msg: msg})
	}
}

func (w *world) latency() time.Duration {
	return leastLatency + time.Duration(w.rand.Int64N(int64(mostLatency-leastLatency)))
}

func (n *node) deliver(msg []byte) {
	if n.index < 0 {
		return
	}
	n.received.add(len(msg))
	n.Receive(msg)
}

// crash ends a node without a word.
func (w *world) crash(n *node) {
	last := w.live[len(w.live)-1]
	w.live[n.index], last.index = last, n.index
	w.live = w.live[:len(w.live)-1]
	n.index = -1
	w.content.lose(n)
	n.Close()
	delete(w.nodes, n.self.ID)
}

// some returns a node that lives.
func (w *world) some() *node { return w.live[w.rand.IntN(len(w.live))] }
