package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"pier/internal/oci"
)

// A Receiver keeps what clients push.
type Receiver interface {
	oci.Store
	oci.Tagger

	// Uploads are gone on with where they were left, also by another connection. An ID that is none is [oci.ErrNotFound], one that another request is
	// at [oci.ErrUnavailable].
	StartUpload() (id string, err error)
	Uploaded(id string) (size int64, err error)
	AppendUpload(id string, offset int64, r io.Reader) (size int64, err error) // [oci.ErrRange] if offset is not negative, and not where it was left
	FinishUpload(id string, dgst oci.Digest) error                             // [oci.ErrDigestMismatch] if it is other content; it is over then, too
	CancelUpload(id string) error

	Expect(dgst oci.Digest) // has content stay for a manifest that is about to come
}

// What can be wrong with a push besides.
var (
	errUpload   = errors.New("no such upload")
	errTaken    = errors.New("upload that another request is at")
	errTag      = errors.New("invalid tag")
	errPiece    = errors.New("malformed range of a piece")
	errContent  = errors.New("content that is not what its digest says")
	errManifest = errors.New("invalid manifest")
	errParts    = errors.New("manifest of what is not here")
	errLarge    = errors.New("manifest too large")
	errFull     = errors.New("no room")
	errKept     = errors.New("not kept")
)

// maxTexts is how many manifests are received at once: each takes some of its size in memory, several times over.
const maxTexts = 4

// parsePush returns the route of a request that is part of a push, if it is one.
func (h *handler) parsePush(r *http.Request) (rt route, target string, ok bool, err error) {
	if h.Push == nil {
		return rt, "", false, nil
	}
	rest, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	name, id, upload := cutUploads(rest)
	write := r.Method != http.MethodGet && r.Method != http.MethodHead
	if !ok || !upload && !write || len(r.URL.Path) > maxPath {
		return rt, "", false, nil
	}
	if hasEncodedSlash(r.URL.RawPath) {
		return rt, "", true, fmt.Errorf("encoded slash in path: %w", oci.ErrNameInvalid)
	}
	if rt.query, err = url.ParseQuery(r.URL.RawQuery); err != nil {
		return rt, "", true, fmt.Errorf("malformed query: %w", oci.ErrNameInvalid)
	}
	switch {
	case upload:
		rt.endpoint, rt.name, target = endpointUpload, name, id
	case r.Method == http.MethodPut:
		if target, ok = rt.split(rest); !ok || rt.endpoint != endpointManifest {
			return route{}, "", true, errMethod
		}
	default:
		return rt, "", true, errMethod
	}
	rt.setName(rt.query.Get("ns"), r.Header.Get("X-Registry"), h.DefaultRegistry)
	if rt.endpoint == endpointManifest {
		if err = rt.setTarget(target); errors.Is(err, oci.ErrTagInvalid) {
			err = fmt.Errorf("%w: %s", errTag, err.Error())
		}
		return rt, target, true, err
	}
	named := rt.ref
	named.Tag = "latest" // Validate wants a whole reference
	return rt, target, true, named.Validate()
}

// cutUploads takes <name>/blobs/uploads/<id> apart.
func cutUploads(rest string) (name, id string, ok bool) {
	const middle = "/blobs/uploads"
	i := strings.LastIndex(rest, middle)
	if i < 0 {
		return "", "", false
	}
	name, id = rest[:i], rest[i+len(middle):]
	if id == "" {
		return name, "", true
	}
	return name, id[1:], id[0] == '/' && !strings.Contains(id[1:], "/")
}

