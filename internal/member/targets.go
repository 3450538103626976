package member

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// kind says why a node is looked for.
type kind int

const (
	configured kind = iota // Config.Peers
	filed                  // a line of Config.PeersFile
	named                  // Config.DNS
	found                  // Config.Discover
	lost                   // was a member
	removed                // was a line of Config.PeersFile, and is to be left out
)

// Bounds of the targets nobody configured, and how long they are tried.
const (
	maxLost    = 256
	maxFound   = 256
	maxNamed   = 256 // of an answer of the DNS; one that can be joined leads to all others
	maxRemoved = 1024

	lostFor  = 24 * time.Hour
	foundFor = 3 * time.Minute
)

type targetKey struct {
	kind kind
	place
}

// A target is a node to join. Its fields are guarded by the mutex of its [targets].
type target struct {
	targetKey
	ips     []netip.Addr     // of host, when last resolved
	addrs   []netip.AddrPort // where its gossip was found
	trying  bool
	failing bool          // said so in the log
	next    time.Time     // of the next try
	wait    time.Duration // of the last failed try
	until   time.Time     // forgotten then; zero: never
}

// targets are the nodes that the group wants to be joined with, and those it does not want to know.
type targets struct {
	pace pace

	mu      sync.Mutex // guards all below
	all     map[targetKey]*target
	removed map[place]*target // nodes to be left out; not joined
}

func newTargets(p pace) *targets {
	return &targets{pace: p, all: make(map[targetKey]*target), removed: make(map[place]*target)}
}

// list makes places the targets of that kind.
func (ts *targets) list(k kind, places []place) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for key, t := range ts.all {
		if key.kind != k || slices.Contains(places, key.place) {
			continue
		}
		delete(ts.all, key)
		if k == filed && len(ts.removed) < maxRemoved {
			ts.removed[key.place] = &target{targetKey: targetKey{removed, key.place}, ips: t.ips, addrs: t.addrs}
		}
	}
	for _, p := range places {
		ts.add(targetKey{k, p})
		if k == filed {
			delete(ts.removed, p)
		}
	}
}

// add returns the target of that key. The caller holds mu.
func (ts *targets) add(key targetKey) *target {
	t := ts.all[key]
	if t == nil {
		t = &target{targetKey: key}
		if ip, err := netip.ParseAddr(key.host); err == nil {
			t.ips = []netip.Addr{ip}
		}
		ts.all[key] = t
	}
	return t
}

func (ts *targets) count(k kind) int {
	n := 0
	for key := range ts.all {
		if key.kind == k {
			n++
		}
	}
	return n
}

// remember adds a node that was seen, or lost, for a while. It reports whether it is new.
func (ts *targets) remember(k kind, at netip.AddrPort) bool {
	limit, d := maxLost, lostFor
	if k == found {
		limit, d = maxFound, foundFor
	}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	key := targetKey{k, place{at.Addr().Unmap().String(), at.Port()}}
	old := ts.all[key] != nil
	if !old && ts.count(k) >= limit {
		ts.evict(k)
	}
	t := ts.add(key)
	t.until = time.Now().Add(d)
	return !old
}

// evict forgets the target of that kind that would be forgotten first. The caller holds mu.
func (ts *targets) evict(k kind) {
	var first *target
	for key, t := range ts.all {
		if key.kind == k && (first == nil || t.until.Before(first.until)) {
			first = t
		}
	}
	if first != nil {
		delete(ts.all, first.targetKey)
	}
}

// hasten has everything tried soon, also what was joined already: a member was lost, or this node is new at its address.
func (ts *targets) hasten() {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for _, t := range ts.all {
		t.next, t.wait = time.Time{}, 0
	}
}

