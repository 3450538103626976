package cache

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

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
