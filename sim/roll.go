package main

import (
	"errors"
	"slices"
	"time"

	"pier/internal/directory"
)

// step is how often bytes move.
const step = 20 * time.Millisecond

// A rolling is a roll-out under way.
type rolling struct {
	rollout
	key     directory.Key
	begun   time.Duration
	pulls   []*pull
	wanted  float64 // bytes that came from the registry
	fetches int     // how often a node went to the registry
	halfway bool    // the first fetcher crashed

	peak int64 // messages of one node in one second
}

// An outcome is what came of a roll-out.
type outcome struct {
	rollout
	copies   float64       // of the blob that came from the registry
	fetches  int           // how often a node went to the registry
	last     time.Duration // until the last node had it
	half     time.Duration // until half of the nodes had it
	bound    time.Duration // before which the last cannot have it
	readers  int           // of one source at once, at most
	messages int64         // of the busiest node, sent and received
	peak     int64         // of a node in the busiest second
}

var errEndless = errors.New("not over after ten minutes")

// roll has all nodes pull one blob.
func (w *world) roll(conf rollout) (outcome, error) {
	r := &rolling{rollout: conf, key: w.content.key(-1 - w.rand.Int64N(1<<62)), begun: w.now}
	before := make(map[*node]int64)
	for _, n := range w.live {
		n.before = n.both()
		before[n] = n.before.messages
		n.pull = &pull{node: n, roll: r}
		r.pulls = append(r.pulls, n.pull)
		begin := time.Duration(0)
		if conf.spread > 0 {
			begin = time.Duration(w.rand.Int64N(int64(conf.spread)))
		}
		w.after(begin, n.pull.find)
	}
	bound := r.bound(len(r.pulls))
	for range int(conf.crashes * float64(len(r.pulls))) {
		w.after(time.Duration(w.rand.Int64N(int64(bound))), func() { w.fail(w.some()) })
	}
	for i := 1; !r.over(); i++ {
		if w.now-r.begun > 10*time.Minute {
			return outcome{}, errEndless
		}
		w.run(w.now + step)
		w.move(r)
		if i%int(time.Second/step) == 0 {
			r.second(w)
		}
	}
	r.second(w)
	o := r.outcome()
	o.bound = bound
	for _, n := range w.live {
		o.messages = max(o.messages, n.both().messages-before[n])
		n.pull = nil
	}
	w.run(w.now + 10*time.Second)
	return o, nil
}

// second notes how many messages the busiest node had since it was called last.
func (r *rolling) second(w *world) {
	for _, n := range w.live {
		now := n.both()
		r.peak = max(r.peak, now.messages-n.before.messages)
		n.before = now
	}
}

// bound is the time before which the last of n nodes cannot have the blob: it comes over the WAN once, over the link of each
// node once, and over all links up as often as there are nodes; and who begins last does so at the end of the spread.
func (r *rolling) bound(n int) time.Duration {
	size := float64(r.size)
	seconds := max(size/r.wan, size/r.lan, float64(n)*size/(float64(n)*r.lan), r.spread.Seconds()+size/r.lan)
	return time.Duration(seconds * float64(time.Second))
}

func (r *rolling) over() bool {
	return !slices.ContainsFunc(r.pulls, func(p *pull) bool { return p.index >= 0 && p.done == 0 })
}

// move moves the bytes of one step: a link is shared evenly by those who can take more.
func (w *world) move(r *rolling) {
	fetchers := 0
	for _, p := range r.pulls {
		p.hungry = 0
		if p.fetches && p.index >= 0 && p.lost != 0 && !slices.Contains(p.failed, p.lost) {
			p.lost, p.fetches = 0, false
			p.track.Report(p.have, false)
			p.find()
		}
		if p.fetches && p.index >= 0 && w.now >= p.fetching {
			fetchers++
		}
	}
	for _, p := range r.pulls {
		if p.source != nil && p.index >= 0 && p.source.have > p.have {
			p.source.hungry++
		}
	}
	seconds := step.Seconds()
	for _, p := range r.pulls {
		if p.index < 0 || p.done > 0 {
			continue
		}
		most := int64(r.lan * seconds)
		switch {
		case p.fetches && w.now >= p.fetching:
			most = min(most, int64(r.wan*seconds)/int64(fetchers), r.size-p.have)
			r.wanted += float64(most)
			p.open = true
			p.take(most)
			w.halfway(r, p)
		case p.source == nil:
		case p.source.index < 0 || p.source.have <= p.have:
			if w.now-p.moved > hung && w.now-p.looked > lookEvery {
				p.look()
			}
		default:
			p.take(min(most, int64(r.lan*seconds)/int64(max(p.source.hungry, 1)), p.source.have-p.have))
		}
	}
}

func (p *pull) take(n int64) {
	p.have += n
	p.moved = p.world.now
	if p.have == p.roll.size {
		p.finish()
		return
	}
	p.report()
}

// halfway crashes the first fetcher when it has half.
func (w *world) halfway(r *rolling, p *pull) {
	if r.crashes > 0 && !r.halfway && p.have > r.size/2 {
		r.halfway = true
		w.fail(p.node)
	}
}

func (r *rolling) outcome() outcome {
	o := outcome{rollout: r.rollout, copies: r.wanted / float64(r.size), fetches: r.fetches, peak: r.peak}
	var times []time.Duration
	for _, p := range r.pulls {
		o.readers = max(o.readers, p.readMax)
		if p.done > 0 {
			times = append(times, p.done-r.begun)
		}
	}
	slices.Sort(times)
	o.last, o.half = times[len(times)-1], times[len(times)/2]
	return o
}
