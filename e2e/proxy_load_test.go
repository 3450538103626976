//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// throughProxy is a client of a node's proxy, which trusts its authority. It speaks HTTP/2 where it can, or it does not.
func (p *pier) throughProxy(t *testing.T, http2 bool) *http.Client {
	t.Helper()
	roots := x509.NewCertPool()
	pem, err := os.ReadFile(filepath.Join(p.data, "ca.crt"))
	must(t, err)
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatal("ca.crt holds no certificate")
	}
	transport := &http.Transport{
		Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: p.proxyAddr()}), TLSClientConfig: &tls.Config{RootCAs: roots},
		ForceAttemptHTTP2: http2, DisableCompression: true,
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: requestTimeout}
}

// fetchBlob gets a blob of app, and returns an error if that is not what it is.
func fetchBlob(ctx context.Context, client *http.Client, base string, b blob) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/v2/app/blobs/"+b.Digest.String(), nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	digester := digest.Canonical.Digester()
	if _, err := io.Copy(digester.Hash(), resp.Body); err != nil {
		return err
	}
	if digester.Digest() != b.Digest {
		return fmt.Errorf("%s: %s has other content", resp.Status, b.Digest)
	}
	return nil
}

// descriptors returns how many files and connections a process has open.
func (p *process) descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid()))
	must(t, err)
	return len(list)
}

// 20 pulls at once through TLS that the proxy answers fit in the memory that a small node has for it.
func TestProxyNeedsLittleMemoryForManyPulls(t *testing.T) {
	registry := startRegistry(t, registryConfig{})
	p := startPier(t, pierConfig{proxy: true, upstreams: namedUpstream("registry.test", registry.addr), env: []string{"PIER_LOG_LEVEL=info"}})
	var images []*image
	for n := range 20 {
		i := newImage(t, 6*mib, 2*mib)
		registry.put(t, "app", fmt.Sprint("v", n), i)
		images = append(images, i)
	}
	var wg sync.WaitGroup
	for n, i := range images {
		client := p.throughProxy(t, n%2 > 0)
		wg.Go(func() {
			for _, b := range i.blobs {
				if err := fetchBlob(t.Context(), client, "https://registry.test", b); err != nil {
					t.Errorf("client %d: %v", n, err)
				}
			}
		})
	}
	wg.Wait()
	peak := p.peakMemory(t)
	t.Logf("at most %.1f MiB resident", float64(peak)/mib)
	if peak > 25_000_000 {
		t.Errorf("%d bytes were resident with 20 pulls at once, want at most 25 MB", peak)
	}
}

// Nothing is left of 10,000 connections of all kinds, those that never say anything among them.
func TestProxyKeepsNothingOfTenThousandConnections(t *testing.T) {
	registry := startRegistry(t, registryConfig{})
	want := newImage(t, 1000)
	registry.put(t, "app", "v1", want)
	site := startWeb(t, newAuthority(t), http.HandlerFunc(echo))
	p := startPier(t, pierConfig{
		proxy: true, upstreams: namedUpstream("registry.test", registry.addr), args: []string{"--allow-upstream", site}, env: []string{"PIER_LOG_LEVEL=warn"},
	})
	addr := p.proxyAddr()
	intercepted := p.throughProxy(t, false)
	intercepted.Transport.(*http.Transport).DisableKeepAlives = true
	// say connects, says something, and leaves: at once, or when the proxy has answered so many bytes.
	say := func(text string, answer int64) error {
		conn, err := net.DialTimeout("tcp", addr, proxyTime)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(proxyTime)); err != nil {
			return err
		}
		if _, err := io.WriteString(conn, text); err != nil {
			return err
		}
		_, err = io.CopyN(io.Discard, conn, answer)
		return err
	}
	kinds := []func() error{
		func() error { return fetchBlob(t.Context(), intercepted, "https://registry.test", want.layer(0)) },
		func() error { return say("", 0) },
		func() error { return say("CONNECT registry.test:443 HT", 0) },
		func() error { return say("CONNECT registry.test:443 HTTP/1.1\r\nHost: registry.test:443\r\n\r\n", 12) },
		func() error {
			return say("CONNECT registry.test:443 HTTP/1.1\r\nHost: registry.test:443\r\n\r\n\x16\x03\x01\x02\x00", 12)
		},
		func() error { return say(fmt.Sprintf("CONNECT %[1]s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", site), 12) },
		func() error { return say("CONNECT 10.1.2.3:443 HTTP/1.1\r\nHost: 10.1.2.3:443\r\n\r\n", 12) },
		func() error {
			return say("GET http://registry.test/v2/app/blobs/"+want.layer(0).Digest.String()+" HTTP/1.1\r\nHost: registry.test\r\n\r\n", 15)
		},
		func() error { return say("\x00\x01\x02 nonsense\r\n\r\n", 12) },
		func() error {
			return say("POST http://"+registry.addr+"/v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf", 0)
		},
	}
	all := func(total int) {
		t.Helper()
		work := make(chan int)
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				for n := range work {
					if err := kinds[n%len(kinds)](); err != nil {
						t.Errorf("connection %d, kind %d: %v", n, n%len(kinds), err)
					}
				}
			})
		}
		for n := range total {
			if t.Failed() {
				break
			}
			work <- n
		}
		close(work)
		wg.Wait()
	}
	all(400) // what is kept for good is there: connections to the registry, buffers
	var silent []net.Conn
	for range 100 { // that never send, and do not leave either
		conn, err := net.DialTimeout("tcp", addr, proxyTime)
		must(t, err)
		defer conn.Close()
		silent = append(silent, conn)
	}
	p.settle(t, 0, 0)
	descriptors, goroutines := p.descriptors(t), p.metric(t, "go_goroutines")
	all(10_000)
	p.settle(t, descriptors, goroutines)
	for n, conn := range silent {
		must(t, conn.SetReadDeadline(time.Now().Add(proxyTime)))
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			continue // it was told why
		} else if os.IsTimeout(err) {
			t.Fatalf("connection %d that never sent anything is still open", n)
		}
	}
	t.Logf("at most %.1f MiB resident", float64(p.peakMemory(t))/mib)
}

// settle waits until the node has no more open than it had, or, if that is 0, until that stays the same for a while.
func (p *pier) settle(t *testing.T, descriptors int, goroutines float64) {
	t.Helper()
	lastD, lastG, same := 0, 0.0, 0
	eventually(t, 2*time.Minute, func() error {
		d, g := p.descriptors(t), p.metric(t, "go_goroutines")
		if descriptors > 0 {
			if d > descriptors+5 || g > goroutines+10 {
				return fmt.Errorf("%d descriptors and %v goroutines are left, want %d and %v", d, g, descriptors, goroutines)
			}
			return nil
		}
		if same++; d != lastD || g != lastG {
			lastD, lastG, same = d, g, 0
		}
		if same < 120 { // 3 s
			return fmt.Errorf("%d descriptors and %v goroutines, and changing", d, g)
		}
		return nil
	})
}
