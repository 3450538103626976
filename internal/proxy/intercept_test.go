package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"pier/internal/authority"
)

// A client that does not trust this node refuses the certificate: somebody is told, once.
func TestDistrust(t *testing.T) {
	s := newSite(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13, tls.VersionTLS13} {
		conn := tls.Client(s.connect(t, "registry.test:443"), &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "registry.test", MaxVersion: version})
		var untrusted *tls.CertificateVerificationError
		if err := conn.HandshakeContext(t.Context()); !errors.As(err, &untrusted) {
			t.Errorf("got error %v", err)
		}
		conn.Close()
	}
	s.Shutdown(t.Context())
	if n := strings.Count(s.log.text(), "level=WARN msg=\"a client does not trust"); n != 1 || !strings.Contains(s.log.text(), "pier ca install") {
		t.Errorf("it was said %d times:\n%s", n, s.log.text())
	}
}

// What the authority does not sign for is tunnelled, and that is said once.
func TestNoCertificate(t *testing.T) {
	only, err := authority.Open(authority.Config{Dir: t.TempDir(), Names: []string{"elsewhere.test"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, certificate := range map[string]func(string) (*tls.Certificate, error){"not permitted": only.Certificate, "nothing is intercepted": nil} {
		s := newSite(t, func(c *Config) { c.Certificate = certificate })
		for range 2 {
			c := s.client(t)
			if got := do(t, c, request(t, "GET", "https://registry.test/v2/a/manifests/v1", "")); got.Header.Get("X-From") != "origin" {
				t.Errorf("%s: got %q", name, got.body)
			}
		}
		want := 1
		if certificate == nil {
			want = 0
		}
		if n := strings.Count(s.log.text(), "no certificate for a registry"); n != want {
			t.Errorf("%s: it was said %d times, want %d", name, n, want)
		}
	}
}

// What is not TLS reaches the host it is meant for, as it is.
func TestNotTLS(t *testing.T) {
	s := newSite(t)
	l := s.raw(t, "registry.test:443")
	client := s.connect(t, "registry.test:443")
	client.send("GET / HTTP/1.1\r\n\r\n")
	server := accept(t, l)
	_ = client.CloseWrite()
	if b, err := io.ReadAll(server); err != nil || string(b) != "GET / HTTP/1.1\r\n\r\n" {
		t.Errorf("the server got %q, %v", b, err)
	}
	server.Close()
	// And with nobody there, the client sees the end.
	l.Close()
	client = s.connect(t, "registry.test:443")
	client.send("hello")
	if b, err := io.ReadAll(client); len(b) > 0 || err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the client got %q, %v", b, err)
	}
}

// descriptors returns how many files this process has open.
func descriptors(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("this system does not tell of open files: %v", err)
	}
	return len(names)
}

// Ten thousand connections that end in every bad way leave nothing behind.
func TestManyConnections(t *testing.T) {
	total := 10_000
	if testing.Short() {
		total = 1000
	}
	s := newSite(t)
	l := s.raw(t, "files.test:443")
	go func() { // servers of all kinds
		for i := 0; ; i++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			switch i % 3 {
			case 0:
				c.Close()
			case 1:
				go func() { _, _ = io.Copy(io.Discard, c); c.Close() }()
			default:
				_, _ = c.Write([]byte("hello"))
				_ = c.(*net.TCPConn).SetLinger(0)
				c.Close()
			}
		}
	}()
	hello := []byte("\x16\x03\x01\x00\xff\x01\x00\x00\xfb\x03\x03") // and no more of it
	ways := []func(c net.Conn) error{
		func(c net.Conn) error { return nil }, // never sends
		func(c net.Conn) error { _, err := c.Write([]byte("CONNECT registry.te")); return err },
		func(c net.Conn) error {
			_, err := c.Write([]byte("CONNECT nowhere.test:443 HTTP/1.1\r\n\r\n"))
			return err
		},
		func(c net.Conn) error { return tunnelled(c, "files.test:443") },
		func(c net.Conn) error { return tunnelled(c, "registry.test:443") }, // and says nothing
		func(c net.Conn) error {
			err := tunnelled(c, "registry.test:443")
			_, _ = c.Write(hello)
			return err
		},
		func(c net.Conn) error {
			err := tunnelled(c, "registry.test:443")
			_, _ = c.Write(hello)
			_ = c.(*net.TCPConn).SetLinger(0)
			return err
		},
		func(c net.Conn) error { // half of it is over before it begins
			err := tunnelled(c, "files.test:443")
			_ = c.(*net.TCPConn).CloseWrite()
			return err
		},
		func(c net.Conn) error { // a handshake, and nothing then
			if err := tunnelled(c, "registry.test:443"); err != nil {
				return err
			}
			return tls.Client(c, &tls.Config{RootCAs: s.trust, ServerName: "registry.test"}).HandshakeContext(t.Context())
		},
		func(c net.Conn) error { // a request, whose answer nobody reads
			_, err := c.Write([]byte("GET http://registry.test/v2/a/manifests/v1 HTTP/1.1\r\nHost: x\r\n\r\n"))
			return err
		},
	}
	round := func(n int) {
		var wg sync.WaitGroup
		places := make(chan struct{}, 200)
		for i := range n {
			places <- struct{}{}
			wg.Go(func() {
				defer func() { <-places }()
				c, err := net.Dial("tcp", s.front.Listener.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				if err := ways[i%len(ways)](c); err != nil {
					t.Errorf("way %d: %v", i%len(ways), err)
				}
			})
		}
		wg.Wait()
	}
	round(100) // what is made once is made
	// settle waits until there are no more goroutines and files than that, or for ten seconds.
	settle := func(maxGoroutines, maxFiles int) (goroutines, files int) {
		for range 200 {
			runtime.GC() // pipes that were used for splicing are in a pool
			if goroutines, files = runtime.NumGoroutine(), descriptors(t); goroutines <= maxGoroutines && files <= maxFiles {
				break
			}
			<-time.After(50 * time.Millisecond)
		}
		return goroutines, files
	}
	goroutines, files := settle(20, 30)
	round(total)
	afterGoroutines, afterFiles := settle(goroutines+5, files+5)
	if afterGoroutines > goroutines+5 || afterFiles > files+5 {
		t.Errorf("%d goroutines and %d open files before, %d and %d after", goroutines, files, afterGoroutines, afterFiles)
	}
	s.Shutdown(t.Context())
}

// tunnelled asks for a tunnel and reads the answer.
func tunnelled(c net.Conn, target string) error {
	if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: x\r\n\r\n", target); err != nil {
		return err
	}
	b := make([]byte, len(established))
	_, err := io.ReadFull(c, b)
	if target == "files.test:443" && strings.HasPrefix(string(b), "HTTP/1.1 502 ") {
		return nil // its server reset the connection before it was one
	}
	if err != nil || string(b) != established {
		return fmt.Errorf("answer %q: %w", b, err)
	}
	return nil
}