// push serves a request that is part of a push.
func (h *handler) push(ctx context.Context, w *response, r *http.Request, rt route, target string) error {
	if err := h.admitPush(r); err != nil {
		return err
	}
	body := &incoming{r: r.Body, w: w}
	defer body.end()
	err := h.take(ctx, w, r, rt, target, body)
	switch {
	case err == nil, body.err != nil && !errors.Is(body.err, io.EOF):
		return err // or the client left
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: %w", errFull, err)
	}
	for _, known := range []error{errMethod, errUpload, errTaken, errBusy, errPiece, errContent, errManifest, errParts, errLarge, oci.ErrRange, oci.ErrDigestInvalid, oci.ErrNameInvalid, oci.ErrTagInvalid} {
		if errors.Is(err, known) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", errKept, err)
}

func (h *handler) take(ctx context.Context, w *response, r *http.Request, rt route, target string, body *incoming) error {
	switch {
	case rt.endpoint == endpointManifest:
		return h.putManifest(ctx, w, r, rt, body)
	case r.Method == http.MethodPost && target == "":
		return h.startUpload(ctx, w, rt, body)
	case target == "":
		return errMethod
	case r.Method == http.MethodGet:
		size, err := h.Push.Uploaded(target)
		if err != nil {
			return unknownUpload(err)
		}
		sayUpload(w, rt, target, size, http.StatusNoContent)
		return nil
	case r.Method == http.MethodPatch:
		return h.appendUpload(w, r, rt, target, body)
	case r.Method == http.MethodPut:
		return h.finishUpload(w, r, rt, target, body)
	case r.Method == http.MethodDelete:
		if err := h.Push.CancelUpload(target); err != nil {
			return unknownUpload(err)
		}
		w.begin(http.StatusNoContent, -1)
		return nil
	}
	return errMethod
}

func unknownUpload(err error) error {
	switch {
	case errors.Is(err, oci.ErrNotFound):
		return fmt.Errorf("%w: %s", errUpload, err.Error()) // of content, nothing was asked
	case errors.Is(err, oci.ErrUnavailable):
		return fmt.Errorf("%w: %w", errTaken, err)
	}
	return err
}

// startUpload begins an upload, or does without one: the whole content comes with the request, or is here already.
func (h *handler) startUpload(ctx context.Context, w *response, rt route, body io.Reader) error {
	if text := rt.query.Get("mount"); text != "" {
		dgst, err := oci.ParseDigest(text)
		if err != nil {
			return err
		}
		if _, err := h.adopt(ctx, rt.ref, oci.Blob, dgst, ""); err == nil {
			sayBlob(w, rt, dgst)
			return nil
		}
	}
	whole := rt.query.Get("digest")
	if whole != "" {
		if _, err := oci.ParseDigest(whole); err != nil {
			return err
		}
	}
	id, err := h.Push.StartUpload()
	if errors.Is(err, oci.ErrUnavailable) { // too many wait
		return fmt.Errorf("%w: %w", errBusy, err)
	}
	if err != nil {
		return err
	}
	if whole == "" {
		sayUpload(w, rt, id, 0, http.StatusAccepted)
		return nil
	}
	err = h.complete(w, rt, id, -1, body)
	if err != nil {
		_ = h.Push.CancelUpload(id) // the client does not know its ID; it may be over
	}
	return err
}

// sayUpload answers where an upload is, and how far.
func sayUpload(w *response, rt route, id string, size int64, status int) {
	header := w.rw.Header()
	header.Set("Location", rt.location("blobs/uploads/"+id))
	header.Set("Range", fmt.Sprintf("0-%d", max(size-1, 0)))
	header.Set("Docker-Upload-Uuid", id)
	length := int64(0)
	if status == http.StatusNoContent {
		length = -1
	}
	w.begin(status, length)
}

// location returns the path of something in the repository, in the words in which the client named that.
func (rt *route) location(what string) string {
	path := "/v2/" + rt.name + "/" + what
	if ns := rt.query.Get("ns"); ns != "" {
		path += "?" + url.Values{"ns": {ns}}.Encode()
	}
	return path
}

func sayBlob(w *response, rt route, dgst oci.Digest) {
	w.rw.Header().Set("Location", rt.location("blobs/"+dgst.String()))
	w.rw.Header().Set("Docker-Content-Digest", dgst.String())
	w.begin(http.StatusCreated, 0)
}

// appendUpload takes a piece.
func (h *handler) appendUpload(w *response, r *http.Request, rt route, id string, body io.Reader) error {
	offset, err := pieceOffset(r)
	if err != nil {
		return err
	}
	size, err := h.Push.AppendUpload(id, offset, body)
	if errors.Is(err, oci.ErrRange) {
		sayUpload(w, rt, id, size, http.StatusRequestedRangeNotSatisfiable)
		return nil
	}
	if err != nil {
		return unknownUpload(err)
	}
	sayUpload(w, rt, id, size, http.StatusAccepted)
	return nil
}

// pieceOffset returns where a piece begins, negative if its Content-Range does not say so: first-last, in bytes.
func pieceOffset(r *http.Request) (int64, error) {
	header := r.Header.Get("Content-Range")
	if header == "" {
		return -1, nil
	}
	first, last, ok := strings.Cut(strings.TrimPrefix(header, "bytes "), "-")
	last, _, _ = strings.Cut(last, "/")
	from, err := strconv.ParseUint(first, 10, 62)
	to, toErr := strconv.ParseUint(last, 10, 62)
	if !ok || err != nil || toErr != nil || to < from || r.ContentLength >= 0 && uint64(r.ContentLength) != to-from+1 {
		return 0, fmt.Errorf("Content-Range %.40q: %w", header, errPiece)
	}
	return int64(from), nil
}

// finishUpload takes the last piece, or none, and keeps the whole.
func (h *handler) finishUpload(w *response, r *http.Request, rt route, id string, body io.Reader) error {
	offset, err := pieceOffset(r)
	if err != nil {
		return err
	}
	return h.complete(w, rt, id, offset, body)
}

func (h *handler) complete(w *response, rt route, id string, offset int64, body io.Reader) error {
	dgst, err := oci.ParseDigest(rt.query.Get("digest"))
	if err != nil {
		return err
	}
	size, err := h.Push.AppendUpload(id, offset, body)
	if errors.Is(err, oci.ErrRange) {
		sayUpload(w, rt, id, size, http.StatusRequestedRangeNotSatisfiable)
		return nil
	}
	if err == nil {
		err = h.Push.FinishUpload(id, dgst)
	}
	if errors.Is(err, oci.ErrDigestMismatch) {
		return fmt.Errorf("%w: %w", errContent, err)
	}
	if err != nil {
		return unknownUpload(err)
	}
	sayBlob(w, rt, dgst)
	return nil
}

// putManifest keeps a manifest, once all that it names is kept, and gives it its name.
func (h *handler) putManifest(ctx context.Context, w *response, r *http.Request, rt route, body *incoming) error {
	select {
	case h.texts <- struct{}{}:
		defer func() { <-h.texts }()
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(w.stall):
		return errBusy
	}
	body.until = time.Now().Add(w.stall)
	b, err := io.ReadAll(io.LimitReader(body, oci.MaxManifest+1))
	if err != nil {
		return err
	}
	if len(b) > oci.MaxManifest {
		return errLarge
	}
	info, err := oci.ParseManifest(b)
	if err != nil {
		return fmt.Errorf("%w: %w", errManifest, err)
	}
	mediaType, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	if !slices.Contains(oci.ManifestMediaTypes, info.MediaType) || mediaType != "" && strings.TrimSpace(mediaType) != info.MediaType {
		return fmt.Errorf("%w: it is %.100q, sent as %.100q", errManifest, info.MediaType, mediaType)
	}
	dgst := rt.ref.Digest
	if dgst == "" {
		dgst = digest.FromBytes(b)
	} else if dgst.Algorithm().FromBytes(b) != dgst {
		return fmt.Errorf("%w: a manifest sent as %s", errContent, dgst)
	}
	h.Push.Expect(dgst)
	if err := h.adoptAll(ctx, rt.ref, info); err != nil {
		return err
	}
	desc := oci.Descriptor{MediaType: info.MediaType, Digest: dgst, Size: int64(len(b)), Source: h.PushSource}
	if err := h.Push.Put(ctx, desc, strings.NewReader(string(b))); err != nil {
		return err
	}
	if err := h.Push.Tag(ctx, rt.ref, desc); err != nil {
		return err
	}
	header := w.rw.Header()
	if info.Subject != nil {
		header.Set("Oci-Subject", info.Subject.Digest.String())
	}
	header.Set("Docker-Content-Digest", dgst.String())
	header.Set("Location", rt.location("manifests/"+dgst.String()))
	w.begin(http.StatusCreated, 0)
	return nil
}

// adoptAll sees that all that a manifest names is kept.
func (h *handler) adoptAll(ctx context.Context, ref oci.Reference, info oci.ManifestInfo) error {
	if s := info.Subject; s != nil {
		if _, err := oci.ParseDigest(s.Digest.String()); err != nil {
			return fmt.Errorf("%w: its subject: %w", errManifest, err)
		}
	}
	for _, d := range info.Blobs {
		if strings.Contains(d.MediaType, "nondistributable") || strings.Contains(d.MediaType, ".foreign.") {
			continue // it is elsewhere, and nobody may push it
		}
		size, err := h.adopt(ctx, ref, oci.Blob, d.Digest, d.MediaType)
		if err != nil {
			return fmt.Errorf("%w: blob %.200s: %w", errParts, d.Digest, err)
		}
		if size != d.Size {
			return fmt.Errorf("%w: blob %.200s has %d bytes, not %d", errManifest, d.Digest, size, d.Size)
		}
	}
	for _, d := range info.Manifests {
		_, err := h.adopt(ctx, ref, oci.Manifest, d.Digest, d.MediaType)
		if h.PushSparse && errors.Is(err, oci.ErrNotFound) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%w: manifest %.200s: %w", errParts, d.Digest, err)
		}
	}
	return nil
}

