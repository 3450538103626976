//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/e2e/faultproxy"
)

// A trap is a listener that nothing may dial.
type trap struct {
	port   string
	dialed atomic.Int64
}

func startTrap(t *testing.T) *trap {
	t.Helper()
	l, err := net.Listen("tcp", ":0") // every address of this machine, loopback of both families included
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	tr := &trap{port: port}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			tr.dialed.Add(1)
			conn.Close()
		}
	}()
	return tr
}

func TestUnlistedPrivateAddressesAreRefusedAndNeverDialed(t *testing.T) {
	t.Parallel()
	tr := startTrap(t)
	p := startPier(t, pierConfig{})
	i := newImage(t, 100)
	paths := []string{
		"app/manifests/v1", "app/manifests/" + i.root().Digest.String(), "app/blobs/" + i.layer(0).Digest.String(),
		"app/tags/list", "app/referrers/" + i.root().Digest.String(),
	}
	for _, host := range []string{
		"127.0.0.1:" + tr.port, "127.8.9.10:" + tr.port, "localhost:" + tr.port, "0.0.0.0:" + tr.port, "[::1]:" + tr.port,
		"[::]:" + tr.port, "[::ffff:127.0.0.1]:" + tr.port, "LOCALHOST:" + tr.port, "localhost.:" + tr.port,
		"169.254.169.254", "10.0.0.1", "172.16.0.1", "192.168.0.1:5000", "[fd00::1]", "[fe80::1]:5000",
	} {
		door := newClient(p.node, host)
		for _, path := range paths {
			begin := time.Now()
			door.get(t, path).wantStatus(t, "?ns="+host+" "+path, http.StatusForbidden)
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("?ns=%s was refused after %v: was it dialed?", host, took)
			}
		}
	}
	// The other ways to name a registry.
	host := "127.0.0.1:" + tr.port
	bare := newClient(p.node, "")
	bare.get(t, host+"/app/manifests/v1").wantStatus(t, "registry in the path", http.StatusForbidden)
	bare.get(t, "app/manifests/v1", "X-Registry", host).wantStatus(t, "registry in X-Registry", http.StatusForbidden)
	// Names that other programs read as loopback addresses.
	for _, host := range []string{"127.1:" + tr.port, "2130706433:" + tr.port, "0x7f000001:" + tr.port} {
		if a := newClient(p.node, host).get(t, "app/manifests/v1"); a.status == http.StatusOK {
			t.Errorf("?ns=%s: status %d", host, a.status)
		}
	}
	if n := tr.dialed.Load(); n != 0 {
		t.Errorf("an unlisted address was dialed %d times", n)
	}
}

func TestAllowedPatternIsDialed(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{ca: newAuthority(t)})
	p := startPier(t, pierConfig{args: []string{"--allow-upstream", registry.addr}})
	// TLS with an unknown authority: the pull cannot work, but not because it is forbidden.
	if a := newClient(p.node, registry.addr).get(t, "app/manifests/v1"); a.status == http.StatusForbidden || a.status == http.StatusOK {
		t.Errorf("status %d", a.status)
	}
	if !strings.Contains(registry.processes[1].log.String(), "TLS handshake error") {
		t.Error("the allowed registry was not dialed")
	}
}

func TestPeerDoorNeverGoesUpstream(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	i := newImage(t, 1000)
	registry.put(t, "app", "v1", i)
	front := startFront(t, registry.addr, 0)
	p := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", front.Host()), args: []string{"--cache-dir", t.TempDir()}})
	door := newClient(p.peer, "registry.test")
	for _, path := range []string{
		"app/manifests/v1", "app/manifests/" + i.root().Digest.String(), "app/blobs/" + i.layer(0).Digest.String(),
		"app/tags/list",
	} {
		door.get(t, path).wantStatus(t, path, http.StatusNotFound)
	}
	if n := front.Count("", ""); n != 0 {
		t.Errorf("upstream was asked %d times", n)
	}
}

