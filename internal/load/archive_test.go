package load

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/chain"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// An entry is a file of an archive.
type entry struct {
	name, content string
	link          string // what a link leads to
	kind          byte   // 0: a file
}

func pack(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: tar.TypeReg, Size: int64(len(e.content)), Mode: 0o644}
		if e.kind != 0 {
			h.Typeflag, h.Linkname, h.Size = e.kind, e.link, 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func write(t testing.TB, content []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "archive.tar")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func text(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func digestOf(s string) oci.Digest { return ocitest.Digest([]byte(s)) }

// docker is an archive of Docker's old format: two images share a layer, which the second has by a link.
func docker(t testing.TB) []entry {
	t.Helper()
	base, top := string(ocitest.Bytes(1, 5000)), string(ocitest.Bytes(2, 7000))
	config := func(layers ...string) string {
		var ids []oci.Digest
		for _, l := range layers {
			ids = append(ids, digestOf(l))
		}
		return text(t, map[string]any{"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": ids}})
	}
	return []entry{
		{name: "one/layer.tar", content: base},
		{name: "two/layer.tar", content: top},
		{name: "three/layer.tar", kind: tar.TypeSymlink, link: "../one/layer.tar"},
		{name: "one.json", content: config(base, top)},
		{name: "two.json", content: config(base)},
		{name: "manifest.json", content: text(t, []saved{
			{Config: "one.json", RepoTags: []string{"app:v1", "registry.test:5000/team/app:v2"}, Layers: []string{"one/layer.tar", "two/layer.tar"}},
			{Config: "two.json", RepoTags: []string{"base:v1"}, Layers: []string{"three/layer.tar"}},
		})},
	}
}

// layout is an OCI image layout.
func layout(t testing.TB, annotations map[string]string) []entry {
	t.Helper()
	config, layer := `{"architecture":"amd64","os":"linux"}`, string(ocitest.Bytes(3, 9000))
	manifest := text(t, v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: described(v1.MediaTypeImageConfig, config), Layers: []v1.Descriptor{described(v1.MediaTypeImageLayer, layer)}})
	root := described(v1.MediaTypeImageManifest, manifest)
	root.Annotations = annotations
	return []entry{
		{name: "./", kind: tar.TypeDir},
		{name: "./oci-layout", content: `{"imageLayoutVersion":"1.0.0"}`},
		{name: "./index.json", content: text(t, v1.Index{Manifests: []v1.Descriptor{root}})},
		blob(config), blob(layer), blob(manifest),
	}
}

func described(mediaType, s string) v1.Descriptor {
	return v1.Descriptor{MediaType: mediaType, Digest: digestOf(s), Size: int64(len(s))}
}

func blob(s string) entry {
	return entry{name: "./blobs/sha256/" + digestOf(s).Encoded(), content: s}
}

func unnamed(t testing.TB, s string) (ref oci.Reference) {
	t.Helper()
	if s != "" {
		var err error
		if ref, err = oci.ParseReference(s, oci.DockerHub); err != nil {
			t.Fatal(err)
		}
	}
	return ref
}

