package chain

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"

	"pier/internal/oci"
)

// Resume returns a Source whose readers go on at the offset reached, with a new Open of src, when the Source that supplied
// them breaks in the middle. Content that proved wrong is opened anew only if none of it was given out yet. A
// reader gives up after three Opens without a byte between them.
func Resume(log *slog.Logger, src oci.Source) oci.Source {
	return &resume{src, log}
}

const resumeAttempts = 3

type resume struct {
	oci.Source
	log *slog.Logger
}

func (r *resume) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	rc, desc, err := r.Source.Open(ctx, ref, offset, length)
	if err != nil {
		return nil, desc, err
	}
	if rest := desc.Size - offset; length < 0 || length > rest {
		length = rest
	}
	if desc.Size < 0 {
		return rc, desc, nil // without a size no offset means anything
	}
	return &resuming{ctx: ctx, r: r, ref: ref, rc: rc, offset: offset, left: length}, desc, nil
}

type resuming struct {
	ctx          context.Context // of the request this reader belongs to: it opens for it
	r            *resume
	ref          oci.Reference
	rc           io.ReadCloser
	offset, left int64
	given        bool // some bytes are out
	attempts     int  // opens since the last byte
}

func (s *resuming) Read(p []byte) (int, error) {
	for {
		n, err := s.rc.Read(p)
		s.advance(int64(n))
		if err == nil || (err == io.EOF && s.left == 0) {
			return n, err
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if rerr := s.reopen(err); rerr != nil || n > 0 {
			return n, rerr
		}
	}
}

// WriteTo implements io.WriterTo.
func (s *resuming) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		n, err := io.Copy(w, s.rc)
		total += n
		s.advance(n)
		if err == nil && s.left > 0 {
			err = io.ErrUnexpectedEOF
		}
		if err == nil {
			return total, nil
		}
		if err := s.reopen(err); err != nil {
			return total, err
		}
	}
}

func (s *resuming) advance(n int64) {
	s.offset += n
	s.left -= n
	if n > 0 {
		s.given, s.attempts = true, 0
	}
}

// reopen replaces the reader that broke with err, or returns why it cannot.
func (s *resuming) reopen(err error) error {
	s.attempts++
	mismatch := errors.Is(err, oci.ErrDigestMismatch)
	if !sourceFault(err) || s.ctx.Err() != nil || s.attempts > resumeAttempts || (mismatch && s.given) {
		return err
	}
	s.r.log.WarnContext(s.ctx, "source broke, going on elsewhere", "ref", s.ref.String(), "offset", s.offset, "err", err)
	rc, desc, oerr := s.r.Source.Open(s.ctx, s.ref, s.offset, s.left)
	if oerr != nil {
		return errors.Join(err, oerr)
	}
	if s.offset+s.left > desc.Size {
		rc.Close()
		return errors.Join(err, io.ErrUnexpectedEOF)
	}
	s.rc.Close()
	s.rc = rc
	return nil
}

// sourceFault tells a Source's failure from that of the writer, which io.Copy reports alike.
func sourceFault(err error) bool {
	var path *fs.PathError
	return errors.Is(err, oci.ErrUnavailable) || errors.Is(err, oci.ErrNotFound) || errors.Is(err, oci.ErrDigestMismatch) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &path)
}

func (s *resuming) Close() error { return s.rc.Close() }

// Blame implements [oci.Blamer].
func (r *resume) Blame(ref oci.Reference, origin string) { blame(r.Source, ref, origin) }
