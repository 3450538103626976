package node

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/cache"
	"pier/internal/chain"
	"pier/internal/config"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
	"pier/internal/registry"
)

func openCache(t *testing.T, dir string, most int64) *cache.Cache {
	t.Helper()
	k, err := cache.Open(cache.Config{Dir: dir, MaxBytes: most, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

func request(t *testing.T, h http.Handler, method, target, contentType string, body []byte) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, "/v2/site.test/"+target, bytes.NewReader(body))
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// push pushes an image, and returns how its manifest was answered, and its blobs.
func push(t *testing.T, h http.Handler, name string, layers ...[]byte) (status int, blobs []oci.Digest) {
	t.Helper()
	status = http.StatusCreated
	send := func(mediaType string, b []byte) v1.Descriptor {
		d := v1.Descriptor{MediaType: mediaType, Digest: ocitest.Digest(b), Size: int64(len(b))}
		if w := request(t, h, http.MethodPost, name+"/blobs/uploads/?digest="+d.Digest.String(), "", b); w.Code != http.StatusCreated {
			status = w.Code
		}
		blobs = append(blobs, d.Digest)
		return d
	}
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: send(v1.MediaTypeImageConfig, fmt.Appendf(nil, `{"os":"linux","created_by":%q}`, name))}
	m.SchemaVersion = 2
	for _, l := range layers {
		m.Layers = append(m.Layers, send(v1.MediaTypeImageLayer, l))
	}
	if status != http.StatusCreated {
		return status, blobs
	}
	b, err := json.Marshal(m)
	must(t, err)
	return request(t, h, http.MethodPut, name+"/manifests/v1", m.MediaType, b).Code, blobs
}

func wantBlobs(t *testing.T, k *cache.Cache, blobs []oci.Digest) {
	t.Helper()
	for _, d := range blobs {
		if _, err := k.Resolve(t.Context(), oci.Reference{Kind: oci.Blob, Digest: d}); err != nil {
			t.Errorf("it was answered 201, and %v", err)
		}
	}
}

// What is answered 201 is whole, also in a cache that has no more room for what stays; then that is said.
func TestPushesIntoAFullCacheAreWholeOrRefused(t *testing.T) {
	k := openCache(t, t.TempDir(), 1_000_000)
	h := registry.New(registry.Config{Source: k, Push: k})
	taken := 0
	await(t, func() bool {
		status, blobs := push(t, h, fmt.Sprintf("app%d", taken), ocitest.Bytes(uint64(taken), 100_000), ocitest.Bytes(uint64(1000+taken), 100_000))
		if status == http.StatusCreated {
			taken++
			wantBlobs(t, k, blobs)
			return false
		}
		if status != http.StatusInsufficientStorage {
			t.Fatalf("got status %d, want that there is no room", status)
		}
		return true
	})
	if taken < 4 {
		t.Errorf("%d images were taken, of which 4 fit", taken)
	}
}

// pruning is a cache of which all that may go goes just before a manifest comes.
type pruning struct {
	*cache.Cache
	t *testing.T
}

func (p pruning) Put(ctx context.Context, d oci.Descriptor, r io.Reader) error {
	if oci.IsManifest(d.MediaType) {
		_, err := p.Prune(ctx, cache.Prune{})
		must(p.t, err)
	}
	return p.Cache.Put(ctx, d, r)
}

func TestAPruneInTheMiddleOfAPush(t *testing.T) {
	k := openCache(t, t.TempDir(), 0)
	status, blobs := push(t, registry.New(registry.Config{Source: k, Push: pruning{k, t}}), "app", ocitest.Bytes(1, 1000))
	if status != http.StatusCreated {
		t.Errorf("got status %d", status)
	}
	wantBlobs(t, k, blobs)
}

// A client that says that a blob is here already does not send it: then it has to be right.
func TestAPushOntoDamagedContentIsTold(t *testing.T) {
	dir := t.TempDir()
	k := openCache(t, dir, 0)
	layer := ocitest.Bytes(1, 1000)
	push(t, registry.New(registry.Config{Source: k, Push: k}), "one", layer)
	disk := chain.Once(slog.New(slog.DiscardHandler), "cache", k) // as after a start
	path := chain.BlobPath(dir, ocitest.Digest(layer))
	info, err := os.Stat(path)
	must(t, err)
	bad := bytes.Clone(layer)
	bad[5]++
	must(t, os.WriteFile(path, bad, 0o600))
	must(t, os.Chtimes(path, info.ModTime(), info.ModTime()))
	h := registry.New(registry.Config{Source: disk, Push: k})
	if w := request(t, h, http.MethodPost, "two/blobs/uploads/?from=one&mount="+ocitest.Digest(layer).String(), "", nil); w.Code != http.StatusAccepted {
		t.Errorf("mounting it is answered %d, want to be sent it", w.Code)
	}
	if status, blobs := push(t, h, "two", layer); status != http.StatusCreated {
		t.Errorf("sending it is answered %d", status)
	} else {
		wantBlobs(t, k, blobs)
	}
}

// What is no socket, where one is wanted, is somebody's file.
func TestAFileInThePlaceOfASocketStays(t *testing.T) {
	name := t.TempDir() + "/important"
	must(t, os.WriteFile(name, []byte("text"), 0o600))
	if l, err := listen(t.Context(), config.UnixPrefix+name); err == nil {
		l.Close()
		t.Error("it was listened on")
	}
	if text, err := os.ReadFile(name); err != nil || string(text) != "text" {
		t.Errorf("the file is %q, %v", text, err)
	}
	must(t, os.Remove(name))
	l, err := listen(t.Context(), config.UnixPrefix+name)
	must(t, err)
	_ = l.(socket).UnixListener.Close() // as a crash leaves it
	l, err = listen(t.Context(), config.UnixPrefix+name)
	must(t, err)
	must(t, l.Close())
}
