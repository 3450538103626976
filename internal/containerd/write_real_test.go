//go:build e2e

package containerd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"pier/internal/chain"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// TestRealWriter puts images into a real containerd, and reads them back through its own means after its garbage collector ran.
func TestRealWriter(t *testing.T) {
	eachReal(t, func(t *testing.T, c *real) {
		s, changed := c.connect(t)
		var content ocitest.Memory
		ref := oci.Reference{Registry: "registry.test", Repository: "team/app", Tag: "v1"}
		layer := ocitest.Bytes(1, 3_000_000)
		manifest := content.Image(ref, layer, ocitest.Bytes(2, 10), nil)
		w, err := NewWriter(t.Context(), c.socket(), "default")
		if err != nil {
			t.Fatal(err)
		}
		img, err := chain.Copy(t.Context(), w, chain.Verified(&content), ref, chain.CopyOptions{Jobs: 4})
		if err != nil {
			t.Fatal(err)
		}
		moved := content.Image(ref, ocitest.Bytes(3, 100)) // the name moves on
		if _, err := chain.Copy(t.Context(), w, chain.Verified(&content), ref, chain.CopyOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := chain.Copy(t.Context(), w, chain.Verified(&content), ref.WithDigest(manifest.Digest), chain.CopyOptions{As: oci.Reference{Registry: "registry.test", Repository: "old", Tag: "v0"}}); err != nil {
			t.Errorf("again: %v", err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		for i := range 3 { // any removal has the garbage collector run
			c.load(t, "default", &content, ref)
			c.ctr(t, nil, "-n", "default", "images", "rm", "--sync", ref.String())
			if i == 2 {
				break
			}
		}
		old := oci.Reference{Registry: "registry.test", Repository: "old", Tag: "v0"}
		until(t, changed, "the name", tagged(s, old))
		if desc, err := s.Resolve(t.Context(), old); err != nil || desc.Digest != manifest.Digest {
			t.Errorf("%s is %+v, %v, want %s, not %s", old, desc, err, manifest.Digest, moved.Digest)
		}
		for _, b := range img.Blobs {
			got, _, err := ocitest.ReadAll(t.Context(), chain.Verified(s), oci.Reference{Registry: "registry.test", Repository: "old", Kind: oci.Blob, Digest: b.Digest})
			if err != nil || int64(len(got)) != b.Size {
				t.Errorf("%s: %d bytes, %v", b.Digest, len(got), err)
			}
		}
	})
}

// TestRealWriterRefuses has a real containerd refuse what is wrong, and take it when it is right.
func TestRealWriterRefuses(t *testing.T) {
	eachReal(t, func(t *testing.T, c *real) {
		c.connect(t)
		w, err := NewWriter(t.Context(), c.socket(), "default")
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		right := ocitest.Bytes(1, 5_000_000)
		desc := oci.Descriptor{MediaType: "application/octet-stream", Digest: ocitest.Digest(right), Size: int64(len(right))}
		cut := errors.New("cut")
		wrong := bytes.Clone(right)
		wrong[4_000_000]++
		for name, r := range map[string]io.Reader{
			"cut": io.MultiReader(bytes.NewReader(right[:3_000_000]), errorReader{cut}), "wrong": bytes.NewReader(wrong), "shorter": bytes.NewReader(right[:100]),
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			err := w.Put(ctx, desc, r)
			if err == nil || ctx.Err() != nil || name == "cut" && !errors.Is(err, cut) {
				t.Errorf("%s: Put = %v, %v", name, err, ctx.Err())
			}
			cancel()
			if _, err := w.Resolve(t.Context(), oci.Reference{Digest: desc.Digest}); !errors.Is(err, oci.ErrNotFound) {
				t.Errorf("%s: Resolve = %v, want ErrNotFound", name, err)
			}
		}
		for range 2 {
			if err := w.Put(t.Context(), desc, bytes.NewReader(right)); err != nil {
				t.Errorf("Put = %v", err)
			}
		}
		if _, err := w.Resolve(t.Context(), oci.Reference{Digest: desc.Digest}); err != nil {
			t.Error(err)
		}
	})
}

type errorReader struct{ error }

func (e errorReader) Read([]byte) (int, error) { return 0, e.error }
