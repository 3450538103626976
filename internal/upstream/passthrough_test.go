package upstream

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"pier/internal/oci"
)

func newGate(t *testing.T, cfg GateConfig) *Gate {
	t.Helper()
	cfg.resolver = localNames(t)
	if cfg.proxy == nil {
		cfg.proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	}
	g, err := NewGate(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

// says answers with what reached it.
var says = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	certs := 0
	if r.TLS != nil {
		certs = len(r.TLS.PeerCertificates)
	}
	fmt.Fprintf(w, "%s auth=%q via=%q agent=%q certs=%d", r.URL, r.Header.Get("Authorization"), r.Header.Get("Via"), r.Header.Get("User-Agent"), certs)
})

func pass(t *testing.T, g *Gate, url string) (string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := g.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// Requests of others carry nothing of this node's, and go where its rules allow.
func TestGatePasses(t *testing.T) {
	ca := newAuthority(t)
	name := ca.serveTLS(t, "registry.test", says, nil)
	plain := httptest.NewServer(says)
	defer plain.Close()
	_, port, _ := net.SplitHostPort(plain.Listener.Addr().String())
	_, _, cert, key := ca.issue(t, "client")
	g := newGate(t, GateConfig{Name: "pier-1", Upstreams: []Upstream{
		{Name: name, TLS: TLS{CA: ca.file, Cert: cert, Key: key}, Auth: Auth{User: "u", Password: "p"}},
		{Name: "plain.test:" + port, Scheme: "http"},
	}})
	for _, u := range []string{"https://" + name, "http://plain.test:" + port, "https://" + strings.ToUpper(name)} {
		got, err := pass(t, g, u+"/x")
		if err != nil || got != `/x auth="" via="" agent="Go-http-client/`+map[bool]string{true: "2.0", false: "1.1"}[strings.HasPrefix(u, "https")]+`" certs=0` {
			t.Errorf("%s: got %s, %v", u, got, err)
		}
		host, _ := strings.CutPrefix(strings.ToLower(u), "https://")
		host, _ = strings.CutPrefix(host, "http://")
		conn, err := g.Dial(t.Context(), "tcp", host)
		if err != nil {
			t.Errorf("tunnel to %s: %v", host, err)
			continue
		}
		conn.Close()
	}
	if scheme, ok := g.Listed("plain.test:" + port); !ok || scheme != "http" {
		t.Errorf("plain.test is listed: %v, %s", ok, scheme)
	}
	if _, ok := g.Listed("plain.test"); ok {
		t.Error("plain.test is listed without its port")
	}
}

// What is not listed has a public name and public addresses, at the moment it is dialled: here every name is 127.0.0.1.
func TestGateRefuses(t *testing.T) {
	ca := newAuthority(t)
	name := ca.serveTLS(t, "registry.example.com", says, nil)
	_, port, _ := net.SplitHostPort(name)
	for _, allow := range [][]string{nil, {"*"}, {"docker.io"}} {
		g := newGate(t, GateConfig{Allow: allow, Upstreams: []Upstream{{Name: name, TLS: TLS{CA: ca.file}}}})
		for _, addr := range []string{
			"rebind.example.com:" + port, "registry.example.com:443", "registry.example.com:80", "localhost:" + port, "127.0.0.1:" + port, "127.1:" + port,
			"0x7f.1:" + port, "2130706433:" + port, "[::1]:" + port, "10.0.0.1:443", "169.254.169.254:80", "[::ffff:127.0.0.1]:" + port,
			"router.local:80", "intranet:80", "0.0.0.0:" + port,
		} {
			_, err := g.Dial(t.Context(), "tcp", addr)
			wantErr(t, "tunnel to "+addr, err, oci.ErrNotAllowed)
			for _, scheme := range []string{"http", "https"} {
				_, err := pass(t, g, scheme+"://"+addr+"/")
				wantErr(t, scheme+" to "+addr, err, oci.ErrNotAllowed)
			}
		}
	}
}

func TestGatePatterns(t *testing.T) {
	ca := newAuthority(t)
	name := ca.serveTLS(t, "a.example.com", says, nil)
	g := newGate(t, GateConfig{Allow: []string{"*.example.com:*"}})
	conn, err := g.Dial(t.Context(), "tcp", name)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	_, err = pass(t, g, "https://"+name)
	var untrusted *tls.CertificateVerificationError
	if !errors.As(err, &untrusted) {
		t.Errorf("got error %v, want a certificate that is not trusted", err)
	}
	// A pattern says nothing of plain HTTP.
	_, err = pass(t, g, "http://"+name)
	wantErr(t, "plain HTTP", err, oci.ErrNotAllowed)
}

func TestGatePorts(t *testing.T) {
	g := newGate(t, GateConfig{
		Upstreams: []Upstream{{Name: "registry.test:5000"}, {Name: "plain.test", Scheme: "http"}, {Name: "docker.io", Mirrors: []string{"mirror.test:8443"}}, {Name: "[fd00::1]:5000"}},
		Allow:     []string{"*.example.com:*", "*"},
	})
	for addr, want := range map[string]bool{
		"any.test:443": true, "registry.test:5000": true, "REGISTRY.test:5000": true, "registry.test:5001": false, "plain.test:80": true,
		"any.test:80": false, "mirror.test:8443": true, "registry-1.docker.io:443": true, "a.example.com:22": true, "example.com:22": false, "[fd00::1]:5000": true,
	} {
		host, port, _ := net.SplitHostPort(addr)
		var n uint16
		_, _ = fmt.Sscan(port, &n)
		if g.Ports(host, n) != want {
			t.Errorf("%s: got %v, want %v", addr, !want, want)
		}
	}
}

// Certificates are verified as strictly as a client would, unless the operator listed the host as insecure.
func TestGateVerifies(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	name := ca.serveTLS(t, "registry.test", says, nil)
	_, port, _ := net.SplitHostPort(name)
	for what, tt := range map[string]struct {
		upstream Upstream
		good     bool
	}{
		"its authority":       {Upstream{Name: name, TLS: TLS{CA: ca.file}}, true},
		"another authority":   {Upstream{Name: name, TLS: TLS{CA: other.file}}, false},
		"the system's":        {Upstream{Name: name}, false},
		"another name":        {Upstream{Name: "other.test:" + port, TLS: TLS{CA: ca.file}}, false},
		"listed as insecure":  {Upstream{Name: name, TLS: TLS{InsecureSkipVerify: true}}, true},
		"insecure, elsewhere": {Upstream{Name: "other.test:1", TLS: TLS{InsecureSkipVerify: true}}, false},
	} {
		g := newGate(t, GateConfig{Upstreams: []Upstream{tt.upstream}})
		if _, err := pass(t, g, "https://"+tt.upstream.Name); (err == nil) != tt.good {
			t.Errorf("%s: got error %v, want success %v", what, err, tt.good)
		}
	}
}

func TestGateReload(t *testing.T) {
	ca := newAuthority(t)
	name := ca.serveTLS(t, "registry.test", says, nil)
	g := newGate(t, GateConfig{})
	_, err := pass(t, g, "https://"+name)
	wantErr(t, "before", err, oci.ErrNotAllowed)
	if err := g.Reload([]Upstream{{Name: name, TLS: TLS{CA: ca.file}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := pass(t, g, "https://"+name); err != nil {
		t.Errorf("after: %v", err)
	}
	if err := g.Reload([]Upstream{{Name: name, TLS: TLS{CA: os.DevNull}}}); err == nil {
		t.Error("a file without certificates was taken")
	}
	if _, err := pass(t, g, "https://"+name); err != nil {
		t.Errorf("after a faulty one: %v", err)
	}
}

// parent is an HTTP proxy in the environment of this node.
func parent(t *testing.T, status string) (*url.URL, <-chan *http.Request) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	seen := make(chan *http.Request, 10)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r, err := http.ReadRequest(bufio.NewReader(c))
			if err != nil {
				c.Close()
				continue
			}
			seen <- r
			_, _ = io.WriteString(c, "HTTP/1.1 "+status+"\r\nContent-Length: 0\r\n\r\nfirst words")
			c.Close()
		}
	}()
	u, _ := url.Parse("http://user:secret@" + l.Addr().String())
	return u, seen
}

func TestGateParent(t *testing.T) {
	u, seen := parent(t, "200 Connection established")
	g := newGate(t, GateConfig{Name: "pier-1", proxy: func(*http.Request) (*url.URL, error) { return u, nil }})
	conn, err := g.Dial(t.Context(), "tcp", "files.example.com:443")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := <-seen
	if r.Method != http.MethodConnect || r.Host != "files.example.com:443" || r.Header.Get("Proxy-Authorization") != "Basic dXNlcjpzZWNyZXQ=" || r.Header.Get("Via") != "1.1 pier-1" {
		t.Errorf("the HTTP proxy was asked %s %s %v", r.Method, r.Host, r.Header)
	}
	if b, err := io.ReadAll(conn); err != nil || string(b) != "first words" {
		t.Errorf("through the tunnel came %q, %v", b, err)
	}
	if _, err := pass(t, g, "http://files.example.com/x"); err != nil {
		t.Fatal(err)
	}
	if r = <-seen; r.URL.String() != "http://files.example.com/x" || r.Header.Get("Via") != "1.1 pier-1" {
		t.Errorf("the HTTP proxy was asked %s %v", r.URL, r.Header)
	}
	_, err = g.Dial(t.Context(), "tcp", "intranet.local:443")
	wantErr(t, "a name of private use", err, oci.ErrNotAllowed)
	_, err = g.Dial(t.Context(), "tcp", u.Host)
	wantErr(t, "the HTTP proxy itself", err, oci.ErrNotAllowed)
}

func TestGateParentRefuses(t *testing.T) {
	u, _ := parent(t, "407 Proxy Authentication Required")
	g := newGate(t, GateConfig{proxy: func(*http.Request) (*url.URL, error) { return u, nil }})
	_, err := g.Dial(t.Context(), "tcp", "files.example.com:443")
	wantErr(t, "refused", err, oci.ErrUnavailable)
	if strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "407") {
		t.Errorf("got error %v", err)
	}
	// One that takes the connection and says nothing.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	silent := &url.URL{Scheme: "http", Host: l.Addr().String()}
	g = newGate(t, GateConfig{proxy: func(*http.Request) (*url.URL, error) { return silent, nil }})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := g.Dial(ctx, "tcp", "files.example.com:443"); !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silent: got error %v", err)
	}
}

