//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"pier/e2e/faultproxy"
)

// openFiles returns how many file descriptors the process has.
func (p *process) openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid()))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestClientsThatLeftLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	want := newImage(t, 8<<20)
	registry.put(t, "app", "v1", want)
	front := startFront(t, registry.addr, 4<<20)
	p := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", front.Host())})
	files, spooled := p.openFiles(t), p.spooled(t)
	path := "app/blobs/" + want.layer(0).Digest.String()

	for range 3 {
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				ctx, leave := context.WithCancel(t.Context())
				defer leave()
				door := newClient(p.node, "registry.test")
				defer door.http.CloseIdleConnections()
				resp, err := door.open(ctx, http.MethodGet, path)
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if _, err := io.ReadFull(resp.Body, make([]byte, 100<<10)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	// Nobody wants the rest, and there is no cache: the transfer must end, and all its parts with it. Connections that
	// are kept for the next request are no leak.
	const keptAlive = 4
	eventually(t, soon, func() error {
		if now := p.openFiles(t); now > files+keptAlive {
			return fmt.Errorf("%d files are open, %d were before", now, files)
		}
		if now := p.spooled(t); now > spooled {
			return fmt.Errorf("%d bytes of temporary files remain", now-spooled)
		}
		return nil
	})
	eventually(t, soon, func() error {
		before := front.SentOf(faultproxy.Blob)
		time.Sleep(300 * time.Millisecond) // for bytes that must not come
		if after := front.SentOf(faultproxy.Blob); after > before {
			return fmt.Errorf("upstream still sends: %d bytes in 0.3 s", after-before)
		}
		return nil
	})
	newClient(p.node, "registry.test").mustPull(t, "app", "v1", want)
}

// A client that does not read must not hold up those that do, nor the transfer itself.
func TestClientThatDoesNotReadHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	for _, cache := range []bool{false, true} {
		t.Run(fmt.Sprintf("cache %v", cache), func(t *testing.T) {
			t.Parallel()
			registry := startRegistry(t, registryConfig{})
			want := newImage(t, 24<<20) // more than sockets hold
			registry.put(t, "app", "v1", want)
			cfg := pierConfig{upstreams: namedUpstream("registry.test", registry.addr)}
			if cache {
				cfg.args = []string{"--cache-dir", t.TempDir()}
			}
			p := startPier(t, cfg)
			layer := want.layer(0)
			lazy, err := newClient(p.node, "registry.test").open(t.Context(), http.MethodGet, "app/blobs/"+layer.Digest.String())
			if err != nil {
				t.Fatal(err)
			}
			defer lazy.Body.Close()
			whole, _ := download(t, newClient(p.node, "registry.test"), "app", layer)
			select {
			case err := <-whole:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("a client that reads waits for one that does not")
			}
			body, err := io.ReadAll(lazy.Body)
			if err == nil {
				err = answer{lazy.StatusCode, lazy.Header, body}.matches(layer)
			}
			if err != nil {
				t.Errorf("the client that read late: %v", err)
			}
		})
	}
}

// Whenever pier is killed, what its cache offers afterwards is right, and what it lacks is fetched.
func TestKilledAtAnyMomentTheCacheStaysSound(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	var images []*image
	for n := range 3 {
		i := newImage(t, 3<<20, 1<<20, 500<<10, 1000, 100)
		images = append(images, i)
		registry.put(t, "app", fmt.Sprint("v", n), i)
	}
	front := startFront(t, registry.addr, 16<<20)
	dir := t.TempDir()
	p := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", front.Host()), args: []string{"--cache-dir", dir}})
	random := rand.New(newRandom(t))
	for round := range 8 {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for n, i := range images {
			wg.Go(func() {
				_ = newClient(p.node, "registry.test").pull(ctx, "app", fmt.Sprint("v", n), i) // until pier is killed
			})
		}
		time.Sleep(time.Duration(random.IntN(300)) * time.Millisecond)
		p.kill()
		cancel()
		wg.Wait()
		p.restart(t)
		// The peer door serves only what is in the cache.
		door := newClient(p.peer, "registry.test")
		for _, i := range images {
			for _, b := range i.blobs {
				a := door.get(t, "app/blobs/"+b.Digest.String())
				if a.status == http.StatusNotFound {
					continue
				}
				if err := a.matches(b); err != nil {
					t.Errorf("round %d: %v", round, err)
				}
			}
		}
	}
	for n, i := range images {
		newClient(p.node, "registry.test").mustPull(t, "app", fmt.Sprint("v", n), i)
		awaitKept(t, dir, i)
		checkLayout(t, dir, i)
	}
	p.terminate(t, 10*time.Second)
	var total int64
	for _, i := range images {
		for _, b := range append(i.blobs, i.manifests...) {
			total += b.Size
		}
	}
	if used, files := diskUsage(t, dir); used > total+64<<10 {
		t.Errorf("the cache takes %d bytes for %d of content: %v", used, total, files)
	}
}

// Content that rots on the cache's disk is found when it is served, and fetched anew.
func TestRottenBlobInTheCacheIsNeverServedAsWholeAndHeals(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	want := newImage(t, 1<<20)
	registry.put(t, "app", "v1", want)
	dir := t.TempDir()
	p := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", registry.addr), args: []string{"--cache-dir", dir}})
	newClient(p.node, "registry.test").mustPull(t, "app", "v1", want)
	awaitKept(t, dir, want)
	p.terminate(t, 10*time.Second)

	layer := want.layer(0)
	rotten := append([]byte(nil), layer.data...)
	rotten[len(rotten)/2] ^= 1
	file := dir + "/blobs/sha256/" + layer.Digest.Encoded()
	if err := os.Remove(file); err != nil { // it may be read-only
		t.Fatal(err)
	}
	if err := os.WriteFile(file, rotten, 0o644); err != nil {
		t.Fatal(err)
	}
	p.restart(t)
	path := "app/blobs/" + layer.Digest.String()
	for range 2 {
		a, err := newClient(p.peer, "registry.test").do(t.Context(), http.MethodGet, path)
		if err == nil && a.status == http.StatusOK && a.matches(layer) != nil {
			t.Error("peer door: a rotten blob arrived whole")
		}
	}
	eventually(t, soon, func() error { return newClient(p.node, "registry.test").pull(t.Context(), "app", "v1", want) })
	awaitKept(t, dir, want)
	checkLayout(t, dir, want)
}
