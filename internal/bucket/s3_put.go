package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"sync"

	"golang.org/x/sync/errgroup"

	"pier/internal/oci"
)

// anew is how often an upload that somebody else ended begins again.
const anew = 3

// Put implements [Bucket]. A large object is sent in parts, which the service keeps together until they are completed to an object.
func (b *s3) Put(ctx context.Context, key string, size int64, r io.Reader, replace bool) error {
	put := b.putSmall
	if size > partSize {
		put = b.putLarge
	}
	if err := put(ctx, key, size, r, replace); err != nil {
		return b.fault(key, err)
	}
	return nil
}

func (b *s3) putSmall(ctx context.Context, key string, size int64, r io.Reader, replace bool) error {
	buf, err := b.pool.get(ctx, int(size))
	if err != nil {
		return err
	}
	defer b.pool.put(buf)
	if err := (&sized{r, size}).fill(buf); err != nil {
		return err
	}
	return b.once(ctx, key, replace, func(header http.Header) error {
		_, err := b.send(ctx, operation{key: key, header: header, body: buf}, b.checks())
		return err
	})
}

// once has store make an object, unless there is one that must not be replaced. store adds header to its request.
func (b *s3) once(ctx context.Context, key string, replace bool, store func(header http.Header) error) error {
	for attempt := 0; ; attempt++ {
		header := http.Header{}
		conditional := !replace && !b.unconditional.Load()
		if conditional {
			header.Set("If-None-Match", "*")
		} else if !replace {
			if err := b.vacant(ctx, key); err != nil {
				return err
			}
		}
		err := store(header)
		switch {
		case err == nil || !conditional:
			return err
		case hasStatus(err, http.StatusNotImplemented):
			b.client.log.DebugContext(ctx, "the service has no conditional writes", "bucket", b.String(), "error", err)
			b.unconditional.Store(true)
		case hasStatus(err, http.StatusPreconditionFailed):
			return ErrExists
		case hasStatus(err, http.StatusConflict) && attempt >= b.client.retries:
			if err := b.vacant(ctx, key); err != nil {
				return err
			}
			return err
		case hasStatus(err, http.StatusConflict): // ConditionalRequestConflict: another is putting or deleting it
			if err := sleep(ctx, rand.N(b.client.backoff<<min(attempt, 6))+1); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

// vacant returns [ErrExists] if there is an object.
func (b *s3) vacant(ctx context.Context, key string) error {
	switch _, err := b.stat(ctx, key); {
	case err == nil:
		return ErrExists
	case errors.Is(err, oci.ErrNotFound):
		return nil
	default:
		return err
	}
}

// stillVacant is vacant, after whoever ended an upload of the object has had the time to complete it.
func (b *s3) stillVacant(ctx context.Context, key string) error {
	for attempt := 0; ; attempt++ {
		if err := b.vacant(ctx, key); err != nil || attempt >= b.client.retries {
			return err
		}
		if err := sleep(ctx, b.client.backoff<<min(attempt, 4)); err != nil {
			return err
		}
	}
}

// partSizeOf returns the bytes of each part but the last of an object: few parts while that costs little memory, then larger ones.
func partSizeOf(size int64) (int64, error) {
	evenly := func(parts int64) int64 { return ((size+parts-1)/parts + 1<<20 - 1) >> 20 << 20 }
	part := min(max(evenly(fewParts), partSize), 2*partSize)
	if size > part*maxParts {
		part = evenly(maxParts)
	}
	if part > maxPartSize {
		return 0, fmt.Errorf("%w: it has %d bytes, and at most %d are sent", oci.ErrUnsupported, size, int64(maxPartSize)*maxParts)
	}
	return part, nil
}

func (b *s3) putLarge(ctx context.Context, key string, size int64, r io.Reader, replace bool) error {
	part, err := partSizeOf(size)
	if err != nil {
		return err
	}
	if !replace {
		if err := b.vacant(ctx, key); err != nil {
			return err
		}
	}
	seeker, _ := r.(io.Seeker)
	start := int64(0)
	if seeker != nil {
		if start, err = seeker.Seek(0, io.SeekCurrent); err != nil {
			seeker = nil // such as a pipe
		}
	}
	tried := map[string]bool{}
	for attempt := 0; ; attempt++ {
		err := b.putParts(ctx, key, tried, part, &sized{r, size}, replace)
		if errors.Is(err, oci.ErrUnavailable) && !replace { // another may be completing the same upload, which looks like that, too
			if there := b.stillVacant(ctx, key); errors.Is(there, ErrExists) {
				return there
			}
		}
		if !errors.Is(err, errGone) {
			return err
		}
		if seeker == nil || attempt == anew {
			return err
		}
		if _, err := seeker.Seek(start, io.SeekStart); err != nil {
			return err
		}
	}
}

// putParts sends an object in an upload of none of the IDs tried, to which it adds that of its own.
func (b *s3) putParts(ctx context.Context, key string, tried map[string]bool, part int64, r *sized, replace bool) error {
	u, err := b.begin(ctx, key, tried)
	if err != nil {
		return err
	}
	defer b.release(u.id)
	tried[u.id] = true
	if err = b.sendParts(ctx, u, part, r); err == nil {
		err = b.once(ctx, key, replace, func(header http.Header) error { return b.complete(ctx, u, header) })
		if errors.Is(err, ErrExists) && b.landed(ctx, u) { // of an attempt whose answer was cut
			err = nil
			b.abandon(ctx, u)
		}
	}
	if wrong(err) || errors.Is(err, ErrExists) {
		b.abandon(ctx, u)
	}
	return gone(err)
}

// sendParts sends what an upload lacks of an object.
func (b *s3) sendParts(ctx context.Context, u *upload, part int64, r *sized) error {
	group, sending := errgroup.WithContext(ctx)
	slots := make(chan struct{}, concurrent)
	var err error
	for n := 1; r.left > 0 && err == nil; n++ {
		select {
		case slots <- struct{}{}:
			err = b.sendPart(sending, group, u, n, int(min(part, r.left)), r, func() { <-slots })
		case <-sending.Done():
			err = context.Cause(sending)
		}
	}
	if failed := group.Wait(); err == nil {
		err = failed
	}
	return err
}

// sendPart reads a part, and has group send it if the upload lacks it. done is called when nothing more is done for it.
func (b *s3) sendPart(ctx context.Context, group *errgroup.Group, u *upload, n, size int, r *sized, done func()) error {
	buf, err := b.pool.get(ctx, size)
	if err != nil {
		done()
		return err
	}
	end := func() {
		b.pool.put(buf)
		done()
	}
	if err := r.fill(buf); err != nil {
		end()
		return err
	}
	if u.has(n, buf) {
		end()
		return nil
	}
	group.Go(func() error {
		defer end()
		query := url.Values{"partNumber": {strconv.Itoa(n)}, "uploadId": {u.id}}
		tag, err := b.send(ctx, operation{key: u.key, query: query, body: buf}, u.checked.Load())
		switch {
		case err != nil:
			return err
		case tag == "":
			return errors.New("the service gave no ETag of a part")
		case b.unchecked.Load():
			u.checked.Store(false)
		}
		u.add(n, tag, buf)
		return nil
	})
	return nil
}

// SameService reports whether objects of another bucket can be copied to this one by [Bucket.Copy].
func (b *s3) SameService(from Bucket) bool {
	source, ok := from.(*s3)
	return ok && b.sameService(source)
}

// Copy implements [Bucket].
func (b *s3) Copy(ctx context.Context, from Bucket, object Object, key string) error {
	source, ok := from.(*s3)
	if !ok || !b.sameService(source) {
		return b.fault(key, oci.ErrUnsupported)
	}
	header := http.Header{"X-Amz-Copy-Source": {"/" + escape(source.name) + "/" + escape(source.prefix+object.Key)}}
	if object.Version != "" {
		header.Set("X-Amz-Copy-Source-If-Match", object.Version)
	}
	do := b.copyWhole
	if object.Size > b.copyMax {
		do = b.copyParts
	}
	err := do(ctx, header, object.Size, key)
	switch {
	case hasStatus(err, http.StatusPreconditionFailed):
		err = errChanged
	case errors.Is(err, oci.ErrDenied), hasStatus(err, http.StatusNotImplemented), hasStatus(err, http.StatusMethodNotAllowed):
		err = fmt.Errorf("%w: %w", oci.ErrUnsupported, err)
	}
	if err != nil {
		return b.fault(key, err)
	}
	return nil
}

// sameService reports whether one service has both buckets.
func (b *s3) sameService(other *s3) bool {
	if b.endpoint == nil || other.endpoint == nil {
		return b.endpoint == other.endpoint
	}
	return *b.endpoint == *other.endpoint
}

func (b *s3) copyWhole(ctx context.Context, header http.Header, _ int64, key string) error {
	var copied s3Copied
	return b.ask(ctx, operation{method: http.MethodPut, key: key, header: header, slow: true}, &copied)
}

// copyParts copies what is too large for one request.
func (b *s3) copyParts(ctx context.Context, header http.Header, size int64, key string) error {
	u, err := b.create(ctx, key, false)
	if err != nil {
		return err
	}
	defer b.release(u.id)
	group, copying := errgroup.WithContext(ctx)
	group.SetLimit(concurrent)
	var mu sync.Mutex
	for n, offset := 1, int64(0); offset < size; n, offset = n+1, offset+b.copyPart {
		group.Go(func() error {
			h := header.Clone()
			h.Set("X-Amz-Copy-Source-Range", fmt.Sprintf("bytes=%d-%d", offset, min(offset+b.copyPart, size)-1))
			var copied s3Copied
			query := url.Values{"partNumber": {strconv.Itoa(n)}, "uploadId": {u.id}}
			if err := b.ask(copying, operation{method: http.MethodPut, key: key, query: query, header: h, slow: true}, &copied); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			u.parts[n] = s3Part{PartNumber: n, ETag: copied.ETag}
			return nil
		})
	}
	if err = group.Wait(); err == nil {
		err = b.complete(ctx, u, nil)
	}
	if err != nil {
		b.abandon(ctx, u)
	}
	return gone(err)
}
