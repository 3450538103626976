package chain

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"testing"
	"testing/iotest"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// breaking returns a Source whose readers break after n bytes, and one that goes on.
func breaking(b []byte, n int64, err error) (src, next *faulty, ref oci.Reference) {
	src, next = newFaulty(), newFaulty()
	ref = blobOf(src.Memory, b)
	blobOf(next.Memory, b)
	src.wrap = func(rc io.ReadCloser) io.ReadCloser {
		return broken{io.MultiReader(io.LimitReader(rc, n), iotest.ErrReader(err)), rc}
	}
	return src, next, ref
}

type broken struct {
	io.Reader
	io.Closer
}

func TestResume(t *testing.T) {
	b := ocitest.Bytes(1, 3*HoldBack)
	for _, at := range []int64{0, 1, HoldBack + 1, 3*HoldBack - 1} {
		for _, err := range []error{oci.ErrUnavailable, &fs.PathError{Op: "read", Err: errors.New("input/output error")}} {
			src, next, ref := breaking(b, at, err)
			rc, _, err := Resume(quiet, Verified(src), next).Open(t.Context(), ref, 0, -1)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if _, err := io.Copy(&got, rc); err != nil || !bytes.Equal(got.Bytes(), b) {
				t.Errorf("broken after %d bytes: got %d, error %v, want all", at, got.Len(), err)
			}
			rc.Close()
			if at > 3*HoldBack-2 && next.calls.Load() != 1 {
				t.Errorf("next was opened %d times", next.calls.Load())
			}
		}
	}
}

// A head that was never proven must not end cleanly with another's tail: an aborted download whose bytes were wrong.
func TestResumeProvesTheWhole(t *testing.T) {
	b := ocitest.Bytes(1, 3*HoldBack)
	src, next, ref := breaking(b, 2*HoldBack, oci.ErrUnavailable)
	wrong := bytes.Clone(b)
	wrong[5] ^= 1
	src.AddAs(ref.Digest, "", wrong)
	if got, _, err := ocitest.ReadAll(t.Context(), Resume(quiet, Verified(src), next), ref); !errors.Is(err, oci.ErrDigestMismatch) {
		t.Errorf("got %d bytes, error %v, want ErrDigestMismatch", len(got), err)
	}
	// Without a running digest there is nothing to prove it by. That a download was aborted says nothing against its source.
	if got, _, err := ocitest.ReadAll(t.Context(), Resume(quiet, src, next), ref); !errors.Is(err, oci.ErrUnavailable) || src.blamed.Load() != 0 {
		t.Errorf("got %d bytes, error %v, blamed %d times; want ErrUnavailable and no blame", len(got), err, src.blamed.Load())
	}
}

// Content found wrong before any of it was given out is had from the next source, unseen; after that it is an error.
func TestResumeAfterWrongContent(t *testing.T) {
	small := ocitest.Bytes(1, 1000)
	src, next := newFaulty(), newFaulty()
	ref := blobOf(next.Memory, small)
	src.AddAs(ref.Digest, "", ocitest.Bytes(2, 1000))
	if got, _, err := ocitest.ReadAll(t.Context(), Resume(quiet, Once(quiet, "memory", src), next), ref); err != nil || !bytes.Equal(got, small) {
		t.Errorf("small: got %d bytes, error %v", len(got), err)
	}
	large := ocitest.Bytes(1, 3*HoldBack)
	ref = blobOf(next.Memory, large)
	src.AddAs(ref.Digest, "", ocitest.Bytes(2, 3*HoldBack))
	if got, _, err := ocitest.ReadAll(t.Context(), Resume(quiet, Once(quiet, "memory", src), next), ref); !errors.Is(err, oci.ErrDigestMismatch) {
		t.Errorf("large: got %d bytes, error %v, want ErrDigestMismatch", len(got), err)
	}
}
