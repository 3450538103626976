package cache

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content/oci"

	pier "pier/internal/oci"
	"pier/internal/oci/ocitest"
)

func open(t *testing.T, dir string, maxBytes int64) *Cache {
	t.Helper()
	k, err := Open(Config{Dir: dir, MaxBytes: maxBytes, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func shut(t *testing.T, k *Cache) {
	t.Helper()
	if err := k.Close(); err != nil {
		t.Error(err)
	}
}

// keep stores b as a transfer does.
func keep(t *testing.T, k *Cache, ref pier.Reference, mediaType string, b []byte) pier.Descriptor {
	t.Helper()
	desc := pier.Descriptor{MediaType: mediaType, Digest: ocitest.Digest(b), Size: int64(len(b))}
	p, err := k.Begin(ref.WithDigest(desc.Digest))
	if err != nil {
		t.Fatal(err)
	}
	defer p.File().Close()
	if _, err := p.File().Write(b); err != nil {
		t.Fatal(err)
	}
	if err := p.Commit(ref.WithDigest(desc.Digest), desc); err != nil {
		t.Fatal(err)
	}
	return desc
}

// keepImage stores an image as a pull by tag does, and returns its digests, manifest first.
func keepImage(t *testing.T, k *Cache, name string, layers ...[]byte) []pier.Digest {
	t.Helper()
	ref, err := pier.ParseReference(name, "registry.test")
	if err != nil {
		t.Fatal(err)
	}
	var mem ocitest.Memory
	manifest := mem.Image(ref, layers...)
	b, _, err := ocitest.ReadAll(t.Context(), &mem, ref.WithDigest(manifest.Digest))
	if err != nil {
		t.Fatal(err)
	}
	info, err := pier.ParseManifest(b)
	if err != nil {
		t.Fatal(err)
	}
	keep(t, k, ref, manifest.MediaType, b)
	digests := []pier.Digest{manifest.Digest}
	blob := pier.Reference{Registry: ref.Registry, Repository: ref.Repository, Kind: pier.Blob}
	for _, d := range info.Blobs {
		b, _, err := ocitest.ReadAll(t.Context(), &mem, blob.WithDigest(d.Digest))
		if err != nil {
			t.Fatal(err)
		}
		keep(t, k, blob, d.MediaType, b)
		digests = append(digests, d.Digest)
	}
	return digests
}

func has(k *Cache, d pier.Digest) bool {
	_, err := k.Resolve(context.Background(), pier.Reference{Kind: pier.Blob, Digest: d})
	return err == nil
}

func TestConformance(t *testing.T) {
	ocitest.TestSource(t, func(t *testing.T, content *ocitest.Memory, ref pier.Reference) pier.Source {
		k := open(t, t.TempDir(), 0)
		t.Cleanup(func() { shut(t, k) })
		keepImage(t, k, ref.String(), ocitest.Bytes(1, 300_000), ocitest.Bytes(2, 10))
		return k
	})
}

// Other tools read the directory: here oras, which checks the layout file, the index and every digest.
func TestIsAnImageLayout(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir, 0)
	digests := keepImage(t, k, "registry.test:5000/deep/er/app:V1", ocitest.Bytes(1, 1000))
	shut(t, k)
	layout, err := oci.NewFromFS(t.Context(), os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	desc, err := layout.Resolve(t.Context(), "registry.test:5000/deep/er/app:V1")
	if err != nil || desc.Digest != digests[0] {
		t.Fatalf("got %+v, %v; want %s", desc, err, digests[0])
	}
	for _, d := range digests[1:] {
		rc, err := layout.Fetch(t.Context(), v1.Descriptor{Digest: d})
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(rc)
		rc.Close()
		if err != nil || ocitest.Digest(b) != d {
			t.Errorf("%s: got %s, error %v", d, ocitest.Digest(b), err)
		}
	}
}

func TestNamesSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir, 0)
	first := keepImage(t, k, "docker.io/library/alpine:3.20", ocitest.Bytes(1, 100))
	keepImage(t, k, "registry.test:5000/app:v1", ocitest.Bytes(2, 100))
	keepImage(t, k, "registry.test:5000/app:V1", ocitest.Bytes(3, 100))
	pinned := keepImage(t, k, "registry.test:5000/app@"+ocitest.Absent.String(), ocitest.Bytes(4, 100))
	shut(t, k)

	k = open(t, dir, 0)
	defer shut(t, k)
	ref, _ := pier.ParseReference("alpine:3.20", "docker.io")
	if desc, err := k.Resolve(t.Context(), ref); err != nil || desc.Digest != first[0] {
		t.Errorf("got %+v, %v; want %s", desc, err, first[0])
	}
	tags, err := k.Tags(t.Context(), "registry.test:5000", "app")
	if err != nil || !slices.Equal(tags, []string{"V1", "v1"}) {
		t.Errorf("tags: got %v, %v", tags, err)
	}
	if _, err := k.Tags(t.Context(), "registry.test", "app"); !errors.Is(err, pier.ErrNotFound) {
		t.Errorf("tags of a registry on another port: got %v, want ErrNotFound", err)
	}
	if !has(k, pinned[0]) {
		t.Error("an image pulled by digest is gone")
	}
}

// A tag that was asked for before its manifest came, or that moves, names what the registry said.
func TestTags(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	ref, _ := pier.ParseReference("registry.test/app:latest", "")
	old := keepImage(t, k, "registry.test/app:1", ocitest.Bytes(1, 100))
	if err := k.Tag(t.Context(), ref, pier.Descriptor{Digest: old[0]}); err != nil {
		t.Fatal(err)
	}
	if desc, err := k.Resolve(t.Context(), ref); err != nil || desc.Digest != old[0] {
		t.Fatalf("got %+v, %v; want %s", desc, err, old[0])
	}
	var mem ocitest.Memory
	next := mem.Image(ref, ocitest.Bytes(2, 100))
	if err := k.Tag(t.Context(), ref, next); err != nil {
		t.Fatal(err)
	}
	if desc, err := k.Resolve(t.Context(), ref); err != nil || desc.Digest != old[0] {
		t.Errorf("before the new manifest is here: got %+v, %v; want %s", desc, err, old[0])
	}
	b, _, err := ocitest.ReadAll(t.Context(), &mem, ref.WithDigest(next.Digest))
	if err != nil {
		t.Fatal(err)
	}
	pinned := ref
	pinned.Tag = "" // pulled by digest, as clients do after a HEAD
	keep(t, k, pinned, next.MediaType, b)
	if desc, err := k.Resolve(t.Context(), ref); err != nil || desc.Digest != next.Digest {
		t.Errorf("got %+v, %v; want %s", desc, err, next.Digest)
	}
}

func TestReferrers(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	subject := keepImage(t, k, "registry.test/app:1", ocitest.Bytes(1, 100))[0]
	ref, _ := pier.ParseReference("registry.test/app@"+subject.String(), "")
	if _, err := k.Referrers(t.Context(), ref); !errors.Is(err, pier.ErrNotFound) {
		t.Errorf("without referrers: got error %v, want ErrNotFound", err)
	}
	artifact := v1.Manifest{MediaType: v1.MediaTypeImageManifest, ArtifactType: "application/x-sbom",
		Subject: &v1.Descriptor{Digest: subject}, Annotations: map[string]string{"a": "b"}}
	b, err := json.Marshal(artifact)
	if err != nil {
		t.Fatal(err)
	}
	pinned := ref
	desc := keep(t, k, pinned, v1.MediaTypeImageManifest, b)
	list, err := k.Referrers(t.Context(), ref)
	if err != nil || len(list) != 1 || list[0].Digest != desc.Digest || list[0].ArtifactType != "application/x-sbom" || list[0].Annotations["a"] != "b" {
		t.Errorf("got %+v, %v", list, err)
	}
	if err := k.Delete(t.Context(), desc.Digest); err != nil {
		t.Fatal(err)
	}
	k.c.MaxBytes = 1
	if list, err := k.Referrers(t.Context(), ref); err != nil || len(list) != 0 {
		t.Errorf("after the artifact went: got %+v, %v", list, err)
	}
	if err := k.evict(); err != nil {
		t.Fatal(err)
	}
	if marks, err := os.ReadDir(k.path("pier", "referrers")); err != nil || len(marks) != 0 {
		t.Errorf("marks left after an eviction: %v, %v", marks, err)
	}
}

func TestPut(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	b := ocitest.Bytes(1, 1000)
	desc := pier.Descriptor{MediaType: "application/octet-stream", Digest: ocitest.Digest(b)}
	if err := k.Put(t.Context(), desc, bytes.NewReader(b[:999])); !errors.Is(err, pier.ErrDigestMismatch) {
		t.Errorf("Put of other content: got error %v, want ErrDigestMismatch", err)
	}
	if has(k, desc.Digest) {
		t.Error("other content was stored")
	}
	if err := k.Put(t.Context(), desc, bytes.NewReader(b)); err != nil || !has(k, desc.Digest) {
		t.Errorf("Put: %v", err)
	}
	if n, _ := k.Size(); n != 1000 {
		t.Errorf("%d bytes kept, want 1000", n)
	}
	left, err := os.ReadDir(k.path("pier", "partial"))
	if err != nil || len(left) != 0 {
		t.Errorf("left in partial: %v, %v", left, err)
	}
}

func TestASecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir, 0)
	if _, err := Open(Config{Dir: dir, Log: slog.New(slog.DiscardHandler)}); !errors.Is(err, ErrLocked) {
		t.Errorf("got error %v, want ErrLocked", err)
	}
	shut(t, k)
	shut(t, open(t, dir, 0))
}

