package docker

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// What passes through on its way to Docker is given to others while Docker unpacks it, and afterwards made again, with nothing
// kept but how.
func TestLayerIsMadeAgain(t *testing.T) {
	for name, pack := range map[string]func([]byte) []byte{"gzip": goGzip, "zstd": zstdPack} {
		t.Run(name, func(t *testing.T) { layerIsMadeAgain(t, pack) })
	}
}

func layerIsMadeAgain(t *testing.T, pack func([]byte) []byte) {
	t.Helper()
	d, dir := newDaemon(t), t.TempDir()
	s := d.open(dir, 1<<20)
	img := build(t, ocitest.Bytes(1, 300_000), pack)
	arrive(t, s, img.manifestRef(), img.manifest)
	arrive(t, s, img.layerRef(), img.layer)
	want(t, s.Arrived(), img.layerRef(), img.layer)
	wantNone(t, s.Rebuilt(), img.layerRef())

	d.pull(img)
	want(t, s.Rebuilt(), img.layerRef(), img.layer)
	soon(t, "the file that it arrived in is gone", func() bool {
		_, err := s.Arrived().Resolve(t.Context(), img.layerRef())
		return errors.Is(err, oci.ErrNotFound)
	})
	want(t, s.Configs(), oci.Reference{Kind: oci.Blob, Digest: ocitest.Digest(img.config)}, img.config)
	want(t, s.Kept(), img.manifestRef(), img.manifest)
	tag := img.manifestRef()
	tag.Digest, tag.Tag = "", "v1"
	soon(t, "the tag has its manifest", func() bool {
		desc, err := s.Kept().Resolve(t.Context(), tag)
		return err == nil && desc.Digest == ocitest.Digest(img.manifest)
	})
	if n, _ := s.kept.layers(); n != 0 {
		t.Errorf("%d layers are kept", n)
	}
	if used := bytesBelow(t, dir); used > 4096 {
		t.Errorf("%d bytes are kept of an image of %d", used, len(img.layer))
	}

	// Parts, as a client asks for them that was cut off.
	for _, offset := range []int64{1, 1000, int64(len(img.layer)) - 1, int64(len(img.layer))} {
		rc, _, err := s.Rebuilt().Open(t.Context(), img.layerRef(), offset, -1)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(rc); err != nil || !bytes.Equal(b, img.layer[offset:]) {
			t.Errorf("from %d: %d bytes, %v", offset, len(b), err)
		}
		rc.Close()
	}
	if _, _, err := s.Rebuilt().Open(t.Context(), img.layerRef(), int64(len(img.layer))+1, -1); !errors.Is(err, oci.ErrRange) {
		t.Errorf("past the end: got error %v, want ErrRange", err)
	}

	// Without the image there is no layer; with it once more there is, from memory and after a restart.
	d.remove()
	soon(t, "the layer is not offered", func() bool {
		_, err := s.Rebuilt().Resolve(t.Context(), img.layerRef())
		return errors.Is(err, oci.ErrNotFound)
	})
	d.pull(img)
	want(t, s.Rebuilt(), img.layerRef(), img.layer)
	again := d.open(copyOf(t, dir), 1<<20)
	want(t, again.Rebuilt(), img.layerRef(), img.layer)
	want(t, again.Kept(), img.manifestRef(), img.manifest)
}

