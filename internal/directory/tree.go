package directory

import (
	"cmp"
	"slices"
	"time"
)

// fanOut is how many receivers are sent to one source before the next is used: those that came later receive from those
// that came before them, in a tree, so that no node's uplink carries more than twice what it receives.
const fanOut = 2

// maxMost is how many of the receivers that have most are known at any time: more than fit an answer, since some of them
// are not for everybody.
const maxMost = 2 * maxSources

// sources returns whom the asker is sent to, best first: its place in the tree, then others. t may be nil.
func (d *Directory) sources(r *record, t *transfer, m message, now time.Duration) []Source {
	zone, _ := d.zone(m.from)
	var near, far, slow []Source
	for _, h := range r.holders {
		if z, ok := d.zone(h.id); !ok || h.id == m.from || now > h.ends || slices.Contains(m.failed, h.id) {
			continue
		} else if h.late {
			slow = append(slow, Source{h.id, wholeLate})
		} else if z == zone {
			near = append(near, Source{h.id, whole})
		} else {
			far = append(far, Source{h.id, whole})
		}
	}
	l := list{asker: m.from, most: maxSources}
	if m.flags&flagAll != 0 {
		l.most = maxAll
	}
	if t != nil && m.flags&flagPlace != 0 {
		roots := near
		if len(near)+len(far) == 0 {
			roots = slow
		}
		d.plant(&l, t, m, roots, now)
	}
	d.rand.Shuffle(len(near), func(i, j int) { near[i], near[j] = near[j], near[i] })
	d.rand.Shuffle(len(far), func(i, j int) { far[i], far[j] = far[j], far[i] })
	l.add(near...)
	l.add(far...)
	if t != nil {
		d.others(&l, t, m, now)
	}
	d.rand.Shuffle(len(slow), func(i, j int) { slow[i], slow[j] = slow[j], slow[i] })
	l.add(slow...)
	if t != nil && m.flags&flagAll != 0 {
		for id, r := range t.receivers {
			l.add(Source{id, r.offset})
		}
	}
	return l.sources
}

// A list collects different sources.
type list struct {
	asker   ID
	most    int
	sources []Source
}

func (l *list) add(sources ...Source) {
	for _, s := range sources {
		if len(l.sources) < l.most && s.ID != l.asker && !slices.ContainsFunc(l.sources, func(o Source) bool { return o.ID == s.ID }) {
			l.sources = append(l.sources, s)
		}
	}
}

// plant adds the asker's place in the tree of its zone. Roots are those who hold the content, or else who fetches it; below
// them is everybody in the order of arrival, fanOut under each. Who came earlier never receives from who came later, but from
// who fetches, so nobody waits in a circle. The asker keeps its place as long as who is above it does not fail.
//
// Only the coordinator that is asked for it gives a place: the others saw the askers come in another order. Reports of progress
// tell them whom everybody reads from, for the time when they are asked.
func (d *Directory) plant(l *list, t *transfer, m message, roots []Source, now time.Duration) {
	r := t.receivers[m.from]
	if r == nil {
		return
	}
	if t.lease == m.from {
		t.attach(r, 0)
		return
	}
	if len(roots) == 0 && t.fetched(now) {
		roots = []Source{{t.lease, t.reached}}
	}
	if s, ok := d.parent(t, r, m, roots, now); ok {
		t.attach(r, s.ID)
		l.add(s)
	} else {
		t.attach(r, 0)
	}
}

const (
	// maxSearch is how many of those that came earlier are looked at for one that has room below it.
	maxSearch = 256

	maxTries = 16 // and how many of them at random

	// A coordinator that is asked for a place because another was not heard does not know yet whom most receivers were sent to:
	// if there are more than maxStrangers, it sends the asker to any of them, since those at the top have enough below them.
	maxStrangers = 8
)

// parent returns who is above the receiver r of m in the tree: who is already, or the first that has room below it.
func (d *Directory) parent(t *transfer, r *receiver, m message, roots []Source, now time.Duration) (Source, bool) {
	if i := slices.IndexFunc(roots, func(s Source) bool { return s.ID == r.parent }); i >= 0 {
		return roots[i], true
	}
	if p := t.receivers[r.parent]; p != nil && p.zone == r.zone && p.arrival < r.arrival && d.offered(t, p, m, now) && !t.under(p, r) {
		return Source{p.id, p.offset}, true
	}
	q := t.came[r.zone]
	at, _ := place(q.receivers, r.arrival)
	held := len(roots) > 0 && roots[0].Whole()
	if !held && at > maxStrangers && t.placed < len(t.receivers)/2 {
		if p := q.receivers[d.rand.IntN(at)]; d.offered(t, p, m, now) && !t.under(p, r) {
			return Source{p.id, p.offset}, true
		}
	}
	var root Source
	if len(roots) > 0 {
		root = slices.MinFunc(roots, func(a, b Source) int { return cmp.Compare(t.below[a.ID], t.below[b.ID]) })
		if t.below[root.ID] < fanOut {
			return root, true
		}
	}
	for i := q.room; i < min(at, q.room+maxSearch); i++ {
		p := q.receivers[i]
		switch {
		case t.below[p.id] >= fanOut:
			if i == q.room {
				q.room++
			}
		case d.offered(t, p, m, now) && !t.under(p, r):
			return Source{p.id, p.offset}, true
		}
	}
	// Of those below who went one has that place, and the others come below any, not all below the root.
	for range min(at, maxTries) {
		if p := q.receivers[d.rand.IntN(at)]; t.below[p.id] <= fanOut && d.offered(t, p, m, now) && !t.under(p, r) {
			return Source{p.id, p.offset}, true
		}
	}
	return root, len(roots) > 0
}

