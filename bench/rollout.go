package main

import (
	"context"
	"errors"
	"slices"
	"time"

	"pier/e2e/netns"
)

// A rollout is the suite of many nodes behind one narrow link that want the same image.
type rollout struct {
	*bench
	set   rolloutSettings
	site  *netns.Site
	image image
}

// rolloutSettings say how large a roll-out is, and how often it happens.
type rolloutSettings struct {
	nodes    int
	layers   []int64       // bytes of each
	wan, lan netns.Rate    // of the link that all share, and of each node's own in either direction
	spread   time.Duration // between the first node's start and the last one's, if they are staggered
	rounds   int           // repeats with peers
	alone    int           // repeats without, which take as long as the link needs for one image per node
	bare     int           // repeats of what the network can do
}

func rolloutSettingsOf(quick bool) rolloutSettings {
	const mib = 1 << 20
	s := rolloutSettings{
		nodes: 10, layers: []int64{64 * mib, 64 * mib, 64 * mib, 64 * mib}, wan: 100 * netns.Mbit, lan: 400 * netns.Mbit,
		spread: 30 * time.Second, rounds: 5, alone: 2, bare: 3,
	}
	if quick {
		s.nodes, s.layers, s.spread = 4, []int64{8 * mib, 8 * mib, 8 * mib, 8 * mib}, 3*time.Second
		s.rounds, s.alone, s.bare = 2, 1, 1
	}
	return s
}

func rolloutSuite() suite {
	return suite{
		name: "rollout", title: "Roll-out", command: "make bench-rollout", takes: "twenty-three minutes", timeout: 30 * time.Minute,
		parts: []string{"bare", "rollout"}, measure: measureRollout,
		reading: `- Every node is a network namespace. Token buckets of the kernel shape the link that all nodes share with upstream (the WAN) and
  each node's own link to the switch, in either direction; they count frames, headers included. The rates are such that two
  processors can carry them for all nodes: the first table says what they do with bare servers in place of nodes.
- F is the image as the links carry it: manifest, config and layers in full frames, 1,514 bytes for 1,448 of content. N nodes
  cannot all have it before F/WAN, nor before F/LAN, nor before N·F ÷ (WAN + N·LAN), the sum of all that can send: **the
  bound** is the largest of them. A node that starts later than the first cannot have it before F/LAN after its own start, nor
  before F/WAN after the first's: that is its **own bound**.
- WAN bytes are what the token bucket counted on the way from upstream to the site, less 66 bytes of headers per packet:
  everything else is in, also what is asked about tags, and what is sent again.
- On each node a bare client pulls through the node's own door: the manifest by tag, then config and layers at once, and checks
  every digest. It is done when the last byte is checked.
- Nodes are new each time, with an empty cache directory, which is in memory where the machine has /dev/shm: ten nodes would
  have ten disks. Those with peers have met before the first client starts.
- "Alone" are the same nodes without peers, with fewer repeats: each gets its own copy through the WAN.
`,
	}
}

func measureRollout(ctx context.Context, b *bench) (err error) {
	r := &rollout{bench: b, set: rolloutSettingsOf(b.quick)}
	if r.site, err = netns.New(ctx, netns.Config{
		Nodes: r.set.nodes, WAN: netns.Link{Up: r.set.wan, Down: r.set.wan}, LAN: netns.Link{Up: r.set.lan, Down: r.set.lan},
	}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.site.Close()) }()
	if err := r.startUpstream(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.upstream.stop()) }()
	return b.measure(ctx, []part{{"bare", r.bare}, {"rollout", r.all}})
}

// A way is one of the ways to roll out, and what came of it.
type way struct {
	name      string
	peers     bool
	staggered bool
	rounds    int
	runs      []outcome
}

// all rolls the image out in all ways.
func (r *rollout) all(ctx context.Context) error {
	if err := r.build(ctx); err != nil {
		return err
	}
	ways := []*way{
		{name: "all at once", peers: true, rounds: r.set.rounds},
		{name: "staggered", peers: true, staggered: true, rounds: r.set.rounds},
		{name: "every node alone, all at once", rounds: r.set.alone},
		{name: "every node alone, staggered", staggered: true, rounds: r.set.alone},
	}
	for i := range r.set.rounds {
		var steps []func() error
		for _, w := range ways {
			if i >= w.rounds {
				continue
			}
			steps = append(steps, func() error {
				r.say("roll-out, %s, %d of %d", w.name, i+1, w.rounds)
				one, err := r.roll(ctx, w)
				w.runs = append(w.runs, one)
				return err
			})
		}
		if err := inTurn(i, steps...); err != nil {
			return err
		}
	}
	r.reportAll(ways)
	return nil
}

