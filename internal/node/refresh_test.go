package node

import (
	"bytes"
	"context"
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

	"pier/internal/chain"
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

// aging is a registry that a mirror may answer for, which says so.
type aging struct {
	*ocitest.Memory
	stale bool
}

func (a *aging) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	d, err := a.Memory.Resolve(ctx, ref)
	d.Stale = a.stale
	return d, err
}

// meanwhile is a Source during whose first Open something happens.
type meanwhile struct {
	oci.Source
	do func()
}

func (m *meanwhile) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	if do := m.do; do != nil {
		m.do = nil
		do()
	}
	return m.Source.Open(ctx, ref, offset, length)
}

// An answer that may be old, or is by the time that all of it is here, is not taken for granted.
func TestRefreshTakesOnlyTheTruthForGranted(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	registry := &aging{Memory: &ocitest.Memory{}}
	ref, err := oci.ParseReference("registry.test/app:v1", "")
	must(t, err)
	content := &meanwhile{Source: registry}
	full := chain.Fresh(chain.FreshConfig{Content: content, Local: &ocitest.Memory{}, Authority: registry, TTL: time.Millisecond, Log: log})
	k := openCache(t, t.TempDir(), 0)
	n := &Node{full: full, whole: chain.First(log, registry), log: log, cache: k, cfg: config.Config{Refresh: time.Hour}}
	again := func(old oci.Digest) error {
		_, err := n.refreshOne(t.Context(), full.(chain.Refresher), ref, old, time.Now())
		return err
	}
	named := func(want oci.Digest, what string) {
		t.Helper()
		time.Sleep(5 * time.Millisecond)
		if got, err := full.Resolve(t.Context(), ref); err != nil || got.Digest != want {
			t.Errorf("%s: a client gets %s, want %s, %v", what, got.Digest, want, err)
		}
	}
	first := registry.Image(ref, ocitest.Bytes(1, 100))
	registry.stale = true
	if err := again(first.Digest); err == nil {
		t.Error("a stale answer was settled")
	}
	registry.stale = false
	second := registry.Image(ref, ocitest.Bytes(2, 100))
	named(second.Digest, "after a stale answer")

	// The image of before has to be here, for what is new to be fetched.
	b, desc, err := ocitest.ReadAll(t.Context(), registry.Memory, ref.WithDigest(second.Digest))
	must(t, err)
	must(t, k.Put(t.Context(), desc, bytes.NewReader(b)))
	registry.Image(ref, ocitest.Bytes(3, 100))
	var fourth oci.Descriptor
	content.do = func() { fourth = registry.Image(ref, ocitest.Bytes(4, 100)) }
	if err := again(second.Digest); err == nil {
		t.Error("what the tag named for a moment was settled")
	}
	named(fourth.Digest, "after the tag moved on")
}

// A tag that clients want is refreshed again and again after a restart, too.
func TestRefreshGoesOnAfterARestart(t *testing.T) {
	f := startFakeRegistry(t)
	app := f.ref(t, "app:v1")
	f.Image(app, ocitest.Bytes(1, 1000))
	dir := t.TempDir()
	cfg := config.Config{Upstreams: f.yaml, CacheDir: dir, Refresh: time.Hour}
	n, stop := startNode(t, cfg, slog.New(slog.DiscardHandler))
	digest(t, n, f, "app", "v1")
	await(t, func() bool { list, _ := n.cache.Images(t.Context(), nil); return len(list) == 1 })
	stop()
	n, stop = startNode(t, cfg, slog.New(slog.DiscardHandler))
	defer stop()
	for round := range uint64(3) {
		next := f.Image(app, ocitest.Bytes(2+round, 1000))
		must(t, n.refreshAll(t.Context()))
		if list, err := n.cache.Images(t.Context(), []string{app.String()}); err != nil || len(list) != 1 || list[0].Digest != next.Digest {
			t.Errorf("refresh %d: %+v, %v", round, list, err)
		}
	}
}