// due returns at most n targets to be tried now, as being tried, in no order. Those for which here says that somebody is
// at their address already need none.
func (ts *targets) due(n int, here func(netip.AddrPort) bool) []*target {
	now := time.Now()
	ts.mu.Lock()
	defer ts.mu.Unlock()
	var due []*target
	for key, t := range ts.all {
		switch {
		case t.trying:
		case !t.until.IsZero() && now.After(t.until):
			delete(ts.all, key)
		case t.joined(here):
			t.wait, t.failing = 0, false
			if key.kind == lost || key.kind == found {
				delete(ts.all, key)
			}
		case !now.Before(t.next) && !ts.unwanted(t):
			due = append(due, t)
		}
	}
	for _, t := range ts.removed {
		if len(t.ips) == 0 && !t.trying && !now.Before(t.next) {
			due = append(due, t) // to know whom it means
		}
	}
	rand.Shuffle(len(due), func(i, j int) { due[i], due[j] = due[j], due[i] })
	due = due[:min(n, len(due))]
	for _, t := range due {
		t.trying = true
	}
	return due
}

// joined reports whether somebody is where t is. The caller holds the mutex.
func (t *target) joined(here func(netip.AddrPort) bool) bool {
	if slices.ContainsFunc(t.addrs, here) {
		return true
	}
	for _, ip := range t.ips {
		if slices.ContainsFunc(t.candidates(ip), here) {
			return true
		}
	}
	return false
}

// candidates returns where t's gossip or peer door may be if its host is at ip.
func (t *target) candidates(ip netip.Addr) []netip.AddrPort {
	if t.port != 0 {
		return []netip.AddrPort{netip.AddrPortFrom(ip, t.port)}
	}
	return []netip.AddrPort{netip.AddrPortFrom(ip, defaultGossip), netip.AddrPortFrom(ip, defaultDoor)}
}

// unwanted reports whether t, which nobody configured, is a node that was removed from the peers file. The caller holds mu.
func (ts *targets) unwanted(t *target) bool {
	if t.kind == configured || t.kind == filed {
		return false
	}
	for _, ip := range t.ips {
		if ts.excluded(Member{Addr: ip, Gossip: t.port}) {
			return true
		}
	}
	return false
}

// excludes reports whether m was removed from the peers file, and is not listed in any other way.
func (ts *targets) excludes(m Member) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return ts.excluded(m)
}

// excluded is excludes for a caller that holds mu.
func (ts *targets) excluded(m Member) bool {
	at := func(ap netip.AddrPort) bool {
		return ap.Addr() == m.Addr && (ap.Port() == m.Gossip || ap.Port() == m.Peer)
	}
	out := false
	for _, t := range ts.removed {
		out = out || t.joined(at)
	}
	if !out {
		return false
	}
	for key, t := range ts.all {
		if (key.kind == configured || key.kind == filed) && t.joined(at) {
			return false
		}
	}
	return true
}

// learned notes where t's host is, and where its gossip turned out to be, if it did.
func (ts *targets) learned(t *target, ips []netip.Addr, at netip.AddrPort) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if len(ips) > 0 {
		t.ips = ips
	}
	if at.IsValid() && !slices.Contains(t.addrs, at) {
		const several = 8 // a name that moves about has no more behind it
		t.addrs = append(slices.Clone(t.addrs[max(0, len(t.addrs)-several+1):]), at)
	}
}

// tried notes how a try ended. It reports whether that is worth a line in the log: for the first failure and the success after it.
func (ts *targets) tried(t *target, ok bool) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t.trying = false
	said := t.failing
	t.failing = !ok
	longest := ts.pace.retryMax
	if t.kind == lost {
		longest = ts.pace.lostMax
	}
	if ok {
		t.wait, t.next = 0, time.Now().Add(ts.pace.settled)
		return said
	}
	t.wait = min(max(ts.pace.retry, 2*t.wait), longest)
	t.next = time.Now().Add(t.wait - rand.N(t.wait/4)) // so that nodes that start together do not stay together
	return !said && (t.kind == configured || t.kind == filed)
}