// A fault of the disk is not a miss: a miss would have the content fetched again and again, and nobody would know.
func TestADiskFaultIsNotAMiss(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	if err := os.Symlink("loop", k.blobPath(ocitest.Absent)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Base(k.blobPath(ocitest.Absent)), k.path("blobs", "sha256", "loop")); err != nil {
		t.Fatal(err)
	}
	_, err := k.Resolve(t.Context(), pier.Reference{Kind: pier.Blob, Digest: ocitest.Absent})
	if err == nil || errors.Is(err, pier.ErrNotFound) {
		t.Errorf("got error %v, want one that is not ErrNotFound", err)
	}
}

func TestADamagedIndexCostsOnlyNames(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir, 0)
	digests := keepImage(t, k, "registry.test/app:1", ocitest.Bytes(1, 100))
	shut(t, k)
	if err := os.WriteFile(filepath.Join(dir, "index.json"), []byte(`{"manifests":[{"dig`), 0o600); err != nil {
		t.Fatal(err)
	}
	k = open(t, dir, 0)
	defer shut(t, k)
	for _, d := range digests {
		if !has(k, d) {
			t.Errorf("%s is gone", d)
		}
	}
}

// age makes an image look unused for so long.
func age(t *testing.T, k *Cache, d pier.Digest, by time.Duration) {
	t.Helper()
	at := time.Now().Add(-by)
	if err := os.Chtimes(k.blobPath(d), at, at); err != nil {
		t.Fatal(err)
	}
}

