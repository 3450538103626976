package upstream

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"

	"pier/internal/oci"
)

// A tokenServer gives the token "good" to whoever may have it, by GET and by the OAuth2 POST.
type tokenServer struct {
	user, secret string // "": anybody
	refresh      string // an identity token that does as well
	asked        atomic.Int64
	sawSecret    atomic.Bool
	wait         chan struct{} // answers come after it is closed, if it is there
	status       atomic.Int64  // what all get, if not 0
}

func (s *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.asked.Add(1)
	user, secret, ok := r.BasicAuth()
	s.sawSecret.Store(s.sawSecret.Load() || ok)
	if s.wait != nil {
		select {
		case <-s.wait:
		case <-r.Context().Done():
			return
		}
	}
	switch status := int(s.status.Load()); {
	case status != 0:
		w.WriteHeader(status)
	case s.refresh != "" && r.FormValue("refresh_token") == s.refresh, user == s.user && secret == s.secret:
		fmt.Fprint(w, `{"token":"good","access_token":"good"}`)
	default:
		w.WriteHeader(http.StatusUnauthorized)
	}
}

func basic(user, secret string) string {
	r := http.Request{Header: http.Header{}}
	r.SetBasicAuth(user, secret)
	return r.Header.Get("Authorization")
}

func TestCredentials(t *testing.T) {
	secretFile := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secretFile, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("UPSTREAM_SECRET", "s3cret")
	for name, c := range map[string]struct {
		auth   Auth
		client string // Authorization of the client
		want   error
	}{
		"none":                 {want: oci.ErrUnauthorized},
		"password":             {auth: Auth{User: "alice", Password: "s3cret"}},
		"environment":          {auth: Auth{User: "alice", PasswordFromEnv: "UPSTREAM_SECRET"}},
		"file":                 {auth: Auth{User: "alice", PasswordFile: secretFile}},
		"wrong":                {auth: Auth{User: "alice", Password: "other"}, want: oci.ErrUnauthorized},
		"client":               {client: basic("alice", "s3cret")},
		"client, wrong":        {auth: Auth{User: "alice", Password: "s3cret"}, client: basic("alice", "x"), want: oci.ErrUnauthorized},
		"client, malformed":    {client: "Basic !", want: oci.ErrUnauthorized},
		"client, other scheme": {client: "Negotiate x", want: oci.ErrUnauthorized},
	} {
		for _, scheme := range []string{"basic", "bearer"} {
			t.Run(scheme+" "+name, func(t *testing.T) {
				s := newSite(t)
				s.registry.user, s.registry.secret = "alice", "s3cret"
				if scheme == "bearer" {
					server := httptest.NewServer(&tokenServer{user: "alice", secret: "s3cret"})
					defer server.Close()
					s.registry.realm = server.URL + "/token"
				}
				entry := s.entry()
				entry.Auth = c.auth
				r := newRegistries(t, Config{Upstreams: []Upstream{entry}})
				ctx := oci.WithAuthorization(t.Context(), c.client)
				b, _, err := read(ctx, r, s.blob, 0, -1)
				wantErr(t, "Open", err, c.want)
				if c.want == nil && !bytes.Equal(b, s.layer) {
					t.Errorf("got %d bytes", len(b))
				}
				_, err = r.Resolve(ctx, s.tag)
				wantErr(t, "Resolve", err, c.want)
			})
		}
	}
}

// Tokens are fetched once for those who need the same one at once, and kept for the next.
func TestTokenShared(t *testing.T) {
	s := newSite(t)
	tokens := &tokenServer{wait: make(chan struct{})}
	server := httptest.NewServer(tokens)
	defer server.Close()
	s.registry.realm = server.URL
	r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})

	// The first to ask leaves while the token is on its way; that must not fail the others.
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := r.Resolve(ctx, s.tag)
		wantErr(t, "the one who left", err, context.Canceled)
	})
	for tokens.asked.Load() == 0 {
		time.Sleep(time.Millisecond) // a real server is to be reached
	}
	for range 8 {
		wg.Go(func() {
			if _, err := r.Resolve(t.Context(), s.tag); err != nil {
				t.Error(err)
			}
		})
	}
	for s.Count("HEAD", "") < 9 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	close(tokens.wait)
	wg.Wait()
	if _, err := r.Resolve(t.Context(), s.tag); err != nil {
		t.Error(err)
	}
	if n := tokens.asked.Load(); n > 2 {
		t.Errorf("%d tokens were fetched", n)
	}
}

