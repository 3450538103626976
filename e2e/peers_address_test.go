//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"pier/e2e/netns"
)

// awaitNames waits until the node has peers of exactly these names.
func (n *siteNode) awaitNames(t *testing.T, want ...string) peersAnswer {
	t.Helper()
	var a peersAnswer
	eventually(t, siteWait, func() error {
		var got []string
		if a, got = n.peers(t); !slices.Equal(got, want) {
			return fmt.Errorf("node %d has the peers %q, want %q", n.number, got, want)
		}
		return nil
	})
	return a
}

// A zone is what a name server knows, by name, with the dot at the end. For other names there is nothing.
type zone map[string][]dnsmessage.ResourceBody

// answer answers one query. It returns nil for what is none.
func (z zone) answer(query []byte) []byte {
	var msg dnsmessage.Message
	if msg.Unpack(query) != nil || len(msg.Questions) != 1 {
		return nil
	}
	q := msg.Questions[0]
	msg.Response, msg.Authoritative, msg.Additionals = true, true, nil
	if z[q.Name.String()] == nil {
		msg.RCode = dnsmessage.RCodeNameError
	}
	for _, body := range z[q.Name.String()] {
		var kind dnsmessage.Type
		switch body.(type) {
		case *dnsmessage.AResource:
			kind = dnsmessage.TypeA
		case *dnsmessage.SRVResource:
			kind = dnsmessage.TypeSRV
		}
		if kind == q.Type {
			header := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 1}
			msg.Answers = append(msg.Answers, dnsmessage.Resource{Header: header, Body: body})
		}
	}
	answer, err := msg.Pack()
	if err != nil {
		return nil
	}
	return answer
}

// serve answers at a place until the test ends. It returns the command that a program at the site is started through to
// ask nobody else.
func (z zone) serve(t *testing.T, at *netns.Place) (wrap []string) {
	t.Helper()
	var conn net.PacketConn
	must(t, at.Do(func() (err error) {
		conn, err = new(net.ListenConfig).ListenPacket(t.Context(), "udp", at.HostPort(53))
		return err
	}))
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
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	writeFile(t, conf, fmt.Sprintf("nameserver %s\n", at.Addr()))
	return []string{
		"unshare", "--mount", "--propagation", "private", "sh", "-c", `mount --bind "$1" /etc/resolv.conf && shift && exec "$@"`, "sh", conf,
	}
}

func TestPeersFindEachOtherByTheDNS(t *testing.T) {
	t.Parallel()
	node := func(k byte) dnsmessage.ResourceBody { return &dnsmessage.AResource{A: [4]byte{10, 77, 0, k}} }
	service := func(k byte) dnsmessage.ResourceBody {
		return &dnsmessage.SRVResource{Port: 7950 + uint16(k), Target: dnsmessage.MustNewName(fmt.Sprintf("node%d.site.test.", k))}
	}
	for name, c := range map[string]struct {
		dns   string // of the flag
		zone  zone
		ports func(k int) uint16 // of gossip
	}{
		// As a headless service of Kubernetes: of all nodes, the asking one included.
		"addresses": {
			dns: "nodes.site.test", zone: zone{"nodes.site.test.": {node(1), node(2)}},
			ports: func(int) uint16 { return 7948 },
		},
		"services": {
			dns: "_pier._tcp.site.test", ports: func(k int) uint16 { return 7950 + uint16(k) },
			zone: zone{"_pier._tcp.site.test.": {service(1), service(2)}, "node1.site.test.": {node(1)}, "node2.site.test.": {node(2)}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := layOut(t, 2, netns.Link{}, netns.Link{}, registryConfig{})
			wrap := c.zone.serve(t, s.Switch())
			for k := 1; k <= 2; k++ {
				s.startCache(t, pierConfig{wrap: wrap, args: []string{
					"--peers-dns", c.dns, "--mdns=false", "--gossip-listen", fmt.Sprint(":", c.ports(k)),
				}})
			}
			s.node(1).awaitNames(t, s.node(2).place.HostPort(c.ports(2)))
			s.node(2).awaitNames(t, s.node(1).place.HostPort(c.ports(1)))
		})
	}
}

// A node of two addresses, whose doors are open at the second only.
func TestPeersReachANodeAtTheAddressItAdvertises(t *testing.T) {
	t.Parallel()
	s := layOut(t, 2, netns.Link{}, netns.Link{}, registryConfig{})
	must(t, s.Node(1).CommandContext(t.Context(), "ip", "addr", "add", "10.77.0.101/24", "dev", "eth0").Run())
	one := s.startCache(t, pierConfig{args: []string{
		"--peers", "10.77.0.2", "--advertise-addr", "10.77.0.101", "--peer-listen", "10.77.0.101:5000",
	}})
	two := s.startCache(t, pierConfig{args: []string{"--peers", "10.77.0.1"}})
	one.awaitNames(t, two.name())
	if a := two.awaitNames(t, "10.77.0.101:7946"); a.Peers[0].Door != "10.77.0.101:5000" {
		t.Errorf("node 2 reaches node 1 at the peer door %s", a.Peers[0].Door)
	}
	want := s.put(t, newImage(t, 500<<10), one)
	two.awaitHolderAt(t, "10.77.0.101:7946", want)
	s.cutWAN(t)
	two.pull(t, want.root().Digest.String(), want)
	if got := two.sum(t, `pier_peer_received_bytes_total{peer="10.77.0.101:7946"}`); got < float64(want.size()) {
		t.Errorf("node 2 got %v bytes from the address advertised, want %d", got, want.size())
	}
}

