// Package member knows which nodes there are. It gossips with the others over hashicorp/memberlist, is led to them by
// what it was told (addresses, a file, a name in the DNS, a search on the link), stays with them through crashes,
// partitions and new addresses, and carries short messages between them.
//
// What the messages say, and what the nodes do for each other, is left to those who use it.
package member

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/hashicorp/memberlist"
)

// MaxMessage is the bytes of the largest message: with gossip's own framing, label and encryption it fits a packet of
// 1,400 bytes, which hardly any link cuts in two.
const MaxMessage = 1200

// Errors of [Group.Send].
var (
	ErrUnknown  = errors.New("no such member")
	ErrTooLarge = errors.New("message too large")
)

// A Member is a node of the cluster.
type Member struct {
	Name    string     // advertised host:port of its gossip, unique in the cluster
	Addr    netip.Addr // the host of Name
	Gossip  uint16     // the port of Name
	Peer    uint16     // port of its peer door; 0: none
	TLS     bool       // its peer door speaks TLS
	Zone    string     // where it stands, as its operator named it; may be empty, as may Host and Version
	Host    string     // its host name
	Version string     // of the program it runs
}

func (m Member) gossipAddr() netip.AddrPort { return netip.AddrPortFrom(m.Addr, m.Gossip) }

// Door returns host:port of the peer door, or "" if there is none.
func (m Member) Door() string {
	if m.Peer == 0 || !m.Addr.IsValid() {
		return ""
	}
	return netip.AddrPortFrom(m.Addr, m.Peer).String()
}

// Config configures a [Group]. Its zero value works.
type Config struct {
	Listen    string // host:port of the gossip, TCP and UDP; "": ":7946". Port 0: any that is free
	Advertise string // host or host:port others reach this node at; "": Listen's host, or the address of the default route's interface, else the first private one, else any global one
	Cluster   string // nodes of another name are strangers; at most 128 bytes
	Self      Member // Peer, TLS, Zone, Host and Version of this node; Name, Addr and Gossip are filled in

	Peers     []string // HOST[:PORT] of any door of nodes to join through
	PeersFile string   // the like, one a line, # begins a comment; read by New and Reload; "": none
	DNS       string   // a name whose A and AAAA or SRV records are nodes to join through, resolved again and again; "": none

	// Discover calls found with the gossip addresses of nodes it sees, until ctx ends. It runs as long as the group does,
	// and anew when this node gets another address. Nil: nothing is searched.
	Discover func(ctx context.Context, self Member, found func(netip.AddrPort)) error
	// Keys returns the AES keys of the gossip (16, 24 or 32 bytes each): the first is used, all are accepted, and nothing
	// unencrypted is. Nil or empty: gossip is not encrypted.
	Keys func() [][]byte
	// TLS is for doors that want a certificate; nil: none is shown.
	TLS *tls.Config
	// HTTP asks the door at hostport for the port of its node's gossip. Nil: GET /api/v1/node over HTTP, then HTTPS, where
	// without TLS the certificate is not looked at: the answer is a hint, of which only the port counts.
	HTTP func(ctx context.Context, hostport string) (gossipPort uint16, err error)

	Message func(msg []byte)                     // a message of another member arrived; msg is the callee's. One call at a time; beyond 1,024 that wait, messages are lost
	Change  func(others []Member)                // the other members, or Self, changed; others is sorted by Name, and the callee's. One call at a time
	RTT     func(name string, rtt time.Duration) // of a probe of that member; must not block

	Log     *slog.Logger // nil: none
	Metrics *metrics.Set // nil: a set of its own

	pace     pace             // zero fields: as in production
	machine  func() addresses // nil: this machine's
	resolver *net.Resolver    // nil: this machine's
}

