package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/VictoriaMetrics/metrics"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// What a client pulls is answered by this node, and all else by whom it is meant for, inside TLS and without it.
func TestWhoAnswers(t *testing.T) {
	for _, scheme := range []string{"http", "https"} {
		for _, version := range []string{"HTTP/1.1", "HTTP/2.0"} {
			if scheme == "http" && version == "HTTP/2.0" {
				continue
			}
			s := newSite(t)
			c := s.client(t, func(tr *http.Transport) { tr.ForceAttemptHTTP2 = version == "HTTP/2.0" })
			registry, files := scheme+"://registry.test", scheme+"://files.test"
			for _, tt := range []struct{ method, url, from string }{
				{"GET", registry + "/v2/a/manifests/v1", "node"},
				{"HEAD", registry + "/v2/a/manifests/v1", "node"},
				{"GET", registry + "/v2/a/b/manifests/" + someDigest, "node"},
				{"GET", registry + "/v2/a/blobs/" + someDigest, "node"},
				{"GET", registry + "/v2/a/tags/list?n=3", "node"},
				{"GET", registry + "/v2/a/referrers/" + someDigest + "?artifactType=x", "node"},
				{"GET", registry + "/v2/", "origin"},
				// Whether the registry has it already is for the registry to say: a push depends on it.
				{"HEAD", registry + "/v2/a/blobs/" + someDigest, "origin"},
				{"HEAD", registry + "/v2/a/manifests/" + someDigest, "origin"},
				{"POST", registry + "/v2/a/blobs/uploads/", "origin"},
				{"PUT", registry + "/v2/a/manifests/v1", "origin"},
				{"DELETE", registry + "/v2/a/manifests/" + someDigest, "origin"},
				{"GET", registry + "/v2/a/blobs/uploads/0f", "origin"},
				{"GET", registry + "/v2/token?service=x&scope=y;z", "origin"},
				{"GET", registry + "/v2/auth", "origin"},
				{"GET", registry + "/v2/_catalog", "origin"},
				{"GET", registry + "/v2/a/manifests/v1?ns=docker.io", "origin"},
				{"GET", registry + "/v2/A/manifests/v1", "origin"},
				{"GET", registry + "/v2/a%2Fb/manifests/v1", "origin"},
				{"GET", registry + "/token", "origin"},
				{"GET", files + "/v2/a/manifests/v1", "origin"},
				{"GET", files + "/", "origin"},
			} {
				got := do(t, c, request(t, tt.method, tt.url, "", "Authorization", "Bearer mine"))
				if got.Header.Get("X-From") != tt.from || got.Proto != version {
					t.Errorf("%s %s: from %q (%s) over %s, want %s over %s", tt.method, tt.url, got.Header.Get("X-From"), got.body, got.Proto, tt.from, version)
				}
				path, _ := strings.CutPrefix(tt.url, registry)
				path, _ = strings.CutPrefix(path, files)
				switch {
				case tt.method == "HEAD" || tt.url == registry+"/v2/":
				case tt.from == "node" && got.body != "node "+tt.method+" registry.test "+path+" Bearer mine":
					t.Errorf("%s %s: this node was asked %q", tt.method, tt.url, got.body)
				case tt.from == "origin" && !strings.HasSuffix(got.body, ".test "+path+" "):
					t.Errorf("%s %s: the origin was asked %q", tt.method, tt.url, got.body)
				}
			}
			got := do(t, c, request(t, "GET", registry+"/v2/", ""))
			if got.StatusCode != 401 || got.Header.Get("Www-Authenticate") != `Bearer realm="https://auth.test/token"` {
				t.Errorf("%s: ping got %d and %v, want the registry's own challenge", scheme, got.StatusCode, got.Header)
			}
		}
	}
}

// A host that is no registry shows its own certificate; a registry shows this node's.
func TestCertificates(t *testing.T) {
	s := newSite(t)
	issuer := func(host string) string {
		t.Helper()
		conn := tls.Client(s.connect(t, host+":443"), &tls.Config{RootCAs: s.trust, ServerName: host})
		if err := conn.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%x", conn.ConnectionState().PeerCertificates[0].AuthorityKeyId)
	}
	leaf := func(a interface {
		Certificate(string) (*tls.Certificate, error)
	}) string {
		c, err := a.Certificate("x.test")
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%x", c.Leaf.AuthorityKeyId)
	}
	if got := issuer("files.test"); got != leaf(s.world) {
		t.Errorf("files.test: issued by %s, want its own", got)
	}
	if got := issuer("registry.test"); got != leaf(s.node) {
		t.Errorf("registry.test: issued by %s, want this node", got)
	}
}

