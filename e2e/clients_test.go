//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content/oci"
)

var amd64, arm64 = v1.Platform{OS: "linux", Architecture: "amd64"}, v1.Platform{OS: "linux", Architecture: "arm64"}

// checkLayout fails the test unless the OCI layout in dir holds all of want.
func checkLayout(t *testing.T, dir string, want *image) {
	t.Helper()
	store, err := oci.NewFromFS(t.Context(), os.DirFS(dir))
	if err != nil {
		t.Fatalf("%s is no OCI layout: %v", dir, err)
	}
	for _, b := range slices.Concat(want.blobs, want.manifests) {
		r, err := store.Fetch(t.Context(), b.Descriptor)
		if err != nil {
			t.Errorf("%s: %v", dir, err)
			continue
		}
		got, err := digest.FromReader(r)
		r.Close()
		if err != nil || got != b.Digest {
			t.Errorf("%s: %s has digest %s, error %v", dir, b.Digest, got, err)
		}
	}
}

// Clients name the registry in the path, before the repository.
func TestClientsPullThroughTheNodeDoor(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	single, index := newImage(t, 2<<20, 1000), newIndex(t, 100<<10, amd64, arm64)
	registry.put(t, "team/app", "v1", single)
	registry.put(t, "team/app", "Multi.2", index)
	p := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", registry.addr)})
	name := p.nodeAddr() + "/registry.test/team/app"

	skopeo := func(args ...string) string {
		return run(t, tool("bin/skopeo"), append([]string{"--insecure-policy"}, args...)...)
	}
	regctl := func(args ...string) string {
		return run(t, tool("bin/regctl"), append([]string{"--host", "reg=" + p.nodeAddr() + ",tls=disabled"}, args...)...)
	}
	crane := func(args ...string) string { return run(t, tool("bin/crane"), args...) }

	t.Run("skopeo copy", func(t *testing.T) {
		dir := t.TempDir()
		skopeo("copy", "--src-tls-verify=false", "docker://"+name+":v1", "oci:"+dir+":v1")
		checkLayout(t, dir, single)
		dir = t.TempDir()
		skopeo("copy", "--all", "--src-tls-verify=false", "docker://"+name+":Multi.2", "oci:"+dir+":v1")
		checkLayout(t, dir, index)
	})
	t.Run("skopeo list-tags", func(t *testing.T) {
		if got := skopeo("list-tags", "--tls-verify=false", "docker://"+name); !strings.Contains(got, "Multi.2") {
			t.Errorf("tags: %s", got)
		}
	})
	t.Run("crane", func(t *testing.T) {
		dir := t.TempDir()
		crane("pull", "--format", "oci", name+":v1", dir)
		checkLayout(t, dir, single)
		if got := crane("manifest", name+":Multi.2"); got != string(index.root().data) {
			t.Errorf("manifest: %s", got)
		}
		if got := crane("digest", name+":v1"); got != single.root().Digest.String() {
			t.Errorf("digest: %s", got)
		}
		child := index.manifests[1]
		if got := crane("digest", "--platform", "linux/arm64", name+":Multi.2"); got != child.Digest.String() {
			t.Errorf("digest for linux/arm64: got %s, want %s", got, child.Digest)
		}
		if got := strings.Fields(crane("ls", name)); !slices.Equal(got, []string{"Multi.2", "v1"}) {
			t.Errorf("ls: %q", got)
		}
		if got := crane("validate", "--remote", name+":v1"); !strings.Contains(got, "PASS") {
			t.Errorf("validate: %s", got)
		}
	})
	t.Run("regctl", func(t *testing.T) {
		dir := t.TempDir()
		regctl("image", "copy", name+":Multi.2", "ocidir://"+dir+":v1")
		checkLayout(t, dir, index)
		if got := strings.Fields(regctl("tag", "ls", name)); !slices.Equal(got, []string{"Multi.2", "v1"}) {
			t.Errorf("tag ls: %q", got)
		}
	})
}

func TestContainerdPullsItsPlatformOfAnIndex(t *testing.T) {
	t.Parallel()
	eachContainerd(t, func(t *testing.T, c *containerd) {
		registry := startRegistry(t, registryConfig{})
		index := newIndex(t, 100<<10, arm64, amd64)
		registry.put(t, "app", "v1", index)
		p := startPier(t, pierConfig{
			store: "containerd", upstreams: namedUpstream("registry.test", registry.addr), args: c.pierArgs(),
		})
		c.pull(t, hostsDir(t, "registry.test", "http://"+freeAddr(t), p.node), "registry.test/app:v1")
		content := c.do(t, "content", "ls", "--quiet")
		for _, want := range []blob{index.root(), index.manifests[1], index.blobs[3]} {
			if !strings.Contains(content, want.Digest.String()) {
				t.Errorf("containerd did not pull %s", want.Digest)
			}
		}
		if strings.Contains(content, index.blobs[1].Digest.String()) {
			t.Error("containerd pulled a layer of another platform")
		}
	})
}

func TestImagesOfOneAndOfManyLayers(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	sizes := make([]int, 60)
	for n := range sizes {
		sizes[n] = n * 2000
	}
	many := newImage(t, sizes...)
	one := newImage(t, 5<<20)
	registry.put(t, "many", "v1", many)
	registry.put(t, "one", "v1", one)
	eachContainerd(t, func(t *testing.T, c *containerd) {
		p := startPier(t, pierConfig{
			store: "containerd", upstreams: namedUpstream("registry.test", registry.addr), args: c.pierArgs(),
		})
		hosts := hostsDir(t, "registry.test", "http://"+freeAddr(t), p.node)
		for name, want := range map[string]*image{"many": many, "one": one} {
			c.pull(t, hosts, "registry.test/"+name+":v1")
			eventually(t, soon, func() error {
				return newClient(p.peer, "registry.test").pull(t.Context(), name, "v1", want)
			})
		}
	})
}

