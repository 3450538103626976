package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"pier/internal/oci"
)

// A target is an endpoint about to be asked for something in a repository, in somebody's name.
type target struct {
	*Registries
	*endpoint
	account    account
	repository string
	ns         string // the registry that the endpoint is a mirror of, or ""
	retries    int
}

// content is what an Open returns.
type content struct {
	io.ReadCloser
	desc oci.Descriptor
}

// sliver opens bytes that are already here, or none at all.
func sliver(b []byte, desc oci.Descriptor) content {
	return content{io.NopCloser(bytes.NewReader(b)), desc}
}

// queryFor returns the request for what ref names.
func queryFor(method string, ref oci.Reference) query {
	name := ref.Digest.String()
	if name == "" {
		name = ref.Tag
	}
	q := query{method: method, path: ref.Kind.String() + "s/" + name, what: ref.Kind.String() + " " + ref.Repository}
	if ref.Digest != "" {
		q.what += "@" + name
	} else {
		q.what += ":" + name
	}
	if ref.Kind == oci.Manifest {
		q.accept = strings.Join(oci.ManifestMediaTypes, ", ")
	}
	return q
}

// resolve asks with a HEAD, and where the answer does not say enough, with a GET.
func (t target) resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	resp, w, err := t.call(ctx, queryFor(http.MethodHead, ref))
	if status := statusOf(err); status == http.StatusMethodNotAllowed || status == http.StatusNotImplemented || refusedElsewhere(err) {
		return t.resolveByGet(ctx, ref) // HEAD is not spoken, or not at the address that the registry signed for a GET
	}
	if err != nil {
		return oci.Descriptor{}, err
	}
	w.stop()
	_ = resp.Body.Close() // empty
	desc := t.describe(ref, resp)
	if ref.Kind == oci.Blob {
		if desc.Size < 0 {
			return t.resolveByGet(ctx, ref)
		}
		return desc, nil
	}
	if ref.Digest == "" {
		// Absent and malformed are the same: a digest that is made up would be trusted by everybody after us.
		desc.Digest, _ = oci.ParseDigest(resp.Header.Get("Docker-Content-Digest"))
	}
	if desc.Digest == "" || desc.Size <= 0 || desc.MediaType == "" {
		return t.resolveByGet(ctx, ref)
	}
	if desc.Size > oci.MaxManifest {
		return oci.Descriptor{}, t.tooLarge(ref)
	}
	return desc, nil
}

// refusedElsewhere reports whether a store that the registry redirected to refused.
func refusedElsewhere(err error) bool {
	f, ok := errors.AsType[*fault](err)
	return ok && f.moved
}

