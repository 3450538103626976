package chain

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(size, offset, length int64) (string, error) {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		rc, err := File(f, size, offset, length)
		if err != nil {
			return "", err
		}
		defer rc.Close()
		var b strings.Builder
		_, err = io.Copy(&b, rc)
		return b.String(), err
	}
	if got, err := open(10, 2, 3); got != "234" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := open(10, 11, -1); !errors.Is(err, oci.ErrRange) {
		t.Errorf("past the end: got error %v, want ErrRange", err)
	}
	// Truncated while it is served: never a clean end.
	if got, err := open(20, 5, -1); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("file shorter than it was: got %q, error %v, want ErrUnexpectedEOF", got, err)
	}
}

func TestBlobs(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "blobs", "sha256"), 0o700); err != nil {
		t.Fatal(err)
	}
	keep := func(s string) oci.Reference {
		dgst := ocitest.Digest([]byte(s))
		if err := os.WriteFile(BlobPath(root, dgst), []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		return app.WithDigest(dgst)
	}
	index := keep(`{"schemaVersion":2,"manifests":[]}`)
	b := &Blobs{Source: "test"}
	for range 2 { // from the file, and remembered
		rc, desc, _, err := b.Open(root, index, 2, 6)
		if err != nil || desc.MediaType != "application/vnd.oci.image.index.v1+json" || desc.Source != "test" {
			t.Fatalf("index: got %+v, %v", desc, err)
		}
		if got, err := io.ReadAll(rc); err != nil || string(got) != "schema" {
			t.Errorf("part of an index: got %q, %v", got, err)
		}
		rc.Close()
		if _, _, _, err := b.Open(root, index, desc.Size+1, -1); !errors.Is(err, oci.ErrRange) {
			t.Errorf("past the end: got error %v, want ErrRange", err)
		}
	}
	for what, ref := range map[string]oci.Reference{
		"no manifest": keep("a layer"), "too large": keep(strings.Repeat(" ", oci.MaxManifest) + "{}"), "absent": app.WithDigest(ocitest.Absent),
	} {
		if _, _, _, err := b.Open(root, ref, 0, -1); !errors.Is(err, oci.ErrNotFound) || errors.Is(err, oci.ErrUnsupported) {
			t.Errorf("%s: got error %v, want ErrNotFound alone", what, err)
		}
	}
	if _, _, err := b.Stat(root, app.WithDigest("sha256:../../etc/passwd")); !errors.Is(err, oci.ErrDigestInvalid) {
		t.Errorf("got error %v, want ErrDigestInvalid", err)
	}
	if err := os.Mkdir(BlobPath(root, ocitest.Absent), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Stat(root, app.WithDigest(ocitest.Absent)); err == nil || errors.Is(err, oci.ErrNotFound) {
		t.Errorf("a directory where a file should be: got error %v, want a fault", err)
	}
	// What is remembered does not outlive the file, and wrong bytes are not remembered.
	if err := os.WriteFile(BlobPath(root, index.Digest), []byte(`{"schemaVersion":3,"manifests":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	fresh := &Blobs{}
	if _, _, err := fresh.Stat(root, index); err != nil || len(fresh.known) != 0 {
		t.Errorf("wrong bytes: error %v, remembered %+v", err, fresh.known)
	}
	if err := os.Remove(BlobPath(root, index.Digest)); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := b.Open(root, index, 0, -1); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("file that went: got error %v, want ErrNotFound", err)
	}
	for i := range maxKnown + 10 {
		b.remember(ocitest.Digest([]byte{byte(i), byte(i >> 8)}), known{content: make([]byte, i%maxContent)})
	}
	if len(b.known) > maxKnown || b.bytes > maxRemaining {
		t.Errorf("%d manifests of %d bytes remembered, want at most %d of %d", len(b.known), b.bytes, maxKnown, maxRemaining)
	}
}