// A layer that nothing makes again is kept, within the quota, and the one used last longest.
func TestLayerThatNothingMakesIsKept(t *testing.T) {
	d, dir := newDaemon(t), t.TempDir()
	first := build(t, ocitest.Bytes(1, 300_000), members)
	s := d.open(dir, int64(len(first.layer)))
	arrive(t, s, first.layerRef(), first.layer)
	d.pull(first)
	want(t, s.Kept(), first.layerRef(), first.layer)
	wantNone(t, s.Rebuilt(), first.layerRef())

	second := build(t, ocitest.Bytes(2, 200_000), members)
	arrive(t, s, second.layerRef(), second.layer)
	d.pull(second)
	want(t, s.Kept(), second.layerRef(), second.layer)
	wantNone(t, s.Kept(), first.layerRef())

	third := build(t, ocitest.Bytes(3, 400_000), members) // over the quota alone
	arrive(t, s, third.layerRef(), third.layer)
	d.pull(third)
	soon(t, "the third is given up", func() bool { return s.learned[learnedLost].Get() == 1 })
	wantNone(t, s.Kept(), third.layerRef())
	want(t, s.Kept(), second.layerRef(), second.layer)
	if _, bytes := s.kept.layers(); bytes != int64(len(second.layer)) {
		t.Errorf("%d bytes are said to be kept, want %d", bytes, len(second.layer))
	}
}

// A layer of which Docker has lost some content is kept, too, and counted.
func TestLayerThatDockerCannotGiveBackIsKept(t *testing.T) {
	d := newDaemon(t)
	odd := buildFile(t, ".wh.odd", []byte("a whiteout has no content, but this one"), goGzip)
	s := d.open(t.TempDir(), 1<<20)
	arrive(t, s, odd.layerRef(), odd.layer)
	d.pull(odd)
	want(t, s.Kept(), odd.layerRef(), odd.layer)
	wantNone(t, s.Rebuilt(), odd.layerRef())
	soon(t, "it is counted", func() bool { return s.Layers() == Layers{All: 1, Kept: 1, KeptBytes: int64(len(odd.layer))} })

	without := newDaemon(t)
	without.pull(odd)
	s = without.open(t.TempDir(), 1<<20)
	soon(t, "what cannot be given is counted", func() bool { return s.Layers() == Layers{All: 1, Withheld: 1} })
}

// Where the quota is large, a layer that was made is kept, too, and is the first to go.
func TestLayerThatWasMadeIsKeptWhereThereIsRoom(t *testing.T) {
	d := newDaemon(t)
	s := d.open(t.TempDir(), needed+250_000)
	exact, odd := build(t, ocitest.Bytes(1, 200_000), goGzip), build(t, ocitest.Bytes(2, 200_000), members)
	keep := func(img image, spare bool) bool {
		t.Helper()
		kept, err := s.kept.putLayer(ocitest.Digest(img.layer), int64(len(img.layer)), bytes.NewReader(img.layer), spare)
		if err != nil {
			t.Fatal(err)
		}
		return kept
	}
	if !keep(exact, true) || !keep(odd, false) {
		t.Error("there is room for one of each kind")
	}
	want(t, s.Kept(), exact.layerRef(), exact.layer)
	second := build(t, ocitest.Bytes(3, 100_000), goGzip)
	keep(second, true) // together the spare ones are too many
	want(t, s.Kept(), second.layerRef(), second.layer)
	wantNone(t, s.Kept(), exact.layerRef())
	want(t, s.Kept(), odd.layerRef(), odd.layer)
	if keep(build(t, ocitest.Bytes(4, 260_000), goGzip), true) {
		t.Error("a spare layer over its part of the quota is kept")
	}
}

// A layer in blocks is made from its middle, and says so.
func TestPartOfALayerInBlocks(t *testing.T) {
	d := newDaemon(t)
	s := d.open(t.TempDir(), 0)
	img := build(t, bytes.Repeat(ocitest.Bytes(1, 1000), 9<<10), blocks)
	arrive(t, s, img.layerRef(), img.layer)
	d.pull(img)
	want(t, s.Rebuilt(), img.layerRef(), img.layer)
	size := int64(len(img.layer))
	for _, offset := range []int64{1, size / 3, size/2 + 1, size - 1} {
		rc, _, err := s.Rebuilt().Open(t.Context(), img.layerRef(), offset, -1)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(rc); err != nil || !bytes.Equal(b, img.layer[offset:]) {
			t.Errorf("from %d: %d bytes, %v", offset, len(b), err)
		}
		rc.Close()
	}
	if s.Seeks(img.layerRef(), 1) || !s.Seeks(img.layerRef(), size-1) {
		t.Error("the end is made from the start, or the start from the end")
	}
	d.must(os.WriteFile(s.indexPath(ocitest.Digest(img.layer)), []byte("damaged"), 0o600))
	if s.Seeks(img.layerRef(), size-1) {
		t.Error("a damaged index is used")
	}
	want(t, s.Rebuilt(), img.layerRef(), img.layer)
}

