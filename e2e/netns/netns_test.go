//go:build e2e

package netns

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func newSite(t *testing.T, cfg Config) *Site {
	t.Helper()
	s, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// source listens at a place and sends size bytes to everybody who connects. It returns its address, IPv4 or IPv6.
func source(t *testing.T, p *Place, v6 bool, size int64) string {
	t.Helper()
	host := p.Addr().String()
	if v6 {
		host = p.Addr6().String()
	}
	l, err := p.Listen(t.Context(), "tcp", net.JoinHostPort(host, "0"))
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.CopyN(conn, zeros{}, size)
			}()
		}
	}()
	return l.Addr().String()
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// drain reads what addr sends to p, and returns how much it was and how long it took.
func drain(p *Place, addr string, within time.Duration) (int64, time.Duration, error) {
	begin := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	conn, err := p.DialContext(ctx, "tcp", addr)
	if err != nil {
		return 0, 0, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(begin.Add(within)); err != nil {
		return 0, 0, err
	}
	n, err := io.Copy(io.Discard, conn)
	return n, time.Since(begin), err
}

const wait = 20 * time.Second // for what must arrive

// wantSilence fails the test unless dialling ends by its own time-out: not refused, not unreachable.
func wantSilence(t *testing.T, p *Place, addr string) {
	t.Helper()
	_, _, err := drain(p, addr, 300*time.Millisecond)
	var timeout net.Error
	if err == nil || errors.Is(err, syscall.EHOSTUNREACH) || !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("from %s to %s: error %v, want a time-out", p.Name(), addr, err)
	}
}

func wantArrival(t *testing.T, p *Place, addr string) {
	t.Helper()
	if _, _, err := drain(p, addr, wait); err != nil {
		t.Errorf("from %s to %s: %v", p.Name(), addr, err)
	}
}

func TestEveryoneReachesEveryoneByBothProtocols(t *testing.T) {
	s := newSite(t, Config{Nodes: 2})
	for _, v6 := range []bool{false, true} {
		for _, from := range []*Place{s.Upstream(), s.Node(1), s.Node(2)} {
			addr := source(t, from, v6, 1<<20)
			for _, to := range []*Place{s.Upstream(), s.Node(1), s.Node(2)} {
				wantArrival(t, to, addr)
			}
		}
	}
}

func TestRatesHoldAndTheWANIsCounted(t *testing.T) {
	s := newSite(t, Config{Nodes: 2, WAN: Link{Up: 20 * Mbit, Down: 80 * Mbit}, LAN: Link{Up: 40 * Mbit}})
	const size = 4 << 20
	for _, c := range []struct {
		name     string
		from, to *Place
		rate     Rate
	}{
		{"WAN down", s.Upstream(), s.Node(1), 80 * Mbit},
		{"WAN up", s.Node(1), s.Upstream(), 20 * Mbit},
		{"LAN up", s.Node(1), s.Node(2), 40 * Mbit},
	} {
		up0, down0, err := s.WAN(t.Context())
		must(t, err)
		n, took, err := drain(c.to, source(t, c.from, false, size), wait)
		must(t, err)
		up1, down1, err := s.WAN(t.Context())
		must(t, err)
		// Nothing is ever faster than its link, but for the bucket; on a loaded machine it may be slower.
		if least := time.Duration(float64(n-(256<<10)) / float64(c.rate.BytesPerSecond()) * float64(time.Second)); n != size || took < least {
			t.Errorf("%s: %d bytes took %v, want %d in at least %v", c.name, n, took, size, least)
		}
		up, down := up1.Sub(up0).Payload(), down1.Sub(down0).Payload()
		wantUp, wantDown := int64(0), int64(0)
		switch c.name {
		case "WAN up":
			wantUp = size
		case "WAN down":
			wantDown = size
		}
		for _, got := range [][2]int64{{up, wantUp}, {down, wantDown}} {
			if diff := got[0] - got[1]; diff < -4096 || diff > size/50 { // some packets are sent again
				t.Errorf("%s: payload counted: up %d, down %d, want %d and %d", c.name, up, down, wantUp, wantDown)
			}
		}
	}
}

func TestLinksAreCutWithoutAWordAndMended(t *testing.T) {
	s := newSite(t, Config{Nodes: 4, WAN: Link{Down: 100 * Mbit}})
	upstream := source(t, s.Upstream(), false, 1000)
	one, one6 := source(t, s.Node(1), false, 1000), source(t, s.Node(1), true, 1000)
	three := source(t, s.Node(3), false, 1000)

	must(t, s.CutWAN(t.Context()))
	wantSilence(t, s.Node(1), upstream)
	wantArrival(t, s.Node(2), one)
	must(t, s.MendWAN(t.Context()))
	wantArrival(t, s.Node(1), upstream)

	must(t, s.Partition(t.Context(), []int{1, 2}, []int{3}))
	wantArrival(t, s.Node(2), one)
	wantSilence(t, s.Node(3), one)
	wantSilence(t, s.Node(3), one6)
	wantSilence(t, s.Node(2), three)
	wantArrival(t, s.Node(4), one)
	wantArrival(t, s.Node(4), three)
	wantArrival(t, s.Node(3), upstream)
	must(t, s.Heal(t.Context()))
	wantArrival(t, s.Node(3), one)
	wantArrival(t, s.Node(3), one6)
	wantArrival(t, s.Node(2), three)
}

