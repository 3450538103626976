package clusterkey

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func always(k Keys) func() Keys { return func() Keys { return k } }

// serve starts a node's door, and returns its URL.
func serve(t *testing.T, config *tls.Config) string {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto)
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	// httptest would add a certificate of its own.
	srv.Listener = tls.NewListener(srv.Listener, config)
	srv.Start()
	t.Cleanup(srv.Close)
	return "https://" + srv.Listener.Addr().String()
}

// get asks url once, over a connection of its own, and returns the answer.
func get(t *testing.T, url string, config *tls.Config) (string, error) {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: config.Clone(), DisableKeepAlives: true, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: 10 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func TestSameKey(t *testing.T) {
	text := New()
	server, _ := TLS(always(read(t, text)))
	_, client := TLS(always(read(t, text)))
	if body, err := get(t, serve(t, server), client); err != nil || body != "HTTP/1.1" {
		t.Errorf("got %q and error %v, want HTTP/1.1", body, err)
	}
}

// Regression: http.Server adds HTTP/2 to the protocols of the configuration that it is given.
func TestServeTLS(t *testing.T) {
	k := read(t, New())
	server, client := TLS(always(k))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{TLSConfig: server, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto)
	})}
	go func() { _ = srv.ServeTLS(l, "", "") }()
	defer srv.Close()
	offering := client.Clone()
	offering.NextProtos = []string{"h2", "http/1.1"}
	if body, err := get(t, "https://"+l.Addr().String(), offering); err != nil || body != "HTTP/1.1" {
		t.Errorf("got %q and error %v, want HTTP/1.1", body, err)
	}
}

func TestRotation(t *testing.T) {
	a, b := New(), New()
	for _, tt := range []struct {
		name          string
		first, second []string
		want          bool
	}{
		{"only the old, and the new accepted", []string{a}, []string{a, b}, true},
		{"the new accepted, and the new used", []string{a, b}, []string{b, a}, true},
		{"the new used, and the old dropped", []string{b, a}, []string{b}, true},
		{"another key", []string{a}, []string{b}, false},
		{"a step left out", []string{a}, []string{b, a}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, pair := range [][2]Keys{
				{read(t, tt.first...), read(t, tt.second...)},
				{read(t, tt.second...), read(t, tt.first...)},
			} {
				server, _ := TLS(always(pair[0]))
				_, client := TLS(always(pair[1]))
				if _, err := get(t, serve(t, server), client); (err == nil) != tt.want {
					t.Errorf("got error %v, want success %v", err, tt.want)
				}
			}
		})
	}
}

// A node that reads its file again needs no new listener and no new client.
func TestChange(t *testing.T) {
	a, b := read(t, New()), read(t, New())
	var now atomic.Pointer[Keys]
	now.Store(&Keys{})
	server, client := TLS(func() Keys { return *now.Load() })
	url := serve(t, server)
	_, clientA := TLS(always(a))
	_, clientB := TLS(always(b))
	serverB, _ := TLS(always(b))
	urlB := serve(t, serverB)

	check := func(what, url string, client *tls.Config, want bool) {
		t.Helper()
		if _, err := get(t, url, client); (err == nil) != want {
			t.Errorf("%s: got error %v, want success %v", what, err, want)
		}
	}
	check("no key at the server", url, clientA, false)
	check("no key at either side", url, client, false)
	check("no key at the client", urlB, client, false)
	now.Store(&a)
	check("key of the server added", url, clientA, true)
	check("another client", url, clientB, false)
	check("another server", urlB, client, false)
	now.Store(&b)
	check("key of the server replaced", url, clientB, true)
	check("the old client", url, clientA, false)
	check("key of the client replaced", urlB, client, true)
	now.Store(&Keys{})
	check("key taken away", url, clientB, false)
}

// selfMade returns a certificate of a stranger, and those of an authority that it made itself in the image of ours.
func selfMade(t *testing.T) tls.Certificate {
	t.Helper()
	seed := make([]byte, keySize)
	_, _ = rand.Read(seed)
	a, err := newAuthority(seed)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.issue()
	if err != nil {
		t.Fatal(err)
	}
	cert.Certificate = append(cert.Certificate, a.cert.Raw)
	return *cert
}

