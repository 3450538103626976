package directory

import (
	"slices"
	"time"
)

const (
	// A lease ends when there was no progress for leaseRest, or for leaseStart since it was given: a registry is met with
	// a connection, a token and a redirect first, perhaps over a satellite.
	leaseRest  = 3 * time.Second
	leaseStart = 6 * time.Second

	// aheadRest is how long a free lease is kept for the receiver that has most. It may be gone, too, or be one that does not
	// fetch: then another fetches what it has once more.
	aheadRest = time.Second

	// leaseLeast is what counts as progress, in bytes: less than that in leaseRest would hold up everybody for ever.
	leaseLeast = 4 << 10

	// openFor is how long others may fetch beside each other after a fetcher said that the registry does not supply it: the
	// reason may be the fetcher's own, such as credentials. After the first failure two may, after each further one twice
	// as many: nobody waits long for the failures of others, and a registry that is in trouble is not asked by all at once.
	openFor     = 10 * time.Second
	maxFailures = 14

	receiverTTL = 15 * time.Second // a receiver that was not heard of is not offered
)

// A transfer is content that arrives from one registry, at one node or many.
type transfer struct {
	scope Scope
	used  time.Duration

	lease    ID // who fetches; 0: nobody
	deposed  ID // who did so before, and had it taken away
	begun    bool
	reached  int64         // bytes the fetcher has
	counted  int64         // of them when that was last taken for progress
	progress time.Duration // then
	freed    time.Duration // when the lease was given back
	failures int           // of fetchers, since one got on
	open     time.Duration // until then
	spare    int           // so many may fetch beside each other

	receivers map[ID]*receiver
	came      map[string]*queue // those of each zone (tree.go)
	below     map[ID]int        // how many receivers are sent to each first
	placed    int               // how many those are in all
	most      []*receiver       // those that have most, most first
	fewer     bool              // most lacks some
}

// A queue is the receivers of a zone in the order in which they came.
type queue struct {
	receivers []*receiver
	arrivals  uint64 // how many came
	room      int    // those before it have fanOut below them
}

type receiver struct {
	id      ID
	zone    string
	arrival uint64
	parent  ID            // whom it was sent to first; 0: nobody
	offset  int64         // bytes it had when it was heard of last
	heard   time.Duration // then
}

func newTransfer(scope Scope, now time.Duration) *transfer {
	return &transfer{
		scope: scope, used: now, freed: now,
		receivers: make(map[ID]*receiver), came: make(map[string]*queue), below: make(map[ID]int),
	}
}

// heard notes how far a receiver is.
func (d *Directory) heard(t *transfer, id ID, offset int64, now time.Duration) {
	r := t.receivers[id]
	if r == nil {
		if len(t.receivers) == maxReceivers || d.kept.receivers >= maxAllReceivers {
			return
		}
		d.kept.receivers++
		zone, _ := d.zone(id)
		q := t.came[zone]
		if q == nil {
			q = &queue{}
			t.came[zone] = q
		}
		r = &receiver{id: id, zone: zone, arrival: q.arrivals}
		t.receivers[id] = r
		q.receivers = append(q.receivers, r)
		q.arrivals++
	}
	fell := offset < r.offset
	r.offset, r.heard = offset, now
	t.rise(r, fell)
}

// gone notes that a receiver ended, or that somebody could not reach it. One that is there after all is heard of again, and
// comes last then.
func (d *Directory) gone(t *transfer, id ID, now time.Duration) {
	if t.lease == id {
		t.deposed = id
		t.lease, t.freed = 0, now
	}
	if r := t.receivers[id]; r != nil {
		t.remove(r)
		d.kept.receivers--
	}
}

func (t *transfer) remove(r *receiver) {
	t.attach(r, 0)
	delete(t.receivers, r.id)
	q := t.came[r.zone]
	if i, ok := place(q.receivers, r.arrival); ok {
		q.receivers = slices.Delete(q.receivers, i, i+1)
		if i < q.room {
			q.room--
		}
	}
	if len(q.receivers) == 0 {
		delete(t.came, r.zone)
	}
	t.sink(r)
}

// expire removes the receivers that were not heard of, and returns how many those were.
func (t *transfer) expire(now time.Duration) (n int) {
	for _, r := range t.receivers {
		if now-r.heard > receiverTTL {
			t.remove(r)
			n++
		}
	}
	return n
}

// fetched reports whether somebody fetches, and is getting on.
func (t *transfer) fetched(now time.Duration) bool { return t.lease != 0 && now <= t.lapses() }

// lapses returns when the lease ends, or ended.
func (t *transfer) lapses() time.Duration {
	switch {
	case t.lease == 0:
		return t.freed
	case t.begun:
		return t.progress + leaseRest
	}
	return t.progress + leaseStart
}

// grant gives the lease to a node that has offset bytes.
func (t *transfer) grant(id ID, offset int64, now time.Duration) {
	if t.lease != 0 && t.lease != id {
		t.deposed = t.lease
	}
	t.lease, t.begun, t.reached, t.counted, t.progress = id, false, offset, offset, now
}

