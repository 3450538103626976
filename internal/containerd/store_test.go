package containerd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"pier/internal/chain"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// imageContent returns the blobs of the image that ref names in src, its manifest included.
func imageContent(t *testing.T, src oci.Source, ref oci.Reference) (manifest oci.Digest, content map[oci.Digest][]byte) {
	t.Helper()
	desc, err := src.Resolve(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	content = make(map[oci.Digest][]byte)
	read := func(dgst oci.Digest) {
		b, _, err := ocitest.ReadAll(t.Context(), src, ref.WithDigest(dgst))
		if err != nil {
			t.Fatal(err)
		}
		content[dgst] = b
	}
	read(desc.Digest)
	info, err := oci.ParseManifest(content[desc.Digest])
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range info.Blobs {
		read(b.Digest)
	}
	return desc.Digest, content
}

// load puts an image into f as it is in src.
func (f *fake) load(t *testing.T, src oci.Source, ref oci.Reference) {
	t.Helper()
	manifest, content := imageContent(t, src, ref)
	for _, b := range content {
		f.blob(t, b)
	}
	f.name("k8s.io", ref.String(), manifest, true)
}

func open(t *testing.T, cfg Config) *Store {
	t.Helper()
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// run runs s until the test ends, and returns a channel that is sent to whenever names changed.
func run(t *testing.T, s *Store) <-chan struct{} {
	t.Helper()
	changed := make(chan struct{}, 1000)
	s.cfg.OnChange = func() { changed <- struct{}{} }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run ended with %v, want nil", err)
		}
	})
	return changed
}

// until waits for changes until ok holds.
func until(t *testing.T, changed <-chan struct{}, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("never came: %s", what)
		}
	}
}

func tagged(s *Store, ref oci.Reference) func() bool {
	return func() bool {
		_, err := s.Resolve(context.Background(), ref)
		return err == nil
	}
}

func untagged(s *Store, ref oci.Reference) func() bool {
	return func() bool {
		_, err := s.Resolve(context.Background(), ref)
		return errors.Is(err, oci.ErrNotFound)
	}
}

func TestSource(t *testing.T) {
	ocitest.TestSource(t, func(t *testing.T, content *ocitest.Memory, ref oci.Reference) oci.Source {
		f := startFake(t)
		f.load(t, content, ref)
		return open(t, Config{Socket: f.socket})
	})
}

func TestConfig(t *testing.T) {
	dir := t.TempDir()
	mounted := filepath.Join(dir, "mounted")
	if err := os.MkdirAll(filepath.Join(mounted, "blobs"), 0o755); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "none")
	for root, want := range map[string]string{
		"":                             "/var/lib/containerd/io.containerd.content.v1.content",
		"/nowhere":                     "/nowhere/io.containerd.content.v1.content",
		filepath.Join(dir, contentDir): filepath.Join(dir, contentDir),
		mounted:                        mounted,
	} {
		if s := open(t, Config{Socket: socket, Root: root}); s.root() != want {
			t.Errorf("root %q: content expected in %q, want %q", root, s.root(), want)
		}
	}

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []Config{{Socket: "relative"}, {Socket: socket, Root: "relative"}, {Socket: socket, Root: file}} {
		if _, err := Open(t.Context(), cfg); err == nil {
			t.Errorf("Open(%+v) succeeded", cfg)
		}
	}
}

// The root that is configured is not replaced by the one containerd states: a container sees it elsewhere.
func TestConfiguredRootStays(t *testing.T) {
	f := startFake(t)
	elsewhere := filepath.Join(t.TempDir(), contentDir)
	s := open(t, Config{Socket: f.socket, Root: elsewhere})
	if !s.Ready() || s.root() != elsewhere {
		t.Errorf("ready %v, content expected in %s, want %s", s.Ready(), s.root(), elsewhere)
	}
}

