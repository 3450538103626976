package member

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/hashicorp/memberlist"
)

// newTestView returns a view with n members, and their names.
func newTestView(n int) (*view, []string) {
	v := newView(10*time.Second, newInstruments(metrics.NewSet(), func() float64 { return 0 }), func() {})
	var all []string
	for i := range n {
		m := Member{Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), Gossip: 7946}
		m.Name = m.gossipAddr().String()
		v.put(m, fmt.Sprintf("%016d", i))
		all = append(all, m.Name)
	}
	return v, all
}

// All members seem to fail at once: a third goes, the others stay for a window, and those that come back were never gone.
func TestMassFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, all := newTestView(30)
		for _, name := range all {
			v.lose(name)
		}
		if got := v.count(); got != 20 {
			t.Fatalf("%d members after all were lost, want two thirds", got)
		}
		stayed := v.list(func(Member) bool { return false })
		if v.present(stayed[0].gossipAddr()) {
			t.Error("a member that stays for now counts as present, so that nobody looks for it")
		}
		v.put(stayed[0], "0000000000000000")
		want := []int{20, 14, 10, 7, 4, 1, 1} // and three at least
		for i, n := range want {
			if got := v.count(); got != n {
				t.Errorf("window %d: %d members, want %d", i, got, n)
			}
			time.Sleep(10 * time.Second)
			v.prune()
		}
		if got := names(v.list(func(Member) bool { return false })); !slices.Equal(got, []string{stayed[0].Name}) {
			t.Errorf("members %v, want the one that came back", got)
		}
	})
}

func TestSingleFailuresShowAtOnce(t *testing.T) {
	v, all := newTestView(4)
	for i, name := range all[:3] {
		v.lose(name)
		if got := v.count(); got != 3-i {
			t.Errorf("%d members after %d failed", got, i+1)
		}
	}
}

func TestFarewells(t *testing.T) {
	v, all := newTestView(20)
	for i := range all {
		v.leave(fmt.Sprintf("%016d", i)) // all at once: it is their own word
	}
	if got := v.count(); got != 0 {
		t.Errorf("%d members, though all took their leave", got)
	}
	if _, ok := v.lose(all[0]); ok {
		t.Error("one that took its leave was lost")
	}
	v, all = newTestView(1)
	m, _ := v.get(all[0])
	v.put(m, "ffffffffffffffff") // restarted
	v.leave(fmt.Sprintf("%016d", 0))
	if got := v.count(); got != 1 {
		t.Error("the farewell of the process before drops the one after it")
	}
}

func TestMeta(t *testing.T) {
	long := Member{Peer: 65535, TLS: true}
	for range 100 {
		long.Zone, long.Host, long.Version = long.Zone+"ü", long.Host+"語", long.Version+"\x00\"<&\\"
	}
	for _, m := range []Member{{}, {Peer: 5000, Zone: "rack 1", Host: "alpha", Version: "1.0+x"}, long} {
		m.Addr, m.Gossip, m.Name = netip.MustParseAddr("fd00::2"), 7946, "[fd00::2]:7946"
		b := encodeMeta(m, "0123456789abcdef")
		if len(b) > 256 {
			t.Errorf("meta of %d bytes", len(b))
		}
		got, instance, err := decode(&memberlist.Node{Name: m.Name, Addr: m.Addr.AsSlice(), Port: m.Gossip, Meta: b})
		if err != nil || got != clipped(m) || instance != "0123456789abcdef" {
			t.Errorf("got %+v, %q, %v, want %+v", got, instance, err, clipped(m))
		}
	}
}

func FuzzDecode(f *testing.F) {
	good := string(encodeMeta(Member{Peer: 5000, Zone: "z"}, "0123456789abcdef"))
	f.Add("10.0.0.1:7946", []byte{10, 0, 0, 1}, uint16(7946), good)
	f.Add("10.0.0.2:7946", []byte{10, 0, 0, 1}, uint16(7946), good)
	f.Add("0.0.0.0:1", []byte{0, 0, 0, 0}, uint16(1), good)
	f.Add("10.0.0.1:1", []byte{10, 0, 0, 1}, uint16(1), `{"p":-1,"i":"0123456789abcdef"}`)
	f.Add("10.0.0.1:1", []byte{10, 0, 0, 1}, uint16(1), `{"z":"\u001b[2J","i":"0123456789abcdef"}`)
	f.Add("10.0.0.1:1", []byte{1}, uint16(1), "")
	f.Fuzz(func(t *testing.T, name string, addr []byte, port uint16, meta string) {
		m, instance, err := decode(&memberlist.Node{Name: name, Addr: addr, Port: port, Meta: []byte(meta)})
		if err != nil {
			return
		}
		if ap, err := netip.ParseAddrPort(m.Name); err != nil || ap != m.gossipAddr() {
			t.Errorf("member %+v is not named after its address", m)
		}
		if again, _, err := decode(&memberlist.Node{Name: name, Addr: addr, Port: port, Meta: encodeMeta(m, instance)}); err != nil || again != m {
			t.Errorf("%+v becomes %+v, %v when told on", m, again, err)
		}
	})
}