// What was in Docker before is found out by trial, and its manifest put together.
func TestLayerThatWasThereBefore(t *testing.T) {
	for name, pack := range map[string]func([]byte) []byte{"gzip": goGzip, "zstd": zstdPack, "uncompressed": bytes.Clone} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t)
			img := build(t, ocitest.Bytes(1, 300_000), pack)
			d.pull(img)
			s := d.open(t.TempDir(), 0)
			want(t, s.Rebuilt(), img.layerRef(), img.layer)
			want(t, s.Kept(), img.manifestRef(), img.manifest)
		})
	}
}

// What cannot be made is tried once, not at every start.
func TestWhatCannotBeMadeIsTriedOnce(t *testing.T) {
	d, dir := newDaemon(t), t.TempDir()
	img := build(t, ocitest.Bytes(1, 30_000), members)
	d.pull(img)
	s := d.open(dir, 0)
	soon(t, "it is given up", func() bool { return s.learned[learnedLost].Get() == 1 })
	wantNone(t, s.Rebuilt(), img.layerRef())
	again := d.open(copyOf(t, dir), 0)
	st := student{s: again}
	soon(t, "Docker's layers are read", again.Ready)
	if l, more := st.next(); more {
		t.Errorf("after a restart %s is to be studied again", l.DiffID)
	}
}

// A layer whose files changed is never given whole, and not offered again.
func TestLayerThatChangedIsNotOffered(t *testing.T) {
	d := newDaemon(t)
	s := d.open(t.TempDir(), 0)
	img := build(t, ocitest.Bytes(1, 300_000), goGzip)
	arrive(t, s, img.layerRef(), img.layer)
	d.pull(img)
	want(t, s.Rebuilt(), img.layerRef(), img.layer)
	changed := build(t, ocitest.Bytes(2, 300_000), goGzip)
	files, err := filepath.Glob(filepath.Join(d.root, "overlay2/*/diff/file"))
	if err != nil || len(files) != 1 {
		t.Fatalf("files %v, %v", files, err)
	}
	d.must(os.WriteFile(files[0], ocitest.Bytes(2, 300_000), 0o600))
	rc, _, err := s.Rebuilt().Open(t.Context(), img.layerRef(), 0, -1)
	if err == nil {
		var b []byte
		b, err = io.ReadAll(rc)
		rc.Close()
		if bytes.Equal(b, changed.layer) || len(b) == len(img.layer) {
			t.Errorf("%d bytes of a layer that changed were given out", len(b))
		}
	}
	if err == nil {
		t.Error("a layer that changed ended cleanly")
	}
	s.Rebuilt().(oci.Blamer).Blame(img.layerRef(), source)
	wantNone(t, s.Rebuilt(), img.layerRef())
}