// As many as there may be, and one more.
func TestFull(t *testing.T) {
	s := newSite(t)
	s.Proxy.mu.Lock()
	s.open += maxOpen - 1
	s.Proxy.mu.Unlock()
	s.connect(t, "registry.test:443")
	for _, request := range []string{"CONNECT registry.test:443", "CONNECT files.test:443", "GET http://files.test/"} {
		c := s.connection(t)
		c.send("%s HTTP/1.1\r\nHost: x\r\n\r\n", request)
		if got := c.status(); got != 503 {
			t.Errorf("%s: got %d, want 503", request, got)
		}
	}
	s.Proxy.mu.Lock()
	s.open -= maxOpen - 1
	s.Proxy.mu.Unlock()
}

// One client held all places with tunnels in which nothing moved. It has a quarter of them.
func TestGreedyClient(t *testing.T) {
	p := newSite(t).Proxy
	full := func(remote string) (n int) {
		for ; n <= maxOpen; n++ {
			if err := p.enter(remote); err != nil {
				break
			}
		}
		return n
	}
	greedy := []string{"192.0.2.1:1", "[::ffff:192.0.2.1]:2", "[2001:db8::1]:1", "[2001:db8::2]:1", "[fe80::1%eth0]:1"}
	want := []int{maxOfOne, 0, maxOfOne, 0, maxOfOne}
	for i, remote := range greedy {
		if got := full(remote); got != want[i] {
			t.Errorf("%s: got %d places, want %d", remote, got, want[i])
		}
	}
	if err := p.enter(greedy[0]); !errors.Is(err, errGreedy) {
		t.Errorf("got error %v", err)
	}
	if got, rest := full("127.0.0.1:1"), maxOpen-3*maxOfOne; got != rest {
		t.Errorf("this machine: got %d places, want %d", got, rest)
	}
	for i, remote := range append(greedy, "127.0.0.1:1") {
		n := maxOpen - 3*maxOfOne
		if i < len(want) {
			n = want[i]
		}
		for range n {
			p.leave(remote, nil)
		}
	}
	if p.open != 0 || len(p.of) != 0 {
		t.Errorf("left behind: %d, %v", p.open, p.of)
	}
}

