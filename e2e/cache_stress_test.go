//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"pier/e2e/faultproxy"
)

// blobFile is where a cache keeps a blob.
func blobFile(dir string, b blob) string {
	return filepath.Join(dir, "blobs", b.Digest.Algorithm().String(), b.Digest.Encoded())
}

// flip changes a byte of a file and leaves its times as they were.
func flip(t *testing.T, name string, offset int64) {
	t.Helper()
	info, err := os.Stat(name)
	must(t, err)
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	var b [1]byte
	_, err = f.ReadAt(b[:], offset)
	must(t, err)
	_, err = f.WriteAt([]byte{^b[0]}, offset)
	must(t, err)
	must(t, os.Chtimes(name, info.ModTime(), info.ModTime()))
}

// A stocked is a node whose cache has an image of a registry.
type stocked struct {
	*pier
	dir      string
	image    *image
	registry *registry
	front    *faultproxy.Proxy
	door     *client
}

func startStocked(t *testing.T, args ...string) *stocked {
	t.Helper()
	registry := startRegistry(t, registryConfig{})
	s := &stocked{dir: t.TempDir(), image: newImage(t, 3<<20, 200<<10, 100), registry: registry}
	registry.put(t, "app", "v1", s.image)
	s.front = startFront(t, registry.addr, 0)
	s.pier = startPier(t, pierConfig{upstreams: namedUpstream("registry.test", s.front.Host()), args: append([]string{"--cache-dir", s.dir}, args...)})
	s.door = newClient(s.node, "registry.test")
	s.door.mustPull(t, "app", "v1", s.image)
	awaitKept(t, s.dir, s.image)
	return s
}

// mustGet gets a blob until it is right: an attempt may be aborted, and must not end cleanly with anything else.
func (s *stocked) mustGet(t *testing.T, b blob) {
	t.Helper()
	var err error
	for range 5 {
		var a answer
		if a, err = s.door.do(t.Context(), http.MethodGet, "app/blobs/"+b.Digest.String()); err == nil {
			if err = a.matches(b); err == nil {
				return
			}
			t.Fatalf("served cleanly: %v", err)
		}
	}
	t.Fatalf("it does not heal: %v", err)
}

// A byte that changed while the node was down, with the file's times as they were, is never served cleanly, and the content heals.
func TestByteFlippedWhileTheNodeWasDown(t *testing.T) {
	t.Parallel()
	s := startStocked(t, "--scrub-rate", "0")
	s.terminate(t, 10*time.Second)
	for n := range s.image.blobs[1:] {
		flip(t, blobFile(s.dir, s.image.layer(n)), s.image.layer(n).Size/2)
	}
	s.start(t)
	for n := range s.image.blobs[1:] {
		s.mustGet(t, s.image.layer(n))
	}
	awaitKept(t, s.dir, s.image)
	checkLayout(t, s.dir, s.image)
}

// What changed while nobody asked is found by the scrub, dropped, and fetched again.
func TestByteFlippedIsFoundByTheScrub(t *testing.T) {
	t.Parallel()
	s := startStocked(t, "--scrub-rate", "500kB/s")
	s.terminate(t, 10*time.Second)
	s.start(t)
	layer := s.image.layer(0)
	flip(t, blobFile(s.dir, layer), 3<<20-1000) // the scrub is there six seconds after the start at the earliest
	eventually(t, 30*time.Second, func() error {
		if _, err := os.Stat(blobFile(s.dir, layer)); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("it is still there: %w", err)
		}
		return nil
	})
	if got := s.metric(t, `pier_quarantines_total{copy="own"}`); got != 1 {
		t.Errorf("%v copies were found wrong, want 1", got)
	}
	s.door.mustPull(t, "app", "v1", s.image)
	awaitKept(t, s.dir, s.image)
	checkLayout(t, s.dir, s.image)
}