// resolveByGet reads a manifest and computes its digest, or asks for the first byte of a blob to learn its size.
func (t target) resolveByGet(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	if ref.Kind == oci.Blob {
		c, err := t.get(ctx, ref, 0, 1, rangeHeader(0, 1))
		if err != nil {
			return oci.Descriptor{}, err
		}
		return c.desc, c.Close()
	}
	c, err := t.get(ctx, ref, 0, -1, "")
	if err != nil {
		return oci.Descriptor{}, err
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	if err != nil {
		return oci.Descriptor{}, err
	}
	desc := c.desc
	switch {
	case ref.Digest == "":
		desc.Digest = digest.FromBytes(b)
	case ref.Digest.Algorithm().FromBytes(b) != ref.Digest:
		return oci.Descriptor{}, t.fault(queryFor("", ref).what, "other bytes than asked for", oci.ErrDigestMismatch)
	}
	return desc, nil
}

// describe returns what the headers of an answer say, with size -1 where they do not.
func (t target) describe(ref oci.Reference, resp *http.Response) oci.Descriptor {
	mediaType, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	mediaType = strings.TrimSpace(mediaType)
	if mediaType == "" && ref.Kind == oci.Blob {
		mediaType = "application/octet-stream"
	}
	return oci.Descriptor{
		MediaType: mediaType, Digest: ref.Digest, Size: resp.ContentLength, Source: t.name,
		Stale: ref.Digest == "" && stale(resp.Header),
	}
}

// stale reports whether an answer has a warning that it is an old one, "110 cache.test "Response is Stale"" (RFC 7234,
// section 5.5.1): a cache, or another Pier, gives it where its registry cannot be asked.
func stale(h http.Header) bool {
	for _, header := range h.Values("Warning") {
		for warning := range strings.SplitSeq(header, ",") {
			if code, _, _ := strings.Cut(strings.TrimSpace(warning), " "); code == "110" {
				return true
			}
		}
	}
	return false
}

// open returns a part of what ref names.
func (t target) open(ctx context.Context, ref oci.Reference, offset, length int64) (content, error) {
	if length == 0 {
		return t.openNone(ctx, ref, offset) // there is no Range for no bytes
	}
	ranged := rangeHeader(offset, length)
	c, err := t.get(ctx, ref, offset, length, ranged)
	f, ok := errors.AsType[*fault](err)
	if !ok || f.status != http.StatusRequestedRangeNotSatisfiable || ranged == "" {
		return c, err
	}
	// At the end, and past it, there is no range; but some refuse every other range too.
	if f.size <= offset {
		desc, err := t.resolve(ctx, ref)
		switch {
		case err != nil && ctx.Err() != nil:
			return content{}, err
		case err == nil && offset == desc.Size:
			return sliver(nil, desc), nil
		case err == nil && desc.Size >= 0 && offset > desc.Size:
			return content{}, t.pastEnd(ref, offset, desc.Size)
		}
	}
	return t.get(ctx, ref, offset, length, "")
}

// openNone opens no bytes at an offset, if there is such an offset.
func (t target) openNone(ctx context.Context, ref oci.Reference, offset int64) (content, error) {
	desc, err := t.resolve(ctx, ref)
	if err != nil {
		return content{}, err
	}
	if desc.Size >= 0 && offset > desc.Size {
		return content{}, t.pastEnd(ref, offset, desc.Size)
	}
	return sliver(nil, desc), nil
}

// get sends the GET of an open, for a range or, if that is empty, for the whole, of which it skips what comes before offset.
func (t target) get(ctx context.Context, ref oci.Reference, offset, length int64, ranged string) (content, error) {
	q := queryFor(http.MethodGet, ref)
	q.ranged = ranged
	resp, w, err := t.call(ctx, q) //nolint:bodyclose // b closes it
	if err != nil {
		return content{}, err
	}
	b := &body{target: t, what: q.what, rc: resp.Body, watch: w, left: -1, limit: math.MaxInt64}
	if resp.StatusCode == http.StatusPartialContent && ranged == "" {
		_ = b.Close() // of no use
		return content{}, t.fault(q.what, "a range although none was asked for", oci.ErrUnavailable)
	}
	c, err := t.cut(ctx, ref, resp, b, offset, length)
	if err != nil {
		_ = b.Close() // the error at hand says more
	}
	return c, err
}

// cut makes a response into the part that was asked for, whatever part the registry sent. It closes b where it does not
// return it, except on an error.
func (t target) cut(ctx context.Context, ref oci.Reference, resp *http.Response, b *body, offset, length int64) (content, error) {
	desc := t.describe(ref, resp)
	start := int64(0)
	if resp.StatusCode == http.StatusPartialContent {
		r, ok := parseContentRange(resp.Header.Get("Content-Range"))
		if !ok || r.start != offset {
			return content{}, t.fault(b.what, "another range than asked for", oci.ErrUnavailable)
		}
		start, desc.Size = offset, r.size
	}
	if ref.Kind == oci.Manifest {
		if desc.Size > oci.MaxManifest {
			return content{}, t.tooLarge(ref)
		}
		if start == 0 && (desc.Size < 0 || desc.MediaType == "") {
			return t.whole(ref, b, desc, offset, length)
		}
	}
	if desc.Size < 0 {
		if head, err := t.head(ctx, ref); err == nil {
			desc.Size = head
		} else if ctx.Err() != nil {
			return content{}, err
		}
	}
	if desc.Size >= 0 {
		if offset > desc.Size {
			return content{}, t.pastEnd(ref, offset, desc.Size)
		}
		b.left = desc.Size - start
	}
	if start < offset {
		// However long it takes: b ends it where nothing comes.
		if _, err := io.CopyN(io.Discard, b, offset-start); err != nil {
			if errors.Is(err, io.EOF) {
				return content{}, t.pastEnd(ref, offset, b.got)
			}
			return content{}, err
		}
	}
	if length >= 0 {
		if b.left < 0 {
			b.limit = length
		} else {
			b.left = min(b.left, length)
		}
	}
	return content{b, desc}, nil
}

// whole reads a manifest whose headers do not say its size, or its media type.
func (t target) whole(ref oci.Reference, b *body, desc oci.Descriptor, offset, length int64) (content, error) {
	b.limit = oci.MaxManifest + 1
	all, err := io.ReadAll(b)
	if err != nil {
		return content{}, err
	}
	desc.Size = int64(len(all))
	if desc.Size > oci.MaxManifest {
		return content{}, t.tooLarge(ref)
	}
	if offset > desc.Size {
		return content{}, t.pastEnd(ref, offset, desc.Size)
	}
	if desc.MediaType == "" {
		if info, err := oci.ParseManifest(all); err == nil {
			desc.MediaType = info.MediaType
		}
	}
	all = all[offset:]
	if length >= 0 && length < int64(len(all)) {
		all = all[:length]
	}
	return sliver(all, desc), b.Close()
}

// head returns the size of a blob whose GET did not tell it, or -1.
func (t target) head(ctx context.Context, ref oci.Reference) (int64, error) {
	resp, w, err := t.call(ctx, queryFor(http.MethodHead, ref))
	if err != nil {
		return -1, err
	}
	w.stop()
	return resp.ContentLength, resp.Body.Close()
}

func (t target) tooLarge(ref oci.Reference) error {
	return t.fault(queryFor("", ref).what, fmt.Sprintf("more than %d bytes", oci.MaxManifest), oci.ErrTooLarge)
}

func (t target) pastEnd(ref oci.Reference, offset, size int64) error {
	return t.fault(queryFor("", ref).what, fmt.Sprintf("offset %d of %d bytes", offset, size), oci.ErrRange)
}

// rangeHeader returns the Range header for length bytes from offset, or "" for the whole.
func rangeHeader(offset, length int64) string {
	switch {
	case length > 0 && offset <= math.MaxInt64-length:
		return fmt.Sprintf("bytes=%d-%d", offset, offset+length-1)
	case offset > 0:
		return fmt.Sprintf("bytes=%d-", offset)
	}
	return ""
}

type contentRange struct {
	start, end int64 // of the first byte and the last
	size       int64 // of the whole; -1: not told
}

// parseContentRange parses "bytes 5-9/10" and "bytes 5-9/*" (RFC 9110, section 14.4).
func parseContentRange(s string) (contentRange, bool) {
	unit, rest, _ := strings.Cut(s, " ")
	part, total, ok := strings.Cut(rest, "/")
	first, last, ok2 := strings.Cut(part, "-")
	if !strings.EqualFold(unit, "bytes") || !ok || !ok2 {
		return contentRange{}, false
	}
	start, err1 := strconv.ParseUint(first, 10, 63)
	end, err2 := strconv.ParseUint(last, 10, 63)
	if err1 != nil || err2 != nil || end < start {
		return contentRange{}, false
	}
	r := contentRange{start: int64(start), end: int64(end), size: -1}
	if total == "*" {
		return r, true
	}
	size, err := strconv.ParseUint(total, 10, 63)
	if err != nil || size <= end {
		return contentRange{}, false
	}
	r.size = int64(size)
	return r, true
}