func TestEvictsLeastRecentlyUsedImages(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir, 0)
	shared := ocitest.Bytes(1, 100_000)
	old := keepImage(t, k, "registry.test/old:1", shared, ocitest.Bytes(2, 100_000))
	older := keepImage(t, k, "registry.test/older:1", shared, ocitest.Bytes(3, 100_000))
	used := keepImage(t, k, "registry.test/used:1", shared, ocitest.Bytes(4, 100_000))
	for i, img := range [][]pier.Digest{older, old, used} {
		for _, d := range img { // all of it is old, also the layers: only manifests count
			age(t, k, d, time.Duration(10-i)*time.Hour)
		}
	}
	if _, err := k.Resolve(t.Context(), pier.Reference{Kind: pier.Manifest, Digest: old[0]}); err != nil {
		t.Fatal(err) // a use: old is now the newest
	}
	shut(t, k)

	k = open(t, dir, 310_000)
	defer shut(t, k)
	for range 500 {
		if n, _ := k.Size(); n <= 310_000 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	k.settle.Lock() // the eviction is over
	defer k.settle.Unlock()
	if has(k, older[0]) || has(k, older[3]) {
		t.Error("the least recently used image is still there")
	}
	for name, img := range map[string][]pier.Digest{"old": old, "used": used} {
		for _, d := range img {
			if !has(k, d) {
				t.Errorf("%s of the kept image %s is gone", d, name)
			}
		}
	}
	ref, _ := pier.ParseReference("registry.test/older:1", "")
	if _, err := k.Resolve(t.Context(), ref); !errors.Is(err, pier.ErrNotFound) {
		t.Errorf("name of the evicted image: got error %v, want ErrNotFound", err)
	}
}

// Indexes that refer to each other or to nothing, and manifests that name what no digest is, must not stop an eviction.
func TestEvictionMeetsHostileManifests(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	for i, s := range []string{
		`{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"digest":"` + ocitest.Absent.String() + `"}]}`,
		`{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"digest":"sha256:../../../etc/passwd"},{"digest":""}]}`,
		`{"config":{"digest":"x"},"layers":[{"digest":"sha512:1"},{}]}`,
	} {
		ref, _ := pier.ParseReference(fmt.Sprintf("registry.test/bad:%d", i), "")
		keep(t, k, ref, v1.MediaTypeImageManifest, []byte(s))
	}
	k.c.MaxBytes = 1
	if err := k.evict(); err != nil {
		t.Error(err)
	}
	if n, blobs := k.Size(); n != 0 || blobs != 0 {
		t.Errorf("%d bytes in %d blobs left, want none", n, blobs)
	}
}

