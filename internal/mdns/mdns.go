// Package mdns makes this node known on the links it is connected to, and finds the others there: multicast DNS
// (RFC 6762) and service discovery over it (RFC 6763), as much as a node needs. Joining whom it finds is left to others.
//
// Every packet it sends tells all about this node, so that whoever hears one needs no second. It claims no name that
// another could hold, and so does not probe: the name of its service is the caller's to keep unique, and that of its host
// is random.
package mdns

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Config says what Run announces. Instance, Port and Found are needed.
type Config struct {
	Instance string // what people see when they browse; unique on the link, as the advertised address is; cut to 63 bytes
	Port     uint16 // of gossip
	Cluster  string // nodes of others are ignored; at most 200 bytes
	Log      *slog.Logger

	// Found is called for each address of each node found, and again as long as the node is known, but not within 10
	// seconds for the same address. It is called by one goroutine, and must not wait. An IPv6 link-local address has the
	// interface as its zone.
	Found func(addr netip.AddrPort)
}

// Run announces and browses until ctx ends, and then says goodbye. Interfaces and addresses may come and go meanwhile; with
// no network, or no permission, it keeps trying. The error is about c: Run returns nil when ctx ends.
func Run(ctx context.Context, c Config) error {
	n, err := newNode(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &wire{log: n.Log, packets: make(chan packet, 16), sockets: make(map[place]*socket)}
	n.send = w.send
	changed := make(chan struct{}, 1)

	var wg sync.WaitGroup
	defer wg.Wait() // the last to be run
	defer w.close()
	defer cancel()
	wg.Go(func() { watch(ctx, n.Log, changed) })

	var looked time.Time // when interfaces were looked at,
	look := time.Now()   // and when they are next
	due := time.NewTimer(0)
	defer due.Stop()
	for {
		select {
		case <-ctx.Done():
			n.goodbye()
			return nil
		case p := <-w.packets:
			if p.err != nil {
				n.Log.DebugContext(ctx, "mdns socket failed; it is opened again", "err", p.err)
				w.drop(p.socket)
				look = earliest(look, time.Now().Add(gap))
				break
			}
			n.receive(time.Now(), p.socket.index, p.from, p.msg)
		case <-changed:
			// Changes come in bursts, and reading all addresses costs: on a node with many containers, most of it.
			look = earliest(look, latest(time.Now().Add(settle), looked.Add(gap)))
		case <-due.C:
		}
		if now := time.Now(); !now.Before(look) {
			n.follow(now, w.links(ctx))
			looked, look = now, now.Add(relook)
		}
		due.Reset(time.Until(earliest(look, n.tick(time.Now()))))
	}
}

const (
	settle = 250 * time.Millisecond // from a change of an interface until it is looked at
	relook = 60 * time.Second       // changes that were not told are found after this

	repeat   = 10 * time.Second       // Found is not called within this for the same address
	gap      = time.Second            // between two answers, or two questions after the same (RFC 6762, sections 5.2 and 6)
	greet    = 3                      // queries and announcements on a new link: at once, after one second, and after two more
	pause    = 60 * time.Second       // between queries from then on, and
	spread   = 10 * time.Second       // as much longer, so that one node of a link asks and the others hear it
	minDelay = 20 * time.Millisecond  // before an answer or a first query, so that
	maxDelay = 120 * time.Millisecond // not all nodes send at once
)

// A node is what Run knows. It does nothing by itself, and belongs to one goroutine.
type node struct {
	Config
	names
	send  func(l *link, to netip.AddrPort, message []byte) error // to the group if to is zero
	links map[int]*link                                          // by index of interface
	peers map[string]*peer                                       // by name of instance, canonical
	told  map[netip.AddrPort]time.Time                           // when Found was called; see maxTold
	tell  time.Time                                              // when it is next, for all peers
}

// A link is an interface in use.
type link struct {
	index int
	name  string
	addrs []netip.Addr   // sorted
	nets  []netip.Prefix // of addrs, in their order

	round  int       // greetings sent since it came or changed
	query  time.Time // when the next is due
	answer time.Time // when the records are due; zero: nobody waits for them
	sent   time.Time // when they were sent last
	failed bool      // the last packet could not be sent, as while an IPv6 address is still being tried out
}

// has reports whether an address is one of the link: of a neighbour, not of somebody that a record merely names.
func (l *link) has(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return a.IsLinkLocalUnicast() || slices.ContainsFunc(l.nets, func(p netip.Prefix) bool { return p.Contains(a) })
}

func newNode(c Config) (*node, error) {
	if c.Instance == "" || c.Port == 0 || c.Found == nil {
		return nil, errors.New("mdns: Instance, Port and Found must be set")
	}
	if len(c.Cluster) > 200 {
		return nil, errors.New("mdns: the name of the cluster is longer than 200 bytes: give it a shorter one")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	names, err := newNames(c.Instance, c.Cluster)
	return &node{
		Config: c, names: names, links: make(map[int]*link), peers: make(map[string]*peer),
		told: make(map[netip.AddrPort]time.Time),
	}, err
}

// follow takes found as the links there are now. Those that are new or different are greeted.
func (n *node) follow(now time.Time, found []link) {
	old := n.links
	n.links = make(map[int]*link)
	for _, l := range found {
		if o := old[l.index]; o != nil && slices.Equal(o.addrs, l.addrs) && slices.Equal(o.nets, l.nets) {
			if o.failed {
				o.round, o.query = min(o.round, greet-1), earliest(o.query, now.Add(jitter()))
			}
			n.links[l.index] = o
			continue
		}
		n.Log.Debug("mdns on an interface", "interface", l.name, "addresses", l.addrs)
		l.query = now.Add(jitter())
		n.links[l.index] = &l
	}
}

// tick sends what is due, and returns when there is more to do.
func (n *node) tick(now time.Time) time.Time {
	if !now.Before(n.tell) {
		n.reportAll(now)
		n.tell = now.Add(pause)
	}
	next := n.tell
	for _, l := range n.links {
		if !now.Before(l.query) {
			l.query = later(now)
			if l.round < greet {
				l.answer = now
				l.query = now.Add(gap<<l.round + jitter())
				l.round++
			}
			n.transmit(l, netip.AddrPort{}, n.query(now))
		}
		if !l.answer.IsZero() && !now.Before(l.answer) {
			n.announce(l, false)
			l.answer, l.sent = time.Time{}, now
		}
		next = earliest(next, l.query)
		if !l.answer.IsZero() {
			next = earliest(next, l.answer)
		}
	}
	return next
}

// receive takes a packet of another node, or one of our own, which come back.
func (n *node) receive(now time.Time, index int, from netip.AddrPort, m *dns.Msg) {
	l := n.links[index]
	// Who is not on the link can have sent it through a router only (RFC 6762, section 11).
	if l == nil || !l.has(from.Addr()) || m.Opcode != dns.OpcodeQuery || m.Rcode != dns.RcodeSuccess {
		return
	}
	if m.Response {
		n.heard(now, l, m)
		return
	}
	if from.Port() != port {
		n.answerOnce(l, from, m)
		return
	}
	if l.answer.IsZero() && wants(m, n.records(l)) {
		l.answer = latest(now.Add(jitter()), l.sent.Add(gap))
	}
	// Who asks what we would ask next asks for us: all hear the answers. On a link with a thousand nodes one query a
	// minute is enough. A node that is not known here may be missing from the answers, since the other knows it.
	if l.round >= greet && asksForService(m) && n.knowsAll(m.Answer) {
		l.query = later(now)
	}
}

// goodbye tells all links that this node is gone.
func (n *node) goodbye() {
	for _, l := range n.links {
		n.announce(l, true)
	}
}

// later returns when to ask the next time after the greetings.
func later(now time.Time) time.Time { return now.Add(pause + rand.N(spread)) }

// jitter returns how long to wait before sending what many nodes may send at the same time.
func jitter() time.Duration { return minDelay + rand.N(maxDelay-minDelay) }

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