// A file that is torn, and one that cannot be read, cost their own content an attempt, and no other.
func TestOneBadFileCostsThatFileOnly(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(name string) error{
		"torn":        func(name string) error { return os.Truncate(name, 1000) },
		"empty":       func(name string) error { return os.Truncate(name, 0) },
		"longer":      func(name string) error { return os.Truncate(name, 8<<20) },
		"a directory": func(name string) error { return errors.Join(os.Remove(name), os.Mkdir(name, 0o755)) },
		"a loop":      func(name string) error { return errors.Join(os.Remove(name), os.Symlink(name, name)) },
		"a pipe":      func(name string) error { return errors.Join(os.Remove(name), syscall.Mkfifo(name, 0o600)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startStocked(t)
			must(t, spoil(blobFile(s.dir, s.image.layer(0))))
			s.front.Reset()
			s.mustGet(t, s.image.layer(1))
			s.mustGet(t, s.image.blobs[0])
			if got := s.front.Count(http.MethodGet, faultproxy.Blob); got != 0 {
				t.Errorf("the others were fetched again: %d requests", got)
			}
			s.mustGet(t, s.image.layer(0))
			run(t, pierBinary, "list", "--cache-dir", s.dir)
			run(t, pierBinary, "prune", "--cache-dir", s.dir, "--unused-for", "1h")
			s.terminate(t, 10*time.Second)
			s.start(t)
			s.door.mustPull(t, "app", "v1", s.image)
		})
	}
}

// Images are removed while they are pulled: every byte that a client got is right, and every pull ends well.
func TestPruneDuringPulls(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	var images []*image
	for n := range 4 {
		images = append(images, newImage(t, 1<<20, 100<<10))
		registry.put(t, "app", fmt.Sprint("v", n), images[n])
	}
	dir := t.TempDir()
	p := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", registry.addr), args: []string{"--cache-dir", dir}})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	pulls := make([]int, 8)
	for c := range pulls {
		wg.Go(func() {
			for ; ctx.Err() == nil; pulls[c]++ {
				n := (c + pulls[c]) % len(images)
				if err := newClient(p.node, "registry.test").pull(t.Context(), "app", fmt.Sprint("v", n), images[n]); err != nil {
					t.Errorf("client %d, pull %d: %v", c, pulls[c], err)
					return
				}
			}
		})
	}
	pruned := 0
	for ; ctx.Err() == nil; pruned++ {
		run(t, pierBinary, "prune", "--cache-dir", dir, "--all")
	}
	wg.Wait()
	if pruned < 10 || pulls[0] < 3 {
		t.Errorf("%d prunes and %v pulls prove little", pruned, pulls)
	}
	for n, i := range images {
		newClient(p.node, "registry.test").mustPull(t, "app", fmt.Sprint("v", n), i)
	}
	run(t, pierBinary, "prune", "--cache-dir", dir, "--all")
	eventually(t, soon, func() error {
		if left, err := filepath.Glob(filepath.Join(dir, "blobs/*/*")); err != nil || len(left) > 0 {
			return fmt.Errorf("left are %q, %w", left, err)
		}
		return nil
	})
}

// Two images share a layer, and the pull of one dies in it: the other's goes on, and both are whole in the end.
func TestTwoImagesShareALayerAndOnePullDies(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	one := newImage(t, 4<<20, 1000)
	two := newImage(t, 2000)
	two.blobs[1] = one.layer(0)
	two.manifests[0] = newManifest(t, two.blobs, 0)
	registry.put(t, "one", "v1", one)
	registry.put(t, "two", "v1", two)
	front := startFront(t, registry.addr, 2<<20)
	dir := t.TempDir()
	p := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", front.Host()), args: []string{"--cache-dir", dir}})
	ctx, leave := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { first <- newClient(p.node, "registry.test").pull(ctx, "one", "v1", one) }()
	second := make(chan error, 1)
	time.Sleep(300 * time.Millisecond)
	go func() { second <- newClient(p.node, "registry.test").pull(t.Context(), "two", "v1", two) }()
	time.Sleep(300 * time.Millisecond)
	leave()
	if err := <-first; err == nil {
		t.Error("the first pull was over before it was left")
	}
	if err := <-second; err != nil {
		t.Errorf("the other pull: %v", err)
	}
	if got := len(asked(front, http.MethodGet, one.layer(0).Digest.String())); got != 1 {
		t.Errorf("the layer was asked for %d times, want once", got)
	}
	newClient(p.node, "registry.test").mustPull(t, "one", "v1", one)
	checkLayout(t, dir, two)
}

