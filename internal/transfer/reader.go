package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"pier/internal/oci"
)

// maxBoards bounds how often one reader boards: again after a flight ended before it gave it a byte.
const maxBoards = 3

// reader waits until f knows what the content is, and returns a reader of part of it. It counts the caller out of f's readers
// when it fails, or else when the reader is closed.
func (e *Engine) reader(ctx context.Context, f *flight, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	r := &reader{e: e, ctx: ctx, ref: ref, at: offset}
	for boards := 1; ; boards++ {
		desc, broken, err := r.embark(f)
		if err == nil && broken == nil {
			if offset < 0 || offset > desc.Size {
				r.Close()
				return nil, desc, fmt.Errorf("offset %d of %d bytes: %w", offset, desc.Size, oci.ErrRange)
			}
			r.size, r.end = desc.Size, desc.Size
			if length >= 0 && length < desc.Size-offset {
				r.end = offset + length
			}
			r.boards = boards
			return r, desc, nil
		}
		e.leave(f)
		switch {
		case broken != nil && ref.Digest == "", errors.Is(err, errLanded) && ref.Digest == "":
			return nil, desc, fmt.Errorf("%s is not in flight any more: %w", f.digest, oci.ErrNotFound)
		case broken != nil:
			return e.direct(ctx, ref, offset, length, broken)
		case ref.Digest == "" || !again(err):
			return nil, desc, err
		case boards >= maxBoards && errors.Is(err, errLanded): // always too late: alone, then
			return e.direct(ctx, ref, offset, length, nil)
		case boards >= maxBoards:
			return nil, desc, err
		}
		var rc io.ReadCloser
		if f, rc, desc, err = e.board(ctx, ref, offset, length); f == nil {
			return rc, desc, err
		}
	}
}

// errLanded says that a flight ended well and its content is elsewhere by now.
var errLanded = errors.New("transfer is over")

// again reports whether boarding again may do better: the flight is over and its content kept, or its content was wrong and
// its source is blamed.
func again(err error) bool { return errors.Is(err, errLanded) || errors.Is(err, oci.ErrDigestMismatch) }

// A reader follows one flight.
type reader struct {
	e      *Engine
	ctx    context.Context // of the request this reader belongs to
	ref    oci.Reference   // whom to ask without the flight; zero: nobody
	f      *flight
	file   *os.File // this reader's own descriptor of the flight's file
	size   int64    // of the whole content
	at     int64    // next byte to give
	end    int64    // where to stop
	given  bool     // a byte is out
	boards int
	direct io.ReadCloser // after the disk failed: the rest
	err    error         // final
	closed bool
}

// embark waits until f knows what it carries, and opens its file. With a broken disk it returns the proof to go on from.
func (r *reader) embark(f *flight) (oci.Descriptor, *proof, error) {
	for {
		f.mu.Lock()
		desc, changed, limit := f.desc, f.changed, f.limit()
		switch {
		case f.err != nil:
			defer f.mu.Unlock()
			return desc, nil, f.err
		case f.broken != nil:
			defer f.mu.Unlock()
			return desc, f.broken, nil
		case f.known && f.file == nil:
			f.mu.Unlock()
			return desc, nil, errLanded
		case f.known && (f.done || desc.Size > 0): // of nothing, the end is all there is: it waits for the proof
			// Opened under the lock, so that the file is not closed meanwhile.
			file, err := os.Open("/proc/self/fd/" + strconv.Itoa(int(f.file.Fd())))
			f.mu.Unlock()
			if err == nil {
				r.f, r.file = f, file
				desc.Missing = desc.Size - limit
			}
			return desc, nil, err
		}
		f.mu.Unlock()
		select {
		case <-changed:
		case <-r.ctx.Done():
			return desc, nil, r.ctx.Err()
		}
	}
}

