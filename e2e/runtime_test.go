//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// soon is how long a change in containerd may take to show at pier's doors.
const soon = 10 * time.Second

// wantAt returns an error unless the door answers HEAD for path with status.
func wantAt(c *client, path string, status int) error {
	a, err := c.do(context.Background(), http.MethodHead, path)
	if err == nil && a.status != status {
		err = fmt.Errorf("HEAD %s at %s: status %d, want %d", path, c.door, a.status, status)
	}
	return err
}

func TestContainerdPullsThroughPierAndItsStoreServesTheImageAlone(t *testing.T) {
	t.Parallel()
	eachContainerd(t, func(t *testing.T, c *containerd) {
		registry := startRegistry(t, registryConfig{})
		want := newImage(t, 4<<20, 1<<20, 100)
		registry.put(t, "team/app", "V1.0_x", want)
		p := startPier(t, pierConfig{
			store: "containerd", upstreams: namedUpstream("registry.test", registry.addr), args: c.pierArgs("--tag-ttl", "100ms"),
		})
		// The server of hosts.toml does not answer: what arrives came through pier.
		c.pull(t, hostsDir(t, "registry.test", "http://"+freeAddr(t), p.node), "registry.test/team/app:V1.0_x")

		peerDoor := newClient(p.peer, "registry.test")
		eventually(t, soon, func() error { return wantAt(peerDoor, "team/app/manifests/V1.0_x", http.StatusOK) })
		registry.stop(t)

		tag, dgst := "registry.test/team/app:V1.0_x", "registry.test/team/app@"+want.root().Digest.String()
		for _, door := range []string{p.nodeAddr(), p.peerAddr()} {
			for _, reference := range []string{tag, dgst} {
				layout := "oci:" + t.TempDir()
				run(t, tool("bin/skopeo"), "--insecure-policy", "copy", "--src-tls-verify=false",
					"docker://"+door+"/"+reference, layout)
				if got := run(t, tool("bin/crane"), "digest", door+"/"+reference); got != want.root().Digest.String() {
					t.Errorf("%s/%s has digest %s, want %s", door, reference, got, want.root().Digest)
				}
			}
		}
		peerDoor.mustPull(t, "team/app", "V1.0_x", want)

		nodeDoor := newClient(p.node, "registry.test")
		nodeDoor.mustPull(t, "team/app", "V1.0_x", want)
		eventually(t, soon, func() error {
			a := nodeDoor.head(t, "team/app/manifests/V1.0_x")
			if a.status != http.StatusOK || a.header.Get("Warning") == "" {
				return fmt.Errorf("tag while its registry is down: status %d, Warning %q", a.status, a.header.Get("Warning"))
			}
			if got := a.header.Get("Docker-Content-Digest"); got != want.root().Digest.String() {
				return fmt.Errorf("tag while its registry is down: digest %s, want %s", got, want.root().Digest)
			}
			return nil
		})
	})
}

// Where pier is refused, it says that it has nothing, so that containerd goes on to the registry by itself.
func TestPrivateImageIsPulledPastPierWithContainerdsOwnCredentials(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	registry := startRegistry(t, registryConfig{ca: ca, basic: true})
	want := newImage(t, 1<<20)
	registry.put(t, "app", "v1", want)
	eachContainerd(t, func(t *testing.T, c *containerd) {
		p := startPier(t, pierConfig{
			store: "containerd", args: c.pierArgs(),
			upstreams: fmt.Sprintf("- name: %s\n  tls: {ca: %s}\n", registry.addr, ca.file),
		})
		hosts := t.TempDir()
		writeFile(t, filepath.Join(hosts, registry.addr, "hosts.toml"), fmt.Sprintf("server = %q\nca = %q\n[host.%q]\n",
			"https://"+registry.addr, ca.file, p.node))
		name := registry.addr + "/app:v1"
		c.do(t, append(pullArgs(hosts, name), "--user", user+":"+password)...)
		door := newClient(p.peer, registry.addr)
		eventually(t, soon, func() error { return wantAt(door, "app/manifests/v1", http.StatusOK) })
		door.mustPull(t, "app", "v1", want)
	})
}

func TestImagesThatAppearOrGoInContainerdAreNoticed(t *testing.T) {
	t.Parallel()
	eachContainerd(t, func(t *testing.T, c *containerd) {
		registry := startRegistry(t, registryConfig{})
		kept, removed := newImage(t, 1<<20), newImage(t, 1<<20)
		registry.put(t, "kept", "v1", kept)
		registry.put(t, "removed", "v1", removed)
		p := startPier(t, pierConfig{store: "containerd", args: c.pierArgs()})
		door := newClient(p.peer, "registry.test")
		if err := wantAt(door, "kept/manifests/v1", http.StatusNotFound); err != nil {
			t.Error(err)
		}

		direct := hostsDir(t, "registry.test", "http://"+registry.addr)
		c.pull(t, direct, "registry.test/kept:v1")
		run(t, c.ctr, append([]string{"--address", c.socket, "--namespace", "default"},
			pullArgs(direct, "registry.test/removed:v1")...)...)
		for _, name := range []string{"kept", "removed"} {
			eventually(t, soon, func() error { return wantAt(door, name+"/manifests/v1", http.StatusOK) })
		}
		door.mustPull(t, "kept", "v1", kept)
		door.mustPull(t, "removed", "v1", removed)

		run(t, c.ctr, "--address", c.socket, "--namespace", "default", "images", "rm", "--sync", "registry.test/removed:v1")
		for _, path := range []string{
			"removed/manifests/v1", "removed/manifests/" + removed.root().Digest.String(),
			"removed/blobs/" + removed.layer(0).Digest.String(),
		} {
			eventually(t, soon, func() error { return wantAt(door, path, http.StatusNotFound) })
		}
		door.mustPull(t, "kept", "v1", kept)
	})
}

