package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/minio/minio-go/v7/pkg/signer"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// A layoutDir is an OCI image layout with one image.
type layoutDir struct {
	dir    string
	layers []v1.Descriptor
	old    []digest.Digest // config and manifest, to be replaced
}

func (l *layoutDir) blob(d digest.Digest) string {
	return filepath.Join(l.dir, v1.ImageBlobsDir, "sha256", d.Encoded())
}

// add adds a layer of random bytes.
func (l *layoutDir) add(seed byte, size int64) error {
	blobs := filepath.Dir(l.blob(digest.FromString("")))
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	d, err := makeLayer(blobs, seed, size)
	if err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(blobs, d.String()), l.blob(d)); err != nil {
		return err
	}
	l.layers = append(l.layers, v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: d, Size: size})
	return nil
}

// finish writes all that depends on the layers, and returns of how many bytes that is.
func (l *layoutDir) finish() (size int64, err error) {
	for _, d := range l.old {
		if err := os.Remove(l.blob(d)); err != nil {
			return 0, err
		}
	}
	l.old = nil
	write := func(v any) (d v1.Descriptor, err error) {
		text, err := json.Marshal(v)
		if err != nil {
			return d, err
		}
		d = v1.Descriptor{Digest: digest.FromBytes(text), Size: int64(len(text))}
		l.old = append(l.old, d.Digest)
		size += d.Size
		return d, os.WriteFile(l.blob(d.Digest), text, 0o644)
	}
	var diffs []digest.Digest
	for _, layer := range l.layers {
		diffs = append(diffs, layer.Digest)
	}
	config, err := write(v1.Image{Platform: v1.Platform{Architecture: "amd64", OS: "linux"}, RootFS: v1.RootFS{Type: "layers", DiffIDs: diffs}})
	if err != nil {
		return 0, err
	}
	config.MediaType = v1.MediaTypeImageConfig
	manifest, err := write(v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: config, Layers: l.layers})
	if err != nil {
		return 0, err
	}
	manifest.MediaType = v1.MediaTypeImageManifest
	manifest.Annotations = map[string]string{v1.AnnotationRefName: tag}
	index, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{manifest}})
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(l.dir, v1.ImageLayoutFile), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644); err != nil {
		return 0, err
	}
	return size + int64(len(index)), os.WriteFile(filepath.Join(l.dir, v1.ImageIndexFile), index, 0o644)
}

// startS3 starts a server that speaks as S3 does, with one bucket, and returns the URL of a store in it.
func (m *moving) startS3(ctx context.Context) (url string, stop func() error, err error) {
	path, err := m.tool(ctx, "versitygw", "--version")
	if err != nil {
		return "", nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return "", nil, err
	}
	root := filepath.Join(m.dir, "s3")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", nil, err
	}
	p, err := m.start(ctx, "versitygw", addr, []string{"ROOT_ACCESS_KEY=bench", "ROOT_SECRET_KEY=benchsecret"}, path, "--port", addr, "posix", root)
	if err != nil {
		return "", nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://"+addr+"/bench", http.NoBody)
	if err != nil {
		return "", nil, errors.Join(err, p.stop())
	}
	req.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
	resp, err := http.DefaultClient.Do(signer.SignV4(*req, "bench", "benchsecret", "", "us-east-1"))
	if err == nil {
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			err = errors.New("bucket: " + resp.Status)
		}
	}
	if err != nil {
		return "", nil, errors.Join(err, p.stop())
	}
	return "s3://bench/store?endpoint=http://" + addr, p.stop, nil
}
