package member

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// door serves what a node's door answers about n, and returns its host:port.
func door(t *testing.T, n *node, open func(*httptest.Server)) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/node", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"name":"elsewhere:1","gossip_port":%d}`, n.Self().Gossip)
	})
	s := httptest.NewUnstartedServer(mux)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug) // it is spoken to in wrong tongues
	open(s)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func TestJoinByDoor(t *testing.T) {
	for name, open := range map[string]func(*httptest.Server){"http": (*httptest.Server).Start, "https": (*httptest.Server).StartTLS} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := start(t, Config{})
			b := start(t, Config{Peers: []string{door(t, a, open)}})
			a.sees(t, b)
			b.sees(t, a)
		})
	}
}

// A node without a port is found at the default ports.
func TestJoinWithoutPort(t *testing.T) {
	const place = "127.0.77.1:7946"
	if l, err := net.Listen("tcp", place); err != nil {
		t.Skipf("the default port is taken on this machine: %v", err)
	} else {
		l.Close()
	}
	a := start(t, Config{Listen: place})
	b := start(t, Config{Listen: "127.0.77.2:0", Peers: []string{"127.0.77.1"}})
	a.sees(t, b)
	b.sees(t, a)
}

// A name is resolved at each try, and leads to one node however many addresses it has.
func TestJoinByName(t *testing.T) {
	a := start(t, Config{})
	b := start(t, Config{Peers: []string{fmt.Sprintf("localhost:%d", a.Self().Gossip)}})
	a.sees(t, b)
	b.sees(t, a)
}

// A door that hangs, and one that says nonsense, harm nobody.
func TestJoinByBrokenDoor(t *testing.T) {
	answers := map[string]string{"no port": `{}`, "bad port": `{"gossip_port":70000}`, "no JSON": `<html>`, "endless": strings.Repeat(" ", 1<<20)}
	var peers []string
	for _, answer := range answers {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, answer) }))
		t.Cleanup(s.Close)
		peers = append(peers, s.Listener.Addr().String())
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	a := start(t, Config{})
	b := start(t, Config{Peers: append(peers, silent.Addr().String(), a.name())})
	b.sees(t, a)
	eventually(t, func() string {
		if got := b.log.count(slog.LevelWarn, "node cannot be reached"); got != len(peers)+1 {
			return fmt.Sprintf("%d warnings for %d broken doors", got, len(peers)+1)
		}
		return ""
	})
}

// Addresses that are this node's own, by whatever name, are not joined.
func TestNeverJoinsItself(t *testing.T) {
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	own := netip.MustParseAddr("10.1.2.3") // not this machine's: a connection there would fail, and say so
	var self *node
	asked := make(chan string, 16)
	self = start(t, Config{
		Listen:  fmt.Sprintf(":%d", port),
		machine: func() addresses { return addresses{all: []netip.Addr{own}, route: []netip.Addr{own}} },
		Peers: []string{fmt.Sprintf("127.0.0.1:%d", port), fmt.Sprintf("localhost:%d", port), fmt.Sprintf("10.1.2.3:%d", port),
			fmt.Sprintf("127.9.9.9:%d", port), "127.0.0.1:5000"},
		HTTP: func(_ context.Context, hostport string) (uint16, error) {
			asked <- hostport
			return uint16(port), nil
		},
	})
	if got, want := self.name(), fmt.Sprintf("10.1.2.3:%d", port); got != want {
		t.Fatalf("name %q, want %q", got, want)
	}
	if got := <-asked; got != "127.0.0.1:5000" {
		t.Errorf("asked %s, which is this node's gossip", got)
	}
	keeps(t, 500*time.Millisecond, func() string {
		if got := self.meter.sent.Get(); got > 0 {
			return "it spoke to itself"
		}
		return ""
	})
	if got := self.log.count(slog.LevelWarn, ""); got > 0 {
		t.Errorf("%d warnings", got)
	}
}

func TestPeersFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "peers")
	write := func(lines ...string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	reload := func(n *node) {
		t.Helper()
		if err := n.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	b, c := start(t, Config{}), start(t, Config{Self: Member{Peer: 5555}})
	write("# the nodes of this site", "", b.name()+" # in the cellar")
	a := start(t, Config{PeersFile: file})
	a.sees(t, b)

	// Added, here by the port of its peer door, beside a line that is none.
	write(b.name(), "http://node9/", c.name())
	reload(a)
	a.sees(t, b, c)
	b.sees(t, a, c)
	want := []string{file + `:2: "http://node9/": write host or host:port, without a scheme or a path`}
	if got := a.Faults(); !slices.Equal(got, want) {
		t.Errorf("faults %q, want %q", got, want)
	}
	reload(a)
	if got := a.log.count(slog.LevelWarn, "line of the peers file skipped"); got != 1 {
		t.Errorf("the bad line was logged %d times, want once", got)
	}

	// Removed: not seen and told nothing, though the others go on to know it.
	write(b.name())
	reload(a)
	a.sees(t, b)
	if err := a.Send(c.name(), []byte("x")); !errors.Is(err, ErrUnknown) {
		t.Errorf("message to a node that was removed: got error %v, want ErrUnknown", err)
	}
	keeps(t, 300*time.Millisecond, func() string {
		if len(a.Members()) != 1 {
			return "a node that was removed came back"
		}
		return ""
	})
	b.sees(t, a, c)

	// Listed again, in another way.
	write(b.name(), "127.0.0.1:5555")
	reload(a)
	a.sees(t, b, c)

	// A file that cannot be read changes nothing.
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := a.Reload(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: got error %v, want that", err)
	}
	a.sees(t, b, c)
}

func TestNewRefuses(t *testing.T) {
	taken := start(t, Config{})
	missing := filepath.Join(t.TempDir(), "peers")
	for want, c := range map[string]Config{
		"is in use; stop what listens there or set --gossip-listen": {Listen: taken.name()},
		"--gossip-listen":                        {Listen: "nowhere"},
		"--advertise-addr":                       {Advertise: "a b"},
		`peers: "http://x": write host`:          {Peers: []string{"http://x"}},
		missing:                                  {PeersFile: missing},
		"key size must be 16, 24 or 32":          {Keys: func() [][]byte { return [][]byte{[]byte("short")} }},
		"cluster name of 129 bytes: use at most": {Cluster: strings.Repeat("x", 129)},
	} {
		if c.Listen == "" {
			c.Listen = "127.0.0.1:0"
		}
		_, err := New(c)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got error %v, want one with %q", err, want)
		}
	}
}

func TestDiscover(t *testing.T) {
	a := start(t, Config{})
	var calls int
	b := start(t, Config{Discover: func(ctx context.Context, self Member, found func(netip.AddrPort)) error {
		if calls++; calls == 1 {
			return errors.New("no network")
		}
		found(netip.AddrPortFrom(self.Addr, self.Gossip)) // as seen on the link itself
		found(netip.MustParseAddrPort("[fe80::1%lo]:1"))
		found(netip.AddrPort{})
		found(netip.AddrPortFrom(netip.AddrFrom16(a.Self().Addr.As16()), a.Self().Gossip))
		<-ctx.Done()
		return nil
	}})
	b.sees(t, a)
	a.sees(t, b)
	b.stop()
	if calls != 2 {
		t.Errorf("searched %d times, want once more after it failed", calls)
	}
}

func TestParsePlace(t *testing.T) {
	for s, want := range map[string]place{
		"10.0.0.2":         {"10.0.0.2", 0},
		"10.0.0.2:5000":    {"10.0.0.2", 5000},
		"node2.lan":        {"node2.lan", 0},
		"node2.lan.:7946":  {"node2.lan.", 7946},
		"fd00::2":          {"fd00::2", 0},
		"[fd00::2]":        {"fd00::2", 0},
		"[fd00::2]:5000":   {"fd00::2", 5000},
		"::ffff:10.0.0.2":  {"10.0.0.2", 0},
		"_x._tcp.svc:7946": {"_x._tcp.svc", 7946},
	} {
		if got, err := parsePlace(s); err != nil || got != want {
			t.Errorf("%q: got %+v, %v, want %+v", s, got, err, want)
		}
	}
	for _, s := range []string{"", ":5000", "host:", "host:0", "host:65536", "host:http", "http://host", "a b", "a/b", "300.1.2.3", "fe80::1%eth0", "0.0.0.0", "[::]:1", strings.Repeat("x", 255)} {
		if got, err := parsePlace(s); err == nil {
			t.Errorf("%q: got %+v, want an error", s, got)
		}
	}
}
