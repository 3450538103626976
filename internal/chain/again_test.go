package chain

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// cutting is a Source whose readers end after some bytes.
type cutting struct {
	oci.Source
	after int64
	err   error
	opens int
}

func (c *cutting) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	c.opens++
	rc, desc, err := c.Source.Open(ctx, ref, offset, length)
	if err != nil {
		return nil, desc, err
	}
	end := io.Reader(bytes.NewReader(nil))
	if c.err != nil {
		end = failing{c.err}
	}
	return io.NopCloser(io.MultiReader(io.LimitReader(rc, c.after), end)), desc, nil
}

type failing struct{ error }

func (f failing) Read([]byte) (int, error) { return 0, f.error }

func TestAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content := ocitest.Bytes(1, 100_000)
		m := &ocitest.Memory{}
		ref := oci.Reference{Registry: "registry.test", Repository: "app", Kind: oci.Blob, Digest: m.Add("", content).Digest}
		for name, err := range map[string]error{"unavailable": oci.ErrUnavailable, "early end": nil} {
			src := &cutting{Source: m, after: 30_000, err: err}
			got, _, err := ocitest.ReadAll(t.Context(), Verified(Again(src, 1)), ref)
			if err != nil || !bytes.Equal(got, content) || src.opens != 4 {
				t.Errorf("%s: %d bytes in %d opens, %v", name, len(got), src.opens, err)
			}
		}
		src := &cutting{Source: m, err: oci.ErrUnavailable}
		if _, _, err := ocitest.ReadAll(t.Context(), Again(src, 3), ref); !errors.Is(err, oci.ErrUnavailable) || src.opens != 4 {
			t.Errorf("without a byte: %v in %d opens, want ErrUnavailable in 4", err, src.opens)
		}
		src = &cutting{Source: m, err: oci.ErrDenied}
		if _, _, err := ocitest.ReadAll(t.Context(), Again(src, 3), ref); !errors.Is(err, oci.ErrDenied) || src.opens != 1 {
			t.Errorf("denied: %v in %d opens, want ErrDenied at once", err, src.opens)
		}
	})
}
