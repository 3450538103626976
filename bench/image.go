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

// An image has one layer, of random bytes. It is files under the paths of the distribution API, which upstream serves.
type image struct {
	repository    string
	layer, config digest.Digest
	size          int64 // bytes of the layer
}

func (i image) path(kind, name string) string {
	return fmt.Sprintf("/v2/%s/%s/%s", i.repository, kind, name)
}

// makeImage writes an image under root.
func makeImage(root, repository string, size int64) (image, error) {
	i := image{repository: repository, size: size}
	blobs := filepath.Join(root, i.path("blobs", ""))
	manifests := filepath.Join(root, i.path("manifests", ""))
	for _, dir := range []string{blobs, manifests} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return i, err
		}
	}
	var err error
	if i.layer, err = makeLayer(blobs, size); err != nil {
		return i, err
	}
	config, err := json.Marshal(v1.Image{
		Platform: v1.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		RootFS:   v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{i.layer}},
	})
	if err != nil {
		return i, err
	}
	i.config = digest.FromBytes(config)
	manifest, err := json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: i.config, Size: int64(len(config))},
		Layers:    []v1.Descriptor{{MediaType: v1.MediaTypeImageLayer, Digest: i.layer, Size: size}},
	})
	if err != nil {
		return i, err
	}
	for file, content := range map[string][]byte{
		filepath.Join(blobs, i.config.String()):                       config,
		filepath.Join(manifests, tag):                                 manifest,
		filepath.Join(manifests, digest.FromBytes(manifest).String()): manifest,
	} {
		if err := os.WriteFile(file, content, 0o644); err != nil {
			return i, err
		}
	}
	return i, nil
}

// makeLayer writes size random bytes, the same in every run, into a file of dir that is named by their digest.
func makeLayer(dir string, size int64) (digest.Digest, error) {
	f, err := os.CreateTemp(dir, "layer-")
	if err != nil {
		return "", err
	}
	h := sha256.New()
	_, err = io.CopyN(io.MultiWriter(f, h), rand.NewChaCha8([32]byte{1}), size)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return "", err
	}
	d := digest.NewDigest(digest.SHA256, h)
	return d, os.Rename(f.Name(), filepath.Join(dir, d.String()))
}