// under reports whether p is below r already: that one fetched, and does not any more.
func (t *transfer) under(p, r *receiver) bool {
	for range maxSearch {
		if p == nil || p == r {
			return p == r
		}
		p = t.receivers[p.parent]
	}
	return true
}

// attach puts r below parent; 0 is nobody.
func (t *transfer) attach(r *receiver, parent ID) {
	if r.parent == parent {
		return
	}
	if r.parent != 0 {
		t.placed--
		if t.below[r.parent]--; t.below[r.parent] == 0 {
			delete(t.below, r.parent)
		}
	}
	if p := t.receivers[r.parent]; p != nil {
		q := t.came[p.zone]
		at, _ := place(q.receivers, p.arrival)
		q.room = min(q.room, at)
	}
	if r.parent = parent; parent != 0 {
		t.below[parent]++
		t.placed++
	}
}

// place returns where the receiver of an arrival is, or would be.
func place(zone []*receiver, arrival uint64) (int, bool) {
	return slices.BinarySearchFunc(zone, arrival, func(r *receiver, arrival uint64) int { return cmp.Compare(r.arrival, arrival) })
}

// offered reports whether a receiver may be a source for the asker. The fetcher has its own place.
func (d *Directory) offered(t *transfer, r *receiver, m message, now time.Duration) bool {
	return r.id != m.from && r.id != t.lease && now-r.heard <= receiverTTL && !slices.Contains(m.failed, r.id) && d.member(r.id)
}

// others adds some that have more than the asker. For one that receives those are any of its zone, so that not everybody turns
// to the same few when places change; else who fetches, and the receivers that have most.
func (d *Directory) others(l *list, t *transfer, m message, now time.Duration) {
	if r := t.receivers[m.from]; r != nil && t.lease != m.from {
		zone := t.came[r.zone].receivers
		for range 2 * maxSources {
			r := zone[d.rand.IntN(len(zone))]
			if r.offset > m.offset && d.offered(t, r, m, now) {
				l.add(Source{r.id, r.offset})
			}
		}
		if len(l.sources) > 0 {
			return
		}
	}
	if t.fetched(now) {
		l.add(Source{t.lease, t.reached})
	}
	for _, r := range t.leaders() {
		if r.offset > m.offset && d.offered(t, r, m, now) {
			l.add(Source{r.id, r.offset})
		}
	}
}

// ahead reports whether another receiver has more of the content than the asker: it is the one to go on.
func (t *transfer) ahead(m message, now time.Duration) bool {
	return slices.ContainsFunc(t.leaders(), func(r *receiver) bool {
		return r.id != m.from && r.offset > m.offset && now-r.heard <= receiverTTL && !slices.Contains(m.failed, r.id)
	})
}

// leaders returns the receivers that have most, most first.
func (t *transfer) leaders() []*receiver {
	if t.fewer && len(t.most) < maxSources {
		t.most, t.fewer = t.most[:0], false
		for _, r := range t.receivers {
			t.rise(r, false)
		}
	}
	return t.most
}

// rise puts a receiver in its place among those that have most, if it is one of them. It fell if it has less than before.
func (t *transfer) rise(r *receiver, fell bool) {
	if fell {
		t.sink(r)
	}
	i := slices.Index(t.most, r)
	if i < 0 {
		i = len(t.most)
		if (i == maxMost || t.fewer) && (i == 0 || t.most[i-1].offset >= r.offset) {
			t.fewer = true
			return
		}
		t.most = append(t.most, r)
	}
	for ; i > 0 && t.most[i-1].offset < r.offset; i-- {
		t.most[i-1], t.most[i] = t.most[i], t.most[i-1]
	}
	if len(t.most) > maxMost {
		t.most, t.fewer = t.most[:maxMost], true
	}
}

// sink takes a receiver out of those that have most.
func (t *transfer) sink(r *receiver) {
	if i := slices.Index(t.most, r); i >= 0 {
		t.most = slices.Delete(t.most, i, i+1)
	}
}
