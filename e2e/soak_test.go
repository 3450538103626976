//go:build e2e && soak

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pier/e2e/faultproxy"
)

// A soak is a node under load for a long time, with faults of all kinds, and clients that compare every byte.
type soak struct {
	t      *testing.T
	random func() *rand.Rand // a new one, for one goroutine
	p      *pier
	dir    string
	mount  string
	front  *faultproxy.Proxy
	source *registry

	mu     sync.RWMutex // held for writing while the node is not there
	images []*image

	pulls, failed, left, ranges, pushes, pushed, prunes, lists atomic.Int64
	bytes                                                      atomic.Int64
	faults                                                     map[string]int
	peak                                                       int64 // bytes resident
	leftovers                                                  int
}

const (
	soakClients = 8
	soakImages  = 24
)

// TestSoak runs for PIER_SOAK, 30 minutes unless that says otherwise, and writes what it did to PIER_SOAK_REPORT, if that names a file.
func TestSoak(t *testing.T) {
	length := 30 * time.Minute
	if text := os.Getenv("PIER_SOAK"); text != "" {
		var err error
		length, err = time.ParseDuration(text)
		must(t, err)
	}
	s := &soak{t: t, random: func() *rand.Rand { return rand.New(newRandom(t)) }, faults: make(map[string]int)}
	s.start()
	baseline := s.state()
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	var wg sync.WaitGroup
	for range soakClients {
		random := s.random()
		wg.Go(func() {
			for ctx.Err() == nil {
				s.client(ctx, random)
			}
		})
	}
	s.trouble(ctx, s.random())
	wg.Wait()
	begun := time.Now()
	s.settle(baseline)
	s.report(length, time.Since(begun))
}

// start starts the registry, and the node on a file system of its own, which can be filled.
func (s *soak) start() {
	t := s.t
	s.source = startRegistry(t, registryConfig{})
	random := s.random()
	shared := newImage(t, 2<<20).layer(0)
	for n := range soakImages {
		i := newImage(t, random.IntN(6<<20), random.IntN(300<<10), random.IntN(1000)+1)
		if n%3 == 0 {
			i = withLayer(t, i, shared)
		}
		s.images = append(s.images, i)
		s.source.put(t, "soak/app", fmt.Sprint("v", n), i)
	}
	s.front = startFront(t, s.source.addr, 64<<20)
	s.mount = t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", s.mount).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s: run this as root", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "--lazy", s.mount).Run() })
	s.dir = filepath.Join(s.mount, "cache")
	s.p = startPier(t, pierConfig{
		upstreams: namedUpstream("registry.test", s.front.Host()),
		args: []string{
			"--cache-dir", s.dir, "--cache-max-bytes", "60MB", "--tag-ttl", "1s", "--refresh", "1m", "--accept-push", "--push-htpasswd", passwords(t),
			"--pull-timeout", "20s", "--scrub-rate", "20MB/s", "--pprof",
		},
		env: []string{"PIER_LOG_LEVEL=warn"},
	})
}

// withLayer returns an image that has one more layer.
func withLayer(t *testing.T, i *image, layer blob) *image {
	layers := []any{layer.Descriptor}
	for _, b := range i.blobs[1:] {
		layers = append(layers, b.Descriptor)
	}
	root := newJSON(t, i.root().MediaType, map[string]any{"schemaVersion": 2, "mediaType": i.root().MediaType, "config": i.blobs[0].Descriptor, "layers": layers})
	return &image{blobs: append(slices.Clone(i.blobs), layer), manifests: []blob{root}}
}

