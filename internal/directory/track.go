package directory

import (
	"sync/atomic"
	"time"
)

// Reports of progress. A fetcher's come often, since its lease lives by them; those of receivers less often the more
// members there are, so that the coordinators of what everybody wants at once are told a few thousand times a second at most.
const (
	reportFetcher  = 250 * time.Millisecond
	reportReceiver = time.Second
	reportPer      = 500 * time.Microsecond // and member
	maxReport      = 5 * time.Second
)

type trackKey struct {
	key   Key
	scope Scope
}

// A Track tells the coordinators how far one transfer to this node has come.
type Track struct {
	d *Directory
	trackKey
	lost func(fetcher ID)

	offset atomic.Int64 // bytes there are

	// Guarded by d.mu.
	fetches bool
	from    ID     // whom it reads from; 0: nobody knows
	stop    func() // the next report
	ended   bool
}

// Track begins to report a transfer. Lost is called, perhaps more than once, when another node is found to fetch
// the same, and this one is to leave it to that. At most one Track of a key and scope is reported; a second one replaces the first.
func (d *Directory) Track(key Key, scope Scope, lost func(fetcher ID)) *Track {
	d.lock()
	defer d.unlock()
	t := &Track{d: d, trackKey: trackKey{key, scope}, lost: lost, stop: func() {}}
	if former := d.tracks[t.trackKey]; former != nil {
		former.stop()
		former.ended = true
	}
	d.tracks[t.trackKey] = t
	t.later()
	return t
}

// At notes how many bytes there are. The coordinators are told with the next report.
func (t *Track) At(offset int64) { t.offset.Store(offset) }

// Report notes how many bytes there are, and whether this node fetches them from the registry. The coordinators are told
// after a while, but at once that it began to fetch.
func (t *Track) Report(offset int64, fetches bool) {
	t.d.lock()
	defer t.d.unlock()
	began := fetches && !t.fetches
	t.offset.Store(offset)
	t.fetches = fetches
	if began && !t.ended {
		t.stop()
		t.report(0)
		t.later()
	}
}

// Reads notes whom this node reads from. The coordinators are told with the next report, so that they send nobody to who
// waits for that one itself.
func (t *Track) Reads(from ID) {
	t.d.lock()
	defer t.d.unlock()
	t.from = from
}

// End says that the transfer is over. Refused says that this node fetched, and the registry did not supply the content: then
// others may try at once. If this node has all of the content now, [Directory.Hold] is called first: the end then says so,
// and there is no moment at which neither a fetcher nor a holder is known.
func (t *Track) End(refused bool) {
	t.d.lock()
	defer t.d.unlock()
	if t.ended {
		return
	}
	t.ended = true
	t.stop()
	if t.d.tracks[t.trackKey] == t {
		delete(t.d.tracks, t.trackKey)
	}
	flags := byte(flagEnded)
	if refused {
		flags |= flagFailed
	} else if t.d.holding(t.key) != nil {
		flags |= flagWhole
	}
	t.report(flags)
}

func (t *Track) report(flags byte) {
	m := message{kind: kindProgress, from: t.d.self.ID, key: t.key, scope: t.scope, flags: flags, offset: t.offset.Load(), lease: t.from}
	if t.fetches {
		m.flags |= flagLease
		m.lease = 0
	}
	r := t.d.rank(t.key)
	for _, id := range r.members() {
		t.d.send(id, m)
	}
}

// later schedules the next report.
func (t *Track) later() {
	wait := reportFetcher
	if !t.fetches {
		wait = min(max(reportReceiver, time.Duration(len(t.d.members))*reportPer), maxReport)
	}
	t.stop = t.d.after(wait, func() {
		if !t.ended {
			t.report(0)
			t.later()
		}
	})
}

// conflicted takes the news that another node fetches what this one fetches, and has more of it.
func (d *Directory) conflicted(m message) {
	t := d.tracks[trackKey{m.key, m.scope}]
	if t == nil || !t.fetches || m.lease == d.self.ID || !yields(d.self.ID, t.offset.Load(), m.lease, m.reached) {
		return
	}
	if t.lost != nil {
		d.calls = append(d.calls, func() { t.lost(m.lease) })
	}
}