func TestChooseAddress(t *testing.T) {
	ip := netip.MustParseAddr
	bridge, lan, public, six := ip("172.17.0.1"), ip("192.168.1.5"), ip("8.8.8.8"), ip("2001:db8::5")
	all := []netip.Addr{ip("127.0.0.1"), ip("169.254.1.1"), ip("fe80::1"), bridge, lan, public, six}
	for name, c := range map[string]struct {
		here   addresses
		now    choice
		v4only bool
		want   choice
	}{
		"nothing":                        {addresses{all: all[:3]}, choice{}, false, choice{}},
		"default route":                  {addresses{all, []netip.Addr{lan, six}}, choice{}, false, choice{lan, true}},
		"default route of IPv6":          {addresses{all, []netip.Addr{six}}, choice{}, false, choice{six, true}},
		"which does not help an IPv4":    {addresses{all, []netip.Addr{six}}, choice{}, true, choice{bridge, false}},
		"private before global":          {addresses{all: []netip.Addr{public, lan}}, choice{}, false, choice{lan, false}},
		"global if nothing else":         {addresses{all: []netip.Addr{public}}, choice{}, false, choice{public, false}},
		"stays":                          {addresses{all, []netip.Addr{public}}, choice{lan, true}, false, choice{lan, true}},
		"stays with the route gone":      {addresses{all: all}, choice{lan, true}, false, choice{lan, true}},
		"the bridge gives way":           {addresses{all, []netip.Addr{lan}}, choice{bridge, false}, false, choice{lan, true}},
		"gone":                           {addresses{[]netip.Addr{public}, []netip.Addr{public}}, choice{lan, true}, false, choice{public, true}},
		"gone, and there is none at all": {addresses{}, choice{lan, true}, false, choice{}},
	} {
		if got := c.here.choose(c.now, c.v4only); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}

// One packet of anybody, in the name of a member, had that member forgotten for good.
func TestForgedGoodbye(t *testing.T) {
	a := gossiping(t, Config{})
	b := start(t, Config{Cluster: "x", Peers: at(a)})
	a.sees(t, b)
	udp, err := net.Dial("udp", a.name())
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	goodbye := labelled(append([]byte{typeUser, frameGoodbye}, b.instance()...))
	_, _ = udp.Write(goodbye)
	a.sees(t)
	a.sees(t, b)
	_, _ = udp.Write(goodbye)
	keeps(t, a.c.pace.window/2, func() string {
		if len(a.Members()) != 1 {
			return "it is believed again"
		}
		return ""
	})
	b.stop()
	a.sees(t)
}

// Members could name addresses that are another machine's to everybody, and all nodes asked there.
func TestMembersElsewhere(t *testing.T) {
	a := gossiping(t, Config{})
	for _, own := range []string{"10.0.0.1", "127.0.0.1"} {
		d := &delegate{g: a.Group, name: own + ":7946", addr: netip.MustParseAddr(own)}
		for addr, want := range map[string]bool{
			"10.0.0.2": true, "fd00::2": true, "127.0.0.2": own == "127.0.0.1", "::1": own == "127.0.0.1",
			"169.254.169.254": false, "fe80::1": false, "0.0.0.1": false, "255.255.255.255": false, "224.0.0.1": false,
		} {
			n := memberlist.Node{
				Name: netip.AddrPortFrom(netip.MustParseAddr(addr), 80).String(), Addr: netip.MustParseAddr(addr).AsSlice(), Port: 80,
				Meta: encodeMeta(Member{}, "0123456789abcdef"),
			}
			if err := d.NotifyAlive(&n); (err == nil) != want {
				t.Errorf("%s at %s: got error %v, want it admitted: %v", own, addr, err, want)
			}
		}
	}
}

func FuzzParseFile(f *testing.F) {
	for _, seed := range []string{"", "a\n", "a:7946 # one\n", "[::1]:1\n", "::1\n", "a:0\n", "\x00", "10.0.0.1/8"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, content string) {
		if places, faults := parseFile("f", content); len(places)+len(faults) > strings.Count(content, "\n")+1 {
			t.Errorf("%q has %d places and %d faults", content, len(places), len(faults))
		}
	})
}
