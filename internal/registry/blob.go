package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"pier/internal/oci"
)

// blob answers for one blob. A GET, also of a range, asks the Source only once where that can be done: asking an
// upstream for the size first would cost a round trip.
func (h *handler) blob(ctx context.Context, w *response, r *http.Request, rt route) error {
	ref := rt.ref
	if w.head || r.Header["If-None-Match"] != nil {
		desc, err := h.Source.Resolve(ctx, ref)
		if err != nil {
			return err
		}
		describeBlob(w, ref, desc)
		if notModified(r.Header, ref.Digest) {
			w.begin(http.StatusNotModified, -1)
			return nil
		}
		if w.head {
			w.begin(http.StatusOK, desc.Size)
			return nil
		}
	}
	want, ok := parseRange(r.Header.Get("Range"))
	if !ok || !rangeApplies(r.Header, ref.Digest) {
		return h.wholeBlob(ctx, w, ref)
	}
	if want.suffix {
		desc, err := h.Source.Resolve(ctx, ref)
		if err != nil {
			return err
		}
		if desc.Size < 0 {
			return h.wholeBlob(ctx, w, ref)
		}
		if want, ok = want.of(desc.Size); !ok {
			return &rangeError{desc.Size}
		}
	}
	return h.blobRange(ctx, w, ref, want)
}

func (h *handler) wholeBlob(ctx context.Context, w *response, ref oci.Reference) error {
	return again(w, func() error { return h.sendBlob(ctx, w, ref) })
}

// again sends content, and once more where a copy on this node was found damaged before the client was given a byte: another source is asked then.
func again(w *response, send func() error) error {
	err := send()
	if errors.Is(err, oci.ErrDamaged) && !w.started {
		err = send()
	}
	return err
}

func (h *handler) sendBlob(ctx context.Context, w *response, ref oci.Reference) error {
	rc, desc, err := h.Source.Open(ctx, ref, 0, -1)
	if err != nil {
		return err
	}
	defer rc.Close()
	describeBlob(w, ref, desc)
	w.begin(http.StatusOK, desc.Size)
	return w.copy(rc, desc.Missing > 0)
}

func (h *handler) blobRange(ctx context.Context, w *response, ref oci.Reference, want byteRange) error {
	rc, desc, err := h.Source.Open(ctx, ref, want.first, want.length())
	if errors.Is(err, oci.ErrRange) {
		if desc, err := h.Source.Resolve(ctx, ref); err == nil && desc.Size >= 0 {
			return &rangeError{desc.Size}
		}
		return err
	}
	if err != nil {
		return err
	}
	if desc.Size < 0 { // without a size there is no Content-Range
		rc.Close()
		return h.wholeBlob(ctx, w, ref)
	}
	defer rc.Close()
	got, ok := want.of(desc.Size)
	if !ok {
		return &rangeError{desc.Size}
	}
	describeBlob(w, ref, desc)
	w.rw.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", got.first, got.last, desc.Size))
	w.begin(http.StatusPartialContent, got.last-got.first+1)
	return w.copy(rc, desc.Missing > 0)
}

func describeBlob(w *response, ref oci.Reference, desc oci.Descriptor) {
	desc.Digest, desc.Stale = ref.Digest, false
	describe(w, desc, true)
	if desc.Size >= 0 {
		w.rw.Header().Set("Accept-Ranges", "bytes")
	}
}

// rangeError is an [oci.ErrRange] that knows the size of the content, which the client is told.
type rangeError struct{ size int64 }

func (e *rangeError) Error() string {
	return fmt.Sprintf("range of %d bytes: %v", e.size, oci.ErrRange)
}
func (e *rangeError) Unwrap() error { return oci.ErrRange }
