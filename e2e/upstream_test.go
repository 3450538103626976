//go:build e2e

package e2e

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"pier/e2e/faultproxy"
)

// authorizationOf is the value of a Basic Authorization header.
func authorizationOf(name, pass string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+pass))
}

// upstreamCase is one way to reach a registry.
type upstreamCase struct {
	name       string
	registry   registryConfig
	repository string   // default app
	entry      string   // YAML below the name of the registry's entry
	more       string   // further entries of the upstreams file
	env        []string // of pier
	header     string   // Authorization of pier's client
	refused    bool     // the pull must not work
}

func TestUpstreamsOfEveryKindArePulledFrom(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	other := newAuthority(t)
	clientPair := ca.issue(t, "client.test")
	passwordFile := filepath.Join(t.TempDir(), "password")
	writeFile(t, passwordFile, password+"\n")
	tokens := startTokenServer(t, ca, nil)

	tls := registryConfig{ca: ca}
	mutual := registryConfig{ca: ca, clientCerts: true}
	basic := registryConfig{ca: ca, basic: true}
	token := registryConfig{ca: ca, token: tokens}
	trust := "  tls: {ca: " + ca.file + "}\n"
	login := "  auth: {user: " + user + ", password: " + password + "}\n"
	realm := fmt.Sprintf("- name: %s\n%s", tokens.addr, trust)

	for _, c := range []upstreamCase{
		{name: "plain HTTP", entry: "  scheme: http\n  description: a registry of the lab\n"},
		{name: "TLS with its own CA", registry: tls, entry: trust},
		{name: "TLS unverified", registry: tls, entry: "  tls: {insecure_skip_verify: true}\n"},
		{name: "TLS with an unknown CA", registry: tls, refused: true},
		{name: "TLS with another CA", registry: tls, entry: "  tls: {ca: " + other.file + "}\n", refused: true},
		{
			name: "mutual TLS", registry: mutual,
			entry: fmt.Sprintf("  tls: {ca: %s, cert: %s, key: %s}\n", ca.file, clientPair.cert, clientPair.key),
		},
		{name: "mutual TLS without a certificate", registry: mutual, entry: trust, refused: true},
		{name: "password", registry: basic, entry: trust + login},
		{
			name: "password in a file", registry: basic,
			entry: trust + fmt.Sprintf("  auth: {user: %s, passwordFile: %s}\n", user, passwordFile),
		},
		{
			name: "password in the environment", registry: basic, env: []string{"E2E_PASSWORD=" + password},
			entry: trust + "  auth: {user: " + user + ", passwordFromEnv: E2E_PASSWORD}\n",
		},
		{
			name: "wrong password", registry: basic, refused: true,
			entry: trust + "  auth: {user: " + user + ", password: wrong-horse}\n",
		},
		{name: "no password", registry: basic, entry: trust, refused: true},
		{name: "the client's own password", registry: basic, entry: trust, header: authorizationOf(user, password)},
		{name: "the client's own wrong password", registry: basic, entry: trust, header: authorizationOf(user, "x"), refused: true},
		{name: "token for anybody", registry: token, entry: trust, more: realm},
		{name: "token for nobody", registry: token, repository: "private/app", entry: trust, more: realm, refused: true},
		{name: "token for a password", registry: token, repository: "private/app", entry: trust + login, more: realm},
		{
			name: "token for the client's own password", registry: token, repository: "private/app", entry: trust,
			more: realm, header: authorizationOf(user, password),
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t)
		})
	}
}

