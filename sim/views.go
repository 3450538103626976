package main

import (
	"slices"
	"time"

	"pier/internal/directory"
)

// views are the lists of members that nodes have. A node's list is told by the news it has heard, in whatever order; those
// that have heard the same share it.
type views struct {
	lists map[uint64]*view
	news  []*news // that not everybody has heard yet
}

type view struct {
	members []directory.Member
	users   int
}

// news is that a node joined or crashed.
type news struct {
	mark   uint64 // views are sums of them
	member directory.Member
	joined bool
	heard  map[*node]bool
}

// assign gives n the list with a key.
func (v *views) assign(n *node, key uint64, build func() []directory.Member) {
	to := v.lists[key]
	if to == nil {
		to = &view{members: build()}
		v.lists[key] = to
	}
	to.users++
	v.drop(n)
	n.view = key
	n.SetMembers(n.self, to.members)
}

// drop says that n uses its list no more.
func (v *views) drop(n *node) {
	if former := v.lists[n.view]; former != nil {
		if former.users--; former.users == 0 {
			delete(v.lists, n.view)
		}
	}
}

// hear tells n the news.
func (w *world) hear(n *node, e *news) {
	if n.index < 0 || e.heard[n] {
		return
	}
	e.heard[n] = true
	former := w.views.lists[n.view].members
	w.views.assign(n, n.view^e.mark, func() []directory.Member { return e.apply(former) })
}

func (e *news) apply(members []directory.Member) []directory.Member {
	i, found := slices.BinarySearchFunc(members, e.member.ID, func(m directory.Member, id directory.ID) int {
		switch {
		case m.ID < id:
			return -1
		case m.ID > id:
			return 1
		}
		return 0
	})
	switch {
	case e.joined && !found:
		return slices.Insert(slices.Clone(members), i, e.member)
	case !e.joined && found:
		return slices.Delete(slices.Clone(members), i, i+1)
	}
	return members
}

// spread has all nodes hear the news within a time.
func (w *world) spread(e *news, within time.Duration) {
	e.mark = w.rand.Uint64()
	e.heard = make(map[*node]bool)
	w.views.news = append(w.views.news, e)
	for _, n := range w.live {
		if n.self.ID != e.member.ID {
			w.after(time.Duration(w.rand.Int64N(int64(within))), func() { w.hear(n, e) })
		}
	}
	w.after(within, func() {
		w.views.news = slices.DeleteFunc(w.views.news, func(o *news) bool { return o == e })
		for _, n := range w.live { // those that joined meanwhile
			w.hear(n, e)
		}
	})
}

// join starts a node, which learns the list of another, and what is still news to that as everybody does.
func (w *world) join() {
	seed := w.some()
	n := w.newNode()
	e := &news{member: n.self, joined: true}
	w.spread(e, joinSpread)
	e.heard[n] = true
	for _, o := range w.views.news {
		if o != e && o.heard[seed] {
			o.heard[n] = true
		}
	}
	known := w.views.lists[seed.view].members
	n.view = 0
	w.views.assign(n, seed.view^e.mark, func() []directory.Member { return e.apply(known) })
	w.content.fill(n)
}

// fail crashes a node. The others hold it for a member until it was silent for long.
func (w *world) fail(n *node) {
	w.views.drop(n)
	w.crash(n)
	silent := leastSilent + time.Duration(w.rand.Int64N(int64(mostSilent-leastSilent)))
	w.after(silent, func() { w.spread(&news{member: n.self}, crashSpread) })
}

// churn has nodes crash and join at random times within a while.
func (w *world) churn(within time.Duration) {
	times := int(churn * float64(w.settings.nodes) * within.Minutes())
	for range times {
		w.after(time.Duration(w.rand.Int64N(int64(within))), func() { w.fail(w.some()) })
		w.after(time.Duration(w.rand.Int64N(int64(within))), w.join)
	}
}
