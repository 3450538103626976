package main

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"time"

	"pier/internal/directory"
)

// content is what there is, and who has it. Digests are numbered by popularity.
type content struct {
	rand    *rand.Rand
	zipf    *rand.Zipf
	holders []int32 // how many live nodes have each
	salt    uint64
}

func newContent(r *rand.Rand, nodes int) content {
	n := population * max(nodes, 2*digests/population)
	return content{rand: r, zipf: rand.NewZipf(r, skew, flatness, uint64(n-1)), holders: make([]int32, n), salt: r.Uint64()}
}

// key returns the key of a digest. Negative numbers are of what nobody has.
func (c *content) key(number int64) (k directory.Key) {
	r := rand.New(rand.NewPCG(c.salt, uint64(number)))
	binary.LittleEndian.PutUint64(k[:8], r.Uint64())
	binary.LittleEndian.PutUint64(k[8:], r.Uint64())
	return k
}

// fill gives a node its digests, and has it announce them.
func (c *content) fill(n *node) {
	n.holds = c.draw()
	keys := make([]directory.Key, len(n.holds))
	for i, number := range n.holds {
		c.holders[number]++
		keys[i] = c.key(int64(number))
	}
	n.Hold(keys, nil)
}

// draw returns different digests, in order.
func (c *content) draw() []int32 {
	numbers := make([]int32, 0, digests)
	for len(numbers) < digests {
		number := int32(c.zipf.Uint64())
		if i, found := slices.BinarySearch(numbers, number); !found {
			numbers = slices.Insert(numbers, i, number)
		}
	}
	return numbers
}

func (c *content) lose(n *node) {
	for _, number := range n.holds {
		c.holders[number]--
	}
	n.holds = nil
}

// elsewhere reports whether another node than n has a digest.
func (c *content) elsewhere(n *node, number int32) bool {
	others := c.holders[number]
	if n.has(number) {
		others--
	}
	return others > 0
}

func (n *node) has(number int32) bool {
	_, found := slices.BinarySearch(n.holds, number)
	return found
}

// lookups is what came of look-ups.
type lookups struct {
	took    []time.Duration
	there   int // of what another node has
	found   int // of those: one that has it is named
	late    int // a coordinator missed its deadline
	dead    int // sources named that had crashed
	sources int
	false   int // what nobody has, and yet somebody is named who lives
}

// look asks for a digest, as a pull does that ends after a second.
func (w *world) look(n *node) {
	number := int32(w.content.zipf.Uint64())
	if n.has(number) {
		return
	}
	want := directory.Want{Key: w.content.key(int64(number)), Join: true, Fetch: true}
	exists := w.content.elsewhere(n, number)
	if w.rand.Float64() < absentRate {
		want.Key, exists = w.content.key(-1-w.rand.Int64N(1<<62)), false
	}
	begun := w.now
	n.Ask(want, func(a directory.Answer) {
		if n.index < 0 {
			return
		}
		w.lookups.note(w, w.now-begun, exists, a)
		track := n.Track(want.Key, want.Scope, nil)
		w.after(time.Second, func() { track.End(false) })
	})
}

func (l *lookups) note(w *world, took time.Duration, exists bool, a directory.Answer) {
	l.took = append(l.took, took)
	if took >= deadline {
		l.late++
	}
	found := false
	for _, s := range a.Sources {
		if s.Whole() {
			l.sources++
			if w.nodes[s.ID] == nil {
				l.dead++
			} else {
				found = true
			}
		}
	}
	if exists {
		l.there++
		if found {
			l.found++
		}
	} else if found {
		l.false++
	}
}

// deadline is the least time after which a coordinator is not waited for any more: no answer of one that lives is so late.
const deadline = 20 * time.Millisecond
