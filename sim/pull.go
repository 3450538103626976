package main

import (
	"slices"
	"time"

	"pier/internal/directory"
)

// How a node pulls, as package peer does it: with its constants, but one source at a time.
const (
	firstPause = 20 * time.Millisecond  // until what nobody gives yet is asked for again, and then twice as long
	maxPause   = 250 * time.Millisecond // at most
	keepPlace  = 400 * time.Millisecond // for so long only the first source is tried
	hedge      = 200 * time.Millisecond // how long one that does not answer is waited for before the next
	doorWait   = 500 * time.Millisecond // how long a door waits for the first byte of what it is asked for
	budget     = 900 * time.Millisecond // and all of them
	hung       = 600 * time.Millisecond // without a byte it is asked whether a source is there
	patience   = 2 * time.Second        // and whether others have more, if it is
	probe      = 60 * time.Millisecond  // to find that it does not answer any more
	lookEvery  = 200 * time.Millisecond
	askEvery   = time.Second
	busyWait   = 5 * time.Second
	maxWait    = 15 * time.Second
	ahead      = mib // how much more another has to have to be worth a change
	uploads    = 16  // a source serves at once

	reportEvery  = 100 * time.Millisecond
	wanFirstByte = 150 * time.Millisecond // of the registry
)

// A pull is one node's part in a roll-out.
type pull struct {
	*node
	roll  *rolling
	track *directory.Track

	have     int64
	source   *pull // whom it reads from, or nil
	open     bool  // its size is known: it can be read from
	fetches  bool
	fetching time.Duration // from when the registry gives bytes
	readers  int           // of it
	hungry   int           // of those, that could take more now
	moved    time.Duration // when the last byte came
	looked   time.Duration
	told     time.Duration

	begun     time.Duration // to find a source
	pause     time.Duration
	failed    []directory.ID // did not deliver: the directory is told
	avoided   []directory.ID // others are better
	consulted time.Duration  // when it asked for a better one
	lost      directory.ID   // who fetches the same
	readMax   int            // readers at once
	done      time.Duration
}

// find looks for the best source at the offset reached.
func (p *pull) find() {
	p.leave()
	p.begun, p.pause = p.world.now, firstPause
	p.ask()
}

func (p *pull) leave() {
	if p.source != nil {
		p.source.readers--
		p.source = nil
	}
}

func (p *pull) want() directory.Want {
	return directory.Want{Key: p.roll.key, Offset: p.have, Join: true, Fetch: true, Failed: p.failed}
}

func (p *pull) ask() {
	if p.index < 0 {
		return
	}
	p.Ask(p.want(), func(a directory.Answer) {
		if p.index < 0 {
			return
		}
		if p.track == nil {
			p.track = p.Track(p.roll.key, 0, func(fetcher directory.ID) { p.lost = fetcher })
			p.track.Report(p.have, false)
		}
		list := p.candidates(a)
		if len(list) > 0 && !list[0].Whole() && p.world.now-p.begun < keepPlace {
			list = list[:1]
		}
		p.try(a, list, 0, false)
	})
}

func (p *pull) candidates(a directory.Answer) (list []directory.Source) {
	for _, s := range a.Sources {
		if !slices.Contains(p.failed, s.ID) && !slices.Contains(p.avoided, s.ID) {
			list = append(list, s)
		}
	}
	return list
}

// try opens the first of a list that answers.
func (p *pull) try(a directory.Answer, list []directory.Source, waited time.Duration, busy bool) {
	w := p.world
	if p.index < 0 {
		return
	}
	if len(list) == 0 || waited >= budget {
		p.none(a, busy)
		return
	}
	s := list[0]
	wait := 2 * w.latency()
	if w.nodes[s.ID] == nil { // nothing answers
		wait = hedge
		if len(list) == 1 {
			wait = budget - waited
		}
	}
	w.after(wait, func() {
		o := w.nodes[s.ID]
		switch {
		case o == nil:
			p.failed = append(p.failed, s.ID)
		case o.pull != nil && !o.pull.open && o.pull.track != nil && waited < doorWait:
			p.try(a, list, waited+wait, busy)
			return
		case o.pull == nil || !o.pull.open:
			if s.Whole() || s.Offset > p.have {
				p.failed = append(p.failed, s.ID)
			}
		case o.pull.readers >= uploads:
			busy = true
		default:
			p.read(o.pull)
			return
		}
		p.try(a, list[1:], waited+wait, busy)
	})
}

func (p *pull) read(o *pull) {
	p.source, p.open, p.fetches = o, true, false
	p.moved, p.looked = p.world.now, p.world.now
	p.track.Reads(o.self.ID)
	o.readers++
	o.readMax = max(o.readMax, o.readers)
}

// none goes to the registry if it is this node's turn, or asks again.
func (p *pull) none(a directory.Answer, busy bool) {
	w := p.world
	waited := w.now - p.begun
	if busy && waited < busyWait || !a.Granted && !a.Alone && waited <= maxWait {
		w.after(p.pause, p.ask)
		p.pause = min(2*p.pause, maxPause)
		return
	}
	p.fetches, p.fetching = true, w.now+wanFirstByte
	p.roll.fetches++
	p.track.Report(p.have, true)
}

// look judges a source that gives nothing: it may be gone, or wait for the registry as everybody does.
func (p *pull) look() {
	w, source := p.world, p.source
	p.looked = w.now
	if w.nodes[source.self.ID] == nil {
		w.after(probe, func() {
			if p.index >= 0 && p.source == source {
				p.failed = append(p.failed, source.self.ID)
				p.find()
			}
		})
		return
	}
	if w.now-p.moved < patience || w.now-p.consulted < askEvery {
		return
	}
	p.consulted = w.now
	want := p.want()
	want.Failed = nil
	p.Ask(want, func(a directory.Answer) {
		better := a.Granted || a.Fetcher == source.self.ID && a.Reached > p.have+ahead
		for _, s := range p.candidates(a) {
			better = better || s.ID != source.self.ID && (s.Whole() || s.Offset > p.have+ahead)
		}
		if better && p.index >= 0 && p.source == source && w.now-p.moved >= patience {
			p.avoided = append(p.avoided, source.self.ID)
			p.find()
		}
	})
}

// report tells the directory how far the pull is.
func (p *pull) report() {
	if p.track != nil && p.world.now-p.told >= reportEvery {
		p.told = p.world.now
		p.track.Report(p.have, p.fetches)
	}
}

// finish says that this node holds the content now.
func (p *pull) finish() {
	p.done = p.world.now
	p.leave()
	p.fetches = false
	p.Hold([]directory.Key{p.roll.key}, nil)
	p.track.End(false)
}