func TestArchives(t *testing.T) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write(pack(t, docker(t)...))
	_ = z.Close()
	for name, tc := range map[string]struct {
		content []byte
		as      string
		want    []string
	}{
		"docker":              {pack(t, docker(t)...), "", []string{"docker.io/library/app:v1", "docker.io/library/base:v1", "registry.test:5000/team/app:v2"}},
		"docker, by gzip":     {packed.Bytes(), "", []string{"docker.io/library/app:v1", "docker.io/library/base:v1", "registry.test:5000/team/app:v2"}},
		"layout":              {pack(t, layout(t, map[string]string{v1.AnnotationRefName: "registry.test/app:v3"})...), "", []string{"registry.test/app:v3"}},
		"layout of Docker 25": {pack(t, layout(t, map[string]string{v1.AnnotationRefName: "v4", annotationName: "docker.io/library/app:v4"})...), "", []string{"docker.io/library/app:v4"}},
		"layout, a tag alone": {pack(t, layout(t, map[string]string{v1.AnnotationRefName: "v5"})...), "app:v6", []string{"docker.io/library/app:v6"}},
		"layout, no name":     {pack(t, layout(t, nil)...), "app", []string{"docker.io/library/app:latest"}},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := Open(t.Context(), write(t, tc.content), unnamed(t, tc.as))
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			var got []string
			for _, ref := range a.Names() {
				got = append(got, ref.String())
				var to ocitest.Memory
				img, err := chain.Copy(t.Context(), &target{&to}, chain.Verified(a), ref, chain.CopyOptions{})
				if err != nil || len(img.Blobs) < 2 {
					t.Errorf("%s: got %+v, %v", ref, img, err)
				}
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// target is a store that knows no tags.
type target struct{ *ocitest.Memory }

func (*target) Tag(context.Context, oci.Reference, oci.Descriptor) error { return nil }

func TestBadArchives(t *testing.T) {
	good := docker(t)
	replaced := func(name, content string) []byte {
		list := slices.Clone(good)
		for i := range list {
			if list[i].name == name {
				list[i].content = content
			}
		}
		return pack(t, list...)
	}
	manifest := func(m saved) []byte { return replaced("manifest.json", text(t, []saved{m})) }
	whole := pack(t, good...)
	for name, tc := range map[string]struct {
		content []byte
		want    string
	}{
		"empty":                  {nil, "neither oci-layout nor manifest.json"},
		"a text":                 {[]byte(strings.Repeat("x", 2000)), "not an archive of images"},
		"zstd":                   {[]byte("\x28\xb5\x2f\xfd...."), "decompress it first"},
		"half a gzip":            {[]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\x01"), "decompressing it"},
		"cut":                    {whole[:6000], "not an archive of images"},
		"no manifest":            {pack(t, good[:3]...), "neither"},
		"a way out":              {pack(t, append(slices.Clone(good), entry{name: "../../etc/passwd", content: "x"})...), "leads out of it"},
		"an absolute path":       {pack(t, append(slices.Clone(good), entry{name: "/etc/passwd", content: "x"})...), "leads out of it"},
		"a link out":             {pack(t, append(slices.Clone(good), entry{name: "x", kind: tar.TypeSymlink, link: "../../etc/passwd"})...), "leads out of it"},
		"a file twice":           {pack(t, append(slices.Clone(good), good[0])...), "is there twice"},
		"no JSON":                {replaced("manifest.json", "{"), "manifest.json"},
		"no configuration":       {manifest(saved{Config: "none.json"}), "there is no none.json in it"},
		"a configuration out":    {manifest(saved{Config: "../../etc/passwd"}), "leads out of it"},
		"a layer too few":        {manifest(saved{Config: "one.json", RepoTags: []string{"a:1"}, Layers: []string{"one/layer.tar"}}), "has 1 layers, its configuration says 2"},
		"no such layer":          {manifest(saved{Config: "two.json", RepoTags: []string{"a:1"}, Layers: []string{"none.tar"}}), "there is no none.tar in it"},
		"a configuration's lies": {replaced("two.json", `{"rootfs":{"diff_ids":["sha256:../../x"]}}`), "digest"},
		"a bad name":             {manifest(saved{Config: "two.json", RepoTags: []string{"A/B:c"}, Layers: []string{"one/layer.tar"}}), "invalid name"},
		"no name":                {manifest(saved{Config: "two.json", Layers: []string{"one/layer.tar"}}), "say --as REFERENCE"},
		"a layout without index": {pack(t, entry{name: "oci-layout", content: "{}"}), "there is no index.json in it"},
		"a layout of nonsense":   {pack(t, entry{name: "oci-layout", content: "{}"}, entry{name: "index.json", content: `{"manifests":[{"digest":"x"}]}`}), "index.json"},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := Open(t.Context(), write(t, tc.content), oci.Reference{})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %+v, %v, want an error with %q", a, err, tc.want)
			}
		})
	}
}