// issuedByNode returns a certificate that a node of the cluster signed with the key of its own: a node is no authority.
func issuedByNode(t *testing.T, k Keys) tls.Certificate {
	t.Helper()
	template := k.leaf.Leaf
	forged := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: nodeName}, DNSNames: template.DNSNames,
		NotBefore: notBefore, NotAfter: notAfter, ExtKeyUsage: template.ExtKeyUsage,
	}
	own := selfMade(t)
	der, err := x509.CreateCertificate(rand.Reader, forged, template, own.Leaf.PublicKey, k.leaf.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der, template.Raw}, PrivateKey: own.PrivateKey}
}

func TestStrangerAtServer(t *testing.T) {
	k := read(t, New())
	server, _ := TLS(always(k))
	url := serve(t, server)
	trusting := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}
	with := func(change func(*tls.Config)) *tls.Config {
		c := trusting.Clone()
		change(c)
		return c
	}
	_, other := TLS(always(read(t, New())))
	_, old := TLS(always(k))
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for name, client := range map[string]*tls.Config{
		"another key":                        other,
		"another key, trusting":              with(func(c *tls.Config) { c.GetClientCertificate = other.GetClientCertificate }),
		"no certificate":                     trusting,
		"a certificate of its own authority": with(func(c *tls.Config) { c.Certificates = []tls.Certificate{selfMade(t)} }),
		"a certificate signed by a node":     with(func(c *tls.Config) { c.Certificates = []tls.Certificate{issuedByNode(t, k)} }),
		"TLS 1.2":                            old,
	} {
		if body, err := get(t, url, client); err == nil {
			t.Errorf("%s: got %q, want an error", name, body)
		}
	}
	resp, err := http.Get("http" + url[len("https"):])
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest { // http.Server's answer to who does not speak TLS
		t.Errorf("no TLS: got %s, want 400", resp.Status)
	}
}

func TestStrangerAtClient(t *testing.T) {
	k := read(t, New())
	_, client := TLS(always(k))
	other, _ := TLS(always(read(t, New())))
	lax := &tls.Config{Certificates: []tls.Certificate{selfMade(t)}}
	old, _ := TLS(always(k))
	inner := old.GetConfigForClient
	old.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		c, err := inner(h)
		c = c.Clone()
		c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		return c, err
	}
	for name, tt := range map[string]struct {
		server   *tls.Config
		stranger bool // and not an older protocol
	}{
		"another key":                        {other, true},
		"a certificate of its own authority": {lax, true},
		"a certificate signed by a node":     {&tls.Config{Certificates: []tls.Certificate{issuedByNode(t, k)}}, true},
		"TLS 1.2":                            {old, false},
	} {
		body, err := get(t, serve(t, tt.server), client)
		if err == nil || errors.Is(err, ErrStranger) != tt.stranger {
			t.Errorf("%s: got %q and error %v, want ErrStranger %v", name, body, err, tt.stranger)
		}
	}
}

// A key that was dropped does not live on in sessions.
func TestNoResumption(t *testing.T) {
	server, client := TLS(always(read(t, New())))
	url := serve(t, server)
	client.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	for range 2 {
		if _, err := get(t, url, client); err != nil {
			t.Fatal(err)
		}
		if s, ok := client.ClientSessionCache.Get(nodeName); ok {
			t.Errorf("a session was kept: %v", s)
		}
	}
}

// Machines without a battery start in 1970, others are years ahead: certificates are made and judged at any time.
func TestClocks(t *testing.T) {
	file := write(t, New())
	early := func() time.Time { return time.Unix(-1, 0) }
	late := func() time.Time { return notAfter.Add(time.Hour) }
	for name, clock := range map[string]struct{ server, client func() time.Time }{
		"the server's long ago": {early, late},
		"the client's long ago": {late, early},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // in the year 2000
				node := func() Keys {
					k, err := Read(file)
					if err != nil {
						t.Fatal(err)
					}
					return k
				}
				server, _ := TLS(always(node()))
				time.Sleep(200 * 365 * 24 * time.Hour) // and two centuries later
				_, client := TLS(always(node()))
				server, err := server.GetConfigForClient(nil)
				if err != nil {
					t.Fatal(err)
				}
				server.Time, client.Time = clock.server, clock.client
				one, two := net.Pipe()
				defer one.Close()
				defer two.Close()
				done := make(chan error, 1)
				go func() { done <- tls.Server(one, server).HandshakeContext(context.Background()) }()
				if err := tls.Client(two, client).HandshakeContext(t.Context()); err != nil {
					t.Errorf("client: %v", err)
				}
				if err := <-done; err != nil {
					t.Errorf("server: %v", err)
				}
			})
		})
	}
}
