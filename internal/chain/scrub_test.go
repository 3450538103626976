package chain

import (
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// held is content in a directory that deletes what is blamed.
type held struct {
	Blobs
	dir string
}

func (h *held) Resolve(_ context.Context, ref oci.Reference) (oci.Descriptor, error) {
	desc, _, err := h.Stat(h.dir, ref)
	return desc, err
}

func (h *held) Open(_ context.Context, ref oci.Reference, offset, length int64) (rc io.ReadCloser, desc oci.Descriptor, err error) {
	rc, desc, _, err = h.Blobs.Open(h.dir, ref, offset, length)
	return rc, desc, err
}

func (h *held) Walk(do func(oci.Digest)) error {
	return h.Each(h.dir, func(d oci.Digest, _ fs.DirEntry) { do(d) })
}

func (h *held) Blame(ref oci.Reference, _ string) { _ = os.Remove(BlobPath(h.dir, ref.Digest)) }

// A byte that changed on disk, with all times as they were, is found without anybody asking for it, and the rest stays.
func TestScrubFindsWhatADiskLost(t *testing.T) {
	dir := t.TempDir()
	h := &held{Blobs: Blobs{Source: "cache"}, dir: dir}
	var digests []oci.Digest
	for i, size := range []int{0, 1, 4096, scrubPiece, 3*scrubPiece + 17} {
		b := ocitest.Bytes(uint64(i), size)
		d := ocitest.Digest(b)
		must(t, os.MkdirAll(filepath.Dir(BlobPath(dir, d)), 0o755))
		must(t, os.WriteFile(BlobPath(dir, d), b, 0o600))
		digests = append(digests, d)
	}
	var read atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	src := Once(quiet, "cache", h)
	go func() {
		done <- Scrubber{Source: src, Rate: 1 << 40, Pause: time.Millisecond, Log: quiet, Read: func(n int) { read.Add(int64(n)) }}.Run(ctx)
	}()
	const all = 1 + 4096 + scrubPiece + 3*scrubPiece + 17
	awaitTrue(t, func() bool { return read.Load() > 2*all })
	for _, d := range digests {
		if _, err := os.Stat(BlobPath(dir, d)); err != nil {
			t.Errorf("what is right: %v", err)
		}
	}
	bad := BlobPath(dir, digests[4])
	info, err := os.Stat(bad)
	must(t, err)
	f, err := os.OpenFile(bad, os.O_RDWR, 0)
	must(t, err)
	var b [1]byte
	_, err = f.ReadAt(b[:], 2*scrubPiece+5)
	must(t, err)
	_, err = f.WriteAt([]byte{^b[0]}, 2*scrubPiece+5)
	must(t, err)
	must(t, f.Close())
	must(t, os.Chtimes(bad, info.ModTime(), info.ModTime()))
	awaitTrue(t, func() bool { _, err := os.Stat(bad); return os.IsNotExist(err) })
	cancel()
	must(t, <-done)
	for _, d := range digests[:4] {
		if _, err := os.Stat(BlobPath(dir, d)); err != nil {
			t.Errorf("what is right: %v", err)
		}
	}
	if got := Damaged(src); got != 1 {
		t.Errorf("%d copies found wrong, want 1", got)
	}
}

// It reads no faster than it may.
func TestScrubKeepsToItsRate(t *testing.T) {
	dir := t.TempDir()
	h := &held{Blobs: Blobs{Source: "cache"}, dir: dir}
	b := ocitest.Bytes(1, 4*scrubPiece)
	d := ocitest.Digest(b)
	must(t, os.MkdirAll(filepath.Dir(BlobPath(dir, d)), 0o755))
	must(t, os.WriteFile(BlobPath(dir, d), b, 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	var read int
	must(t, Scrubber{Source: Once(quiet, "cache", h), Rate: 4 * scrubPiece, Log: quiet, Read: func(n int) { read += n }}.Run(ctx))
	if read > 2*scrubPiece+scrubPiece/2 { // the first piece at once, then one each 250 ms
		t.Errorf("read %d bytes in 300 ms at %d a second", read, 4*scrubPiece)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func awaitTrue(t *testing.T, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come about")
		}
	}
}