// Content that is not what its digest says is found by whoever copies it, and nothing of it is kept.
func TestArchivesThatLie(t *testing.T) {
	list := docker(t)
	list[1].content = string(ocitest.Bytes(99, 7000)) // of the size that it should have
	a, err := Open(t.Context(), write(t, pack(t, list...)), oci.Reference{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	var to ocitest.Memory
	_, err = chain.Copy(t.Context(), &target{&to}, chain.Verified(a), unnamed(t, "app:v1"), chain.CopyOptions{})
	if !errors.Is(err, oci.ErrDigestMismatch) {
		t.Errorf("got %v, want %v", err, oci.ErrDigestMismatch)
	}
}

// FuzzArchive opens anything: it never panics, and what it finds can be read.
func FuzzArchive(f *testing.F) {
	f.Add(pack(f, docker(f)...))
	f.Add(pack(f, layout(f, map[string]string{v1.AnnotationRefName: "v1"})...))
	f.Add(pack(f, entry{name: "oci-layout"}, entry{name: "a", kind: tar.TypeSymlink, link: "b"}, entry{name: "b", kind: tar.TypeSymlink, link: "a"}))
	name := filepath.Join(f.TempDir(), "archive")
	f.Fuzz(func(t *testing.T, content []byte) {
		if len(content) > 64<<10 {
			return
		}
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := Open(t.Context(), name, unnamed(t, "app:v1"))
		if err != nil {
			return
		}
		defer a.Close()
		for _, ref := range a.Names() {
			var to ocitest.Memory
			_, _ = chain.Copy(t.Context(), &target{&to}, chain.Verified(a), ref, chain.CopyOptions{}) // it may lie
		}
	})
}

func TestParseList(t *testing.T) {
	list := "\ufeff# images\n\nalpine:3.20\n  registry.test:5000/a/b@" + ocitest.Absent.String() + " # pinned\nweb#1\n./app.tar\n/abs/x.tar.gz\nsub/y.tar\nUPPER/x\n" +
		strings.Repeat("x", 2*maxLine) + "\nlast"
	items, err := ParseList(strings.NewReader(list), "/lists/a.txt", "docker.io")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range items {
		s := i.From + " " + i.Ref.String()
		if i.File != "" {
			s = i.From + " file " + i.File
		}
		if i.Err != nil {
			s = i.From + " error"
		}
		got = append(got, s)
	}
	want := []string{
		"/lists/a.txt:3 docker.io/library/alpine:3.20", "/lists/a.txt:4 registry.test:5000/a/b@" + ocitest.Absent.String(), "/lists/a.txt:5 error",
		"/lists/a.txt:6 file /lists/app.tar", "/lists/a.txt:7 file /abs/x.tar.gz", "/lists/a.txt:8 file /lists/sub/y.tar", "/lists/a.txt:9 error",
		"/lists/a.txt:10 error", "/lists/a.txt:11 docker.io/library/last:latest",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"alpine": "docker.io/library/alpine:latest", "docker-archive:x": "file x", "oci-archive:/x/y": "file /x/y", "a.tar": "file a.tar", "./a": "file ./a",
		"../a": "file ../a", ".tar": "error", "a.tar:v1": "docker.io/library/a.tar:v1",
	} {
		i := Parse(text, "docker.io")
		got := i.Ref.String()
		switch {
		case i.Err != nil:
			got = "error"
		case i.File != "":
			got = "file " + i.File
		}
		if got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
}

// FuzzParseList reads anything as a list.
func FuzzParseList(f *testing.F) {
	f.Add("a\n#b\n\nc # d\n./e.tar\n")
	f.Fuzz(func(t *testing.T, list string) {
		items, err := ParseList(strings.NewReader(list), "list", "docker.io")
		for _, i := range items {
			if i.Err == nil && i.File == "" && i.Ref.Validate() != nil {
				t.Errorf("%q: %+v, %v", list, i, err)
			}
		}
		_ = fmt.Sprint(items)
	})
}
