package chain

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"pier/internal/oci"
)

// A Walker tells what content it has, without having all of it in memory: there may be very much.
type Walker interface {
	Walk(do func(d oci.Digest)) error // an error comes with what could be read all the same
}

// A Scrubber reads what is on disk again and again, so that what a disk lost is found before somebody asks for it. Set up, it is for one
// goroutine.
type Scrubber struct {
	Source oci.Source // as Once returned it, over a [Walker]: what is found wrong is blamed there
	Rate   int64      // bytes a second that are read at most
	Pause  time.Duration
	Log    *slog.Logger
	Read   func(bytes int) // told of what was read; nil: nobody is
}

const (
	scrubPiece = 256 << 10 // bytes read at once
	scrubFile  = 64 << 10  // what a file counts at least: opening it costs, too
	scrubAlign = 4 << 10   // of memory and offsets, for the disk itself to be read
)

// Run scrubs until ctx ends: all content, then a pause, and again.
func (s Scrubber) Run(ctx context.Context) error {
	o, ok := s.Source.(*once)
	if !ok {
		return errors.New("scrub: the source proves nothing")
	}
	holder, ok := o.Source.(Walker)
	if !ok {
		return errors.New("scrub: the source does not tell what it has")
	}
	buf := aligned(scrubPiece)
	for {
		// From anywhere on, and then the rest: whoever is restarted each day gets to all of it, too.
		pivot := oci.Digest(fmt.Sprintf("sha256:%08x", rand.Uint32()))
		for _, before := range []bool{false, true} {
			err := holder.Walk(func(d oci.Digest) {
				if ctx.Err() != nil || (d < pivot) != before {
					return
				}
				if err := s.one(ctx, o, d, buf); err != nil && ctx.Err() == nil {
					s.Log.WarnContext(ctx, "content not scrubbed", "digest", d, "err", err)
				}
			})
			if err != nil {
				s.Log.WarnContext(ctx, "not all content can be scrubbed", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(s.Pause):
		}
	}
}

// one reads the content of a digest. That it is gone is no error.
func (s Scrubber) one(ctx context.Context, o *once, d oci.Digest, buf []byte) error {
	ref := oci.Reference{Kind: oci.Blob, Digest: d}
	rc, desc, _, err := o.open(oci.WithInspection(ctx), ref, 0, -1)
	switch {
	case errors.Is(err, oci.ErrNotFound):
		return nil
	case errors.Is(err, syscall.EIO): // of all that can keep a file from being opened, this alone is the file's fault
		o.Blame(ref, o.origin)
		return nil
	case err != nil:
		return err
	}
	defer rc.Close()
	h := desc.Digest.Algorithm().Hash()
	err = s.digest(ctx, rc, desc.Size, h, buf)
	switch {
	case ctx.Err() != nil:
		return nil
	case errors.Is(err, syscall.EIO) || err == nil && !Matches(h, d):
		o.Blame(ref, o.origin)
		return nil
	}
	return err
}

// digest reads what is on disk of a file, and not what is in memory of it, where the file system can do that.
func (s Scrubber) digest(ctx context.Context, rc io.Reader, size int64, h hash.Hash, buf []byte) error {
	from := rc
	if file, ok := rc.(*section); ok {
		if direct, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", file.file.Fd()), os.O_RDONLY|unix.O_DIRECT, 0); err == nil {
			defer direct.Close()
			from = direct
		}
	}
	done := int64(0)
	for least := scrubFile; ; least = 0 {
		begun := time.Now()
		n, err := from.Read(buf)
		h.Write(buf[:n])
		done += int64(n)
		if s.Read != nil {
			s.Read(n)
		}
		if errors.Is(err, syscall.EINVAL) && from != rc { // it opens so, and cannot be read so
			h.Reset()
			from, done = rc, 0
			continue
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Duration(int64(max(n, least))*int64(time.Second)/s.Rate) - time.Since(begun)):
		}
		if err != nil || done >= size {
			return nil
		}
	}
}

// aligned returns memory that a disk can be read into.
func aligned(size int) []byte {
	b := make([]byte, size+scrubAlign)
	skip := int(-uintptr(unsafe.Pointer(&b[0])) & (scrubAlign - 1)) //nolint:gosec // the address alone, of memory that does not move
	return b[skip:][:size]
}
