package upstream

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"pier/e2e/faultproxy"
	"pier/internal/oci"
)

// No credentials that a client can make up may look as if the registry could not be asked: others' last known answers would
// be given for them.
func TestClientCredentialsRefused(t *testing.T) {
	for name, header := range map[string]string{
		"no password": basic("mallory", ""), "no user": basic("", "x"), "neither": basic("", ""), "nothing": "Basic", "no value": "Basic ",
		"no colon": "Basic bWFsbG9yeQ==", "no base64": "Basic !", "no padding": "basic bTp4eA", "tab": "Basic\tbTp4", "wrong": basic("mallory", "x"),
		"unknown scheme": "Negotiate x", "no scheme": "x", "bearer": "Bearer x", "bearer alone": "Bearer", "line": "Bearer a\nb",
		"long": "Bearer " + strings.Repeat("x", 20<<10), "longer": "Bearer " + strings.Repeat("x", 1<<20),
	} {
		for _, scheme := range []string{"basic", "bearer"} {
			t.Run(scheme+" "+name, func(t *testing.T) {
				s := newSite(t)
				s.registry.user, s.registry.secret = "alice", "s3cret"
				if scheme == "bearer" {
					server := httptest.NewServer(&tokenServer{user: "alice", secret: "s3cret"})
					defer server.Close()
					s.registry.realm = server.URL
				}
				r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})
				ctx := oci.WithAuthorization(t.Context(), header)
				_, err := r.Resolve(ctx, s.tag)
				wantErr(t, "Resolve", err, oci.ErrUnauthorized)
				_, err = r.Tags(ctx, s.Host(), "team/app")
				wantErr(t, "Tags", err, oci.ErrUnauthorized)
			})
		}
	}
}

// Some servers close the connection on a header that is too long for them, which looks as if they were not there.
func TestClientCredentialsLong(t *testing.T) {
	s := newSite(t)
	s.Set(faultproxy.Rule{Fault: faultproxy.Drop()})
	r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})
	_, err := r.Resolve(oci.WithAuthorization(t.Context(), "Bearer "+strings.Repeat("x", maxAuthorization)), s.tag)
	wantErr(t, "Resolve", err, oci.ErrUnauthorized)
}

// Half a pair of credentials is none, and what needs none is had.
func TestClientCredentialsIncomplete(t *testing.T) {
	s := newSite(t)
	r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})
	if _, err := r.Resolve(oci.WithAuthorization(t.Context(), basic("alice", "")), s.tag); err != nil {
		t.Errorf("public content: %v", err)
	}
}

// The same of what a registry or its token server answers to them.
func TestClientStatus(t *testing.T) {
	type classes map[int]error
	client := classes{
		401: oci.ErrUnauthorized, 403: oci.ErrDenied, 404: oci.ErrNotFound, 408: oci.ErrUnavailable, 410: oci.ErrNotFound,
		429: oci.ErrRateLimited, 451: oci.ErrDenied, 500: oci.ErrUnavailable, 501: oci.ErrUnavailable, 503: oci.ErrUnavailable,
	}
	own := maps.Clone(client)
	for _, status := range []int{400, 402, 405, 406, 407, 409, 411, 413, 414, 415, 417, 418, 421, 422, 425, 426, 428, 431, 499} {
		client[status], own[status] = oci.ErrUnauthorized, oci.ErrUnsupported
	}
	clientToken, ownToken := maps.Clone(client), maps.Clone(client)
	clientToken[404], clientToken[410] = oci.ErrUnauthorized, oci.ErrUnauthorized
	ownToken[404], ownToken[410] = oci.ErrUnavailable, oci.ErrUnavailable
	s := newSite(t)
	tokens := &tokenServer{}
	server := httptest.NewServer(tokens)
	defer server.Close()
	r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})
	for _, c := range []struct {
		name   string
		header string
		realm  string
		want   classes
	}{
		{"registry, the client's own", "Bearer x", "", client}, {"registry, the client's basic", basic("mallory", "x"), "", client},
		{"registry, the node's own", "", "", own},
		{"token server, the client's", basic("mallory", "x"), server.URL, clientToken}, {"token server, the node's own", "", server.URL, ownToken},
	} {
		s.registry.realm = c.realm
		for status, want := range c.want {
			if tokens.status.Store(int64(status)); c.realm == "" {
				s.Set(faultproxy.Rule{Fault: faultproxy.Status(status)})
			} else {
				s.Clear()
			}
			_, err := r.Resolve(oci.WithAuthorization(t.Context(), c.header), s.tag)
			wantErr(t, fmt.Sprintf("%s: status %d", c.name, status), err, want)
		}
	}
}

// A token server may say no by saying nothing.
func TestClientNoToken(t *testing.T) {
	for _, body := range []string{"", "{}", `{"token":""}`, "<html>", `{"token":1}`} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) }))
		defer server.Close()
		s := newSite(t)
		s.registry.realm = server.URL
		r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})
		_, err := r.Resolve(oci.WithAuthorization(t.Context(), basic("mallory", "x")), s.tag)
		wantErr(t, fmt.Sprintf("client, token server says %q", body), err, oci.ErrUnauthorized)
		_, err = r.Resolve(t.Context(), s.tag)
		wantErr(t, fmt.Sprintf("node, token server says %q", body), err, oci.ErrUnavailable)
	}
	s := newSite(t)
	server := httptest.NewServer(http.NotFoundHandler())
	server.Close() // nobody is there now
	s.registry.realm = server.URL
	r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})
	_, err := r.Resolve(oci.WithAuthorization(t.Context(), basic("alice", "s3cret")), s.tag)
	wantErr(t, "no token server", err, oci.ErrUnavailable)
}
