package directory

import (
	"slices"
	"time"
)

const (
	// A holding is announced anew every refreshEvery, spread over refreshSlots, and forgotten by its coordinators after
	// recordTTL, so that two refreshes may be lost.
	refreshEvery = 5 * time.Minute
	refreshSlots = 60
	recordTTL    = 12 * time.Minute

	// flushAfter is how long changes gather before they are announced; after a change of members, up to spread more, since
	// everybody announces then.
	flushAfter = 50 * time.Millisecond
	spread     = 450 * time.Millisecond

	// At most flushBatches announcements leave at once, flushAfter apart: 64 datagrams of 1.2 kB fit every socket buffer.
	flushBatches = 64

	// An announcement that nobody acknowledges is sent again after resendAfter, twice that and so on, resends times; then
	// it rests for restAfter, as long as its receiver is a member.
	resendAfter = 200 * time.Millisecond
	resends     = 3
	restAfter   = 3 * time.Second

	// maxHeld bounds what one node announces: at 110 bytes each, 7 MB.
	maxHeld = 1 << 16
)

// A holding is content that this node has.
type holding struct {
	key  Key
	late bool
	ranking
}

// A state says what a node has of some content.
type state byte

const (
	dropped state = iota // not any more
	held                 // all of it
	late                 // all of it, once it has made it
)

func (h *holding) state() state {
	switch {
	case h == nil:
		return dropped
	case h.late:
		return late
	}
	return held
}

// A batch is an announcement on its way.
type batch struct {
	to      ID
	msg     message
	resends int
}

// Hold says that this node has the content, or knows the tags, of have, and not any more those of lost.
func (d *Directory) Hold(have, lost []Key) {
	d.lock()
	defer d.unlock()
	d.take(have, false)
	d.drop(lost)
	d.schedule(0)
}

// HoldLate says that this node has the content of keys, but has to make it before it can give it: others are sent here only
// where nobody has it ready, or is receiving it.
func (d *Directory) HoldLate(keys []Key) {
	d.lock()
	defer d.unlock()
	d.take(keys, true)
	d.schedule(0)
}

func (d *Directory) drop(lost []Key) {
	for _, key := range lost {
		h := d.holding(key)
		if h == nil {
			continue
		}
		for _, id := range h.members() {
			d.change(id, key, dropped)
		}
		last := len(d.holdings) - 1
		d.held[d.holdings[last].key] = d.held[key]
		*h = d.holdings[last]
		d.holdings = d.holdings[:last]
		delete(d.held, key)
	}
}

func (d *Directory) take(keys []Key, isLate bool) {
	for _, key := range keys {
		h := d.holding(key)
		if h == nil && len(d.held) >= maxHeld || h != nil && h.late == isLate {
			continue
		}
		if h == nil {
			d.held[key] = int32(len(d.holdings))
			d.holdings = append(d.holdings, holding{key: key, ranking: d.rank(key)})
			h = d.holding(key)
		}
		h.late = isLate
		for _, id := range h.members() {
			d.change(id, key, h.state())
		}
	}
}

// reassign finds the coordinators anew after members joined and left (in the order of their IDs). If this node has another
// name, all of them are told.
func (d *Directory) reassign(joined, left []ID, renamed bool) {
	for i := range d.holdings {
		h := &d.holdings[i]
		before := h.ranking
		if renamed || h.lacks(left) {
			h.ranking = d.rank(h.key)
		} else if !h.join(joined) {
			continue
		}
		for _, id := range h.members() {
			if renamed || !before.contains(id) {
				d.change(id, h.key, h.state())
			}
		}
	}
	d.schedule(spread)
}

// refresh announces one slot of the holdings again.
func (d *Directory) refresh() {
	for i := range d.holdings {
		h := &d.holdings[i]
		if int(h.key[len(h.key)-1])%refreshSlots != d.slot {
			continue
		}
		for _, id := range h.members() {
			d.change(id, h.key, h.state())
		}
	}
	d.slot = (d.slot + 1) % refreshSlots
	d.schedule(0)
}