func (c upstreamCase) test(t *testing.T) {
	registry := startRegistry(t, c.registry)
	if c.repository == "" {
		c.repository = "app"
	}
	want := newImage(t, 300<<10, 2000)
	registry.put(t, c.repository, "v1", want)
	p := startPier(t, pierConfig{env: c.env, upstreams: fmt.Sprintf("- name: %s\n%s%s", registry.addr, c.entry, c.more)})

	door := newClient(p.node, registry.addr)
	if c.header != "" {
		door.header.Set("Authorization", c.header)
	}
	err := door.pull(t.Context(), c.repository, "v1", want)
	switch {
	case c.refused && err == nil:
		t.Error("the pull worked")
	case !c.refused && err != nil:
		t.Error(err)
	}
	if log := p.log.String(); strings.Contains(log, password) || c.header != "" && strings.Contains(log, c.header[6:]) {
		t.Errorf("the log holds a password")
	}
}

func TestCredentialsComeFromDockersConfig(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{ca: newAuthority(t), basic: true})
	want := newImage(t, 1000)
	registry.put(t, "app", "v1", want)
	upstreams := fmt.Sprintf("- name: %s\n  tls: {insecure_skip_verify: true}\n", registry.addr)

	t.Run("auths", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, "config.json"), fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`,
			registry.addr, authorizationOf(user, password)[len("Basic "):]))
		p := startPier(t, pierConfig{upstreams: upstreams, env: []string{"DOCKER_CONFIG=" + dir}})
		newClient(p.node, registry.addr).mustPull(t, "app", "v1", want)
	})
	for _, key := range []string{"credHelpers", "credsStore"} {
		t.Run(key, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			value := `"e2e"`
			if key == "credHelpers" {
				value = fmt.Sprintf(`{%q:"e2e"}`, registry.addr)
			}
			writeFile(t, filepath.Join(dir, "config.json"), fmt.Sprintf(`{%q:%s}`, key, value))
			program := filepath.Join(dir, "docker-credential-e2e")
			writeFile(t, program, fmt.Sprintf(`#!/bin/sh
