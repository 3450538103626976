//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// A blob is content with its descriptor.
type blob struct {
	v1.Descriptor
	data []byte
}

// An image is everything that belongs to a tag: one platform's image, an index of several, or an artifact.
type image struct {
	blobs     []blob
	manifests []blob // children first; the last one is what a tag names
}

func (i *image) root() blob { return i.manifests[len(i.manifests)-1] }

// layer returns the nth blob after the config of a single-platform image.
func (i *image) layer(n int) blob { return i.blobs[1+n] }

func newBlob(mediaType string, data []byte) blob {
	return blob{v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}, data}
}

func newJSON(t *testing.T, mediaType string, value any) blob {
	t.Helper()
	data, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return newBlob(mediaType, data)
}

// A random stream is the same whenever a test runs, and different for every image.
var imageCount atomic.Int64

func newRandom(t *testing.T) *rand.ChaCha8 {
	return rand.NewChaCha8(sha256.Sum256(fmt.Appendf(nil, "%s %d", t.Name(), imageCount.Add(1))))
}

// newImage returns an image for linux/amd64 whose layers hold one file of random bytes each, of the given sizes.
func newImage(t *testing.T, layerSizes ...int) *image {
	t.Helper()
	return newPlatformImage(t, v1.Platform{OS: "linux", Architecture: "amd64"}, layerSizes...)
}

func newPlatformImage(t *testing.T, platform v1.Platform, layerSizes ...int) *image {
	t.Helper()
	random := newRandom(t)
	config := v1.Image{Platform: platform, RootFS: v1.RootFS{Type: "layers"}}
	var layers []blob
	for n, size := range layerSizes {
		file := make([]byte, size)
		_, _ = random.Read(file) // never fails
		layer, diffID := newLayer(t, fmt.Sprintf("data/file%d", n), file)
		layers = append(layers, layer)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
	}
	i := &image{blobs: append([]blob{newJSON(t, v1.MediaTypeImageConfig, config)}, layers...)}
	i.manifests = []blob{newManifest(t, i.blobs, 0)}
	return i
}

// newManifest returns the manifest of a config and the layers after it, with an annotation of so many bytes.
func newManifest(t *testing.T, blobs []blob, annotation int) blob {
	t.Helper()
	manifest := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: blobs[0].Descriptor}
	for _, layer := range blobs[1:] {
		manifest.Layers = append(manifest.Layers, layer.Descriptor)
	}
	if annotation > 0 {
		manifest.Annotations = map[string]string{"test": strings.Repeat("x", annotation)}
	}
	return newJSON(t, v1.MediaTypeImageManifest, manifest)
}

// newLayer returns a gzipped tar archive of one file, and the digest of the tar archive.
func newLayer(t *testing.T, name string, file []byte) (blob, digest.Digest) {
	t.Helper()
	var plain, zipped bytes.Buffer
	archive := tar.NewWriter(&plain)
	header := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(file)), ModTime: time.Unix(1e9, 0)}
	if err := archive.WriteHeader(header); err != nil {
		t.Fatal(err)
	}
	if _, err := archive.Write(file); err != nil {
		t.Fatal(err)
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	w, err := gzip.NewWriterLevel(&zipped, gzip.NoCompression) // random bytes do not get smaller
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return newBlob(v1.MediaTypeImageLayerGzip, zipped.Bytes()), digest.FromBytes(plain.Bytes())
}

// newIndex returns an index of one image for each platform, each with one layer of layerSize.
func newIndex(t *testing.T, layerSize int, platforms ...v1.Platform) *image {
	t.Helper()
	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}
	all := &image{}
	for _, platform := range platforms {
		child := newPlatformImage(t, platform, layerSize)
		all.blobs = append(all.blobs, child.blobs...)
		all.manifests = append(all.manifests, child.manifests...)
		desc := child.root().Descriptor
		desc.Platform = &platform
		index.Manifests = append(index.Manifests, desc)
	}
	all.manifests = append(all.manifests, newJSON(t, v1.MediaTypeImageIndex, index))
	return all
}

// newArtifact returns an artifact of the given type that refers to subject. Its type is also that of its config, which
// some registries report instead.
func newArtifact(t *testing.T, artifactType string, subject blob) *image {
	t.Helper()
	content := newBlob("application/octet-stream", []byte(artifactType+" about "+subject.Digest.String()))
	to := v1.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size}
	empty := newBlob(artifactType, v1.DescriptorEmptyJSON.Data)
	return &image{
		blobs: []blob{empty, content},
		manifests: []blob{newJSON(t, v1.MediaTypeImageManifest, v1.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
			ArtifactType: artifactType, Config: empty.Descriptor, Layers: []v1.Descriptor{content.Descriptor}, Subject: &to,
		})},
	}
}
