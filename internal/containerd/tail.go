package containerd

import (
	"context"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"pier/internal/oci"
)

const (
	// stallTimeout is how long an ingest may rest before its reader goes on elsewhere.
	stallTimeout = 5 * time.Second

	// How often the size of a file is asked for while it does not grow: at first minPoll, then less and less often.
	minPoll = 5 * time.Millisecond
	maxPoll = 50 * time.Millisecond
)

// A tail reads a file that containerd still writes. Its descriptor survives the commit, which renames the file.
type tail struct {
	ctx   context.Context // of the request this reader belongs to: it ends the waiting
	file  *os.File        // positioned at pos
	dgst  oci.Digest
	blob  string // where a commit puts the file
	total int64  // bytes of the whole

	pos, end  int64     // what was read of the whole, and where to stop
	size      int64     // of the file when it was last looked at
	changed   time.Time // when size was seen to change
	committed bool
}

// Read implements io.Reader.
func (t *tail) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := t.wait()
	if err != nil {
		return 0, err
	}
	m, err := t.file.Read(p[:min(int64(len(p)), n)])
	t.pos += int64(m)
	if err == io.EOF {
		err = t.broken("was truncated")
	}
	return m, err
}

// WriteTo implements io.WriterTo: it hands w the file itself as far as it goes, and waits for more.
func (t *tail) WriteTo(w io.Writer) (int64, error) {
	var written int64
	for {
		n, err := t.wait()
		if err == io.EOF {
			return written, nil
		}
		if err != nil {
			return written, err
		}
		m, err := io.Copy(w, &io.LimitedReader{R: t.file, N: n})
		t.pos += m
		written += m
		if err == nil && m < n {
			err = t.broken("was truncated")
		}
		if err != nil {
			return written, err
		}
	}
}

// Close implements io.Closer.
func (t *tail) Close() error { return t.file.Close() }

// wait returns how many bytes can be read now, at least one. It returns io.EOF at the end, an error wrapping
// [oci.ErrUnavailable] when no more are to be expected, or that of the context.
func (t *tail) wait() (int64, error) {
	if t.pos == t.end {
		return 0, io.EOF
	}
	for poll := minPoll; ; poll = min(poll+poll/2, maxPoll) {
		n, err := t.look()
		if n > 0 || err != nil {
			return n, err
		}
		select {
		case <-t.ctx.Done():
			return 0, context.Cause(t.ctx)
		case <-time.After(poll):
		}
	}
}

// look returns how many bytes can be read now, perhaps none. All but the last are there as soon as they are written.
func (t *tail) look() (int64, error) {
	fi, err := t.file.Stat()
	if err != nil {
		return 0, fmt.Errorf("containerd: %w", err)
	}
	size := fi.Size()
	if size != t.size {
		t.size, t.changed = size, time.Now()
	}
	if size < t.pos {
		return 0, t.broken("was truncated")
	}
	if size > t.total {
		return 0, t.broken("is larger than it should be")
	}
	limit := min(size, t.end)
	if limit == t.total && !t.commit(fi) {
		limit--
	}
	if limit > t.pos {
		return limit - t.pos, nil
	}
	rest := time.Since(t.changed)
	switch {
	case removed(fi):
		return 0, t.broken("was aborted")
	case size < t.total && rest > stallTimeout:
		return 0, t.broken("does not grow")
	case rest > commitTimeout:
		return 0, t.broken("is not committed")
	}
	return 0, nil
}

// commit reports whether containerd verified this very file and made it a blob.
func (t *tail) commit(fi os.FileInfo) bool {
	if !t.committed {
		blob, err := os.Stat(t.blob)
		t.committed = err == nil && os.SameFile(fi, blob)
	}
	return t.committed
}

// removed reports whether the file has no name any more: a commit renames it, an abort removes it.
func removed(fi os.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && st.Nlink == 0
}

func (t *tail) broken(why string) error {
	return fmt.Errorf("containerd: ingest of %s %s after %d of %d bytes: %w", t.dgst, why, t.pos, t.total, oci.ErrUnavailable)
}
