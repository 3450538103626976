//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pier/e2e/netns"
)

// proxyTime bounds what is said to a proxy by hand.
const proxyTime = 30 * time.Second

// proxyAddr is where the node's proxy listens.
func (p *pier) proxyAddr() string { return strings.TrimPrefix(p.proxy, "http://") }

// dialProxy connects to the proxy and sends what is given.
func dialProxy(t *testing.T, addr, raw string) *net.TCPConn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, proxyTime)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	must(t, conn.SetDeadline(time.Now().Add(proxyTime)))
	_, err = io.WriteString(conn, raw)
	must(t, err)
	return conn.(*net.TCPConn)
}

// connectTo has the proxy connect to host:port.
func connectTo(t *testing.T, addr, target string) *net.TCPConn {
	t.Helper()
	conn := dialProxy(t, addr, fmt.Sprintf("CONNECT %[1]s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", target))
	resp, err := http.ReadResponse(bufio.NewReaderSize(conn, 16), &http.Request{Method: http.MethodConnect})
	must(t, err)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("CONNECT %s: %s", target, resp.Status)
	}
	return conn
}

// shown returns the certificates that a client gets to see through the proxy.
func shown(t *testing.T, addr, target string) []*x509.Certificate {
	t.Helper()
	host, _, err := net.SplitHostPort(target)
	must(t, err)
	conn := tls.Client(connectTo(t, addr, target), &tls.Config{ServerName: host, InsecureSkipVerify: true}) // it is looked at
	must(t, conn.Handshake())
	return conn.ConnectionState().PeerCertificates
}

func TestProxyShowsItsOwnCertificateForRegistriesOnly(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	h := http.HandlerFunc(echo)
	registry, site := startWeb(t, ca, h), startWeb(t, ca, h)
	p := startPier(t, pierConfig{
		proxy: true, upstreams: fmt.Sprintf("- name: %s\n  tls: {ca: %s}\n", registry, ca.file), args: []string{"--allow-upstream", site},
	})
	direct, err := tls.Dial("tcp", site, &tls.Config{RootCAs: ca.pool()})
	must(t, err)
	defer direct.Close()
	if got := shown(t, p.proxyAddr(), site); !bytes.Equal(got[0].Raw, direct.ConnectionState().PeerCertificates[0].Raw) {
		t.Errorf("a site that is no registry shows a certificate of %s, want its own", got[0].Issuer)
	}
	got := shown(t, p.proxyAddr(), registry)
	roots := x509.NewCertPool()
	own, err := os.ReadFile(p.data + "/ca.crt")
	must(t, err)
	if !roots.AppendCertsFromPEM(own) {
		t.Fatal("ca.crt holds no certificate")
	}
	if _, err := got[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: "localhost"}); err != nil {
		t.Errorf("a registry shows a certificate of %s: %v", got[0].Issuer, err)
	}
	info, err := os.Stat(p.data + "/ca.key")
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the key of the authority has mode %v, want 0600", info.Mode())
	}
}

// Both ends of an upgraded connection and of a tunnel can say that they have no more to say, and still listen.
func TestProxyCarriesUpgradesAndHalfCloses(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	plain := startWeb(t, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "echo" {
			http.Error(w, "no upgrade", http.StatusUpgradeRequired)
			return
		}
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return // the client sees that
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_, _ = io.Copy(conn, buffered)
	}))
	go func() { // ends with the listener
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(conn, conn)
			conn.Close()
		}
	}()
	p := startPier(t, pierConfig{proxy: true, upstreams: plainUpstream(plain) + plainUpstream(l.Addr().String())})
	content := make([]byte, 3<<20)
	_, _ = newRandom(t).Read(content)

	upgraded := dialProxy(t, p.proxyAddr(), fmt.Sprintf("GET http://%[1]s/ HTTP/1.1\r\nHost: %[1]s\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n", plain))
	reader := bufio.NewReader(upgraded)
	resp, err := http.ReadResponse(reader, nil)
	must(t, err)
	if resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Upgrade") != "echo" {
		t.Fatalf("upgrade: %s %v", resp.Status, resp.Header)
	}
	wantEcho(t, upgraded, reader, content)
	tunnel := connectTo(t, p.proxyAddr(), l.Addr().String())
	wantEcho(t, tunnel, tunnel, content)
}

// wantEcho sends content, closes its half of the connection, and wants the content back.
func wantEcho(t *testing.T, conn *net.TCPConn, from io.Reader, content []byte) {
	t.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(content)
		if err == nil {
			err = conn.CloseWrite()
		}
		sent <- err
	}()
	got, err := io.ReadAll(from)
	must(t, err)
	must(t, <-sent)
	if !bytes.Equal(got, content) {
		t.Errorf("%d bytes came back that are not the %d sent", len(got), len(content))
	}
}

