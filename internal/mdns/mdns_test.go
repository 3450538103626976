package mdns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// A simulation is nodes on one link, with a clock that nobody waits for.
type simulation struct {
	t     *testing.T
	now   time.Time
	nodes []*simulated
	sent  []sent
}

type simulated struct {
	*node
	addrs []netip.Addr
	found []netip.AddrPort
	gone  bool
}

type sent struct {
	from *simulated
	to   netip.AddrPort
	msg  dns.Msg
}

func lan() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} }

func simulate(t *testing.T) *simulation {
	return &simulation{t: t, now: time.Unix(0, 0)}
}

// add connects a node. Number k has 10.0.0.k and fe80::k, and gossips on port k.
func (s *simulation) add(cluster string) *simulated {
	s.t.Helper()
	k := len(s.nodes) + 1
	sn := &simulated{addrs: []netip.Addr{
		netip.AddrFrom4([4]byte{10, 0, byte(k >> 8), byte(k)}), netip.MustParseAddr(fmt.Sprintf("fe80::%x", k)),
	}}
	var err error
	sn.node, err = newNode(Config{
		Instance: fmt.Sprintf("node %d.", k), Port: uint16(k), Cluster: cluster,
		Found: func(a netip.AddrPort) { sn.found = append(sn.found, a) },
	})
	if err != nil {
		s.t.Fatal(err)
	}
	sn.send = func(_ *link, to netip.AddrPort, b []byte) error {
		if len(b) > maxMessage+100 {
			s.t.Errorf("a message of %d bytes", len(b))
		}
		m := sent{from: sn, to: to}
		if err := m.msg.Unpack(b); err != nil {
			s.t.Fatal(err)
		}
		s.sent = append(s.sent, m)
		return nil
	}
	sn.follow(s.now, []link{{index: 1, name: "lan", addrs: sn.addrs, nets: lan()}})
	s.nodes = append(s.nodes, sn)
	return sn
}

// leave disconnects a node.
func (s *simulation) leave(sn *simulated, goodbye bool) {
	if goodbye {
		sn.goodbye()
		s.deliver(0)
	}
	sn.gone = true
}

// run lets time pass, and returns the messages sent meanwhile.
func (s *simulation) run(d time.Duration) []sent {
	first := len(s.sent)
	for end := s.now.Add(d); s.now.Before(end); {
		next := end
		for _, sn := range s.nodes {
			if !sn.gone {
				before := len(s.sent)
				next = earliest(next, sn.tick(s.now))
				if s.deliver(before) {
					next = s.now
				}
			}
		}
		s.now = next
	}
	return s.sent[first:]
}

// deliver hands messages to all nodes, as multicast does, and reports whether there were any.
func (s *simulation) deliver(from int) bool {
	for i := from; i < len(s.sent); i++ {
		if s.sent[i].to.IsValid() {
			continue
		}
		for _, sn := range s.nodes {
			if !sn.gone {
				sn.receive(s.now, 1, netip.AddrPortFrom(s.sent[i].from.addrs[0], port), &s.sent[i].msg)
			}
		}
	}
	return len(s.sent) > from
}

func (sn *simulated) knows(t *testing.T, other *simulated, want bool) {
	t.Helper()
	for _, a := range []string{netip.AddrPortFrom(other.addrs[0], other.Port).String(), netip.AddrPortFrom(other.addrs[1].WithZone("lan"), other.Port).String()} {
		if got := slices.Contains(sn.found, netip.MustParseAddrPort(a)); got != want {
			t.Errorf("node %d has found %s: %v, want %v; it has found %v", sn.Port, a, got, want, sn.found)
		}
	}
}