// Tags that differ in case alone, repositories five levels deep, registries by port, by IPv6, and layers by the dozen are what they are.
func TestNamesOfAllKindsAreKeptApart(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	lower, upper, many := newImage(t, 1000), newImage(t, 2000), newImage(t, make([]int, 60)...)
	const deep = "a/b/c/d/e"
	registry.put(t, deep, "v1", lower)
	registry.put(t, deep, "V1", upper)
	registry.put(t, deep, "many", many)
	_, port, err := net.SplitHostPort(registry.addr)
	must(t, err)
	listener, err := net.Listen("tcp", "[::1]:0")
	must(t, err)
	target, err := url.Parse("http://" + registry.addr)
	must(t, err)
	six := &httptest.Server{Listener: listener, Config: &http.Server{Handler: httputil.NewSingleHostReverseProxy(target), ReadHeaderTimeout: time.Minute}}
	six.Start()
	t.Cleanup(six.Close)
	names := []string{"localhost:" + port, listener.Addr().String()}
	upstreams := ""
	for _, name := range names {
		upstreams += "- name: \"" + name + "\"\n  scheme: http\n"
	}
	dir := t.TempDir()
	p := startPier(t, pierConfig{upstreams: upstreams, args: []string{"--cache-dir", dir}})
	pull := func(p *pier) {
		t.Helper()
		for _, name := range names {
			door := newClient(p.node, name)
			door.mustPull(t, deep, "v1", lower)
			door.mustPull(t, deep, "V1", upper)
			door.mustPull(t, deep, "many", many)
		}
	}
	pull(p)
	list := run(t, pierBinary, "list", "--cache-dir", dir, "--json")
	for _, name := range names {
		for _, tag := range []string{"v1", "V1", "many"} {
			if !strings.Contains(list, `"`+name+"/"+deep+":"+tag+`"`) {
				t.Errorf("%s/%s:%s is not listed: %s", name, deep, tag, list)
			}
		}
	}
	awaitKept(t, dir, many)
	p.terminate(t, 10*time.Second)
	pull(startPier(t, pierConfig{args: []string{"--cache-dir", dir, "--air-gapped"}}))
}

// Files that are dated in another century, as after a jump of the clock, are served, listed and removed as others.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	s := startStocked(t)
	s.terminate(t, 10*time.Second)
	future, past := time.Date(2090, 1, 1, 0, 0, 0, 0, time.UTC), time.Unix(0, 0)
	for n, b := range append(append([]blob{}, s.image.blobs...), s.image.manifests...) {
		at := future
		if n%2 == 0 {
			at = past
		}
		must(t, os.Chtimes(blobFile(s.dir, b), at, at))
	}
	s.start(t)
	s.door.mustPull(t, "app", "v1", s.image)
	if got := s.front.Count(http.MethodGet, faultproxy.Blob); got != len(s.image.blobs) {
		t.Errorf("blobs were asked for %d times, want %d", got, len(s.image.blobs))
	}
	if list := run(t, pierBinary, "list", "--cache-dir", s.dir); !strings.Contains(list, "just now") {
		t.Errorf("listed:\n%s", list)
	}
	run(t, pierBinary, "prune", "--cache-dir", s.dir, "--all")
	s.door.mustPull(t, "app", "v1", s.image)
}

// One cache is the mirror of another: each blob crosses the link once, and a tag that moved is seen through both.
func TestChainedCaches(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	one, two := newImage(t, 1<<20), newImage(t, 2000)
	registry.put(t, "app", "v1", one)
	front := startFront(t, registry.addr, 0)
	args := func() []string { return []string{"--cache-dir", t.TempDir(), "--tag-ttl", "0s"} }
	near := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", front.Host()), args: args()})
	far := func() *pier {
		return startPier(t, pierConfig{upstreams: "- name: registry.test\n  mirrors: [\"" + near.nodeAddr() + "\"]\n- name: \"" + near.nodeAddr() + "\"\n  scheme: http\n", args: args()})
	}
	first, second := far(), far()
	newClient(first.node, "registry.test").mustPull(t, "app", "v1", one)
	newClient(second.node, "registry.test").mustPull(t, "app", "v1", one)
	if got := front.Count(http.MethodGet, faultproxy.Blob); got != len(one.blobs) {
		t.Errorf("blobs were fetched %d times, want %d", got, len(one.blobs))
	}
	registry.put(t, "app", "v1", two)
	newClient(first.node, "registry.test").mustPull(t, "app", "v1", two)
}

