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

// A Scrubber reads what is on disk again and again, so that what a disk lost is found before somebody asks for it. Set up, it is for one
// goroutine.
type Scrubber struct {
	Source oci.Source // as Once returned it, over a [Holder]: what is found wrong is blamed there
	Rate   int64      // bytes a second that are read at most
	Pause  time.Duration
	Log    *slog.Logger
	Read   func(bytes int) // told of what was read; nil: nobody is
}

const (
	scrubPiece = 256 << 10 // bytes read at once
	scrubAlign = 4 << 10   // of memory and offsets, for the disk itself to be read
)

// Run scrubs until ctx ends: all content, then a pause, and again.
func (s Scrubber) Run(ctx context.Context) error {
	o, ok := s.Source.(*once)
	if !ok {
		return errors.New("scrub: the source proves nothing")
	}
	holder, ok := o.Source.(Holder)
	if !ok {
		return errors.New("scrub: the source does not tell what it has")
	}
	buf := aligned(scrubPiece)
	for {
		list, err := holder.Holdings()
		if err != nil {
			s.Log.WarnContext(ctx, "not all content can be scrubbed", "err", err)
		}
		// In any order: whoever is restarted each day gets to all of it, too.
		rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		for _, d := range list {
			select {
			case <-ctx.Done():
				return nil
			default:
			}
			if err := s.one(ctx, o, d, buf); err != nil && ctx.Err() == nil {
				s.Log.WarnContext(ctx, "content not scrubbed", "digest", d, "err", err)
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
	rc, desc, _, err := o.open(ctx, ref, 0, -1)
	if errors.Is(err, oci.ErrNotFound) {
		return nil
	}
	if err != nil {
		o.Blame(ref, o.origin)
		return err
	}
	defer rc.Close()
	h := desc.Digest.Algorithm().Hash()
	err = s.digest(ctx, rc, h, buf)
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
func (s Scrubber) digest(ctx context.Context, rc io.Reader, h hash.Hash, buf []byte) error {
	var from = rc
	if file, ok := rc.(*section); ok {
		if direct, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", file.file.Fd()), os.O_RDONLY|unix.O_DIRECT, 0); err == nil {
			defer direct.Close()
			from = direct
		}
	}
	for {
		begun := time.Now()
		n, err := from.Read(buf)
		h.Write(buf[:n])
		if s.Read != nil {
			s.Read(n)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if errors.Is(err, syscall.EINVAL) && from != rc { // it opens so, and cannot be read so
			h.Reset()
			from = rc
			continue
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Duration(int64(n)*int64(time.Second)/s.Rate) - time.Since(begun)):
		}
	}
}

// aligned returns memory that a disk can be read into.
func aligned(size int) []byte {
	b := make([]byte, size+scrubAlign)
	skip := int(-uintptr(unsafe.Pointer(&b[0])) & (scrubAlign - 1)) //nolint:gosec // the address alone, of memory that does not move
	return b[skip:][:size]
}