func TestRestartOfContainerdIsSurvived(t *testing.T) {
	t.Parallel()
	eachContainerd(t, func(t *testing.T, c *containerd) {
		registry := startRegistry(t, registryConfig{})
		before, after := newImage(t, 1<<20), newImage(t, 1<<20)
		registry.put(t, "before", "v1", before)
		registry.put(t, "after", "v1", after)
		direct := hostsDir(t, "registry.test", "http://"+registry.addr)
		c.pull(t, direct, "registry.test/before:v1")
		p := startPier(t, pierConfig{store: "containerd", args: c.pierArgs()})
		door := newClient(p.peer, "registry.test")
		door.mustPull(t, "before", "v1", before)

		c.restart(t)
		eventually(t, 2*soon, func() error { return door.pull(t.Context(), "before", "v1", before) })
		c.pull(t, direct, "registry.test/after:v1")
		eventually(t, 2*soon, func() error { return wantAt(door, "after/manifests/v1", http.StatusOK) })
		door.mustPull(t, "after", "v1", after)
	})
}

func TestPierStartedBeforeContainerdBecomesReadyWithIt(t *testing.T) {
	t.Parallel()
	eachContainerd(t, func(t *testing.T, c *containerd) {
		registry := startRegistry(t, registryConfig{})
		want := newImage(t, 1000)
		registry.put(t, "app", "v1", want)
		c.terminate(t, 20*time.Second)
		p := startPier(t, pierConfig{store: "containerd", args: c.pierArgs(), unready: true})
		eventually(t, soon, func() error {
			if p.ended() {
				t.Fatalf("pier ended: %v", p.cmd.ProcessState)
			}
			resp, err := http.Get(p.metrics + "/readyz")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("/readyz without containerd: %s", resp.Status)
			}
			return nil
		})
		c.start(t)
		p.awaitReady(t)
		c.pull(t, hostsDir(t, "registry.test", "http://"+registry.addr), "registry.test/app:v1")
		eventually(t, soon, func() error { return newClient(p.peer, "registry.test").pull(t.Context(), "app", "v1", want) })
	})
}

func TestContainerdPullsManyImagesAtOnceAndAgainAfterItWasKilled(t *testing.T) {
	t.Parallel()
	eachContainerd(t, func(t *testing.T, c *containerd) {
		registry := startRegistry(t, registryConfig{})
		front := startFront(t, registry.addr, 8<<20)
		var images []*image
		for n := range 4 {
			i := newImage(t, 2<<20, 1<<20, 1000)
			images = append(images, i)
			registry.put(t, "app", fmt.Sprint("v", n), i)
		}
		p := startPier(t, pierConfig{
			store: "containerd", upstreams: namedUpstream("registry.test", front.Host()), args: c.pierArgs(),
		})
		hosts := hostsDir(t, "registry.test", "http://"+freeAddr(t), p.node)
		pullAll := func() (errs [4]error) {
			var wg sync.WaitGroup
			for n := range images {
				wg.Go(func() {
					_, errs[n] = tryRun(t, nil, c.ctr, c.args(pullArgs(hosts, fmt.Sprint("registry.test/app:v", n))...)...)
				})
			}
			wg.Wait()
			return errs
		}
		killed := time.AfterFunc(300*time.Millisecond, c.process.kill)
		defer killed.Stop()
		_ = pullAll() // containerd dies meanwhile
		<-c.done
		c.start(t)
		for n, err := range pullAll() {
			if err != nil {
				t.Errorf("image %d: %v", n, err)
			}
		}
		for n, i := range images {
			eventually(t, 2*soon, func() error {
				return newClient(p.peer, "registry.test").pull(t.Context(), "app", fmt.Sprint("v", n), i)
			})
		}
	})
}

// slowPull starts a pull of a fresh image with one large layer by ctr itself, not through pier, from a registry that
// sends rate bytes per second. It returns the running ctr and the image.
func slowPull(t *testing.T, c *containerd, layerSize int, rate int64) (*process, *image) {
	t.Helper()
	registry := startRegistry(t, registryConfig{})
	i := newImage(t, layerSize)
	registry.put(t, "slow", "v1", i)
	hosts := hostsDir(t, "registry.test", "http://"+startFront(t, registry.addr, rate).Host())
	return startProcess(t, "ctr", exec.Command(c.ctr, c.args(pullArgs(hosts, "registry.test/slow:v1")...)...)), i
}