func TestOldPartialsGo(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir, 0)
	for i, by := range []time.Duration{time.Hour, 25 * time.Hour} {
		p, err := k.Begin(pier.Reference{Digest: ocitest.Digest([]byte{byte(i)})})
		if err != nil {
			t.Fatal(err)
		}
		p.File().Close()
		at := time.Now().Add(-by)
		if err := os.Chtimes(p.File().Name(), at, at); err != nil {
			t.Fatal(err)
		}
	}
	shut(t, k)
	k = open(t, dir, 0)
	defer shut(t, k)
	left, err := os.ReadDir(k.path("pier", "partial"))
	if err != nil || len(left) != 1 {
		t.Errorf("partial files left: %v, %v; want the one that is an hour old", left, err)
	}
}

// What a large layer left is the one worth resuming, whatever its share of the limit.
func TestTheNewestPartialStays(t *testing.T) {
	dir := t.TempDir()
	ref := pier.Reference{Registry: "registry.test", Kind: pier.Blob, Digest: ocitest.Absent}
	left := func(k *Cache) int64 {
		t.Helper()
		p, err := k.Begin(ref)
		if err != nil {
			t.Fatal(err)
		}
		defer p.File().Close()
		info, err := p.File().Stat()
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	k := open(t, dir, 10<<20)
	p, err := k.Begin(ref)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.File().Write(make([]byte, 2<<20)); err != nil {
		t.Fatal(err)
	}
	p.File().Close()
	shut(t, k) // as after a kill: nobody settled it
	k = open(t, dir, 10<<20)
	defer shut(t, k)
	if n := left(k); n != 2<<20 {
		t.Errorf("after a restart %d bytes are left, want all", n)
	}
	if err := p.Suspend(); err != nil {
		t.Fatal(err)
	}
	if err := k.sweepPartials(); err != nil {
		t.Fatal(err)
	}
	if n := left(k); n != 2<<20 {
		t.Errorf("after a sweep %d bytes are left, want all", n)
	}
}

// Files of interrupted transfers are bounded, and those of running ones are left alone.
func TestPartialsAreBounded(t *testing.T) {
	k := open(t, t.TempDir(), 10<<20)
	defer shut(t, k)
	var running string
	for i := range 20 {
		p, err := k.Begin(pier.Reference{Kind: pier.Blob, Digest: ocitest.Digest([]byte{byte(i)})})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.File().Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		p.File().Close()
		if i == 0 {
			running = p.File().Name()
			continue
		}
		k.settled(p.(*partial).name)
	}
	if err := k.sweepPartials(); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(k.path("pier", "partial"))
	if err != nil || len(files) != 2 {
		t.Errorf("%d files left, error %v; want the running one and a tenth of the limit", len(files), err)
	}
	if _, err := os.Stat(running); err != nil {
		t.Errorf("the running transfer's file: %v", err)
	}
}

// Two registries may bring the same content at once. It is counted once.
func TestTwoCommitsOfOneDigest(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	for i := range 100 {
		b := fmt.Append(nil, "blob ", i)
		done := make(chan error, 2)
		for _, host := range []string{"a.test", "b.test"} {
			ref := pier.Reference{Registry: host, Kind: pier.Blob, Digest: ocitest.Digest(b)}
			p, err := k.Begin(ref)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.File().Write(b); err != nil {
				t.Fatal(err)
			}
			go func() {
				defer p.File().Close()
				done <- p.Commit(ref, pier.Descriptor{Digest: ref.Digest, Size: int64(len(b))})
			}()
		}
		if err := errors.Join(<-done, <-done); err != nil {
			t.Fatal(err)
		}
	}
	if _, n := k.Size(); n != 100 {
		t.Errorf("%d blobs counted, want 100", n)
	}
}

// An older manifest that comes late must not take a tag back.
func TestATagDoesNotMoveBack(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	ref, _ := pier.ParseReference("registry.test/app:latest", "")
	now := keepImage(t, k, "registry.test/app:now", ocitest.Bytes(1, 10))
	var mem ocitest.Memory
	old := mem.Image(ref, ocitest.Bytes(2, 10))
	for _, d := range []pier.Digest{old.Digest, now[0]} { // the registry said first this, then that
		if err := k.Tag(t.Context(), ref, pier.Descriptor{Digest: d}); err != nil {
			t.Fatal(err)
		}
	}
	b, _, err := ocitest.ReadAll(t.Context(), &mem, ref.WithDigest(old.Digest))
	if err != nil {
		t.Fatal(err)
	}
	pinned := ref
	pinned.Tag = ""
	keep(t, k, pinned, old.MediaType, b)
	if desc, err := k.Resolve(t.Context(), ref); err != nil || desc.Digest != now[0] {
		t.Errorf("got %+v, %v; want %s", desc, err, now[0])
	}
}

// Whoever complains of a copy that was replaced since must not cost the good one.
func TestBlameIsLookedInto(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	b := ocitest.Bytes(1, 1000)
	ref := pier.Reference{Registry: "registry.test", Kind: pier.Blob}
	ref.Digest = keep(t, k, ref, "", b).Digest
	k.Blame(ref, "cache")
	if !has(k, ref.Digest) {
		t.Error("a good copy was deleted")
	}
	if err := os.WriteFile(k.blobPath(ref.Digest), b[1:], 0o600); err != nil {
		t.Fatal(err)
	}
	k.Blame(ref, "another source")
	if !has(k, ref.Digest) {
		t.Error("another source's fault cost our copy")
	}
	k.Blame(ref, "cache")
	if has(k, ref.Digest) {
		t.Error("a damaged copy is still there")
	}
}

// Names and files that a crash leaves behind go at the next start.
func TestWhatACrashLeaves(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir, 0)
	gone := keepImage(t, k, "registry.test/app:gone", ocitest.Bytes(1, 10))
	keepImage(t, k, "registry.test/app:here", ocitest.Bytes(2, 10))
	shut(t, k)
	half := filepath.Join(dir, ".new-123")
	if err := errors.Join(os.Remove(k.blobPath(gone[0])), os.WriteFile(half, []byte("{"), 0o600)); err != nil {
		t.Fatal(err)
	}
	k = open(t, dir, 0)
	defer shut(t, k)
	if tags, err := k.Tags(t.Context(), "registry.test", "app"); err != nil || !slices.Equal(tags, []string{"here"}) {
		t.Errorf("tags %v, %v; want here alone", tags, err)
	}
	if _, err := os.Stat(half); err == nil {
		t.Error("half a file is still there")
	}
}