// starts are when each node begins, after the first.
func (r *rollout) starts(staggered bool) []time.Duration {
	starts := make([]time.Duration, r.set.nodes)
	for k := range starts {
		if staggered && r.set.nodes > 1 {
			starts[k] = r.set.spread * time.Duration(k) / time.Duration(r.set.nodes-1)
		}
	}
	return starts
}

// On Ethernet with an MTU of 1500 a full TCP segment with timestamps has 1,448 bytes of content in a frame of 1,514.
const (
	segment = 1448
	frame   = 1514
)

// carry is how long a link needs for n images.
func (r *rollout) carry(n int, rate netns.Rate) time.Duration {
	bytes := float64(n) * float64(r.image.size) * frame / segment
	return time.Duration(bytes / float64(rate.BytesPerSecond()) * float64(time.Second))
}

// bound is when the last of all nodes can have the image at the earliest, if they start at once.
func (r *rollout) bound() time.Duration {
	n := r.set.nodes
	return max(r.carry(1, r.set.wan), r.carry(1, r.set.lan), r.carry(n, r.set.wan+netns.Rate(n)*r.set.lan))
}

// patience bounds a roll-out: twice what the WAN needs for a copy per node.
func (r *rollout) patience() time.Duration {
	return r.set.spread + 2*r.carry(r.set.nodes, r.set.wan)
}

// own is how long a node that starts so long after the first needs at least.
func (r *rollout) own(start time.Duration) time.Duration {
	return max(r.carry(1, r.set.lan), r.carry(1, r.set.wan)-start)
}

func (r *rollout) reportAll(ways []*way) {
	t := &r.report
	layers := len(r.image.layers)
	t.section("%d nodes, an image of %d MB in %d layers, WAN %d Mbit/s, LAN %d Mbit/s each way; the bound is %.2f s",
		r.set.nodes, r.image.size/mb, layers, r.set.wan/netns.Mbit, r.set.lan/netns.Mbit, r.bound().Seconds())
	for _, w := range ways {
		starts := r.starts(w.staggered)
		figures := func(f func(outcome) float64) series { return collect(w.runs, f) }
		wan := figures(func(o outcome) float64 { return float64(o.wan.Payload()) / float64(r.image.size) })
		last := figures(func(o outcome) float64 { return slices.Max(o.took).Seconds() / r.bound().Seconds() })
		own := figures(func(o outcome) float64 {
			return o.took[r.set.nodes-1].Seconds() / r.own(starts[r.set.nodes-1]).Seconds()
		})
		name := w.name + ": "
		switch {
		case !w.peers:
			t.note(name+"WAN bytes, to the image", wan.text(ratio))
			t.note(name+"slowest node, to the bound", last.text(ratio))
		case w.staggered:
			t.check(name+"WAN bytes, to the image", ratio, atMost(1.03), wan)
			t.check(name+"last node, to its own bound", ratio, atMost(1.15), own)
			t.note(name+"slowest node, to the bound", last.text(ratio))
		default:
			t.check(name+"WAN bytes, to the image", ratio, atMost(1.03), wan)
			t.check(name+"last node, to the bound", ratio, atMost(1.15), last)
		}
		t.note(name+"slowest node, from its own start", figures(func(o outcome) float64 { return slices.Max(o.took).Seconds() }).text(seconds))
		t.note(name+"fastest node, from its own start", figures(func(o outcome) float64 { return slices.Min(o.took).Seconds() }).text(seconds))
		t.note(name+"CPU time of all nodes per GB they delivered", figures(func(o outcome) float64 {
			return o.cpu.Seconds() / (float64(r.set.nodes) * float64(r.image.size) / 1e9)
		}).text(seconds))
		t.note(name+"processors busy, clients and upstream included", figures(func(o outcome) float64 { return o.busy * 100 }).text(percent))
		t.note(name+"resident memory of the largest node, at most", figures(func(o outcome) float64 { return o.peak / mb }).text(megabytes))
	}
	r.reportOthers()
}

// reportOthers says of other programs that share among nodes why they are not beside these.
func (r *rollout) reportOthers() {
	for _, name := range []string{"spegel"} {
		why := "not on the PATH"
		if _, err := program(name); err == nil {
			why = "it serves what a containerd on its node has pulled, and there is none on these nodes"
		}
		r.report.note(name, "not measured: "+why)
	}
}
