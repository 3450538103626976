package upstream

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"

	"pier/internal/oci"
)

// challenger is a registry that asks for a token of whatever realm it is told to name.
func challenger(t *testing.T) (realm *string, port string) {
	t.Helper()
	realm = new(string)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Www-Authenticate", *realm)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(srv.Close)
	_, port, _ = net.SplitHostPort(srv.Listener.Addr().String())
	return realm, port
}

// open reports whether a tunnel leads to host:port.
func open(t *testing.T, g *Gate, addr string) bool {
	t.Helper()
	conn, err := g.Dial(t.Context(), "tcp", addr)
	if err == nil {
		conn.Close()
	}
	host, port, _ := net.SplitHostPort(addr)
	var n uint16
	_, _ = fmt.Sscan(port, &n)
	return err == nil && g.Ports(host, n)
}

// The token server of a private registry may be private too, once the registry has named it.
func TestGateRealm(t *testing.T) {
	challenge, port := challenger(t)
	tokens, err := net.Listen("tcp", "127.0.0.2:"+port) // another host than the registry's
	if err != nil {
		t.Fatal(err)
	}
	defer tokens.Close()
	listed := []Upstream{{Name: "plain.test:" + port, Scheme: "http"}}
	g := newGate(t, GateConfig{Upstreams: listed})
	ask := func() {
		t.Helper()
		if _, err := pass(t, g, "http://plain.test:"+port+"/v2/"); err != nil {
			t.Fatal(err)
		}
	}
	for _, bad := range []string{"", "Basic realm=\"x\"", `Bearer realm="ftp://` + tokens.Addr().String() + `/"`, `Bearer realm="https://user@/"`, `Bearer realm="://"`, "Bearer"} {
		if *challenge = bad; bad != "" {
			ask()
		}
		if open(t, g, tokens.Addr().String()) {
			t.Errorf("%s: it is dialled", bad)
		}
	}
	for _, host := range []string{tokens.Addr().String(), "auth.test:" + port} {
		*challenge = `Bearer realm="https://` + host + `/token",service="x"`
		ask()
		if !open(t, g, host) {
			t.Errorf("%s: after the registry named it, it is not dialled", host)
		}
	}
	if err := g.Reload(listed); err != nil {
		t.Fatal(err)
	}
	if open(t, g, tokens.Addr().String()) {
		t.Error("it is dialled by what another configuration learnt")
	}
}

// A challenge opened tunnels to every port of every host, for everybody and a day: those of this machine, too.
func TestGateRealmOpensNothingElse(t *testing.T) {
	secret, err := net.Listen("tcp", "127.0.0.1:0") // a service that nobody listed
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	challenge, port := challenger(t)
	g := newGate(t, GateConfig{Upstreams: []Upstream{{Name: "plain.test:" + port, Scheme: "http"}}})
	*challenge = `Bearer realm="https://` + secret.Addr().String() + `/token"`
	if _, err := pass(t, g, "http://plain.test:"+port+"/v2/"); err != nil {
		t.Fatal(err)
	}
	if open(t, g, secret.Addr().String()) {
		t.Error("a port that is neither that of HTTPS nor the registry's own")
	}

	// Nor does what a pattern allows name any, nor a token server that was named.
	ca := newAuthority(t)
	name := ca.serveTLS(t, "a.example.com", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Www-Authenticate", `Bearer realm="https://says.test/"`)
		w.WriteHeader(http.StatusUnauthorized)
	}), nil)
	g = newGate(t, GateConfig{Allow: []string{"*.example.com:*"}, Upstreams: []Upstream{{Name: "plain.test:" + port, Scheme: "http"}}})
	w := g.current.Load()
	w.trusted.transport.TLSClientConfig.InsecureSkipVerify = true
	w.trusted.single.TLSClientConfig.InsecureSkipVerify = true
	for _, asks := range []string{"https://" + name, "http://auth.test:" + port} {
		if strings.HasPrefix(asks, "http:") {
			*challenge = `Bearer realm="http://auth.test:` + port + `/"`
			if _, err := pass(t, g, "http://plain.test:"+port); err != nil {
				t.Fatal(err)
			}
			*challenge = `Bearer realm="http://next.test:` + port + `/"`
		}
		if _, err := pass(t, g, asks); err != nil {
			t.Fatal(err)
		}
	}
	for _, addr := range []string{"says.test:443", "next.test:" + port} {
		if g.current.Load().realms.has(addr) {
			t.Errorf("%s was learnt", addr)
		}
	}

	// One that is public, or of which this node cannot tell, does not know of private ones.
	w.learn([]string{`Bearer realm="https://127.0.0.1/"`}, &url.URL{Scheme: "https", Host: "registry.example.org"}, false)
	_, err = g.Dial(t.Context(), "tcp", "127.0.0.1:443")
	wantErr(t, "named by a public registry", err, oci.ErrNotAllowed)
	u, _ := parent(t, "401 Unauthorized\r\nWww-Authenticate: Bearer realm=\"https://127.0.0.1/\"")
	g = newGate(t, GateConfig{Upstreams: []Upstream{{Name: "plain.test", Scheme: "http"}}, proxy: func(*http.Request) (*url.URL, error) { return u, nil }})
	if _, err := pass(t, g, "http://plain.test/"); err != nil {
		t.Fatal(err)
	}
	if w := g.current.Load(); !w.realms.has("127.0.0.1:443") || w.private.has("127.0.0.1:443") {
		t.Error("that the HTTP proxy of this node is private says something of the registry")
	}
}