// holding returns what is known of content that this node has, or nil. It is good until the next call of [Directory.Hold].
func (d *Directory) holding(key Key) *holding {
	if i, ok := d.held[key]; ok {
		return &d.holdings[i]
	}
	return nil
}

// join ranks those who joined, and reports whether one of them is a coordinator now.
func (h *holding) join(joined []ID) (changed bool) {
	for _, id := range joined {
		if s := score(id, h.key); s >= h.scores[coordinators-1] { // 0 as long as it is free
			h.add(id, s)
			changed = true
		}
	}
	return changed
}

// lacks reports whether one of the coordinators left.
func (h *holding) lacks(left []ID) bool {
	for _, id := range h.members() {
		if _, ok := slices.BinarySearch(left, id); ok {
			return true
		}
	}
	return false
}

func (d *Directory) change(to ID, key Key, now state) {
	keys := d.changes[to]
	if keys == nil {
		keys = make(map[Key]state)
		d.changes[to] = keys
	}
	keys[key] = now
}

// schedule has changes announced soon, at a random time within jitter.
func (d *Directory) schedule(jitter time.Duration) {
	if d.due || len(d.changes) == 0 {
		return
	}
	d.due = true
	wait := flushAfter
	if jitter > 0 {
		wait += time.Duration(d.rand.Int64N(int64(jitter)))
	}
	d.after(wait, d.flush)
}

// flush announces changes, as many as may leave at once.
func (d *Directory) flush() {
	d.due = false
	sent := 0
	for to, keys := range d.changes {
		for len(keys) > 0 && sent < flushBatches {
			m := message{kind: kindAnnounce, from: d.self.ID, number: d.number()}
			for key, now := range keys {
				if len(m.held)+len(m.dropped)+len(m.late) == maxKeys {
					break
				}
				m.note(key, now)
				delete(keys, key)
			}
			if to != d.self.ID {
				sent++
				d.batches[m.number] = &batch{to: to, msg: m}
				d.resend(m.number, resendAfter)
			}
			d.send(to, m)
		}
		if len(keys) > 0 {
			break
		}
		delete(d.changes, to)
	}
	d.schedule(0)
}

// resend sends an announcement again if it is not acknowledged after a while.
func (d *Directory) resend(number uint32, wait time.Duration) {
	d.after(wait, func() {
		b := d.batches[number]
		if b == nil {
			return
		}
		if b.resends == resends || !d.other(b.to) {
			delete(d.batches, number)
			d.after(restAfter, func() { d.again(b) })
			return
		}
		b.resends++
		d.renew(b)
		d.send(b.to, b.msg)
		d.resend(number, 2*wait)
	})
}

// renew brings an announcement up to date: what changed since was announced, too, perhaps before this one arrives.
func (d *Directory) renew(b *batch) {
	keys := slices.Concat(b.msg.held, b.msg.late, b.msg.dropped)
	b.msg.held, b.msg.late, b.msg.dropped = nil, nil, nil
	for _, key := range keys {
		b.msg.note(key, d.holding(key).state())
	}
}

// note adds what is so of a key to an announcement.
func (m *message) note(key Key, now state) {
	switch now {
	case held:
		m.held = append(m.held, key)
	case late:
		m.late = append(m.late, key)
	default:
		m.dropped = append(m.dropped, key)
	}
}

// again has what was announced in vain announced anew, as far as it is still so: the network may have been away for less time
// than it takes to notice that a member is gone.
func (d *Directory) again(b *batch) {
	if !d.other(b.to) {
		return
	}
	for _, key := range slices.Concat(b.msg.held, b.msg.late, b.msg.dropped) {
		h := d.holding(key)
		if h == nil || h.contains(b.to) {
			d.change(b.to, key, h.state())
		}
	}
	d.schedule(0)
}

// number returns a number for a message that will be answered: nobody else can guess it.
func (d *Directory) number() uint32 {
	for {
		n := d.rand.Uint32()
		if n != 0 && d.batches[n] == nil && d.queries[n] == nil {
			return n
		}
	}
}