// client does one thing that clients do. It may fail while there is trouble; what ends well must be right.
func (s *soak) client(ctx context.Context, random *rand.Rand) {
	n := random.IntN(len(s.images))
	i := s.images[n]
	door := newClient(s.p.node, "registry.test")
	defer door.http.CloseIdleConnections()
	switch what := random.IntN(20); {
	case what < 10:
		s.pulls.Add(1)
		for _, b := range append(slices.Clone(i.manifests), i.blobs...) {
			kind := "blobs/"
			if b.MediaType == i.root().MediaType {
				kind = "manifests/"
			}
			if !s.get(ctx, door, "soak/app/"+kind+b.Digest.String(), b.data) {
				s.failed.Add(1)
				return
			}
		}
	case what < 13:
		s.pulls.Add(1)
		if !s.get(ctx, door, "soak/app/manifests/v"+strconv.Itoa(n), i.root().data) {
			s.failed.Add(1)
		}
	case what < 16:
		b := i.layer(0)
		if b.Size == 0 {
			return
		}
		s.ranges.Add(1)
		first := random.Int64N(b.Size)
		last := first + random.Int64N(b.Size-first)
		s.get(ctx, door, "soak/app/blobs/"+b.Digest.String(), b.data[first:last+1], "Range", fmt.Sprintf("bytes=%d-%d", first, last))
	case what < 17:
		s.left.Add(1)
		leaving, cancel := context.WithTimeout(ctx, time.Duration(random.IntN(30))*time.Millisecond)
		defer cancel()
		s.get(leaving, door, "soak/app/blobs/"+i.layer(0).Digest.String(), i.layer(0).data)
	case what < 18:
		s.push(ctx, random)
	case what < 19:
		s.lists.Add(1)
		_ = exec.CommandContext(ctx, pierBinary, "list", "--cache-dir", s.dir).Run() // it may not run
	default:
		s.prunes.Add(1)
		_ = exec.CommandContext(ctx, pierBinary, "prune", "--cache-dir", s.dir, fmt.Sprintf("registry.test/soak/app:v%d", n)).Run()
	}
}

// get reports whether content came, and fails the test if it is not what it must be.
func (s *soak) get(ctx context.Context, door *client, path string, want []byte, header ...string) bool {
	s.mu.RLock() // so that those who wait for a node that is down do not spin
	s.mu.RUnlock()
	a, err := door.do(ctx, http.MethodGet, path, header...)
	if err != nil || a.status != http.StatusOK && a.status != http.StatusPartialContent {
		if ctx.Err() == nil {
			time.Sleep(10 * time.Millisecond)
		}
		return false
	}
	s.bytes.Add(int64(len(a.body)))
	if !bytes.Equal(a.body, want) {
		s.t.Errorf("%s: got %d bytes that are not the %d that it has", path, len(a.body), len(want))
	}
	return true
}

// push pushes an image, pulls it back, and removes it. What was answered 201 must be there, but for what a disk lost meanwhile.
func (s *soak) push(ctx context.Context, random *rand.Rand) {
	s.pushes.Add(1)
	n := random.IntN(len(s.images))
	i, tag := s.images[n], "v"+strconv.Itoa(n)
	send := func(method, what, contentType string, data []byte) bool {
		req, err := http.NewRequestWithContext(ctx, method, s.p.node+"/v2/pushed/"+what, bytes.NewReader(data))
		if err != nil {
			return false
		}
		req.Header.Set("X-Registry", "site.test")
		req.Header.Set("Content-Type", contentType)
		req.SetBasicAuth("ada", "engine")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusCreated
	}
	for _, b := range i.blobs {
		if !send(http.MethodPost, "blobs/uploads/?digest="+b.Digest.String(), "application/octet-stream", b.data) {
			return
		}
	}
	root := i.root()
	if !send(http.MethodPut, "manifests/"+tag, root.MediaType, root.data) {
		return
	}
	s.pushed.Add(1)
	door := newClient(s.p.node, "site.test")
	defer door.http.CloseIdleConnections()
	s.get(ctx, door, "pushed/manifests/"+tag, root.data)
	for _, b := range i.blobs {
		s.get(ctx, door, "pushed/blobs/"+b.Digest.String(), b.data)
	}
	_ = exec.CommandContext(ctx, pierBinary, "prune", "--cache-dir", s.dir, "site.test/pushed:"+tag).Run() // it may not run
}

