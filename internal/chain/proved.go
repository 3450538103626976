package chain

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"pier/internal/oci"
)

// Proved returns a Source of the content of src, which is what [Once] or [First] of such returned, whose readers give no byte,
// also none of a part, before the whole is proven: for those who have nothing to prove a part by. Until then all of its size is
// [oci.Descriptor.Missing], so that an answer's header need not wait for it. Content in flight belongs beside it, not into it. The proof runs in the first read, at most two of a
// Source at once, and whoever asks for the same content waits for the same one. Who leaves meanwhile leaves it to the
// background. Content proven already is handed through as src has it.
//
// Content found wrong is dealt with as by Once, and the reader fails with [oci.ErrDigestMismatch].
func Proved(src oci.Source) oci.Source {
	switch s := src.(type) {
	case *once:
		return &proved{s}
	case *first:
		sources := make([]oci.Source, len(s.sources))
		for i, src := range s.sources {
			sources[i] = Proved(src)
		}
		return First(s.log, sources...)
	}
	return Proved(Once(slog.New(slog.DiscardHandler), "", src))
}

type proved struct{ *once }

// Resolve implements [oci.Source].
func (p *proved) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	desc, err := p.once.Resolve(ctx, ref)
	if err != nil {
		return desc, err
	}
	rc, _, s, err := p.open(ctx, ref.WithDigest(desc.Digest), 0, 0)
	if err != nil {
		return oci.Descriptor{}, err
	}
	rc.Close()
	if !p.proven(desc.Digest, s) {
		desc.Missing = desc.Size
	}
	return desc, nil
}

// Open implements [oci.Source].
func (p *proved) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	rc, desc, s, err := p.open(ctx, ref, offset, length)
	if err != nil || p.proven(ref.Digest, s) {
		return rc, desc, err
	}
	desc.Missing = desc.Size
	return &unproven{ctx: ctx, o: p.once, ref: ref, size: desc.Size, offset: offset, length: length, rc: rc}, desc, nil
}

// unproven is a reader of content that is proven when it is first read.
type unproven struct {
	ctx            context.Context // of the request this reader belongs to: its proof ends with it
	o              *once
	ref            oci.Reference
	size           int64 // of the whole, as the client was told
	offset, length int64 // as asked for
	rc             io.ReadCloser
	proven         bool
	err            error // why it is not
}

// wait returns when rc is proven, or why it is not.
func (u *unproven) wait() error {
	if !u.proven && u.err == nil {
		u.err = u.settle()
		u.proven = u.err == nil
	}
	return u.err
}

func (u *unproven) settle() error {
	s, err := u.o.settle(u.ctx, u.ref)
	if err != nil {
		if u.ctx.Err() != nil {
			u.o.check(u.ref, false) // clients that do not wait for it must not be what keeps it from ever being proven
		}
		return err
	}
	if stampOfReader(u.rc) == s {
		return nil
	}
	// Another file took its place meanwhile, or somebody writes to it.
	rc, desc, now, err := u.o.open(u.ctx, u.ref, u.offset, u.length)
	if err != nil {
		return err
	}
	if now != s || desc.Size != u.size {
		rc.Close()
		return fmt.Errorf("%s from %s changes while it is read: %w", u.ref.Digest, u.o.origin, oci.ErrUnavailable)
	}
	u.rc.Close()
	u.rc = rc
	return nil
}

func (u *unproven) Read(p []byte) (int, error) {
	if err := u.wait(); err != nil {
		return 0, err
	}
	return u.rc.Read(p)
}

// WriteTo implements io.WriterTo: a reader that can is left to hand its file to the writer.
func (u *unproven) WriteTo(w io.Writer) (int64, error) {
	if err := u.wait(); err != nil {
		return 0, err
	}
	return io.Copy(w, u.rc)
}

func (u *unproven) Close() error { return u.rc.Close() }
