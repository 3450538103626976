package cache

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	pier "pier/internal/oci"
	"pier/internal/oci/ocitest"
)

func TestHolder(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	// changes calls do until it shows: the clock of a filesystem ticks every few milliseconds.
	changes := func(what string, do func()) {
		t.Helper()
		was := k.Changed()
		for i := 0; k.Changed().Equal(was); i++ {
			if do(); i == 10_000 {
				t.Fatalf("%s is no change", what)
			}
		}
	}
	var image []pier.Digest
	changes("an image that came", func() { image = keepImage(t, k, "registry.test:5000/team/app:v1", ocitest.Bytes(1, 100)) })
	pinned, _ := pier.ParseReference("registry.test/app@"+image[0].String(), "")
	if err := k.Tag(t.Context(), pinned, pier.Descriptor{Digest: image[0]}); err != nil {
		t.Fatal(err)
	}
	k.mu.Lock()
	k.index["whatever another tool: wrote"] = entry{Digest: image[0]}
	k.mu.Unlock()

	list, err := k.Holdings()
	slices.Sort(list)
	slices.Sort(image)
	manifest := k.index[pinned.Name()+"@"+pinned.Digest.String()].Digest
	if err != nil || !slices.Equal(list, image) {
		t.Errorf("got %v, %v; want %v", list, err, image)
	}
	want := pier.Reference{Registry: "registry.test:5000", Repository: "team/app", Tag: "v1", Digest: manifest}
	if names := k.Names(); !slices.Equal(names, []pier.Reference{want}) {
		t.Errorf("got names %v, want %s alone", names, want)
	}
	changes("a tag", func() {
		ref := want.WithDigest("")
		ref.Tag = "at" + time.Now().Format("150405.000000000")
		if err := k.Tag(t.Context(), ref, pier.Descriptor{Digest: manifest}); err != nil {
			t.Fatal(err)
		}
	})
	changes("content that went", func() {
		keep(t, k, pier.Reference{Kind: pier.Blob}, "", []byte("x"))
		if err := k.Delete(t.Context(), ocitest.Digest([]byte("x"))); err != nil {
			t.Fatal(err)
		}
	})
}

// Damaged content that cannot be deleted is not told to others.
func TestHoldingsLeaveOutWhatIsHidden(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	dgst := ocitest.Digest([]byte("x"))
	path := k.blobPath(dgst)
	if err := errors.Join(os.Mkdir(path, 0o700), os.WriteFile(filepath.Join(path, "x"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	was := k.Changed()
	k.Blame(pier.Reference{Kind: pier.Blob, Digest: dgst}, "cache")
	if k.Changed().Equal(was) {
		t.Error("blame is no change")
	}
	if err := errors.Join(os.RemoveAll(path), os.WriteFile(path, []byte("y"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if list, err := k.Holdings(); err != nil || len(list) > 0 {
		t.Errorf("got %v, %v; want nothing", list, err)
	}
}