// Programs that people use.
func TestPrograms(t *testing.T) {
	s := newSite(t)
	trust := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(trust, append(s.node.PEM(), s.world.PEM()...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("NOT TESTED with curl: install curl")
	}
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "curl", append([]string{"-sS", "--max-time", "20", "--cacert", trust}, args...)...)
		cmd.Env = append(os.Environ(), "http_proxy="+s.front.URL, "https_proxy="+s.front.URL, "no_proxy=", "NO_PROXY=")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("curl %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	for _, tt := range []struct{ url, want string }{
		{"http://files.test/a", "origin GET files.test /a "},
		{"https://files.test/a", "origin GET files.test /a "},
		{"https://registry.test/v2/a/manifests/v1", "node GET registry.test /v2/a/manifests/v1 "},
		{"http://registry.test/v2/a/manifests/v1", "node GET registry.test /v2/a/manifests/v1 "},
		{"https://registry.test:8443/v2/a/manifests/v1", "node GET registry.test:8443 /v2/a/manifests/v1 "},
	} {
		for _, version := range []string{"--http1.1", "--http2"} {
			if got := run(version, tt.url); got != tt.want {
				t.Errorf("curl %s %s: got %q, want %q", version, tt.url, got, tt.want)
			}
		}
	}
	body := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(body, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{"http://files.test/", "https://registry.test/x"} {
		if got := run("-T", body, "-o", "/dev/null", "-w", "%{http_code} %{size_upload}", url); got != "200 3145728" { // with Expect: 100-continue
			t.Errorf("curl -T %s: got %q", url, got)
		}
	}
}

// A registry without TLS looks to clients as it does without a proxy: those that may do without it try it first.
func TestPlainRegistry(t *testing.T) {
	s := newSite(t, func(c *Config) {
		c.IsRegistry = func(scheme, host string) bool { return scheme == "http" && host == "registry.test" }
	})
	s.raw(t, "registry.test:443").Close()
	c := s.client(t)
	if resp, err := c.Do(request(t, "GET", "https://registry.test/v2/", "")); err == nil {
		resp.Body.Close()
		t.Errorf("TLS: got %d", resp.StatusCode)
	}
	if got := do(t, c, request(t, "GET", "http://registry.test/v2/a/manifests/v1", "")); got.Header.Get("X-From") != "node" {
		t.Errorf("plain: got %q", got.body)
	}
}

// HTTP/2 can name two hosts in one request.
func TestTwoHosts(t *testing.T) {
	s := newSite(t)
	conn := tls.Client(s.connect(t, "registry.test:443"), &tls.Config{RootCAs: s.trust, ServerName: "registry.test", NextProtos: []string{"h2"}})
	if _, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	// Frames of RFC 9113, section 4.1, with headers of RFC 7541, section 6.2.2: literals that are not indexed.
	const headers, settings, endStreamAndHeaders = 1, 4, 5
	var block []byte
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "registry.test"}, {":path", "/x"}, {"host", "files.test"}} {
		block = append(append(block, 0, byte(len(f[0]))), f[0]...)
		block = append(append(block, byte(len(f[1]))), f[1]...)
	}
	if _, err := conn.Write(append([]byte{0, 0, 0, settings, 0, 0, 0, 0, 0, 0, 0, byte(len(block)), headers, endStreamAndHeaders, 0, 0, 0, 1}, block...)); err != nil {
		t.Fatal(err)
	}
	for {
		head := make([]byte, 9)
		if _, err := io.ReadFull(conn, head); err != nil {
			t.Fatal(err)
		}
		body := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
		if _, err := io.ReadFull(conn, body); err != nil {
			t.Fatal(err)
		}
		if head[3] == headers {
			if status400 := byte(0x80 | 12); body[0] != status400 { // RFC 7541, appendix A
				t.Errorf("the answer begins with %x, want %x", body[0], status400)
			}
			break
		}
	}
	if got := s.requests(); len(got) > 0 {
		t.Errorf("an origin saw %v", got)
	}
}
