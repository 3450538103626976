package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const tag = "v1"

// An image has layers of random bytes. It is files under the paths of the distribution API, which upstream serves.
type image struct {
	repository string
	config     v1.Descriptor
	layers     []v1.Descriptor
	size       int64 // bytes of manifest, config and layers
}

func (i image) path(kind, name string) string {
	return fmt.Sprintf("/v2/%s/%s/%s", i.repository, kind, name)
}

// makeImage writes an image with layers of these sizes, in bytes, under root.
func makeImage(root, repository string, sizes ...int64) (image, error) {
	i := image{repository: repository}
	blobs := filepath.Join(root, i.path("blobs", ""))
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return i, err
	}
	var diffs []digest.Digest
	for n, size := range sizes {
		d, err := makeLayer(blobs, byte(n+1), size)
		if err != nil {
			return i, err
		}
		i.layers = append(i.layers, v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: d, Size: size})
		diffs = append(diffs, d)
	}
	return i.write(root, diffs)
}

// write writes config and manifest of an image whose layers are there, and returns it with them.
func (i image) write(root string, diffs []digest.Digest) (image, error) {
	blobs, manifests := filepath.Join(root, i.path("blobs", "")), filepath.Join(root, i.path("manifests", ""))
	if err := os.MkdirAll(manifests, 0o755); err != nil {
		return i, err
	}
	config, err := json.Marshal(v1.Image{
		Platform: v1.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		RootFS:   v1.RootFS{Type: "layers", DiffIDs: diffs},
	})
	if err != nil {
		return i, err
	}
	i.config = v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))}
	manifest, err := json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: i.config, Layers: i.layers,
	})
	if err != nil {
		return i, err
	}
	i.size = int64(len(manifest) + len(config))
	for _, l := range i.layers {
		i.size += l.Size
	}
	for file, content := range map[string][]byte{
		filepath.Join(blobs, i.config.Digest.String()):                config,
		filepath.Join(manifests, tag):                                 manifest,
		filepath.Join(manifests, digest.FromBytes(manifest).String()): manifest,
	} {
		if err := os.WriteFile(file, content, 0o644); err != nil {
			return i, err
		}
	}
	return i, nil
}

// makeLayer writes size random bytes, for a seed the same in every run, into a file of dir that is named by their digest.
func makeLayer(dir string, seed byte, size int64) (digest.Digest, error) {
	f, err := os.CreateTemp(dir, "layer-")
	if err != nil {
		return "", err
	}
	h := sha256.New()
	_, err = io.CopyN(io.MultiWriter(f, h), rand.NewChaCha8([32]byte{seed}), size)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return "", err
	}
	d := digest.NewDigest(digest.SHA256, h)
	return d, os.Rename(f.Name(), filepath.Join(dir, d.String()))
}

func sum(sizes []int64) (total int64) {
	for _, n := range sizes {
		total += n
	}
	return total
}