func TestFind(t *testing.T) {
	s := simulate(t)
	a, b, stranger := s.add("site"), s.add("site"), s.add("neighbour")
	s.run(500 * time.Millisecond)
	a.knows(t, b, true)
	b.knows(t, a, true)
	s.run(time.Hour)
	late := s.add("site")
	s.run(1500 * time.Millisecond) // an answer is given once a second
	late.knows(t, a, true)
	late.knows(t, b, true)
	a.knows(t, late, true)
	b.knows(t, late, true)
	for _, sn := range []*simulated{a, b, late} {
		sn.knows(t, sn, false)
		sn.knows(t, stranger, false)
		stranger.knows(t, sn, false)
	}
}

// What is known is told again and again, so that a node which could not be joined at first is joined later.
func TestFoundAgain(t *testing.T) {
	s := simulate(t)
	a, b := s.add("site"), s.add("site")
	s.run(9 * time.Second)
	if len(a.found) != 2 {
		t.Errorf("found %v within 9 seconds, want each address once", a.found)
	}
	a.found = nil
	s.run(2 * time.Minute)
	a.knows(t, b, true)
	s.leave(b, false)
	s.run((serviceTTL + 60) * time.Second)
	a.found = nil
	s.run(time.Hour)
	a.knows(t, b, false)
	if a.peers[dns.CanonicalName(b.instance)] != nil {
		t.Error("the peer is remembered")
	}
}

func TestGoodbye(t *testing.T) {
	s := simulate(t)
	a, b := s.add("site"), s.add("site")
	s.run(time.Minute)
	s.leave(b, true)
	a.found = nil
	s.run(time.Hour)
	a.knows(t, b, false)
}

func TestChangedAddress(t *testing.T) {
	s := simulate(t)
	a, b := s.add("site"), s.add("site")
	s.run(time.Minute)
	a.found = nil
	old := netip.AddrPortFrom(b.addrs[0], b.Port)
	b.addrs = []netip.Addr{netip.MustParseAddr("10.0.9.9"), b.addrs[1]}
	b.follow(s.now, []link{{index: 1, name: "lan", addrs: b.addrs, nets: lan()}})
	s.run(time.Second)
	if want := netip.AddrPortFrom(b.addrs[0], b.Port); !slices.Contains(a.found, want) {
		t.Errorf("found %v, want %s", a.found, want)
	}
	a.found = nil
	s.run(3 * time.Minute)
	a.knows(t, b, true)
	if slices.Contains(a.found, old) {
		t.Errorf("the old address %s is still told: %v", old, a.found)
	}
}

// A packet that could not be sent, as while an IPv6 address is tried out, is sent when the address is there.
func TestSendFails(t *testing.T) {
	s := simulate(t)
	a := s.add("site")
	s.run(time.Hour)
	b := s.add("site")
	send := b.send
	b.send = func(*link, netip.AddrPort, []byte) error { return context.DeadlineExceeded }
	s.run(8 * time.Second)
	b.send = send
	b.follow(s.now, []link{{index: 1, name: "lan", addrs: b.addrs, nets: lan()}})
	s.run(time.Second)
	a.knows(t, b, true)
}

// A link with many nodes is nearly silent: one of them asks for all, and who is known does not answer.
func TestManyAreQuiet(t *testing.T) {
	s := simulate(t)
	const n = 30
	for range n {
		s.add("site")
	}
	s.run(10 * time.Second)
	for _, sn := range s.nodes {
		if len(sn.peers) != n {
			t.Fatalf("node %d knows %d of %d nodes", sn.Port, len(sn.peers), n)
		}
	}
	s.run(3 * time.Minute)
	s.leave(s.nodes[n-1], false)
	queries, answers := 0, 0
	for _, m := range s.run(10 * time.Minute) {
		if m.msg.Response {
			answers++
		} else {
			queries++
		}
	}
	// Also those tell and forget for whom others always ask.
	for _, sn := range s.nodes[:n-1] {
		sn.found = nil
	}
	s.run(80 * time.Minute)
	for _, sn := range s.nodes[:n-1] {
		sn.knows(t, s.nodes[(int(sn.Port))%(n-1)], true)
		if sn.peers[dns.CanonicalName(s.nodes[n-1].instance)] != nil {
			t.Errorf("node %d remembers one that has gone", sn.Port)
		}
	}
	t.Logf("%d nodes in 10 minutes: %d queries, %d answers", n, queries, answers)
	if queries > 12 || answers > n*queries {
		t.Errorf("got %d queries and %d answers in 10 minutes", queries, answers)
	}
}