read -r server
[ "$1 $server" = "get %s" ] || { echo 'credentials not found in native keychain'; exit 1; }
echo '{"ServerURL":"%[1]s","Username":"%s","Secret":"%s"}'
`, registry.addr, user, password))
			if err := os.Chmod(program, 0o700); err != nil {
				t.Fatal(err)
			}
			p := startPier(t, pierConfig{
				upstreams: upstreams, env: []string{"DOCKER_CONFIG=" + dir, "PATH=" + dir + ":" + os.Getenv("PATH")},
			})
			newClient(p.node, registry.addr).mustPull(t, "app", "v1", want)
		})
	}
}

func TestRotatedPasswordFileTakesEffect(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{basic: true})
	want := newImage(t, 1000)
	registry.put(t, "app", "v1", want)
	file := filepath.Join(t.TempDir(), "password")
	writeFile(t, file, "of-yesterday")
	p := startPier(t, pierConfig{
		upstreams: plainUpstream(registry.addr) + fmt.Sprintf("  auth: {user: %s, passwordFile: %s}\n", user, file),
	})
	door := newClient(p.node, registry.addr)
	if err := door.pull(t.Context(), "app", "v1", want); err == nil {
		t.Fatal("the pull worked with a wrong password")
	}
	writeFile(t, file, password)
	eventually(t, soon, func() error { return door.pull(t.Context(), "app", "v1", want) })
}

// A registry may hand its blobs out from another host, which must not see the registry's credentials.
func TestRedirectOfABlobIsFollowedWithoutCredentials(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	want := newImage(t, 1<<20)
	registry.put(t, "app", "v1", want)
	cdn := startFront(t, registry.addr, 0)
	cdnHost := strings.Replace(cdn.Host(), "127.0.0.1", "localhost", 1)

	origin := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry.addr})
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, pass, _ := r.BasicAuth()
		switch {
		case name != user || pass != password:
			w.Header().Set("WWW-Authenticate", `Basic realm="e2e"`)
			w.WriteHeader(http.StatusUnauthorized)
		case strings.Contains(r.URL.Path, "/blobs/"):
			http.Redirect(w, r, "http://"+cdnHost+r.URL.Path, http.StatusTemporaryRedirect)
		default:
			origin.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(front.Close)
	host := front.Listener.Addr().String()
	p := startPier(t, pierConfig{
		upstreams: fmt.Sprintf("%s  auth: {user: %s, password: %s}\n%s", plainUpstream(host), user, password, plainUpstream(cdnHost)),
	})
	newClient(p.node, host).mustPull(t, "app", "v1", want)
	requests := asked(cdn, http.MethodGet, "/blobs/")
	if len(requests) == 0 {
		t.Error("no blob came from where the registry pointed")
	}
	for _, r := range requests {
		if r.Header.Get("Authorization") != "" {
			t.Errorf("%s was sent the registry's credentials", r.Path)
		}
	}
}

func TestMirrorsAreTriedInOrder(t *testing.T) {
	t.Parallel()
	first, second := startRegistry(t, registryConfig{}), startRegistry(t, registryConfig{})
	want := newImage(t, 1<<20)
	second.put(t, "app", "v1", want)
	dead := freeAddr(t)
	one, two := startFront(t, first.addr, 0), startFront(t, second.addr, 0)
	p := startPier(t, pierConfig{upstreams: fmt.Sprintf("- name: registry.test\n  mirrors: [%q, %q, %q]\n", dead, one.Host(), two.Host()) +
		plainUpstream(dead) + plainUpstream(one.Host()) + plainUpstream(two.Host())})
	newClient(p.node, "registry.test").mustPull(t, "app", "v1", want)
	if len(asked(one, http.MethodHead, "/manifests/"))+len(asked(one, http.MethodGet, "/manifests/")) == 0 {
		t.Error("the first mirror that answers was not asked")
	}
	if len(asked(two, http.MethodGet, "/blobs/")) == 0 {
		t.Error("no blob came from the mirror that has it")
	}
}

// A client's credentials are for the registry it names, and for nobody who stands in for it.
func TestClientsCredentialsDoNotReachMirrors(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{basic: true})
	want := newImage(t, 1000)
	registry.put(t, "app", "v1", want)
	mirror, origin := startFront(t, registry.push, 0), startFront(t, registry.addr, 0)
	mirror.Set(faultproxy.Rule{Path: faultproxy.Of(faultproxy.Blob), Fault: faultproxy.Status(http.StatusNotFound)})
	p := startPier(t, pierConfig{
		upstreams: fmt.Sprintf("%s  mirrors: [%q]\n", plainUpstream(origin.Host()), mirror.Host()) + plainUpstream(mirror.Host()),
	})
	door := newClient(p.node, origin.Host())
	door.header.Set("Authorization", authorizationOf(user, password))
	door.mustPull(t, "app", "v1", want)
	if len(asked(mirror, http.MethodGet, "")) == 0 {
		t.Error("the mirror was not asked")
	}
	for _, r := range mirror.Requests() {
		if r.Header.Get("Authorization") != "" {
			t.Errorf("the mirror was sent the client's credentials with %s %s", r.Method, r.Path)
		}
	}
	seen := false
	for _, r := range origin.Requests() {
		seen = seen || r.Header.Get("Authorization") == authorizationOf(user, password)
	}
	if !seen {
		t.Error("the registry was not sent the client's credentials")
	}
}

func TestUpstreamIsAskedOverHTTP2(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	want := newImage(t, 1<<20, 1000, 1000)
	registry.put(t, "app", "v1", want)
	origin := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry.addr})
	var older atomic.Int64
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor < 2 {
			older.Add(1)
		}
		origin.ServeHTTP(w, r)
	}))
	front.EnableHTTP2 = true
	front.StartTLS()
	t.Cleanup(front.Close)
	host := front.Listener.Addr().String()
	p := startPier(t, pierConfig{upstreams: fmt.Sprintf("- name: %s\n  tls: {insecure_skip_verify: true}\n", host)})
	newClient(p.node, host).mustPull(t, "app", "v1", want)
	if n := older.Load(); n > 0 {
		t.Errorf("%d requests came over HTTP/1", n)
	}
}