// An image removed in the middle of being read is an error, never an end.
func TestImageRemovedWhileItIsRead(t *testing.T) {
	d := newDaemon(t)
	s := d.open(t.TempDir(), 0)
	img := build(t, ocitest.Bytes(1, 2<<20), goGzip)
	arrive(t, s, img.layerRef(), img.layer)
	d.pull(img)
	soon(t, "it can be made", func() bool { return len(s.rebuildable()) == 1 })
	rc, _, err := s.Rebuilt().Open(t.Context(), img.layerRef(), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if _, err := io.ReadFull(rc, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(d.root, "overlay2/*/diff/file"))
	d.must(os.Truncate(files[0], 1<<19))
	if n, err := io.Copy(io.Discard, rc); err == nil {
		t.Errorf("after %d bytes it ended cleanly", n)
	}
}

// Content that Docker never gets is let go of.
func TestArrivalsEnd(t *testing.T) {
	s := newDaemon(t).open(t.TempDir(), 0)
	img := build(t, ocitest.Bytes(1, 30_000), goGzip)
	arrive(t, s, img.layerRef(), img.layer)
	s.forget(time.Now().Add(waitForDocker - time.Second))
	want(t, s.Arrived(), img.layerRef(), img.layer)
	s.forget(time.Now().Add(waitForDocker + time.Second))
	wantNone(t, s.Arrived(), img.layerRef())
}

// Where the disk is nearly full, what came first goes first.
func TestArrivalsGiveWay(t *testing.T) {
	s := newDaemon(t).open(t.TempDir(), 0)
	first, second := build(t, ocitest.Bytes(1, 30_000), goGzip), build(t, ocitest.Bytes(2, 30_000), goGzip)
	arrive(t, s, first.layerRef(), first.layer)
	arrive(t, s, second.layerRef(), second.layer)
	s.mu.Lock()
	s.full = func(*os.File) bool { return len(s.arrived) > 1 }
	s.mu.Unlock()
	s.forget(time.Now())
	wantNone(t, s.Arrived(), first.layerRef())
	want(t, s.Arrived(), second.layerRef(), second.layer)
}

// Two processes that remember in one directory would each lose what the other learned.
func TestTwoDoNotShareADirectory(t *testing.T) {
	d, dir := newDaemon(t), t.TempDir()
	d.open(dir, 0)
	if _, err := Open(Config{Root: d.root, Dir: dir}); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("got error %v", err)
	}
}

// What is kept for Docker is not thrown away because Docker's data cannot be read, or is not there for now.
func TestNothingIsForgottenWhileDockerCannotBeRead(t *testing.T) {
	d := newDaemon(t)
	img := build(t, ocitest.Bytes(1, 30_000), members)
	s := d.open(t.TempDir(), 1<<20)
	arrive(t, s, img.manifestRef(), img.manifest)
	arrive(t, s, img.layerRef(), img.layer)
	d.pull(img)
	want(t, s.Kept(), img.layerRef(), img.layer)
	old := time.Now().Add(-2 * unnamed)
	s.kept.mu.Lock()
	s.kept.manifests[ocitest.Digest(img.manifest)] = manifest{came: old}
	s.kept.content[ocitest.Digest(img.layer)] = layer{size: int64(len(img.layer)), used: old}
	s.kept.mu.Unlock()

	repositories := filepath.Join(d.root, "image/overlay2/repositories.json")
	text, err := os.ReadFile(repositories)
	d.must(err)
	d.must(os.WriteFile(repositories, []byte("{broken"), 0o600))
	s.refresh(t.Context())
	want(t, s.Kept(), img.manifestRef(), img.manifest)
	d.must(os.WriteFile(repositories, text, 0o600))
	d.must(os.Rename(d.root, d.root+".moved"))
	s.refresh(t.Context())
	want(t, s.Kept(), img.manifestRef(), img.manifest)
	want(t, s.Kept(), img.layerRef(), img.layer)
	d.must(os.Rename(d.root+".moved", d.root))
	d.remove()
	s.kept.mu.Lock()
	s.kept.content[ocitest.Digest(img.layer)] = layer{size: int64(len(img.layer)), used: old}
	s.kept.mu.Unlock()
	s.refresh(t.Context())
	wantNone(t, s.Kept(), img.manifestRef())
	wantNone(t, s.Kept(), img.layerRef())
}

// bytesBelow returns the bytes of all files under dir.
func bytesBelow(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		n += info.Size()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func copyOf(t *testing.T, dir string) string {
	t.Helper()
	other := t.TempDir()
	if err := os.CopyFS(other, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return other
}