func TestProxyRefusesWhatItMustNotReachOrCannotRead(t *testing.T) {
	t.Parallel()
	reached := make(chan string, 100)
	secret := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { reached <- r.URL.String() }))
	defer secret.Close()
	open := startWeb(t, nil, http.HandlerFunc(echo))
	_, port, _ := strings.Cut(secret.Listener.Addr().String(), ":")
	p := startPier(t, pierConfig{proxy: true, upstreams: plainUpstream(open)})
	get := func(host string) string {
		return fmt.Sprintf("GET http://%[1]s/ HTTP/1.1\r\nHost: %[1]s\r\n\r\n", host)
	}
	tunnel := func(host string) string { return fmt.Sprintf("CONNECT %[1]s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", host) }
	for _, c := range []struct {
		raw  string
		want []int // statuses; 0: the connection is closed without one
	}{
		{get("localhost:" + port), []int{403}},
		{get("127.0.0.1:" + port), []int{403}},
		{get("[::1]:" + port), []int{403}},
		{get("[::ffff:127.0.0.1]:" + port), []int{403}},
		{get("0.0.0.0:" + port), []int{403}},
		{get("127.1:" + port), []int{400, 403, 502}},
		{get("2130706433:" + port), []int{400, 403, 502}},
		{get("10.1.2.3"), []int{403}},
		{get("192.168.0.1"), []int{403}},
		{get("169.254.169.254"), []int{403}},
		{get("[fe80::1]"), []int{403}},
		{get("[fd00::1]"), []int{403}},
		{get(p.nodeAddr()), []int{403}},
		{get(p.proxyAddr()), []int{403, 508}},
		{tunnel("127.0.0.1:443"), []int{403}},
		{tunnel("localhost:443"), []int{403}},
		{tunnel("10.1.2.3:443"), []int{403}},
		{tunnel("[::1]:443"), []int{403}},
		{tunnel("localhost:" + port), []int{403}},
		{tunnel("example.com:22"), []int{403}},
		{tunnel("example.com:8443"), []int{403}},
		{tunnel("example.com"), []int{400}},
		{tunnel("example.com:99999"), []int{400}},
		{tunnel("user@example.com:443"), []int{400}},
		{"GET http://user:secret@" + open + "/ HTTP/1.1\r\nHost: " + open + "\r\n\r\n", []int{400}},
		{"GET https://" + open + "/ HTTP/1.1\r\nHost: " + open + "\r\n\r\n", []int{400}},
		{"GET ftp://" + open + "/ HTTP/1.1\r\nHost: " + open + "\r\n\r\n", []int{400}},
		{"GET / HTTP/1.1\r\nHost: " + open + "\r\n\r\n", []int{400}},
		{"GET http://" + open + "/1 HTTP/1.1\r\nHost: " + open + "\r\nX: " + strings.Repeat("x", 100<<10) + "\r\n\r\n", []int{431}},
		{"POST http://" + open + "/ HTTP/1.1\r\nHost: " + open + "\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + get("127.0.0.1:"+port), []int{200, 400}},
		{"POST http://" + open + "/ HTTP/1.1\r\nHost: " + open + "\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", []int{400, 501}},
		{"POST http://" + open + "/ HTTP/1.1\r\nHost: " + open + "\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", []int{400}},
		{"GET http://" + open + "/1 HTTP/1.1\r\nHost: " + open + "\r\n X: folded\r\n\r\n", []int{400}},
	} {
		got := 0
		conn := dialProxy(t, p.proxyAddr(), c.raw)
		if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
			got = resp.StatusCode
			if text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)); got == http.StatusForbidden && !strings.Contains(string(text), "pier: ") {
				t.Errorf("%.80q: the answer does not say who refused: %q", c.raw, text)
			}
		}
		if !slices.Contains(c.want, got) {
			t.Errorf("%.80q: status %d, want %v", c.raw, got, c.want)
		}
		conn.Close()
	}
	select {
	case path := <-reached:
		t.Errorf("a request for %s reached a server that is not listed", path)
	default:
	}
	if log := p.log.String(); strings.Contains(log, "secret@") || strings.Contains(log, "user:secret") {
		t.Error("the log holds a password")
	}
}

// The proxy is for its own machine, and for networks that are named.
func TestProxyLetsInOnlyClientsOfItsMachineAndOfNetworksThatAreNamed(t *testing.T) {
	t.Parallel()
	s := layOut(t, 3, netns.Link{}, netns.Link{}, registryConfig{})
	want := newImage(t, 100<<10)
	s.registry.put(t, "app", "v1", want)
	p := startPier(t, pierConfig{
		at: s.Node(1), proxy: true, upstreams: plainUpstream(s.registry.addr),
		args: []string{"--proxy-listen", "10.77.0.1:3128", "--proxy-allow", "10.77.0.2/32"},
	})
	for k, status := range map[int]int{2: http.StatusOK, 3: http.StatusForbidden} {
		transport := s.Node(k).Transport()
		transport.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: "10.77.0.1:3128"})
		defer transport.CloseIdleConnections()
		c := newClient("http://"+s.registry.addr, "")
		c.http = &http.Client{Transport: transport, Timeout: proxyTime}
		ctx, cancel := context.WithTimeout(t.Context(), proxyTime)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.registry.addr+"/v2/app/blobs/"+want.layer(0).Digest.String(), nil)
		must(t, err)
		resp, err := c.http.Do(req)
		must(t, err)
		body, err := io.ReadAll(resp.Body)
		must(t, err)
		resp.Body.Close()
		if resp.StatusCode != status {
			t.Errorf("node %d: status %d, want %d: %.200s", k, resp.StatusCode, status, body)
		}
	}
	eventually(t, soon, func() error { return wantLogged(p, "other clients need --proxy-allow") })
}