// asked answers another node's question.
func (d *Directory) asked(m message) {
	now := d.now()
	answer := message{kind: kindAnswer, from: d.self.ID, number: m.number}
	var r *record
	var t *transfer
	if m.flags&(flagJoin|flagLease) == 0 {
		if r = d.records[m.key]; r != nil {
			t = r.find(m.scope)
		}
	} else if r = d.record(m.key); r != nil {
		t = d.transfer(r, m.scope, now)
	}
	switch {
	case t != nil:
		d.decide(t, m, &answer, now)
	default:
		answer.flags |= m.flags & flagLease // too much goes on to keep account of: nobody is kept from fetching
	}
	if r != nil {
		answer.sources = d.sources(r, t, m, now)
	}
	d.send(m.from, answer)
}

// decide says who fetches.
func (d *Directory) decide(t *transfer, m message, answer *message, now time.Duration) {
	for _, id := range m.failed {
		if id != m.from {
			d.gone(t, id, now)
		}
	}
	if m.flags&flagJoin != 0 {
		d.heard(t, m.from, m.offset, now)
	}
	switch {
	case m.flags&flagLease == 0:
	case now < t.open && t.spare > 0:
		t.spare--
		answer.flags |= flagLease
		return
	case t.lease == m.from:
		if m.offset < t.reached { // it began anew
			t.grant(m.from, m.offset, now)
		}
	case !t.fetched(now) && (!t.ahead(m, now) || now-t.lapses() > aheadRest):
		t.grant(m.from, m.offset, now)
	}
	if t.lease == m.from {
		answer.flags |= m.flags & flagLease
	}
	if t.fetched(now) {
		answer.lease, answer.reached = t.lease, t.reached
	}
}

// progressed takes a report of a receiver or a fetcher.
func (d *Directory) progressed(m message) {
	now := d.now()
	r := d.record(m.key)
	if r == nil {
		return
	}
	if m.flags&flagEnded != 0 {
		d.ended(r, m, now)
		d.tidy(m.key, r)
		return
	}
	t := d.transfer(r, m.scope, now)
	if t == nil {
		d.tidy(m.key, r)
		return
	}
	d.heard(t, m.from, m.offset, now)
	if r := t.receivers[m.from]; r != nil && (m.lease != 0 || m.flags&flagLease != 0) {
		t.attach(r, m.lease)
	}
	switch {
	case t.lease == m.from && m.flags&flagLease == 0:
		t.lease, t.freed = 0, now
	case t.lease == m.from:
		t.advance(m.offset, now)
	case m.flags&flagLease == 0 || now < t.open:
	case t.fetched(now) && m.from == t.deposed:
		// However far it is: it was not getting on, or somebody does not reach it, and who took over is at work.
		d.send(m.from, message{kind: kindConflict, from: d.self.ID, key: m.key, scope: m.scope, lease: t.lease, reached: max(t.reached, 2*m.offset)})
	case t.fetched(now) && yields(m.from, m.offset, t.lease, t.reached):
		// Two fetch, perhaps because a coordinator was not reached.
		d.send(m.from, message{kind: kindConflict, from: d.self.ID, key: m.key, scope: m.scope, lease: t.lease, reached: t.reached})
	default: // who fetched until now learns of it by its next report
		t.grant(m.from, m.offset, now)
		t.begun = m.offset > 0
	}
}

// ended takes the last report of a receiver or a fetcher.
func (d *Directory) ended(r *record, m message, now time.Duration) {
	if m.flags&flagWhole != 0 {
		d.hold(r, holder{id: m.from, ends: now + recordTTL})
	}
	t := r.find(m.scope)
	if t == nil {
		return
	}
	counts := t.lease == m.from || t.lease == 0 || now < t.open // else anybody could send all the others to the registry
	d.gone(t, m.from, now)
	if m.flags&flagFailed != 0 && counts {
		t.failures = min(t.failures+1, maxFailures)
		t.spare, t.open = 1<<t.failures, now+openFor
	}
}

// advance notes how far the fetcher is. What hardly moves does not keep the lease.
func (t *transfer) advance(offset int64, now time.Duration) {
	if offset <= t.reached {
		return
	}
	if !t.begun || offset-t.counted >= leaseLeast {
		t.counted, t.progress = offset, now
	}
	t.begun, t.reached = true, offset
	t.failures, t.open = 0, 0
}

// yields reports whether of two who fetch the same the one leaves it to the other: the one with the greater ID does, unless
// the other has more than a quarter less. The quarter lets reports be compared that were made at different times: as the ID
// does not change, two of the same speed are told apart once they have what arrives in four reports. Never do both yield,
// whenever each compares what it has with what it heard of the other: what either has only grows.
func yields(id ID, has int64, other ID, otherHas int64) bool {
	if id < other {
		return otherHas > has+has/4
	}
	return otherHas+otherHas/4 >= has
}
