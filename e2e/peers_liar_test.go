//go:build e2e

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"pier/e2e/faultproxy"
	"pier/e2e/netns"
)

// A node that lies: what it has is right, and what leaves its peer door is not. To the site it is a member like others.
func TestPeerThatLiesCostsAnAttemptAndNothingWrongIsKept(t *testing.T) {
	t.Parallel()
	s := layOut(t, 3, netns.Link{}, netns.Link{}, registryConfig{})
	liar := s.startCache(t, pierConfig{args: []string{"--peers", "10.77.0.2", "--peer-listen", "127.0.0.1:5000"}})
	transport := liar.place.Transport()
	t.Cleanup(transport.CloseIdleConnections)
	proxy := faultproxy.New(faultproxy.Config{
		Target: &url.URL{Scheme: "http", Host: "127.0.0.1:5000"}, Transport: transport,
		Rules: []faultproxy.Rule{{Path: faultproxy.Of(faultproxy.Blob), Fault: faultproxy.Flip(10_000)}},
	})
	t.Cleanup(proxy.Close)
	serveAt(t, liar.place, liar.place.HostPort(5000), proxy)
	for range 2 {
		s.startCache(t, pierConfig{args: []string{"--peers", "10.77.0.1"}})
	}
	two, three := s.node(2), s.node(3)
	for _, n := range s.nodes {
		s.awaitPeers(t, n)
	}
	want := s.put(t, newImage(t, 3*mib, 50<<10), liar)
	two.awaitHolder(t, liar, want)
	three.awaitHolder(t, liar, want)

	// Of a small blob nobody gets a byte before it is proven.
	small := two.client().get(t, "app/blobs/"+want.layer(1).Digest.String())
	must(t, small.matches(want.layer(1)))
	for _, n := range []*siteNode{two, three} {
		if err := n.client().pull(t.Context(), "app", want.root().Digest.String(), want); err != nil {
			t.Logf("the first attempt of node %d broke off: %v", n.number, err)
		}
		wantNothingWrong(t, n)
		n.pull(t, want.root().Digest.String(), want)
		wantNothingWrong(t, n)
	}
	if two.metric(t, `pier_quarantines_total{copy="neighbour"}`) == 0 || proxy.SentOf(faultproxy.Blob) < want.layer(0).Size {
		t.Errorf("node 2 found nothing wrong, and the liar sent %d bytes of blobs: this test tests nothing", proxy.SentOf(faultproxy.Blob))
	}
}

// wantNothingWrong compares what a node's cache holds with the names it holds it under.
func wantNothingWrong(t *testing.T, n *siteNode) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(n.cache, "blobs/sha256/*"))
	must(t, err)
	for _, file := range files {
		content, err := os.ReadFile(file)
		must(t, err)
		if sum := sha256.Sum256(content); hex.EncodeToString(sum[:]) != filepath.Base(file) {
			t.Errorf("node %d keeps %d wrong bytes as %s", n.number, len(content), filepath.Base(file))
		}
	}
}
