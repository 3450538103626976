package containerd

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

func TestHolder(t *testing.T) {
	f := startFake(t)
	ref, manifest := testImage(t, f, "v1")
	f.name("k8s.io", ref.String(), manifest, false)
	f.name("k8s.io", manifest.String(), manifest, false) // as Kubernetes' plugin names what it pulled
	if err := os.WriteFile(filepath.Join(f.content, "blobs", "sha256", "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, Config{Socket: f.socket})
	changed := run(t, s)
	until(t, changed, "the names", s.Ready)

	list, err := s.Holdings()
	if err != nil || !slices.Contains(list, manifest) {
		t.Errorf("got %v, %v; want the manifest among them", list, err)
	}
	if names := s.Names(); !slices.Equal(names, []oci.Reference{ref.WithDigest(manifest)}) {
		t.Errorf("got names %v, want %s alone", names, ref.WithDigest(manifest))
	}

	was := s.Changed()
	f.name("k8s.io", "registry.test/app:v2", manifest, true)
	until(t, changed, "a tag", func() bool { return len(s.Names()) == 2 })
	if s.Changed().Equal(was) {
		t.Error("a tag is no change")
	}
	was = s.Changed()
	for i := byte(0); s.Changed().Equal(was); i++ { // the filesystem's clock ticks every few milliseconds
		if f.blob(t, ocitest.Bytes(uint64(i), 10)); i == 255 {
			t.Fatal("content is no change")
		}
	}
}

func TestHoldingsBeforeContainerdCame(t *testing.T) {
	s := open(t, Config{Socket: filepath.Join(t.TempDir(), "s"), Root: t.TempDir()})
	if list, err := s.Holdings(); err != nil || len(list) > 0 || !s.Changed().IsZero() || len(s.Names()) > 0 {
		t.Errorf("got %v, %v, changed at %s, names %v; want nothing", list, err, s.Changed(), s.Names())
	}
}
