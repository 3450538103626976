package snapshot

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/chain"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

var imageRef = oci.Reference{Registry: "registry.test", Repository: "team/app", Tag: "v1"}

// imageSource is a registry with an image of one layer that is large, and a signature of it.
func imageSource(t *testing.T) (*ocitest.Memory, oci.Descriptor) {
	t.Helper()
	m := &ocitest.Memory{}
	root := m.Image(imageRef, ocitest.Bytes(1, 3*small), ocitest.Bytes(2, 100), nil)
	subject := v1.Descriptor{MediaType: root.MediaType, Digest: root.Digest, Size: root.Size}
	config := m.Add("application/vnd.oci.empty.v1+json", []byte("{}"))
	m.Manifest(oci.Reference{Registry: imageRef.Registry, Repository: imageRef.Repository}, v1.MediaTypeImageManifest, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, ArtifactType: "application/x.signature", Subject: &subject,
		Config: v1.DescriptorEmptyJSON, Layers: []v1.Descriptor{{MediaType: config.MediaType, Digest: config.Digest, Size: config.Size}},
	})
	return m, root
}

// An image comes from a registry, is served out of the store, and goes into another registry as it was.
func TestPushImage(t *testing.T) {
	src, root := imageSource(t)
	m := newMemory()
	s := &Store{Bucket: m, Jobs: 3}
	learned := t.TempDir()
	img := ImageOptions{ImageOptions: chain.ImageOptions{Referrers: true}, Learned: learned}
	proven := struct {
		oci.Source
		oci.Lister
	}{chain.Verified(src), src}
	sum, err := s.PushImage(t.Context(), proven, imageRef, img, Options{Origin: Revision{Action: "push", From: imageRef.String()}})
	must(t, err)
	if sum.Sent != sum.Objects || sum.Skipped != 0 {
		t.Errorf("got %+v", sum)
	}
	if left := append(m.keys(incomingPrefix), m.keys(holdsPrefix)...); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	m.reset()
	again, err := s.PushImage(t.Context(), proven, imageRef, img, Options{})
	if err != nil || again.ID != sum.ID || again.Sent != 0 || m.calls["Put"] > 0 {
		t.Errorf("again: %+v, %v by %v", again, err, m.calls)
	}
	out := t.TempDir()
	pulled(t, s, sum.ID, out, PullOptions{})
	for _, name := range []string{"oci-layout", "index.json", "blobs/sha256/" + root.Digest.Encoded()} {
		if _, err := os.Stat(filepath.Join(out, name)); err != nil {
			t.Error(err)
		}
	}
	if byPath := pushed(t, &Store{Bucket: newMemory()}, out, Options{}); byPath.ID != sum.ID {
		t.Errorf("pushed as a directory it is %s, want %s", byPath.ID, sum.ID)
	}
	library := &Library{Store: s}
	names, err := library.Names(t.Context())
	if err != nil || len(names) != 1 || names[0] != imageRef {
		t.Errorf("names: %v, %v", names, err)
	}
	target := &ocitest.Memory{}
	served := struct {
		oci.Source
		oci.Lister
	}{chain.Verified(library), library}
	if _, err := chain.Copy(t.Context(), target, served, imageRef, chain.CopyOptions{Jobs: 2, ImageOptions: chain.ImageOptions{Referrers: true}}); err != nil {
		t.Fatal(err)
	}
	got, err := target.Resolve(t.Context(), imageRef)
	if err != nil || got.Digest != root.Digest {
		t.Errorf("there it is %+v, %v, want %s", got, err, root.Digest)
	}
	referrers, err := target.Referrers(t.Context(), imageRef.WithDigest(root.Digest))
	if err != nil || len(referrers) != 1 || referrers[0].ArtifactType != "application/x.signature" {
		t.Errorf("what refers to it: %+v, %v", referrers, err)
	}
}

// What is remembered of a blob may be wrong: that is found out, and forgotten.
func TestPushImageForgets(t *testing.T) {
	src, root := imageSource(t)
	learned := t.TempDir()
	img := ImageOptions{Learned: learned}
	if _, err := (&Store{Bucket: newMemory()}).PushImage(t.Context(), chain.Verified(src), imageRef, img, Options{}); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(learned)
	must(t, err)
	if len(files) == 0 {
		t.Fatal("nothing is remembered")
	}
	for _, f := range files {
		must(t, os.WriteFile(filepath.Join(learned, f.Name()), []byte(digestOf([]byte("wrong"))), 0o600))
	}
	m := newMemory()
	for range files {
		_, err = (&Store{Bucket: m}).PushImage(t.Context(), chain.Verified(src), imageRef, img, Options{})
		if err != nil && !errors.Is(err, oci.ErrDigestMismatch) {
			t.Fatal(err)
		}
	}
	sum, err := (&Store{Bucket: m}).PushImage(t.Context(), chain.Verified(src), imageRef, img, Options{})
	if err != nil {
		t.Fatalf("in the end: %v", err)
	}
	out := t.TempDir()
	pulled(t, &Store{Bucket: m}, sum.ID, out, PullOptions{})
	if _, err := os.Stat(filepath.Join(out, "blobs/sha256", root.Digest.Encoded())); err != nil {
		t.Error(err)
	}
}