// A registry may name one manifest without end.
func TestNamesAreBounded(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range maxNames + 10 {
		k.name(fmt.Sprint("registry.test/app:", i), entry{Digest: ocitest.Absent})
	}
	if len(k.index) != maxNames {
		t.Errorf("%d names, want %d", len(k.index), maxNames)
	}
}

// What was asked for and is nowhere leaves nothing behind.
func TestAnEmptyPartialIsNotKept(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	p, err := k.Begin(pier.Reference{Kind: pier.Blob, Digest: ocitest.Absent})
	if err != nil {
		t.Fatal(err)
	}
	defer p.File().Close()
	if err := p.Suspend(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(k.path("pier", "partial")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// A manifest that was long on its way must not take back a tag that moved on meanwhile.
func TestALateManifestDoesNotTakeItsTagBack(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	now := keepImage(t, k, "registry.test/app:v1", ocitest.Bytes(1, 10))
	ref, _ := pier.ParseReference("registry.test/app:v1", "")
	if err := k.Tag(t.Context(), ref, pier.Descriptor{Digest: now[0]}); err != nil {
		t.Fatal(err)
	}
	keepImage(t, k, "registry.test/app:v1", ocitest.Bytes(2, 10))
	if desc, err := k.Resolve(t.Context(), ref); err != nil || desc.Digest != now[0] {
		t.Errorf("got %+v, %v; want %s", desc, err, now[0])
	}
}

// Damaged content that cannot be deleted is not offered, until it is replaced.
func TestDamagedContentThatCannotBeDeleted(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	b := ocitest.Bytes(1, 100)
	ref := pier.Reference{Registry: "registry.test", Kind: pier.Blob, Digest: ocitest.Digest(b)}
	path := k.blobPath(ref.Digest)
	if err := errors.Join(os.Mkdir(path, 0o700), os.WriteFile(filepath.Join(path, "x"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	k.Blame(ref, "cache") // a directory that is not empty cannot be removed as a file
	if _, err := k.Resolve(t.Context(), ref); !errors.Is(err, pier.ErrNotFound) {
		t.Errorf("got error %v, want ErrNotFound", err)
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	keep(t, k, ref, "", b)
	if !has(k, ref.Digest) {
		t.Error("what replaced it is not offered")
	}
}
