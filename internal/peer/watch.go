package peer

import (
	"context"
	"io"
	"slices"
	"sync"
	"time"

	"pier/internal/directory"
)

const (
	// A neighbour hangs when a read of it brings nothing for hung. Together with finding the next one this stays within the
	// second that a neighbour may cost.
	hung = 600 * time.Millisecond

	lookEvery = 200 * time.Millisecond

	// A neighbour that is receiving the content itself is asked when it hangs, and then every stuckEvery, whether it is there
	// at all. That it is there and gives nothing is its fault if who fetches got on between two looks, firstStuck apart.
	// If not, everybody stands still, since the registry hangs, or who fetches died: what else there is counts only after
	// stuckFor, and who fetches is decided when the lease ends.
	firstStuck = 350 * time.Millisecond
	stuckEvery = time.Second
	stuckFor   = 2 * time.Second

	// A neighbour is slow when it gives less than an eighth of what the best of late gave, over paceOver of reading, and others
	// have more of the content; below floor, it is so for whatever else there is.
	paceOver = time.Second
	slowPart = 8
	floor    = 64 << 10 // bytes a second

	// ahead is how much more another must have to be worth a change, in bytes.
	ahead = 1 << 20

	// A neighbour that has yet to prove the content it was found with before it gives a byte of it is given time for that, by
	// the rate of a slow disk in bytes a second; no more than maxProving where there is a registry, from which is gone on until
	// it has, nor than maxLonely where there is none: whoever reads this expects something within half a minute.
	provingRate = 40 << 20
	maxProving  = 4 * time.Second
	maxLonely   = 20 * time.Second

	// A neighbour that is receiving and gives less than drip bytes a second passes on what somebody fetches who hardly gets any:
	// the lease may have ended by that.
	drip = 1 << 10
)

// A watch looks after one stream of a neighbour while it is read. Only the time for which the reader waits counts: a slow
// client is no fault of the neighbour.
type watch struct {
	r      *relay
	from   directory.ID
	body   io.Closer      // ends the stream
	whole  bool           // the neighbour has all of the content
	proves bool           // and has yet to prove it
	grace  time.Duration  // more time for the first byte
	avoid  []directory.ID // whom the relay left already: they are no better

	mu      sync.Mutex // guards all below
	timer   *time.Timer
	at      int64         // offset of the next byte
	since   time.Time     // when the read under way began; zero: none is
	waited  time.Duration // in reads, since the pace was last judged
	moved   int           // bytes in that time
	given   bool          // a byte came
	reason  string        // why the stream was ended; "": it was not
	stopped bool
	looked  time.Time // when a neighbour that has nothing was last asked whether it is there
	reached int64     // bytes that who fetches had then; negative: nobody knew
}

func (r *relay) newWatch(reply *reply) *watch {
	w := &watch{r: r, from: reply.ID, body: reply.body, whole: reply.Whole(), at: r.at, reached: -1, avoid: slices.Concat(r.failed, r.left, r.avoided)}
	if w.whole && reply.missing > 0 { // it has it, and proves it first
		w.proves = true
		w.grace = time.Second + time.Duration(reply.desc.Size/provingRate)*time.Second
		if r.s.c.Upstream != nil {
			w.grace = min(w.grace, maxProving)
		}
		w.grace = min(w.grace, maxLonely)
	}
	w.timer = time.AfterFunc(lookEvery, w.look)
	return w
}

// begin says that a read begins.
func (w *watch) begin(now time.Time) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.since = now
}

// end says that a read brought n bytes.
func (w *watch) end(n int) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waited += time.Since(w.since)
	w.moved += n
	w.at += int64(n)
	if n > 0 {
		w.given, w.reached = true, -1
	}
	w.since = time.Time{}
}

// stop ends the watching, and returns why the watch ended the stream.
func (w *watch) stop() (reason string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	w.timer.Stop()
	return w.reason
}

// look judges the stream.
func (w *watch) look() {
	reason := w.judge()
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.stopped:
	case reason == "":
		w.timer.Reset(lookEvery)
	default:
		w.reason = reason
		w.interrupt()
	}
}

