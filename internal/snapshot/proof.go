package snapshot

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/zeebo/blake3"

	"pier/internal/oci"
)

// A proof is a reader of content that ends with an error wrapping [oci.ErrDigestMismatch] where it would end, if the content is not what
// it must be.
type proof struct {
	r    io.Reader
	h    *blake3.Hasher
	want object
	n    int64 // bytes read
	err  error // that it ended with
}

// An object is content and its size in bytes.
type object struct {
	digest Digest
	size   int64
}

func (o object) key() string { return o.digest.ObjectKey() }

func (o object) prove(r io.Reader) *proof {
	return &proof{r: r, h: newHasher(), want: o}
}

// hashers keeps hashers, which are large, for those who need one next.
var hashers = sync.Pool{New: func() any { return blake3.New() }}

func sumOf(h *blake3.Hasher) Digest { return Digest(hex.EncodeToString(h.Sum(nil))) }

func newHasher() *blake3.Hasher {
	h := hashers.Get().(*blake3.Hasher)
	h.Reset()
	return h
}

func (p *proof) Read(b []byte) (int, error) {
	if p.err != nil {
		return 0, p.err
	}
	n, err := p.r.Read(b)
	_, _ = p.h.Write(b[:n]) // never fails
	p.n += int64(n)
	switch {
	case p.n > p.want.size:
		p.err = fmt.Errorf("%w: there are more than its %d bytes", oci.ErrDigestMismatch, p.want.size)
	case errors.Is(err, io.EOF):
		p.err = p.end()
	default:
		p.err = err
	}
	if p.err != nil {
		hashers.Put(p.h)
		p.h = nil
	}
	return n, p.err
}

// end returns io.EOF if all was right.
func (p *proof) end() error {
	if p.n != p.want.size {
		return fmt.Errorf("%w: there are %d bytes, want %d", oci.ErrDigestMismatch, p.n, p.want.size)
	}
	if sum := sumOf(p.h); sum != p.want.digest {
		return fmt.Errorf("%w: that is %s, of the same size", oci.ErrDigestMismatch, sum)
	}
	return io.EOF
}

// discard reads all of it, for its end.
func (p *proof) discard() error { return copyProven(io.Discard, p) }

// copyBuffer is the size of what is read at once, in bytes.
const copyBuffer = 256 << 10

// buffers keeps buffers of copyBuffer bytes for those who need one next.
var buffers = sync.Pool{New: func() any { b := make([]byte, copyBuffer); return &b }}

// withBuffer calls do with a buffer for content of so many bytes.
func withBuffer(size int64, do func(buf []byte) error) error {
	if size < 16<<10 { // cheap to make
		return do(make([]byte, size+1))
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	return do(*buf)
}

// copyProven copies what r has of an object to w.
func copyProven(w io.Writer, r *proof) error {
	return withBuffer(r.want.size, func(buf []byte) error {
		_, err := io.CopyBuffer(struct{ io.Writer }{w}, r, buf)
		return err
	})
}