// wait returns the offset up to which the reader may give bytes, more than at, or with broken set, from where it must go
// on without the flight.
func (r *reader) wait() (limit int64, broken *proof, err error) {
	for {
		r.f.mu.Lock()
		limit = min(r.f.limit(), r.end)
		done, broken, err, changed := r.f.done, r.f.broken, r.f.err, r.f.changed
		r.f.mu.Unlock()
		switch {
		case limit > r.at || done:
			return limit, nil, nil
		case err != nil || broken != nil:
			return r.at, broken, err
		}
		select {
		case <-changed:
		case <-r.ctx.Done():
			return 0, nil, r.ctx.Err()
		}
	}
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	for {
		if r.direct != nil {
			return r.direct.Read(p)
		}
		if r.at == r.end || len(p) == 0 {
			return 0, r.eof()
		}
		limit, err := r.advance()
		if err != nil {
			return 0, err
		}
		if limit == r.at {
			continue // aboard anew, or direct by now
		}
		n, err := r.file.ReadAt(p[:min(int64(len(p)), limit-r.at)], r.at)
		r.give(int64(n))
		switch {
		case n > 0:
			err = nil
		case err == io.EOF:
			err = r.truncated()
		}
		return n, err
	}
}

// WriteTo implements io.WriterTo: ranges of the file go to the writer as they arrive.
func (r *reader) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for r.at < r.end {
		if r.direct != nil {
			n, err := io.Copy(w, r.direct)
			return total + n, err
		}
		limit, err := r.advance()
		if err != nil {
			return total, err
		}
		if limit == r.at {
			continue
		}
		if _, err := r.file.Seek(r.at, io.SeekStart); err != nil {
			return total, err
		}
		n, err := io.Copy(w, &io.LimitedReader{R: r.file, N: limit - r.at})
		r.give(n)
		total += n
		if err == nil && r.at < limit {
			err = r.truncated()
		}
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// truncated is the error for a file that somebody cut.
func (r *reader) truncated() error {
	return fmt.Errorf("file of the transfer of %s: %w", r.f.digest, io.ErrUnexpectedEOF)
}

func (r *reader) eof() error {
	if r.at == r.end {
		return io.EOF
	}
	return nil
}

func (r *reader) give(n int64) {
	r.at += n
	r.given = r.given || n > 0
}

// advance waits for bytes. Where the flight has ended it boards again, or goes on directly: then it returns at.
func (r *reader) advance() (limit int64, err error) {
	if r.err != nil {
		return r.at, r.err
	}
	defer func() { r.err = err }()
	limit, broken, err := r.wait()
	switch {
	case broken != nil:
		return r.at, r.goDirect(broken)
	case err != nil && !r.given && again(err) && r.ref.Digest != "" && r.boards < maxBoards:
		return r.at, r.boardAgain(err)
	case err != nil:
		return r.at, err
	}
	return limit, nil
}

// goDirect opens the rest without the flight. What was given so far came from the file, and is part of the proof.
func (r *reader) goDirect(p *proof) error {
	if r.ref.Digest == "" {
		return fmt.Errorf("%s: the disk failed: %w", r.f.digest, oci.ErrUnavailable)
	}
	rc, desc, err := r.e.direct(r.ctx, r.ref, r.at, r.end-r.at, p)
	if err == nil && desc.Size >= 0 && desc.Size != r.size {
		rc.Close()
		err = fmt.Errorf("%s: %d bytes, were %d: %w", r.ref, desc.Size, r.size, oci.ErrDigestMismatch)
	}
	if err != nil {
		return err
	}
	r.direct = rc
	return nil
}

// boardAgain joins the flight that follows the one that ended with err.
func (r *reader) boardAgain(err error) error {
	size := r.size
	if cerr := r.Close(); cerr != nil {
		return errors.Join(err, cerr)
	}
	f, rc, desc, oerr := r.e.board(r.ctx, r.ref, r.at, r.end-r.at)
	if f != nil {
		rc, desc, oerr = r.e.reader(r.ctx, f, r.ref, r.at, r.end-r.at)
	}
	if oerr != nil {
		return oerr
	}
	if desc.Size != size {
		rc.Close()
		return fmt.Errorf("%s: %d bytes, were %d: %w", r.ref, desc.Size, size, oci.ErrDigestMismatch)
	}
	if next, ok := rc.(*reader); ok {
		boards := r.boards + 1
		*r = *next
		r.boards = boards
		return nil
	}
	r.direct, r.closed = rc, false
	return nil
}

// Close implements io.Closer.
func (r *reader) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	var err error
	if r.direct != nil {
		err = r.direct.Close()
		r.direct = nil
	}
	if r.f != nil {
		err = errors.Join(err, r.file.Close())
		r.e.leave(r.f)
		r.f = nil
	}
	return err
}