// adopt keeps content that this node can get from elsewhere: a client that was told that it is here does not send it, and what is
// pushed is to be whole. It returns how large it is.
func (h *handler) adopt(ctx context.Context, in oci.Reference, kind oci.Kind, dgst oci.Digest, mediaType string) (size int64, err error) {
	if _, err := oci.ParseDigest(dgst.String()); err != nil {
		return 0, err
	}
	ref := oci.Reference{Registry: in.Registry, Repository: in.Repository, Kind: kind, Digest: dgst}
	h.Push.Expect(dgst)
	if rc, _, err := h.Local.Open(ctx, ref, 0, 1); err == nil { // a part is given once the whole is proven: nobody sends what is here, but damaged
		rc.Close()
	}
	if desc, err := h.Push.Resolve(ctx, ref); !errors.Is(err, oci.ErrNotFound) {
		return desc.Size, err
	}
	rc, desc, err := h.Source.Open(ctx, ref, 0, -1)
	if err != nil {
		return 0, err
	}
	defer rc.Close()
	if kind == oci.Manifest {
		mediaType = desc.MediaType
	}
	return desc.Size, h.Push.Put(ctx, oci.Descriptor{MediaType: mediaType, Digest: dgst, Size: desc.Size}, rc)
}

// incoming is the body of a request, each piece of which has its own time.
type incoming struct {
	r     io.Reader
	w     *response
	armed time.Time
	until time.Time // when all of it has to be here; zero: whenever
	err   error     // the first
}

func (i *incoming) Read(p []byte) (int, error) {
	if now := time.Now(); now.Sub(i.armed) > i.w.stall/8 {
		i.armed = now
		end := now.Add(i.w.stall)
		if !i.until.IsZero() && i.until.Before(end) {
			end = i.until
		}
		_ = i.w.ctl.SetReadDeadline(end) // unsupported: the server's own time-outs remain
	}
	n, err := i.r.Read(p)
	if err != nil && i.err == nil {
		i.err = err
	}
	return n, err
}

// end leaves the connection a deadline for what is left of the body, which the server reads before it answers. The next request has its own.
func (i *incoming) end() { _ = i.w.ctl.SetReadDeadline(time.Now().Add(i.w.stall)) }