func TestTokenServerFaults(t *testing.T) {
	for status, want := range map[int]error{500: oci.ErrUnavailable, 429: oci.ErrRateLimited, 403: oci.ErrDenied, 401: oci.ErrUnauthorized, 404: oci.ErrUnavailable} {
		s := newSite(t)
		tokens := &tokenServer{}
		tokens.status.Store(int64(status))
		server := httptest.NewServer(tokens)
		defer server.Close()
		s.registry.realm = server.URL
		r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})
		_, err := r.Resolve(t.Context(), s.tag)
		wantErr(t, fmt.Sprint("token server answers ", status), err, want)
	}
}

// A bearer token of the client is sent as it is, and only to the registry that its request names.
func TestClientBearer(t *testing.T) {
	s, other := newSite(t), newSite(t)
	server := httptest.NewServer(&tokenServer{user: "alice", secret: "s3cret"})
	defer server.Close()
	s.registry.realm = server.URL
	r := newRegistries(t, Config{Upstreams: []Upstream{s.entry(), other.entry()}})
	ctx := oci.WithAuthorization(t.Context(), "Bearer good")
	if _, _, err := read(ctx, r, s.blob, 0, -1); err != nil {
		t.Error(err)
	}
	_, _, err := read(t.Context(), r, s.blob, 0, -1)
	wantErr(t, "another client, after one with credentials", err, oci.ErrUnauthorized)
	if _, _, err := read(t.Context(), r, other.blob, 0, -1); err != nil {
		t.Error(err)
	}
	if got := other.Requests()[0].Header.Get("Authorization"); got != "" {
		t.Errorf("another registry was sent %q", got)
	}
}

// What one client may see, another must not see by the token fetched for the first.
func TestClientsTokensApart(t *testing.T) {
	s := newSite(t)
	tokens := &tokenServer{user: "alice", secret: "s3cret"}
	server := httptest.NewServer(tokens)
	defer server.Close()
	s.registry.realm = server.URL
	r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})
	alice := oci.WithAuthorization(t.Context(), basic("alice", "s3cret"))
	for range 2 {
		if _, err := r.Resolve(alice, s.tag); err != nil {
			t.Error(err)
		}
	}
	if n := tokens.asked.Load(); n != 1 {
		t.Errorf("alice's token was fetched %d times", n)
	}
	for name, ctx := range map[string]context.Context{"nobody": t.Context(), "bob": oci.WithAuthorization(t.Context(), basic("bob", "s3cret"))} {
		_, err := r.Resolve(ctx, s.tag)
		wantErr(t, name, err, oci.ErrUnauthorized)
	}
}

func TestClientsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClients(time.Second)
		for i := range 2 * maxClients {
			c.tokens(fmt.Sprint(i))
		}
		kept := func() int {
			c.mu.Lock()
			defer c.mu.Unlock()
			return len(c.byKey)
		}
		if kept() > maxClients {
			t.Errorf("%d clients are kept", kept())
		}
		last := c.tokens(fmt.Sprint(2*maxClients - 1))
		time.Sleep(tokenLife + time.Second)
		if c.tokens(fmt.Sprint(2*maxClients-1)) == last {
			t.Errorf("a client's tokens are used after %v", tokenLife)
		}
		c.expire() // with anybody's request
		if kept() != 1 {
			t.Errorf("%d clients are kept after %v", kept(), tokenLife)
		}
	})
}

// A client that came with ever new credentials left a timer for each, and what the timer held, for five minutes.
func TestClientsMemory(t *testing.T) {
	r := newRegistries(t, Config{})
	e, err := r.current.Load().endpoint("registry.test")
	if err != nil {
		t.Fatal(err)
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc >> 10
	}
	before := heap()
	const n = 20_000
	for i := range n {
		if _, err := r.accountFor(oci.WithAuthorization(t.Context(), basic(fmt.Sprint(i), "x")), e); err != nil {
			t.Fatal(err)
		}
	}
	if after := heap(); after > before+1024 {
		t.Errorf("%d KiB are held after %d clients", after-before, n)
	}
	runtime.KeepAlive(r)
}

