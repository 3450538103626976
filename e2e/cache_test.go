//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/e2e/faultproxy"
)

// kept reports whether the cache in dir holds the content of b under its digest.
func kept(dir string, b blob) bool {
	info, err := os.Stat(filepath.Join(dir, "blobs", b.Digest.Algorithm().String(), b.Digest.Encoded()))
	return err == nil && info.Size() == b.Size
}

// awaitKept waits until the cache holds all of an image.
func awaitKept(t *testing.T, dir string, i *image) {
	t.Helper()
	eventually(t, soon, func() error {
		for _, b := range append(append([]blob{}, i.blobs...), i.manifests...) {
			if !kept(dir, b) {
				return fmt.Errorf("%s is not in the cache", b.Digest)
			}
		}
		return nil
	})
}

// diskUsage returns the bytes of all files below dir, names and sizes of which it adds to the second result.
func diskUsage(t *testing.T, dir string) (bytes int64, files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		bytes += info.Size()
		files = append(files, fmt.Sprintf("%s (%d)", strings.TrimPrefix(path, dir+"/"), info.Size()))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes, files
}

func TestCacheDirectoryIsAnOCILayoutThatOthersRead(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	single, index := newImage(t, 2<<20, 3000), newIndex(t, 50<<10, amd64, arm64)
	registry.put(t, "team/app", "V1", single)
	registry.put(t, "team/app", "multi", index)
	dir := filepath.Join(t.TempDir(), "cache") // made by pier
	p := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", registry.addr), args: []string{"--cache-dir", dir}})
	door := newClient(p.node, "registry.test")
	door.mustPull(t, "team/app", "V1", single)
	door.mustPull(t, "team/app", "multi", index)
	awaitKept(t, dir, single)
	awaitKept(t, dir, index)
	p.terminate(t, 10*time.Second)

	checkLayout(t, dir, single)
	checkLayout(t, dir, index)
	names := layoutNames(t, dir)
	for tag, want := range map[string]*image{"V1": single, "multi": index} {
		name := names["registry.test/team/app:"+tag]
		if name != want.root().Digest {
			t.Errorf("index.json names %s as %q, want %s: %v", tag, name, want.root().Digest, names)
			continue
		}
		out := t.TempDir()
		run(t, tool("bin/skopeo"), "--insecure-policy", "copy", "--all", "oci:"+dir+":registry.test/team/app:"+tag, "oci:"+out+":x")
		checkLayout(t, out, want)
	}
	run(t, tool("bin/skopeo"), "inspect", "oci:"+dir+":registry.test/team/app:V1")
}

// layoutNames returns what the index.json of an OCI layout names.
func layoutNames(t *testing.T, dir string) map[string]digest.Digest {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index v1.Index
	if err := json.Unmarshal(data, &index); err != nil {
		t.Fatal(err)
	}
	names := map[string]digest.Digest{}
	for _, m := range index.Manifests {
		if name := m.Annotations[v1.AnnotationRefName]; name != "" {
			names[name] = m.Digest
		}
	}
	return names
}

func TestCachedImageIsServedAfterRestartWhileItsRegistryIsDown(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	want := newImage(t, 2<<20)
	registry.put(t, "app", "v1", want)
	dir := t.TempDir()
	p := startPier(t, pierConfig{
		upstreams: namedUpstream("registry.test", registry.addr), args: []string{"--cache-dir", dir, "--tag-ttl", "100ms"},
	})
	newClient(p.node, "registry.test").mustPull(t, "app", "v1", want)
	awaitKept(t, dir, want)
	registry.stop(t)
	p.terminate(t, 10*time.Second)
	p.restart(t)

	for _, door := range []string{p.node, p.peer} {
		c := newClient(door, "registry.test")
		c.mustPull(t, "app", "v1", want)
		c.mustPull(t, "app", want.root().Digest.String(), want)
	}
	if a := newClient(p.node, "registry.test").head(t, "app/manifests/v1"); a.header.Get("Warning") == "" {
		t.Error("the tag of a registry that is down is answered without a Warning")
	}
}