func TestBadInputIsAnsweredWithTheErrorOfTheSpecification(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	i := newImage(t, 5000)
	registry.put(t, "app", "v1", i)
	dir := t.TempDir()
	p := startPier(t, pierConfig{upstreams: plainUpstream(registry.addr), args: []string{"--cache-dir", dir}})
	door := newClient(p.node, registry.addr)
	layer := "app/blobs/" + i.layer(0).Digest.String()
	for _, c := range []struct {
		path   string
		status int
		code   string // empty: any
	}{
		{"UPPER/app/manifests/v1", http.StatusBadRequest, "NAME_INVALID"},
		{"a..b/manifests/v1", http.StatusBadRequest, "NAME_INVALID"},
		{"app/blobs/sha256:xyz", http.StatusBadRequest, "DIGEST_INVALID"},
		{"app/blobs/md5:d41d8cd98f00b204e9800998ecf8427e", http.StatusBadRequest, "DIGEST_INVALID"},
		{"app/manifests/sha256:" + strings.Repeat("0", 63), http.StatusBadRequest, ""},
		{"app/manifests/-v1", http.StatusNotFound, ""},
		{"app/manifests/" + strings.Repeat("x", 129), http.StatusNotFound, ""},
		{"app/referrers/nothing", http.StatusBadRequest, "DIGEST_INVALID"},
		{"app/manifests/absent", http.StatusNotFound, "MANIFEST_UNKNOWN"},
		{"app/blobs/sha256:" + strings.Repeat("0", 64), http.StatusNotFound, "BLOB_UNKNOWN"},
	} {
		a := door.get(t, c.path)
		a.wantStatus(t, c.path, c.status)
		var body struct {
			Errors []struct{ Code, Message string }
		}
		if err := json.Unmarshal(a.body, &body); err != nil || len(body.Errors) == 0 || body.Errors[0].Code == "" ||
			c.code != "" && body.Errors[0].Code != c.code {
			t.Errorf("%s: want code %s: %s", c.path, c.code, a.body)
		}
	}
	for _, accept := range []string{"/", "text/;", "application/json;q", strings.Repeat("a/b,", 100)} {
		door.get(t, "app/manifests/v1", "Accept", accept).wantStatus(t, "Accept "+accept[:min(len(accept), 20)], http.StatusBadRequest, http.StatusRequestHeaderFieldsTooLarge)
	}
	if files, err := filepath.Glob(filepath.Join(dir, "blobs", "*", "*")); err != nil || len(files) > 0 {
		t.Errorf("kept of all that are %q, %v", files, err)
	}
	door.get(t, layer, "Range", "bytes=99999999-").wantStatus(t, "range past the end", http.StatusRequestedRangeNotSatisfiable)
	door.get(t, layer, "Range", "bytes=abc").wantStatus(t, "range that is none", http.StatusOK, http.StatusRequestedRangeNotSatisfiable)
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch} {
		a, err := door.do(t.Context(), method, "app/manifests/v1")
		if err != nil || a.status != http.StatusMethodNotAllowed || method != http.MethodDelete && !strings.Contains(string(a.body), "--accept-push") {
			t.Errorf("%s: status %d, error %v: %s", method, a.status, err, a.body)
		}
	}
	door.mustPull(t, "app", "v1", i)
}

func TestManifestThatIsTooLargeIsRefusedAndNotKept(t *testing.T) {
	t.Parallel()
	manifest := newJSON(t, v1.MediaTypeImageManifest, map[string]any{
		"schemaVersion": 2, "config": newBlob("x", nil).Descriptor, "layers": []string{}, "x": strings.Repeat("x", 5<<20),
	})
	upstream := faultproxy.New(faultproxy.Config{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", manifest.MediaType)
		w.Header().Set("Content-Length", fmt.Sprint(manifest.Size))
		w.Header().Set("Docker-Content-Digest", manifest.Digest.String())
		if r.Method == http.MethodGet {
			_, _ = w.Write(manifest.data) // pier may leave early
		}
	})}).Start(t)
	dir := t.TempDir()
	p := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", upstream.Host()), args: []string{"--cache-dir", dir}})
	for _, reference := range []string{"v1", manifest.Digest.String()} {
		a, err := newClient(p.node, "registry.test").do(t.Context(), http.MethodGet, "app/manifests/"+reference)
		if err == nil && a.status < 400 {
			t.Errorf("%s: status %d with %d bytes", reference, a.status, len(a.body))
		}
	}
	if used, files := diskUsage(t, dir); used > 1<<20 {
		t.Errorf("the cache holds %v", files)
	}
}
