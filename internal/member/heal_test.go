package member

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// A relay is where a node is advertised at, and hands on what comes there as long as the link is up.
type relay struct {
	t   *testing.T
	tcp net.Listener
	udp *net.UDPConn
	to  atomic.Pointer[netip.AddrPort]
	cut atomic.Bool

	mu    sync.Mutex // guards conns
	conns []net.Conn
}

func newRelay(t *testing.T) *relay {
	t.Helper()
	s, err := listenBoth(listenAddress{ip: netip.MustParseAddr("127.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{t: t, tcp: s.tcp, udp: s.udp}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := r.tcp.Accept()
			if err != nil {
				return
			}
			if r.cut.Load() {
				conn.Close()
				continue
			}
			wg.Go(func() { r.connect(conn) })
		}
	})
	wg.Go(func() {
		buf := make([]byte, maxPacket)
		for {
			n, _, err := r.udp.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if to := r.to.Load(); to != nil && !r.cut.Load() {
				_, _ = r.udp.WriteToUDPAddrPort(buf[:n], *to)
			}
		}
	})
	t.Cleanup(func() {
		r.tcp.Close()
		r.udp.Close()
		r.drop()
		wg.Wait()
	})
	return r
}

func (r *relay) connect(in net.Conn) {
	defer in.Close()
	out, err := net.Dial("tcp", r.to.Load().String())
	if err != nil {
		return
	}
	defer out.Close()
	r.mu.Lock()
	r.conns = append(r.conns, in, out)
	r.mu.Unlock()
	done := make(chan struct{})
	go func() { defer close(done); _, _ = io.Copy(out, in); out.Close() }()
	_, _ = io.Copy(in, out)
	in.Close()
	<-done
}

func (r *relay) drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		c.Close()
	}
}

// startBehind runs a node that others reach through the relay only.
func startBehind(t *testing.T, r *relay, c Config) *node {
	t.Helper()
	c.Advertise = r.tcp.Addr().String()
	n := start(t, c)
	to := loopback(n.opened().port)
	r.to.Store(&to)
	return n
}

// Nodes that lost each other, and forgot each other as gossip does, find together when the network is back.
func TestPartitionHeals(t *testing.T) {
	ra, rb := newRelay(t), newRelay(t)
	a := startBehind(t, ra, Config{})
	b := startBehind(t, rb, Config{Peers: at(a)})
	a.sees(t, b)
	b.sees(t, a)
	for _, r := range []*relay{ra, rb} {
		r.cut.Store(true)
		r.drop()
	}
	a.sees(t)
	b.sees(t)
	forgotten(t, a)
	forgotten(t, b)
	ra.cut.Store(false)
	rb.cut.Store(false)
	a.sees(t, b)
	b.sees(t, a)
}

// forgotten waits until gossip itself has forgotten all but n.
func forgotten(t *testing.T, n *node) {
	t.Helper()
	// Probes drop those that died pace.forget ago; nothing tells that they did.
	time.Sleep(n.c.pace.forget + 3*n.c.pace.probe)
}

// A node that crashed and comes back under its name is found by those who were never told of it, and forgot it.
func TestReturnUnderOldName(t *testing.T) {
	a := start(t, Config{})
	b := start(t, Config{Peers: at(a)})
	a.sees(t, b)
	b.sees(t, a)
	name := b.name()
	b.crash()
	a.sees(t)
	forgotten(t, a)
	again := start(t, Config{Listen: name, Self: Member{Zone: "new"}})
	a.sees(t, again)
	again.sees(t, a)
	if got := a.Members()[0].Zone; got != "new" {
		t.Errorf("zone %q is the old process's", got)
	}
}

// A node that comes back before anybody missed it is another process under the same name.
func TestQuickRestart(t *testing.T) {
	a := start(t, Config{})
	b := start(t, Config{Peers: at(a)})
	a.sees(t, b)
	name := b.name()
	b.crash()
	b = start(t, Config{Listen: name, Peers: at(a), Self: Member{Version: "2"}})
	b.sees(t, a)
	eventually(t, func() string {
		if all := a.Members(); len(all) != 1 || all[0].Version != "2" {
			return fmt.Sprintf("members %+v, want the new process", all)
		}
		return ""
	})
	b.stop()
	a.sees(t)
}

func TestOtherClusterAndKey(t *testing.T) {
	key, other := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	keys := func(k ...[]byte) func() [][]byte { return func() [][]byte { return k } }
	a := start(t, Config{Cluster: "one", Keys: keys(key)})
	b := start(t, Config{Cluster: "one", Keys: keys(key), Peers: at(a)})
	strangers := []*node{
		start(t, Config{Cluster: "two", Keys: keys(key), Peers: at(a)}),
		start(t, Config{Cluster: "one", Keys: keys(other), Peers: at(a)}),
		start(t, Config{Cluster: "one", Peers: at(a)}),
	}
	a.sees(t, b)
	b.sees(t, a)
	keeps(t, time.Second, func() string {
		for _, n := range append(strangers, a, b) {
			want := 0
			if n == a || n == b {
				want = 1
			}
			if got := len(n.Members()); got != want {
				return fmt.Sprintf("%s has %d members, want %d", n.name(), got, want)
			}
		}
		return ""
	})
	const warning = "somebody gossips with another key or cluster name"
	if got := a.log.count(slog.LevelWarn, warning); got != 1 {
		t.Errorf("%d warnings of strangers, want 1: all else is throttled", got)
	}
}

