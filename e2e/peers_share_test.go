//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"testing"

	"pier/e2e/netns"
)

const mib = 1 << 20

// eachRuntime runs a test on sites whose nodes have one version of containerd each.
func eachRuntime(t *testing.T, test func(t *testing.T, version string)) {
	for _, version := range []string{"containerd1", "containerd2"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			test(t, version)
		})
	}
}

func TestPeersGiveEverythingToANodeWithoutAWAN(t *testing.T) {
	t.Parallel()
	eachRuntime(t, func(t *testing.T, version string) {
		s := startSite(t, siteConfig{stores: []string{version, version}})
		want := newImage(t, 12*mib, 3*mib, 1000)
		s.registry.put(t, "app", "v1", want)
		one, two := s.node(1), s.node(2)
		one.pull(t, "v1", want)
		two.awaitHolder(t, one, want)
		s.cutWAN(t)
		before := s.fetched(t)

		// What another node asks for, thing by thing.
		two.client().mustPull(t, "app", "v1", want)
		two.client().mustPull(t, "app", want.root().Digest.String(), want)
		a := two.client().head(t, "app/manifests/v1")
		if a.status != http.StatusOK || a.header.Get("Docker-Content-Digest") != want.root().Digest.String() || a.header.Get("Warning") == "" {
			t.Errorf("tag from a peer: status %d, header %v, want %s and a Warning", a.status, a.header, want.root().Digest)
		}
		// And what its runtime does, by tag and by digest.
		two.pull(t, "v1", want)
		two.runtime.pull(t, two.hosts, "registry.test/app@"+want.root().Digest.String())
		if got := s.fetched(t) - before; got > 0 {
			t.Errorf("%d bytes came through a WAN that was cut", got)
		}
		if got := two.sum(t, "pier_peer_received_bytes_total"); got < float64(want.size()) {
			t.Errorf("pier_peer_received_bytes_total is %v, want at least %d", got, want.size())
		}
		if got := one.sum(t, `pier_served_bytes_total{door="peer",source="containerd"}`); got < float64(want.size()) {
			t.Errorf("bytes served at the peer door: %v, want at least %d", got, want.size())
		}
	})
}

func TestPeersPullAtOnceWithOneCopyThroughTheWAN(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		stores []string
		copies float64 // of the image through the WAN, at most
	}{
		"runtimes": {[]string{"containerd1", "containerd2", "containerd2"}, 1.1},
		"caches":   {[]string{"cache", "cache", "cache"}, 1.1},
		// Nothing remains for a node that comes too late for a small layer.
		"neither": {[]string{"none", "none", "none"}, 1.4},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startSite(t, siteConfig{stores: c.stores, wan: netns.Link{Up: 20 * netns.Mbit, Down: 80 * netns.Mbit}})
			want := newImage(t, 14*mib, 6*mib, 2*mib, 1000)
			s.registry.put(t, "app", "v1", want)
			before := s.fetched(t)
			pullAll(t, "v1", want, s.nodes...)
			s.wantFetched(t, before, want, c.copies)
			leases := 0.0
			for _, n := range s.nodes {
				leases += n.sum(t, "pier_leases_total")
			}
			if leases == 0 {
				t.Error("pier_leases_total is 0 on all nodes")
			}
		})
	}
}

// A registry that only the runtime has credentials for: it fetches by itself, and pier shares what it writes.
func TestPeersShareWhatOnlyTheRuntimeMayFetch(t *testing.T) {
	t.Parallel()
	for name, unlisted := range map[string]bool{"refused": false, "not listed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startSite(t, siteConfig{
				stores: []string{"containerd2", "containerd1", "containerd2"}, wan: netns.Link{Down: 50 * netns.Mbit},
				registry: registryConfig{basic: true}, address: true, past: true, unlisted: unlisted,
			})
			want := newImage(t, 24*mib, 1000)
			s.registry.put(t, "app", "v1", want)
			before := s.fetched(t)
			credentials := []string{"--user", user + ":" + password}
			pulls := []*pulling{s.node(1).beginPull(t, "v1", want, credentials...)}
			s.awaitFetched(t, before, want.size()/5, pulls...)
			for _, n := range s.nodes[1:] {
				pulls = append(pulls, n.beginPull(t, "v1", want, credentials...))
			}
			for _, p := range pulls {
				if err := p.wait(); err != nil {
					t.Errorf("node %d: %v", p.node.number, err)
				}
			}
			s.wantFetched(t, before, want, 1.15)
		})
	}
}

func TestPeersKnowTagsWhereUpstreamIsNotAsked(t *testing.T) {
	t.Parallel()
	wanCut := func(t *testing.T, s *site) { s.cutWAN(t) }
	for name, c := range map[string]struct {
		args []string // of node 2
		cut  func(t *testing.T, s *site)
	}{
		"WAN cut":    {cut: wanCut},
		"air-gapped": {args: []string{"--air-gapped"}, cut: func(*testing.T, *site) {}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startSite(t, siteConfig{stores: []string{"containerd2", "cache"}, nodeArgs: func(k int) []string {
				args := []string{"--peers", "10.77.0.1"}
				if k == 2 {
					args = append(args, c.args...)
				}
				return args
			}})
			want := newImage(t, mib)
			s.registry.put(t, "app", "V1.0_x", want)
			s.node(1).pull(t, "V1.0_x", want)
			two := s.node(2)
			two.awaitHolder(t, s.node(1), want)
			c.cut(t, s)
			before := s.fetched(t)
			// The name may be known a moment after the content.
			eventually(t, siteWait, func() error {
				a := two.client().head(t, "app/manifests/V1.0_x")
				if got := a.header.Get("Docker-Content-Digest"); a.status != http.StatusOK || got != want.root().Digest.String() {
					return fmt.Errorf("status %d, digest %q, want %s", a.status, got, want.root().Digest)
				}
				return nil
			})
			two.client().mustPull(t, "app", "V1.0_x", want)
			if got := s.fetched(t) - before; got > 0 {
				t.Errorf("%d bytes came through the WAN", got)
			}
		})
	}
}
