package chain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// Indexes in indexes are read so deep, and no deeper; one that names what is not there, or a digest that is none, is an error.
func TestReadImageIsBounded(t *testing.T) {
	var src ocitest.Memory
	ref := oci.Reference{Registry: "registry.test", Repository: "app", Kind: oci.Manifest}
	last := src.Image(ref, ocitest.Bytes(1, 100))
	for depth := 1; depth <= maxDepth+2; depth++ {
		tagged := ref
		tagged.Tag = fmt.Sprint("deep", depth)
		last = src.Manifest(tagged, v1.MediaTypeImageIndex, v1.Index{
			MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{{MediaType: last.MediaType, Digest: last.Digest, Size: last.Size}},
		})
		img, err := ReadImage(t.Context(), &src, tagged, ImageOptions{})
		if depth <= maxDepth && (err != nil || len(img.Manifests) != depth+1) {
			t.Errorf("%d deep: %v", depth, err)
		}
		if depth > maxDepth && !errors.Is(err, oci.ErrTooLarge) {
			t.Errorf("%d deep: got %v, want %v", depth, err, oci.ErrTooLarge)
		}
	}
	for name, tc := range map[string]struct {
		manifests []v1.Descriptor
		want      error
	}{
		"absent":    {[]v1.Descriptor{{Digest: ocitest.Absent}}, oci.ErrNotFound},
		"no digest": {[]v1.Descriptor{{Digest: "sha256:../../etc/passwd"}}, oci.ErrDigestInvalid},
	} {
		tagged := ref
		tagged.Tag = "bad"
		src.Manifest(tagged, v1.MediaTypeImageIndex, v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: tc.manifests})
		if _, err := ReadImage(t.Context(), &src, tagged, ImageOptions{}); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", name, err, tc.want)
		}
	}
}

// What here has is not read, and the rest is, to its end, and kept.
func TestFetch(t *testing.T) {
	var src, here ocitest.Memory
	ref := oci.Reference{Registry: "registry.test", Repository: "app", Kind: oci.Manifest, Tag: "v1"}
	layers := [][]byte{ocitest.Bytes(1, 1000), ocitest.Bytes(2, 2000)}
	src.Image(ref, layers...)
	here.Add("", layers[0])
	k := &keeping{Source: &src, here: &here}
	var total, done int64
	img, err := Fetch(t.Context(), k, &here, ref, CopyOptions{Total: func(n int64) { total = n }, Done: func(n int64) { done += n }})
	if err != nil || len(img.Blobs) != 3 || total < 3000 || done != total {
		t.Errorf("got %+v, %v, %d of %d bytes", img, err, done, total)
	}
	if k.opened != 3 { // the manifest, its configuration, a layer
		t.Errorf("%d contents were read, want 3", k.opened)
	}
}

// keeping is a source that keeps what is asked of it.
type keeping struct {
	oci.Source
	here   oci.Store
	opened int
}

func (k *keeping) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	k.opened++
	b, desc, err := ocitest.ReadAll(ctx, k.Source, ref)
	if err != nil {
		return nil, desc, err
	}
	return io.NopCloser(bytes.NewReader(b)), desc, k.here.Put(ctx, desc, bytes.NewReader(b))
}
