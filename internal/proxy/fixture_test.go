package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"pier/internal/authority"
	"pier/internal/oci"
)

// A site is a client's view of the world through a proxy: registry.test and files.test, each with TLS and without, of
// which the former is a registry.
type site struct {
	*Proxy
	front *httptest.Server // where the proxy listens
	trust *x509.CertPool   // both authorities
	world *authority.Authority
	node  *authority.Authority // nil: nothing is intercepted
	log   lines

	mu    sync.Mutex
	hosts map[string]string // guarded by mu; address by host:port
	seen  []string          // guarded by mu; what reached origins: "scheme METHOD host path"
}

// lines is a log that tests read.
type lines struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(p)
}

func (l *lines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.String()
}

func newAuthority(t testing.TB) *authority.Authority {
	t.Helper()
	a, err := authority.Open(authority.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// fromNode answers for the registry handler: it says what it was asked, and by whom.
func fromNode(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-From", "node")
	switch {
	case strings.Contains(r.URL.Path, "private"):
		w.Header().Set("Www-Authenticate", `Basic realm="made up"`)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		_ = http.NewResponseController(w).Flush()
		fmt.Fprint(w, "held back")
	default:
		fmt.Fprintf(w, "node %s %s %s %s", r.Method, r.Host, r.URL, r.Header.Get("Authorization"))
	}
}

func newSite(t testing.TB, change ...func(*Config)) *site {
	t.Helper()
	s := &site{world: newAuthority(t), node: newAuthority(t), trust: x509.NewCertPool(), hosts: make(map[string]string)}
	s.trust.AppendCertsFromPEM(s.world.PEM())
	s.trust.AppendCertsFromPEM(s.node.PEM())
	only := x509.NewCertPool()
	only.AppendCertsFromPEM(s.world.PEM())
	transport := &http.Transport{
		DialContext: s.dial, TLSClientConfig: &tls.Config{RootCAs: only}, ForceAttemptHTTP2: true, DisableCompression: true,
		ExpectContinueTimeout: 10 * time.Second,
	}
	cfg := Config{
		Registry:    http.HandlerFunc(fromNode),
		IsRegistry:  func(_, host string) bool { return strings.HasPrefix(host, "registry.test") },
		Certificate: s.node.Certificate,
		Dial:        s.dial,
		Transport:   transport,
		Ports:       func(_ string, port uint16) bool { return port == 443 || port == 8443 },
		Log:         slog.New(slog.NewTextHandler(&s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Name:        "pier-test",
	}
	for _, f := range change {
		f(&cfg)
	}
	s.Proxy = New(cfg)
	s.front = httptest.NewUnstartedServer(s.Proxy)
	s.front.Config.ReadHeaderTimeout = 10 * time.Second
	s.front.Config.ReadTimeout = time.Minute
	s.front.Config.MaxHeaderBytes = 64 << 10
	s.front.Config.ErrorLog = slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug)
	s.front.Start()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		defer cancel()
		s.Shutdown(ctx)
		s.front.CloseClientConnections()
		s.front.Close()
		transport.CloseIdleConnections()
	})
	s.origin(t, "registry.test", nil)
	s.origin(t, "files.test", nil)
	return s
}

func (s *site) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	s.mu.Lock()
	to := s.hosts[addr]
	s.mu.Unlock()
	if to == "" {
		return nil, fmt.Errorf("%s: %w", addr, oci.ErrNotAllowed)
	}
	var d net.Dialer
	return d.DialContext(ctx, network, to)
}

// at makes a host's port lead to an address.
func (s *site) at(hostport, addr string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hosts[hostport] = addr
}

func (s *site) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.seen...)
}

// origin starts a host's servers at the ports 80, 443, and 8443.
func (s *site) origin(t testing.TB, host string, h http.HandlerFunc) {
	t.Helper()
	if h == nil {
		h = func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-From", "origin")
			if r.URL.Path == "/v2/" {
				w.Header().Set("Www-Authenticate", `Bearer realm="https://auth.test/token"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "origin %s %s %s %s", r.Method, r.Host, r.RequestURI, body)
		}
	}
	for _, scheme := range []string{"http", "https"} {
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.mu.Lock()
			s.seen = append(s.seen, fmt.Sprintf("%s %s %s %s", scheme, r.Method, r.Host, r.URL.Path))
			s.mu.Unlock()
			h(w, r)
		}))
		srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
		if scheme == "http" {
			srv.Start()
			s.at(host+":80", srv.Listener.Addr().String())
		} else {
			cert, err := s.world.Certificate(host)
			if err != nil {
				t.Fatal(err)
			}
			srv.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
			srv.EnableHTTP2 = true
			srv.StartTLS()
			s.at(host+":443", srv.Listener.Addr().String())
			s.at(host+":8443", srv.Listener.Addr().String())
		}
		t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	}
}

// client returns one that goes through the proxy, and trusts both authorities.
func (s *site) client(t testing.TB, change ...func(*http.Transport)) *http.Client {
	t.Helper()
	front, err := url.Parse(s.front.URL)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{Proxy: http.ProxyURL(front), TLSClientConfig: &tls.Config{RootCAs: s.trust}, ForceAttemptHTTP2: true, DisableCompression: true}
	for _, f := range change {
		f(transport)
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute}
}

// answer is a response that was read.
type answer struct {
	*http.Response
	body string
}

func do(t *testing.T, c *http.Client, r *http.Request) answer {
	t.Helper()
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp, string(b)}
}

func request(t *testing.T, method, url, body string, header ...string) *http.Request {
	t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, url, r)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	return req
}

// conn is a connection to the proxy with what it sends at hand.
type conn struct {
	*net.TCPConn
	in *bufio.Reader
	t  *testing.T
}

func (s *site) connection(t *testing.T) *conn {
	t.Helper()
	c, err := net.Dial("tcp", s.front.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	tcp, _ := c.(*net.TCPConn)
	return &conn{tcp, bufio.NewReader(c), t}
}

func (c *conn) send(format string, args ...any) {
	c.t.Helper()
	if _, err := fmt.Fprintf(c, format, args...); err != nil {
		c.t.Fatal(err)
	}
}

// status reads a header and returns its status, or 0 if the connection was closed.
func (c *conn) status() int {
	c.t.Helper()
	resp, err := http.ReadResponse(c.in, &http.Request{Method: http.MethodConnect})
	if err != nil {
		if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
			c.t.Errorf("answer: %v", err)
		}
		return 0
	}
	return resp.StatusCode
}

// connect opens a tunnel, or what looks like one.
func (s *site) connect(t *testing.T, target string) *conn {
	t.Helper()
	c := s.connection(t)
	c.send("CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target)
	if got := c.status(); got != 200 {
		t.Fatalf("CONNECT %s: status %d", target, got)
	}
	return c
}

// A listener that no test handler serves: what it accepts is the test's.
func (s *site) raw(t *testing.T, hostport string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	s.at(hostport, l.Addr().String())
	return l
}

func accept(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	return c
}

// newRequest returns a client's request for a handler that is called without a server.
func newRequest(t *testing.T, method, url string) *http.Request {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, url, nil)
	r.RemoteAddr = "127.0.0.1:1"
	return r
}

func newRecorder() *httptest.ResponseRecorder { return httptest.NewRecorder() }
