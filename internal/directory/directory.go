// Package directory knows who has what and who fetches it, without a server: every key has three coordinators among the
// members, found by rendezvous hashing, which keep in memory what holders and receivers tell them.
//
// It is a protocol, nothing else: it sends small messages through a function and receives them through [Directory.Receive],
// on a clock that can be replaced, so that the same code runs on a network and in a simulation. What it says is a hint, never
// the truth: content is proven by whoever receives it, and that nobody has it only sends the asker upstream. Membership and
// the transfers themselves it leaves to others.
//
// [Directory.Hold] says what this node has (hold.go), [Directory.Ask] asks who has something or who fetches it (ask.go),
// [Directory.Track] reports how far a transfer has come (track.go); record.go is what a coordinator keeps, transfer.go
// how it decides who fetches, and tree.go whom it sends an asker to.
package directory

import (
	crand "crypto/rand"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// A Member is a node that takes part.
type Member struct {
	ID   ID
	Zone string // label of what is near to each other; "" is a zone, too
}

// Config configures a [Directory]. Self and Send are needed.
type Config struct {
	Self Member // until [Directory.SetMembers] says otherwise

	// Send sends a message to a member, at best effort. It must not block, and not call the Directory. The message is
	// Send's to keep.
	Send func(to ID, msg []byte)

	Now   func() time.Time                              // nil: time.Now
	After func(d time.Duration, f func()) (stop func()) // nil: time.AfterFunc

	// Doubted is called when another node says that it got wrong content for key from this one; nil: it is ignored.
	Doubted func(key Key)

	Log     *slog.Logger // nil: silent
	Metrics *metrics.Set // nil: a set of its own
}

// A Directory is one node's part in the directory of all. Its methods may be called from many goroutines at once.
type Directory struct {
	c Config
	meter

	begun time.Time

	mu      sync.Mutex // guards all below
	closed  bool
	rand    *rand.Rand // jitter and the order of equals
	self    Member
	members []Member     // with self, in the order of their IDs; never changed in place
	peers   map[ID]*peer // those of members that something is known of
	usual   rtt          // of answers of all of them

	held     map[Key]int32        // where it is in holdings
	holdings []holding            // in no order, and together, since all are looked at whenever a member comes or goes
	changes  map[ID]map[Key]state // to be announced
	due      bool                 // a flush of changes is scheduled
	batches  map[uint32]*batch    // sent, and not acknowledged yet
	slot     int                  // of the holdings to be refreshed next

	records map[Key]*record
	kept    totals // of records
	queries map[uint32]*query
	tracks  map[trackKey]*Track

	out   []outgoing // to be sent, and
	calls []func()   // to be called, once mu is free
}

type outgoing struct {
	to  ID
	msg []byte
}

type meter struct {
	hits, misses, unanswered *metrics.Counter
	seconds                  *metrics.FloatCounter
	count                    *metrics.Counter
}

// New returns a Directory that knows only this node. Close ends it.
func New(c Config) *Directory {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.After == nil {
		c.After = func(d time.Duration, f func()) func() {
			t := time.AfterFunc(d, f)
			return func() { t.Stop() }
		}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = metrics.NewSet()
	}
	d := &Directory{
		c: c, begun: c.Now(),
		meter: meter{
			hits:       c.Metrics.NewCounter(`pier_lookups_total{result="hit"}`),
			misses:     c.Metrics.NewCounter(`pier_lookups_total{result="miss"}`),
			unanswered: c.Metrics.NewCounter(`pier_lookups_total{result="unanswered"}`),
			seconds:    c.Metrics.NewFloatCounter("pier_lookup_seconds_sum"),
			count:      c.Metrics.NewCounter("pier_lookup_seconds_count"),
		},
		rand:    rand.New(rand.NewChaCha8(seed())),
		self:    c.Self,
		members: []Member{c.Self},
		peers:   make(map[ID]*peer),
		held:    make(map[Key]int32), changes: make(map[ID]map[Key]state), batches: make(map[uint32]*batch),
		records: make(map[Key]*record), queries: make(map[uint32]*query), tracks: make(map[trackKey]*Track),
	}
	c.Metrics.NewGauge("pier_directory_records", func() float64 {
		d.mu.Lock()
		defer d.mu.Unlock()
		return float64(len(d.records))
	})
	c.Metrics.NewGauge("pier_directory_held", func() float64 {
		d.mu.Lock()
		defer d.mu.Unlock()
		return float64(len(d.held))
	})
	// Nodes of a site that is switched on do not all act at once.
	d.every(time.Duration(d.rand.Int64N(int64(refreshEvery/refreshSlots))), refreshEvery/refreshSlots, d.refresh)
	d.every(time.Duration(d.rand.Int64N(int64(sweepEvery))), sweepEvery, d.sweep)
	return d
}

// seed returns what nobody else can guess: the numbers of questions are all that an answer shows.
func seed() (s [32]byte) {
	_, _ = crand.Read(s[:]) // never fails
	return s
}

// Close ends all that is under way: look-ups are answered with what is known, and nothing is sent any more.
func (d *Directory) Close() {
	d.lock()
	defer d.unlock()
	for _, q := range d.queries {
		d.finish(q)
	}
	d.closed = true
}

// now returns the time since the directory began: a third of the size of a time, of which records have many.
func (d *Directory) now() time.Duration { return d.c.Now().Sub(d.begun) }

// every calls f under the lock after first, and then again and again.
func (d *Directory) every(first, interval time.Duration, f func()) {
	d.after(first, func() {
		f()
		d.every(interval, interval, f)
	})
}

// after calls f under the lock, unless the directory is closed by then or the result is called before.
func (d *Directory) after(wait time.Duration, f func()) (stop func()) {
	return d.c.After(wait, func() {
		d.lock()
		defer d.unlock()
		if !d.closed {
			f()
		}
	})
}

func (d *Directory) lock() { d.mu.Lock() }

// unlock frees the lock, and then sends and calls what was left for then.
func (d *Directory) unlock() {
	out, calls := d.out, d.calls
	d.out, d.calls = nil, nil
	d.mu.Unlock()
	for _, o := range out {
		d.c.Send(o.to, o.msg)
	}
	for _, call := range calls {
		call()
	}
}

// send sends a message, also to this node itself.
func (d *Directory) send(to ID, m message) {
	if to == d.self.ID {
		d.handle(m)
		return
	}
	if !d.closed {
		d.out = append(d.out, outgoing{to, m.encode()})
	}
}

// Receive takes a message that another member sent. What makes no sense is ignored.
func (d *Directory) Receive(msg []byte) {
	m, err := parseMessage(msg)
	if err != nil {
		d.c.Log.Debug("malformed message of the directory", "err", err)
		return
	}
	d.lock()
	defer d.unlock()
	if d.closed || !d.other(m.from) {
		return // of a stranger, or of one who left
	}
	if p := d.peers[m.from]; p != nil {
		p.suspect = false
	}
	d.handle(m)
}

func (d *Directory) handle(m message) {
	switch m.kind {
	case kindAnnounce:
		d.announced(m)
	case kindAck:
		delete(d.batches, m.number)
	case kindAsk:
		d.asked(m)
	case kindAnswer:
		d.answered(m)
	case kindProgress:
		d.progressed(m)
	case kindConflict:
		d.conflicted(m)
	case kindDoubt:
		if d.c.Doubted != nil {
			key := m.key
			d.calls = append(d.calls, func() { d.c.Doubted(key) })
		}
	}
}

// Doubt tells a member that the content it gave for key was wrong.
func (d *Directory) Doubt(holder ID, key Key) {
	d.lock()
	defer d.unlock()
	if d.other(holder) {
		d.send(holder, message{kind: kindDoubt, from: d.self.ID, key: key})
	}
}
