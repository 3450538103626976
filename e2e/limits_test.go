//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pier/e2e/faultproxy"
)

// The program goes on every node, over every link.
func TestProgramIsSmall(t *testing.T) {
	t.Parallel()
	const limit = 14_000_000
	info, err := os.Stat(pierBinary)
	must(t, err)
	if info.Size() > limit {
		t.Errorf("the program has %d bytes, want %d at most", info.Size(), limit)
	}
}

// mountSmall mounts a file system of so many MiB on a directory of its own.
func mountSmall(t *testing.T, mib int) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", mib)); err != nil {
		t.Fatalf("mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestFullCacheDiskStopsNoStream(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	large, small := newImage(t, 24<<20), newImage(t, 500<<10)
	registry.put(t, "large", "v1", large)
	registry.put(t, "small", "v1", small)
	dir := mountSmall(t, 8)
	p := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", registry.addr), args: []string{"--cache-dir", dir}})
	door := newClient(p.node, "registry.test")
	door.mustPull(t, "large", "v1", large)
	switch n := strings.Count(p.log.String(), "level=ERROR"); {
	case n == 0:
		t.Error("nothing in the log says loudly that the disk is full")
	case n > 3:
		t.Errorf("the log says %d times that the disk is full", n)
	}
	if p.metric(t, "pier_disk_faults_total") == 0 {
		t.Error("no metric says that the disk is full")
	}
	door.mustPull(t, "large", "v1", large)
	eventually(t, soon, func() error {
		if used, files := diskUsage(t, dir); used > 1<<20 {
			return fmt.Errorf("%d bytes remain in the cache: %v", used, files)
		}
		return nil
	})
	if kept(dir, large.layer(0)) {
		t.Error("a blob larger than the disk is in the cache")
	}
	door.mustPull(t, "small", "v1", small)
	awaitKept(t, dir, small)
	checkLayout(t, dir, small)
}

// fill takes all of a file system but so many KiB, until free is called.
func fill(t *testing.T, dir string, spare int64) (free func()) {
	t.Helper()
	name := filepath.Join(dir, "filler")
	f, err := os.Create(name)
	must(t, err)
	block := make([]byte, 64<<10)
	for err == nil {
		_, err = f.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	info, err := f.Stat()
	must(t, err)
	must(t, f.Truncate(info.Size()-spare<<10))
	must(t, f.Close())
	return func() { must(t, os.Remove(name)) }
}

// The disk is full before a blob comes, gets full in it, or once it is there: clients get their images, nothing torn is
// kept, and what comes when there is room again is.
func TestFullDiskBeforeInAndAfterABlob(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		kib  int64 // left before the pull
		then int64 // left after it
	}{
		"before":               {0, 0},
		"in":                   {1 << 10, 1 << 10},
		"after":                {8 << 10, 0},
		"before the manifest":  {2<<10 + 8, 0},
		"after, with a little": {8 << 10, 4},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			registry := startRegistry(t, registryConfig{})
			want, other, third := newImage(t, 2<<20), newImage(t, 1<<20), newImage(t, 1<<20)
			registry.put(t, "app", "v1", want)
			registry.put(t, "app", "v2", other)
			registry.put(t, "app", "v3", third)
			front := startFront(t, registry.addr, 0)
			dir := mountSmall(t, 16)
			p := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", front.Host()), args: []string{"--cache-dir", dir}})
			door := newClient(p.node, "registry.test")

			free := fill(t, dir, c.kib)
			door.mustPull(t, "app", "v1", want)
			stayed := c.kib > 4<<10
			if stayed {
				awaitKept(t, dir, want)
			}
			free()
			free = fill(t, dir, c.then)
			front.Reset()
			door.mustPull(t, "app", "v1", want)
			if n := front.Count(http.MethodGet, faultproxy.Blob); stayed && n > 0 {
				t.Errorf("what was kept before the disk was full was fetched again: %d requests", n)
			}
			door.mustPull(t, "app", "v2", other)
			checkDigests(t, dir)
			run(t, pierBinary, "list", "--cache-dir", dir)
			front.LimitRate(1<<20, 0)
			stopInAPull(t, p, front, "v3", third)
			front.LimitRate(0, 0)
			door.mustPull(t, "app", "v1", want)
			door.mustPull(t, "app", "v2", other)
			run(t, pierBinary, "prune", "--cache-dir", dir, "--older-than", "1h")

			free()
			eventually(t, 30*time.Second, func() error {
				door.mustPull(t, "app", "v1", want)
				door.mustPull(t, "app", "v2", other)
				for _, i := range []*image{want, other} {
					if !kept(dir, i.layer(0)) {
						return fmt.Errorf("%s is not kept", i.layer(0).Digest)
					}
				}
				return nil
			})
			awaitKept(t, dir, want)
			awaitKept(t, dir, other)
			checkDigests(t, dir)
			checkLayout(t, dir, want)
			p.terminate(t, 10*time.Second)
			if left, err := filepath.Glob(filepath.Join(dir, "pier", "partial", "*")); err != nil || len(left) > 0 {
				t.Errorf("left are %q, %v", left, err)
			}
		})
	}
}

