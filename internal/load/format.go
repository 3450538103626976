package load

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/oci"
)

// annotationName is where containerd and Docker put an image's whole name.
const annotationName = "io.containerd.image.name"

// read finds out which images there are.
func (a *Archive) read(ctx context.Context, unnamed oci.Reference) error {
	if _, ok := a.files[v1.ImageLayoutFile]; ok {
		return a.readLayout(unnamed)
	}
	if _, ok := a.files["manifest.json"]; ok {
		return a.readDocker(ctx, unnamed)
	}
	return fmt.Errorf("%w: it has neither %s nor manifest.json", ErrArchive, v1.ImageLayoutFile)
}

// readLayout reads an OCI image layout. The digests are proven by whoever reads the content.
func (a *Archive) readLayout(unnamed oci.Reference) error {
	for name, at := range a.files {
		rest, ok := strings.CutPrefix(name, v1.ImageBlobsDir+"/")
		algorithm, value, _ := strings.Cut(rest, "/")
		if d, err := oci.ParseDigest(algorithm + ":" + value); ok && err == nil {
			a.blobs[d] = at
		}
	}
	text, err := a.text(v1.ImageIndexFile)
	if err != nil {
		return err
	}
	var index v1.Index
	if err := json.Unmarshal(text, &index); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrArchive, v1.ImageIndexFile, err)
	}
	for _, d := range index.Manifests {
		if _, err := oci.ParseDigest(d.Digest.String()); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrArchive, v1.ImageIndexFile, err)
		}
		if err := a.name(nameOf(d), unnamed, d, len(index.Manifests)); err != nil {
			return err
		}
	}
	return nil
}

// nameOf returns what a layout calls an image.
func nameOf(d v1.Descriptor) string {
	if whole := d.Annotations[annotationName]; whole != "" {
		return whole
	}
	return d.Annotations[v1.AnnotationRefName]
}

// name gives an image its name. One that is a tag alone is of what the caller says.
func (a *Archive) name(text string, unnamed oci.Reference, d v1.Descriptor, images int) error {
	ref, err := unnamed, error(nil)
	switch {
	case strings.ContainsAny(text, "/:"):
		ref, err = oci.ParseReference(text, oci.DockerHub)
	case unnamed == (oci.Reference{}):
		err = fmt.Errorf("an image in it has no name, or a tag alone (%.100q): say --as REFERENCE", text)
	case text != "" && images > 1:
		ref.Tag = text
		err = ref.Validate()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrArchive, err)
	}
	if ref.Tag == "" {
		ref.Tag = "latest"
	}
	if d.Platform == nil || a.names[ref.String()].Digest == "" { // else one more platform of what has no index
		a.names[ref.String()] = d
	}
	return nil
}

// A saved image is one of manifest.json.
type saved struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// readDocker reads the format of docker save before version 25, of which skopeo's docker-archive is one, too. It has no manifests: they are made
// here, of layers as they are. What the layers must be, the configuration says.
func (a *Archive) readDocker(ctx context.Context, unnamed oci.Reference) error {
	text, err := a.text("manifest.json")
	if err != nil {
		return err
	}
	var images []saved
	if err := json.Unmarshal(text, &images); err != nil {
		return fmt.Errorf("%w: manifest.json: %w", ErrArchive, err)
	}
	for _, img := range images {
		d, err := a.manifest(ctx, img)
		if err != nil {
			return err
		}
		if len(img.RepoTags) == 0 {
			img.RepoTags = []string{""}
		}
		for _, name := range img.RepoTags {
			if err := a.name(name, unnamed, d, len(images)); err != nil {
				return err
			}
		}
	}
	return nil
}

// manifest makes the manifest of an image.
func (a *Archive) manifest(ctx context.Context, img saved) (v1.Descriptor, error) {
	config, err := a.text(img.Config)
	if err != nil {
		return v1.Descriptor{}, err
	}
	var c struct {
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return v1.Descriptor{}, fmt.Errorf("%w: %s: %w", ErrArchive, img.Config, err)
	}
	if len(c.RootFS.DiffIDs) != len(img.Layers) {
		return v1.Descriptor{}, fmt.Errorf("%w: %s has %d layers, its configuration says %d", ErrArchive, img.Config, len(img.Layers), len(c.RootFS.DiffIDs))
	}
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: a.made(v1.MediaTypeImageConfig, config), Layers: []v1.Descriptor{}}
	for i, name := range img.Layers {
		d, err := a.layer(ctx, name, c.RootFS.DiffIDs[i])
		if err != nil {
			return v1.Descriptor{}, err
		}
		m.Layers = append(m.Layers, d)
	}
	text, err := json.Marshal(m)
	if err != nil {
		return v1.Descriptor{}, err
	}
	return a.made(v1.MediaTypeImageManifest, text), nil
}

// made keeps a small text.
func (a *Archive) made(mediaType string, text []byte) v1.Descriptor {
	d := digest.FromBytes(text)
	a.texts[d] = text
	return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(text))}
}

// layer returns the descriptor of a layer, which must be what the configuration says unless it is compressed: then it is digested here.
func (a *Archive) layer(ctx context.Context, name string, want digest.Digest) (v1.Descriptor, error) {
	clean, err := inside(name)
	if err != nil {
		return v1.Descriptor{}, err
	}
	at, ok := a.files[clean]
	if !ok {
		return v1.Descriptor{}, fmt.Errorf("%w: there is no %s in it", ErrArchive, name)
	}
	if _, err := oci.ParseDigest(want.String()); err != nil {
		return v1.Descriptor{}, fmt.Errorf("%w: layer %s: %w", ErrArchive, name, err)
	}
	d := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: want, Size: at.size}
	var magic [2]byte
	if _, err := a.f.ReadAt(magic[:], at.offset); err == nil && string(magic[:]) == "\x1f\x8b" {
		if d.MediaType, d.Digest = v1.MediaTypeImageLayerGzip, a.sums[at]; d.Digest == "" {
			h := sha256.New()
			if _, err := io.Copy(h, &stoppable{ctx, io.NewSectionReader(a.f, at.offset, at.size)}); err != nil {
				return d, err
			}
			d.Digest = digest.NewDigest(digest.SHA256, h)
			a.sums[at] = d.Digest
		}
	}
	a.blobs[d.Digest] = at
	return d, nil
}