func TestOneIsQuiet(t *testing.T) {
	s := simulate(t)
	s.add("site")
	s.run(time.Minute)
	if got := s.run(10 * time.Minute); len(got) > 10 || slices.ContainsFunc(got, func(m sent) bool { return m.msg.Response }) {
		t.Errorf("%d messages in 10 minutes, want one query a minute", len(got))
	}
}

// Resolvers that take part in nothing ask from another port, and want an answer for themselves alone.
func TestLegacyQuery(t *testing.T) {
	s := simulate(t)
	a := s.add("site")
	s.run(time.Minute)
	from := netip.MustParseAddrPort("10.0.0.9:40000")
	for name, want := range map[string]bool{"_PIER._tcp.local.": true, "_other._tcp.local.": false} {
		s.sent = nil
		q := new(dns.Msg)
		q.SetQuestion(name, dns.TypePTR)
		a.receive(s.now, 1, from, q)
		if !want {
			if len(s.sent) > 0 {
				t.Errorf("%s: got an answer", name)
			}
			continue
		}
		if len(s.sent) != 1 || s.sent[0].to != from {
			t.Fatalf("%s: got %v, want one answer to %s", name, s.sent, from)
		}
		m := s.sent[0].msg
		if m.Id != q.Id || len(m.Question) != 1 || len(m.Answer) < 6 {
			t.Errorf("got %v", m)
		}
		for _, rr := range m.Answer {
			if rr.Header().Class != dns.ClassINET || rr.Header().Ttl > legacyTTL {
				t.Errorf("the record %v is not one for such resolvers", rr)
			}
		}
	}
}

func TestKnownAnswer(t *testing.T) {
	s := simulate(t)
	a := s.add("site")
	s.run(time.Minute)
	ask := func(ttl uint32, kind uint16) int {
		s.run(5 * time.Second)
		q := &dns.Msg{Question: []dns.Question{{Name: service, Qtype: kind, Qclass: dns.ClassINET}}}
		q.Answer = []dns.RR{&dns.PTR{Hdr: header(service, dns.TypePTR, ttl), Ptr: strings.ToUpper(a.instance)}}
		a.receive(s.now, 1, netip.MustParseAddrPort("10.0.0.9:5353"), q)
		return len(slices.DeleteFunc(s.run(time.Second), func(m sent) bool { return !m.msg.Response }))
	}
	if got := ask(serviceTTL, dns.TypePTR); got != 0 {
		t.Errorf("who knows this node gets %d answers", got)
	}
	if got := ask(serviceTTL/2-1, dns.TypePTR); got != 1 {
		t.Errorf("who will soon forget this node gets %d answers, want 1", got)
	}
	if got := ask(0, dns.TypeANY); got != 1 {
		t.Errorf("who asks for anything gets %d answers, want 1", got)
	}
}

