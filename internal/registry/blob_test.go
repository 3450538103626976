package registry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"testing"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

func TestBlob(t *testing.T) {
	c := newContent()
	empty := c.Add("", nil)
	url := serve(t, New(Config{Source: c})) + "/v2/app/blobs/"
	for _, tc := range []struct {
		dgst oci.Digest
		want []byte
		kind string
	}{{c.blob, c.layer, "application/vnd.oci.image.layer.v1.tar"}, {empty.Digest, nil, "application/octet-stream"}} {
		for _, method := range []string{"GET", "HEAD"} {
			r := ask(t, method, url+string(tc.dgst))
			if r.StatusCode != 200 || r.ContentLength != int64(len(tc.want)) || len(r.TransferEncoding) > 0 {
				t.Errorf("%s: %d, length %d, encoding %v", method, r.StatusCode, r.ContentLength, r.TransferEncoding)
			}
			for name, want := range map[string]string{
				"Content-Type": tc.kind, "Docker-Content-Digest": string(tc.dgst), "Etag": `"` + string(tc.dgst) + `"`,
				"Accept-Ranges": "bytes", "Cache-Control": "max-age=31536000, immutable",
			} {
				if got := r.Header.Get(name); got != want {
					t.Errorf("%s: %s %q, want %q", method, name, got, want)
				}
			}
			if method == "GET" && !bytes.Equal(r.body, tc.want) {
				t.Errorf("got %d bytes, want %d", len(r.body), len(tc.want))
			}
		}
	}
}

func TestRange(t *testing.T) {
	c := &ocitest.Memory{}
	b := ocitest.Bytes(7, 1000)
	dgst := c.Add("", b).Digest
	empty := c.Add("", nil).Digest
	url := serve(t, New(Config{Source: c})) + "/v2/app/blobs/"
	for _, tc := range []struct {
		dgst        oci.Digest
		header      string
		status      int
		first, last int
	}{
		{dgst, "bytes=0-", 206, 0, 999},
		{dgst, "bytes=0-0", 206, 0, 0},
		{dgst, "bytes=5-10", 206, 5, 10},
		{dgst, "bytes=999-", 206, 999, 999},
		{dgst, "bytes=990-5000", 206, 990, 999},
		{dgst, "bytes=0-9223372036854775807", 206, 0, 999},
		{dgst, "bytes=0-99999999999999999999999", 206, 0, 999},
		{dgst, "bytes=-1", 206, 999, 999},
		{dgst, "bytes=-1000", 206, 0, 999},
		{dgst, "bytes=-5000", 206, 0, 999},
		{dgst, "Bytes= 5-10 ", 206, 5, 10},
		{dgst, "bytes=1000-", 416, 0, 1000},
		{dgst, "bytes=1000-1001", 416, 0, 1000},
		{dgst, "bytes=5000-", 416, 0, 1000},
		{dgst, "bytes=99999999999999999999999-", 416, 0, 1000},
		{dgst, "bytes=9223372036854775807-9223372036854775807", 416, 0, 1000},
		{dgst, "bytes=-0", 416, 0, 1000},
		{empty, "bytes=0-", 416, 0, 0},
		{empty, "bytes=-5", 416, 0, 0},
		{dgst, "bytes=10-5", 200, 0, 0},
		{dgst, "bytes=0-1,5-6", 200, 0, 0},
		{dgst, "bytes=-", 200, 0, 0},
		{dgst, "bytes=--5", 200, 0, 0},
		{dgst, "bytes=+1-5", 200, 0, 0},
		{dgst, "bytes=x", 200, 0, 0},
		{dgst, "bytes", 200, 0, 0},
		{dgst, "0-5", 200, 0, 0},
		{dgst, "lines=0-5", 200, 0, 0},
	} {
		r := ask(t, "GET", url+string(tc.dgst), "Range", tc.header)
		if r.StatusCode != tc.status {
			t.Errorf("%s: %d, want %d", tc.header, r.StatusCode, tc.status)
			continue
		}
		want, contentRange := b, ""
		switch tc.status {
		case 206:
			want, contentRange = b[tc.first:tc.last+1], fmt.Sprintf("bytes %d-%d/1000", tc.first, tc.last)
		case 416:
			want, contentRange = r.body, fmt.Sprintf("bytes */%d", tc.last)
			r.code(t)
			if r.Header.Get("Etag") != "" || r.Header.Get("Accept-Ranges") != "" {
				t.Errorf("%s: an error described as content: %v", tc.header, r.Header)
			}
		}
		if !bytes.Equal(r.body, want) || r.ContentLength != int64(len(want)) || r.Header.Get("Content-Range") != contentRange {
			t.Errorf("%s: %d bytes, Content-Range %q, want %d, %q", tc.header, len(r.body), r.Header.Get("Content-Range"), len(want), contentRange)
		}
		if r := ask(t, "HEAD", url+string(tc.dgst), "Range", tc.header); r.StatusCode != 200 {
			t.Errorf("HEAD, %s: %d, want 200: only GET has ranges", tc.header, r.StatusCode)
		}
	}
	for condition, status := range map[string]int{
		`"` + string(dgst) + `"`: 206, `W/"` + string(dgst) + `"`: 200, `"x"`: 200, "Wed, 21 Oct 2015 07:28:00 GMT": 200,
	} {
		if r := ask(t, "GET", url+string(dgst), "Range", "bytes=1-5", "If-Range", condition); r.StatusCode != status {
			t.Errorf("If-Range %s: %d, want %d", condition, r.StatusCode, status)
		}
	}
	if r := ask(t, "GET", url+string(ocitest.Absent), "Range", "bytes=-5"); r.StatusCode != 404 {
		t.Errorf("range of absent content: %d", r.StatusCode)
	}
}

