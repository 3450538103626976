package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pier/internal/oci"
)

// gone makes the registry's hosts refuse connections.
func (s *site) gone(t *testing.T) {
	t.Helper()
	for _, addr := range []string{"registry.test:443", "registry.test:80", "registry.test:8443"} {
		s.raw(t, addr).Close()
	}
}

// With the registry gone, everything that a pull asks for is answered here, and a push is not.
func TestRegistryGone(t *testing.T) {
	for name, cut := range map[string]func(t *testing.T, s *site){
		"refused": func(t *testing.T, s *site) { t.Helper(); s.gone(t) },
		"wrong certificate": func(t *testing.T, s *site) {
			t.Helper()
			s.at("registry.test:443", s.hosts["files.test:443"])
			s.raw(t, "registry.test:80").Close()
		},
		"503": func(t *testing.T, s *site) {
			t.Helper()
			s.origin(t, "registry.test", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
		},
		"429": func(t *testing.T, s *site) {
			t.Helper()
			s.origin(t, "registry.test", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, scheme := range []string{"http", "https"} {
				s := newSite(t)
				c := s.client(t)
				base := scheme + "://registry.test"
				cut(t, s)
				for _, url := range []string{base + "/v2/", base + "/v2"} {
					got := do(t, c, request(t, "GET", url, ""))
					if got.StatusCode != 200 || got.body != "{}" || got.Header.Get("Docker-Distribution-Api-Version") != "registry/2.0" || got.Header.Get("Www-Authenticate") != "" {
						t.Errorf("%s: got %d %v %q", url, got.StatusCode, got.Header, got.body)
					}
				}
				for _, path := range []string{"/v2/a/manifests/v1", "/v2/a/manifests/" + someDigest, "/v2/a/blobs/" + someDigest} {
					for _, method := range []string{"HEAD", "GET"} {
						if got := do(t, c, request(t, method, base+path, "")); got.StatusCode != 200 || got.Header.Get("X-From") != "node" {
							t.Errorf("%s %s: got %d %v", method, path, got.StatusCode, got.Header)
						}
					}
				}
				if got := do(t, c, request(t, "POST", base+"/v2/a/blobs/uploads/", "")); got.StatusCode < 400 {
					t.Errorf("push: got %d", got.StatusCode)
				}
				if n := strings.Count(s.log.text(), "a registry cannot be asked"); n != 1 {
					t.Errorf("it was said %d times", n)
				}
			}
		})
	}
}

// One client's 429 made this node answer everybody's pings for ten seconds: others lost the registry's challenge, and with it
// their own credentials.
func TestOneClientsStatusIsNoOthers(t *testing.T) {
	for status, away := range map[int]map[string]bool{ // by what was answered so
		http.StatusTooManyRequests: {}, http.StatusInternalServerError: {}, http.StatusServiceUnavailable: {"/v2/": true}, http.StatusBadGateway: {"/v2/": true},
	} {
		for _, path := range []string{"/v2/", "/v2/a/blobs/" + someDigest} {
			s := newSite(t)
			s.origin(t, "registry.test", func(w http.ResponseWriter, r *http.Request) {
				if r.UserAgent() == "used-up" {
					w.WriteHeader(status)
					return
				}
				w.Header().Set("Www-Authenticate", `Bearer realm="https://auth.test/token"`)
				w.WriteHeader(http.StatusUnauthorized)
			})
			mallory, alice := s.client(t), s.client(t)
			for range 2 {
				if got := do(t, mallory, request(t, "HEAD", "https://registry.test"+path, "", "User-Agent", "used-up")); got.StatusCode != 200 {
					t.Errorf("%s, %d: who got it is answered %d by this node", path, status, got.StatusCode)
				}
			}
			login := request(t, "GET", "https://registry.test/v2/", "", "User-Agent", "used-up", "Authorization", "Basic YTpi")
			if got := do(t, mallory, login); got.StatusCode != status {
				t.Errorf("%s, %d: credentials are called good with %d", path, status, got.StatusCode)
			}
			want := 401
			if away[path] {
				want = 200
			}
			if got := do(t, alice, request(t, "GET", "https://registry.test/v2/", "")); got.StatusCode != want {
				t.Errorf("%s, %d: another client's ping is answered %d, want %d", path, status, got.StatusCode, want)
			}
		}
	}
}

// roundTripper is a Transport in a test's own time.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func respond(status int) *http.Response {
	return &http.Response{StatusCode: status, Header: make(http.Header), Body: http.NoBody, Request: nil}
}

