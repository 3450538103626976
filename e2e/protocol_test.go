//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestRegistryIsNamedInEveryWay(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	want := newImage(t, 1000)
	deep := strings.Repeat("a/", 12) + "app"
	registry.put(t, "library/app", "v1", want)
	registry.put(t, deep, "v1", want)
	local := strings.Replace(registry.addr, "127.0.0.1", "localhost", 1)
	p := startPier(t, pierConfig{
		upstreams: fmt.Sprintf("- name: docker.io\n  mirrors: [%q]\n", registry.addr) +
			namedUpstream("registry.test", registry.addr) + plainUpstream(local),
	})
	for _, c := range []struct{ ns, header, repository string }{
		{ns: "registry.test", repository: "library/app"},
		{ns: "registry.test", repository: deep},
		{ns: registry.addr, repository: "library/app"},
		{ns: "REGISTRY.test", repository: "library/app"},
		{ns: "docker.io", repository: "library/app"},
		{ns: "docker.io", repository: "app"},
		{ns: "registry-1.docker.io", repository: "library/app"},
		{header: "registry.test", repository: "library/app"},
		{header: registry.addr, repository: deep},
		{repository: "registry.test/library/app"},
		{repository: registry.addr + "/library/app"},
		{repository: local + "/" + deep},
		{repository: "docker.io/library/app"},
		{repository: "docker.io/app"},
		{repository: "app"},
		{repository: "library/app"},
	} {
		door := newClient(p.node, c.ns)
		if c.header != "" {
			door.header.Set("X-Registry", c.header)
		}
		for _, reference := range []string{"v1", want.root().Digest.String()} {
			if err := door.pull(t.Context(), c.repository, reference, want); err != nil {
				t.Errorf("?ns=%s, X-Registry %s, repository %s: %v", c.ns, c.header, c.repository, err)
			}
		}
	}
}

func TestContainerdPullsFromDockerHub(t *testing.T) {
	t.Parallel()
	eachContainerd(t, func(t *testing.T, c *containerd) {
		registry := startRegistry(t, registryConfig{})
		want := newImage(t, 1000)
		registry.put(t, "library/app", "v1", want)
		p := startPier(t, pierConfig{store: "containerd", upstreams: namedUpstream("docker.io", registry.addr), args: c.pierArgs()})
		c.pull(t, hostsDir(t, "docker.io", "http://"+freeAddr(t), p.node), "docker.io/library/app:v1")
		c.pull(t, hostsDir(t, "docker.io", "http://"+freeAddr(t), p.node), "docker.io/library/app@"+want.root().Digest.String())
	})
}

func TestContainerdPullsThroughTheHostsOfAllRegistries(t *testing.T) {
	t.Parallel()
	eachContainerd(t, func(t *testing.T, c *containerd) {
		registry := startRegistry(t, registryConfig{})
		registry.put(t, "app", "v1", newImage(t, 1000))
		registry.put(t, "other", "v1", newImage(t, 1000))
		p := startPier(t, pierConfig{
			store: "containerd", args: c.pierArgs(),
			upstreams: namedUpstream("registry.test", registry.addr) + fmt.Sprintf("- name: other.test:5000\n  mirrors: [%q]\n", registry.addr),
		})
		hosts := hostsDir(t, "_default", "http://"+freeAddr(t), p.node)
		c.pull(t, hosts, "registry.test/app:v1")
		c.pull(t, hosts, "other.test:5000/other:v1")
	})
}

// sizes are those at which buffers begin and end.
var sizes = []int{0, 1, 511, 64<<10 - 1, 64 << 10, 64<<10 + 1, 1 << 20, 3<<20 + 7}

