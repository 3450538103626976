package registry

import (
	"net/http/httptest"
	"testing"

	"pier/internal/oci"
)

// A request that a proxy took is for the registry that it was sent to, whatever else it says.
func TestHostNamesTheRegistry(t *testing.T) {
	src := &recorder{}
	h := New(Config{Source: src, ByHost: true, DefaultRegistry: "default.test"})
	for _, c := range []struct{ host, path, want string }{
		{"registry.test", "/v2/app/manifests/v1", "registry.test/app:v1"},
		{"Registry.test:5000", "/v2/a/b/manifests/v1", "registry.test:5000/a/b:v1"},
		{"registry-1.docker.io", "/v2/library/app/manifests/v1", "docker.io/library/app:v1"},
		{"registry.test", "/v2/other.test/app/manifests/v1", "registry.test/other.test/app:v1"},
		{"registry.test", "/v2/app/manifests/v1?ns=other.test", "registry.test/app:v1"},
		{"[::1]:5000", "/v2/app/manifests/v1", "[::1]:5000/app:v1"},
		{"", "/v2/app/manifests/v1", "/:"},
		{"registry.test", "/api/v1/digests/sha256:x", "/:"},
	} {
		src.ref = oci.Reference{}
		r := httptest.NewRequest("GET", c.path, nil)
		r.Host = c.host
		r.Header.Set("X-Registry", "header.test")
		h.ServeHTTP(httptest.NewRecorder(), r)
		got := src.ref.String()
		if src.ref == (oci.Reference{}) {
			got = "/:"
		}
		if got != c.want {
			t.Errorf("%s%s: asked for %s, want %s", c.host, c.path, got, c.want)
		}
	}
	r := httptest.NewRequest("GET", "/api/v1/node", nil)
	w := httptest.NewRecorder()
	if h.ServeHTTP(w, r); w.Code != 404 {
		t.Errorf("what a node tells of itself is answered with %d", w.Code)
	}
}
