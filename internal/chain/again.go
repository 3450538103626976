package chain

import (
	"context"
	"errors"
	"io"
	"time"

	"pier/internal/oci"
)

// Again returns a Source whose readers open src again at the offset reached when it breaks, up to so many times without a byte between. It is for
// those who have nobody else to ask, see [Resume] for the others. Nothing is proven, see [Verified].
func Again(src oci.Source, times int) oci.Source { return &again{src, times} }

type again struct {
	oci.Source
	times int
}

func (a *again) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	rc, desc, err := a.Source.Open(ctx, ref, offset, length)
	if err != nil {
		return nil, desc, err
	}
	end := desc.Size
	if length >= 0 {
		end = min(end, offset+length)
	}
	return &rereader{ctx: ctx, a: a, ref: ref, rc: rc, at: offset, end: end}, desc, nil
}

type rereader struct {
	ctx     context.Context // of the request this reader belongs to: it opens for it
	a       *again
	ref     oci.Reference
	rc      io.ReadCloser
	at, end int64
	broken  int // times since the last byte
}

func (r *rereader) Read(p []byte) (int, error) {
	for {
		n, err := r.rc.Read(p)
		r.at += int64(n)
		if n > 0 {
			r.broken = 0
		}
		switch {
		case err == nil:
			return n, nil
		case r.at >= r.end:
			return n, io.EOF // whatever broke, all is here
		case err == io.EOF:
			err = io.ErrUnexpectedEOF
		}
		if n > 0 {
			return n, nil // the next read breaks again
		}
		if err := r.open(err); err != nil {
			return 0, err
		}
	}
}

// open opens the rest, or returns why it cannot: err, by which it broke, or a later one.
func (r *rereader) open(err error) error {
	for {
		if r.broken++; r.broken > r.a.times || !errors.Is(err, oci.ErrUnavailable) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		select {
		case <-r.ctx.Done():
			return context.Cause(r.ctx)
		case <-time.After(100 * time.Millisecond << min(r.broken, 6)):
		}
		rc, _, again := r.a.Source.Open(r.ctx, r.ref, r.at, max(r.end-r.at, 0))
		if again == nil {
			r.rc.Close()
			r.rc = rc
			return nil
		}
		err = again
	}
}

func (r *rereader) Close() error { return r.rc.Close() }