// What was loaded where there is a network is served from a copy of the directory where there is none at all.
func TestAirGappedHandOver(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	single, index := newImage(t, 1<<20), newIndex(t, 50<<10, amd64, arm64)
	registry.put(t, "team/app", "v1", single)
	registry.put(t, "team/multi", "v1", index)
	work := t.TempDir()
	writeFile(t, work+"/upstreams.yaml", "- name: registry.test\n  mirrors: [\""+registry.addr+"\"]\n- name: \""+registry.addr+"\"\n  scheme: http\n")
	writeFile(t, work+"/images.txt", "# for the site\nregistry.test/team/app:v1\nregistry.test/team/multi:v1\n")
	run(t, pierBinary, "load", "--cache-dir", work+"/images", "--upstreams", work+"/upstreams.yaml", "--file", work+"/images.txt")
	run(t, "cp", "-r", work+"/images", work+"/medium")

	socket := work + "/node.sock"
	p := startPier(t, pierConfig{
		unready: true, args: []string{"--cache-dir", work + "/medium", "--air-gapped", "--listen", "unix:" + socket},
		wrap: []string{"unshare", "--net"}, // without so much as a loopback interface
	})
	door := newClient("http://node", "registry.test")
	door.http = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	eventually(t, soon, func() error { return door.pull(t.Context(), "team/app", "v1", single) })
	door.mustPull(t, "team/multi", "v1", index)
	a := door.get(t, "team/none/manifests/v1")
	if a.wantStatus(t, "what is not there", http.StatusNotFound); !bytes.Contains(a.body, []byte("air-gapped")) {
		t.Errorf("it does not say why: %s", a.body)
	}
	if got := p.terminate(t, 10*time.Second); got > 10*time.Second {
		t.Errorf("it took %s to end", got)
	}
}

// A stop ends the process in time, also in the middle of a push and of a load.
func TestSIGTERMInPushesAndLoads(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	want, other := newImage(t, 8<<20), newImage(t, 8<<20)
	registry.put(t, "app", "v1", want)
	registry.put(t, "app", "v2", other)
	front := startFront(t, registry.addr, 200<<10)
	dir := t.TempDir()
	p := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", front.Host()), args: []string{
		"--cache-dir", dir, "--accept-push", "--push-htpasswd", passwords(t), "--preload", preloadList(t, "registry.test/app:v1"),
	}})
	body := newSlow(want.layer(0).data)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.node+"/v2/other/blobs/uploads/?digest="+want.layer(0).Digest.String(), body)
	must(t, err)
	req.SetBasicAuth("ada", "engine")
	sent := make(chan error, 1)
	go func() {
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		sent <- err
	}()
	eventually(t, soon, func() error {
		files, err := filepath.Glob(filepath.Join(dir, "pier", "partial", "*"))
		if err == nil && len(files) < 2 {
			err = fmt.Errorf("the push and the preload are not under way: %q", files)
		}
		return err
	})
	load := exec.Command(pierBinary, "load", "--cache-dir", dir, "registry.test/app:v2")
	loading := startProcess(t, "pier load", load)
	eventually(t, soon, func() error {
		if len(asked(front, http.MethodGet, other.layer(0).Digest.String())) == 0 {
			return errors.New("what pier load wants is not under way")
		}
		return nil
	})
	p.terminate(t, 10*time.Second)
	if err := <-sent; err == nil {
		t.Error("the push was over before the stop")
	}
	eventually(t, soon, func() error {
		if !loading.ended() {
			return errors.New("pier load does not end")
		}
		return nil
	})
	if loading.cmd.ProcessState.Success() {
		t.Error("pier load says that all is well")
	}
	p.start(t)
	front.LimitRate(0, 0)
	newClient(p.node, "registry.test").mustPull(t, "app", "v1", want)
}

func preloadList(t *testing.T, lines ...string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "list.txt")
	writeFile(t, name, strings.Join(lines, "\n"))
	return name
}

// slow is a body that comes a little at a time.
type slow struct{ r *bytes.Reader }

func newSlow(b []byte) *slow { return &slow{bytes.NewReader(b)} }

func (s *slow) Read(p []byte) (int, error) {
	time.Sleep(20 * time.Millisecond)
	return s.r.Read(p[:min(len(p), 4<<10)])
}

