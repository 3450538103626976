package member

import (
	"net/netip"
	"slices"
	"sort"
	"sync"
	"time"
)

// maxMembers bounds the members of a cluster. Beyond, nobody is let in: without a key, anybody can make up members.
const maxMembers = 16384

// minDrops members may be lost at once whatever the size of the cluster.
const minDrops = 3

// A view holds the other members. It follows memberlist, but for one thing: see prune.
type view struct {
	window  time.Duration
	meter   *instruments
	changed func() // called after every change, under mu: must not block

	mu      sync.Mutex // guards all below
	entries map[string]*entry
	gone    map[string]*entry      // took their leave, and are alive as far as memberlist knows
	places  map[netip.AddrPort]int // how many members are alive that have a door there
	drops   []time.Time            // when members were dropped in the last window, oldest first
}

type entry struct {
	Member
	instance string
	alive    bool
	due      time.Time // not alive: may be dropped then; gone: is back then
	stayed   bool      // was gone, and is back: another goodbye is not believed
}

func newView(window time.Duration, meter *instruments, changed func()) *view {
	return &view{window: window, meter: meter, changed: changed, entries: make(map[string]*entry), gone: make(map[string]*entry), places: make(map[netip.AddrPort]int)}
}

func (v *view) count() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.entries)
}

// put notes that m is alive.
func (v *view) put(m Member, instance string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.gone, m.Name)
	e := v.entries[m.Name]
	if e == nil {
		e = &entry{}
		v.entries[m.Name] = e
		v.meter.joins.Inc()
	}
	v.place(e, -1)
	changed := e.Member != m
	e.stayed = e.stayed && e.instance == instance
	e.Member, e.instance, e.alive = m, instance, true
	v.place(e, 1)
	if changed {
		v.changed()
	}
}

// restarted returns the member of that name if it is now another instance than it was when it was heard of.
func (v *view) restarted(name, instance string) (Member, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := v.entries[name]
	if e == nil || instance == "" || e.instance == instance {
		return Member{}, false
	}
	return e.Member, true
}

// full reports whether there is no room for a member of that name.
func (v *view) full(name string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.entries)+len(v.gone) >= maxMembers && v.entries[name] == nil && v.gone[name] == nil
}

// place counts the doors of e if it is alive. The caller holds mu.
func (v *view) place(e *entry, n int) {
	if !e.alive {
		return
	}
	for _, port := range []uint16{e.Gossip, e.Peer} {
		at := netip.AddrPortFrom(e.Addr, port)
		if v.places[at] += n; v.places[at] <= 0 {
			delete(v.places, at)
		}
	}
}

// present reports whether a member that is alive has its gossip or its peer door at that address.
func (v *view) present(at netip.AddrPort) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.places[at] > 0
}

// lose notes that a member is dead. It reports false if that is nothing new, as with one that took its leave.
func (v *view) lose(name string) (Member, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.gone, name)
	e := v.entries[name]
	if e == nil || !e.alive {
		return Member{}, false
	}
	now := time.Now()
	v.place(e, -1)
	e.alive, e.due = false, now
	v.pruneLocked(now)
	return e.Member, true
}

// leave drops the member that said that it leaves. A restarted one under its name is another.
//
// Without a key, anybody can say so for it, and memberlist, which is told otherwise, does not speak of it again while it lives: if it is
// not dead within a window, it is back.
func (v *view) leave(instance string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, e := range v.entries {
		if e.instance != instance || e.stayed {
			continue
		}
		v.place(e, -1)
		v.drop(e)
		if e.alive {
			e.due = time.Now().Add(v.window)
			v.gone[e.Name] = e
		}
		return
	}
}

// suspend notes that nothing is known of any member any more, and returns them. They stay for a window, to be found again.
func (v *view) suspend() []Member {
	v.mu.Lock()
	defer v.mu.Unlock()
	clear(v.gone)
	all := make([]Member, 0, len(v.entries))
	due := time.Now().Add(v.window)
	for _, e := range v.entries {
		all = append(all, e.Member)
		v.place(e, -1)
		e.alive, e.due = false, due
	}
	return all
}

// prune takes back members that did not leave, and drops members that are dead, in a window at most a third of all, or three if that is more. The others stay as if they
// were alive until it is their turn, or they are.
//
// A single failure is thus seen at once. But where many members seem to fail together, more often than not it is this
// machine that had no time or no network for a while, and they are back within seconds. What hangs on membership would
// otherwise be rebuilt twice: everybody's share of the coordination moves when a third of the members goes. If they are really dead,
// keeping them costs a time-out each.
func (v *view) prune() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.pruneLocked(time.Now())
}

func (v *view) pruneLocked(now time.Time) {
	for name, e := range v.gone {
		if now.Before(e.due) {
			continue
		}
		delete(v.gone, name)
		e.stayed = true
		v.entries[name] = e
		v.place(e, 1)
		v.meter.joins.Inc()
		v.changed()
	}
	v.drops = slices.DeleteFunc(v.drops, func(t time.Time) bool { return now.Sub(t) >= v.window })
	var dead []*entry
	for _, e := range v.entries {
		if !e.alive && !now.Before(e.due) {
			dead = append(dead, e)
		}
	}
	slices.SortFunc(dead, func(a, b *entry) int { return a.due.Compare(b.due) })
	allowed := max(minDrops, (len(v.entries)+len(v.drops))/3) - len(v.drops)
	for _, e := range dead[:max(0, min(allowed, len(dead)))] {
		v.drops = append(v.drops, now)
		v.drop(e)
	}
}

// drop forgets e, which is not counted in places any more. The caller holds mu.
func (v *view) drop(e *entry) {
	delete(v.entries, e.Name)
	v.meter.losses.Inc()
	v.changed()
}

func (v *view) get(name string) (Member, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if e := v.entries[name]; e != nil {
		return e.Member, true
	}
	return Member{}, false
}

// list returns the members but those that without names, sorted.
func (v *view) list(without func(Member) bool) []Member {
	v.mu.Lock()
	all := make([]Member, 0, len(v.entries))
	for _, e := range v.entries {
		all = append(all, e.Member)
	}
	v.mu.Unlock()
	all = slices.DeleteFunc(all, without)
	sort.Slice(all, func(i, j int) bool { return all[i].Name < all[j].Name })
	return all
}