// Keys are exchanged in the three steps that the operator takes, and nobody is lost on the way.
func TestKeyRotation(t *testing.T) {
	old, fresh := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	var mu sync.Mutex // guards keys
	keys := [][]byte{old}
	present := func() [][]byte {
		mu.Lock()
		defer mu.Unlock()
		return keys
	}
	a := start(t, Config{Keys: present})
	b := start(t, Config{Keys: present, Peers: at(a)})
	a.sees(t, b)
	b.sees(t, a)
	lossesBefore := a.meter.losses.Get()
	for _, step := range [][][]byte{{old, fresh}, {fresh, old}, {fresh}} {
		mu.Lock()
		keys = step
		mu.Unlock()
		for _, n := range []*node{a, b} {
			if err := n.Reload(); err != nil {
				t.Fatal(err)
			}
			if got := n.ring.GetKeys(); len(got) != len(step) || !bytes.Equal(got[0], step[0]) {
				t.Fatalf("keys %x, want %x", got, step)
			}
			msg := fmt.Sprintf("%s, keys %x", n.name(), step)
			if err := a.Send(b.name(), []byte(msg)); err != nil {
				t.Fatal(err)
			}
			eventually(t, func() string {
				if !slices.Contains(b.received(), msg) {
					return "no message after " + msg
				}
				return ""
			})
		}
	}
	if got := a.meter.losses.Get() - lossesBefore; got != 0 {
		t.Errorf("%d members lost on the way", got)
	}
	mu.Lock()
	keys = nil
	mu.Unlock()
	if err := a.Reload(); err == nil {
		t.Error("gossip would go on encrypted though no key is left: want an error")
	}
	// One who has the old key alone is a stranger now.
	late := start(t, Config{Keys: func() [][]byte { return [][]byte{old} }, Peers: at(a)})
	keeps(t, 300*time.Millisecond, func() string {
		if len(late.Members()) > 0 {
			return "the old key still opens"
		}
		return ""
	})
}

// A node starts without a network, is part of the cluster when there is one, and stays part of it under another address.
func TestAddressComesAndChanges(t *testing.T) {
	var mu sync.Mutex // guards here
	var here addresses
	set := func(a addresses) {
		mu.Lock()
		defer mu.Unlock()
		here = a
	}
	ip := func(s string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(s)} }
	a := start(t, Config{})
	b := start(t, Config{Listen: "0.0.0.0:0", Peers: at(a), machine: func() addresses {
		mu.Lock()
		defer mu.Unlock()
		return here
	}})
	if got := b.Self(); got.Name != "" || got.Addr.IsValid() {
		t.Errorf("without a network it calls itself %+v", got)
	}
	keeps(t, 200*time.Millisecond, func() string {
		if len(a.Members()) > 0 {
			return "a member without an address"
		}
		return ""
	})
	// The machine's loopback addresses stand for those of its interfaces; choose would not take them otherwise.
	for _, addr := range []string{"127.1.0.1", "127.1.0.2"} {
		set(addresses{all: ip(addr), route: ip(addr)})
		eventually(t, func() string {
			if got, want := b.name(), fmt.Sprintf("%s:%d", addr, b.opened().port); got != want {
				return fmt.Sprintf("it calls itself %q, want %q", got, want)
			}
			return ""
		})
		a.sees(t, b)
		b.sees(t, a)
	}
	// The address goes, and none comes: it stays with what it had.
	set(addresses{})
	keeps(t, 300*time.Millisecond, func() string {
		if !strings.HasPrefix(b.name(), "127.1.0.2:") {
			return "it calls itself " + b.name()
		}
		return ""
	})
}

// Strangers who send garbage, or nothing at all, are no trouble to anybody.
func TestGarbage(t *testing.T) {
	a := start(t, Config{Cluster: "x"})
	eventually(t, func() string {
		if a.list.Load() == nil {
			return "it does not gossip"
		}
		return ""
	})
	half, err := net.Dial("tcp", a.name())
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	label := append([]byte{244, 6}, "pier x"...)
	var garbage [][]byte
	for i := range 300 {
		b := make([]byte, 1+i*4)
		_, _ = rand.Read(b)
		labelled := append(append([]byte(nil), label...), b...)
		labelled[len(label)] = byte(i % 16) // all kinds of messages
		garbage = append(garbage, b, labelled)
	}
	udp, err := net.Dial("udp", a.name())
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for i, b := range garbage {
		_, _ = udp.Write(b)
		if i%10 != 0 {
			continue
		}
		tcp, err := net.Dial("tcp", a.name())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = tcp.Write(b)
		tcp.Close()
	}
	b := start(t, Config{Cluster: "x", Peers: at(a)})
	a.sees(t, b)
	b.sees(t, a)
	if err := half.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := half.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a connection that says nothing: got error %v, want it closed", err)
	}
	eventually(t, func() string {
		if n := a.opened().callers.count(); n > 0 {
			return fmt.Sprintf("%d connections are still counted", n)
		}
		return ""
	})
}

func TestTwentyMembers(t *testing.T) {
	pace := quick()
	pace.probe, pace.timeout = 0, 0 // as in production, which is made for starved machines such as this one may be
	set := metrics.NewSet()
	all := []*node{start(t, Config{Metrics: set, pace: pace})}
	for range 19 {
		all = append(all, start(t, Config{Peers: at(all[0]), pace: pace}))
	}
	for _, n := range all {
		n.sees(t, all...)
	}
	var out bytes.Buffer
	set.WritePrometheus(&out)
	for _, line := range []string{"pier_members 19\n", "pier_member_joins_total 19\n", "pier_member_losses_total 0\n", "pier_gossip_messages_dropped_total 0\n"} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("no %q in the metrics:\n%s", line, out.String())
		}
	}
}
