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
	var near, far []Source
	for _, h := range r.holders {
		if z, ok := d.zone(h.id); !ok || h.id == m.from || now > h.ends || slices.Contains(m.failed, h.id) {
			continue
		} else if z == zone {
			near = append(near, Source{h.id, whole})
		} else {
			far = append(far, Source{h.id, whole})
		}
	}
	l := list{asker: m.from}
	if t != nil {
		d.plant(&l, t, m, near, now)
	}
	d.rand.Shuffle(len(near), func(i, j int) { near[i], near[j] = near[j], near[i] })
	d.rand.Shuffle(len(far), func(i, j int) { far[i], far[j] = far[j], far[i] })
	l.add(near...)
	l.add(far...)
	if t != nil {
		d.others(&l, t, m, now)
	}
	return l.sources
}

// A list collects different sources, at most maxSources.
type list struct {
	asker   ID
	sources []Source
}

func (l *list) add(sources ...Source) {
	for _, s := range sources {
		if len(l.sources) < maxSources && s.ID != l.asker && !slices.ContainsFunc(l.sources, func(o Source) bool { return o.ID == s.ID }) {
			l.sources = append(l.sources, s)
		}
	}
}

// plant adds the asker's place in the tree of its zone: roots are those who hold the content, or else who fetches it, and
// below them everybody in the order of arrival, fanOut under each. Who came earlier never receives from who came later,
// so nobody waits in a circle. If the one in its place is gone, it is the one before it.
func (d *Directory) plant(l *list, t *transfer, m message, roots []Source, now time.Duration) {
	r := t.receivers[m.from]
	if r == nil || t.lease == m.from {
		return
	}
	if len(roots) == 0 && t.fetched(now) {
		roots = []Source{{t.lease, t.reached}}
	}
	zone := t.came[r.zone]
	earlier, _ := place(zone, r.arrival)
	fetcher := -1 // its place among the earlier: it counts as a root alone
	if f := t.receivers[t.lease]; f != nil && f.zone == r.zone && f.arrival < r.arrival {
		fetcher, _ = place(zone, f.arrival)
		earlier--
	}
	parent := earlier / fanOut
	if parent < len(roots) {
		l.add(roots[parent])
		return
	}
	for i := min(parent-len(roots), earlier-1); i >= 0; i-- {
		at := i
		if fetcher >= 0 && at >= fetcher {
			at++
		}
		if d.offered(t, zone[at], m, now) {
			l.add(Source{zone[at].id, zone[at].offset})
			return
		}
	}
	if len(roots) > 0 {
		l.add(roots[len(roots)-1])
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

// others adds who fetches, and the receivers that have most.
func (d *Directory) others(l *list, t *transfer, m message, now time.Duration) {
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