func TestBlobsOfEverySizeAreServedColdAndKept(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	all := &image{}
	random := newRandom(t)
	for _, size := range sizes {
		data := make([]byte, size)
		_, _ = random.Read(data) // never fails
		all.blobs = append(all.blobs, newBlob("application/octet-stream", data))
	}
	all.manifests = []blob{newJSON(t, v1.MediaTypeImageManifest, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: all.blobs[1].Descriptor, Layers: descriptors(all.blobs),
	})}
	registry.put(t, "app", "v1", all)
	for _, cache := range []bool{false, true} {
		cfg, dir := pierConfig{upstreams: namedUpstream("registry.test", registry.addr)}, t.TempDir()
		if cache {
			cfg.args = []string{"--cache-dir", dir}
		}
		door := newClient(startPier(t, cfg).node, "registry.test")
		door.mustPull(t, "app", "v1", all)
		if cache {
			awaitKept(t, dir, all)
			checkLayout(t, dir, all)
		}
		door.mustPull(t, "app", "v1", all)
	}
}

func descriptors(blobs []blob) (list []v1.Descriptor) {
	for _, b := range blobs {
		list = append(list, b.Descriptor)
	}
	return list
}

func TestManifestOfNearlyFourMiBIsServedAndKept(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	want := newImage(t, 1000)
	want.manifests = []blob{newManifest(t, want.blobs, 4<<20-2000)}
	registry.put(t, "app", "v1", want)
	dir := t.TempDir()
	p := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", registry.addr), args: []string{"--cache-dir", dir}})
	for range 2 {
		newClient(p.node, "registry.test").mustPull(t, "app", "v1", want)
		awaitKept(t, dir, want)
	}
	checkLayout(t, dir, want)
}

func TestDockersMediaTypesAreKept(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	want := newImage(t, 1000)
	const image, list = "application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json"
	docker := func(mediaType string, b blob) v1.Descriptor {
		return v1.Descriptor{MediaType: mediaType, Digest: b.Digest, Size: b.Size}
	}
	want.manifests = []blob{newJSON(t, image, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: image,
		Config: docker("application/vnd.docker.container.image.v1+json", want.blobs[0]),
		Layers: []v1.Descriptor{docker("application/vnd.docker.image.rootfs.diff.tar.gzip", want.blobs[1])},
	})}
	child := want.root().Descriptor
	child.Platform = &amd64
	want.manifests = append(want.manifests, newJSON(t, list, v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: list, Manifests: []v1.Descriptor{child},
	}))
	registry.put(t, "app", "v1", want)
	dir := t.TempDir()
	p := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", registry.addr), args: []string{"--cache-dir", dir}})
	door := newClient(p.node, "registry.test")
	for range 2 { // from upstream, from the cache
		door.mustPull(t, "app", "v1", want)
		for _, m := range want.manifests {
			if got := door.head(t, "app/manifests/"+m.Digest.String()).header.Get("Content-Type"); got != m.MediaType {
				t.Errorf("Content-Type %q, want %q", got, m.MediaType)
			}
		}
		awaitKept(t, dir, want)
	}
	run(t, tool("bin/crane"), "validate", "--remote", p.nodeAddr()+"/registry.test/app:v1")
	eachContainerd(t, func(t *testing.T, c *containerd) {
		c.pull(t, hostsDir(t, "registry.test", "http://"+freeAddr(t), p.node), "registry.test/app:v1")
	})
}

func TestTagsAreListedInOrderAndByPage(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	i := newImage(t, 100)
	var want []string
	for n := range 25 {
		want = append(want, fmt.Sprintf("v%02d", n))
	}
	for _, tag := range want {
		registry.put(t, "app", tag, i)
	}
	p := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", registry.addr)})
	door := newClient(p.node, "registry.test")
	var list struct{ Tags []string }
	door.get(t, "app/tags/list").decode(t, &list)
	if !slices.Equal(list.Tags, want) {
		t.Errorf("tags: %v", list.Tags)
	}

	var got []string
	next := p.node + "/v2/app/tags/list?n=10&ns=registry.test"
	for range 5 {
		a := fetch(t, next)
		a.decode(t, &list)
		if len(list.Tags) > 10 {
			t.Errorf("a page of 10 has %d tags", len(list.Tags))
		}
		got = append(got, list.Tags...)
		link := a.header.Get("Link")
		if link == "" {
			break
		}
		target, rest, ok := strings.Cut(strings.TrimPrefix(link, "<"), ">")
		if !ok || !strings.Contains(rest, "next") {
			t.Fatalf("Link: %q", link)
		}
		base, err := url.Parse(next)
		if err != nil {
			t.Fatal(err)
		}
		following, err := base.Parse(target)
		if err != nil {
			t.Fatal(err)
		}
		next = following.String()
	}
	if !slices.Equal(got, want) {
		t.Errorf("tags by page: %v", got)
	}
	door.get(t, "app/tags/list?last=v23").decode(t, &list)
	if !slices.Equal(list.Tags, []string{"v24"}) {
		t.Errorf("tags after v23: %v", list.Tags)
	}
	door.get(t, "absent/tags/list").wantStatus(t, "tags of no repository", http.StatusNotFound, http.StatusBadGateway)
}

