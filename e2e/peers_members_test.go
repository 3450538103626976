//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pier/e2e/netns"
)

func TestPeersFindEachOtherAgainAfterAPartition(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"short", "long"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startSite(t, siteConfig{stores: []string{"cache", "cache", "cache"}})
			one, two, three := s.node(1), s.node(2), s.node(3)
			early, during := newImage(t, 2*mib), newImage(t, 2*mib)
			s.registry.put(t, "app", "early", early)
			s.registry.put(t, "app", "during", during)
			one.pull(t, "early", early)
			s.partition(t, []int{1}, []int{2, 3})
			// Either side works on its own.
			two.pull(t, "early", early)
			one.pull(t, "during", during)
			if name == "long" {
				s.awaitParted(t, one)
				s.awaitParted(t, two, three)
				s.awaitParted(t, three, two)
			} else {
				time.Sleep(4 * time.Second) // nobody is given up, but what is told meanwhile arrives nowhere
			}

			s.heal(t)
			for _, n := range s.nodes {
				s.awaitPeersWithin(t, time.Minute, n)
			}
			three.awaitHolder(t, one, early)
			two.awaitHolder(t, one, during)
			three.awaitHolder(t, two, early)
			s.cutWAN(t)
			two.pull(t, "during", during)
			three.pull(t, "early", early)
		})
	}
}

// awaitParted waits until the node has given up all peers but these.
func (s *site) awaitParted(t *testing.T, n *siteNode, but ...*siteNode) {
	t.Helper()
	eventually(t, time.Minute, func() error { // probes, suspicion, and the bound on how fast members are dropped
		a, _ := n.peers(t)
		if len(a.Peers) > len(but) {
			return fmt.Errorf("node %d has the peers %+v, though it is cut off from all but %d", n.number, a.Peers, len(but))
		}
		return nil
	})
}

func TestPeersFileIsFollowedWhileItIsEdited(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(k int) string { return filepath.Join(dir, fmt.Sprint("peers-", k)) }
	for k := 1; k <= 3; k++ {
		writeFile(t, file(k), "# nobody yet\n")
	}
	s := startSite(t, siteConfig{
		stores: []string{"none", "none", "none"}, unjoined: true,
		nodeArgs: func(k int) []string { return []string{"--peers-file", file(k)} },
	})
	one, two, three := s.node(1), s.node(2), s.node(3)
	// A change takes effect within 2 s. The rest is for a machine that is busy with other tests.
	const prompt = 2*time.Second + patience
	if a, _ := one.peers(t); len(a.Peers) > 0 {
		t.Fatalf("peers %+v, though none were named", a.Peers)
	}

	// As an editor writes: a new file in the old one's place.
	writeFile(t, file(1)+".new", "# the site\n10.77.0.2\n")
	must(t, os.Rename(file(1)+".new", file(1)))
	s.awaitPeersWithin(t, prompt, one, two)
	s.awaitPeersWithin(t, prompt, two, one)

	// As a shell does: in place. The port is that of the peer door.
	writeFile(t, file(1), "10.77.0.2\nno such host!\n\n10.77.0.3:5000 # by its peer door\n")
	s.awaitPeersWithin(t, prompt, one, two, three)
	s.awaitPeersWithin(t, prompt, two, one, three)
	a, _ := one.peers(t)
	if len(a.Faults) != 1 || !strings.Contains(a.Faults[0], "no such host!") {
		t.Errorf("faults %q, want one that names the bad line", a.Faults)
	}
	if !strings.Contains(one.log.String(), "no such host!") {
		t.Error("the log says nothing of the bad line")
	}

	writeFile(t, file(1), "10.77.0.3:5000\n")
	s.awaitPeersWithin(t, prompt, one, three)
	if a, _ := one.peers(t); len(a.Faults) > 0 {
		t.Errorf("faults %q of a file that has none any more", a.Faults)
	}

	writeFile(t, file(1), "10.77.0.3:5000\n10.77.0.2:9090\n")
	s.awaitPeersWithin(t, prompt, one, two, three)
}

// Nodes with nothing but defaults, beside an mDNS daemon on one of them that has the same port.
func TestPeersFindEachOtherByMDNSBesideAvahi(t *testing.T) {
	t.Parallel()
	s := startSite(t, siteConfig{stores: []string{"none", "none"}, nodeArgs: func(int) []string { return nil }, unjoined: true})
	socket := startAvahi(t, s.node(1).place)
	for _, n := range s.nodes {
		s.awaitPeersWithin(t, time.Minute, n)
	}
	eventually(t, time.Minute, func() error {
		out, err := browseAvahi(t, s.node(1).place, socket, "_pier._tcp")
		if err != nil {
			return err
		}
		for _, n := range s.nodes {
			for _, part := range []string{";" + n.place.Addr().String() + ";7946;", "cluster=pier"} {
				if !slices.ContainsFunc(strings.Split(out, "\n"), func(line string) bool {
					return strings.HasPrefix(line, "=") && strings.Contains(line, n.place.Addr().String()) && strings.Contains(line, part)
				}) {
					return fmt.Errorf("avahi-browse lists no %s of node %d:\n%s", part, n.number, out)
				}
			}
		}
		return nil
	})
}