func TestAirGappedNodeNeverAsksUpstream(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	want, other := newImage(t, 1<<20), newImage(t, 1000)
	registry.put(t, "app", "v1", want)
	registry.put(t, "other", "v1", other)
	seen := startFront(t, registry.addr, 0)
	upstreams := namedUpstream("registry.test", seen.Host())
	dir := t.TempDir()
	online := startPier(t, pierConfig{upstreams: upstreams, args: []string{"--cache-dir", dir}})
	newClient(online.node, "registry.test").mustPull(t, "app", "v1", want)
	awaitKept(t, dir, want)
	online.terminate(t, 10*time.Second)
	seen.Reset()

	p := startPier(t, pierConfig{upstreams: upstreams, args: []string{"--cache-dir", dir, "--air-gapped", "--tag-ttl", "1ms"}})
	door := newClient(p.node, "registry.test")
	door.mustPull(t, "app", "v1", want)
	door.get(t, "other/manifests/v1").wantStatus(t, "an image that is not here", http.StatusNotFound)
	door.get(t, "app/blobs/"+other.layer(0).Digest.String()).wantStatus(t, "a blob that is not here", http.StatusNotFound)
	if got := seen.Count("", ""); got != 0 {
		t.Errorf("the registry was asked %d times", got)
	}
}

func TestKilledInMidBlobOnlyTheRestIsFetchedAfterRestart(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	want := newImage(t, 24<<20)
	registry.put(t, "app", "v1", want)
	seen := startFront(t, registry.addr, 8<<20) // 3 s
	dir := t.TempDir()
	p := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", seen.Host()), args: []string{"--cache-dir", dir}})
	layer := want.layer(0)
	path := "app/blobs/" + layer.Digest.String()
	resp, err := newClient(p.node, "registry.test").open(t.Context(), http.MethodGet, path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 14<<20)); err != nil {
		t.Fatal(err)
	}
	p.kill()
	if kept(dir, layer) {
		t.Fatal("a blob that did not arrive whole is in the cache")
	}
	before := seen.SentOf(faultproxy.Blob)

	seen.Reset()
	p.restart(t)
	newClient(p.node, "registry.test").mustPull(t, "app", "v1", want)
	awaitKept(t, dir, want)
	for _, r := range asked(seen, http.MethodGet, path) {
		if r.Header.Get("Range") == "" {
			t.Errorf("the blob was asked for without Range")
		}
	}
	after := seen.SentOf(faultproxy.Blob)
	// What was under way when pier died counts twice.
	const underWay = 6 << 20
	if total := before + after; total > layer.Size+underWay || after >= layer.Size-8<<20 {
		t.Errorf("upstream sent %d bytes before the kill and %d after it, of a blob of %d", before, after, layer.Size)
	}
	checkLayout(t, dir, want)
}

func TestTagThatMovedIsServedAnewAfterItsTTL(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	before, after := newImage(t, 1000), newImage(t, 1000)
	registry.put(t, "app", "v1", before)
	front := startFront(t, registry.addr, 0)
	p := startPier(t, pierConfig{
		upstreams: namedUpstream("registry.test", front.Host()), args: []string{"--cache-dir", t.TempDir(), "--tag-ttl", "2s"},
	})
	door := newClient(p.node, "registry.test")
	begin := time.Now()
	door.mustPull(t, "app", "v1", before)
	asks := front.Count("", faultproxy.Manifest)
	door.mustPull(t, "app", "v1", before)
	if n := front.Count("", faultproxy.Manifest); n != asks && time.Since(begin) < 2*time.Second {
		t.Errorf("upstream was asked for a tag that is still believed: %d times instead of %d", n, asks)
	}
	registry.put(t, "app", "v1", after)
	eventually(t, soon, func() error { return door.pull(t.Context(), "app", "v1", after) })
}