// Half a pair of credentials, from Docker's configuration or an empty password file, is none.
func TestOwnCredentialsIncomplete(t *testing.T) {
	s := newSite(t)
	s.registry.user, s.registry.secret = "alice", "s3cret"
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	entry := s.entry()
	entry.Auth = Auth{User: "alice", PasswordFile: empty}
	r := newRegistries(t, Config{Upstreams: []Upstream{entry}})
	_, err := r.Resolve(t.Context(), s.tag)
	wantErr(t, "Resolve", err, oci.ErrUnauthorized)
}

func TestTokensForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTokens(time.Second)
		fetch := func(context.Context) (string, error) { return "x", nil }
		for i := range 2 * maxTokens {
			if _, err := c.Set(t.Context(), "", auth.SchemeBearer, fmt.Sprint(i), fetch); err != nil {
				t.Fatal(err)
			}
		}
		if len(c.byScope) > maxTokens {
			t.Errorf("%d tokens are kept", len(c.byScope))
		}
		last := fmt.Sprint(2*maxTokens - 1)
		if tok, err := c.GetToken(t.Context(), "", auth.SchemeBearer, last); err != nil || tok != "x" {
			t.Errorf("got %q, error %v", tok, err)
		}
		time.Sleep(tokenLife + time.Second)
		if tok, err := c.GetToken(t.Context(), "", auth.SchemeBearer, last); err == nil {
			t.Errorf("%q is kept after %v", tok, tokenLife)
		}
	})
}

// Docker's configuration is read again when it changes, and names credential helpers.
func TestDockerConfig(t *testing.T) {
	s := newSite(t)
	s.registry.user, s.registry.secret = "alice", "s3cret"
	r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	write := func(format string, args ...any) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "config.json"), fmt.Appendf(nil, format, args...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	try := func(what string, want error) {
		t.Helper()
		_, err := r.Resolve(t.Context(), s.tag)
		wantErr(t, what, err, want)
	}
	try("no file", oci.ErrUnauthorized)
	write(`{"auths":{%q:{"auth":%q}}}`, s.Host(), strings.TrimPrefix(basic("alice", "s3cret"), "Basic "))
	try("logged in", nil)
	write(`{broken`)
	s.registry.secret = "changed"
	try("broken file", oci.ErrUnauthorized)

	bin := t.TempDir()
	script := "#!/bin/sh\nread server\necho '{\"ServerURL\":\"'$server'\",\"Username\":\"alice\",\"Secret\":\"changed\"}'\n"
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-test"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	write(`{"credHelpers":{%q:"test"}}`, s.Host())
	try("credential helper", nil)

	s.registry.secret, s.registry.user = "", ""
	fresh := mustNew(t, Config{Upstreams: []Upstream{s.entry()}})
	write(`{"credsStore":"that-is-not-there"}`)
	if _, err := fresh.Resolve(t.Context(), s.tag); err != nil {
		t.Errorf("public content with a credential helper that fails: %v", err)
	}
}

// The credentials of Docker Hub have a key of their own.
func TestDockerHubKey(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	config := fmt.Sprintf(`{"auths":{"https://index.docker.io/v1/":{"auth":%q}}}`, strings.TrimPrefix(basic("alice", "s3cret"), "Basic "))
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	r := mustNew(t, Config{})
	e, err := r.current.Load().endpoint("registry-1.docker.io")
	if err != nil || e.host != "registry-1.docker.io" || e.name != "docker.io" {
		t.Fatalf("got %+v, error %v", e, err)
	}
	cred, err := r.own(e).credential(t.Context(), e.host)
	if err != nil || cred.Username != "alice" || cred.Password != "s3cret" {
		t.Errorf("got user %q, error %v", cred.Username, err)
	}
}

// An identity token, as credential helpers of cloud registries give it, is exchanged by POST.
func TestIdentityToken(t *testing.T) {
	s := newSite(t)
	server := httptest.NewServer(&tokenServer{user: "x", refresh: "identity"})
	defer server.Close()
	s.registry.realm = server.URL
	r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})
	config := fmt.Sprintf(`{"auths":{%q:{"auth":"","identitytoken":"identity"}}}`, s.Host())
	if err := os.WriteFile(filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Resolve(t.Context(), s.tag); err != nil {
		t.Error(err)
	}
}