// Of an image for many platforms those are taken that were asked for; the index stays as it is.
func TestPushImageOfPlatforms(t *testing.T) {
	src := &ocitest.Memory{}
	var list []v1.Descriptor
	for i, arch := range []string{"amd64", "arm64"} {
		d := src.Image(oci.Reference{Registry: "registry.test", Repository: "multi", Tag: arch}, ocitest.Bytes(uint64(10+i), 500))
		list = append(list, v1.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Platform: &v1.Platform{OS: "linux", Architecture: arch}})
	}
	ref := oci.Reference{Registry: "registry.test", Repository: "multi", Tag: "v1"}
	index := src.Manifest(ref, v1.MediaTypeImageIndex, v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: list})
	for _, c := range []struct {
		platforms []string
		there     []bool
	}{{nil, []bool{true, true}}, {[]string{"linux/arm64"}, []bool{false, true}}, {[]string{"windows/amd64"}, nil}} {
		s := &Store{Bucket: newMemory()}
		sum, err := s.PushImage(t.Context(), chain.Verified(src), ref, ImageOptions{ImageOptions: chain.ImageOptions{Platforms: c.platforms}}, Options{})
		if c.there == nil {
			if err == nil || !strings.Contains(err.Error(), "windows/amd64") {
				t.Errorf("%v: %v", c.platforms, err)
			}
			continue
		}
		must(t, err)
		m, err := s.Manifest(t.Context(), sum.ID)
		must(t, err)
		for i, d := range list {
			if m.has(blobPath(d.Digest)) != c.there[i] {
				t.Errorf("%v: %s is there: %v", c.platforms, d.Platform.Architecture, !c.there[i])
			}
		}
		if !m.has(blobPath(index.Digest)) {
			t.Errorf("%v: the index is not there", c.platforms)
		}
		target := &ocitest.Memory{}
		if _, err := chain.Copy(t.Context(), target, chain.Verified(&Library{Store: s}), ref, chain.CopyOptions{ImageOptions: chain.ImageOptions{Sparse: true}}); err != nil {
			t.Errorf("%v: loaded: %v", c.platforms, err)
		}
	}
}

func TestLibraryIsASource(t *testing.T) {
	ocitest.TestSource(t, func(t *testing.T, content *ocitest.Memory, ref oci.Reference) oci.Source {
		t.Helper()
		s := &Store{Bucket: newMemory()}
		if _, err := s.PushImage(t.Context(), chain.Verified(content), ref, ImageOptions{}, Options{}); err != nil {
			t.Fatal(err)
		}
		return &Library{Store: s}
	})
}

// A layout that names no image in whole has the name of its snapshot, or of its directory.
func TestLibraryNames(t *testing.T) {
	src, _ := imageSource(t)
	s := &Store{Bucket: newMemory()}
	sum, err := s.PushImage(t.Context(), chain.Verified(src), imageRef, ImageOptions{}, Options{})
	must(t, err)
	out := filepath.Join(t.TempDir(), "My-Layout")
	pulled(t, s, sum.ID, out, PullOptions{})
	index := filepath.Join(out, "index.json")
	b, err := os.ReadFile(index)
	must(t, err)
	must(t, os.WriteFile(index, []byte(strings.Replace(string(b), annotationName, "x", 1)), 0o644))
	for name, want := range map[string]string{"": "docker.io/library/my-layout:v1", "team/other": "docker.io/team/other:v1", "registry.test/x/y:v7": "registry.test/x/y:v7", "no name at all": ""} {
		s := &Store{Bucket: newMemory()}
		pushed(t, s, out, Options{Origin: Revision{Action: "push", Name: name, From: out}})
		pushed(t, s, example(t), Options{}) // no layout
		names, err := (&Library{Store: s}).Names(t.Context())
		must(t, err)
		var got []string
		for _, ref := range names {
			got = append(got, ref.String())
		}
		if want == "" && len(got) > 0 || want != "" && !slices.Equal(got, []string{want}) {
			t.Errorf("%q: got %v, want %s", name, got, want)
		}
	}
}
