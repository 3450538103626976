//go:build e2e

package e2e

import (
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// An image of several platforms, of which a classic Docker keeps one and knows the others by name only.
func TestDockerNodesShareAnIndex(t *testing.T) {
	t.Parallel()
	s := startSite(t, siteConfig{stores: []string{classic, classic, modern}})
	index := newIndex(t, 3*mib, v1.Platform{OS: "linux", Architecture: "amd64"}, v1.Platform{OS: "linux", Architecture: "arm64"})
	s.registry.put(t, "app", "v1", index)
	s.node(1).pull(t, "v1", index)
	// What the first node got: the index, the manifest of its platform, and what that names.
	got := &image{blobs: index.blobs[:2], manifests: []blob{index.manifests[0], index.root()}}
	for _, n := range s.nodes[1:] {
		n.awaitHolder(t, s.node(1), got)
	}
	s.cutWAN(t)
	before := s.fetched(t)
	for _, n := range s.nodes[1:] {
		n.pull(t, "v1", index)
		n.docker.do(t, "pull", "--quiet", n.from+"/app@"+index.root().Digest.String())
		if platform := n.docker.do(t, "image", "inspect", "--format", "{{.Architecture}}", n.from+"/app:v1"); platform != "amd64" {
			t.Errorf("node %d has the image for %s", n.number, platform)
		}
	}
	if got := s.fetched(t) - before; got > 0 {
		t.Errorf("%d bytes came through a WAN that was cut", got)
	}
}
