package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pier/internal/chain"
	"pier/internal/config"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
	"pier/internal/upstream"
)

// Which TLS a proxy answers is what it was told, or what it knows to be registries.
func TestInterceptable(t *testing.T) {
	gate, err := upstream.NewGate(upstream.GateConfig{Upstreams: []upstream.Upstream{{Name: "listed.test"}, {Name: "plain.test:5000", Scheme: "http"}}})
	if err != nil {
		t.Fatal(err)
	}
	r := &registries{gate: gate, holder: named{"seen.test"}, met: func(name string) bool { return name == "met.test" }}
	patterns, err := upstream.ParsePatterns([]string{"*.corp.test", "plain.test:5000"})
	if err != nil {
		t.Fatal(err)
	}
	told := &registries{gate: gate, patterns: patterns, holder: named{"seen.test"}, met: r.met}
	for _, c := range []struct {
		scheme, host string
		known, told  bool
	}{
		{"https", "registry-1.docker.io", true, false},
		{"https", "quay.io", true, false},
		{"https", "listed.test", true, false},
		{"https", "seen.test", true, false},
		{"https", "met.test", true, false},
		{"https", "git.corp.test", false, true},
		{"https", "corp.test", false, false},
		{"https", "other.test", false, false},
		{"https", "plain.test:5000", false, false}, // it has no TLS: whoever expects some must see that it fails
		{"http", "plain.test:5000", true, true},
		{"http", "listed.test", true, true},
		{"http", "seen.test", false, false}, // what is known of it is known through TLS
		{"http", "quay.io", false, false},
	} {
		if got := r.has(c.scheme, c.host); got != c.known {
			t.Errorf("%s://%s: %t, want %t", c.scheme, c.host, got, c.known)
		}
		if got := told.has(c.scheme, c.host); got != c.told {
			t.Errorf("%s://%s where patterns were given: %t, want %t", c.scheme, c.host, got, c.told)
		}
	}
}

// named holds images of these registries.
type named []string

func (named) Holdings() ([]oci.Digest, error) { return nil, nil }
func (named) Changed() time.Time              { return time.Time{} }

func (n named) Names() (list []oci.Reference) {
	for _, registry := range n {
		list = append(list, oci.Reference{Registry: registry, Repository: "app", Tag: "v1", Digest: ocitest.Absent})
	}
	return list
}

var _ chain.Holder = named{}

// A client that knows of nothing but a proxy pulls through TLS what the node gets from a registry that it was told of, and gets it
// when the registry is gone.
func TestPullThroughTheProxy(t *testing.T) {
	s := newSite(t)
	layer := ocitest.Bytes(1, 300_000)
	manifest := s.content.Image(oci.Reference{Registry: "registry.test", Repository: "team/app", Tag: "v1"}, layer).Digest
	s.write(s.upstreams, "- name: registry.test\n  mirrors: ["+s.host+"]\n- name: "+s.host+"\n  scheme: http\n")
	dir := t.TempDir()
	n := s.node(func(c *config.Config) { c.ProxyListen, c.DataDir, c.TagTTL = "127.0.0.1:0", dir, time.Millisecond })
	authority, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	client := proxied(t, n.door("proxy"), authority)
	get := func(path string) string {
		t.Helper()
		resp, err := client.Get("https://registry.test/v2/" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s, %v: %.200s", path, resp.Status, err, b)
		}
		if path == "team/app/manifests/v1" && resp.Header.Get("Docker-Content-Digest") != manifest.String() {
			t.Errorf("the tag names %s, want %s", resp.Header.Get("Docker-Content-Digest"), manifest)
		}
		return string(b)
	}
	pull := func() {
		t.Helper()
		get("")
		get("team/app/manifests/v1")
		if got := get("team/app/blobs/" + ocitest.Digest(layer).String()); got != string(layer) {
			t.Errorf("%d bytes of other content", len(got))
		}
	}
	pull()
	s.gone.Store(true)
	pull()

	// What nobody listed is neither asked nor reached.
	for _, target := range []string{"https://127.0.0.1:443/", "https://localhost/", "https://registry.test:8443/"} {
		if _, err := client.Get(target); err == nil || !strings.Contains(err.Error(), "Forbidden") {
			t.Errorf("%s: got error %v, want a refusal", target, err)
		}
	}
}

// proxied returns a client that asks through a proxy and trusts one authority.
func proxied(t *testing.T, proxy string, authority []byte) *http.Client {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) {
		t.Fatalf("no certificate in %q", authority)
	}
	transport := &http.Transport{
		Proxy:           http.ProxyURL(&url.URL{Scheme: "http", Host: proxy}),
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr != proxy {
				return nil, errors.New("the client went past the proxy to " + addr)
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

// Where there is a proxy already, a node that nobody asked to be one starts without, and one that was asked does not start.
func TestAnotherProxyIsThere(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	s := newSite(t)
	name, _ := s.image("team/app", []byte("layer"))
	n := s.node(func(c *config.Config) {
		c.ProxyListen, c.ProxyByDefault, c.DataDir = other.Addr().String(), true, t.TempDir()
	})
	if _, err := n.locate("node", name); err != nil || !n.log.has("nobody asked for a proxy") {
		t.Errorf("it does not serve: %v", err)
	}
	asked, err := New(t.Context(), config.Config{
		Listen: []string{"127.0.0.1:0"}, ProxyListen: other.Addr().String(), Stores: []string{config.StoreNone}, DataDir: t.TempDir(), PullTimeout: time.Minute,
	}, "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := asked.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "is in use; stop what listens there or set --proxy-listen") {
		t.Errorf("got error %v", err)
	}
}
