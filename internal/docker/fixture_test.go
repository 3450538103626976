package docker

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"

	"pier/internal/gzexact"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
	"pier/internal/transfer"
)

// daemon is a Docker data root, written as Docker writes it.
type daemon struct {
	t    *testing.T
	root string
}

func newDaemon(t *testing.T) *daemon {
	d := &daemon{t, t.TempDir()}
	d.write("image/overlay2/repositories.json", `{"Repositories":{}}`)
	for _, dir := range []string{"image/overlay2/layerdb/sha256", "image/overlay2/imagedb/content/sha256", "overlay2/l"} {
		d.must(os.MkdirAll(filepath.Join(d.root, dir), 0o700))
	}
	return d
}

func (d *daemon) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *daemon) write(name, content string) {
	d.t.Helper()
	name = filepath.Join(d.root, name)
	d.must(os.MkdirAll(filepath.Dir(name), 0o700))
	d.must(os.WriteFile(name+".new", []byte(content), 0o600))
	d.must(os.Rename(name+".new", name))
}

// An image is one layer of one file, as a builder pushed it.
type image struct {
	name             string // of the repository
	tar, layer       []byte
	config, manifest []byte
}

const repository = "registry.test/team/app"

// build makes an image of one file, whose layer pack compresses.
func build(t *testing.T, content []byte, pack func([]byte) []byte) image {
	t.Helper()
	return buildFile(t, "file", content, pack)
}

