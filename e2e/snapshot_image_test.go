//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// An image layout that skopeo made goes from store to store and back into a registry, with all that refers to it.
func TestSnapshotOfAnImageGoesRound(t *testing.T) {
	t.Parallel()
	source, target, debian := startReferrersRegistry(t), startReferrersRegistry(t), startRegistry(t, registryConfig{})
	index := newIndex(t, 3<<20, amd64, arm64)
	pushImage(t, "http://"+source, "team/app", "v1", index)
	regctl := func(args ...string) string {
		return run(t, tool("bin/regctl"), slices.Concat([]string{"--host", "reg=" + source + ",tls=disabled", "--host", "reg=" + target + ",tls=disabled"}, args)...)
	}
	skopeo := func(args ...string) string {
		return run(t, tool("bin/skopeo"), append([]string{"--insecure-policy"}, args...)...)
	}

	// Two refer to the image, and one to one of those; skopeo copies the image, regctl adds the others to its layout.
	file := filepath.Join(t.TempDir(), "sbom.json")
	writeFile(t, file, `{"spdxVersion":"SPDX-2.3"}`)
	regctl("artifact", "put", "--artifact-type", "application/spdx+json", "--file", file, "--subject", source+"/team/app:v1")
	signature := newArtifact(t, "application/vnd.example.signature", index.root())
	pushImage(t, "http://"+source, "team/app", "", signature)
	pushImage(t, "http://"+source, "team/app", "", newArtifact(t, "application/vnd.example.countersignature", signature.root()))
	layout := filepath.Join(t.TempDir(), "layout")
	skopeo("copy", "--all", "--src-tls-verify=false", "docker://"+source+"/team/app:v1", "oci:"+layout+":v1")
	regctl("image", "copy", "--referrers", source+"/team/app:v1", "ocidir://"+layout+":v1")
	checkLayout(t, layout, index)
	want := referrersOf(t, source, index.root())
	if len(want) != 2 {
		t.Fatalf("the registry has %d referrers, want 2", len(want))
	}

	s3, gs := startStore(t, "s3"), startStore(t, "gs")
	m := newMover(t, s3, gs)
	id := m.push(t, s3, layout, "--name", "team/app:v1").ID
	m.must(t, "sync", "--from", s3.url, "--to", gs.url, "--id", id)
	out := filepath.Join(t.TempDir(), "out")
	m.must(t, "pull", "--store", gs.url, "--id", id, out)
	checkSame(t, layout, out)

	regctl("image", "copy", "--referrers", "ocidir://"+out+":v1", target+"/team/app:v1")
	if got := regctl("manifest", "head", target+"/team/app:v1"); got != index.root().Digest.String() {
		t.Errorf("the image is %s, want %s", got, index.root().Digest)
	}
	if got := referrersOf(t, target, index.root()); !slices.Equal(got, want) {
		t.Errorf("referrers: got %q, want %q", got, want)
	}
	if got := referrersOf(t, target, signature.root()); len(got) != 1 {
		t.Errorf("referrers of the signature: %q", got)
	}
	skopeo("copy", "--all", "--dest-tls-verify=false", "oci:"+out+":v1", "docker://"+debian.push+"/team/app:v1")
	var back v1.Index
	raw := skopeo("inspect", "--raw", "--tls-verify=false", "docker://"+debian.push+"/team/app:v1")
	if err := json.Unmarshal([]byte(raw), &back); err != nil || raw != strings.TrimSpace(string(index.root().data)) {
		t.Errorf("the index is another: %v\n%s", err, raw)
	}
	for i, child := range back.Manifests {
		if child.Digest != index.manifests[i].Digest {
			t.Errorf("image %d is %s, want %s", i, child.Digest, index.manifests[i].Digest)
		}
	}

	// Straight from the registry, and without the layout in between.
	ref := source + "/team/app:v1"
	writeFile(t, filepath.Join(m.home, "upstreams.yaml"), plainUpstream(source))
	text := m.must(t, "push", "--store", gs.url, "--upstreams", filepath.Join(m.home, "upstreams.yaml"), "--referrers", ref)
	straight := filepath.Join(t.TempDir(), "straight")
	m.must(t, "pull", "--store", gs.url, "--id", text, straight)
	checkLayout(t, straight, index)
	checkLayout(t, straight, signature)
}

// referrersOf returns what refers to a manifest in a registry, sorted.
func referrersOf(t *testing.T, registry string, subject blob) (digests []string) {
	t.Helper()
	var list v1.Index
	body := fetch(t, fmt.Sprintf("http://%s/v2/team/app/referrers/%s", registry, subject.Digest)).body
	if err := json.Unmarshal(body, &list); err != nil {
		t.Fatalf("%v\n%s", err, body)
	}
	for _, d := range list.Manifests {
		digests = append(digests, d.Digest.String()+" "+d.ArtifactType)
	}
	slices.Sort(digests)
	return digests
}