// A machine whose environment names this node as its HTTP proxy names it for this node's own process too.
func TestOwnProxy(t *testing.T) {
	for _, tt := range []struct {
		own, proxy string
		want       bool
	}{
		{"127.0.0.1:3128", "http://127.0.0.1:3128", true}, {"127.0.0.1:3128", "http://localhost:3128", true}, {"localhost:3128", "http://127.0.0.1:3128", true},
		{"[::1]:3128", "http://localhost:3128", true}, {":3128", "http://localhost:3128", true}, {"0.0.0.0:3128", "http://127.0.0.1:3128/", true},
		{"10.1.2.3:3128", "http://10.1.2.3:3128", true}, {"edge-1:3128", "http://EDGE-1:3128", true},
		{"127.0.0.1:3128", "http://127.0.0.1:3129", false}, {"127.0.0.1:3128", "http://proxy.test:3128", false}, {"10.1.2.3:3128", "http://127.0.0.1:3128", false},
		{"0.0.0.0:3128", "http://192.0.2.1:3128", false}, {"", "http://127.0.0.1:3128", false}, {"127.0.0.1:80", "http://127.0.0.1", false},
	} {
		u, err := url.Parse(tt.proxy)
		if err != nil {
			t.Fatal(err)
		}
		p := &proxies{own: tt.own, from: func(*http.Request) (*url.URL, error) { return u, nil }}
		got, err := p.forRequest(&http.Request{URL: u})
		if err != nil || (got == nil) != tt.want {
			t.Errorf("listening on %q, with %s: got %v, %v, want it left out: %v", tt.own, tt.proxy, got, err, tt.want)
		}
	}
}
