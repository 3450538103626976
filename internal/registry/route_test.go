package registry

import (
	"mime"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// Whatever a client sends: no panic, and a route without an error names something valid.
func FuzzRoute(f *testing.F) {
	for _, s := range []string{
		"/v2/", "/v2/a/manifests/v1", "/v2/a/b/blobs/" + string(ocitest.Absent), "/v2/x.test/a/tags/list?n=1",
		"/v2//manifests/", "/v2/../manifests/x", "/api/v1/digests/x", "/v2/a%2fb/manifests/x?ns=x.test", "*", "",
	} {
		f.Add(s, "registry.test")
	}
	f.Fuzz(func(t *testing.T, target, header string) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		rt, err := parseRoute(&http.Request{Method: "GET", URL: u, Header: http.Header{"X-Registry": {header}}}, oci.DockerHub)
		if err != nil {
			if a := answerTo(err, rt, false); a.status != 400 && a.status != 404 {
				t.Fatalf("%q: %v answered with %d", target, err, a.status)
			}
			return
		}
		switch rt.endpoint {
		case endpointManifest, endpointBlob, endpointReferrers:
			if err := rt.ref.Validate(); err != nil {
				t.Fatalf("%q: routed to %v: %v", target, rt.ref, err)
			}
			if rt.endpoint != endpointManifest && rt.ref.Digest == "" {
				t.Fatalf("%q: no digest", target)
			}
		case endpointTags:
			if strings.ContainsAny(nextPage(rt, 1, "x"), "\r\n") {
				t.Fatalf("%q: broken link", target)
			}
		}
	})
}

// The short way for plain elements must not differ from the standard library's.
func FuzzParseAccept(f *testing.F) {
	for _, s := range []string{"*/*", "*", "a/b, c/d;q=0", `a/b;x="1,2"`, ",", "a/b;", ociImage + "," + ociIndex, "a/b/c", strings.Repeat("a/b,", 70)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, header string) {
		if isPlain(header) {
			if got, _, err := mime.ParseMediaType(header); err != nil || got != header {
				t.Fatalf("%q counts as plain, parses as %q, %v", header, got, err)
			}
		}
		a, err := parseAccept([]string{header})
		if err == nil && a.onlyImages() && !strings.Contains(strings.ToLower(header), "manifest") {
			t.Fatalf("%q: images only", header)
		}
	})
}