// trouble makes trouble until ctx ends.
func (s *soak) trouble(ctx context.Context, random *rand.Rand) {
	blob := faultproxy.Of(faultproxy.Blob)
	rules := map[string]faultproxy.Rule{
		"cut":        {Path: blob, Fault: faultproxy.CutAfter(100_000)},
		"hang":       {Path: blob, Fault: faultproxy.HangAfter(50_000)},
		"drip":       {Path: blob, Fault: faultproxy.Drip(2000, 50*time.Millisecond)},
		"flip":       {Path: blob, Fault: faultproxy.Flip(1000)},
		"short":      {Path: blob, Fault: faultproxy.Length(-10)},
		"no range":   {Path: blob, Fault: faultproxy.IgnoreRange()},
		"no digest":  {Fault: faultproxy.NoDigest()},
		"503":        {Fault: faultproxy.Status(http.StatusServiceUnavailable)},
		"429":        {Fault: faultproxy.TooManyRequests(1)},
		"401":        {Fault: faultproxy.Unauthorized(`Basic realm="x"`)},
		"drop":       {Fault: faultproxy.Drop()},
		"hang early": {Fault: faultproxy.Hang()},
	}
	kinds := []string{"kill", "kill", "stop", "rot", "tear", "full"}
	for name := range rules {
		kinds = append(kinds, name)
	}
	slices.Sort(kinds)
	for ctx.Err() == nil {
		kind := kinds[random.IntN(len(kinds))]
		s.faults[kind]++
		if rule, ok := rules[kind]; ok {
			s.front.Set(rule)
		}
		switch kind {
		case "kill", "stop":
			s.mu.Lock()
			if kind == "kill" {
				s.p.kill()
			} else {
				s.p.terminate(s.t, 10*time.Second)
			}
			s.p.start(s.t)
			s.mu.Unlock()
		case "rot", "tear":
			s.spoil(random, kind == "tear")
		case "full":
			s.fill(ctx)
		}
		s.look()
		pause(ctx, time.Duration(500+random.IntN(3000))*time.Millisecond)
		s.front.Clear()
		pause(ctx, time.Duration(500+random.IntN(1500))*time.Millisecond)
	}
	s.front.Clear()
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// spoil damages a file of the cache, with its times as they were.
func (s *soak) spoil(random *rand.Rand, tear bool) {
	files, _ := filepath.Glob(filepath.Join(s.dir, "blobs/sha256/*"))
	if len(files) == 0 {
		return
	}
	name := files[random.IntN(len(files))]
	info, err := os.Stat(name)
	if err != nil || info.Size() < 2 {
		return // it is gone
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if tear {
		_ = f.Truncate(info.Size() / 2)
	} else {
		var b [1]byte
		at := random.Int64N(info.Size())
		_, _ = f.ReadAt(b[:], at)
		_, _ = f.WriteAt([]byte{^b[0]}, at)
	}
	_ = os.Chtimes(name, info.ModTime(), info.ModTime())
}

// fill fills the disk for a moment.
func (s *soak) fill(ctx context.Context) {
	name := filepath.Join(s.mount, "filler")
	defer os.Remove(name)
	f, err := os.Create(name)
	if err != nil {
		return
	}
	defer f.Close()
	zeros := make([]byte, 1<<20)
	for {
		if _, err := f.Write(zeros); err != nil {
			break
		}
	}
	pause(ctx, 2*time.Second)
}

// look remembers the most memory that was resident.
func (s *soak) look() {
	if s.p.ended() {
		return
	}
	s.peak = max(s.peak, s.p.peakMemory(s.t))
}

// A state is what a process holds.
type state struct{ goroutines, files int }

func (s *soak) state() state {
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.p.pid()))
	must(s.t, err)
	return state{int(s.p.metric(s.t, "go_goroutines")), len(fds)}
}

