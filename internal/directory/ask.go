package directory

import (
	"context"
	"slices"
	"time"
)

// A Want is a question about one key.
type Want struct {
	Key    Key
	Scope  Scope // 0, to look only: of any
	Offset int64 // bytes the asker has

	// Join says that the asker is receiving: others are sent to it. Fetch, that it fetches from the registry itself if
	// nobody else does.
	Join, Fetch bool

	Stay bool // who joined keeps its place: it only looks what else there is

	All bool // to look only: name everybody, up to 64

	Failed []ID // who did not deliver to the asker, or did not go on; at most 8 are told
}

// A Source is a member that has content, or is receiving it.
type Source struct {
	ID     ID
	Offset int64 // bytes of the content it had when it was heard of last; negative: all
}

// Late reports whether the member has all of the content, but has to make it first.
func (s Source) Late() bool { return s.Offset == wholeLate }

// Whole reports whether the member has all of the content.
func (s Source) Whole() bool { return s.Offset < 0 }

// An Answer says who has content and who fetches it.
type Answer struct {
	Sources []Source // in the order in which they should be tried, at most 8

	Granted bool  // the asker is the one who fetches, if the Sources do not deliver
	Fetcher ID    // another that fetches and gets on; 0: nobody. Only an asker that fetches already is told of both
	Reached int64 // bytes the Fetcher had when it was heard of last

	// Alone says that no coordinator answered. The asker fetches, and says so (see [Track]), in case there are others who do.
	Alone bool
}

// A query is a question under way.
type query struct {
	want    Want
	ping    bool // nothing is wanted but an answer
	done    func(Answer)
	number  uint32
	begun   time.Time
	sent    time.Time
	ranking ranking
	round   int
	leaser  ID        // who was asked for the lease
	waits   []ID      // whose answers are waited for
	answers []message // in the order in which they came
	stop    func()    // of the deadline
}

// Lookup asks, and waits for the answer, which comes within the deadline of the coordinators: one round trip.
func (d *Directory) Lookup(ctx context.Context, w Want) (Answer, error) {
	ch := make(chan Answer, 1)
	d.Ask(w, func(a Answer) { ch <- a })
	select {
	case a := <-ch:
		return a, nil
	case <-ctx.Done():
		return Answer{}, ctx.Err()
	}
}

// Ask asks all coordinators of a key at once, and calls done when those that matter have answered, or their time is over.
func (d *Directory) Ask(w Want, done func(Answer)) {
	d.lock()
	defer d.unlock()
	if len(w.Failed) > maxFailed {
		w.Failed = w.Failed[len(w.Failed)-maxFailed:]
	}
	now := d.c.Now()
	q := &query{want: w, done: done, number: d.number(), begun: now, sent: now, ranking: d.rank(w.Key), stop: func() {}}
	d.queries[q.number] = q
	if d.closed {
		d.finish(q)
		return
	}
	d.question(q)
}

// question sends a query to the coordinators. The first that is not suspected of being gone is asked for the lease. Those who
// are suspected are asked, too, but not waited for, unless all are.
func (d *Directory) question(q *query) {
	var awaited []ID
	for _, id := range q.ranking.members() {
		if p := d.peer(id); id == d.self.ID || p != nil && !p.suspect {
			awaited = append(awaited, id)
		}
	}
	if len(awaited) == 0 {
		awaited = slices.Clone(q.ranking.members())
	}
	wait := minDeadline
	for _, id := range awaited {
		if p := d.peers[id]; p != nil {
			wait = max(wait, p.deadline(d.usual))
		}
	}
	q.leaser, q.waits, q.sent = awaited[0], awaited, d.c.Now()
	wait = min(wait<<q.round, maxDeadline)
	q.stop = d.after(wait, func() { d.expired(q) })
	for _, id := range q.ranking.members() {
		if d.queries[q.number] != q {
			return // answered by this node itself
		}
		d.send(id, q.message(d.self.ID, id == q.leaser))
	}
}

func (q *query) message(self ID, decides bool) message {
	m := message{kind: kindAsk, from: self, number: q.number, key: q.want.Key, scope: q.want.Scope, offset: q.want.Offset, failed: q.want.Failed}
	if q.want.Join {
		m.flags |= flagJoin
	}
	if q.want.Join && decides && !q.want.Stay {
		m.flags |= flagPlace
	}
	if q.want.All {
		m.flags |= flagAll
	}
	if q.want.Fetch && decides {
		m.flags |= flagLease
	}
	return m
}

