package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pier/internal/gzexact"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// A layer that fits what Docker says of it, and that Docker's files do not make, was advertised, and lost.
func TestLayerThatDockersFilesDoNotMake(t *testing.T) {
	d := newDaemon(t)
	img := build(t, ocitest.Bytes(1, 30_000), goGzip)
	d.pull(img)
	files, err := filepath.Glob(filepath.Join(d.root, "overlay2/*/diff/file"))
	d.must(err)
	d.must(os.WriteFile(files[0], ocitest.Bytes(2, 30_000), 0o600))
	s := d.open(t.TempDir(), 1<<20)
	arrive(t, s, img.layerRef(), img.layer)
	want(t, s.Kept(), img.layerRef(), img.layer)
	wantNone(t, s.Rebuilt(), img.layerRef())
}

// What never was compressed needs no encoder.
func TestUncompressedLayerIsMadeAgain(t *testing.T) {
	d := newDaemon(t)
	s := d.open(t.TempDir(), 1<<20)
	img := build(t, ocitest.Bytes(1, 30_000), bytes.Clone)
	arrive(t, s, img.layerRef(), img.layer)
	d.pull(img)
	want(t, s.Rebuilt(), img.layerRef(), img.layer)
	wantNone(t, s.Kept(), img.layerRef())
}

// Whatever a file holds by the time it is kept: nothing but the content of its digest is.
func TestOnlyWhatMatchesIsKept(t *testing.T) {
	s := newDaemon(t).open(t.TempDir(), 1<<20)
	ref := oci.Reference{Kind: oci.Blob, Digest: ocitest.Absent}
	if kept, err := s.kept.putLayer(ref.Digest, 5, strings.NewReader("other"), false); kept || !errors.Is(err, oci.ErrDigestMismatch) {
		t.Errorf("other content is kept: %t, %v", kept, err)
	}
	wantNone(t, s.Kept(), ref)
	if n := bytesBelow(t, filepath.Join(s.c.Dir, "tmp")); n > 0 {
		t.Errorf("%d bytes of it are left", n)
	}
}

// Manifests are what parses as one, and those of images that Docker has stay when strangers' are too many.
func TestStrangersManifests(t *testing.T) {
	s := newDaemon(t).open(t.TempDir(), 0)
	junk := bytes.Repeat([]byte("a"), 1<<20)
	if err := s.kept.putManifest(ocitest.Digest(junk), junk); err == nil {
		t.Error("a megabyte of letters is a manifest")
	}
	manifest := func(i int) []byte {
		return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[],"annotations":{"n":"%d"}}`, i)
	}
	own := manifest(0)
	soon(t, "what Docker has is read", s.Ready)
	s.kept.mu.Lock()
	s.kept.named = map[oci.Digest]bool{ocitest.Digest(own): true}
	s.kept.written = maxManifestBytes - 3*int64(len(own))
	s.kept.mu.Unlock()
	for i := range 10 {
		if err := s.kept.putManifest(ocitest.Digest(manifest(i)), manifest(i)); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range map[int]bool{0: true, 1: false, 5: false, 9: true} {
		if _, ok := s.kept.manifest(ocitest.Digest(manifest(i))); ok != want {
			t.Errorf("manifest %d is kept: %t, want %t", i, ok, want)
		}
	}
}

// Many small blobs of nobody's kept Docker's own layers from being held.
func TestStrangersBlobsGiveWay(t *testing.T) {
	s := newDaemon(t).open(t.TempDir(), 0)
	for i := range maxArrived {
		b := fmt.Appendf(nil, "blob %d", i)
		arrive(t, s, oci.Reference{Kind: oci.Blob, Digest: ocitest.Digest(b)}, b)
	}
	img := build(t, ocitest.Bytes(1, 30_000), goGzip)
	arrive(t, s, img.layerRef(), img.layer)
	want(t, s.Arrived(), img.layerRef(), img.layer)
	wantNone(t, s.Arrived(), oci.Reference{Kind: oci.Blob, Digest: ocitest.Digest([]byte("blob 0"))})
}

// A damaged line costs that line only, however long it is.
func TestDamagedRecipes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "recipes")
	a, b := ocitest.Digest([]byte("a")), ocitest.Digest([]byte("b"))
	good := line(a, recipe{b, 1, gzexact.Identity()})
	text := strings.Join([]string{
		strings.Repeat("x", 70<<10), "", "sha256:12 " + string(b) + " 1 identity", string(a) + " " + string(b) + " -1 identity",
		string(a) + " " + string(b) + " 1 gzip nobody level=6 header=00", "- " + string(b) + " 0 tried-0", "\x00\xff",
	}, "\n") + "\n" + good + good[:20]
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // and again, as it is rewritten
		r, err := openRecipes(path, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := r.get(a); !ok || got.diffID != b || len(r.byDigest) != 1 || len(r.tried) != 0 {
			t.Errorf("got %+v, %v", r.byDigest, r.tried)
		}
		if err := r.close(); err != nil {
			t.Error(err)
		}
	}
}

// A client that reads parts slowly does not keep layers from being made.
func TestSlowReadersOfParts(t *testing.T) {
	d := newDaemon(t)
	s := d.open(t.TempDir(), 0)
	img := build(t, ocitest.Bytes(1, 2<<20), bytes.Clone)
	d.pull(img)
	want(t, s.Rebuilt(), img.layerRef(), img.layer)
	for range maxMaking + 1 {
		rc, _, err := s.Rebuilt().Open(t.Context(), img.layerRef(), 1, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer rc.Close()
		if s.parts.TryAcquire(1) { // it begins to be made
			s.parts.Release(1)
			if _, err := io.ReadFull(rc, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	began := time.Now()
	want(t, s.Rebuilt(), img.layerRef(), img.layer)
	t.Logf("made in %s", time.Since(began))
}

// Work in the background leaves a place to those who wait for a layer, and large encoders count for several.
func TestPlaces(t *testing.T) {
	s := newDaemon(t).open(t.TempDir(), 0)
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	first, err := s.backPlace(t.Context(), 2*makingBytes)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.backPlace(short, 2*makingBytes); !errors.Is(err, oci.ErrUnavailable) {
		t.Errorf("a second large one in the background: error %v", err)
	}
	second, err := s.backPlace(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	done, err := s.place(t.Context(), makingBytes, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.place(short, 1, false); !errors.Is(err, oci.ErrUnavailable) {
		t.Errorf("a fifth: error %v", err)
	}
	for _, give := range []func(){first, second, done} {
		give()
	}
}