// A registry that does not answer costs a pull three seconds, once in ten.
func TestRegistrySilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked int
		answers := false
		p := New(Config{
			Registry: http.HandlerFunc(fromNode), IsRegistry: func(_, _ string) bool { return true }, Ports: func(string, uint16) bool { return false },
			Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
				asked++
				if answers {
					resp := respond(http.StatusUnauthorized)
					resp.Request = r
					return resp, nil
				}
				<-r.Context().Done()
				return nil, r.Context().Err()
			}),
		})
		get := func(method, path string, wantTime time.Duration, wantStatus, wantAsked int) {
			t.Helper()
			r := newRequest(t, method, "http://registry.test"+path)
			w := newRecorder()
			start := time.Now()
			p.ServeHTTP(w, r)
			if d := time.Since(start); d != wantTime || w.Code != wantStatus || asked != wantAsked {
				t.Errorf("%s %s: status %d after %v, asked %d times; want %d, %v, %d", method, path, w.Code, d, asked, wantStatus, wantTime, wantAsked)
			}
		}
		get("GET", "/v2/", pingTime, 200, 1)
		get("GET", "/v2/", 0, 200, 1)
		get("HEAD", "/v2/a/blobs/"+someDigest, 0, 200, 1)
		time.Sleep(awayTime)
		get("HEAD", "/v2/a/blobs/"+someDigest, headTime, 200, 2)
		time.Sleep(awayTime)
		answers = true
		get("GET", "/v2/", 0, 401, 3)
		get("GET", "/v2/", 0, 401, 4)
		p.Shutdown(t.Context())
	})
}

// What this node's rules forbid is no registry out of reach.
func TestForbiddenPing(t *testing.T) {
	s := newSite(t, func(c *Config) { c.IsRegistry = func(_, _ string) bool { return true } })
	got := do(t, s.client(t), request(t, "GET", "https://elsewhere.test/v2/", ""))
	if got.StatusCode != 403 || !strings.Contains(got.body, "--allow-upstream") {
		t.Errorf("got %d %q", got.StatusCode, got.body)
	}
}

func TestAnswers(t *testing.T) {
	s := newSite(t)
	s.at("files.test:443", s.hosts["registry.test:443"]) // another's certificate
	for _, tt := range []struct {
		err    error
		status int
		text   string
	}{
		{fmt.Errorf("10.0.0.1 is private: %w", oci.ErrNotAllowed), 403, "--upstreams"},
		{context.DeadlineExceeded, 504, "in time"},
		{errSlow, 504, "in time"},
		{&net.OpError{Op: "dial", Err: errors.New("connection\nrefused")}, 502, "(dial: connection refused)"},
	} {
		if got := answerTo(origin{"https", "files.test", 443}, tt.err); got.status != tt.status || !strings.Contains(got.text, tt.text) || strings.Contains(got.text, "\n") {
			t.Errorf("%v: got %d %q", tt.err, got.status, got.text)
		}
	}
	// A wrong certificate is told to who pushes: the text of the failing request inside TLS.
	s.at("registry.test:443", s.hosts["files.test:80"])
	s.at("registry.test:8443", s.hosts["registry.test:80"])
	got := do(t, s.client(t), request(t, "POST", "https://registry.test/v2/a/blobs/uploads/", ""))
	if got.StatusCode != 502 {
		t.Errorf("got %d %q", got.StatusCode, got.body)
	}
}

// A wrong certificate of a registry is said to be that.
func TestWrongCertificate(t *testing.T) {
	s := newSite(t)
	s.at("registry.test:443", s.hosts["files.test:443"])
	got := do(t, s.client(t), request(t, "POST", "https://registry.test/v2/a/blobs/uploads/", ""))
	if got.StatusCode != 502 || !strings.Contains(got.body, "does not trust the certificate of registry.test:443") || !strings.Contains(got.body, "--upstreams") {
		t.Errorf("got %d %q", got.StatusCode, got.body)
	}
}

// The registry handler's abort of content that is wrong reaches the client as one.
func TestHandlerAborts(t *testing.T) {
	s := newSite(t, func(c *Config) {
		c.Registry = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte("some"))
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		})
	})
	for _, base := range []string{"http://registry.test", "https://registry.test"} {
		resp, err := s.client(t).Do(request(t, "GET", base+"/v2/a/blobs/"+someDigest, ""))
		if err != nil {
			continue
		}
		if b, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("%s: %q came to a clean end", base, b)
		}
		resp.Body.Close()
	}
	s.Shutdown(t.Context())
}

// Files still go to the kernel where there is no TLS, and deadlines can be set.
func TestResponseKeepsItsAbilities(t *testing.T) {
	s := newSite(t, func(c *Config) {
		c.Registry = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, from := w.(io.ReaderFrom)
			ctl := http.NewResponseController(w)
			err := errors.Join(ctl.SetWriteDeadline(time.Now().Add(time.Minute)), ctl.SetReadDeadline(time.Time{}), ctl.Flush())
			fmt.Fprint(w, from, err)
		})
	})
	for _, base := range []string{"http://registry.test", "https://registry.test"} {
		if got := do(t, s.client(t), request(t, "GET", base+"/v2/a/manifests/v1", "")); got.body != "true <nil>" {
			t.Errorf("%s: got %q", base, got.body)
		}
	}
}
