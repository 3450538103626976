package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	pier "pier/internal/oci"
	"pier/internal/oci/ocitest"
)

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
		if err := k.name(fmt.Sprint("registry.test/app:", i), entry{Digest: ocitest.Absent}); err != nil {
			t.Fatal(err)
		}
	}
	if len(k.index) != maxNames {
		t.Errorf("%d names, want %d", len(k.index), maxNames)
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

// FuzzIndex opens a cache whose names are in files that anybody may have written, as on a medium: whatever stands there, it opens, and what it says is
// of content that is there.
func FuzzIndex(f *testing.F) {
	dir := f.TempDir()
	k, err := Open(Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	b := ocitest.Bytes(1, 100)
	if err := k.Put(f.Context(), pier.Descriptor{Digest: ocitest.Digest(b)}, bytes.NewReader(b)); err != nil {
		f.Fatal(err)
	}
	if err := k.Close(); err != nil {
		f.Fatal(err)
	}
	entry := `{"schemaVersion":2,"manifests":[{"digest":"` + ocitest.Digest(b).String() + `","size":100,"annotations":{"org.opencontainers.image.ref.name":"registry.test/app:1","io.pier.source":"push"}}]}`
	for _, seed := range []string{"", "{}", "null", entry, strings.ReplaceAll(entry, "sha256", "sha512"), strings.ReplaceAll(entry, "app:1", "../x:1")} {
		f.Add([]byte(seed), []byte(seed+"\n"), true)
	}
	f.Fuzz(func(t *testing.T, index, names []byte, summed bool) {
		if summed {
			names = fmt.Appendf(names, "%x\n", sha256.Sum256(names))
		}
		must := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		must(os.WriteFile(filepath.Join(dir, "index.json"), index, 0o600))
		must(os.WriteFile(filepath.Join(dir, "pier", "names.json"), names, 0o600))
		k, err := Open(Config{Dir: dir, MaxBytes: 1 << 20, Log: slog.New(slog.DiscardHandler)})
		must(err)
		list, err := k.Images(t.Context(), nil)
		must(err)
		for _, img := range list {
			if !has(k, img.Digest) {
				t.Errorf("%q are names of what is not there", img.Names)
			}
		}
		_, _ = k.Referrers(t.Context(), pier.Reference{Digest: ocitest.Digest(b)})
		must(k.Close())
	})
}
