package chain

import (
	"context"
	"fmt"
	"hash"
	"io"

	"pier/internal/oci"
)

// HoldBack is how many of a blob's last bytes are kept from a client until the digest of the whole is known, so that wrong
// content never ends cleanly, and content smaller than this is never seen wrong at all. One socket buffer's worth: more
// would delay, less would let small configurations out unproven.
const HoldBack = 64 << 10

// Verify returns a reader of r that ends cleanly only after desc.Size bytes which match desc.Digest. The last [HoldBack]
// bytes come out only once all of them are read and proven; a mismatch, or another length, is an error wrapping
// [oci.ErrDigestMismatch]. Close closes r.
func Verify(r io.ReadCloser, desc oci.Descriptor) io.ReadCloser {
	return VerifyFrom(r, desc, desc.Digest.Algorithm().Hash(), 0)
}

// VerifyFrom is Verify for a reader that begins at offset, with the digest's state h after the bytes before it.
func VerifyFrom(r io.ReadCloser, desc oci.Descriptor, h hash.Hash, offset int64) io.ReadCloser {
	return &verifier{r: r, desc: desc, hash: h, at: offset}
}

type verifier struct {
	r    io.ReadCloser
	desc oci.Descriptor
	hash hash.Hash
	at   int64  // bytes of the content read from r, all of them in hash
	held []byte // read, not yet given out; nil before the tail is reached
	out  int    // how much of held was given out
	err  error  // final
}

func (v *verifier) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if free := v.desc.Size - HoldBack - v.at; free > 0 {
		if int64(len(p)) > free {
			p = p[:free]
		}
		n, err := v.r.Read(p)
		v.hash.Write(p[:n])
		v.at += int64(n)
		if err == io.EOF {
			err = v.mismatch()
		}
		return n, err
	}
	if v.held == nil {
		v.tail()
	}
	if v.err != nil {
		return 0, v.err
	}
	n := copy(p, v.held[v.out:])
	v.out += n
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// tail reads what is left, one byte more than there should be, and compares.
func (v *verifier) tail() {
	rest := v.desc.Size - v.at
	v.held = make([]byte, rest+1)
	n, err := io.ReadFull(v.r, v.held)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		v.err = err // nothing of what is held gets out, or into the digest
		return
	}
	v.held = v.held[:n]
	v.hash.Write(v.held)
	v.at += int64(n)
	if int64(n) != rest || !Matches(v.hash, v.desc.Digest) {
		v.err = v.mismatch()
	}
}

// digest implements digesting.
func (v *verifier) digest() (hash.Hash, int64) { return v.hash, v.at }

func (v *verifier) mismatch() error {
	return fmt.Errorf("%s from %s: %d of %d bytes: %w", v.desc.Digest, v.desc.Source, v.at, v.desc.Size, oci.ErrDigestMismatch)
}

func (v *verifier) Close() error { return v.r.Close() }

// Matches reports whether h, after all of the content, is what d names.
func Matches(h hash.Hash, d oci.Digest) bool {
	return fmt.Sprintf("%x", h.Sum(nil)) == d.Encoded()
}

// Verified returns a Source whose readers of whole content end cleanly only if it matches its digest, see [Verify].
func Verified(src oci.Source) oci.Source { return verified{src} }

type verified struct{ oci.Source }

func (v verified) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	rc, desc, err := v.Source.Open(ctx, ref, offset, length)
	if err != nil || !whole(offset, length, desc) {
		return rc, desc, err
	}
	return Verify(rc, desc), desc, nil
}

// whole reports whether a request is for all of the content.
func whole(offset, length int64, desc oci.Descriptor) bool {
	return offset == 0 && (length < 0 || length >= desc.Size)
}