// settle waits until all is quiet, and sees that nothing is left.
func (s *soak) settle(before state) {
	t := s.t
	for n, i := range s.images {
		door := newClient(s.p.node, "registry.test")
		begun := time.Now()
		eventually(t, soon, func() error { return door.pull(t.Context(), "soak/app", fmt.Sprint("v", n), i) })
		if took := time.Since(begun); took > time.Second {
			t.Logf("image %d came after %s", n, took.Round(time.Millisecond))
		}
		door.http.CloseIdleConnections()
	}
	http.DefaultClient.CloseIdleConnections()
	var after state
	const few = 4                                                           // such as what the collector started
	for end := time.Now().Add(3 * time.Minute); ; time.Sleep(time.Second) { // connections that are kept for the next request end by themselves
		if after = s.state(); after.goroutines <= before.goroutines+few && after.files <= before.files+few {
			break
		}
		if time.Now().After(end) {
			t.Errorf("left are %+v, before there were %+v:\n%s", after, before, fetchBy(t, s.p.http, s.p.metrics+"/debug/pprof/goroutine?debug=1").body)
			break
		}
	}
	s.p.terminate(t, 10*time.Second)
	checkDigests(t, s.dir)
	parts, err := filepath.Glob(filepath.Join(s.dir, "pier/partial/*"))
	must(t, err)
	temporary, err := filepath.Glob(filepath.Join(s.dir, ".new-*"))
	must(t, err)
	if s.leftovers = len(parts) + len(temporary); s.leftovers > s.faults["kill"] { // a kill may leave what can be gone on with, for a day
		t.Errorf("temporary files are left: %q", append(parts, temporary...))
	}
	run(t, pierBinary, "prune", "--cache-dir", s.dir, "--all")
	if parts, err = filepath.Glob(filepath.Join(s.dir, "pier/partial/*")); err != nil || len(parts) > 0 {
		t.Errorf("after all was removed there are %q, %v", parts, err)
	}
	t.Logf("before: %+v, after: %+v", before, after)
}

// report says what was done.
func (s *soak) report(length, settled time.Duration) {
	var b strings.Builder
	fmt.Fprintf(&b, "| | |\n|---|---|\n")
	row := func(name string, value any) { fmt.Fprintf(&b, "| %s | %v |\n", name, value) }
	row("duration", length)
	row("until all images were pulled well, and nothing was left, after it", settled.Round(time.Second))
	row("machine", fmt.Sprintf("%d processors, %s", runtime.NumCPU(), kernel()))
	row("clients", soakClients)
	row("pulls of images, and of manifests by tag", s.pulls.Load())
	row("of them not to the end, while there was trouble", s.failed.Load())
	row("ranges, clients that left in the middle", fmt.Sprintf("%d, %d", s.ranges.Load(), s.left.Load()))
	row("pushes, of them whole and pulled back, lists, prunes", fmt.Sprintf("%d, %d, %d, %d", s.pushes.Load(), s.pushed.Load(), s.lists.Load(), s.prunes.Load()))
	row("files of interrupted transfers and uploads at the end", s.leftovers)
	row("bytes that clients compared", s.bytes.Load())
	row("bytes that were wrong", 0)
	row("resident memory, at most", fmt.Sprintf("%.1f MB", float64(s.peak)/1e6))
	kinds := make([]string, 0, len(s.faults))
	for kind, n := range s.faults {
		kinds = append(kinds, fmt.Sprintf("%s %d", kind, n))
	}
	slices.Sort(kinds)
	row("faults", strings.Join(kinds, ", "))
	s.t.Log("\n" + b.String())
	if name := os.Getenv("PIER_SOAK_REPORT"); name != "" && !s.t.Failed() {
		must(s.t, os.WriteFile(name, []byte(b.String()), 0o644))
	}
}

func kernel() string {
	var u syscall.Utsname
	if syscall.Uname(&u) != nil {
		return ""
	}
	var text []byte
	for _, c := range u.Release {
		if c != 0 {
			text = append(text, byte(c))
		}
	}
	return "Linux " + string(text)
}
