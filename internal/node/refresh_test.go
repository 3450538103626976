package node

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pier/internal/config"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
	"pier/internal/registry"
)

// A fakeRegistry has images that may change.
type fakeRegistry struct {
	*ocitest.Memory
	name  string // host:port
	yaml  string // file of upstreams
	gone  atomic.Bool
	asked atomic.Int64 // requests
}

func startFakeRegistry(t *testing.T) *fakeRegistry {
	t.Helper()
	f := &fakeRegistry{Memory: &ocitest.Memory{}}
	handler := registry.New(registry.Config{Source: f.Memory})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.asked.Add(1)
		if f.gone.Load() {
			http.Error(w, "gone", http.StatusServiceUnavailable)
			return
		}
		q := r.URL.Query()
		q.Set("ns", f.name)
		r.URL.RawQuery = q.Encode()
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	f.name = strings.TrimPrefix(server.URL, "http://")
	f.yaml = filepath.Join(t.TempDir(), "upstreams.yaml")
	must(t, os.WriteFile(f.yaml, []byte("- name: "+f.name+"\n  scheme: http\n"), 0o600))
	return f
}

func (f *fakeRegistry) ref(t *testing.T, text string) oci.Reference {
	t.Helper()
	ref, err := oci.ParseReference(f.name+"/"+text, "")
	must(t, err)
	return ref
}

// digest returns what the node door says that a tag names.
func digest(t *testing.T, n *Node, f *fakeRegistry, repository, tag string) string {
	t.Helper()
	resp, err := http.Get("http://" + n.doors[0].listener.Addr().String() + "/v2/" + repository + "/manifests/" + tag + "?ns=" + f.name)
	must(t, err)
	_, err = io.Copy(io.Discard, resp.Body)
	must(t, err)
	resp.Body.Close()
	return resp.Header.Get("Docker-Content-Digest")
}

func await(t *testing.T, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come about")
		}
	}
}

// What a tag names by now is here, with all that belongs to it, before anybody asks.
func TestRefresh(t *testing.T) {
	f := startFakeRegistry(t)
	app := f.ref(t, "app:v1")
	first := f.Image(app, ocitest.Bytes(1, 100_000))
	n, stop := startNode(t, config.Config{Upstreams: f.yaml, Refresh: 50 * time.Millisecond}, slog.New(slog.DiscardHandler))
	defer stop()
	if got := digest(t, n, f, "app", "v1"); got != first.Digest.String() {
		t.Fatalf("got %s, want %s", got, first.Digest)
	}
	second := f.Image(app, ocitest.Bytes(3, 100_000)) // which a tag's digest is believed for a minute not to be
	await(t, func() bool { return digest(t, n, f, "app", "v1") == second.Digest.String() })
	f.gone.Store(true)
	images, err := n.cache.Images(t.Context(), []string{f.name + "/app:v1"})
	must(t, err)
	if len(images) != 1 || images[0].Digest != second.Digest || images[0].Size < 100_000 {
		t.Errorf("kept is %+v", images)
	}
	if got := digest(t, n, f, "app", "v1"); got != second.Digest.String() {
		t.Errorf("with the registry gone it is %s, want %s", got, second.Digest)
	}
}

// Lists are loaded while the node serves; a line that makes no sense, and an image that is not there, are in nobody's way, and a registry
// in trouble is asked again.
func TestPreload(t *testing.T) {
	f := startFakeRegistry(t)
	want := f.Image(f.ref(t, "app:v1"), ocitest.Bytes(1, 100_000))
	list := filepath.Join(t.TempDir(), "list.txt")
	must(t, os.WriteFile(list, []byte("# images\nBad//Line\n"+f.name+"/none:v1\n"+f.name+"/app:v1 # the one\n"), 0o600))
	n, stop := startNode(t, config.Config{Upstreams: f.yaml, Preload: []string{list}}, slog.New(slog.DiscardHandler))
	defer stop()
	await(t, func() bool {
		images, err := n.cache.Images(t.Context(), []string{f.name + "/app:v1"})
		must(t, err)
		return len(images) == 1 && images[0].Digest == want.Digest && images[0].Size > 100_000
	})
}
