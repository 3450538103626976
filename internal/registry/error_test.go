package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// fixed is a Source with one thing to say.
type fixed struct {
	desc oci.Descriptor
	err  error            // of Resolve and Open
	body func() io.Reader // what Open gives
}

func (s *fixed) Resolve(context.Context, oci.Reference) (oci.Descriptor, error) { return s.desc, s.err }

func (s *fixed) Open(context.Context, oci.Reference, int64, int64) (io.ReadCloser, oci.Descriptor, error) {
	if s.err != nil {
		return nil, oci.Descriptor{}, s.err
	}
	body := s.body()
	if rc, ok := body.(io.ReadCloser); ok {
		return rc, s.desc, nil
	}
	return io.NopCloser(body), s.desc, nil
}

func TestErrors(t *testing.T) {
	const manifest, blob = "/v2/registry.test/app/manifests/v1", "/v2/registry.test/app/blobs/" + string(ocitest.Absent)
	const ns = "?ns=registry.test"
	for _, tc := range []struct {
		err           error
		path          string
		authorization string
		status        int
		code          string
	}{
		{oci.ErrNotFound, manifest, "", 404, "MANIFEST_UNKNOWN"},
		{oci.ErrNotFound, blob, "", 404, "BLOB_UNKNOWN"},
		{oci.ErrNameInvalid, manifest, "", 400, "NAME_INVALID"},
		{oci.ErrUnauthorized, manifest, "", 401, "UNAUTHORIZED"},
		{oci.ErrUnauthorized, manifest, "Basic YTpi", 401, "UNAUTHORIZED"},
		{oci.ErrUnauthorized, "/v2/app/manifests/v1" + ns, "", 404, "MANIFEST_UNKNOWN"},
		{oci.ErrUnauthorized, "/v2/app/manifests/v1" + ns, "Basic YTpi", 401, "UNAUTHORIZED"},
		{oci.ErrDenied, manifest, "", 403, "DENIED"},
		{oci.ErrDenied, "/v2/app/blobs/" + string(ocitest.Absent) + ns, "", 404, "BLOB_UNKNOWN"},
		{oci.ErrDenied, "/v2/app/tags/list" + ns, "Basic YTpi", 404, "NAME_UNKNOWN"}, // it lists nothing at all
		{oci.ErrDenied, "/v2/app/manifests/v1" + ns, "Basic YTpi", 403, "DENIED"},
		{oci.ErrNotAllowed, manifest, "", 403, "DENIED"},
		{oci.ErrNotAllowed, "/v2/app/manifests/v1" + ns, "", 403, "DENIED"},
		{fmt.Errorf("%w: %w", oci.ErrDenied, oci.ErrNotAllowed), "/v2/app/manifests/v1" + ns, "", 403, "DENIED"},
		{oci.ErrRateLimited, manifest, "", 429, "TOOMANYREQUESTS"},
		{oci.ErrUnsupported, manifest, "", 400, "UNSUPPORTED"},
		{oci.ErrUnavailable, manifest, "", 502, "UNAVAILABLE"},
		{oci.ErrDigestMismatch, blob, "", 502, "UNAVAILABLE"},
		{oci.ErrTooLarge, manifest, "", 502, "MANIFEST_INVALID"},
		{context.DeadlineExceeded, manifest, "", 504, "UNAVAILABLE"},
		{context.Canceled, manifest, "", 502, "UNAVAILABLE"}, // the client is still there: somebody else gave up
		{errors.New("open /var/lib/pier: input/output error"), blob, "", 502, "UNAVAILABLE"},
	} {
		err := fmt.Errorf("https://cdn.test/x?signature=secret: /var/lib/pier: %w", tc.err)
		url := serve(t, New(Config{Source: &fixed{err: err}, PassAuthorization: true}))
		var headers []string
		if tc.authorization != "" {
			headers = []string{"Authorization", tc.authorization}
		}
		r := ask(t, "GET", url+tc.path, headers...)
		if code := r.code(t); r.StatusCode != tc.status || code != tc.code {
			t.Errorf("%v, %s, Authorization %q: %d %s, want %d %s", tc.err, tc.path, tc.authorization, r.StatusCode, code, tc.status, tc.code)
		}
		if bytes.Contains(r.body, []byte("secret")) || bytes.Contains(r.body, []byte("/var/lib")) {
			t.Errorf("%v: the client is told %s", tc.err, r.body)
		}
		want := ""
		if tc.status == 401 {
			want = `Basic realm="registry.test"`
		}
		if got := r.Header.Get("Www-Authenticate"); got != want {
			t.Errorf("%v: WWW-Authenticate %q, want %q", tc.err, got, want)
		}
	}
}

// A door that keeps Authorization to itself asked the upstream without: the client shall try on its own.
func TestUnusedAuthorizationDoesNotCount(t *testing.T) {
	url := serve(t, New(Config{Source: &fixed{err: oci.ErrUnauthorized}}))
	if r := ask(t, "GET", url+"/v2/app/manifests/v1?ns=registry.test", "Authorization", "Basic YTpi"); r.StatusCode != 404 {
		t.Errorf("got %d, want 404", r.StatusCode)
	}
}

func TestErrorDetail(t *testing.T) {
	url := serve(t, New(Config{Source: newContent()}))
	r := ask(t, "GET", url+"/v2/app/manifests/none?ns=docker.io")
	want := `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":"docker.io/library/app:none"}]}`
	if string(r.body) != want {
		t.Errorf("got %s, want %s", r.body, want)
	}
	if r := ask(t, "GET", url+"/v2/app/manifests/v1?ns="+strings.Repeat("x", 100_000)); r.StatusCode != 400 || len(r.body) > 2000 {
		t.Errorf("a name of 100 kB: %d, %d bytes", r.StatusCode, len(r.body))
	}
}
