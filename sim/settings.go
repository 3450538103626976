package main

import "time"

const (
	mib  = 1 << 20
	mbit = 1e6 / 8 // bytes per second
)

// The model of the network.
const (
	leastLatency = 200 * time.Microsecond // one way
	mostLatency  = time.Millisecond
	overhead     = 28    // bytes of IPv4 and UDP headers, with each message
	loss         = 0.001 // of messages
)

// The model of membership: how long after it happened a node learns of it. A crash is found out once, and then spreads.
const (
	joinSpread  = time.Second
	leastSilent = 5 * time.Second // from a crash until the first node is sure
	mostSilent  = 11 * time.Second
	crashSpread = time.Second
)

// What nodes have and ask for.
const (
	digests    = 500  // of each node
	population = 50   // digests in all, for each node
	skew       = 1.1  // s of Zipf's law
	flatness   = 10.0 // v of it: the first ranks are about as popular as each other
	lookupRate = 0.2  // of each node, per second
	absentRate = 0.1  // of look-ups are for what nobody has
	churn      = 0.01 // of the nodes crash, and as many join, each minute
)

// settings are those of one size.
type settings struct {
	nodes    int
	warmUp   time.Duration // in which all announce what they have
	steady   time.Duration // in which is counted
	rollouts []rollout
}

// A rollout is one blob that every node wants.
type rollout struct {
	name    string
	spread  time.Duration // the nodes begin within it
	size    int64         // bytes
	wan     float64       // bytes per second, of the site
	lan     float64       // bytes per second, of each node up, and down
	crashes float64       // part of the nodes that crash meanwhile; if any, the first fetcher at half, too
}

func settingsOf(quick bool, only int) []settings {
	rollouts := []rollout{
		{name: "at once", size: 256 * mib, wan: 200 * mbit, lan: 1000 * mbit},
		{name: "at once, 1 % and the fetcher crash", size: 256 * mib, wan: 200 * mbit, lan: 1000 * mbit, crashes: 0.01},
		{name: "over 30 s, 1 % and the fetcher crash", spread: 30 * time.Second, size: 256 * mib, wan: 200 * mbit, lan: 1000 * mbit, crashes: 0.01},
		{name: "at once, a WAN as fast as the LAN", size: 256 * mib, wan: 10000 * mbit, lan: 1000 * mbit},
	}
	sizes := []int{100, 1000, 10000}
	if quick {
		sizes = []int{30}
	}
	if only > 0 {
		sizes = []int{only}
	}
	var all []settings
	for _, n := range sizes {
		// More nodes give as many figures in less time.
		s := settings{nodes: n, warmUp: 30 * time.Second, steady: min(60*time.Hour/time.Duration(n), 10*time.Minute), rollouts: rollouts}
		s.steady = max(s.steady, 30*time.Second)
		if quick {
			s.steady = time.Minute
		}
		all = append(all, s)
	}
	return all
}
