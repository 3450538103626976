package proxy

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// Who pushed a tag through the proxy got what it named before, for as long as that is remembered.
func TestPushIsTold(t *testing.T) {
	for _, c := range []struct {
		method, path string
		status       int
		want         string
	}{
		{"PUT", "/v2/team/app/manifests/v1", 201, "registry.test team/app v1"},
		{"DELETE", "/v2/team/app/manifests/v1", 202, "registry.test team/app v1"},
		{"PUT", "/v2/team/app/manifests/v1", 401, ""},
		{"POST", "/v2/team/app/blobs/uploads/", 202, ""},
		{"PUT", "/other/app/manifests/v1", 201, ""},
	} {
		var told string
		p := New(Config{
			Registry: http.NotFoundHandler(), IsRegistry: func(string, string) bool { return true }, Ports: func(string, uint16) bool { return true },
			Transport: answers(c.status),
			Pushed:    func(host, repository, reference string) { told = host + " " + repository + " " + reference },
		})
		r := httptest.NewRequest(c.method, "http://registry.test"+c.path, nil)
		r.RemoteAddr = "127.0.0.1:1"
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r)
		if told != c.want || w.Code != c.status {
			t.Errorf("%s %s, answered with %d: %d, told %q, want %q", c.method, c.path, c.status, w.Code, told, c.want)
		}
		p.Shutdown(t.Context())
	}
}

// answers is a Transport whose every answer has this status.
type answers int

func (status answers) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: int(status), Header: http.Header{}, Body: http.NoBody, Request: r, ProtoMajor: 1, ProtoMinor: 1}, nil
}

// Docker tries TLS first with a registry that has none, and goes on only once it sees that: with the WAN cut that took fifteen
// seconds, and 29 gave up.
func TestRegistryWithoutTLSThatIsAway(t *testing.T) {
	s := newSite(t, func(c *Config) {
		c.IsRegistry = func(scheme, _ string) bool { return scheme == "http" }
		c.Plain = func(host string) bool { return host == "plain.test" }
	})
	s.at("plain.test:443", "127.0.0.1:1") // nobody listens
	_, err := s.client(t).Get("https://plain.test/v2/")
	if err == nil || !strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		t.Errorf("got error %v", err)
	}
	if a := do(t, s.client(t), request(t, "GET", "http://plain.test/v2/app/manifests/v1", "")); !strings.HasPrefix(a.body, "node GET plain.test") {
		t.Errorf("without TLS: %s", a.body)
	}
}
