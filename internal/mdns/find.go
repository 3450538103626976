package mdns

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	maxPeers = 2048                // instances remembered; over it, any other is forgotten for a new one
	maxAddrs = 16                  // of an instance, and of a link: more do not fit into a packet
	maxTold  = maxPeers * maxAddrs // addresses told within a pause; more, of peers that came and were forgotten, wait for the next
)

// A peer is an instance of the service, as far as it was heard of. One of them is this node.
type peer struct {
	name    string // of the instance, as it was written
	target  string // its host, canonical; "" before its SRV record
	port    uint16
	txt     bool                     // its TXT record was heard,
	ours    bool                     // and names our cluster
	addrs   map[netip.Addr]time.Time // when each was heard
	expires time.Time
	asked   time.Time // when it was asked for what is missing
}

// missing returns what to ask for before the peer can be reported.
func (p *peer) missing() []dns.Question {
	ask := func(name string, kind uint16) dns.Question {
		return dns.Question{Name: name, Qtype: kind, Qclass: dns.ClassINET}
	}
	switch {
	case p.target == "" || !p.txt:
		return []dns.Question{ask(p.name, dns.TypeSRV), ask(p.name, dns.TypeTXT)}
	case p.ours && len(p.addrs) == 0:
		return []dns.Question{ask(p.target, dns.TypeA), ask(p.target, dns.TypeAAAA)}
	}
	return nil
}

// heard takes what a node, this one included, says on l.
func (n *node) heard(now time.Time, l *link, m *dns.Msg) {
	concerned := make(map[*peer]bool)
	hosts := make(map[string][]netip.Addr)
	for _, rr := range slices.Concat(m.Answer, m.Extra) {
		host := dns.CanonicalName(rr.Header().Name)
		switch rr := rr.(type) {
		case *dns.A:
			hosts[host] = appendAddr(hosts[host], rr.A, l)
		case *dns.AAAA:
			hosts[host] = appendAddr(hosts[host], rr.AAAA, l)
		default:
			if p := n.note(now, rr); p != nil {
				concerned[p] = true
			}
		}
	}
	for _, p := range n.peers {
		if addrs := hosts[p.target]; len(addrs) > 0 {
			p.locate(now, addrs)
			concerned[p] = true
		}
	}
	ask := &dns.Msg{Compress: true}
	for p := range concerned {
		n.report(now, p)
		if qs := p.missing(); qs != nil && now.Sub(p.asked) > gap {
			p.asked = now
			appendQuestions(ask, qs)
		}
	}
	if len(ask.Question) > 0 {
		n.transmit(l, netip.AddrPort{}, ask)
	}
}

// note takes what one record says of an instance, and returns which; nil if it is of none, or of one that is leaving.
func (n *node) note(now time.Time, rr dns.RR) *peer {
	name, ttl := rr.Header().Name, time.Duration(rr.Header().Ttl)*time.Second
	ptr, pointed := rr.(*dns.PTR)
	if pointed && strings.EqualFold(name, service) {
		name = ptr.Ptr
		if ttl == 0 {
			delete(n.peers, dns.CanonicalName(name))
		}
	}
	key := dns.CanonicalName(name)
	if ttl == 0 || !strings.HasSuffix(key, "."+service) {
		return nil
	}
	p := n.peers[key]
	if p == nil {
		for victim := range n.peers {
			if len(n.peers) >= maxPeers {
				delete(n.peers, victim)
			}
			break
		}
		p = &peer{name: name, addrs: make(map[netip.Addr]time.Time), expires: now.Add(hostTTL * time.Second)}
		n.peers[key] = p
	}
	switch rr := rr.(type) {
	case *dns.PTR:
		p.expires = now.Add(min(ttl, serviceTTL*time.Second))
	case *dns.SRV:
		if target := dns.CanonicalName(rr.Target); p.target != target {
			p.target = target
			clear(p.addrs)
		}
		p.port = rr.Port
	case *dns.TXT:
		p.txt, p.ours = true, slices.Contains(rr.Txt, n.txt[0])
	}
	return p
}

// locate takes addresses of the peer's host: all of their families that are in use now (RFC 6762, section 10.2).
func (p *peer) locate(now time.Time, addrs []netip.Addr) {
	for _, a := range addrs {
		maps.DeleteFunc(p.addrs, func(old netip.Addr, heard time.Time) bool {
			return old.Is4() == a.Is4() && now.Sub(heard) > time.Second
		})
		if len(p.addrs) < maxAddrs {
			p.addrs[a] = now
		}
	}
}

// report tells of a peer, if it is a node of our cluster and not this one.
func (n *node) report(now time.Time, p *peer) {
	if p.target == n.host || !p.ours || p.port == 0 {
		return
	}
	for a := range p.addrs {
		addr := netip.AddrPortFrom(a, p.port)
		if at, ok := n.told[addr]; ok && now.Sub(at) >= repeat || !ok && len(n.told) < maxTold {
			n.told[addr] = now
			n.Found(addr)
		}
	}
}

// reportAll tells of all peers, and forgets those of whom nobody has spoken for as long as they asked to be remembered.
func (n *node) reportAll(now time.Time) {
	maps.DeleteFunc(n.told, func(_ netip.AddrPort, at time.Time) bool { return now.Sub(at) >= repeat })
	maps.DeleteFunc(n.peers, func(_ string, p *peer) bool { return !now.Before(p.expires) })
	for _, p := range n.peers {
		n.report(now, p)
	}
}

// knowsAll reports whether all instances in records are known.
func (n *node) knowsAll(records []dns.RR) bool {
	return !slices.ContainsFunc(records, func(rr dns.RR) bool {
		ptr, ok := rr.(*dns.PTR)
		return ok && n.peers[dns.CanonicalName(ptr.Ptr)] == nil && !strings.EqualFold(ptr.Ptr, n.instance)
	})
}

// appendAddr appends an address heard on l to addrs, unless it is of another link, or nobody could connect to it.
func appendAddr(addrs []netip.Addr, ip []byte, l *link) []netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	a = a.Unmap()
	switch {
	case !l.has(a) || !a.IsGlobalUnicast() && !a.IsLinkLocalUnicast():
		return addrs
	case a.Is6() && a.IsLinkLocalUnicast():
		a = a.WithZone(l.name)
	}
	return append(addrs, a)
}