func TestManifests(t *testing.T) {
	f := startFake(t)
	s := open(t, Config{Socket: f.socket})
	ref := oci.Reference{Registry: "registry.test", Repository: "app"}
	manifest := []byte(`{"schemaVersion":2,"manifests":[]}`)
	huge := chain.BlobPath(f.content, ocitest.Absent)
	if err := os.WriteFile(huge, manifest, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(huge, oci.MaxManifest+1); err != nil {
		t.Fatal(err)
	}
	index := ref.WithDigest(f.blob(t, manifest))
	for range 2 { // the second time from memory
		desc, err := s.Resolve(t.Context(), index)
		if err != nil || desc.MediaType != "application/vnd.oci.image.index.v1+json" || desc.Source != "containerd" || desc.Missing != 0 {
			t.Errorf("index resolved as %+v, %v", desc, err)
		}
	}
	for what, dgst := range map[string]oci.Digest{
		"a layer":    f.blob(t, ocitest.Bytes(1, 1000)),
		"no content": f.blob(t, nil),
		"too much":   ocitest.Absent,
	} {
		_, err := s.Resolve(t.Context(), ref.WithDigest(dgst))
		if !errors.Is(err, oci.ErrNotFound) || errors.Is(err, oci.ErrUnsupported) {
			t.Errorf("%s asked for as a manifest: got error %v, want ErrNotFound alone", what, err)
		}
	}
}

// A disk that cannot be read is not an answer about the content: another Source is asked and somebody told.
func TestFaultIsNoMiss(t *testing.T) {
	f := newFake(t)
	s := open(t, Config{Socket: f.socket, Root: f.content})
	ref := oci.Reference{Registry: "registry.test", Repository: "app", Kind: oci.Blob, Digest: ocitest.Absent}
	fault := func(what string) {
		t.Helper()
		if _, err := s.Resolve(t.Context(), ref); err == nil || errors.Is(err, oci.ErrNotFound) {
			t.Errorf("%s: got error %v, want one that is no class", what, err)
		}
	}
	if err := os.Mkdir(chain.BlobPath(f.content, ref.Digest), 0o755); err != nil {
		t.Fatal(err)
	}
	fault("a directory in place of content")
	blobs := filepath.Join(f.content, "blobs")
	if err := os.RemoveAll(blobs); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(blobs, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	fault("a file in place of the directory")
}

// A digest becomes part of a path.
func TestMalformedDigest(t *testing.T) {
	f := newFake(t)
	s := open(t, Config{Socket: f.socket, Root: f.content})
	if err := os.WriteFile(filepath.Join(f.content, "secret"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, dgst := range []oci.Digest{"", "sha256:../../secret", "..:secret", "sha256:abc"} {
		ref := oci.Reference{Registry: "registry.test", Repository: "app", Kind: oci.Blob, Digest: dgst}
		for _, src := range []oci.Source{s, s.Ingest()} {
			if _, _, err := src.Open(t.Context(), ref, 0, -1); !errors.Is(err, oci.ErrDigestInvalid) {
				t.Errorf("Open of digest %q in %T: got error %v, want ErrDigestInvalid", dgst, src, err)
			}
		}
	}
}

func TestLister(t *testing.T) {
	f := startFake(t)
	for _, tag := range []string{"v2", "V1", "v10"} {
		f.name("default", "registry.test/app:"+tag, ocitest.Absent, false)
	}
	s := open(t, Config{Socket: f.socket})
	tags, err := s.Tags(t.Context(), "registry.test", "app")
	if want := []string{"V1", "v10", "v2"}; err != nil || !slices.Equal(tags, want) {
		t.Errorf("Tags = %q, %v, want %q", tags, err, want)
	}
	if _, err := s.Tags(t.Context(), "registry.test", "other"); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("Tags of an unknown repository: got error %v, want ErrNotFound", err)
	}
	if _, err := s.Referrers(t.Context(), oci.Reference{}); !errors.Is(err, oci.ErrUnsupported) {
		t.Errorf("Referrers: got error %v, want ErrUnsupported", err)
	}
	ref := oci.Reference{Registry: "registry.test", Repository: "app", Tag: "v2"}
	if _, err := s.Resolve(t.Context(), ref); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("Resolve of a tag without content: got error %v, want ErrNotFound", err)
	}
}

// Content is handed out as a file, so that the kernel copies it.
func TestOpenHandsOutFile(t *testing.T) {
	f := newFake(t)
	s := open(t, Config{Socket: f.socket, Root: f.content})
	dgst := f.blob(t, ocitest.Bytes(1, 100))
	rc, _, err := s.Open(t.Context(), oci.Reference{Kind: oci.Blob, Digest: dgst}, 10, 50)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	var w fileSink
	if n, err := io.Copy(&w, rc); err != nil || n != 50 || w.files == 0 {
		t.Errorf("copied %d bytes, %d files, error %v", n, w.files, err)
	}
}

// fileSink takes content as a socket does, and counts how often it was given a file.
type fileSink struct {
	bytes.Buffer
	files int
}

func (s *fileSink) ReadFrom(r io.Reader) (int64, error) {
	if l, ok := r.(*io.LimitedReader); ok {
		if _, ok := l.R.(*os.File); ok {
			s.files++
		}
	}
	return s.Buffer.ReadFrom(r)
}