// Servers that authenticate connections (NTLM, Negotiate) took everybody for who was there first.
func TestGateConnectionAuthentication(t *testing.T) {
	ca := newAuthority(t)
	var mu sync.Mutex
	known := make(map[string]string) // guarded by mu; user by connection
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if a := r.Header.Get("Authorization"); a != "" {
			known[r.RemoteAddr] = a
		}
		if known[r.RemoteAddr] == "" {
			w.Header().Set("Www-Authenticate", `Basic realm="x", Negotiate`)
			w.WriteHeader(http.StatusUnauthorized)
		}
		fmt.Fprintf(w, "%s %q", r.Proto, known[r.RemoteAddr])
	})
	secure := ca.serveTLS(t, "registry.test", h, nil)
	plain := httptest.NewServer(h)
	defer plain.Close()
	_, port, _ := net.SplitHostPort(plain.Listener.Addr().String())
	for _, base := range []string{"https://" + secure, "http://plain.test:" + port} {
		// The last is of a kind that nobody here knows, once the server has said what it does.
		for _, credentials := range []string{"NTLM alice", "negotiate alice", "Other alice"} {
			g := newGate(t, GateConfig{Upstreams: []Upstream{{Name: secure, TLS: TLS{CA: ca.file}}, {Name: "plain.test:" + port, Scheme: "http"}}})
			for i, header := range []string{"", credentials, "", credentials, ""} {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base, nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Authorization", header)
				resp, err := g.RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				b, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if want := fmt.Sprintf("HTTP/1.1 %q", header); err != nil || i > 0 && string(b) != want {
					t.Errorf("%s, %s, request %d: got %s, %v, want %s", base, credentials, i, b, err, want)
				}
			}
		}
	}
}

// A public address that this machine has leads to ports that are bound on it for others: metrics, for instance.
func TestGateThisMachine(t *testing.T) {
	mine := netip.MustParseAddr("8.8.8.8")
	g := newGate(t, GateConfig{here: func(a netip.Addr) bool { return a == mine }, Upstreams: []Upstream{{Name: "8.8.8.8:5000"}}})
	for _, addr := range []string{"8.8.8.8:443", "[::ffff:8.8.8.8]:443", "[64:ff9b::808:808]:443"} {
		_, err := g.Dial(t.Context(), "tcp", addr)
		wantErr(t, addr, err, oci.ErrNotAllowed)
		_, err = pass(t, g, "https://"+addr)
		wantErr(t, "https "+addr, err, oci.ErrNotAllowed)
	}
	w := g.current.Load()
	if err := w.to("8.8.4.4:443", "").permit("8.8.4.4:443"); err != nil {
		t.Errorf("another machine: %v", err)
	}
	if err := w.to("8.8.8.8:5000", "").permit("8.8.8.8:5000"); err != nil {
		t.Errorf("listed: %v", err)
	}
	if err := w.public.rules.control(t.Context(), "tcp", "8.8.8.8:9090", nil); !errors.Is(err, oci.ErrNotAllowed) {
		t.Errorf("a name that leads there: got error %v", err)
	}
}

// Nor are connections that content comes over one client's.
func TestConnectionAuthenticationIsNoAccount(t *testing.T) {
	r := newRegistries(t, Config{})
	e, err := r.current.Load().endpoint("registry.test")
	if err != nil {
		t.Fatal(err)
	}
	for _, header := range []string{"NTLM TlRMTVNTUAAB", "Negotiate YII=", "negotiate"} {
		_, err := r.accountFor(oci.WithAuthorization(t.Context(), header), e)
		wantErr(t, header, err, oci.ErrUnauthorized)
	}
}
