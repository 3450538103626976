//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"pier/e2e/faultproxy"
)

func TestTwentyClientsAtOnceCauseOneRequestPerBlob(t *testing.T) {
	t.Parallel()
	for _, cache := range []bool{false, true} {
		t.Run(fmt.Sprintf("cache %v", cache), func(t *testing.T) {
			t.Parallel()
			registry := startRegistry(t, registryConfig{})
			want := newImage(t, 8<<20, 3<<20, 1000)
			registry.put(t, "app", "v1", want)
			seen := startFront(t, registry.addr, 8<<20)
			// Long enough for all to have asked before the first is answered, however small the blob.
			seen.Set(faultproxy.Rule{Fault: faultproxy.Latency(500 * time.Millisecond)})
			cfg := pierConfig{upstreams: namedUpstream("registry.test", seen.Host())}
			manifests := 2 // once by tag, once by digest: without a cache, nothing of the first remains
			if cache {
				cfg.args = []string{"--cache-dir", t.TempDir()}
				manifests = 1
			}
			pullAtOnce(t, startPier(t, cfg), 20, want)
			for _, b := range want.blobs {
				if got := len(asked(seen, http.MethodGet, b.Digest.String())); got != 1 {
					t.Errorf("%s of %d bytes was fetched %d times", b.Digest, b.Size, got)
				}
			}
			if got := seen.Count(http.MethodGet, faultproxy.Manifest); got > manifests {
				t.Errorf("the manifest was fetched %d times, want at most %d", got, manifests)
			}
		})
	}
}

// pullAtOnce has n clients begin to get all content of an image together, and each blob at the same time.
func pullAtOnce(t *testing.T, p *pier, n int, want *image) {
	t.Helper()
	root := want.root()
	each := func(path string, b blob) {
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				a, err := newClient(p.node, "registry.test").do(t.Context(), http.MethodGet, path)
				if err == nil {
					err = a.matches(b)
				}
				if err != nil {
					t.Errorf("%s: %v", path, err)
				}
			})
		}
		wg.Wait()
	}
	each("app/manifests/v1", root)
	each("app/manifests/"+root.Digest.String(), root)
	for _, b := range want.blobs {
		each("app/blobs/"+b.Digest.String(), b)
	}
}

func TestEveryClientGetsBytesWhileTheBlobStillArrives(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	want := newImage(t, 12<<20)
	registry.put(t, "app", "v1", want)
	front := startFront(t, registry.addr, 4<<20) // 3 s
	p := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", front.Host())})
	layer := want.layer(0)
	var outcomes []<-chan error
	for n := range 3 {
		whole, first := download(t, newClient(p.node, "registry.test"), "app", layer)
		outcomes = append(outcomes, whole)
		<-first
		if sent := front.SentOf(faultproxy.Blob); sent >= layer.Size {
			t.Errorf("client %d got its first byte after upstream had sent all %d", n, sent)
		}
	}
	for n, whole := range outcomes {
		if err := <-whole; err != nil {
			t.Errorf("client %d: %v", n, err)
		}
	}
	if got := front.Count(http.MethodGet, faultproxy.Blob); got != 1 {
		t.Errorf("the blob was fetched %d times", got)
	}
}

// What is on its way to this node, others read through the peer door as it comes.
func TestBlobInFlightIsReadThroughThePeerDoor(t *testing.T) {
	t.Parallel()
	for _, cache := range []bool{false, true} {
		t.Run(fmt.Sprintf("cache %v", cache), func(t *testing.T) {
			t.Parallel()
			registry := startRegistry(t, registryConfig{})
			want := newImage(t, 12<<20)
			registry.put(t, "app", "v1", want)
			front := startFront(t, registry.addr, 4<<20) // 3 s
			cfg := pierConfig{upstreams: namedUpstream("registry.test", front.Host())}
			if cache {
				cfg.args = []string{"--cache-dir", t.TempDir()}
			}
			p := startPier(t, cfg)
			layer := want.layer(0)
			atNode, first := download(t, newClient(p.node, "registry.test"), "app", layer)
			<-first
			atPeer, first := download(t, newClient(p.peer, "registry.test"), "app", layer)
			<-first
			checkInFlight(t, p, layer)
			for name, whole := range map[string]<-chan error{"node": atNode, "peer": atPeer} {
				if err := <-whole; err != nil {
					t.Errorf("%s door: %v", name, err)
				}
			}
			if got := front.Count(http.MethodGet, faultproxy.Blob); got != 1 {
				t.Errorf("the blob was fetched %d times", got)
			}
		})
	}
}

func TestClientThatLeavesStopsNobodyElse(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	want := newImage(t, 12<<20)
	registry.put(t, "app", "v1", want)
	seen := startFront(t, registry.addr, 6<<20) // 2 s
	dir := t.TempDir()
	p := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", seen.Host()), args: []string{"--cache-dir", dir}})
	layer := want.layer(0)
	path := "app/blobs/" + layer.Digest.String()
	door := newClient(p.node, "registry.test")

	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	resp, err := door.open(ctx, http.MethodGet, path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	late := make(chan error, 1)
	go func() {
		a, err := door.do(t.Context(), http.MethodGet, path)
		if err == nil {
			err = a.matches(layer)
		}
		late <- err
	}()
	leave()
	if err := <-late; err != nil {
		t.Errorf("a client that came late: %v", err)
	}
	if got := len(asked(seen, http.MethodGet, path)); got != 1 {
		t.Errorf("the blob was fetched %d times", got)
	}

	// With a cache, a transfer goes on even if everybody leaves.
	second := newImage(t, 6<<20)
	registry.put(t, "app", "v2", second)
	ctx, leave = context.WithCancel(t.Context())
	defer leave()
	resp, err = door.open(ctx, http.MethodGet, "app/blobs/"+second.layer(0).Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	leave()
	eventually(t, soon, func() error {
		if !kept(dir, second.layer(0)) {
			return fmt.Errorf("the transfer did not go on into the cache")
		}
		return nil
	})
}