// Ranges and conditions are the same wherever content comes from: upstream, the cache, containerd.
func TestRangesAndConditionsOfBlobsAndManifests(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	want := newImage(t, 1<<20)
	registry.put(t, "app", "v1", want)
	upstreams := namedUpstream("registry.test", registry.addr)
	t.Run("upstream", func(t *testing.T) {
		t.Parallel()
		checkRanges(t, startPier(t, pierConfig{upstreams: upstreams}), want)
	})
	t.Run("cache", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		p := startPier(t, pierConfig{upstreams: upstreams, args: []string{"--cache-dir", dir}})
		newClient(p.node, "registry.test").mustPull(t, "app", "v1", want)
		awaitKept(t, dir, want)
		checkRanges(t, p, want)
	})
	eachContainerd(t, func(t *testing.T, c *containerd) {
		c.pull(t, hostsDir(t, "registry.test", "http://"+registry.addr), "registry.test/app:v1")
		checkRanges(t, startPier(t, pierConfig{store: "containerd", upstreams: upstreams, args: c.pierArgs()}), want)
	})
}

func checkRanges(t *testing.T, p *pier, want *image) {
	t.Helper()
	door, layer := newClient(p.node, "registry.test"), want.layer(0)
	path, size := "app/blobs/"+layer.Digest.String(), layer.Size
	for _, c := range []struct {
		header     string
		start, end int64 // of the bytes, as in a slice
	}{
		{"bytes=0-0", 0, 1},
		{"bytes=0-1023", 0, 1024},
		{"bytes=70000-300000", 70000, 300001},
		{fmt.Sprintf("bytes=%d-", size-10), size - 10, size},
		{fmt.Sprintf("bytes=100-%d", size+1000), 100, size},
		{"bytes=-77", size - 77, size},
		{fmt.Sprintf("bytes=-%d", size+5), 0, size},
		{"bytes=0-", 0, size},
	} {
		a := door.get(t, path, "Range", c.header)
		a.wantStatus(t, c.header, http.StatusPartialContent)
		if got := string(a.body); got != string(layer.data[c.start:c.end]) {
			t.Errorf("%s: got %d bytes, want %d", c.header, len(got), c.end-c.start)
		}
		if got, want := a.header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/%d", c.start, c.end-1, size); got != want {
			t.Errorf("%s: Content-Range %q, want %q", c.header, got, want)
		}
	}
	a := door.head(t, path)
	a.wantStatus(t, "HEAD of a blob", http.StatusOK)
	if a.header.Get("Content-Length") != fmt.Sprint(size) || a.header.Get("Docker-Content-Digest") != layer.Digest.String() {
		t.Errorf("HEAD of a blob: %v", a.header)
	}
	for _, path := range []string{path, "app/manifests/" + want.root().Digest.String(), "app/manifests/v1"} {
		etag := door.head(t, path).header.Get("ETag")
		if etag == "" {
			t.Errorf("%s has no ETag", path)
		}
		door.get(t, path, "If-None-Match", etag).wantStatus(t, path+" with If-None-Match", http.StatusNotModified)
		door.get(t, path, "If-None-Match", `"other"`).wantStatus(t, path+" with another If-None-Match", http.StatusOK)
	}
	door.get(t, "").wantStatus(t, "/v2/", http.StatusOK)
}