// answered takes an answer.
func (d *Directory) answered(m message) {
	q := d.queries[m.number]
	if q == nil || !q.ranking.contains(m.from) {
		return
	}
	if p := d.peers[m.from]; p != nil && q.round == 0 { // else nobody knows which question it answers
		took := d.c.Now().Sub(q.sent)
		p.rtt.add(took)
		d.usual.add(took)
	}
	q.waits = slices.DeleteFunc(q.waits, func(id ID) bool { return id == m.from })
	q.answers = append(q.answers, m)
	// The answer of who gives the lease is enough if it names a source, and so is any for who does not receive. If not,
	// another may know one. Who receives is not sent by one coordinator to who is sent to it by another.
	named := !q.want.All && (len(m.sources) > 0 || m.flags&flagLease == 0 && m.lease != 0)
	if len(q.waits) == 0 || named && (m.from == q.leaser || !q.want.Join) {
		d.finish(q)
	}
}

// expired ends the waiting: those who did not answer are suspected. If that leaves the question of who fetches open, or
// everything, it is asked once more.
func (d *Directory) expired(q *query) {
	if d.queries[q.number] != q {
		return
	}
	for _, id := range q.waits {
		if p := d.peers[id]; p != nil {
			p.suspect = true
			p.rtt.add(d.c.Now().Sub(q.sent)) // if it is only slow, it has more time next time
		}
	}
	decided := !slices.Contains(q.waits, q.leaser)
	if q.round == 0 && !decided && !q.enough() {
		q.round++
		q.answers = nil
		d.question(q)
		return
	}
	d.finish(q)
}

// enough reports whether the answers will do without that of who gives the lease and the place: those of others name, beside
// who has the content, only who may be waiting for somebody to fetch, too.
func (q *query) enough() bool {
	if !q.want.Join && !q.want.Fetch {
		return len(q.answers) > 0
	}
	return slices.ContainsFunc(q.answers, func(m message) bool { return slices.ContainsFunc(m.sources, Source.Whole) })
}

// gains reports whether a source has more than the asker.
func (q *query) gains(s Source) bool { return s.Whole() || s.Offset > q.want.Offset }

// finish gives the answer that all the answers come to.
func (d *Directory) finish(q *query) {
	q.stop()
	delete(d.queries, q.number)
	var a Answer
	l := list{asker: d.self.ID, most: 2 * maxSources}
	if q.want.All {
		l.most = maxAll
	}
	for _, m := range q.answers {
		if m.from == q.leaser {
			a.Granted = m.flags&flagLease != 0
			l.add(m.sources...)
		}
	}
	for _, m := range q.answers {
		if m.lease != 0 && m.lease != d.self.ID && m.reached >= a.Reached {
			a.Fetcher, a.Reached = m.lease, m.reached
		}
		for _, s := range m.sources {
			// The other coordinators do not know yet that it fetches, and have it wait for others, who wait for it.
			if !a.Granted || q.gains(s) {
				l.add(s)
			}
		}
	}
	if t := d.tracks[trackKey{q.want.Key, q.want.Scope}]; a.Fetcher != 0 && (t == nil || !t.fetches) {
		a.Granted = false // who gives the lease did not know: it is new, or a message was lost
	}
	a.Sources = l.sources
	a.Alone = len(q.answers) == 0
	d.calls = append(d.calls, func() { q.done(a) })
	if q.ping {
		return
	}
	d.count.Inc()
	d.seconds.Add(d.c.Now().Sub(q.begun).Seconds())
	switch {
	case a.Alone:
		d.unanswered.Inc()
	case len(a.Sources) > 0:
		d.hits.Inc()
	default:
		d.misses.Inc()
	}
}

// Alive asks a member whether it is there, twice at most, and reports whether it answered.
func (d *Directory) Alive(ctx context.Context, id ID) bool {
	ch := make(chan Answer, 1)
	d.lock()
	if !d.other(id) || d.closed {
		d.unlock()
		return false
	}
	now := d.c.Now()
	q := &query{ping: true, done: func(a Answer) { ch <- a }, number: d.number(), begun: now, sent: now, stop: func() {}}
	q.ranking.add(id, 0)
	d.queries[q.number] = q
	d.question(q)
	d.unlock()
	select {
	case a := <-ch:
		return !a.Alone
	case <-ctx.Done():
		return false
	}
}

// Others reports whether there are members beside this node.
func (d *Directory) Others() bool {
	d.lock()
	defer d.unlock()
	return len(d.members) > 1
}
