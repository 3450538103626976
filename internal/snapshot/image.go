package snapshot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/chain"
	"pier/internal/oci"
)

// annotationName is where containerd looks for an image's whole name.
const annotationName = "io.containerd.image.name"

// A layout is an image as the files of an OCI image layout.
type layout struct {
	*chain.Image
	src     oci.Source
	ref     oci.Reference
	learned string            // see ImageOptions
	files   map[string][]byte // contents of small files, by path: manifests and what is made here
}

// newLayout returns the layout of an image.
func newLayout(src oci.Source, ref oci.Reference, img *chain.Image) (*layout, error) {
	l := &layout{Image: img, src: src, ref: ref, files: make(map[string][]byte)}
	l.files["./"+v1.ImageLayoutFile] = []byte(`{"imageLayoutVersion":"` + v1.ImageLayoutVersion + `"}`)
	for _, m := range img.Manifests {
		l.files[blobPath(m.Digest)] = m.Text
	}
	root := img.Root
	root.Annotations = map[string]string{annotationName: ref.Name()}
	if ref.Tag != "" {
		root.Annotations[v1.AnnotationRefName] = ref.Tag
		root.Annotations[annotationName] += ":" + ref.Tag
	}
	index := []v1.Descriptor{root}
	for _, subject := range slices.Sorted(maps.Keys(img.Referrers)) {
		text, err := indexOf(img.Referrers[subject])
		if err != nil {
			return nil, err
		}
		list := digest.FromBytes(text)
		l.files[blobPath(list)] = text
		index = append(index, named(chain.ReferrersTag(subject), v1.Descriptor{MediaType: v1.MediaTypeImageIndex, Digest: list, Size: int64(len(text))}))
	}
	for _, tag := range slices.Sorted(maps.Keys(img.Tags)) {
		index = append(index, named(tag, img.Tags[tag]))
	}
	text, err := indexOf(index)
	l.files["./"+v1.ImageIndexFile] = text
	return l, err
}

func named(tag string, d v1.Descriptor) v1.Descriptor {
	d.Annotations = map[string]string{v1.AnnotationRefName: tag}
	return d
}

func indexOf(list []v1.Descriptor) ([]byte, error) {
	return json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: list})
}

// open opens a blob.
func (l *layout) open(ctx context.Context, dgst oci.Digest) (io.ReadCloser, error) {
	r, _, err := l.src.Open(ctx, oci.Reference{Registry: l.ref.Registry, Repository: l.ref.Repository, Kind: oci.Blob, Digest: dgst}, 0, -1)
	return r, err
}

// blobPath returns the path of content in a layout.
func blobPath(d oci.Digest) string {
	return "./" + v1.ImageBlobsDir + "/" + d.Algorithm().String() + "/" + d.Encoded()
}

const (
	layoutFile      = 0o644 // permissions
	layoutDirectory = 0o755
)

// tree returns the manifest of the layout, for blobs that are these objects.
func (l *layout) tree(objects map[oci.Digest]object) (Manifest, imageFiles) {
	entries := map[string]Entry{"./": {Path: "./", Perm: layoutDirectory}}
	add := func(path string, o object) {
		for dir := parent(path); dir != "./"; dir = parent(dir) {
			entries[dir] = Entry{Path: dir, Perm: layoutDirectory}
		}
		entries[path] = Entry{path, layoutFile, o.digest, o.size}
	}
	from := imageFiles{l, make(map[Digest][]byte), make(map[Digest]oci.Digest)}
	for dgst, o := range objects {
		add(blobPath(dgst), o)
		from.blobs[o.digest] = dgst
	}
	for path, text := range l.files {
		o := object{digestOf(text), int64(len(text))}
		add(path, o)
		from.texts[o.digest] = text
	}
	m := make(Manifest, 0, len(entries))
	for _, path := range slices.Sorted(maps.Keys(entries)) {
		m = append(m, entries[path])
	}
	m.complete()
	return m, from
}

// imageFiles gives the content of a layout's files.
type imageFiles struct {
	*layout
	texts map[Digest][]byte
	blobs map[Digest]oci.Digest
}

func (f imageFiles) give(ctx context.Context, to *Store, o object, replace bool) error {
	if text, ok := f.texts[o.digest]; ok {
		return to.put(ctx, o, bytes.NewReader(text), replace)
	}
	r, err := f.open(ctx, f.blobs[o.digest])
	if err != nil {
		return err
	}
	defer r.Close()
	err = to.put(ctx, o, r, replace)
	if errors.Is(err, oci.ErrDigestMismatch) { // what is remembered of it may be wrong
		forget(f.learned, f.blobs[o.digest])
	}
	return err
}