// Other responders tell in pieces: what is missing is asked for.
func TestPieces(t *testing.T) {
	s := simulate(t)
	a := s.add("site")
	s.run(time.Minute)
	const instance, host = `by\ avahi._pier._tcp.local.`, "Machine.local."
	say := func(rrs ...dns.RR) []string {
		s.sent = nil
		a.receive(s.now, 1, netip.MustParseAddrPort("10.0.0.9:5353"), &dns.Msg{MsgHdr: dns.MsgHdr{Response: true}, Answer: rrs})
		s.now = s.now.Add(2 * time.Second)
		var asked []string
		for _, m := range s.sent {
			for _, q := range m.msg.Question {
				asked = append(asked, map[uint16]string{dns.TypeA: "A", dns.TypeAAAA: "AAAA", dns.TypeSRV: "SRV", dns.TypeTXT: "TXT"}[q.Qtype]+" "+q.Name)
			}
		}
		return asked
	}
	if got := say(&dns.PTR{Hdr: header(service, dns.TypePTR, 4500), Ptr: instance}); !slices.Equal(got, []string{"SRV " + instance, "TXT " + instance}) {
		t.Errorf("after the name alone: asks for %q", got)
	}
	got := say(&dns.SRV{Hdr: header(instance, dns.TypeSRV, 120), Port: 7999, Target: host},
		&dns.TXT{Hdr: header(instance, dns.TypeTXT, 120), Txt: []string{"x", "cluster=site"}})
	if !slices.Equal(got, []string{"A machine.local.", "AAAA machine.local."}) {
		t.Errorf("after its host: asks for %q", got)
	}
	got = say(&dns.A{Hdr: header(host, dns.TypeA, 120), A: []byte{10, 0, 0, 9}}, &dns.A{Hdr: header("other.local.", dns.TypeA, 120), A: []byte{10, 0, 0, 8}},
		&dns.A{Hdr: header(host, dns.TypeA, 120), A: []byte{127, 0, 0, 1}})
	if want := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.9:7999")}; got != nil || !slices.Equal(a.found, want) {
		t.Errorf("after its address: asks for %q and has found %v, want %v", got, a.found, want)
	}
}

// Two machines made from one image may have one name. They are told apart by their hosts.
func TestSameInstance(t *testing.T) {
	s := simulate(t)
	a, b := s.add("site"), s.add("site")
	b.instance = a.instance
	s.run(2 * time.Second)
	a.knows(t, b, true)
	b.knows(t, a, true)
}

