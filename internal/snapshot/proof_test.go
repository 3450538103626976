package snapshot

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"pier/internal/oci"
)

// Hashers are used again: what one read before must not matter to the next.
func TestProof(t *testing.T) {
	cut := errors.New("cut")
	for size := range 40 {
		content := bytes.Repeat([]byte{byte(size), 1}, size*5000)
		o := object{digestOf(content), int64(len(content))}
		other := bytes.Clone(content)
		if size > 0 {
			other[len(other)/2]++
		}
		for name, c := range map[string]struct {
			r    io.Reader
			want error
		}{
			"right":   {bytes.NewReader(content), nil},
			"halves":  {iotest.HalfReader(bytes.NewReader(content)), nil},
			"at once": {iotest.DataErrReader(bytes.NewReader(content)), nil},
			"longer":  {bytes.NewReader(append(bytes.Clone(content), 0)), oci.ErrDigestMismatch},
			"shorter": {bytes.NewReader(content[:max(0, len(content)-1)]), oci.ErrDigestMismatch},
			"other":   {bytes.NewReader(other), oci.ErrDigestMismatch},
			"cut":     {io.MultiReader(bytes.NewReader(content), iotest.ErrReader(cut)), cut},
		} {
			if size == 0 && (name == "shorter" || name == "other") {
				continue
			}
			p := o.prove(c.r)
			if err := p.discard(); !errors.Is(err, c.want) {
				t.Errorf("%d bytes, %s: %v, want %v", len(content), name, err, c.want)
			}
			if n, err := p.Read(make([]byte, 10)); n != 0 || err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%d bytes, %s: read again after the end: %d, %v", len(content), name, n, err)
			}
		}
	}
}