func TestMulticastReachesTheNodesAndNoOtherPartition(t *testing.T) {
	s := newSite(t, Config{Nodes: 3})
	group := &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: 5353}
	listen := func(p *Place) (conn *net.UDPConn) {
		must(t, p.Do(func() error {
			eth0, err := net.InterfaceByName("eth0")
			if err != nil {
				return err
			}
			conn, err = net.ListenMulticastUDP("udp4", eth0, group)
			return err
		}))
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	two, three := listen(s.Node(2)), listen(s.Node(3))
	must(t, s.Partition(t.Context(), []int{1}, []int{3}))
	conn, err := s.Node(1).DialContext(t.Context(), "udp", group.String())
	must(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte("hello"))
	must(t, err)
	must(t, two.SetReadDeadline(time.Now().Add(wait)))
	buffer := make([]byte, 100)
	n, _, err := two.ReadFrom(buffer)
	if err != nil || string(buffer[:n]) != "hello" {
		t.Errorf("the other side of the LAN got %q, %v", buffer[:n], err)
	}
	must(t, three.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
	if n, _, err := three.ReadFrom(buffer); err == nil {
		t.Errorf("the other partition got %q", buffer[:n])
	}
}

func TestCommandRunsAtItsPlaceAndIsKilledByItsGroup(t *testing.T) {
	s := newSite(t, Config{Nodes: 2})
	out, err := s.Node(2).CommandContext(t.Context(), "ip", "-br", "addr", "show", "eth0").Output()
	if err != nil || !strings.Contains(string(out), "10.77.0.2/24") {
		t.Errorf("addresses: %q, %v", out, err)
	}
	cmd := s.Node(1).Command("sh", "-c", "sleep 600 & wait")
	must(t, cmd.Start())
	must(t, syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL))
	if err := cmd.Wait(); err == nil {
		t.Error("it ended well")
	}
}

func TestHTTPFromAPlace(t *testing.T) {
	s := newSite(t, Config{Nodes: 1})
	l, err := s.Upstream().Listen(t.Context(), "tcp", s.Upstream().HostPort(80))
	must(t, err)
	server := &http.Server{ReadHeaderTimeout: wait, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		_, _ = io.WriteString(w, host)
	})}
	go func() { _ = server.Serve(l) }()
	defer server.Close()
	transport := s.Node(1).Transport()
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("http://" + s.Upstream().Addr().String())
	must(t, err)
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "10.77.0.1" {
		t.Errorf("upstream saw %q, %v", body, err)
	}
}

func TestSitesOfOneMachineDoNotMeet(t *testing.T) {
	one, other := newSite(t, Config{Nodes: 1}), newSite(t, Config{Nodes: 1})
	addr := source(t, one.Node(1), false, 1000)
	if _, _, err := drain(other.Node(1), addr, wait); err == nil {
		t.Error("a node of another site answered")
	}
}

func TestWhatAKilledRunLeftIsRemoved(t *testing.T) {
	if os.Getenv("PIER_NETNS_CHILD") != "" {
		s, err := New(t.Context(), Config{Nodes: 1})
		must(t, err)
		// Not a child of this process's own: it outlives the kill, as daemons of daemons do.
		must(t, exec.Command("setsid", "-f", "nsenter", "--net="+s.Node(1).path(), "sleep", "600").Run())
		for len(inhabitants([]string{s.Node(1).Name()})) == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		_, _ = os.Stdout.WriteString("site " + s.String() + "\n")
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	child := exec.CommandContext(ctx, os.Args[0], "-test.run", "^"+t.Name()+"$")
	child.Env = append(os.Environ(), "PIER_NETNS_CHILD=1")
	out, _ := child.Output() // it was killed
	_, list, ok := strings.Cut(string(out), "site ")
	if !ok {
		t.Fatalf("the run that is killed did not begin: %s", out)
	}
	left := strings.Fields(list)
	if inhabitants(left) == nil {
		t.Error("nothing was left to end")
	}
	newSite(t, Config{Nodes: 1})
	for _, name := range left {
		if _, err := os.Stat(filepath.Join(directory, name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
}

func TestNumberOfNodesIsBounded(t *testing.T) {
	for _, n := range []int{0, MaxNodes + 1} {
		if _, err := New(t.Context(), Config{Nodes: n}); err == nil {
			t.Errorf("a site of %d nodes was made", n)
		}
	}
}
