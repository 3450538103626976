package chain

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// holding is a Source that says what the test has it say.
type holding struct {
	*ocitest.Memory
	list    []oci.Digest
	names   []oci.Reference
	changed time.Time
	err     error
}

func (h *holding) Holdings() ([]oci.Digest, error) { return slices.Clone(h.list), h.err }
func (h *holding) Names() []oci.Reference          { return slices.Clone(h.names) }
func (h *holding) Changed() time.Time              { return h.changed }

func TestHolders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := ocitest.Digest([]byte("a")), ocitest.Digest([]byte("b"))
		other := app
		other.Tag = "v2"
		one := &holding{Memory: &ocitest.Memory{}, list: []oci.Digest{a}, names: []oci.Reference{app.WithDigest(a)}, changed: time.Now()}
		two := &holding{
			Memory: &ocitest.Memory{}, list: []oci.Digest{a, b}, changed: time.Now().Add(-time.Hour), err: fs.ErrPermission,
			names: []oci.Reference{app.WithDigest(b), other.WithDigest(b)},
		}
		one.AddAs(a, "", []byte("wrong"))
		all := First(quiet, Once(quiet, "memory", one), two, &ocitest.Memory{})
		if list, err := all.Holdings(); !slices.Equal(list, []oci.Digest{a, b}) || !errors.Is(err, fs.ErrPermission) {
			t.Errorf("got %v, %v; want both once, and the fault", list, err)
		}
		if names := all.Names(); !slices.Equal(names, []oci.Reference{app.WithDigest(a), other.WithDigest(b)}) {
			t.Errorf("got names %v; want the first source's digest", names)
		}
		was := all.Changed()
		if !was.Equal(one.changed) {
			t.Errorf("changed at %s, want %s", was, one.changed)
		}

		time.Sleep(time.Minute)
		two.list, two.names = nil, nil
		ref := app.WithDigest(a)
		ref.Kind = oci.Blob
		if _, _, err := ocitest.ReadAll(t.Context(), all, ref); !errors.Is(err, oci.ErrDigestMismatch) {
			t.Fatal(err)
		}
		if list, _ := all.Holdings(); len(list) > 0 || len(all.Names()) > 0 || all.Changed().Equal(was) {
			t.Errorf("quarantined: holds %v, names %v, changed at %s", list, all.Names(), all.Changed())
		}
		was = all.Changed()
		time.Sleep(quarantine + time.Second)
		if all.Changed().Equal(was) {
			t.Error("the end of a quarantine is no change")
		}
		if list, _ := all.Holdings(); len(list) != 1 {
			t.Errorf("after the quarantine: holds %v", list)
		}
	})
}

func TestNamesAreBounded(t *testing.T) {
	var names []oci.Reference
	for i := range MaxNames + 10 {
		ref := app
		ref.Tag = fmt.Sprint("v", i)
		names = append(names, ref.WithDigest(ocitest.Absent))
	}
	again := slices.Clone(names)
	slices.Reverse(again)
	if names, again = BoundNames(names), BoundNames(again); len(names) != MaxNames || !slices.Equal(names, again) {
		t.Errorf("got %d names, want the same %d each time", len(names), MaxNames)
	}
}

func TestBlobsList(t *testing.T) {
	src := newFiles(t)
	for _, name := range []string{"sha256/tmp", "sha256/" + ocitest.Absent.Encoded()[1:], "sha512/" + ocitest.Absent.Encoded()} {
		if err := os.WriteFile(filepath.Join(src.root, "blobs", name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(BlobPath(src.root, ocitest.Absent), 0o700); err != nil {
		t.Fatal(err)
	}
	b := []byte("content")
	dgst := ocitest.Digest(b)
	src.add(t, dgst, b, time.Now())
	if list, err := src.blobs.List(src.root); err != nil || !slices.Equal(list, []oci.Digest{dgst}) {
		t.Errorf("got %v, %v; want %s alone", list, err, dgst)
	}
	was := src.blobs.Changed(src.root)
	for i := 0; src.blobs.Changed(src.root).Equal(was); i++ { // the filesystem's clock ticks every few milliseconds
		if src.add(t, dgst, b, time.Now()); i == 10_000 {
			t.Fatal("a file that came is no change")
		}
	}
	if list, err := src.blobs.List(t.TempDir()); err != nil || len(list) > 0 {
		t.Errorf("without directories: got %v, %v", list, err)
	}
}