// Two clusters on one LAN, where everybody hears everybody by mDNS and was told of a node of the other cluster.
func TestClustersOfOtherNamesShareNothing(t *testing.T) {
	t.Parallel()
	s := layOut(t, 4, netns.Link{}, netns.Link{}, registryConfig{})
	for _, args := range [][]string{
		{"--cluster", "east", "--peers", "10.77.0.3"}, {"--cluster", "east", "--peers", "10.77.0.4"},
		{"--peers", "10.77.0.1"}, {"--peers", "10.77.0.2"},
	} {
		s.startCache(t, pierConfig{args: append([]string{"--mdns"}, args...)})
	}
	one, two, three, four := s.node(1), s.node(2), s.node(3), s.node(4)
	wantApart := func() {
		t.Helper()
		s.awaitPeers(t, one, two)
		s.awaitPeers(t, two, one)
		s.awaitPeers(t, three, four)
		s.awaitPeers(t, four, three)
	}
	wantApart()
	want := s.put(t, newImage(t, mib), one)
	s.mustGet(t, two, one, want)
	before := s.fetched(t)
	three.pull(t, want.root().Digest.String(), want)
	if got := s.fetched(t) - before; got < want.size() {
		t.Errorf("%d bytes came through the WAN for the second cluster, want all %d", got, want.size())
	}
	s.mustGet(t, four, three, want)
	eventually(t, siteWait, func() error {
		for _, n := range s.nodes {
			if strings.Contains(n.log.String(), "another key or cluster name") {
				return nil
			}
		}
		return errors.New("no node says that strangers gossip here")
	})
	wantApart()
}

func TestPeersOfASiteWithoutIPv4(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{"peers": {"--peers", "fd77::1", "--peers", "[fd77::2]:5000"}, "mDNS": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := layOut(t, 2, netns.Link{}, netns.Link{}, registryConfig{})
			const upstream = "[fd78::1]:5000"
			s.registry.serve(t, upstream, registryConfig{at: s.Upstream()})
			for k := 1; k <= 2; k++ {
				must(t, s.Node(k).CommandContext(t.Context(), "ip", "-4", "addr", "flush", "dev", "eth0").Run())
				n := s.startCache(t, pierConfig{
					args: args, unready: true,
					upstreams: fmt.Sprintf("- name: registry.test\n  mirrors: [%q]\n- name: %[1]q\n  scheme: http\n", upstream),
				})
				n.metrics = "http://[::1]:9090"
				n.awaitReady(t)
			}
			one, two := s.node(1), s.node(2)
			one.awaitNames(t, "[fd77::2]:7946")
			two.awaitNames(t, "[fd77::1]:7946")
			want := s.put(t, newImage(t, mib), one)
			two.awaitHolderAt(t, "[fd77::1]:7946", want)
			s.cutWAN(t)
			two.pull(t, want.root().Digest.String(), want)
		})
	}
}

// A rotation as docs/peers.md has it, one node after the other. At each step one node starts anew, so that connections are
// made with what the files hold then, in both directions.
func TestClusterKeyIsReplacedWhileNodesRun(t *testing.T) {
	t.Parallel()
	s := layOut(t, 3, netns.Link{}, netns.Link{}, registryConfig{})
	dir := t.TempDir()
	file := func(k int) string { return filepath.Join(dir, fmt.Sprint("key-", k)) }
	older, newer := run(t, pierBinary, "key", "new")+"\n", run(t, pierBinary, "key", "new")+"\n"
	write := func(k int, text string) {
		t.Helper()
		writeFile(t, file(k)+".new", text)
		must(t, os.Rename(file(k)+".new", file(k)))
	}
	for k := 1; k <= 3; k++ {
		write(k, older)
		s.startCache(t, pierConfig{args: []string{"--peers", "10.77.0.1", "--peers", "10.77.0.2", "--cluster-key-file", file(k)}})
	}
	one, two, three := s.node(1), s.node(2), s.node(3)
	together := func() {
		t.Helper()
		for _, n := range s.nodes {
			s.awaitPeers(t, n)
		}
	}
	together()
	change := func(text string, nodes ...*siteNode) {
		t.Helper()
		var reloads []int
		const said = "configuration read again"
		for _, n := range nodes {
			reloads = append(reloads, strings.Count(n.log.String(), said))
			write(n.number, text)
		}
		for i, n := range nodes {
			eventually(t, siteWait, func() error {
				if strings.Count(n.log.String(), said) == reloads[i] {
					return fmt.Errorf("node %d does not say that it read the key again", n.number)
				}
				return nil
			})
		}
	}

	for _, text := range []string{older + newer, newer + older, newer} {
		theirs, its := s.put(t, newImage(t, 100<<10), one), s.put(t, newImage(t, 100<<10), three)
		change(text, one)
		three.kill()
		three.restart(t)
		together()
		s.mustGet(t, three, one, theirs)
		s.mustGet(t, one, three, its)
		change(text, two, three)
		s.mustGet(t, two, three, its)
	}

	// Who has only the old key is a stranger now.
	three.terminate(t, siteWait)
	write(3, older)
	three.restart(t)
	eventually(t, siteWait, func() error {
		for _, n := range []*siteNode{one, two} {
			if strings.Contains(n.log.String(), "another key or cluster name") {
				return nil
			}
		}
		return errors.New("no node says that a stranger gossips here")
	})
	if a, _ := three.peers(t); len(a.Peers) > 0 {
		t.Errorf("the node with the old key alone has the peers %+v", a.Peers)
	}
	s.awaitPeers(t, one, two)
}
