package chain

import (
	"context"
	"errors"
	"hash"
	"io"
	"io/fs"
	"log/slog"

	"pier/internal/oci"
)

// Resume returns a Source that opens src, and goes on with next where a reader of src breaks: from the start if no byte was
// given out yet, and at the offset reached if the reader keeps a running digest (see [Verify]), so that the whole is
// proven whoever supplied its parts. In any other case the break is an error. A file that cannot be read is blamed on src.
func Resume(log *slog.Logger, src, next oci.Source) oci.Source {
	return &resume{src, next, log}
}

type resume struct {
	oci.Source
	next oci.Source
	log  *slog.Logger
}

// digesting is a reader that knows the digest's state after the bytes it gave out.
type digesting interface {
	digest() (state hash.Hash, offset int64)
}

func (r *resume) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	rc, desc, err := r.Source.Open(ctx, ref, offset, length)
	if err != nil {
		return nil, desc, err
	}
	return &resuming{ctx: ctx, r: r, ref: ref, desc: desc, rc: rc, start: offset, length: length}, desc, nil
}

type resuming struct {
	ctx           context.Context // of the request this reader belongs to: it opens for it
	r             *resume
	ref           oci.Reference
	desc          oci.Descriptor
	start, length int64 // as asked for
	rc            io.ReadCloser
	given         int64 // bytes
	moved         bool  // rc is next's
}

func (s *resuming) Read(p []byte) (int, error) {
	n, err := s.rc.Read(p)
	s.given += int64(n)
	if err == nil || err == io.EOF || s.moved {
		return n, err
	}
	if err := s.move(err); err != nil {
		return n, err
	}
	if n > 0 {
		return n, nil
	}
	return s.rc.Read(p)
}

// WriteTo implements io.WriterTo: a reader that can is left to hand its file to the writer.
func (s *resuming) WriteTo(w io.Writer) (int64, error) {
	if _, ok := s.rc.(digesting); ok {
		return io.Copy(w, struct{ io.Reader }{s})
	}
	n, err := io.Copy(w, s.rc)
	s.given += n
	if err == nil || s.moved {
		return n, err
	}
	if err := s.move(err); err != nil {
		return n, err
	}
	more, err := io.Copy(w, s.rc)
	return n + more, err
}

// move replaces the reader that broke with err by one of next, or returns why it cannot.
func (s *resuming) move(err error) error {
	if !sourceFault(err) || s.ctx.Err() != nil {
		return err
	}
	if !errors.Is(err, oci.ErrDigestMismatch) && !errors.Is(err, oci.ErrUnavailable) { // but a file that cannot be read
		blame(s.r.Source, s.ref, s.desc.Source)
	}
	d, ok := s.rc.(digesting)
	if s.given > 0 && (!ok || errors.Is(err, oci.ErrDigestMismatch)) {
		return err
	}
	s.r.log.WarnContext(s.ctx, "source broke, going on elsewhere",
		"ref", s.ref.String(), "source", s.desc.Source, "offset", s.start+s.given, "err", err)
	length := s.length
	if length >= 0 {
		length -= s.given
	}
	rc, desc, oerr := s.r.next.Open(s.ctx, s.ref, s.start+s.given, length)
	if oerr != nil {
		return errors.Join(err, oerr)
	}
	if desc.Size != s.desc.Size {
		rc.Close()
		return errors.Join(err, oci.ErrDigestMismatch) // one of the two lies, and the client was told the first
	}
	if s.given > 0 {
		state, offset := d.digest()
		desc.Digest = s.ref.Digest
		rc = VerifyFrom(rc, desc, state, offset)
	}
	s.rc.Close()
	s.rc, s.moved = rc, true
	return nil
}

// sourceFault tells a Source's failure from that of the writer, which io.Copy reports alike.
func sourceFault(err error) bool {
	var path *fs.PathError
	return errors.Is(err, oci.ErrUnavailable) || errors.Is(err, oci.ErrNotFound) || errors.Is(err, oci.ErrDigestMismatch) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &path)
}

func (s *resuming) Close() error { return s.rc.Close() }
