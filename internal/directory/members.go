package directory

import (
	"slices"
	"time"
)

// A peer is what was measured of another member.
type peer struct {
	rtt     rtt
	suspect bool // it missed a deadline and was not heard of since
}

// SetMembers says who this node is, and who takes part beside it. Holdings whose coordinators changed are announced to the
// new ones. A list that is in the order of the IDs and has this node in it, too, is kept as it is, and must not be changed
// any more: at 24 bytes a member, several directories may share one.
func (d *Directory) SetMembers(self Member, others []Member) {
	members := ordered(self, others)
	d.lock()
	defer d.unlock()
	joined, left := compare(d.members, members)
	renamed := self.ID != d.self.ID
	d.self, d.members = self, members
	for _, id := range left {
		delete(d.peers, id)
		delete(d.changes, id)
	}
	d.reassign(joined, left, renamed)
}

// ordered returns self and others, each once, in the order of their IDs.
func ordered(self Member, others []Member) []Member {
	ascending := true
	for i := 1; i < len(others) && ascending; i++ {
		ascending = others[i-1].ID < others[i].ID
	}
	if i, ok := find(others, self.ID); ascending && ok && others[i] == self {
		return others
	}
	members := append(make([]Member, 0, len(others)+1), self)
	for _, m := range others {
		if m.ID != self.ID {
			members = append(members, m)
		}
	}
	slices.SortStableFunc(members, func(a, b Member) int { return compareIDs(a.ID, b.ID) })
	return slices.CompactFunc(members, func(a, b Member) bool { return a.ID == b.ID })
}

// compare returns who is only in after, and who is only in before. Both are in the order of their IDs.
func compare(before, after []Member) (joined, left []ID) {
	for len(before) > 0 && len(after) > 0 {
		switch b, a := before[0].ID, after[0].ID; {
		case b == a:
			before, after = before[1:], after[1:]
		case b < a:
			left = append(left, b)
			before = before[1:]
		default:
			joined = append(joined, a)
			after = after[1:]
		}
	}
	for _, m := range before {
		left = append(left, m.ID)
	}
	for _, m := range after {
		joined = append(joined, m.ID)
	}
	return joined, left
}

func find(members []Member, id ID) (int, bool) {
	return slices.BinarySearchFunc(members, id, func(m Member, id ID) int { return compareIDs(m.ID, id) })
}

// zone returns the zone of a member, and whether it is one.
func (d *Directory) zone(id ID) (string, bool) {
	i, ok := find(d.members, id)
	if !ok {
		return "", false
	}
	return d.members[i].Zone, true
}

// peer returns what is known of another member, or nil if id is none.
func (d *Directory) peer(id ID) *peer {
	if p := d.peers[id]; p != nil {
		return p
	}
	if !d.other(id) {
		return nil
	}
	p := &peer{}
	d.peers[id] = p
	return p
}

// member reports whether id is a member, this node or another.
func (d *Directory) member(id ID) bool {
	_, ok := find(d.members, id)
	return ok
}

// other reports whether id is a member beside this node.
func (d *Directory) other(id ID) bool {
	return id != d.self.ID && d.member(id)
}

// RTT tells of a round trip to a member that was measured elsewhere.
func (d *Directory) RTT(id ID, measured time.Duration) {
	d.lock()
	defer d.unlock()
	if p := d.peer(id); p != nil {
		p.rtt.add(measured)
		p.suspect = false
	}
}

// RoundTrip returns the smoothed round trip to a member, and whether it was measured.
func (d *Directory) RoundTrip(id ID) (time.Duration, bool) {
	d.lock()
	defer d.unlock()
	p := d.peers[id]
	if p == nil || !p.rtt.known {
		return 0, false
	}
	return p.rtt.smooth, true
}
