package ocitest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/oci"
)

// Digest returns the sha256 digest of b.
func Digest(b []byte) oci.Digest { return digest.FromBytes(b) }

// Bytes returns n bytes that look random and are the same for the same seed.
func Bytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	_, _ = r.Read(b) // never fails, by its documentation
	return b
}

// Absent is the digest of content that no test stores.
const Absent = oci.Digest("sha256:00000000000000000000000000000000000000000000000000000000000000ff")

// TestSource is the conformance suite of [oci.Source]. It calls load to have the Source hold the content of a Memory, and
// runs every rule that the interface states.
func TestSource(t *testing.T, load func(t *testing.T, content *Memory, ref oci.Reference) oci.Source) {
	t.Helper()
	content := &Memory{}
	ref := oci.Reference{Registry: "registry.test", Repository: "team/app", Tag: "V1.0"}
	layer := Bytes(1, 300_000)
	manifest := content.Image(ref, layer, Bytes(2, 10))
	blob := oci.Reference{Registry: ref.Registry, Repository: ref.Repository, Kind: oci.Blob, Digest: Digest(layer)}
	src := load(t, content, ref)
	ctx := t.Context()

	t.Run("resolve", func(t *testing.T) { testResolve(ctx, t, src, ref, blob, manifest, len(layer)) })
	t.Run("ranges", func(t *testing.T) { testRanges(ctx, t, src, blob, layer) })
	t.Run("manifest", func(t *testing.T) {
		b, desc, err := ReadAll(ctx, src, ref.WithDigest(manifest.Digest))
		if err != nil {
			t.Fatal(err)
		}
		if Digest(b) != manifest.Digest || desc.MediaType != v1.MediaTypeImageManifest || desc.Size != manifest.Size {
			t.Errorf("got %d bytes described as %+v, want %+v", len(b), desc, manifest)
		}
	})
	t.Run("absent", func(t *testing.T) {
		gone := blob.WithDigest(Absent)
		if _, err := src.Resolve(ctx, gone); !errors.Is(err, oci.ErrNotFound) {
			t.Errorf("Resolve of absent content: got error %v, want ErrNotFound", err)
		}
		if _, _, err := src.Open(ctx, gone, 0, -1); !errors.Is(err, oci.ErrNotFound) {
			t.Errorf("Open of absent content: got error %v, want ErrNotFound", err)
		}
		tag := ref
		tag.Tag = "v1.0" // tags keep their case
		if _, err := src.Resolve(ctx, tag); !errors.Is(err, oci.ErrNotFound) {
			t.Errorf("Resolve of a tag that differs in case: got error %v, want ErrNotFound", err)
		}
	})
	t.Run("concurrent", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				if b, _, err := ReadAll(ctx, src, blob); err != nil || !bytes.Equal(b, layer) {
					t.Errorf("one of many at once: got %d bytes, error %v", len(b), err)
				}
			})
		}
		wg.Wait()
	})
	t.Run("leaving early", func(t *testing.T) {
		rc, _, err := src.Open(ctx, blob, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(rc, make([]byte, 10)); err != nil {
			t.Error(err)
		}
		if err := rc.Close(); err != nil {
			t.Errorf("Close after 10 bytes: %v", err)
		}
		if b, _, err := ReadAll(ctx, src, blob); err != nil || !bytes.Equal(b, layer) {
			t.Errorf("after another reader left: got %d bytes, error %v", len(b), err)
		}
	})
}

func testResolve(ctx context.Context, t *testing.T, src oci.Source, ref, blob oci.Reference, manifest oci.Descriptor, size int) {
	for _, r := range []oci.Reference{ref, ref.WithDigest(manifest.Digest)} {
		desc, err := src.Resolve(ctx, r)
		if err != nil {
			t.Fatalf("Resolve(%s): %v", r, err)
		}
		if desc.Digest != manifest.Digest || desc.Size != manifest.Size || desc.MediaType != v1.MediaTypeImageManifest {
			t.Errorf("Resolve(%s) = %+v, want %+v", r, desc, manifest)
		}
	}
	desc, err := src.Resolve(ctx, blob)
	if err != nil || desc.Digest != blob.Digest || desc.Size != int64(size) {
		t.Errorf("Resolve(%s) = %+v, %v, want size %d", blob, desc, err, size)
	}
}

func testRanges(ctx context.Context, t *testing.T, src oci.Source, blob oci.Reference, layer []byte) {
	size := int64(len(layer))
	for _, c := range []struct{ offset, length, want int64 }{
		{0, -1, size}, {0, 0, 0}, {0, 1, 1}, {size - 1, -1, 1}, {size, -1, 0}, {100, 1000, 1000}, {size - 5, 100, 5}, {70_000, -1, size - 70_000},
	} {
		t.Run(fmt.Sprintf("%d+%d", c.offset, c.length), func(t *testing.T) {
			rc, desc, err := src.Open(ctx, blob, c.offset, c.length)
			if err != nil {
				t.Fatal(err)
			}
			defer rc.Close()
			var got bytes.Buffer
			if _, err := io.Copy(&got, rc); err != nil {
				t.Fatal(err)
			}
			if want := layer[c.offset : c.offset+c.want]; !bytes.Equal(got.Bytes(), want) {
				t.Errorf("got %d bytes, want %d", got.Len(), len(want))
			}
			if desc.Size != size || desc.Digest != blob.Digest {
				t.Errorf("descriptor %+v is not that of the whole, size %d", desc, size)
			}
		})
	}
	if _, _, err := src.Open(ctx, blob, size+1, -1); !errors.Is(err, oci.ErrRange) {
		t.Errorf("Open past the end: got error %v, want ErrRange", err)
	}
}

// ReadAll opens all of ref and reads it.
func ReadAll(ctx context.Context, src oci.Source, ref oci.Reference) ([]byte, oci.Descriptor, error) {
	rc, desc, err := src.Open(ctx, ref, 0, -1)
	if err != nil {
		return nil, oci.Descriptor{}, err
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	return b, desc, err
}