// A node that is killed again and again, at any moment of what it does, keeps nothing but what is right.
func TestTwoHundredKillsLeaveTheCacheSound(t *testing.T) {
	t.Parallel()
	const kills = 200
	registry := startRegistry(t, registryConfig{})
	var images []*image
	for n := range 3 {
		images = append(images, newImage(t, 2<<20, 500<<10, 1000))
		registry.put(t, "app", fmt.Sprint("v", n), images[n])
	}
	front := startFront(t, registry.addr, 32<<20)
	dir := t.TempDir()
	p := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", front.Host()), unready: true, args: []string{"--cache-dir", dir, "--cache-max-bytes", "6MB"}})
	random, busy := rand.New(newRandom(t)), 0
	for round := range kills {
		front.Reset()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for n, i := range images {
			wg.Go(func() {
				door := newClient(p.node, "registry.test")
				for ctx.Err() == nil { // until it is killed
					_ = door.pull(ctx, "app", fmt.Sprint("v", n), i)
				}
			})
		}
		time.Sleep(time.Duration(20+random.IntN(150)) * time.Millisecond)
		p.kill()
		cancel()
		wg.Wait()
		if len(front.Requests()) > 0 {
			busy++
		}
		checkDigests(t, dir)
		if t.Failed() {
			t.Fatalf("after %d kills", round+1)
		}
		p.start(t)
	}
	if busy < kills/2 {
		t.Errorf("content was on its way at %d kills alone", busy)
	}
	p.awaitReady(t)
	for n, i := range images {
		newClient(p.node, "registry.test").mustPull(t, "app", fmt.Sprint("v", n), i)
	}
	p.terminate(t, 10*time.Second)
	checkDigests(t, dir)
}

// checkDigests fails the test for each file of a cache that is not what its name says.
func checkDigests(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "blobs", "*", "*"))
	must(t, err)
	for _, name := range files {
		content, err := os.ReadFile(name)
		must(t, err)
		if got := newBlob("", content).Digest.Encoded(); got != filepath.Base(name) {
			t.Errorf("%s has content of digest %s", name, got)
		}
	}
}

// A load brings the platforms that were chosen, and what refers to them, whether a node runs or not; what crossed the link once is counted as saved
// when it is pulled.
func TestLoadChoosesPlatformsAndReferrers(t *testing.T) {
	t.Parallel()
	source := startReferrersRegistry(t)
	index, single := newIndex(t, 50<<10, amd64, arm64), newImage(t, 1000)
	signature := newArtifact(t, "application/vnd.example.signature", index.root())
	for tag, i := range map[string]*image{"v1": index, "single": single, "": signature} {
		pushImage(t, "http://"+source, "team/app", tag, i)
	}
	for _, runs := range []bool{false, true} {
		t.Run(fmt.Sprintf("node %v", runs), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			cfg := pierConfig{upstreams: plainUpstream(source), args: []string{"--cache-dir", dir}}
			var p *pier
			upstreams := filepath.Join(t.TempDir(), "upstreams.yaml")
			writeFile(t, upstreams, plainUpstream(source))
			args := []string{"load", "--cache-dir", dir, "--upstreams", upstreams, "--platform", "linux/arm64"}
			if runs {
				p = startPier(t, cfg)
			}
			run(t, pierBinary, append(args, "--referrers", source+"/team/app:v1")...)
			for n, b := range index.blobs { // config and layer of amd64, then of arm64
				if got := kept(dir, b); got != (n >= 2) {
					t.Errorf("blob %d is kept: %v", n, got)
				}
			}
			awaitKept(t, dir, signature)
			if _, err := tryRun(t, nil, pierBinary, append(args, source+"/team/app:single")...); err == nil || !strings.Contains(err.Error(), "linux/amd64, not for linux/arm64") {
				t.Errorf("an image of another platform: %v", err)
			}
			if _, err := tryRun(t, nil, pierBinary, "load", "--cache-dir", dir, "--platform", "arm64", source+"/team/app:v1"); err == nil || !strings.Contains(err.Error(), "no platform") {
				t.Errorf("a platform that is none: %v", err)
			}
			if !runs {
				return
			}
			door := newClient(p.node, source)
			for range 3 {
				for _, b := range index.blobs[2:] {
					if a := door.get(t, "team/app/blobs/"+b.Digest.String()); a.matches(b) != nil {
						t.Error(a.matches(b))
					}
				}
			}
			// The load brought it once, with a little more; it was served three times.
			if got, size := p.metric(t, "pier_saved_bytes"), float64(index.blobs[2].Size+index.blobs[3].Size); got < 1.8*size || got > 2*size {
				t.Errorf("saved are %v bytes, of %v that were served three times", got, size)
			}
		})
	}
}