// A Group is this node among the others.
type Group struct {
	c         Config
	log       *slog.Logger
	listen    listenAddress
	advertise advertiseAddress
	process   string // 48 random bits in hexadecimal digits: tells this process from others that had its address
	ring      *memberlist.Keyring
	view      *view
	targets   *targets
	meter     *instruments
	strange   throttle      // of warnings about neighbours that cannot be understood
	nameless  throttle      // of warnings about Config.DNS
	absent    throttle      // of warnings about Config.Listen
	inbox     chan []byte   // messages that wait for Config.Message
	changed   chan struct{} // one element: members or Self changed
	kick      chan struct{} // one element: targets are to be looked at
	tries     chan struct{} // an element for every try that runs
	reloading sync.Mutex    // guards the order of reloads: the last to begin is the last to take effect
	moved     chan struct{} // one element: Self changed, for Config.Discover

	mu     sync.Mutex // guards all below
	self   Member
	socket *socket   // nil until the address of Listen is there
	chosen choice    // the address advertised, if it was chosen
	here   addresses // of this machine, when last looked
	faults []string  // bad lines of the peers file

	list       atomic.Pointer[memberlist.Memberlist] // nil until there is an address to advertise
	generation atomic.Uint64                         // of list
}

const (
	maxCluster = 128  // bytes
	maxInbox   = 1024 // messages, 1.2 MB
	maxTries   = 4    // at once
)

// New returns a group that listens but has not joined anybody. Run does, and also ends the listening: it must be called.
// An address in use is an error, one that this machine does not have yet is waited for.
func New(c Config) (*Group, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = metrics.NewSet()
	}
	if c.HTTP == nil {
		c.HTTP = asker{c.TLS}.ask
	}
	if c.machine == nil {
		c.machine = machine
	}
	if c.resolver == nil {
		c.resolver = net.DefaultResolver
	}
	if len(c.Cluster) > maxCluster {
		return nil, fmt.Errorf("cluster name of %d bytes: use at most %d", len(c.Cluster), maxCluster)
	}
	c.pace = c.pace.complete()
	g := &Group{
		c: c, log: c.Log, process: newProcess(), ring: &memberlist.Keyring{}, self: clipped(c.Self),
		strange: throttle{every: c.pace.warn}, nameless: throttle{every: c.pace.warn}, absent: throttle{every: c.pace.warn},
		inbox: make(chan []byte, maxInbox), changed: make(chan struct{}, 1), kick: make(chan struct{}, 1), moved: make(chan struct{}, 1),
		tries: make(chan struct{}, maxTries), here: c.machine(),
	}
	g.targets = newTargets(c.pace)
	g.meter = newInstruments(c.Metrics, func() float64 { return float64(g.view.count()) })
	g.view = newView(c.pace.window, g.meter, g.notify)
	if err := g.configure(); err != nil {
		return nil, err
	}
	if err := g.bind(); err != nil {
		return nil, err
	}
	g.locate(context.Background())
	return g, nil
}

// configure reads what can be wrong in the configuration, and the files it names.
func (g *Group) configure() error {
	var errs []error
	var err error
	if g.listen, err = parseListen(g.c.Listen); err != nil {
		errs = append(errs, err)
	}
	if g.advertise, err = parseAdvertise(g.c.Advertise); err != nil {
		errs = append(errs, err)
	}
	var peers []place
	for _, s := range g.c.Peers {
		p, err := parsePlace(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("peers: %w", err))
			continue
		}
		peers = append(peers, p)
	}
	g.targets.list(configured, peers)
	return errors.Join(append(errs, g.Reload())...)
}

// newProcess returns [Group.process].
func newProcess() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// Self returns this node as others see it. Its Name is empty as long as there is no address it could be reached at, and
// another when that changes.
func (g *Group) Self() Member {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.self
}

// Members returns the other members, sorted by Name. The slice is the caller's.
func (g *Group) Members() []Member {
	return g.view.list(g.targets.excludes)
}

// Send sends msg to the member of that name. It arrives or not: a nil error means only that it was sent. The error wraps
// [ErrUnknown] or [ErrTooLarge], or is the network's.
func (g *Group) Send(name string, msg []byte) error {
	if len(msg) > MaxMessage {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(msg), MaxMessage)
	}
	m, ok := g.view.get(name)
	list := g.list.Load()
	if !ok || list == nil || g.targets.excludes(m) {
		return fmt.Errorf("%s: %w", name, ErrUnknown)
	}
	return send(list, m, frameMessage, msg)
}

// notify has Config.Change called.
func (g *Group) notify() { signal(g.changed) }

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default: // one is waiting already
	}
}
