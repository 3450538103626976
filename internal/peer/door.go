package peer

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"pier/internal/directory"
	"pier/internal/oci"
)

// Time-outs of a neighbour's door: all of them within the second that a neighbour may delay a pull by.
const (
	dialTimeout   = 400 * time.Millisecond
	headerTimeout = 700 * time.Millisecond
	budget        = 900 * time.Millisecond // to open any of several
)

func newClient(conf *tls.Config) *http.Client {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}
	return &http.Client{
		Transport: &http.Transport{
			DialContext:            dialer.DialContext,
			TLSClientConfig:        conf,
			TLSHandshakeTimeout:    headerTimeout,
			ResponseHeaderTimeout:  headerTimeout,
			MaxIdleConns:           64,
			MaxResponseHeaderBytes: 64 << 10,
			MaxIdleConnsPerHost:    4,
			IdleConnTimeout:        30 * time.Second,
			DisableCompression:     true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // a node never redirects
	}
}

// A candidate is a neighbour that may have content.
type candidate struct {
	Peer
	directory.Source
}

// A reply is an open answer of a neighbour.
type reply struct {
	candidate
	desc    oci.Descriptor
	body    io.ReadCloser
	missing int64 // bytes that it lacks itself, or has not proven yet
}

// request asks c's door for ref. A negative length is to the end.
func (s *Source) request(ctx context.Context, method string, c candidate, ref oci.Reference, offset, length int64) (*http.Response, error) {
	u := url.URL{Scheme: c.scheme(), Host: c.Door, RawQuery: url.Values{"ns": {ref.Registry}}.Encode()}
	kind, target := "manifests", ref.Digest.String()
	if ref.Kind == oci.Blob {
		kind = "blobs"
	}
	if target == "" {
		target = ref.Tag
	}
	u.Path = "/v2/" + ref.Repository + "/" + kind + "/" + target
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if ref.Kind == oci.Manifest {
		req.Header["Accept"] = oci.ManifestMediaTypes
	}
	switch {
	case length >= 0: // a range has one byte at least
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, offset+max(length, 1)-1))
	case offset > 0:
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusPartialContent:
		return resp, nil
	}
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10) // so that the connection can be used again
	resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusNotFound:
		return nil, errMiss
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		return nil, errBusy
	case http.StatusRequestedRangeNotSatisfiable:
		_, size := contentRange(resp.Header.Get("Content-Range"))
		return nil, &beyondError{size}
	}
	return nil, fmt.Errorf("peer %s: status %s", c.Name, resp.Status)
}

// A beyondError is an [oci.ErrRange] of a neighbour, which says how large the content is; negative: it does not.
type beyondError struct{ size int64 }

func (b *beyondError) Error() string {
	return fmt.Sprintf("a neighbour has %d bytes: %v", b.size, oci.ErrRange)
}
func (b *beyondError) Unwrap() error { return oci.ErrRange }

// open opens ref at c.
func (s *Source) open(ctx context.Context, c candidate, ref oci.Reference, offset, length int64) (*reply, error) {
	resp, err := s.request(ctx, http.MethodGet, c, ref, offset, length)
	var beyond *beyondError
	if errors.As(err, &beyond) && beyond.size == offset { // all of what is asked for: nothing
		return &reply{candidate: c, body: http.NoBody, desc: oci.Descriptor{Digest: ref.Digest, Size: offset, Source: origin}}, nil
	}
	if err != nil {
		return nil, err
	}
	r := &reply{candidate: c, body: resp.Body, desc: describe(resp, ref)}
	if missing := resp.Header.Get("Pier-Missing"); missing != "" {
		r.missing, _ = strconv.ParseInt(missing, 10, 64) // a hint
	}
	first, size := int64(0), resp.ContentLength
	if resp.StatusCode == http.StatusPartialContent {
		first, size = contentRange(resp.Header.Get("Content-Range"))
	}
	r.desc.Size = size
	if size < 0 || first != offset {
		resp.Body.Close()
		return nil, fmt.Errorf("peer %s: %s: unfit answer %s from byte %d of %d", c.Name, ref.Digest, resp.Status, first, size)
	}
	return r, nil
}

// head asks c what ref is.
func (s *Source) head(ctx context.Context, c candidate, ref oci.Reference) (oci.Descriptor, error) {
	resp, err := s.request(ctx, http.MethodHead, c, ref, 0, -1)
	if err != nil {
		return oci.Descriptor{}, err
	}
	resp.Body.Close()
	desc := describe(resp, ref)
	if desc.Digest, err = oci.ParseDigest(resp.Header.Get("Docker-Content-Digest")); err != nil {
		return oci.Descriptor{}, fmt.Errorf("peer %s: %s: %w", c.Name, ref, err)
	}
	if ref.Digest != "" && desc.Digest != ref.Digest {
		return oci.Descriptor{}, fmt.Errorf("peer %s: %s: answered for %s", c.Name, ref, desc.Digest)
	}
	return desc, nil
}

// proven asks c whether it has all of ref, and has proven it.
func (s *Source) proven(ctx context.Context, c candidate, ref oci.Reference) bool {
	resp, err := s.request(ctx, http.MethodHead, c, ref, 0, -1)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.Header.Get("Pier-Missing") == ""
}

// Blobs asks a node how many manifests and blobs it holds.
func (s *Source) Blobs(ctx context.Context, p Peer) (int64, error) {
	u := url.URL{Scheme: p.scheme(), Host: p.Door, Path: "/api/v1/node"}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return 0, err
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var info struct {
		Blobs int64 `json:"blobs"`
	}
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("peer %s: status %s", p.Name, resp.Status)
	}
	err = json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&info)
	return info.Blobs, err
}

func (p Peer) scheme() string {
	if p.TLS {
		return "https"
	}
	return "http"
}

func describe(resp *http.Response, ref oci.Reference) oci.Descriptor {
	return oci.Descriptor{MediaType: resp.Header.Get("Content-Type"), Digest: ref.Digest, Size: resp.ContentLength, Source: origin}
}

// contentRange returns the first byte and the size of the whole of a Content-Range, or a size of -1 if it makes no sense. A
// range that there is not has no first byte: 0.
func contentRange(header string) (first, size int64) {
	spec, ok := strings.CutPrefix(header, "bytes ")
	span, total, cut := strings.Cut(spec, "/")
	if span == "*" {
		span = "0-"
	}
	begin, _, dash := strings.Cut(span, "-")
	first, err := strconv.ParseInt(begin, 10, 64)
	size, serr := strconv.ParseInt(total, 10, 64)
	if !ok || !cut || !dash || err != nil || serr != nil || first < 0 || size < first {
		return 0, -1
	}
	return first, size
}
