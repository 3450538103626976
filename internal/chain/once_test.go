package chain

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// A file that was proven and cannot be read any more fails one pull; the next one has it from elsewhere.
func TestOnceAfterAReadFault(t *testing.T) {
	b := ocitest.Bytes(1, 3*HoldBack)
	memory, next := &ocitest.Memory{}, &ocitest.Memory{}
	ref := blobOf(memory, b)
	blobOf(next, b)
	sick := &sickly{Memory: memory}
	src := First(quiet, Resume(quiet, Once(quiet, "memory", sick), next), next)
	if _, _, err := ocitest.ReadAll(t.Context(), src, ref); err != nil {
		t.Fatal(err)
	}
	sick.sick = true
	if _, _, err := ocitest.ReadAll(t.Context(), src, ref); err == nil {
		t.Error("a read fault in the middle of a file ended cleanly")
	}
	if got, _, err := ocitest.ReadAll(t.Context(), src, ref); err != nil || !bytes.Equal(got, b) {
		t.Errorf("after the fault: got %d bytes, error %v", len(got), err)
	}
}

// sickly is a Source, no Blamer, whose disk fails.
type sickly struct {
	*ocitest.Memory
	sick bool
}

func (s *sickly) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	rc, desc, err := s.Memory.Open(ctx, ref, offset, length)
	if err == nil && s.sick {
		rc = broken{io.MultiReader(io.LimitReader(rc, HoldBack), iotest.ErrReader(&fs.PathError{Op: "read", Err: errors.New("sick")})), rc}
	}
	return rc, desc, err
}

func TestOnceQuarantinesWrongContent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &ocitest.Memory{} // no Blamer, as a runtime's store
		b := ocitest.Bytes(1, 100_000)
		ref := blobOf(src, b)
		wrong := bytes.Clone(b)
		wrong[99_999] ^= 1
		src.AddAs(ref.Digest, "", wrong)
		o := Once(quiet, "memory", src)
		if got, _, err := ocitest.ReadAll(t.Context(), o, ref); !errors.Is(err, oci.ErrDigestMismatch) || len(got) == len(b) {
			t.Errorf("got %d bytes, error %v, want ErrDigestMismatch", len(got), err)
		}
		if _, _, err := o.Open(t.Context(), ref, 0, -1); !errors.Is(err, oci.ErrNotFound) {
			t.Errorf("quarantined: got error %v, want ErrNotFound", err)
		}
		if _, err := o.Resolve(t.Context(), ref); !errors.Is(err, oci.ErrNotFound) {
			t.Errorf("quarantined: got error %v, want ErrNotFound", err)
		}
		src.AddAs(ref.Digest, "", b) // the runtime pulled it again
		time.Sleep(quarantine + time.Second)
		if got, _, err := ocitest.ReadAll(t.Context(), o, ref); err != nil || !bytes.Equal(got, b) {
			t.Errorf("after the quarantine: got %d bytes, error %v", len(got), err)
		}
	})
}

func TestOnceBlamesASourceThatMinds(t *testing.T) {
	src := newFaulty()
	b := ocitest.Bytes(1, 1000)
	ref := blobOf(src.Memory, b)
	src.AddAs(ref.Digest, "", b[1:])
	o := Once(quiet, "memory", src)
	if _, _, err := ocitest.ReadAll(t.Context(), o, ref); !errors.Is(err, oci.ErrDigestMismatch) || src.blamed.Load() != 1 {
		t.Errorf("got error %v, blamed %d times", err, src.blamed.Load())
	}
	src.AddAs(ref.Digest, "", b)
	if got, _, err := ocitest.ReadAll(t.Context(), o, ref); err != nil || !bytes.Equal(got, b) {
		t.Errorf("fetched again: got %d bytes, error %v", len(got), err)
	}
}

// A part says nothing of the whole, which is proven before it is served.
func TestOnceProvesTheWholeBeforeAPart(t *testing.T) {
	src := newFaulty()
	b := ocitest.Bytes(1, 1000)
	wrong := bytes.Clone(b)
	wrong[999] ^= 1
	bad, good := blobOf(src.Memory, b), blobOf(src.Memory, ocitest.Bytes(2, 1000))
	src.AddAs(bad.Digest, "", wrong)
	o := Once(quiet, "memory", src)
	if _, _, err := o.Open(t.Context(), bad, 0, 10); !errors.Is(err, oci.ErrDigestMismatch) {
		t.Errorf("a part of what is wrong: got error %v, want %v", err, oci.ErrDigestMismatch)
	}
	rc, _, err := o.Open(t.Context(), good, 990, 100)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if got, err := io.ReadAll(rc); err != nil || !bytes.Equal(got, ocitest.Bytes(2, 1000)[990:]) {
		t.Errorf("a part of what is right: got %d bytes, %v", len(got), err)
	}
}

// Proven once, a file goes to the socket as it is.
func TestOnceHandsProvenContentThrough(t *testing.T) {
	src := newFaulty()
	ref := blobOf(src.Memory, ocitest.Bytes(1, 1000))
	src.wrap = func(rc io.ReadCloser) io.ReadCloser { return direct{rc} }
	o := Once(quiet, "memory", src)
	if _, _, err := ocitest.ReadAll(t.Context(), o, ref); err != nil {
		t.Fatal(err)
	}
	rc, _, err := o.Open(t.Context(), ref, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if _, ok := rc.(direct); !ok {
		t.Errorf("the reader of proven content is a %T, want the source's own", rc)
	}
}

type direct struct{ io.ReadCloser }
