package cache

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	pier "pier/internal/oci"
	"pier/internal/oci/ocitest"
)

func TestUploads(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir, 0)
	b := ocitest.Bytes(1, 100_000)
	id, err := k.StartUpload()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := k.AppendUpload(id, 0, bytes.NewReader(b[:60_000])); err != nil || n != 60_000 {
		t.Fatalf("got %d, %v", n, err)
	}
	if n, err := k.AppendUpload(id, 10, bytes.NewReader(b)); !errors.Is(err, pier.ErrRange) || n != 60_000 {
		t.Errorf("a piece that is elsewhere: got %d, %v", n, err)
	}
	cut := io.MultiReader(bytes.NewReader(b[60_000:70_000]), failing{})
	if n, err := k.AppendUpload(id, -1, cut); err == nil || n != 70_000 {
		t.Errorf("a piece that breaks off: got %d, %v", n, err)
	}
	shut(t, k)
	k = open(t, dir, 0) // it is gone on with after a restart
	if n, err := k.Uploaded(id); err != nil || n != 70_000 {
		t.Errorf("after a restart: got %d, %v", n, err)
	}
	if _, err := k.AppendUpload(id, 70_000, bytes.NewReader(b[70_000:])); err != nil {
		t.Fatal(err)
	}
	d := ocitest.Digest(b)
	if err := k.FinishUpload(id, d); err != nil {
		t.Fatal(err)
	}
	if got, _, err := ocitest.ReadAll(t.Context(), k, pier.Reference{Kind: pier.Blob, Digest: d}); err != nil || !bytes.Equal(got, b) {
		t.Errorf("kept: %d bytes, %v", len(got), err)
	}

	wrong, err := k.StartUpload()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = k.AppendUpload(wrong, -1, strings.NewReader("x"))
	if err := k.FinishUpload(wrong, d); !errors.Is(err, pier.ErrDigestMismatch) {
		t.Errorf("other content: %v", err)
	}
	gone, err := k.StartUpload()
	if err != nil {
		t.Fatal(err)
	}
	if err := k.CancelUpload(gone); err != nil {
		t.Error(err)
	}
	for _, id := range []string{id, wrong, gone, "", "../../index", "lower", strings.Repeat("A", 26)} {
		for name, err := range map[string]error{
			"size": second(k.Uploaded(id)), "append": second(k.AppendUpload(id, -1, strings.NewReader("x"))), "finish": k.FinishUpload(id, d), "cancel": k.CancelUpload(id),
		} {
			if !errors.Is(err, pier.ErrNotFound) {
				t.Errorf("%s of the upload %q: %v", name, id, err)
			}
		}
	}
	shut(t, k)
	if left, err := filepath.Glob(filepath.Join(dir, "pier/partial/*")); err != nil || len(left) > 0 {
		t.Errorf("left are %q, %v", left, err)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func second[T any](_ T, err error) error { return err }

// What was pushed is on disk when Tag returns, and the only thing that Pushed knows.
func TestPushed(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir, 0)
	defer shut(t, k)
	img := keepImage(t, k, "site.test/app:v1", ocitest.Bytes(1, 100))
	keepImage(t, k, "registry.test/other:v1", ocitest.Bytes(2, 100))
	ref, _ := pier.ParseReference("site.test/app:pushed", "")
	if err := k.Tag(t.Context(), ref, pier.Descriptor{Digest: img[0], Source: SourcePush}); err != nil {
		t.Fatal(err)
	}
	index, err := os.ReadFile(filepath.Join(dir, v1.ImageIndexFile))
	if err != nil || !bytes.Contains(index, []byte("site.test/app:pushed")) {
		t.Errorf("not on disk: %s, %v", index, err)
	}
	p := k.Pushed()
	if d, err := p.Resolve(t.Context(), ref); err != nil || d.Digest != img[0] {
		t.Errorf("got %+v, %v", d, err)
	}
	for _, name := range []string{"site.test/app:v1", "registry.test/other:v1", "site.test/none:v1"} {
		ref, _ := pier.ParseReference(name, "")
		if _, err := p.Resolve(t.Context(), ref); !errors.Is(err, pier.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	tags, err := p.(pier.Lister).Tags(t.Context(), "site.test", "app")
	if err != nil || len(tags) != 1 || tags[0] != "pushed" {
		t.Errorf("tags: %q, %v", tags, err)
	}
}
