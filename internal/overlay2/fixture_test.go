package overlay2

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"

	"pier/internal/oci"
)

// data is a Docker data root, written as Docker writes it.
type data struct {
	t    testing.TB
	root string
}

func newData(t testing.TB) *data {
	d := &data{t, t.TempDir()}
	for _, dir := range []string{"image/overlay2/layerdb/sha256", "image/overlay2/imagedb/content/sha256", "overlay2/l"} {
		d.must(os.MkdirAll(filepath.Join(d.root, dir), 0o700))
	}
	return d
}

func (d *data) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *data) write(name, content string) {
	d.t.Helper()
	name = filepath.Join(d.root, name)
	d.must(os.MkdirAll(filepath.Dir(name), 0o700))
	d.must(os.WriteFile(name, []byte(content), 0o600))
}

// store opens d.
func (d *data) store() *Store {
	d.t.Helper()
	s, err := Open(Config{Root: d.root})
	d.must(err)
	return s
}

// only returns the store and its only layer.
func (d *data) only() (*Store, Layer) {
	d.t.Helper()
	s := d.store()
	layers, err := s.Layers(d.t.Context())
	if err != nil || len(layers) != 1 {
		d.t.Fatalf("got layers %v and error %v, want one layer", layers, err)
	}
	return s, layers[0]
}

// A member is a member of a tar.
type member struct {
	tar.Header
	body string

	// disk is where in the layer's directory Docker puts it, if not under its own name; "-" for nowhere.
	disk string
}

func (m member) path() string {
	if m.disk != "" {
		return m.disk
	}
	return m.Name
}

// file and others make the usual members.
func file(name, body string) member {
	return member{Header: tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, body: body}
}

func dir(name string) member {
	return member{Header: tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755}}
}

func symlink(name, target string) member {
	return member{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}}
}

func (m member) at(disk string) member {
	m.disk = disk
	return m
}

// pack returns the tar of members.
func pack(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		m.Size = int64(len(m.body))
		if err := w.WriteHeader(&m.Header); err != nil {
			t.Fatalf("%q: %v", m.Name, err)
		}
		if _, err := io.WriteString(w, m.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// layer adds a layer on another, or on none, made of a tar whose members are extracted.
func (d *data) layer(parent oci.Digest, content []byte, members ...member) oci.Digest {
	d.t.Helper()
	diff := digest.FromBytes(content)
	chain := chainID(parent, diff)
	cache := digest.FromString("directory of " + chain.String()).Encoded()
	dir := "image/overlay2/layerdb/sha256/" + chain.Encoded() + "/"
	d.write(dir+"diff", diff.String())
	d.write(dir+"size", "1")
	d.write(dir+"cache-id", cache)
	if parent != "" {
		d.write(dir+"parent", parent.String())
	}
	d.write(dir+recordName, compress(d.t, split(d.t, content)))
	disk := filepath.Join(d.root, "overlay2", cache, "diff")
	d.must(os.MkdirAll(disk, 0o755))
	for _, m := range members {
		d.extract(disk, m)
	}
	return chain
}

// split returns the record of a tar, by tar-split itself.
func split(t testing.TB, content []byte) string {
	t.Helper()
	var record bytes.Buffer
	// Padding arrives in Docker as it is decompressed; in one piece would do as well.
	r, done, err := asm.NewInputTarStreamWithDone(iotest.HalfReader(bytes.NewReader(content)), storage.NewJSONPacker(&record), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("tar-split: %v", err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return record.String()
}

func compress(t testing.TB, s string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := io.WriteString(z, s); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// extract puts a member where Docker puts it, the way it does for overlay2.
func (d *data) extract(disk string, m member) {
	d.t.Helper()
	if m.disk == "-" {
		return
	}
	name := filepath.Join(disk, m.path())
	d.must(os.MkdirAll(filepath.Dir(name), 0o755))
	base := filepath.Base(name)
	var err error
	switch {
	case base == ".wh..wh..opq":
		err = syscall.Setxattr(filepath.Dir(name), "trusted.overlay.opaque", []byte("y"), 0)
	case strings.HasPrefix(base, ".wh."):
		err = syscall.Mknod(filepath.Join(filepath.Dir(name), base[4:]), syscall.S_IFCHR, 0)
	default:
		switch m.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(name, 0o755)
		case tar.TypeReg:
			err = os.WriteFile(name, []byte(m.body), 0o600)
		case tar.TypeSymlink:
			err = os.Symlink(m.Linkname, name)
		case tar.TypeLink:
			err = os.Link(filepath.Join(disk, m.Linkname), name)
		case tar.TypeFifo:
			err = syscall.Mkfifo(name, 0o600)
		case tar.TypeChar:
			err = syscall.Mknod(name, syscall.S_IFCHR, int(m.Devmajor<<8|m.Devminor))
		}
	}
	if errors.Is(err, os.ErrPermission) {
		d.t.Skipf("NOT TESTED without root: %v", err)
	}
	d.must(err)
}

// path returns where a layer's file lies.
func (d *data) path(l Layer, name string) string {
	return filepath.Join(d.root, "overlay2", l.CacheID, "diff", name)
}

// image adds an image of layers.
func (d *data) image(diffIDs ...oci.Digest) oci.Digest {
	d.t.Helper()
	config, err := json.Marshal(map[string]any{
		"architecture": "arm64", "os": "linux", "variant": "v8", "config": map[string]any{"Env": []string{"A=b"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
	d.must(err)
	id := digest.FromBytes(config)
	d.write("image/overlay2/imagedb/content/sha256/"+id.Encoded(), string(config))
	return id
}