func TestPeersAndLocateTellWhoHasWhat(t *testing.T) {
	t.Parallel()
	s := startSite(t, siteConfig{stores: []string{"cache", "none"}, nodeArgs: func(k int) []string {
		return []string{"--peers", "10.77.0.1", "--zone", fmt.Sprint("rack-", k)}
	}})
	one, two := s.node(1), s.node(2)
	want := newImage(t, 100<<10)
	s.registry.put(t, "app", "v1", want)
	one.pull(t, "v1", want)
	two.awaitHolder(t, one, want)
	ask := func(args ...string) (string, error) {
		line := two.place.Line(pierBinary, args...)
		return tryRun(t, nil, line[0], line[1:]...)
	}

	var peers peersAnswer
	eventually(t, siteWait, func() error { // how much a peer holds, and how far it is, becomes known in time
		out, err := ask("peers", "--json")
		must(t, err)
		must(t, json.Unmarshal([]byte(out), &peers))
		if len(peers.Peers) != 1 || peers.Peers[0].RTT <= 0 || peers.Peers[0].Blobs < int64(len(want.blobs)) {
			return fmt.Errorf("pier peers --json: %s", out)
		}
		return nil
	})
	got := peers.Peers[0]
	if got.Name != one.name() || got.Door != one.place.HostPort(5000) || got.Zone != "rack-1" || got.State != "up" || got.Version == "" || got.Host == "" {
		t.Errorf("pier peers --json: peer %+v", got)
	}
	if peers.Self.Name != two.name() || peers.Self.Zone != "rack-2" {
		t.Errorf("pier peers --json: self %+v", peers.Self)
	}
	for _, what := range []string{"registry.test/app:v1", want.layer(0).Digest.String()} {
		out, err := ask("locate", "--json", what)
		if err != nil || !strings.Contains(out, one.name()) {
			t.Errorf("pier locate --json %s: %v\n%s", what, err, out)
		}
		if out, err := ask("locate", what); err != nil || !strings.Contains(out, one.place.HostPort(5000)) || !strings.Contains(out, "complete") {
			t.Errorf("pier locate %s: %v\n%s", what, err, out)
		}
	}
	if out, err := ask("locate", newImage(t, 1).root().Digest.String()); err == nil {
		t.Errorf("pier locate of what nobody has: %s", out)
	}
}

// startAvahi starts an avahi-daemon, with a message bus of its own, and returns the bus's address.
func startAvahi(t *testing.T, at *netns.Place) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pier-e2e-bus-") // a socket's path is short
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	bus := filepath.Join(dir, "bus")
	writeFile(t, filepath.Join(dir, "bus.conf"), fmt.Sprintf(`<busconfig>
	<listen>unix:path=%s</listen><auth>EXTERNAL</auth>
	<policy context="default">
		<allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/><allow eavesdrop="true"/>
	</policy>
</busconfig>
`, bus))
	startProcess(t, "dbus-daemon", exec.Command(tool("bin/dbus-daemon"), "--config-file", filepath.Join(dir, "bus.conf"), "--nofork", "--nopidfile"))
	writeFile(t, filepath.Join(dir, "avahi.conf"), "[server]\nhost-name=avahi-one\nallow-interfaces=eth0\n[publish]\npublish-workstation=no\n")
	// It keeps its files in /run, and runs as a user of its own, which this machine may not have.
	writeFile(t, filepath.Join(dir, "passwd"), "root:x:0:0::/:/bin/sh\navahi:x:1:1::/:/bin/false\n")
	writeFile(t, filepath.Join(dir, "group"), "root:x:0:\navahi:x:1:\nnetdev:x:2:\n")
	cmd := at.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", `
		until [ -S "$1/bus" ]; do sleep 0.1; done
		mount -t tmpfs none /run && mkdir /run/avahi-daemon && mount --bind "$1/passwd" /etc/passwd && mount --bind "$1/group" /etc/group &&
		exec "$2" -f "$1/avahi.conf" --no-drop-root --no-chroot --no-rlimits`, "sh", dir, tool("bin/avahi-daemon"))
	cmd.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS=unix:path="+bus)
	startProcess(t, "avahi-daemon", cmd)
	eventually(t, siteWait, func() error {
		_, err := browseAvahi(t, at, "unix:path="+bus, "_none._tcp")
		return err
	})
	return "unix:path=" + bus
}

// browseAvahi returns what avahi knows of a service, a line each, in the form of avahi-browse -p.
func browseAvahi(t *testing.T, at *netns.Place, bus, service string) (string, error) {
	t.Helper()
	line := at.Line(tool("bin/avahi-browse"), "--resolve", "--parsable", "--terminate", service)
	return tryRun(t, []string{"DBUS_SYSTEM_BUS_ADDRESS=" + bus}, line[0], line[1:]...)
}
