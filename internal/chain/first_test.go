package chain

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"slices"
	"testing"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

func TestFirst(t *testing.T) {
	b := ocitest.Bytes(1, 100)
	sick, miss, has := newFaulty(), newFaulty(), newFaulty()
	sick.err = fs.ErrPermission
	ref := blobOf(has.Memory, b)
	src := First(quiet, sick, miss, has)
	if got, _, err := ocitest.ReadAll(t.Context(), src, ref); err != nil || !bytes.Equal(got, b) {
		t.Errorf("behind a fault and a miss: got %d bytes, error %v", len(got), err)
	}
	if _, err := src.Resolve(t.Context(), ref); err != nil {
		t.Errorf("Resolve behind a fault and a miss: %v", err)
	}

	last := newFaulty()
	last.err = oci.ErrRateLimited
	if _, _, err := First(quiet, sick, last).Open(t.Context(), ref, 0, -1); !errors.Is(err, oci.ErrRateLimited) {
		t.Errorf("got error %v, want that of the last source", err)
	}
	if _, _, err := First(quiet).Open(t.Context(), ref, 0, -1); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("without sources: got error %v, want ErrNotFound", err)
	}
	has.calls.Store(0)
	if _, _, err := First(quiet, has, last).Open(t.Context(), ref, 101, -1); !errors.Is(err, oci.ErrRange) {
		t.Errorf("past the end of the first source's content: got error %v, want ErrRange", err)
	}
}

// A client that left is no fault: the next source must not be troubled for it.
func TestFirstStopsForAClientThatLeft(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	one, two := newFaulty(), newFaulty()
	one.err = ctx.Err()
	if _, _, err := First(quiet, one, two).Open(ctx, app.WithDigest(ocitest.Absent), 0, -1); !errors.Is(err, context.Canceled) || two.calls.Load() != 0 {
		t.Errorf("got error %v, %d calls of the next source", err, two.calls.Load())
	}
}

func TestFirstJoinsLists(t *testing.T) {
	var one, two ocitest.Memory
	one.Image(app)
	other := app
	other.Tag = "V1"
	two.Image(app)
	two.Image(other)
	tags, err := First(quiet, &one, &two).Tags(t.Context(), app.Registry, app.Repository)
	if err != nil || !slices.Equal(tags, []string{"V1", "v1"}) {
		t.Errorf("got %v, %v", tags, err)
	}
	if _, err := First(quiet, &one).Tags(t.Context(), "registry.test", "none"); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("unknown repository: got error %v, want ErrNotFound", err)
	}
}
