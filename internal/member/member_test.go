package member

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestJoinByGossipPort(t *testing.T) {
	a := start(t, Config{Self: Member{Peer: 5000, TLS: true, Zone: "rack 1", Host: "alpha", Version: "1.2.3"}})
	b := start(t, Config{Peers: at(a)})
	c := start(t, Config{Peers: at(b)})
	all := []*node{a, b, c}
	for _, n := range all {
		n.sees(t, all...)
	}
	members := c.Members()
	i := slices.IndexFunc(members, func(m Member) bool { return m.Name == a.name() })
	if got, want := members[i], a.Self(); got != want {
		t.Errorf("c knows a as %+v, want %+v", got, want)
	}
	if got, want := members[i].Door(), "127.0.0.1:5000"; got != want {
		t.Errorf("door of a: %q, want %q", got, want)
	}
	if got := b.Self().Door(); got != "" {
		t.Errorf("b has no peer door, got %q", got)
	}
}

// Gossip goes over IPv4 and IPv6, on one address or all of them, to an address or a name.
func TestListen(t *testing.T) {
	for name, c := range map[string]Config{
		"IPv4":                   {Listen: "127.0.0.1:0"},
		"IPv6":                   {Listen: "[::1]:0"},
		"all":                    {Listen: ":0", Advertise: "127.0.0.1"},
		"all, reached over IPv6": {Listen: ":0", Advertise: "[::1]"},
		"a name":                 {Listen: ":0", Advertise: "localhost"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if strings.Contains(name, "IPv6") {
				l, err := net.Listen("tcp", "[::1]:0")
				if err != nil {
					t.Skipf("this machine has no IPv6: %v", err)
				}
				l.Close()
			}
			a := start(t, c)
			c.Peers = at(a)
			b := start(t, c)
			a.sees(t, b)
			b.sees(t, a)
			if err := a.Send(b.name(), []byte("x")); err != nil {
				t.Error(err)
			}
			eventually(t, func() string {
				if len(b.received()) == 0 {
					return "the message did not arrive"
				}
				return ""
			})
		})
	}
}

// What ended leaves nothing running.
func TestNothingStays(t *testing.T) {
	before := runtime.NumGoroutine()
	a := start(t, Config{})
	b := start(t, Config{Peers: append(at(a), "127.0.0.1:1")})
	a.sees(t, b)
	a.stop()
	b.stop()
	eventually(t, func() string {
		if now := runtime.NumGoroutine(); now > before {
			return fmt.Sprintf("%d goroutines more than before", now-before)
		}
		return ""
	})
}

func TestSend(t *testing.T) {
	keys := func() [][]byte { return [][]byte{[]byte("0123456789abcdef0123456789abcdef")} }
	for name, keys := range map[string]func() [][]byte{"plain": nil, "with a key": keys} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster := strings.Repeat("c", maxCluster)
			a := start(t, Config{Keys: keys, Cluster: cluster})
			b := start(t, Config{Keys: keys, Cluster: cluster, Peers: at(a)})
			a.sees(t, b)
			b.sees(t, a)
			long := strings.Repeat("m", MaxMessage)
			for _, msg := range []string{"hello", "", long} {
				if err := a.Send(b.name(), []byte(msg)); err != nil {
					t.Errorf("message of %d bytes: %v", len(msg), err)
				}
			}
			eventually(t, func() string {
				got := b.received()
				slices.SortFunc(got, func(a, b string) int { return len(a) - len(b) })
				if slices.Equal(got, []string{"", "hello", long}) {
					return ""
				}
				return "not all messages arrived"
			})
			if err := a.Send(b.name(), make([]byte, MaxMessage+1)); !errors.Is(err, ErrTooLarge) {
				t.Errorf("too large: got error %v, want ErrTooLarge", err)
			}
			if err := a.Send("127.0.0.1:1", nil); !errors.Is(err, ErrUnknown) {
				t.Errorf("to nobody: got error %v, want ErrUnknown", err)
			}
		})
	}
}

// One who does not take its messages loses them, not its membership.
func TestSlowMessages(t *testing.T) {
	a := start(t, Config{})
	release := make(chan struct{})
	b := start(t, Config{Peers: at(a), Message: func([]byte) { <-release }})
	a.sees(t, b)
	eventually(t, func() string {
		for range 200 {
			if err := a.Send(b.name(), []byte("x")); err != nil {
				return err.Error()
			}
		}
		if b.meter.dropped.Get() == 0 {
			return "nothing was dropped"
		}
		return ""
	})
	keeps(t, time.Second, func() string {
		if len(a.Members()) != 1 || len(b.Members()) != 1 {
			return "they lost each other"
		}
		return ""
	})
	close(release)
}

// Those who leave are gone at once, and not looked for.
func TestLeave(t *testing.T) {
	a := start(t, Config{})
	b := start(t, Config{Peers: at(a)})
	c := start(t, Config{Peers: at(a)})
	for _, n := range []*node{a, b, c} {
		n.sees(t, a, b, c)
	}
	b.stop()
	a.sees(t, c)
	c.sees(t, a)
}

func TestCrash(t *testing.T) {
	a := start(t, Config{})
	b := start(t, Config{Peers: at(a)})
	c := start(t, Config{Peers: at(a)})
	for _, n := range []*node{a, b, c} {
		n.sees(t, a, b, c)
	}
	b.crash()
	a.sees(t, c)
	c.sees(t, a)
}