func TestReferrersAreListedAndFiltered(t *testing.T) {
	t.Parallel()
	subject := newImage(t, 1000)
	signature := newArtifact(t, "application/vnd.test.signature", subject.root())
	sbom := newArtifact(t, "application/vnd.test.sbom", subject.root())
	fallbackTag := strings.Replace(subject.root().Digest.String(), ":", "-", 1)

	// One registry has the referrers API; the other has the tag that clients write for those that have not.
	modern := startReferrersRegistry(t)
	classic := startRegistry(t, registryConfig{})
	for _, base := range []string{modern, classic.push} {
		pushImage(t, "http://"+base, "app", "v1", subject)
		pushImage(t, "http://"+base, "app", "", signature)
		pushImage(t, "http://"+base, "app", "", sbom)
	}
	fallback := v1.Index{MediaType: v1.MediaTypeImageIndex}
	fallback.SchemaVersion = 2
	for _, artifact := range []*image{signature, sbom} {
		desc := artifact.root().Descriptor
		desc.ArtifactType = "application/vnd.test.signature"
		if artifact == sbom {
			desc.ArtifactType = "application/vnd.test.sbom"
		}
		fallback.Manifests = append(fallback.Manifests, desc)
	}
	classic.put(t, "app", fallbackTag, &image{manifests: []blob{newJSON(t, v1.MediaTypeImageIndex, fallback)}})

	p := startPier(t, pierConfig{
		upstreams: namedUpstream("modern.test", modern) + namedUpstream("classic.test", classic.addr),
	})
	for name, addr := range map[string]string{"modern.test": modern, "classic.test": classic.addr} {
		t.Run(name, func(t *testing.T) {
			checkReferrers(t, p, name, subject, sbom)
			var none v1.Index
			newClient(p.node, addr).get(t, "app/referrers/"+digest.FromString("nothing").String()).decode(t, &none)
			if len(none.Manifests) != 0 {
				t.Errorf("referrers of an unknown digest: %v", none.Manifests)
			}
		})
	}
}

func TestTagsAndReferrersAreListedWhileTheRegistryIsDown(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	subject := newImage(t, 1000)
	sbom := newArtifact(t, "application/vnd.test.sbom", subject.root())
	registry.put(t, "app", "v1", subject)
	registry.put(t, "app", "sbom", sbom)
	dir := t.TempDir()
	p := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", registry.addr), args: []string{"--cache-dir", dir}})
	door := newClient(p.node, "registry.test")
	door.mustPull(t, "app", "v1", subject)
	door.mustPull(t, "app", "sbom", sbom)
	awaitKept(t, dir, subject)
	awaitKept(t, dir, sbom)
	registry.stop(t)
	for _, door := range []*client{door, newClient(p.peer, "registry.test")} {
		var tags struct{ Tags []string }
		door.get(t, "app/tags/list").decode(t, &tags)
		if !slices.Equal(tags.Tags, []string{"sbom", "v1"}) {
			t.Errorf("%s: tags %v", door.door, tags.Tags)
		}
		var index v1.Index
		door.get(t, "app/referrers/"+subject.root().Digest.String()+"?artifactType=application/vnd.test.sbom").decode(t, &index)
		if len(index.Manifests) != 1 || index.Manifests[0].Digest != sbom.root().Digest {
			t.Errorf("%s: referrers %v", door.door, index.Manifests)
		}
	}
}

func checkReferrers(t *testing.T, p *pier, registry string, subject, sbom *image) {
	door := newClient(p.node, registry)
	path := "app/referrers/" + subject.root().Digest.String()
	var all, some v1.Index
	a := door.get(t, path)
	a.decode(t, &all)
	if got := a.header.Get("Content-Type"); got != v1.MediaTypeImageIndex {
		t.Errorf("Content-Type of referrers: %q", got)
	}
	if len(all.Manifests) != 2 {
		t.Errorf("referrers: got %d, want 2: %s", len(all.Manifests), a.body)
	}
	a = door.get(t, path+"?artifactType=application/vnd.test.sbom")
	a.decode(t, &some)
	if got := a.header.Get("OCI-Filters-Applied"); got != "artifactType" {
		t.Errorf("OCI-Filters-Applied: %q", got)
	}
	if len(some.Manifests) != 1 || some.Manifests[0].Digest != sbom.root().Digest ||
		some.Manifests[0].ArtifactType != "application/vnd.test.sbom" {
		t.Errorf("referrers of type sbom: %s", a.body)
	}
	host := "reg=" + p.nodeAddr() + ",tls=disabled"
	reference := fmt.Sprintf("%s/%s/app:v1", p.nodeAddr(), registry)
	got := run(t, tool("bin/regctl"), "--host", host, "artifact", "list", reference, "--filter-artifact-type",
		"application/vnd.test.sbom", "--format", "{{range .Descriptors}}{{.Digest}} {{end}}")
	if got != sbom.root().Digest.String() {
		t.Errorf("regctl artifact list: %q, want %s", got, sbom.root().Digest)
	}
	text := run(t, tool("bin/regctl"), "--host", host, "artifact", "get", "--subject", reference,
		"--filter-artifact-type", "application/vnd.test.sbom")
	if text != string(sbom.blobs[1].data) {
		t.Errorf("regctl artifact get: %q, want %q", text, sbom.blobs[1].data)
	}
}
