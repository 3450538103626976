package member

import "time"

// pace says how often things happen. Where it differs from memberlist's defaults for a LAN, it says why; they are made for
// machines that have a core to spare.
type pace struct {
	gossip    time.Duration // between rounds of gossip. 500 ms, LAN 200 ms: news of who died or came may take two seconds
	probe     time.Duration // between probes, each of one member in turn. 2 s, LAN 1 s: half the wake-ups, and with
	timeout   time.Duration // this time for an answer, 1.5 s, LAN 0.5 s, a starved machine is not taken for a dead one
	sync      time.Duration // between exchanges of all that is known, with one member: 30 s as in a LAN, for news that got lost
	forget    time.Duration // a dead member is gossiped to for so long, to hear that it is not: 30 s as in a LAN
	exchange  time.Duration // for one connection of gossip. 3 s, LAN 10 s: strangers hold a connection no longer
	tick      time.Duration // between looks at what is due here: 1 s
	follow    time.Duration // between looks at this machine's addresses: 10 s
	resolve   time.Duration // between look-ups of Config.DNS: 10 s
	retry     time.Duration // until a failed join is tried again, doubling from 1 s
	retryMax  time.Duration // to 15 s where it was configured
	lostMax   time.Duration // and to 30 s where it is a member that was lost
	settled   time.Duration // until a node that was joined, and is no member under that address, is joined again: 1 min
	ask       time.Duration // an address that did not answer as gossip by then is asked as a door meanwhile: 300 ms
	window    time.Duration // see view.prune: 10 s
	debounce  time.Duration // from a change to Config.Change, which then knows of all of them: 50 ms
	warn      time.Duration // at most one warning of a kind in it: 10 min
	discovery time.Duration // until a search that failed begins anew: 30 s
}

// complete returns p with defaults where it has none.
func (p pace) complete() pace {
	for _, d := range []struct {
		value *time.Duration
		def   time.Duration
	}{
		{&p.gossip, 500 * time.Millisecond}, {&p.probe, 2 * time.Second}, {&p.timeout, 1500 * time.Millisecond},
		{&p.sync, 30 * time.Second}, {&p.forget, 30 * time.Second}, {&p.exchange, 3 * time.Second},
		{&p.tick, time.Second}, {&p.follow, 10 * time.Second}, {&p.resolve, 10 * time.Second},
		{&p.retry, time.Second}, {&p.retryMax, 15 * time.Second}, {&p.lostMax, 30 * time.Second},
		{&p.settled, time.Minute}, {&p.ask, 300 * time.Millisecond}, {&p.window, 10 * time.Second},
		{&p.debounce, 50 * time.Millisecond}, {&p.warn, 10 * time.Minute}, {&p.discovery, 30 * time.Second},
	} {
		if *d.value == 0 {
			*d.value = d.def
		}
	}
	return p
}