// unsized is a Source that knows neither size nor media type of anything.
type unsized struct{ oci.Source }

func (s unsized) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	desc, err := s.Source.Resolve(ctx, ref)
	desc.Size, desc.MediaType = -1, ""
	return desc, err
}

func (s unsized) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	rc, desc, err := s.Source.Open(ctx, ref, offset, length)
	desc.Size, desc.MediaType = -1, ""
	return rc, desc, err
}

func TestUnknownSize(t *testing.T) {
	c := newContent()
	empty := c.Add("", nil)
	url := serve(t, New(Config{Source: unsized{c}})) + "/v2/app/blobs/"
	for _, header := range []string{"", "bytes=5-10", "bytes=-5"} {
		r := ask(t, "GET", url+string(c.blob), "Range", header)
		if r.StatusCode != 200 || !bytes.Equal(r.body, c.layer) || r.ContentLength != -1 || r.Header.Get("Accept-Ranges") != "" {
			t.Errorf("Range %q: %d, %d bytes, length %d, %v", header, r.StatusCode, len(r.body), r.ContentLength, r.Header)
		}
	}
	if r := ask(t, "HEAD", url+string(c.blob)); r.StatusCode != 200 || r.ContentLength > 0 {
		t.Errorf("HEAD: %d, length %d", r.StatusCode, r.ContentLength)
	}
	if r := ask(t, "GET", url+string(empty.Digest)); r.StatusCode != 200 || r.err != nil || len(r.body) != 0 {
		t.Errorf("empty: %d, %v, %q", r.StatusCode, r.err, r.body)
	}
}

func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"bytes=0-", "bytes=5-10", "bytes=-5", "bytes=0-9223372036854775807", "bytes=1-2,3-4", "x", "bytes=-"} {
		f.Add(s, int64(1000))
	}
	f.Fuzz(func(t *testing.T, header string, size int64) {
		want, ok := parseRange(header)
		if !ok {
			return
		}
		if want.first < 0 || want.last < want.first && !want.suffix {
			t.Fatalf("%q: parsed as %+v", header, want)
		}
		if !want.suffix {
			if n := want.length(); n == 0 || n < -1 || n == math.MaxInt64 && want.first > 0 {
				t.Fatalf("%q: length %d", header, n)
			}
		}
		size = max(0, size)
		if got, ok := want.of(size); ok && (got.first < 0 || got.last < got.first || got.last >= size) {
			t.Fatalf("%q of %d bytes: got %+v", header, size, got)
		}
	})
}