// A challenge is the registry's own, in place of what this node made up.
func TestChallenge(t *testing.T) {
	s := newSite(t)
	s.origin(t, "registry.test", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Www-Authenticate", `Bearer realm="https://auth.test/token",scope="repository:private:pull"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	for _, scheme := range []string{"http", "https"} {
		got := do(t, s.client(t), request(t, "GET", scheme+"://registry.test/v2/private/manifests/v1", ""))
		if got.StatusCode != 401 || !strings.HasPrefix(got.Header.Get("Www-Authenticate"), "Bearer") || got.Header.Get("X-From") != "" || got.body != "" {
			t.Errorf("%s: got %d, %v, %q", scheme, got.StatusCode, got.Header, got.body)
		}
	}
}

func TestRefused(t *testing.T) {
	s := newSite(t)
	s.at("files.test:22", s.front.Listener.Addr().String())
	s.raw(t, "gone.test:443").Close()
	s.raw(t, "gone.test:80").Close()
	for _, tt := range []struct {
		request string
		status  int
		text    string
	}{
		{"GET / HTTP/1.1\r\nHost: files.test\r\n\r\n", 400, "forward proxy"},
		{"OPTIONS * HTTP/1.1\r\nHost: files.test\r\n\r\n", 200, ""}, // the server's own answer
		{"GET https://files.test/ HTTP/1.1\r\nHost: files.test\r\n\r\n", 400, "CONNECT"},
		{"GET ftp://files.test/ HTTP/1.1\r\nHost: files.test\r\n\r\n", 400, "only http"},
		{"GET http://user:secret@files.test/ HTTP/1.1\r\nHost: files.test\r\n\r\n", 400, "user and password"},
		{"GET http://@files.test/ HTTP/1.1\r\nHost: files.test\r\n\r\n", 400, "user and password"},
		{"GET http:///x HTTP/1.1\r\nHost: files.test\r\n\r\n", 400, "forward proxy"},
		{"GET http://files.test:0/ HTTP/1.1\r\nHost: files.test\r\n\r\n", 400, "malformed"},
		{"GET http://files.test:22/ HTTP/1.1\r\nHost: files.test\r\n\r\n", 403, "not for HTTP"},
		{"GET http://127.0.0.1/ HTTP/1.1\r\nHost: files.test\r\n\r\n", 403, "--allow-upstream"},
		{"GET http://gone.test/ HTTP/1.1\r\nHost: files.test\r\n\r\n", 502, "cannot be reached"},
		{"GET http://files.test/ HTTP/1.1\r\nHost: files.test\r\nVia: 1.1 other, 1.1 pier-test\r\n\r\n", 508, "HTTP_PROXY"},
		{"CONNECT files.test HTTP/1.1\r\nHost: files.test\r\n\r\n", 400, "host:port"},
		{"CONNECT files.test: HTTP/1.1\r\nHost: files.test\r\n\r\n", 400, "host:port"},
		{"CONNECT files.test:99999 HTTP/1.1\r\nHost: files.test\r\n\r\n", 400, ""},
		{"CONNECT user@files.test:443 HTTP/1.1\r\nHost: files.test\r\n\r\n", 400, "host:port"},
		{"CONNECT http://files.test:443 HTTP/1.1\r\nHost: files.test\r\n\r\n", 400, ""},
		{"CONNECT /path HTTP/1.1\r\nHost: files.test:443\r\n\r\n", 400, "host:port"},
		{"CONNECT [::1%25lo]:443 HTTP/1.1\r\nHost: files.test:443\r\n\r\n", 400, "host:port"},
		{"CONNECT files.test:443 HTTP/1.1\r\nHost: files.test\r\nContent-Length: 5\r\n\r\nhello", 400, "no body"},
		{"CONNECT files.test:443 HTTP/1.1\r\nHost: files.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "no body"},
		{"CONNECT files.test:22 HTTP/1.1\r\nHost: files.test\r\n\r\n", 403, "port 22"},
		{"CONNECT 10.0.0.1:443 HTTP/1.1\r\nHost: files.test\r\n\r\n", 403, "--upstreams"},
		{"CONNECT gone.test:443 HTTP/1.1\r\nHost: files.test\r\n\r\n", 502, "cannot be reached"},
		{"CONNECT files.test:443 HTTP/1.1\r\nHost: files.test\r\nVia: 1.1 pier-test\r\n\r\n", 508, "HTTP_PROXY"},
		// Net/http's part, but this proxy depends on it.
		{"GET http://files.test/ HTTP/1.1\r\nHost: files.test\r\nX: " + strings.Repeat("x", 80<<10) + "\r\n\r\n", 431, ""},
		{"POST http://files.test/ HTTP/1.1\r\nHost: files.test\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", 400, ""},
		{"POST http://files.test/ HTTP/1.1\r\nHost: files.test\r\nContent-Length: +5\r\n\r\nhello", 400, ""},
		{"POST http://files.test/ HTTP/1.1\r\nHost: files.test\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 501, ""},
		{"POST http://files.test/ HTTP/1.1\r\nHost: files.test\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400, ""},
		{"GET http://files.test/ HTTP/1.1\r\nHost: files.test\r\nX : y\r\n\r\n", 400, ""},
		{"GET http://files.test/ HTTP/1.1\r\nHost: files.test\r\nHost: other.test\r\n\r\n", 400, ""},
		{"GET http://fi les.test/ HTTP/1.1\r\nHost: files.test\r\n\r\n", 400, ""},
		{"\x16\x03\x01\x00\x05hello\r\n\r\n", 400, ""},
	} {
		name := clip(strings.TrimSpace(tt.request))[:min(len(tt.request)-4, 90)]
		c := s.connection(t)
		c.send("%s", tt.request)
		resp, err := http.ReadResponse(c.in, nil)
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		var body strings.Builder
		_ = resp.Write(&body)
		if resp.StatusCode != tt.status || !strings.Contains(body.String(), tt.text) {
			t.Errorf("%q: got %d %q, want %d and %q", name, resp.StatusCode, body.String(), tt.status, tt.text)
		}
		if strings.Contains(body.String(), "secret") || strings.Contains(s.log.text(), "secret") {
			t.Errorf("%q: a password is told", name)
		}
	}
	if got := s.requests(); len(got) > 0 {
		t.Errorf("origins saw %v", got)
	}
}

// Requests that two servers could read in two ways reach origins as one, if at all.
func TestSmuggling(t *testing.T) {
	s := newSite(t)
	next := "GET http://files.test/smuggled HTTP/1.1\r\nHost: files.test\r\n\r\n"
	for _, request := range []string{
		"POST http://files.test/both HTTP/1.1\r\nHost: files.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"POST http://files.test/chunk HTTP/1.1\r\nHost: files.test\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
		"POST http://files.test/chunk HTTP/1.1\r\nHost: files.test\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nhello\r\n0\r\n\r\n",
		"POST http://files.test/chunk HTTP/1.1\r\nHost: files.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
		"POST http://files.test/chunk HTTP/1.1\r\nHost: files.test\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n",
		"GET http://files.test/fold HTTP/1.1\r\nHost: files.test\r\nX: a\r\n Content-Length: 80\r\n\r\n",
		"GET http://files.test/host HTTP/1.1\r\nHost: other.test\r\n\r\n",
	} {
		c := s.connection(t)
		c.send("%s", request)
		_ = c.CloseWrite()
		for {
			resp, err := http.ReadResponse(c.in, nil)
			if err != nil {
				break
			}
			_, _ = io.Copy(io.Discard, resp.Body)
		}
	}
	for _, got := range s.requests() {
		if strings.Contains(got, "smuggled") || strings.Contains(got, "other.test") {
			t.Errorf("an origin saw %s", got)
		}
	}
	// And one after another, on one connection.
	c := s.connection(t)
	c.send("POST http://files.test/first HTTP/1.1\r\nHost: files.test\r\nContent-Length: %d\r\n\r\n%s%s", len(next), next, strings.Replace(next, "smuggled", "second", 1))
	for range 2 {
		resp, err := http.ReadResponse(c.in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.in.Discard(int(resp.ContentLength)); err != nil {
			t.Fatal(err)
		}
	}
	got := s.requests() // those of connections before may come late
	first, second := slices.Index(got, "http POST files.test /first"), slices.Index(got, "http GET files.test /second")
	if first < 0 || second < first || strings.Contains(strings.Join(got, " "), "smuggled") {
		t.Errorf("origins saw %v", got)
	}
}

func TestClients(t *testing.T) {
	s := newSite(t, func(c *Config) { c.Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} })
	for remote, want := range map[string]int{
		"127.0.0.1:1": 200, "[::1]:1": 200, "[::ffff:127.0.0.1]:1": 200, "192.0.2.7:1": 200, "[::ffff:192.0.2.7]:1": 200,
		"192.0.3.7:1": 403, "[2001:db8::1]:1": 403, "": 403, "@": 403,
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://files.test/x", nil)
		r.RemoteAddr = remote
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != want || want == 403 && w.Header().Get("Connection") != "close" {
			t.Errorf("client %s: got %d %v, want %d", remote, w.Code, w.Header(), want)
		}
	}
}

func TestMisdirected(t *testing.T) {
	s := newSite(t)
	for _, tt := range []struct {
		host   string
		header string
		status int
	}{
		{"registry.test", "", 200},
		{"REGISTRY.test:443", "", 200},
		{"registry.test.", "", 200},
		{"files.test", "", 421},
		{"registry.test:444", "", 421},
		{"127.0.0.1", "", 421},
	} {
		for _, h2 := range []bool{false, true} {
			dialed := s.connect(t, "registry.test:443")
			c := &http.Client{Transport: &http.Transport{
				ForceAttemptHTTP2: h2, TLSClientConfig: &tls.Config{RootCAs: s.trust},
				DialContext: func(context.Context, string, string) (net.Conn, error) { return dialed, nil },
			}}
			r := request(t, "GET", "https://registry.test/v2/a/manifests/v1", "")
			r.Host = tt.host
			if got := do(t, c, r); got.StatusCode != tt.status {
				t.Errorf("host %s, HTTP/2 %v: got %d %s, want %d", tt.host, h2, got.StatusCode, got.body, tt.status)
			}
		}
	}
	for _, request := range []string{
		"GET http://registry.test/v2/ HTTP/1.1\r\nHost: registry.test\r\n\r\n",
		"CONNECT registry.test:443 HTTP/1.1\r\nHost: registry.test\r\n\r\n",
	} {
		conn := tls.Client(s.connect(t, "registry.test:443"), &tls.Config{RootCAs: s.trust, ServerName: "registry.test"})
		if _, err := conn.Write([]byte(request)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 12)
		if _, err := conn.Read(b); err != nil || !slices.Contains([]string{"HTTP/1.1 400", "HTTP/1.1 405"}, string(b)) {
			t.Errorf("%q: got %q, %v", request, b, err)
		}
	}
}

func TestMetrics(t *testing.T) {
	set := metrics.NewSet()
	s := newSite(t, func(c *Config) { c.Metrics = set })
	c := s.client(t)
	do(t, c, request(t, "GET", "https://registry.test/v2/a/manifests/v1", ""))
	do(t, c, request(t, "GET", "http://registry.test/v2/a/manifests/v1", ""))
	do(t, c, request(t, "PUT", "http://files.test/x?secret", "hello"))
	do(t, c, request(t, "GET", "https://files.test/", ""))
	do(t, c, request(t, "GET", "http://10.0.0.1/", ""))
	c.CloseIdleConnections()
	s.Shutdown(t.Context())
	var text strings.Builder
	set.WritePrometheus(&text)
	for _, want := range []string{
		`pier_proxy_requests_total{kind="registry"} 2`, `pier_proxy_requests_total{kind="passed"} 2`, `pier_proxy_requests_total{kind="tunnel"} 1`,
		`pier_proxy_requests_total{kind="intercepted"} 1`, `pier_proxy_open 0`,
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %s in:\n%s", want, text.String())
		}
	}
	if strings.Contains(s.log.text(), "secret") {
		t.Errorf("a query is in the log:\n%s", s.log.text())
	}
	for _, want := range []string{"kind=passed method=PUT host=files.test:80 path=/x status=200 received=5", "kind=tunnel host=files.test:443"} {
		if !strings.Contains(s.log.text(), want) {
			t.Errorf("no %q in the log:\n%s", want, s.log.text())
		}
	}
}
