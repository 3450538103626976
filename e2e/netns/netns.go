// Package netns lays out a site on one Linux machine, for tests and benchmarks: nodes in network namespaces of their own, on
// one LAN, and behind one link, the WAN, whatever is upstream. Links have rates, what crosses the WAN is counted, and both
// can be cut the way real ones are: without a word to either side. It needs root, ip and tc (iproute2) and nsenter
// (util-linux); nothing of a site is connected to the machine's own network. What runs on a site it leaves to others.
//
//	node 1  10.77.0.1    ─┐
//	node 2  10.77.0.2    ─┼─ switch, 10.77.0.254 ═══ WAN ═══ upstream, 10.78.0.1
//	node 3  10.77.0.3    ─┘
//
// The switch is also the nodes' default route, as in a small office. IPv6 is laid out alike: fd77::1, fd77::2, fd77::3,
// fd77::fe and fd78::1. Any number of sites can exist at once, in one process or in several, with the same addresses.
package netns

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// MaxNodes is how many nodes a site can have: one octet of an address, less the switch's.
const MaxNodes = 250

// A Config describes a site.
type Config struct {
	Nodes int  // 1 to MaxNodes
	WAN   Link // as the site sees it: Down is what all nodes together get from upstream
	LAN   Link // each node's own, as the node sees it
}

// A Site is a running site. Its methods may be called concurrently.
type Site struct {
	nodes    []*Place
	sw       *Place
	upstream *Place
	up, down port // of the WAN

	mu      sync.Mutex      // guards severed, and the filters of ports
	severed map[[2]int]bool // pairs of nodes, the smaller number first
}

// New lays out a site. The caller closes it. What killed runs have left of theirs is removed on the way.
func New(ctx context.Context, cfg Config) (*Site, error) {
	if cfg.Nodes < 1 || cfg.Nodes > MaxNodes {
		return nil, fmt.Errorf("a site of %d nodes: want 1 to %d", cfg.Nodes, MaxNodes)
	}
	if err := removeLeftovers(ctx); err != nil {
		return nil, err
	}
	self, err := startTime(os.Getpid())
	if err != nil {
		return nil, err
	}
	prefix := fmt.Sprintf("%s%d-%d-%d-", namePrefix, os.Getpid(), self, rand.Uint32())
	s := &Site{severed: map[[2]int]bool{}}
	s.sw = newPlace(prefix+"switch", 254)
	s.upstream = newPlace(prefix+"upstream", 1)
	s.upstream.addr4, s.upstream.addr6 = netip.MustParseAddr("10.78.0.1"), netip.MustParseAddr("fd78::1")
	for k := range cfg.Nodes {
		s.nodes = append(s.nodes, newPlace(fmt.Sprintf("%snode%d", prefix, k+1), k+1))
	}
	if err := s.build(ctx, cfg); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Nodes returns how many nodes the site has.
func (s *Site) Nodes() int { return len(s.nodes) }

// Node returns node k, counted from 1.
func (s *Site) Node(k int) *Place { return s.nodes[k-1] }

// Upstream returns the place beyond the WAN.
func (s *Site) Upstream() *Place { return s.upstream }

// Switch returns the place that all of the site's traffic passes. A packet socket on its interface br0 sees what the nodes
// broadcast and what goes through the WAN; on v1, v2, … everything of one node.
func (s *Site) Switch() *Place { return s.sw }

// build creates the namespaces and what is in them.
func (s *Site) build(ctx context.Context, cfg Config) error {
	for _, p := range s.places() {
		if err := p.create(ctx); err != nil {
			return err
		}
	}
	sw := []string{
		"link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0", // frames pass at once, multicast to all
		"addr add 10.77.0.254/24 dev br0", "addr add fd77::fe/64 dev br0 nodad", "link set br0 up",
		"link add wan0 type veth peer name eth0 netns " + s.upstream.name,
		"addr add 10.78.0.254/24 dev wan0", "addr add fd78::fe/64 dev wan0 nodad", "link set wan0 up",
	}
	for k := range s.nodes {
		sw = append(sw,
			fmt.Sprintf("link add v%d type veth peer name eth0 netns %s", k+1, s.nodes[k].name),
			fmt.Sprintf("link set v%d master br0 up", k+1))
	}
	if err := s.sw.ip(ctx, sw...); err != nil {
		return err
	}
	if err := s.sw.sysctl("net/ipv4/ip_forward", "1", "net/ipv6/conf/all/forwarding", "1"); err != nil {
		return err
	}
	for k, p := range s.nodes {
		if err := p.ip(ctx,
			fmt.Sprintf("link set eth0 address %s up multicast on", mac(k+1)),
			fmt.Sprintf("addr add %s/24 dev eth0", p.addr4), fmt.Sprintf("addr add %s/64 dev eth0 nodad", p.addr6),
			"route add default via 10.77.0.254", "route add ::/0 via fd77::fe",
			"route add 224.0.0.0/4 dev eth0",
		); err != nil {
			return err
		}
	}
	if err := s.upstream.ip(ctx, "link set eth0 up",
		"addr add 10.78.0.1/24 dev eth0", "addr add fd78::1/64 dev eth0 nodad",
		"route add default via 10.78.0.254", "route add ::/0 via fd78::fe",
	); err != nil {
		return err
	}
	s.up, s.down = port{s.sw, "wan0"}, port{s.upstream, "eth0"}
	for _, p := range []port{s.up, s.down} {
		if err := p.prepare(ctx); err != nil {
			return err
		}
	}
	if err := s.ShapeWAN(ctx, cfg.WAN); err != nil {
		return err
	}
	for k := range s.nodes {
		for _, p := range s.lanPorts(k + 1) {
			if err := p.prepare(ctx); err != nil {
				return err
			}
		}
		if cfg.LAN == (Link{}) {
			continue
		}
		if err := s.ShapeLAN(ctx, k+1, cfg.LAN); err != nil {
			return err
		}
	}
	return nil
}

func (s *Site) places() []*Place {
	return append([]*Place{s.sw, s.upstream}, s.nodes...)
}

// closeTimeout bounds Close, which must work after the context of New has ended.
const closeTimeout = 20 * time.Second

// Close ends every process that is left in the site and removes its namespaces, which breaks what connections there are.
func (s *Site) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	var names []string
	for _, p := range s.places() {
		names = append(names, p.name)
	}
	return remove(ctx, names)
}

// mac is the link address of node k. Filters know nodes by it.
func mac(k int) string { return fmt.Sprintf("02:77:00:00:00:%02x", k) }

// String lists the site's namespaces, for ip netns exec.
func (s *Site) String() string {
	var names []string
	for _, p := range s.places() {
		names = append(names, p.name)
	}
	return strings.Join(names, " ")
}