func buildFile(t *testing.T, name string, content []byte, pack func([]byte) []byte) image {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	img := image{name: repository, tar: b.Bytes()}
	img.layer = pack(img.tar)
	img.config = fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[%q]}}`, ocitest.Digest(img.tar))
	config := part{ocitest.Digest(img.config), int64(len(img.config)), ""}
	layer := part{ocitest.Digest(img.layer), int64(len(img.layer)), "gzip"}
	switch {
	case bytes.Equal(img.layer, img.tar):
		layer.compression = ""
	case bytes.HasPrefix(img.layer, []byte("\x28\xb5\x2f\xfd")):
		layer.compression = "zstd"
	}
	img.manifest = form(config, []part{layer}, true, true, true)
	return img
}

func (i image) layerRef() oci.Reference {
	return oci.Reference{Registry: "registry.test", Repository: "team/app", Kind: oci.Blob, Digest: ocitest.Digest(i.layer)}
}

func (i image) manifestRef() oci.Reference {
	return oci.Reference{Registry: "registry.test", Repository: "team/app", Kind: oci.Manifest, Digest: ocitest.Digest(i.manifest)}
}

// goGzip compresses as docker push does.
func goGzip(tar []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(tar); err != nil {
		panic(err) // memory takes everything
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// zstdPack compresses as buildah does that is told to make zstd.
func zstdPack(tar []byte) []byte {
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b)
	if err != nil {
		panic(err) // the defaults are good
	}
	content := io.MultiReader(bytes.NewReader(tar[:8]), struct{ io.Reader }{bytes.NewReader(tar[8:])})
	if _, err := io.Copy(w, content); err != nil {
		panic(err) // memory takes everything
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// blocks compresses in blocks, as buildah does.
func blocks(tar []byte) []byte {
	var how gzexact.Recipe
	for _, r := range gzexact.Candidates() {
		if _, ok := r.Before(); ok {
			how = r
		}
	}
	var b bytes.Buffer
	if err := how.Encode(context.Background(), &b, bytes.NewReader(tar)); err != nil {
		panic(err) // memory takes everything
	}
	return b.Bytes()
}

// members compresses into two members, as nothing does that can be made again.
func members(tar []byte) []byte {
	half := len(tar) / 2
	return append(goGzip(tar[:half]), goGzip(tar[half:])...)
}

// pull has Docker unpack an image, as after a pull by tag.
func (d *daemon) pull(img image) {
	d.t.Helper()
	diffID, id := ocitest.Digest(img.tar), ocitest.Digest(img.config)
	cache := digest.FromString("directory of " + diffID.String()).Encoded()
	dir := "image/overlay2/layerdb/sha256/" + diffID.Encoded() + "/"
	d.write(dir+"cache-id", cache)
	d.write(dir+"size", "1")
	d.write(dir+"tar-split.json.gz", string(goGzip(d.split(img.tar))))
	r := tar.NewReader(bytes.NewReader(img.tar))
	header, err := r.Next()
	d.must(err)
	content, err := io.ReadAll(r)
	d.must(err)
	d.write("overlay2/"+cache+"/diff/"+header.Name, string(content))
	hints, err := json.Marshal([]map[string]string{{"Digest": ocitest.Digest(img.layer).String(), "SourceRepository": img.name}})
	d.must(err)
	d.write("image/overlay2/distribution/v2metadata-by-diffid/sha256/"+diffID.Encoded(), string(hints))
	d.write(dir+"diff", diffID.String())
	d.write("image/overlay2/imagedb/content/sha256/"+id.Encoded(), string(img.config))
	d.write("image/overlay2/repositories.json", fmt.Sprintf(`{"Repositories":{%q:{%q:%q,%q:%q}}}`,
		img.name, img.name+":v1", id, img.name+"@"+ocitest.Digest(img.manifest).String(), id))
}

// split returns the record of a tar, by tar-split itself.
func (d *daemon) split(content []byte) []byte {
	d.t.Helper()
	var record bytes.Buffer
	r, done, err := asm.NewInputTarStreamWithDone(bytes.NewReader(content), storage.NewJSONPacker(&record), nil)
	d.must(err)
	_, err = io.Copy(io.Discard, r)
	d.must(errors.Join(err, <-done))
	return record.Bytes()
}

// remove has Docker remove all images.
func (d *daemon) remove() {
	d.t.Helper()
	for _, dir := range []string{"image/overlay2/layerdb/sha256", "image/overlay2/imagedb/content/sha256", "overlay2"} {
		d.must(os.RemoveAll(filepath.Join(d.root, dir)))
		d.must(os.MkdirAll(filepath.Join(d.root, dir), 0o700))
	}
	d.write("image/overlay2/repositories.json", `{"Repositories":{}}`)
}

// open returns a running Store of d that remembers in dir.
func (d *daemon) open(dir string, keep int64) *Store {
	d.t.Helper()
	var reserved atomic.Int64
	s, err := Open(Config{
		Reserve: func(bytes int64) { reserved.Add(bytes) },
		Root:    d.root, Dir: dir, Files: transfer.Temporary(d.t.TempDir()), Keep: keep,
		Log: slog.New(slog.NewTextHandler(d.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	d.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	d.t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, s.Close()); err != nil {
			d.t.Error(err)
		}
		if n := reserved.Load(); n != 0 || !s.places.TryAcquire(maxMaking) || !s.background.TryAcquire(maxMaking-1) {
			d.t.Errorf("places for layers that are made were not given back, %d bytes reserved", n)
		}
	})
	return s
}

// arrive has content pass through s on its way to Docker.
func arrive(t *testing.T, s *Store, ref oci.Reference, content []byte) {
	t.Helper()
	p, err := s.Spool(transfer.Temporary(t.TempDir())).Begin(ref)
	if err != nil {
		t.Fatal(err)
	}
	defer p.File().Close()
	if _, err := p.File().Write(content); err != nil {
		t.Fatal(err)
	}
	if err := p.Commit(ref, oci.Descriptor{Digest: ref.Digest, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
}

// want waits until src has content, and compares it.
func want(t *testing.T, src oci.Source, ref oci.Reference, content []byte) {
	t.Helper()
	soon(t, fmt.Sprintf("%s is there", ref), func() bool {
		_, err := src.Resolve(t.Context(), ref)
		return err == nil
	})
	rc, desc, err := src.Open(t.Context(), ref, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if b, err := io.ReadAll(rc); err != nil || !bytes.Equal(b, content) || desc.Size != int64(len(content)) {
		t.Errorf("%s: %d bytes of %d, %v, want %d", ref, len(b), desc.Size, err, len(content))
	}
}

// wantNone checks that src does not have content.
func wantNone(t *testing.T, src oci.Source, ref oci.Reference) {
	t.Helper()
	if _, err := src.Resolve(t.Context(), ref); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("%s: got error %v, want ErrNotFound", ref, err)
	}
}

// soon waits until condition holds.
func soon(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if condition() {
			return
		}
	}
	t.Fatalf("not within 20 s: %s", what)
}
