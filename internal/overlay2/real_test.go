//go:build e2e

package overlay2

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"pier/internal/oci"
)

// load loads an image of layers, each a tar.
func (d *real) load(name string, layers ...[]byte) {
	d.t.Helper()
	var diffIDs []oci.Digest
	var files []string
	var members []member
	for i, l := range layers {
		diffIDs = append(diffIDs, digest.FromBytes(l))
		files = append(files, fmt.Sprintf("%d.tar", i))
		members = append(members, file(files[i], string(l)))
	}
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{"Cmd": []string{name}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
	if err != nil {
		d.t.Fatal(err)
	}
	manifest, err := json.Marshal([]any{map[string]any{"Config": "config.json", "RepoTags": []string{name}, "Layers": files}})
	if err != nil {
		d.t.Fatal(err)
	}
	members = append(members, file("config.json", string(config)), file("manifest.json", string(manifest)))
	d.docker(bytes.NewReader(pack(d.t, members...)), "load")
}

// wantLayers checks that every layer of every image is rebuilt, and that those given are among them.
func (d *real) wantLayers(s *Store, given ...[]byte) {
	d.t.Helper()
	layers, err := s.Layers(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	rebuilt := make(map[oci.Digest]bool)
	for _, l := range layers {
		r, err := s.Tar(d.t.Context(), l, 0)
		if err != nil {
			d.t.Error(err)
			continue
		}
		got, err := digest.FromReader(r)
		if err != nil || got != l.DiffID {
			d.t.Errorf("layer %s of %d bytes: got %s and error %v", l.DiffID, l.Size, got, err)
		}
		rebuilt[l.DiffID] = err == nil
		r.Close()
	}
	for i, content := range given {
		if !rebuilt[digest.FromBytes(content)] {
			d.t.Errorf("layer %d of %d bytes is not there", i, len(content))
		}
	}
	images, err := s.Images()
	if err != nil {
		d.t.Fatal(err)
	}
	for _, i := range images {
		for _, chain := range i.ChainIDs() {
			if !slices.ContainsFunc(layers, func(l Layer) bool { return l.ChainID == chain }) {
				d.t.Errorf("image %s: layer %s is not there", i.ID, chain)
			}
		}
	}
}

// nasty is a stack of layers with all that a layer may have, as archive/tar and as GNU tar write it. Devices needs a dockerd that may
// make devices.
func nasty(t *testing.T, devices bool) [][]byte {
	t.Helper()
	base := []member{
		dir("usr/lib"), dir("usr/share/doc"), file("usr/lib/libc.so", big), symlink("lib", "/usr/lib"), symlink("doc", "usr/share/doc"),
		symlink("up", "../../../usr/lib"), file("doc/readme", "content"), file("lib/absolute", big), file("up/clamped", "content"),
		file("gone", "content"), dir("opaque"), file("opaque/old", "content"),
		file(long+"file", "content"), file(strings.Repeat("x", 255), "content"), file("caf\xe9/\xff\xfe", "content"), file("a\"b\\c\n<&>\u2028", "x"),
		file("./a/../b/./c", "content"), file("/slash", "content"),
		{Header: tar.Header{Name: "hard", Linkname: "usr/lib/libc.so", Typeflag: tar.TypeLink}},
		{Header: tar.Header{Name: "with-xattr", Typeflag: tar.TypeReg, Mode: 0o755, PAXRecords: map[string]string{
			"SCHILY.xattr.user.comment": "\x01\x00x", "mtime": "1700000000.123456789"}}, body: "content"},
		{Header: tar.Header{Name: "setuid", Typeflag: tar.TypeReg, Mode: 0o4755}, body: "content"},
		{Header: tar.Header{Name: "no-rights", Typeflag: tar.TypeReg}, body: "content"},
	}
	if devices {
		base = append(base, member{Header: tar.Header{Name: "fifo", Typeflag: tar.TypeFifo}},
			member{Header: tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}})
	}
	for i := range base {
		if base[i].Format == tar.FormatUnknown && strings.HasPrefix(base[i].Name, "caf") {
			base[i].Format = tar.FormatGNU
		}
	}
	sized, _ := linkWithSize(t)
	layers := [][]byte{
		sized,
		pack(t, base...),
		pack(t, file(".wh.gone", ""), dir("opaque"), file("opaque/.wh..wh..opq", ""), file("opaque/new", "content"), file("usr/lib/libc.so", big+"2")),
		pack(t, file("gone", "again"), file("usr/lib/.wh.libc.so", "")),
		pack(t),
		append(pack(t, file("padded", "content")), make([]byte, 300_000)...),
	}
	if _, err := exec.LookPath("tar"); err != nil {
		t.Logf("NOT TESTED with GNU tar: %v", err)
		return layers
	}
	for _, format := range []string{"v7", "oldgnu", "gnu", "ustar", "posix"} {
		out, err := exec.Command("tar", "-c", "--format="+format, "--owner=0", "--group=0", "-C", "/usr/share", "common-licenses").Output()
		if err != nil {
			t.Logf("NOT TESTED with tar --format=%s: %v", format, err)
			continue
		}
		layers = append(layers, out)
	}
	return layers
}

func TestRealLayers(t *testing.T) {
	d := startReal(t, false)
	s, err := Open(Config{Root: d.root()})
	if err != nil {
		t.Fatal(err)
	}
	if !s.Ready() {
		t.Error("not ready without an image")
	}
	before := s.Changed()
	layers := nasty(t, true)
	d.load("registry.test/nasty:v1", layers...)
	if s.Changed().Equal(before) {
		t.Error("no change seen after docker load")
	}
	d.wantLayers(s, layers...)

	// Docker's own builders: their layers never were in a tar before.
	context := pack(t, file("Dockerfile", "FROM registry.test/nasty:v1\nCOPY a b /lib/\nADD a /doc/\nADD b /opaque/\n"), file("a", big), file("b", "content"))
	for _, d.buildKit = range []string{"0", "1"} {
		d.docker(bytes.NewReader(context), "build", "-t", "built:v"+d.buildKit, "-")
		d.wantLayers(s, layers...)
	}
	images, err := s.Images()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range images {
		for _, ref := range i.Names {
			names = append(names, ref.String())
			if want := len(layers); ref.Repository == "nasty" && len(i.DiffIDs) != want || ref.Repository == "library/built" && len(i.DiffIDs) != want+3 {
				t.Errorf("%s has %d layers", ref, len(i.DiffIDs))
			}
		}
	}
	slices.Sort(names)
	if want := []string{"docker.io/library/built:v0", "docker.io/library/built:v1", "registry.test/nasty:v1"}; !slices.Equal(names, want) {
		t.Errorf("got images %v, want %v", names, want)
	}
}

// What cannot be rebuilt is known beforehand.
func TestRealUnsupported(t *testing.T) {
	d := startReal(t, false)
	var layers [][]byte
	tars, _ := sparseTars(t)
	for _, content := range tars {
		layers = append(layers, content)
	}
	layers = append(layers, pack(t, file(".wh.gone", "content")))
	d.load("app:v1", layers...)
	s, err := Open(Config{Root: d.root()})
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Layers(t.Context())
	if err != nil || len(got) != len(layers) {
		t.Errorf("got %d layers and error %v, want %d", len(got), err, len(layers))
	}
	for _, l := range got {
		if _, err := s.Tar(t.Context(), l, 0); l.Unsupported == "" || !errors.Is(err, oci.ErrUnsupported) {
			t.Errorf("got %+v and error %v, want ErrUnsupported", l, err)
		}
	}
}

// In a user namespace Docker cannot extract into a layer's directory ("Native Overlay Diff: false"), only into the mounted
// image: what leads through a link of a layer below lies where that leads to.
func TestRealRootless(t *testing.T) {
	d := startReal(t, true)
	if info := d.docker(nil, "info"); !strings.Contains(info, "Native Overlay Diff: false") {
		t.Fatalf("this is not what is to be tested:\n%s", info)
	}
	layers := append(nasty(t, false),
		pack(t, file("lib/through-a-link-below", "content"), file("up/too", big), file("doc/new/directory", "content")))
	d.load("registry.test/nasty:v1", layers...)
	s, err := Open(Config{Root: d.root()})
	if err != nil {
		t.Fatal(err)
	}
	d.wantLayers(s, layers...)
}

// Pulled from a registry, and pushed to one, Docker remembers the compressed layer's digest and not its bytes.
func TestRealHints(t *testing.T) {
	d := startReal(t, false)
	registry := d.startRegistry()
	layers := [][]byte{pack(t, file("a", big)), pack(t, file("b", "content"))}
	name := registry + "/app:v1"
	d.load(name, layers...)
	d.docker(nil, "push", name)
	s, err := Open(Config{Root: d.root()})
	if err != nil {
		t.Fatal(err)
	}
	pushed := d.wantHints(s, registry, layers)
	before := s.Changed()
	d.docker(nil, "rmi", name)
	if left, err := s.Layers(t.Context()); err != nil || len(left) != 0 || s.Changed().Equal(before) {
		t.Errorf("after docker rmi: got layers %v and error %v, changed %v", left, err, !s.Changed().Equal(before))
	}
	d.docker(nil, "pull", name)
	d.wantLayers(s, layers...)
	if pulled := d.wantHints(s, registry, layers); pulled != pushed {
		t.Errorf("pulled as %s, pushed as %s", pulled, pushed)
	}
}

// wantHints checks that every layer has a hint by which the registry has it, and returns the digest of the image's manifest.
func (d *real) wantHints(s *Store, registry string, layers [][]byte) oci.Digest {
	d.t.Helper()
	for _, l := range layers {
		diff := digest.FromBytes(l)
		hints, err := s.Hints(diff)
		if err != nil || len(hints) != 1 || hints[0].Repository != registry+"/app" {
			d.t.Fatalf("got hints %v and error %v, want one", hints, err)
		}
		resp, err := http.Get("http://" + registry + "/v2/app/blobs/" + hints[0].Digest.String())
		if err != nil {
			d.t.Fatal(err)
		}
		z, err := gzip.NewReader(resp.Body)
		if err != nil {
			d.t.Fatal(err)
		}
		if got, err := digest.FromReader(z); err != nil || got != diff {
			d.t.Errorf("blob %s has diff ID %s, error %v, want %s", hints[0].Digest, got, err, diff)
		}
		resp.Body.Close()
	}
	images, err := s.Images()
	if err != nil || len(images) != 1 {
		d.t.Fatalf("got images %v and error %v, want one", images, err)
	}
	for _, ref := range images[0].Names {
		if ref.Digest != "" && ref.Name() == registry+"/app" {
			return ref.Digest
		}
	}
	d.t.Errorf("image has names %v, none with a digest", images[0].Names)
	return ""
}

// docker rmi in the middle of a read: what is read ends as it should, or not at all.
func TestRealRemovedWhileRead(t *testing.T) {
	d := startReal(t, false)
	var members []member
	for i := range 200 {
		members = append(members, file(fmt.Sprintf("f%03d", i), big))
	}
	content := pack(t, members...)
	d.load("app:v1", content)
	s, err := Open(Config{Root: d.root()})
	if err != nil {
		t.Fatal(err)
	}
	layers, err := s.Layers(t.Context())
	if err != nil || len(layers) != 1 {
		t.Fatalf("got layers %v and error %v, want one", layers, err)
	}
	r, err := s.Tar(t.Context(), layers[0], 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.CopyN(io.Discard, r, 1<<20); err != nil {
		t.Fatal(err)
	}
	d.docker(nil, "rmi", "app:v1")
	n, err := io.Copy(io.Discard, r)
	if !errors.Is(err, oci.ErrUnavailable) || n > int64(len(content))/2 {
		t.Errorf("got %d more bytes and error %v, want ErrUnavailable at the next file", n, err)
	}
	if _, err := s.Tar(t.Context(), layers[0], 0); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("got error %v, want ErrNotFound", err)
	}
}