// openGrowing waits until the peer door has begun to send a blob that containerd is still writing.
func openGrowing(t *testing.T, door *client, b blob) *http.Response {
	t.Helper()
	var resp *http.Response
	eventually(t, soon, func() error {
		var err error
		resp, err = door.open(t.Context(), http.MethodGet, "slow/blobs/"+b.Digest.String())
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			resp.Body.Close()
			return fmt.Errorf("blob in flight: %s", resp.Status)
		}
		return nil
	})
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func TestBlobThatContainerdIsStillWritingIsReadThroughThePeerDoor(t *testing.T) {
	t.Parallel()
	eachContainerd(t, func(t *testing.T, c *containerd) {
		p := startPier(t, pierConfig{store: "containerd", args: c.pierArgs()})
		pull, i := slowPull(t, c, 12<<20, 4<<20) // 3 s
		want := i.layer(0)
		door := newClient(p.peer, "registry.test")
		resp := openGrowing(t, door, want)
		first := make([]byte, 64<<10)
		if _, err := io.ReadFull(resp.Body, first); err != nil {
			t.Fatalf("first bytes of a blob in flight: %v", err)
		}
		if pull.ended() {
			t.Error("the first bytes arrived only after the pull had ended")
		}
		checkInFlight(t, p, want)
		rest, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatalf("rest of a blob in flight: %v", err)
		}
		if got := digest.FromBytes(append(first, rest...)); got != want.Digest {
			t.Errorf("blob in flight: %d bytes of digest %s, want %d of %s", len(first)+len(rest), got, want.Size, want.Digest)
		}
		<-pull.done
		if !pull.cmd.ProcessState.Success() {
			t.Errorf("ctr: %v", pull.cmd.ProcessState)
		}
	})
}

// checkInFlight compares what the API says of a blob that is being written with the truth.
func checkInFlight(t *testing.T, p *pier, b blob) {
	t.Helper()
	var got struct {
		Digest    digest.Digest
		Size      int64
		Complete  bool
		Available int64
	}
	fetch(t, p.peer+"/api/v1/digests/"+b.Digest.String()).decode(t, &got)
	if got.Digest != b.Digest || got.Size != b.Size || got.Complete || got.Available <= 0 || got.Available >= b.Size {
		t.Errorf("digest in flight: got %+v, want part of %d bytes of %s", got, b.Size, b.Digest)
	}
}

func TestBlobThatContainerdGivesUpEndsInAnAbortedConnection(t *testing.T) {
	t.Parallel()
	eachContainerd(t, func(t *testing.T, c *containerd) {
		p := startPier(t, pierConfig{store: "containerd", args: c.pierArgs("--pull-timeout", "2s")})
		pull, i := slowPull(t, c, 20<<20, 1<<20)
		resp := openGrowing(t, newClient(p.peer, "registry.test"), i.layer(0))
		if _, err := io.ReadFull(resp.Body, make([]byte, 64<<10)); err != nil {
			t.Fatal(err)
		}
		// In containerd 2.x the daemon pulls, not ctr: both must stop.
		pull.kill()
		c.terminate(t, 20*time.Second)
		begin := time.Now()
		n, err := io.Copy(io.Discard, resp.Body)
		if err == nil {
			t.Errorf("after %d bytes of %d the answer ended as if it were whole", n+64<<10, i.layer(0).Size)
		}
		if d := time.Since(begin); d > 15*time.Second {
			t.Errorf("the reader was told after %v", d)
		}
	})
}

// The content that containerd had before pier came may have rotted on disk.
func TestRottenBlobInContainerdIsNeverServedAsWhole(t *testing.T) {
	t.Parallel()
	eachContainerd(t, func(t *testing.T, c *containerd) {
		registry := startRegistry(t, registryConfig{})
		want := newImage(t, 1<<20)
		registry.put(t, "app", "v1", want)
		c.pull(t, hostsDir(t, "registry.test", "http://"+registry.addr), "registry.test/app:v1")
		layer := want.layer(0)
		rotten := bytes.Clone(layer.data)
		rotten[len(rotten)/2] ^= 1
		file := filepath.Join(c.root, "io.containerd.content.v1.content/blobs/sha256", layer.Digest.Encoded())
		if err := os.WriteFile(file, rotten, 0o644); err != nil {
			t.Fatal(err)
		}

		p := startPier(t, pierConfig{
			store: "containerd", upstreams: namedUpstream("registry.test", registry.addr), args: c.pierArgs(),
		})
		path := "app/blobs/" + layer.Digest.String()
		for range 3 {
			a, err := newClient(p.peer, "registry.test").do(t.Context(), http.MethodGet, path)
			if err == nil && a.status == http.StatusOK {
				t.Errorf("peer door: a rotten blob arrived whole, as %s", digest.FromBytes(a.body))
			}
		}
		// The node door has an upstream: the pull heals from there, at the latest when it is tried again.
		eventually(t, soon, func() error {
			return newClient(p.node, "registry.test").pull(t.Context(), "app", "v1", want)
		})
	})
}
