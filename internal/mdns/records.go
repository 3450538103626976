package mdns

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/miekg/dns"
)

const (
	service = "_pier._tcp.local."
	catalog = "_services._dns-sd._udp.local." // of services, for browsers that ask what there is (RFC 6763, section 9)

	// Seconds that others may remember us for (RFC 6762, section 10): what depends on the address, and the rest.
	hostTTL, serviceTTL = 120, 4500
	legacyTTL           = 10 // to resolvers that ask once (section 6.7)

	// cacheFlush in the class of a record says that there are no others; in that of a question, that one prefers an answer
	// to itself alone.
	cacheFlush = 1 << 15

	maxMessage = 1200 // bytes, so that it fits any packet of IPv6
	maxLabel   = 63   // bytes between two dots of a name
)

// names are what this node is called, in the form in which they are parsed from packets.
type names struct {
	instance, host string
	txt            []string // "cluster=NAME" and "v=1"
}

func newNames(instance, cluster string) (names, error) {
	for len(instance) > maxLabel {
		_, size := utf8.DecodeLastRuneInString(instance)
		instance = instance[:len(instance)-size]
	}
	// The host of this machine has a name already, which is that of another program. Ours is for this process.
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	host := "pier-" + hex.EncodeToString(id[:]) + ".local."

	var m dns.Msg
	m.Answer = []dns.RR{
		&dns.SRV{Hdr: header(escape(instance)+"."+service, dns.TypeSRV, hostTTL), Target: host},
		&dns.TXT{Hdr: header(service, dns.TypeTXT, hostTTL), Txt: []string{escape("cluster=" + cluster), "v=1"}},
	}
	packed, err := m.Pack()
	if err == nil {
		err = m.Unpack(packed)
	}
	if err != nil {
		return names{}, fmt.Errorf("mdns: instance %q of cluster %q: %w", instance, cluster, err)
	}
	return names{m.Answer[0].Header().Name, host, m.Answer[1].(*dns.TXT).Txt}, nil
}

// escape returns s in the notation of zone files, in which a dot is no end of a label.
func escape(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '-' || c == '=' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, `\%03d`, c)
		}
	}
	return b.String()
}

func header(name string, kind uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl}
}

// records returns all that there is to say of this node on l.
func (n *node) records(l *link) []dns.RR {
	rrs := []dns.RR{
		&dns.PTR{Hdr: header(catalog, dns.TypePTR, serviceTTL), Ptr: service},
		&dns.PTR{Hdr: header(service, dns.TypePTR, serviceTTL), Ptr: n.instance},
		&dns.SRV{Hdr: header(n.instance, dns.TypeSRV, hostTTL), Port: n.Port, Target: n.host},
		&dns.TXT{Hdr: header(n.instance, dns.TypeTXT, serviceTTL), Txt: n.txt},
	}
	for _, a := range l.addrs {
		if a.Is4() {
			rrs = append(rrs, &dns.A{Hdr: header(n.host, dns.TypeA, hostTTL), A: a.AsSlice()})
		} else {
			rrs = append(rrs, &dns.AAAA{Hdr: header(n.host, dns.TypeAAAA, hostTTL), AAAA: a.AsSlice()})
		}
	}
	return rrs
}

// announce sends the records to all on l, or says that they are void.
func (n *node) announce(l *link, void bool) {
	rrs := n.records(l)
	for _, rr := range rrs {
		if rr.Header().Rrtype != dns.TypePTR { // others point to their services under the same name
			rr.Header().Class |= cacheFlush
		}
		if void {
			rr.Header().Ttl = 0
		}
	}
	if void {
		rrs = rrs[1:] // other nodes are still such a service
	}
	n.transmit(l, netip.AddrPort{}, &dns.Msg{MsgHdr: dns.MsgHdr{Response: true, Authoritative: true}, Answer: rrs})
}

// answerOnce answers a resolver that takes part in nothing: it asks from a port of its own, and once.
func (n *node) answerOnce(l *link, from netip.AddrPort, q *dns.Msg) {
	rrs := n.records(l)
	if !wants(q, rrs) {
		return
	}
	for _, rr := range rrs {
		rr.Header().Ttl = legacyTTL
	}
	n.transmit(l, from, &dns.Msg{
		MsgHdr: dns.MsgHdr{Id: q.Id, Response: true, Authoritative: true}, Question: q.Question[:1], Answer: rrs,
	})
}

// query asks who is there, and for what is missing of those who are known in part. Those listed as answers need not
// answer: also this node, which hears what it sends.
func (n *node) query(now time.Time) *dns.Msg {
	m := &dns.Msg{
		Compress: true,
		Question: []dns.Question{{Name: service, Qtype: dns.TypePTR, Qclass: dns.ClassINET}},
		Answer:   []dns.RR{&dns.PTR{Hdr: header(service, dns.TypePTR, serviceTTL), Ptr: n.instance}},
	}
	for _, p := range n.peers {
		appendQuestions(m, p.missing())
	}
	size := m.Len()
	for _, p := range n.peers {
		// Who has less than half of its time left is to answer (RFC 6762, section 7.1).
		left := p.expires.Sub(now)
		rr := &dns.PTR{Hdr: header(service, dns.TypePTR, uint32(left/time.Second)), Ptr: p.name}
		if left < serviceTTL*time.Second/2 || p.target == n.host || p.missing() != nil {
			continue
		}
		if size += dns.Len(rr); size > maxMessage {
			break
		}
		m.Answer = append(m.Answer, rr)
	}
	return m
}

// appendQuestions adds qs to m if they fit.
func appendQuestions(m *dns.Msg, qs []dns.Question) {
	before := m.Question
	if m.Question = append(m.Question, qs...); m.Len() > maxMessage {
		m.Question = before
	}
}

// transmit sends m on l: to one, or to all if to is zero.
func (n *node) transmit(l *link, to netip.AddrPort, m *dns.Msg) {
	m.Compress = true
	b, err := m.Pack()
	if err == nil {
		err = n.send(l, to, b)
	}
	if l.failed = err != nil; l.failed {
		n.Log.Debug("mdns packet not sent", "interface", l.name, "err", err)
	}
}

// wants reports whether q asks for one of rrs and does not know it. What fits a packet of honest questions is looked at:
// each costs a comparison with all that is known.
func wants(q *dns.Msg, rrs []dns.RR) bool {
	return slices.ContainsFunc(q.Question[:min(len(q.Question), 32)], func(question dns.Question) bool {
		return slices.ContainsFunc(rrs, func(rr dns.RR) bool {
			h := rr.Header()
			return (question.Qtype == h.Rrtype || question.Qtype == dns.TypeANY) && strings.EqualFold(question.Name, h.Name) &&
				!slices.ContainsFunc(q.Answer, func(known dns.RR) bool {
					return dns.IsDuplicate(known, rr) && known.Header().Ttl >= h.Ttl/2
				})
		})
	})
}

func asksForService(q *dns.Msg) bool {
	return slices.ContainsFunc(q.Question, func(q dns.Question) bool {
		return q.Qtype == dns.TypePTR && strings.EqualFold(q.Name, service)
	})
}
