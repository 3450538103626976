package cache

import (
	"os"
	"testing"
	"time"

	"pier/internal/chain"
	pier "pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// A use changed the times of the content's file, which then looked as if it had been overwritten, or had just come.
func TestAUseDoesNotChangeTheContent(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	ref := pier.Reference{Registry: "registry.test", Repository: "app", Kind: pier.Blob}
	ref.Digest = keep(t, k, ref, "", ocitest.Bytes(1, 1000)).Digest
	age(t, k, ref.Digest, time.Hour)
	once := chain.Once(k.c.Log, "cache", k)
	if _, _, err := ocitest.ReadAll(t.Context(), once, ref); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(k.blobPath(ref.Digest))
	if err != nil {
		t.Fatal(err)
	}
	if used := lastUse(t, k, ref.Digest); time.Since(used) > time.Minute {
		t.Errorf("the use is not noted: last used at %s", used)
	}
	if time.Since(before.ModTime()) < time.Minute {
		t.Errorf("the content's file was modified at %s", before.ModTime())
	}
	if desc, err := chain.Proved(once).Resolve(t.Context(), ref); err != nil || desc.Missing != 0 {
		t.Errorf("used again: got %+v, %v, want it to be proven still", desc, err)
	}
}

// lastUse returns when content was last used.
func lastUse(t *testing.T, k *Cache, d pier.Digest) time.Time {
	t.Helper()
	v, err := k.inventory()
	if err != nil {
		t.Fatal(err)
	}
	i, here := v.find(d)
	if !here {
		t.Fatalf("%s is not here", d)
	}
	return time.Unix(0, v.items[i].used)
}

func TestUsesAreRenewedNowAndThen(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	ref := pier.Reference{Registry: "registry.test", Repository: "app", Kind: pier.Blob}
	ref.Digest = keep(t, k, ref, "", ocitest.Bytes(1, 1000)).Digest
	has(k, ref.Digest)
	if _, err := os.Stat(k.usedPath(ref.Digest)); err == nil {
		t.Error("content that just came is noted as used")
	}
	now := time.Now()
	kept := now.Add(-time.Hour)
	k.touch(ref.Digest, kept)
	if err := os.Chtimes(k.usedPath(ref.Digest), kept, kept); err != nil {
		t.Fatal(err)
	}
	k.touch(ref.Digest, kept)
	age(t, k, ref.Digest, 2*time.Hour)
	if used := lastUse(t, k, ref.Digest); !used.Equal(kept) {
		t.Errorf("a use within a minute of another is noted: %s", used)
	}
	k.touched[ref.Digest] = now.Add(-2 * touchAfter)
	k.touch(ref.Digest, kept)
	if used := lastUse(t, k, ref.Digest); time.Since(used) > time.Minute {
		t.Errorf("a later use is not noted: %s", used)
	}
	if err := k.Delete(t.Context(), ref.Digest); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(k.usedPath(ref.Digest)); err == nil {
		t.Error("the use of deleted content is still noted")
	}
	if err := os.WriteFile(k.usedPath(ref.Digest), nil, 0o600); err != nil { // as a crash may leave it
		t.Fatal(err)
	}
	if _, err := k.inventory(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(k.usedPath(ref.Digest)); err == nil {
		t.Error("what a crash left is still there")
	}
}
