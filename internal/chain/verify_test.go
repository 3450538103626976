package chain

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

func TestVerify(t *testing.T) {
	for _, size := range []int{0, 1, HoldBack - 1, HoldBack, HoldBack + 1, 3*HoldBack + 5} {
		right := ocitest.Bytes(1, size)
		desc := oci.Descriptor{Digest: ocitest.Digest(right), Size: int64(size)}
		flipped := bytes.Clone(right)
		cases := map[string][]byte{"long": append(bytes.Clone(right), 0)}
		if size > 0 {
			flipped[0] ^= 1
			cases["flipped"], cases["short"] = flipped, right[:size-1]
		}
		got, err := io.ReadAll(Verify(io.NopCloser(iotest.HalfReader(bytes.NewReader(right))), desc))
		if err != nil || !bytes.Equal(got, right) {
			t.Errorf("%d right bytes: got %d, error %v", size, len(got), err)
		}
		for name, wrong := range cases {
			got, err := io.ReadAll(Verify(io.NopCloser(bytes.NewReader(wrong)), desc))
			if !errors.Is(err, oci.ErrDigestMismatch) {
				t.Errorf("%d bytes, %s: got error %v, want ErrDigestMismatch", size, name, err)
			}
			if held := min(size, HoldBack); len(got) > size-held {
				t.Errorf("%d bytes, %s: %d bytes got out before the proof", size, name, len(got))
			}
		}
	}
}

func TestVerifyPassesFaultsOn(t *testing.T) {
	for _, at := range []int64{0, 10, HoldBack + 100} {
		b := ocitest.Bytes(1, 2*HoldBack)
		r := io.NopCloser(io.MultiReader(bytes.NewReader(b[:at]), iotest.ErrReader(oci.ErrUnavailable)))
		_, err := io.ReadAll(Verify(r, oci.Descriptor{Digest: ocitest.Digest(b), Size: int64(len(b))}))
		if !errors.Is(err, oci.ErrUnavailable) || errors.Is(err, oci.ErrDigestMismatch) {
			t.Errorf("broken after %d bytes: got error %v, want ErrUnavailable alone", at, err)
		}
	}
}
