//go:build e2e

package e2e

import (
	"testing"

	"pier/e2e/netns"
)

// An image that all Dockers of a site pull at once comes through the WAN once.
func TestDockersThatPullAtOnceFetchOneCopy(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		plain  bool
		stores []string
	}{
		{"two", false, []string{classic, classic}},
		{"three", false, []string{classic, classic, classic}},
		{"three of three kinds over plain HTTP", true, []string{classic, modern, "containerd2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := siteConfig{stores: c.stores, wan: netns.Link{Down: 40 * netns.Mbit}, address: true, proxied: true}
			if !c.plain {
				cfg = sealed(t, cfg)
			}
			s := startSite(t, cfg)
			want := newImage(t, 12*mib, 6*mib, 1000)
			s.registry.put(t, "app", "v1", want)
			before := s.fetched(t)
			pullAll(t, "v1", want, s.nodes...)
			s.wantFetched(t, before, want, 1.1)
		})
	}
}

// What one Docker is still downloading, another one gets from there.
func TestDockersDownloadIsSharedWhileItArrives(t *testing.T) {
	t.Parallel()
	s := startSite(t, siteConfig{stores: []string{classic, classic}, wan: netns.Link{Down: 24 * netns.Mbit}, address: true})
	want := newImage(t, 18*mib) // 6 s
	s.registry.put(t, "app", "v1", want)
	before := s.fetched(t)
	first := s.node(1).beginPull(t, "v1", want)
	s.awaitFetched(t, before, want.size()/4, first)
	if got := s.node(1).spooled(t); got == 0 {
		t.Error("pier has no temporary file of what it fetches for Docker")
	}
	sent := s.sent(t)
	second := s.node(2).beginPull(t, "v1", want)
	s.awaitFetched(t, before, want.size()/2, first, second)
	up, _, err := s.LAN(t.Context(), 1)
	must(t, err)
	if got := up.Payload() - sent[0]; got < want.size()/8 {
		t.Errorf("node 1 has sent %d bytes of what it is receiving, want at least %d", got, want.size()/8)
	}
	for _, p := range []*pulling{first, second} {
		if err := p.wait(); err != nil {
			t.Errorf("node %d: %v", p.node.number, err)
		}
	}
	s.wantFetched(t, before, want, 1.1)
	for _, n := range s.nodes {
		n.wantNoLayers(t)
	}
}