func TestConfig(t *testing.T) {
	found := func(netip.AddrPort) {}
	for name, c := range map[string]Config{
		"no instance":  {Port: 1, Found: found},
		"no port":      {Instance: "a", Found: found},
		"no Found":     {Instance: "a", Port: 1},
		"long cluster": {Instance: "a", Port: 1, Found: found, Cluster: strings.Repeat("x", 201)},
	} {
		if err := Run(t.Context(), c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for _, instance := range []string{strings.Repeat("ä", 100), "[fe80::1%eth0]:7946", `a\.b"`, "\x00\xff", "a."} {
		n, err := newNode(Config{Instance: instance, Port: 1, Found: found, Cluster: `a"\;b=` + strings.Repeat("ö", 90)})
		if err != nil {
			t.Errorf("instance %q: %v", instance, err)
			continue
		}
		if _, ok := dns.IsDomainName(n.instance); !ok {
			t.Errorf("instance %q: name %q", instance, n.instance)
		}
	}
}

// Anybody on the link can send anything.
func FuzzReceive(f *testing.F) {
	s := simulate(&testing.T{})
	a, b := s.add("site"), s.add("site")
	s.run(2 * time.Second)
	for _, m := range s.sent[:8] {
		packed, err := m.msg.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packed)
	}
	a.goodbye()
	f.Fuzz(func(t *testing.T, packet []byte) {
		m := new(dns.Msg)
		if m.Unpack(packet) != nil {
			return
		}
		s := simulate(t)
		c := s.add("site")
		for _, known := range b.peers {
			copied := *known
			c.peers[known.name] = &copied
		}
		for _, from := range []string{"10.0.0.9:5353", "[fe80::1%lan]:9"} {
			c.receive(s.now, 1, netip.MustParseAddrPort(from), m)
		}
		s.run(time.Minute)
		if len(c.peers) > maxPeers || len(s.sent) > 100 {
			t.Errorf("%d peers, %d messages", len(c.peers), len(s.sent))
		}
	})
}

func TestBounded(t *testing.T) {
	s := simulate(t)
	a := s.add("site")
	s.run(time.Second)
	from := netip.MustParseAddrPort("10.0.0.9:5353")
	for i := range maxPeers + 500 {
		name := fmt.Sprintf("n%d.%s", i, service)
		m := &dns.Msg{MsgHdr: dns.MsgHdr{Response: true}, Answer: []dns.RR{
			&dns.PTR{Hdr: header(service, dns.TypePTR, 1<<31), Ptr: name},
			&dns.SRV{Hdr: header(name, dns.TypeSRV, 120), Port: 9, Target: name},
			&dns.TXT{Hdr: header(name, dns.TypeTXT, 120), Txt: []string{"cluster=site"}},
		}}
		for j := range 40 {
			m.Answer = append(m.Answer, &dns.A{Hdr: header(name, dns.TypeA, 120), A: []byte{10, 1, byte(i), byte(j)}})
		}
		a.receive(s.now, 1, from, m)
	}
	if len(a.peers) > maxPeers {
		t.Errorf("%d peers remembered, want at most %d", len(a.peers), maxPeers)
	}
	for _, p := range a.peers {
		if len(p.addrs) > maxAddrs {
			t.Errorf("%d addresses of one node remembered, want at most %d", len(p.addrs), maxAddrs)
		}
	}
	s.run(3 * time.Minute) // the queries, with as many known answers as fit
}

// Every record was another address to be told, and remembered for a minute: a gigabyte of them.
func TestToldWithoutEnd(t *testing.T) {
	s := simulate(t)
	a := s.add("site")
	from := netip.MustParseAddrPort("10.0.0.9:5353")
	for i := range maxTold/maxAddrs + 500 {
		name := fmt.Sprintf("n%d.%s", i, service)
		m := &dns.Msg{MsgHdr: dns.MsgHdr{Response: true}, Answer: []dns.RR{
			&dns.SRV{Hdr: header(name, dns.TypeSRV, 120), Port: 9, Target: name},
			&dns.TXT{Hdr: header(name, dns.TypeTXT, 120), Txt: []string{"cluster=site"}},
		}}
		for j := range maxAddrs {
			m.Answer = append(m.Answer, &dns.A{Hdr: header(name, dns.TypeA, 120), A: []byte{10, byte(i >> 8), byte(i), byte(j)}})
		}
		a.receive(s.now, 1, from, m)
	}
	if len(a.told) != maxTold || len(a.found) != maxTold {
		t.Errorf("%d addresses remembered, %d told, want %d", len(a.told), len(a.found), maxTold)
	}
	b := s.add("site")
	s.run(2 * pause)
	if at := netip.AddrPortFrom(b.addrs[0], b.Port); !slices.Contains(a.found, at) {
		t.Errorf("%s is not found after that", at)
	}
}

// One packet had all nodes of a link connect to any address in the world.
func TestAddressesOfOtherLinks(t *testing.T) {
	s := simulate(t)
	a := s.add("site")
	name := "n." + service
	m := &dns.Msg{MsgHdr: dns.MsgHdr{Response: true}, Answer: []dns.RR{
		&dns.SRV{Hdr: header(name, dns.TypeSRV, 120), Port: 25, Target: name},
		&dns.TXT{Hdr: header(name, dns.TypeTXT, 120), Txt: []string{"cluster=site"}},
		&dns.A{Hdr: header(name, dns.TypeA, 120), A: []byte{8, 8, 8, 8}},
		&dns.AAAA{Hdr: header(name, dns.TypeAAAA, 120), AAAA: netip.MustParseAddr("2001:db8::1").AsSlice()},
		&dns.A{Hdr: header(name, dns.TypeA, 120), A: []byte{10, 0, 0, 9}},
	}}
	a.receive(s.now, 1, netip.MustParseAddrPort("8.8.8.8:5353"), m)
	if len(a.peers) > 0 {
		t.Error("a packet from beyond the link is taken")
	}
	a.receive(s.now, 1, netip.MustParseAddrPort("10.0.0.9:5353"), m)
	if want := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.9:25")}; !slices.Equal(a.found, want) {
		t.Errorf("found %v, want %v", a.found, want)
	}
}