// A listed registry may have its token server on another private host; a password goes there only through TLS.
func TestRealmElsewhere(t *testing.T) {
	ca := newAuthority(t)
	tokens, plain := &tokenServer{user: "alice", secret: "s3cret"}, &tokenServer{user: "alice", secret: "s3cret"}
	realm := ca.serveTLS(t, "auth.test", tokens, nil)
	plainServer := httptest.NewServer(plain)
	defer plainServer.Close()
	s := newSite(t)
	name := ca.serveTLS(t, "registry.test", s.Proxy, nil)
	s.as(name)
	r := newRegistries(t, Config{resolver: localNames(t), Upstreams: []Upstream{
		{Name: name, TLS: TLS{CA: ca.file}, Auth: Auth{User: "alice", Password: "s3cret"}},
	}})
	s.registry.realm = plainServer.URL
	_, err := r.Resolve(t.Context(), s.tag)
	wantErr(t, "realm without TLS", err, oci.ErrUnavailable)
	s.registry.rawChallenge = `Bearer realm="https://ok.test/",realm="https://` + name + "/#" + plainServer.URL + `"`
	_, err = r.Resolve(t.Context(), s.tag)
	wantErr(t, "second realm, in a fragment", err, oci.ErrUnavailable)
	s.registry.rawChallenge = ""
	if plain.asked.Load() != 0 {
		t.Error("a realm without TLS was asked on behalf of a registry with TLS")
	}
	s.registry.realm = "https://" + realm + "/token?account=a%20b"
	if _, err := r.Resolve(t.Context(), s.tag); err != nil {
		t.Errorf("realm on another private host: %v", err)
	}
	if tokens.asked.Load() != 1 || !tokens.sawSecret.Load() {
		t.Errorf("the realm was asked %d times", tokens.asked.Load())
	}
}

func TestTLS(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	_, _, cert, key := ca.issue(t, "client")
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	s := newSite(t)
	oneWay := ca.serveTLS(t, "registry.test", s.Proxy, nil)
	mutual := ca.serveTLS(t, "registry.test", s.Proxy, pool)
	for name, c := range map[string]struct {
		host string
		tls  TLS
		want error
	}{
		"own CA":                   {oneWay, TLS{CA: ca.file}, nil},
		"system's CAs":             {oneWay, TLS{}, oci.ErrUnavailable},
		"wrong CA":                 {oneWay, TLS{CA: other.file}, oci.ErrUnavailable},
		"insecure":                 {oneWay, TLS{InsecureSkipVerify: true}, nil},
		"mutual":                   {mutual, TLS{CA: ca.file, Cert: cert, Key: key}, nil},
		"mutual, no certificate":   {mutual, TLS{CA: ca.file}, oci.ErrUnavailable},
		"wrong name":               {strings.Replace(oneWay, "registry", "other", 1), TLS{CA: ca.file}, oci.ErrUnavailable},
		"the address is in it too": {strings.Replace(oneWay, "registry.test", "127.0.0.1", 1), TLS{CA: ca.file}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s.as(c.host)
			r := newRegistries(t, Config{Upstreams: []Upstream{{Name: c.host, TLS: c.tls}}, resolver: localNames(t)})
			_, err := r.Resolve(t.Context(), s.tag)
			wantErr(t, "Resolve", err, c.want)
		})
	}
}

func TestPlain(t *testing.T) {
	inner := &url.Error{Op: "Get", URL: "https://cdn.test/x?sig=1", Err: fmt.Errorf("refused")}
	for _, c := range []struct {
		err  error
		want string
	}{
		{inner, "refused"},
		{fmt.Errorf(`HEAD "https://a/v2?x=y": %w`, inner), "refused"},
		{fmt.Errorf(`GET "https://a/token?scope=s": empty token returned`), `GET "https://a/token`},
		{fmt.Errorf(`GET "https://user:pw@a/token": empty`), `GET "https://a/token": empty`},
	} {
		if got := plain(c.err); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

func FuzzDisguiseRealm(f *testing.F) {
	f.Add(`Bearer realm="https://auth.test/token?a=b",service="x",scope="repository:a:pull"`)
	f.Add(`Bearer realm=https://auth.test/token`)
	f.Add(`Basic realm="x"`)
	f.Fuzz(func(t *testing.T, challenge string) {
		h := http.Header{"Www-Authenticate": {challenge}}
		disguiseRealm(h, &url.URL{Scheme: "https", Host: "registry.test"})
		if got := h.Get("Www-Authenticate"); got != challenge && !strings.Contains(got, `realm="https://registry.test/#https://`) {
			t.Errorf("%q became %q", challenge, got)
		}
	})
}
