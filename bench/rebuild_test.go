package main

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"pier/internal/overlay2"
)

// What is unpacked must be what Docker would have unpacked: the content comes back, and under the digests it was pulled by.
func TestDockerRoot(t *testing.T) {
	b := &bench{dir: t.TempDir()}
	content, err := b.makeContent(t.Context(), 1*mb)
	if err != nil {
		t.Fatal(err)
	}
	root := dockerRoot(filepath.Join(b.dir, "docker"))
	if err := root.create(); err != nil {
		t.Fatal(err)
	}
	pulled := []digest.Digest{digest.FromString("one"), digest.FromString("two")}
	if err := root.unpack(content, pulled); err != nil {
		t.Fatal(err)
	}
	store, err := overlay2.Open(overlay2.Config{Root: string(root)})
	if err != nil {
		t.Fatal(err)
	}
	layers, err := store.Layers(t.Context())
	if err != nil || len(layers) != 1 || layers[0].DiffID != content.diffID || layers[0].Size != content.size {
		t.Fatalf("layers %+v, error %v, want one of %d bytes with diff ID %s", layers, err, content.size, content.diffID)
	}
	hints, err := store.Hints(content.diffID)
	if err != nil || len(hints) != 2 || hints[0].Digest != pulled[0] || hints[1].Digest != pulled[1] {
		t.Errorf("hints %v, error %v, want %v", hints, err, pulled)
	}
	tar, err := store.Tar(t.Context(), layers[0], 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tar.Close()
	got, err := io.ReadAll(tar)
	if err != nil {
		t.Fatal(err)
	}
	if want, err := os.ReadFile(content.file); err != nil || string(got) != string(want) {
		t.Errorf("%d bytes come back of %d, error %v", len(got), len(want), err)
	}
}
