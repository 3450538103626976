package cache

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	pier "pier/internal/oci"
	"pier/internal/oci/ocitest"
)

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
