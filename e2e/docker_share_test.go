//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// Whatever keeps images on one node, another node has them from there when the registry, and all that is beyond the LAN, is gone.
// Each of nine pairs has images of its own, which nobody else could give; Docker's classic store has them of all builders.
func TestDockerNodesShareWithoutAWAN(t *testing.T) {
	t.Parallel()
	s := startSite(t, siteConfig{stores: []string{classic, modern, "containerd2", classic, modern, "containerd2"}, address: true})
	var shares []share
	for i, builder := range builderNames() {
		shares = append(shares, share{sharedImage(t, builder), 1, []int{4 + i%3}})
	}
	for i, builder := range []string{"crane", "gzip", "umoci"} {
		shares = append(shares, share{makeImage(t, builder), 2, []int{4 + i}}, share{makeImage(t, builder), 3, []int{4 + i}})
	}
	s.shareAll(t, shares)
}

// The same through TLS that the node's proxy answers, for each way to have Docker trust it. containerd asks the proxy, too.
func TestDockerNodesShareThroughInterceptedTLS(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		by      trust
		builder [3]string // of what each node has
	}{
		{"environment", trustEnv, [3]string{"docker", "pigz", "gzip"}},
		{"certs.d", trustRegistry, [3]string{"buildah", "crane", "gzip"}},
		{"system", trustSystem, [3]string{"umoci", "python", "gzip"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := startSite(t, sealed(t, siteConfig{stores: []string{classic, modern, "containerd2"}, docker: dockerConfig{caBy: c.by}}))
			s.shareAll(t, []share{
				{sharedImage(t, c.builder[0]), 1, []int{2, 3}},
				{sharedImage(t, c.builder[1]), 2, []int{3, 1}},
				{sharedImage(t, c.builder[2]), 3, []int{1, 2}},
			})
		})
	}
}

// Layers of zstd, in the classic store of a Docker that reads them.
func TestDockerNodesShareZstdLayers(t *testing.T) {
	t.Parallel()
	s := startSite(t, siteConfig{stores: []string{modern, modern, "containerd2"}, docker: dockerConfig{overlay: true}, address: true})
	s.shareAll(t, []share{
		{makeImage(t, "buildkit, zstd"), 1, []int{2, 3}},
		{makeImage(t, "buildah, zstd"), 2, []int{1, 3}},
	})
}

// A registry of plain HTTP that Docker has among its insecure registries, and no more than that: it tries TLS first, and goes on
// to plain HTTP if what answers is no TLS. Docker 29 does not if nothing answers.
func TestDockersInsecureRegistryIsServedWithoutAWAN(t *testing.T) {
	t.Parallel()
	eachDocker(t, func(t *testing.T, version string) {
		s := startSite(t, siteConfig{stores: []string{classic, version}, address: true})
		one, two := s.node(1), s.node(2)
		must(t, os.RemoveAll(filepath.Join(two.docker.etc, "certs.d", two.from)))
		i := sharedImage(t, "crane")
		s.registry.put(t, "app", "v1", i.image)
		one.pull(t, "v1", i.image)
		two.awaitHolder(t, one, i.image)
		s.cutWAN(t)
		two.pull(t, "v1", i.image)
	})
}

// A share is an image, the node that pulls it while there is a registry, and those that pull it when there is none.
type share struct {
	*builtImage
	holder    int
	consumers []int
}

// shareAll has the holders pull, cuts the WAN, and has the consumers pull, all at once. Of no image is anything to be left with pier
// that its runtime has.
func (s *site) shareAll(t *testing.T, shares []share) {
	t.Helper()
	for i, sh := range shares {
		tag := fmt.Sprint("v", i)
		s.registry.put(t, "app", tag, sh.image)
		s.node(sh.holder).pull(t, tag, sh.image)
	}
	for _, sh := range shares {
		for _, k := range sh.consumers {
			s.node(k).awaitHolder(t, s.node(sh.holder), sh.image)
		}
	}
	for _, n := range s.nodes {
		n.wantNoLayers(t) // from now on, what a classic store has is made again
	}
	s.cutWAN(t)
	before := s.fetched(t)
	var wg sync.WaitGroup
	for _, n := range s.nodes {
		wg.Go(func() { n.pullShares(t, shares) })
	}
	wg.Wait()
	if got := s.fetched(t) - before; got > 0 {
		t.Errorf("%d bytes came through a WAN that was cut", got)
	}
	for _, n := range s.nodes {
		n.wantNoLayers(t)
	}
}

// pullShares pulls what is shared with the node, by tag and by digest in turn, and runs it if it can.
func (n *siteNode) pullShares(t *testing.T, shares []share) {
	for i, sh := range shares {
		j := slices.Index(sh.consumers, n.number)
		if j < 0 {
			continue
		}
		reference := fmt.Sprint("v", i)
		if (i+j)%2 > 0 {
			reference = sh.root().Digest.String()
		}
		err := n.tryPull(t, reference, sh.image)
		if err == nil && n.docker != nil {
			var says string
			if says, err = n.docker.try(t, "run", "--rm", "--network", "none", "--pull", "never", n.named(reference)); says != sh.says {
				t.Errorf("node %d: docker run of %s printed %q, want %q", n.number, reference, says, sh.says)
			}
		}
		if err != nil {
			t.Errorf("node %d: %s: %v", n.number, reference, err)
		}
	}
}

// wantNoLayers fails the test if pier keeps more than manifests and recipes, in files that have names or in files that have none.
func (n *siteNode) wantNoLayers(t *testing.T) {
	t.Helper()
	if size, _ := onDisk(t, n.data); size > 64<<10 {
		t.Errorf("node %d: pier keeps %d bytes in its data directory, want no layers", n.number, size)
	}
	eventually(t, 30*time.Second, func() error {
		if got := n.spooled(t); got > 64<<10 {
			return fmt.Errorf("node %d: pier has %d bytes in temporary files", n.number, got)
		}
		return nil
	})
	if n.docker == nil || !n.docker.overlay {
		return
	}
	for _, outcome := range []string{"kept", "lost"} {
		if got := n.metric(t, fmt.Sprintf("pier_layers_learned_total{outcome=%q}", outcome)); got > 0 {
			t.Errorf("node %d: %v layers cannot be made again (%s)", n.number, got, outcome)
		}
	}
}