func TestFullOrMissingTemporaryDirectoryStopsNoStream(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	want := newImage(t, 24<<20)
	registry.put(t, "app", "v1", want)
	for name, dir := range map[string]string{"full": mountSmall(t, 8), "missing": filepath.Join(t.TempDir(), "absent")} {
		t.Run(name, func(t *testing.T) {
			p := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", registry.addr), env: []string{"TMPDIR=" + dir}})
			newClient(p.node, "registry.test").mustPull(t, "app", "v1", want)
			whole, _ := download(t, newClient(p.node, "registry.test"), "app", want.layer(0))
			other, _ := download(t, newClient(p.node, "registry.test"), "app", want.layer(0))
			for _, outcome := range []<-chan error{whole, other} {
				if err := <-outcome; err != nil {
					t.Errorf("one of two clients: %v", err)
				}
			}
		})
	}
}

// age makes everything in the cache an hour older: uses are noted to the minute.
func age(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(dir, "blobs"), func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		at := info.ModTime().Add(-time.Hour)
		return os.Chtimes(file, at, at)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestCacheStaysBelowItsLimitAndKeepsWhatWasUsedLast(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	dir := t.TempDir()
	const limit = 10 << 20
	front := startFront(t, registry.addr, 0)
	p := startPier(t, pierConfig{
		upstreams: namedUpstream("registry.test", front.Host()),
		args:      []string{"--cache-dir", dir, "--cache-max-bytes", fmt.Sprint(limit)},
	})
	door := newClient(p.node, "registry.test")
	var images []*image
	for n := range 5 {
		i := newImage(t, 3<<20)
		images = append(images, i)
		registry.put(t, "app", fmt.Sprint("v", n), i)
		door.mustPull(t, "app", fmt.Sprint("v", n), i)
		awaitKept(t, dir, i)
		age(t, dir)
		// The first image stays in use.
		door.mustPull(t, "app", "v0", images[0])
	}
	eventually(t, soon, func() error {
		if used, files := diskUsage(t, dir); used > limit+64<<10 { // index.json and its like are not counted
			return fmt.Errorf("the cache holds %d bytes, allowed are %d: %v", used, limit, files)
		}
		return nil
	})
	if !kept(dir, images[4].layer(0)) {
		t.Error("the image that came last was evicted")
	}
	if n := len(asked(front, http.MethodGet, images[0].layer(0).Digest.String())); n != 1 {
		t.Errorf("the image that stayed in use was evicted: it was fetched %d times", n)
	}
	if kept(dir, images[1].layer(0)) {
		t.Error("the least recently used image was kept")
	}
	checkLayout(t, dir, images[4])
}

func TestEvictionSparesWhatAKeptImageNeeds(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	old, filler := newImage(t, 4<<20), newImage(t, 4<<20)
	recent := newImage(t, 1000)
	shared := old.layer(0)
	recent.blobs = append(recent.blobs, shared)
	recent.manifests = []blob{newManifest(t, recent.blobs, 0)}
	dir := t.TempDir()
	p := startPier(t, pierConfig{
		upstreams: namedUpstream("registry.test", registry.addr), args: []string{"--cache-dir", dir, "--cache-max-bytes", "9MiB"},
	})
	door := newClient(p.node, "registry.test")
	for n, i := range []*image{old, recent, filler} {
		registry.put(t, "app", fmt.Sprint("v", n), i)
		door.mustPull(t, "app", fmt.Sprint("v", n), i)
		awaitKept(t, dir, i)
	}
	// The image used longest ago gives next to nothing, since its layer is needed; the next one must go too.
	large := newImage(t, 3<<20)
	registry.put(t, "app", "large", large)
	age(t, dir)
	door.mustPull(t, "app", "v1", recent)
	door.mustPull(t, "app", "large", large)
	eventually(t, soon, func() error {
		if kept(dir, filler.layer(0)) {
			return fmt.Errorf("nothing was evicted")
		}
		return nil
	})
	awaitKept(t, dir, large)
	awaitKept(t, dir, recent)
	checkLayout(t, dir, recent)
}

func TestImageLargerThanTheCacheIsServed(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	want := newImage(t, 3<<20, 2<<20)
	registry.put(t, "app", "v1", want)
	dir := t.TempDir()
	const limit = 1 << 20
	p := startPier(t, pierConfig{
		upstreams: namedUpstream("registry.test", registry.addr), args: []string{"--cache-dir", dir, "--cache-max-bytes", fmt.Sprint(limit)},
	})
	for range 2 {
		newClient(p.node, "registry.test").mustPull(t, "app", "v1", want)
	}
	eventually(t, soon, func() error {
		if used, files := diskUsage(t, dir); used > limit+64<<10 {
			return fmt.Errorf("the cache holds %d bytes, allowed are %d: %v", used, limit, files)
		}
		return nil
	})
}
