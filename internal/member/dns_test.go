package member

import (
	"context"
	"log/slog"
	"net"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// A zone is a name server for pier.example and its services, and for node.example, whose records change.
type zone struct {
	mu   sync.Mutex // guards all below
	a    []net.IP
	srv  []dnsmessage.SRVResource
	fail bool
}

func (z *zone) set(a []net.IP, srv []dnsmessage.SRVResource, fail bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.a, z.srv, z.fail = a, srv, fail
}

// resolver returns a resolver that asks z.
func (z *zone) resolver(t *testing.T) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { conn.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if answer := z.answer(buf[:n]); answer != nil {
				_, _ = conn.WriteTo(answer, from)
			}
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

func (z *zone) answer(query []byte) []byte {
	z.mu.Lock()
	defer z.mu.Unlock()
	var msg dnsmessage.Message
	if msg.Unpack(query) != nil || len(msg.Questions) != 1 {
		return nil
	}
	q := msg.Questions[0]
	header := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 1}
	msg.Response, msg.Authoritative, msg.Additionals = true, true, nil
	if z.fail {
		msg.RCode = dnsmessage.RCodeServerFailure
	}
	switch {
	case z.fail:
	case q.Type == dnsmessage.TypeA && q.Name.String() == "node.example.":
		msg.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}}}
	case q.Type == dnsmessage.TypeA:
		for _, ip := range z.a {
			msg.Answers = append(msg.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: [4]byte(ip.To4())}})
		}
	case q.Type == dnsmessage.TypeSRV:
		for _, srv := range z.srv {
			msg.Answers = append(msg.Answers, dnsmessage.Resource{Header: header, Body: &srv})
		}
	}
	answer, err := msg.Pack()
	if err != nil {
		return nil
	}
	return answer
}

// The addresses of a name are looked up again and again, and their port is this node's own.
func TestDNSAddresses(t *testing.T) {
	var z zone
	z.set(nil, nil, true)
	a := start(t, Config{Listen: "127.0.78.1:7950"})
	b := start(t, Config{Listen: "127.0.78.2:7950", DNS: "pier.example.", resolver: z.resolver(t)})
	eventually(t, func() string {
		if b.log.count(slog.LevelWarn, "name of the nodes cannot be looked up") == 0 {
			return "no word of a name that cannot be looked up"
		}
		return ""
	})
	z.set([]net.IP{net.IPv4(127, 0, 78, 1), net.IPv4(127, 0, 78, 2)}, nil, false)
	a.sees(t, b)
	b.sees(t, a)

	// What is no more in the DNS stays a member: it may be the DNS that is sick.
	z.set(nil, nil, true)
	c := start(t, Config{Listen: "127.0.78.3:7950"})
	z.set([]net.IP{net.IPv4(127, 0, 78, 3)}, nil, false)
	b.sees(t, a, c)
}

// Services say at which port they are, be it the gossip's or another door's.
func TestDNSServices(t *testing.T) {
	for _, name := range []string{"_gossip._tcp.pier.example.", "pier.example.", "_web._tcp.pier.example."} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var z zone
			a := start(t, Config{})
			port := a.Self().Gossip
			if strings.HasPrefix(name, "_web") {
				port = netip.MustParseAddrPort(door(t, a, (*httptest.Server).Start)).Port()
			}
			at := dnsmessage.SRVResource{Port: port, Target: dnsmessage.MustNewName("node.example.")}
			z.set(nil, []dnsmessage.SRVResource{at}, false)
			b := start(t, Config{DNS: name, resolver: z.resolver(t)})
			a.sees(t, b)
			b.sees(t, a)
		})
	}
}