// judge returns why the stream should be ended, or "".
func (w *watch) judge() (reason string) {
	w.mu.Lock()
	var idle time.Duration
	if !w.since.IsZero() {
		idle = time.Since(w.since)
	}
	limit := hung
	if !w.given {
		limit += w.grace
	}
	every := stuckEvery
	if idle < stuckFor {
		every = firstStuck
	}
	again := time.Since(w.looked) >= every
	if idle > limit && again {
		w.looked = time.Now()
	}
	at, given, moved, waited := w.at, w.given, w.moved, w.waited+idle
	full := waited > paceOver
	if full {
		w.waited, w.moved = -idle, 0 // of the read under way, what follows counts
	}
	w.mu.Unlock()
	switch {
	case idle > limit && w.whole && w.proves && !given && w.r.s.c.Upstream != nil:
		return leftProves
	case idle > limit && w.whole:
		return leftHung
	case idle > limit && w.r.length >= 0: // a part is not waited for until all that is before it has come
		return leftCrawls
	case idle > stuckFor && !w.r.joins(): // it cannot take over: better alone than waiting for who does
		return leftCrawls
	case idle > limit && again:
		return w.stuck(at, idle)
	case idle > limit:
		return ""
	case idle > hung: // it proves what it has: another may have done so
		if a, err := w.ask(at, false); err == nil && w.another(a, at) {
			return leftSlow
		}
		return ""
	case !full || !given:
		return ""
	}
	pace := int(float64(moved) / waited.Seconds())
	best := w.r.s.trust.pace(pace)
	if w.whole && w.r.s.c.Upstream != nil && pace < w.r.s.trust.registryPace()/slowPart || w.whole && pace < floor {
		return leftCrawls
	}
	if pace < drip && !w.whole {
		if a, err := w.ask(at, true); err == nil && a.Granted {
			return leftDrips
		}
	}
	if pace < best/slowPart {
		if a, err := w.ask(at, false); err == nil && w.another(a, at) {
			return leftSlow
		}
	}
	return ""
}

// stuck says what to do about a neighbour that is receiving the content itself and gives nothing more: it may be gone, or
// wait for the registry as everybody does.
func (w *watch) stuck(at int64, idle time.Duration) string {
	ctx, cancel := context.WithTimeout(w.r.ctx, budget)
	defer cancel()
	if !w.r.s.c.Directory.Alive(ctx, w.from) {
		return leftHung
	}
	a, err := w.ask(at, idle >= stuckFor)
	if err != nil {
		return ""
	}
	w.mu.Lock()
	moves := w.reached >= 0 && a.Fetcher != 0 && a.Reached > w.reached
	w.reached = -1
	if a.Fetcher != 0 {
		w.reached = a.Reached
	}
	w.mu.Unlock()
	switch {
	case !moves && idle < stuckFor:
		return ""
	case a.Granted || w.another(a, at):
		return leftSlow
	case a.Fetcher == w.from && a.Reached > at+ahead: // it gets on, and does not pass it on
		return leftHung
	}
	return ""
}

// ask asks the directory what else there is, and with fetch, whether this node is to fetch.
func (w *watch) ask(at int64, fetch bool) (directory.Answer, error) {
	ctx, cancel := context.WithTimeout(w.r.ctx, budget)
	defer cancel()
	s, joins := w.r.s, w.r.joins()
	return s.c.Directory.Lookup(ctx, directory.Want{
		Key: w.r.key, Scope: w.r.scope, Offset: at, Join: joins, Stay: true, Fetch: fetch && joins && s.c.Upstream != nil,
	})
}

// another reports whether another node has more of the content.
func (w *watch) another(a directory.Answer, at int64) bool {
	return slices.ContainsFunc(w.r.s.candidates(w.r.key, a.Sources, w.avoid), func(c candidate) bool {
		return c.ID != w.from && (c.Whole() || c.Offset > at+ahead)
	})
}

// interrupt ends the read under way.
func (w *watch) interrupt() { w.body.Close() }
