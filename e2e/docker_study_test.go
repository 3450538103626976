//go:build e2e

package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// studyTime is how long pier may take to find out, in the background, how the layers of some small images are made.
const studyTime = 2 * time.Minute

// What was in Docker before pier came has passed nobody: its layers are tried, its manifests put together anew.
func TestImagesThatWereInDockerBeforePierAreOffered(t *testing.T) {
	t.Parallel()
	s := startSite(t, siteConfig{stores: []string{classic, classic}, address: true})
	one, two := s.node(1), s.node(2)
	one.terminate(t, 20*time.Second)
	whole := []string{"docker", "crane", "umoci"}
	// buildah writes the digest of the image that this one was made from into the manifest, which nobody can guess: its layers are
	// found. What gzip writes into the header of a layer, name and time, nobody can guess either.
	images := map[string]*builtImage{"buildah": sharedImage(t, "buildah"), "gzip": {image: smallGzipImage(t)}}
	for _, builder := range whole {
		images[builder] = sharedImage(t, builder)
	}
	one.docker.unproxied(t, func() {
		for builder, i := range images {
			s.registry.put(t, "app", builder, i.image)
			one.docker.pull(t, one.named(builder))
		}
	})
	one.restart(t)
	s.awaitPeers(t, two)
	for _, builder := range whole {
		two.awaitHolderWithin(t, studyTime, one.name(), images[builder].image)
	}
	two.awaitHolderWithin(t, studyTime, one.name(), &image{blobs: images["buildah"].blobs})
	s.cutWAN(t)
	for n, builder := range whole {
		i, reference := images[builder], builder
		if n%2 > 0 {
			reference = i.root().Digest.String()
		}
		two.pull(t, reference, i.image)
		if got := two.docker.run(t, two.named(reference)); got != i.says {
			t.Errorf("docker run of %s printed %q, want %q", reference, got, i.says)
		}
	}

	const layerMissing, manifestMissing = "nothing makes it again as it was", "none of the usual forms is it"
	for text, want := range map[string]int{layerMissing: 1, manifestMissing: 1} {
		eventually(t, studyTime, func() error {
			if got := strings.Count(one.log.String(), text); got != want {
				return fmt.Errorf("the log says %q %d times, want %d", text, got, want)
			}
			return nil
		})
	}
	for _, b := range append(images["gzip"].blobs[1:], images["gzip"].root(), images["buildah"].root()) {
		if got := two.holders(t, b); len(got) > 0 {
			t.Errorf("%s, which nobody can make again, is said to be at %q", b.Digest, got)
		}
	}
	one.terminate(t, 20*time.Second)
	one.restart(t)
	s.awaitPeers(t, two)
	two.awaitHolder(t, one, images["docker"].image) // from what it remembers
	if got := strings.Count(one.log.String(), layerMissing); got > 0 {
		t.Errorf("what was tried in vain was tried again after a restart: %d layers", got)
	}
	one.wantNoLayers(t)
}

// smallGzipImage returns an image of one layer, which the program gzip compressed.
func smallGzipImage(t *testing.T) *image {
	t.Helper()
	needProgram(t, "gzip")
	root, archive := t.TempDir(), filepath.Join(t.TempDir(), "layer.tar")
	writeFile(t, filepath.Join(root, "file"), strings.Repeat(t.Name(), 1000))
	run(t, "tar", "--create", "--file", archive, "--directory", root, ".")
	run(t, "gzip", archive)
	r := startRegistry(t, registryConfig{})
	run(t, tool("bin/crane"), "append", "--new_tag", r.push+"/app:v1", "--new_layer", archive+".gz")
	return fetchImage(t, "http://"+r.push, "app", "v1")
}
