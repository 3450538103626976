package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strconv"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/oci"
)

// manifest answers for one manifest. A tag is resolved first; a GET by digest asks the Source only once.
func (h *handler) manifest(ctx context.Context, w *response, r *http.Request, rt route) error {
	accept, err := parseAccept(r.Header["Accept"])
	if err != nil {
		return err
	}
	ref := rt.ref
	byDigest := ref.Digest != ""
	if byDigest && !w.head && r.Header["If-None-Match"] == nil {
		return h.openManifest(ctx, w, ref, oci.Descriptor{}, true)
	}
	desc, err := h.Source.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	if byDigest {
		desc.Digest = ref.Digest
	} else if ref, desc, err = h.negotiate(ctx, w, ref, desc, accept); err != nil {
		return err
	}
	if desc.Size > oci.MaxManifest {
		return fmt.Errorf("manifest of %d bytes: %w", desc.Size, oci.ErrTooLarge)
	}
	if notModified(r.Header, desc.Digest) {
		describe(w, desc, byDigest)
		w.begin(http.StatusNotModified, -1)
		return nil
	}
	if w.head {
		describe(w, desc, byDigest)
		w.begin(http.StatusOK, desc.Size)
		return nil
	}
	return h.openManifest(ctx, w, ref, desc, byDigest)
}

// negotiate decides what a tag that was resolved to desc stands for: that, or, for a client that reads images only, the
// image for this node's platform in the index that it is. It returns the reference to open and its descriptor.
func (h *handler) negotiate(ctx context.Context, w *response, ref oci.Reference, desc oci.Descriptor, accept accepted) (oci.Reference, oci.Descriptor, error) {
	if _, err := oci.ParseDigest(desc.Digest.String()); err != nil {
		return ref, desc, fmt.Errorf("resolved %s to no digest: %w", ref, oci.ErrUnavailable) // the Source's fault, not the client's
	}
	ref = ref.WithDigest(desc.Digest)
	if !oci.IsIndex(desc.MediaType) {
		return ref, desc, nil
	}
	w.rw.Header().Set("Vary", "Accept")
	if !accept.onlyImages() {
		return ref, desc, nil
	}
	rc, _, err := h.Source.Open(ctx, ref, 0, -1)
	if err != nil {
		return ref, desc, err
	}
	defer rc.Close()
	b, err := readManifest(rc)
	if err != nil {
		return ref, desc, err
	}
	child, ok := platformChild(b)
	if !ok {
		return ref, desc, nil
	}
	ref.Tag = "" // the tag names the index, not its child
	desc.MediaType, desc.Digest, desc.Size, desc.Missing = child.MediaType, child.Digest, child.Size, 0
	return ref.WithDigest(child.Digest), desc, nil
}

// platformChild returns the first image for this node's platform of an index. An index that cannot be read has none.
func platformChild(index []byte) (v1.Descriptor, bool) {
	info, err := oci.ParseManifest(index)
	if err != nil {
		return v1.Descriptor{}, false
	}
	for _, m := range info.Manifests {
		if m.Platform == nil || m.Platform.OS != "linux" || m.Platform.Architecture != runtime.GOARCH {
			continue
		}
		if _, err := oci.ParseDigest(m.Digest.String()); err == nil {
			return m, true
		}
	}
	return v1.Descriptor{}, false
}

// openManifest sends the manifest that ref's digest names. Resolved is what is known of it already.
func (h *handler) openManifest(ctx context.Context, w *response, ref oci.Reference, resolved oci.Descriptor, byDigest bool) error {
	return again(w, func() error { return h.sendManifest(ctx, w, ref, resolved, byDigest) })
}

func (h *handler) sendManifest(ctx context.Context, w *response, ref oci.Reference, resolved oci.Descriptor, byDigest bool) error {
	rc, desc, err := h.Source.Open(ctx, ref, 0, -1)
	if err != nil {
		return err
	}
	defer rc.Close()
	if desc.Size > oci.MaxManifest {
		return fmt.Errorf("manifest of %d bytes: %w", desc.Size, oci.ErrTooLarge)
	}
	desc.Digest, desc.Stale = ref.Digest, resolved.Stale
	if desc.MediaType == "" {
		desc.MediaType = resolved.MediaType
	}
	if desc.Size >= 0 && desc.MediaType != "" {
		describe(w, desc, byDigest)
		w.begin(http.StatusOK, desc.Size)
		return w.copy(rc, desc.Missing > 0)
	}
	b, err := readManifest(rc)
	if err != nil {
		return err
	}
	if info, err := oci.ParseManifest(b); err == nil && desc.MediaType == "" {
		desc.MediaType = info.MediaType
	}
	desc.Size = int64(len(b))
	describe(w, desc, byDigest)
	w.begin(http.StatusOK, desc.Size)
	_, err = w.Write(b)
	return err
}

// readManifest reads all of r, up to [oci.MaxManifest] bytes.
func readManifest(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, oci.MaxManifest+1))
	if err != nil {
		return nil, err
	}
	if len(b) > oci.MaxManifest {
		return nil, fmt.Errorf("manifest of more than %d bytes: %w", oci.MaxManifest, oci.ErrTooLarge)
	}
	return b, nil
}

// missingHeader says how many bytes of the content have not reached this node yet, where that is not none. Its value is of
// the moment the answer began.
const missingHeader = "Pier-Missing"

// describe sets the headers that say what the content is. What was asked for by digest never changes, and may be kept.
func describe(w *response, desc oci.Descriptor, byDigest bool) {
	header := w.rw.Header()
	if desc.MediaType == "" {
		desc.MediaType = "application/octet-stream"
	}
	header.Set("Content-Type", desc.MediaType)
	header.Set("Docker-Content-Digest", string(desc.Digest))
	header.Set("Etag", etag(desc.Digest))
	header.Set("Content-Security-Policy", "sandbox") // the type is anybody's: a browser must run nothing of it
	if byDigest {
		header.Set("Cache-Control", "max-age=31536000, immutable")
	}
	if desc.Missing > 0 {
		header.Set(missingHeader, strconv.FormatInt(desc.Missing, 10))
	}
	if desc.Stale {
		header.Set("Warning", `110 pier "Response is Stale"`)
	}
	w.source = desc.Source
}
