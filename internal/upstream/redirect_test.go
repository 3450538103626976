package upstream

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"pier/e2e/faultproxy"
	"pier/internal/oci"
)

// Redirects to CDNs: credentials stay, the range goes along, and signatures are in no error.
func TestRedirect(t *testing.T) {
	s := newSite(t)
	s.registry.user, s.registry.secret = "alice", "s3cret"
	var seen []http.Header
	var mu sync.Mutex
	fail := false
	cdn := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r.Header.Clone())
		if fail {
			panic(http.ErrAbortHandler)
		}
		(&registry{Memory: s.registry.Memory, name: s.registry.name}).ServeHTTP(w, r)
	}))
	cdn.Config.ErrorLog = quiet()
	defer cdn.Close()
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, _, _ := r.BasicAuth(); user != "alice" {
			s.registry.ServeHTTP(w, r) // challenges
			return
		}
		http.Redirect(w, r, cdn.URL+r.URL.Path+"?signature=topsecret", http.StatusTemporaryRedirect)
	}))
	defer front.Close()
	ref := s.blob
	ref.Registry = hostOf(front.URL)
	r := newRegistries(t, Config{Upstreams: []Upstream{{Name: ref.Registry, Scheme: "http", Auth: Auth{User: "alice", Password: "s3cret"}}}})
	for _, ctx := range []context.Context{t.Context(), oci.WithAuthorization(t.Context(), basic("alice", "s3cret"))} {
		b, desc, err := read(ctx, r, ref, 1000, 50)
		if err != nil || !bytes.Equal(b, s.layer[1000:1050]) || desc.Source != ref.Registry {
			t.Errorf("got %d bytes from %s, error %v", len(b), desc.Source, err)
		}
	}
	for _, h := range seen {
		if h.Get("Authorization") != "" || h.Get("Referer") != "" {
			t.Errorf("the CDN, on another port, was sent Authorization %q, Referer %q", h.Get("Authorization"), h.Get("Referer"))
		}
		if h.Get("Range") != "bytes=1000-1049" || h.Get("Accept-Encoding") != "identity" {
			t.Errorf("the CDN was sent Range %q, Accept-Encoding %q", h.Get("Range"), h.Get("Accept-Encoding"))
		}
	}
	mu.Lock()
	fail = true
	mu.Unlock()
	_, _, err := read(t.Context(), r, ref, 0, -1)
	wantErr(t, "CDN fails", err, oci.ErrUnavailable)
	for _, secret := range []string{"topsecret", "s3cret", "signature"} {
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("the error tells %q: %v", secret, err)
		}
	}
}

// A store that a registry redirects to may refuse for reasons of its own: an address that ran out, or that was signed for
// another method. That says nothing of the content, and nothing of the registry.
func TestRedirectedStoreRefuses(t *testing.T) {
	s := newSite(t)
	var refused atomic.Int64
	status, times := http.StatusForbidden, int64(1)
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead || refused.Load() < times {
			if r.Method == http.MethodGet {
				refused.Add(1)
			}
			w.Header().Set("Retry-After", "900")
			http.Error(w, "signature", status)
			return
		}
		r.URL.Path = strings.TrimPrefix(r.URL.Path, "/store")
		(&registry{Memory: s.registry.Memory, name: s.registry.name}).ServeHTTP(w, r)
	}))
	defer store.Close()
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, store.URL+"/store"+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	defer front.Close()
	ref := s.blob
	ref.Registry = hostOf(front.URL)
	r := newRegistries(t, Config{Upstreams: []Upstream{{Name: ref.Registry, Scheme: "http"}}})
	for _, status = range []int{403, 404, 401, 503} {
		refused.Store(0)
		if b, _, err := read(t.Context(), r, ref, 0, -1); err != nil || !bytes.Equal(b, s.layer) {
			t.Errorf("status %d, once: got %d bytes, error %v", status, len(b), err)
		}
	}
	if desc, err := r.Resolve(t.Context(), ref); err != nil || desc.Size != int64(len(s.layer)) {
		t.Errorf("HEAD refused: got %+v, %v", desc, err)
	}
	times = 1 << 30
	_, _, err := read(t.Context(), r, ref, 0, -1)
	wantErr(t, "refused for ever", err, oci.ErrUnavailable)
}

// A registry may have another one answer in its place. What that says is an answer.
func TestRedirectToAnotherRegistry(t *testing.T) {
	s := newSite(t)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+s.Host()+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	defer front.Close()
	name := hostOf(front.URL)
	r := newRegistries(t, Config{Upstreams: []Upstream{{Name: name, Scheme: "http"}}})
	_, err := r.Resolve(t.Context(), oci.Reference{Registry: name, Repository: "no/such", Tag: "v1"})
	wantErr(t, "unknown tag", err, oci.ErrNotFound)
}

// A mirror is told through whom a request came, so that nodes that are each other's mirrors do not go round.
func TestVia(t *testing.T) {
	mirror, origin := newSite(t), newSite(t)
	entry := origin.entry()
	entry.Mirrors = []string{mirror.Host()}
	mirror.Set(faultproxy.Rule{Fault: faultproxy.Status(404)})
	r := newRegistries(t, Config{Upstreams: []Upstream{entry, mirror.entry()}, Name: "pier-2"})
	if _, err := r.Resolve(oci.WithVia(t.Context(), "1.1 pier-1"), origin.tag); err != nil {
		t.Fatal(err)
	}
	if got := mirror.Requests()[0].Header.Get("Via"); got != "1.1 pier-1, 1.1 pier-2" {
		t.Errorf("the mirror was sent Via %q", got)
	}
	if got := origin.Requests()[0].Header.Get("Via"); got != "" {
		t.Errorf("the registry was sent Via %q", got)
	}
}

func TestRedirectLoop(t *testing.T) {
	p := faultproxy.New(faultproxy.Config{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, r.URL.Path, http.StatusFound)
	})}).Start(t)
	r := newRegistries(t, Config{Upstreams: []Upstream{{Name: p.Host(), Scheme: "http"}}})
	_, err := r.Resolve(t.Context(), oci.Reference{Registry: p.Host(), Repository: "a", Tag: "b"})
	wantErr(t, "loop", err, oci.ErrUnavailable)
	if n := p.Count("", ""); n != maxRedirects {
		t.Errorf("asked %d times, want %d", n, maxRedirects)
	}
}
