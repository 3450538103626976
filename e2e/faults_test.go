//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pier/e2e/faultproxy"
)

// An outcome says how a pull through a fault must end.
type outcome int

const (
	heals  outcome = iota // the pull works
	fails                 // the client is told: an error status, or an aborted connection
	either                // one of both
)

func TestFaultsOfUpstreamNeverReachClientsAsContentAndLaterPullsAreHealthy(t *testing.T) {
	t.Parallel()
	blobs, manifests := faultproxy.Of(faultproxy.Blob), faultproxy.Of(faultproxy.Manifest)
	const middle = 1 << 20
	for _, c := range []faultCase{
		{"a byte of a blob is flipped", []faultproxy.Rule{{Path: blobs, Fault: faultproxy.Flip(middle)}}, fails},
		{"a byte of a manifest is flipped", []faultproxy.Rule{{Path: manifests, Fault: faultproxy.Flip(10)}}, fails},
		{"blobs are cut twice", []faultproxy.Rule{{Path: blobs, Times: 2, Fault: faultproxy.CutAfter(middle)}}, heals},
		{"blobs are cut at once", []faultproxy.Rule{{Path: blobs, Times: 2, Fault: faultproxy.CutAfter(0)}}, heals},
		{"blobs are cut and ranges ignored", []faultproxy.Rule{
			{Path: blobs, Times: 1, Fault: faultproxy.CutAfter(middle)}, {Path: blobs, Fault: faultproxy.IgnoreRange()},
		}, heals},
		{"the first connection is dropped", []faultproxy.Rule{{Times: 1, Fault: faultproxy.Drop()}}, heals},
		{"blobs hang once in the middle", []faultproxy.Rule{{Path: blobs, Times: 1, Fault: faultproxy.HangAfter(middle)}}, either},
		{"blobs hang at every MiB", []faultproxy.Rule{{Path: blobs, Fault: faultproxy.HangAfter(middle)}}, either},
		{"blobs hang", []faultproxy.Rule{{Path: blobs, Fault: faultproxy.HangAfter(0)}}, fails},
		{"everything hangs", []faultproxy.Rule{{Fault: faultproxy.Hang()}}, fails},
		{"too many requests at first", []faultproxy.Rule{{Times: 1, Fault: faultproxy.TooManyRequests(1)}}, heals},
		{"too many requests", []faultproxy.Rule{{Fault: faultproxy.TooManyRequests(1)}}, fails},
		{"unavailable at first", []faultproxy.Rule{{Times: 1, Fault: faultproxy.Status(503)}}, heals},
		{"unavailable", []faultproxy.Rule{{Fault: faultproxy.Status(503)}}, fails},
		{"broken", []faultproxy.Rule{{Fault: faultproxy.Status(500)}}, fails},
		{"blobs are shorter than announced", []faultproxy.Rule{{Path: blobs, Fault: faultproxy.Length(100)}}, either},
		{"blobs are longer than announced", []faultproxy.Rule{{Path: blobs, Fault: faultproxy.Length(-100)}}, fails},
		{"blobs come without a length", []faultproxy.Rule{{Path: blobs, Fault: faultproxy.NoLength()}}, either},
		{"blobs drip", []faultproxy.Rule{{Path: blobs, Fault: faultproxy.Drip(8<<10, 20*time.Millisecond)}}, heals},
		{"manifests drip", []faultproxy.Rule{{Path: manifests, Fault: faultproxy.Drip(16, 50*time.Millisecond)}}, heals},
		{"manifests are cut at first", []faultproxy.Rule{{Method: http.MethodGet, Path: manifests, Times: 1, Fault: faultproxy.CutAfter(50)}}, heals},
		{"manifests are cut", []faultproxy.Rule{{Method: http.MethodGet, Path: manifests, Fault: faultproxy.CutAfter(50)}}, fails},
		{"manifests hang", []faultproxy.Rule{{Method: http.MethodGet, Path: manifests, Fault: faultproxy.HangAfter(50)}}, fails},
		{"manifests are longer than announced", []faultproxy.Rule{{Method: http.MethodGet, Path: manifests, Fault: faultproxy.Length(-10)}}, fails},
		{"manifests are shorter than announced", []faultproxy.Rule{{Method: http.MethodGet, Path: manifests, Fault: faultproxy.Length(10)}}, fails},
		{"everything is late", []faultproxy.Rule{{Fault: faultproxy.Latency(time.Second)}}, heals},
		{"HEAD is not spoken", []faultproxy.Rule{{Method: http.MethodHead, Fault: faultproxy.Status(405)}}, heals},
		{"nobody is let in", []faultproxy.Rule{{Fault: faultproxy.Unauthorized(`Basic realm="e2e"`)}}, fails},
		{"tokens are given, and none is good enough", []faultproxy.Rule{{Fault: faultproxy.UselessTokens()}}, fails},
		{"manifests come without a digest", []faultproxy.Rule{{Path: manifests, Fault: faultproxy.NoDigest()}}, heals},
	} {
		for _, cache := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, cache %v", c.name, cache), func(t *testing.T) {
				t.Parallel()
				c.test(t, cache)
			})
		}
	}
}

// A faultCase is what an upstream does wrong, and what becomes of a pull.
type faultCase struct {
	name  string
	rules []faultproxy.Rule
	want  outcome
}

func (c faultCase) test(t *testing.T, cache bool) {
	registry := startRegistry(t, registryConfig{})
	want, other := newImage(t, 3<<20, 2000), newImage(t, 3<<20, 2000)
	registry.put(t, "app", "v1", want)
	registry.put(t, "app", "v2", other)
	front := startFront(t, registry.addr, 0)
	dir, args := t.TempDir(), []string{"--pull-timeout", "2s"}
	if cache {
		args = append(args, "--cache-dir", dir)
	}
	p := startPier(t, pierConfig{upstreams: plainUpstream(front.Host()), args: args})
	spooled := p.spooled(t)
	door := newClient(p.node, front.Host())

	front.Set(c.rules...)
	begin := time.Now()
	err := door.pull(t.Context(), "app", "v1", want)
	if took := time.Since(begin); took > 45*time.Second {
		t.Errorf("the client was told after %v", took)
	}
	switch {
	case c.want == heals && err != nil:
		t.Errorf("the pull did not heal: %v", err)
	case c.want == fails && err == nil:
		t.Error("the pull worked")
	case err != nil && strings.Contains(err.Error(), "bytes of digest"):
		t.Errorf("wrong content ended cleanly: %v", err)
	}
	stopInAPull(t, p, front, "v2", other, c.rules...)
	spooled = min(spooled, p.spooled(t))

	front.Clear()
	eventually(t, 30*time.Second, func() error { return door.pull(t.Context(), "app", "v1", want) })
	door.mustPull(t, "app", "v2", other)
	if cache {
		awaitKept(t, dir, want)
		awaitKept(t, dir, other)
		checkLayout(t, dir, want)
		checkLayout(t, dir, other)
		return
	}
	eventually(t, soon, func() error {
		if now := p.spooled(t); now > spooled {
			return fmt.Errorf("%d bytes of temporary files remain", now-spooled)
		}
		return nil
	})
}

// stopInAPull stops a node in the middle of a pull through a fault, which must not keep it from ending, and starts it again.
func stopInAPull(t *testing.T, p *pier, front *faultproxy.Proxy, tag string, want *image, rules ...faultproxy.Rule) {
	t.Helper()
	front.Set(rules...)
	front.Reset()
	pulled := make(chan error, 1)
	go func() { pulled <- newClient(p.node, front.Host()).pull(t.Context(), "app", tag, want) }()
	eventually(t, soon, func() error {
		if len(front.Requests()) == 0 {
			return errors.New("upstream has not been asked")
		}
		return nil
	})
	time.Sleep(200 * time.Millisecond) // into the blobs, where it gets so far
	p.terminate(t, 10*time.Second)
	if err := <-pulled; err != nil && strings.Contains(err.Error(), "bytes of digest") {
		t.Errorf("wrong content ended cleanly at the stop: %v", err)
	}
	p.start(t)
}

func TestWrongBytesAreNotKeptAndTheNextSourceIsAsked(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	want := newImage(t, 3<<20)
	registry.put(t, "app", "v1", want)
	liar, honest := startFront(t, registry.addr, 0), startFront(t, registry.addr, 0)
	liar.Set(faultproxy.Rule{Path: faultproxy.Of(faultproxy.Blob), Fault: faultproxy.Flip(1 << 20)})
	dir := t.TempDir()
	p := startPier(t, pierConfig{
		upstreams: fmt.Sprintf("- name: registry.test\n  mirrors: [%q, %q]\n", liar.Host(), honest.Host()) +
			plainUpstream(liar.Host()) + plainUpstream(honest.Host()),
		args: []string{"--cache-dir", dir},
	})
	door := newClient(p.node, "registry.test")
	path := "app/blobs/" + want.layer(0).Digest.String()
	a, err := door.do(t.Context(), http.MethodGet, path)
	if err == nil && a.matches(want.layer(0)) != nil && a.status == http.StatusOK {
		t.Error("wrong content ended cleanly")
	}
	eventually(t, soon, func() error { return door.pull(t.Context(), "app", "v1", want) })
	if len(asked(honest, http.MethodGet, path)) == 0 {
		t.Error("the second mirror was not asked")
	}
	awaitKept(t, dir, want)
	checkLayout(t, dir, want)
}

// Asking again for what was wrong a moment ago costs the upstream, and brings nothing.
func TestWrongBytesAreNotFetchedOverAndOver(t *testing.T) {
	t.Parallel()
	for _, size := range []int{100, 60 << 10, 3 << 20} {
		for name, fault := range map[string]faultproxy.Fault{
			"flipped": faultproxy.Flip(50), "longer than announced": faultproxy.Length(-10),
		} {
			t.Run(fmt.Sprintf("%d bytes, %s", size, name), func(t *testing.T) {
				t.Parallel()
				registry := startRegistry(t, registryConfig{})
				want := newImage(t, size)
				registry.put(t, "app", "v1", want)
				front := startFront(t, registry.addr, 0)
				front.Set(faultproxy.Rule{Path: faultproxy.Of(faultproxy.Blob), Fault: fault})
				p := startPier(t, pierConfig{upstreams: plainUpstream(front.Host()), args: []string{"--cache-dir", t.TempDir()}})
				a, err := newClient(p.node, front.Host()).do(t.Context(), http.MethodGet, "app/blobs/"+want.layer(0).Digest.String())
				if err == nil && a.status == http.StatusOK {
					t.Errorf("%d bytes of wrong content ended cleanly", len(a.body))
				}
				if n := front.Count(http.MethodGet, faultproxy.Blob); n > 8 { // a few are fine: the fault may have passed
					t.Errorf("the blob was fetched %d times for one client", n)
				}
			})
		}
	}
}

// A client that comes again at once begins a transfer while the failed one before it is still being put away.
func TestTransferThatFollowsAFailedOneAtOnceIsKept(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	front := startFront(t, registry.addr, 0)
	dir := t.TempDir()
	p := startPier(t, pierConfig{upstreams: plainUpstream(front.Host()), args: []string{"--cache-dir", dir}})
	for round := range 10 {
		sizes := slices.Repeat([]int{200 << 10}, 12)
		want := newImage(t, sizes...)
		registry.put(t, "app", fmt.Sprint("v", round), want)
		front.Set(faultproxy.Rule{Path: faultproxy.Of(faultproxy.Blob), Fault: faultproxy.Length(-100)})
		var wg sync.WaitGroup
		for _, b := range want.blobs[1:] {
			wg.Go(func() {
				var err error
				for range 20 {
					var a answer
					if a, err = newClient(p.node, front.Host()).do(t.Context(), http.MethodGet, "app/blobs/"+b.Digest.String()); err == nil {
						err = a.matches(b)
					}
					if err == nil {
						return
					}
					front.Clear()
				}
				t.Errorf("%s: %v", b.Digest, err)
			})
		}
		wg.Wait()
		for _, b := range want.blobs[1:] {
			eventually(t, soon, func() error {
				if !kept(dir, b) {
					return fmt.Errorf("round %d: %s was served and is not in the cache", round, b.Digest)
				}
				return nil
			})
		}
	}
	if n := p.metric(t, "pier_disk_faults_total"); n != 0 {
		t.Errorf("%v faults of a disk that has none", n)
	}
}

func TestSIGTERMEndsTheProcessThoughUpstreamHangs(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]faultproxy.Fault{
		"before the answer": faultproxy.Hang(), "in mid-blob": faultproxy.HangAfter(1 << 20),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			registry := startRegistry(t, registryConfig{})
			want := newImage(t, 3<<20)
			registry.put(t, "app", "v1", want)
			front := startFront(t, registry.addr, 0)
			front.Set(faultproxy.Rule{Path: faultproxy.Of(faultproxy.Blob), Fault: fault})
			p := startPier(t, pierConfig{
				upstreams: plainUpstream(front.Host()), args: []string{"--cache-dir", t.TempDir()},
			})
			gone := make(chan error, 1)
			path := "app/blobs/" + want.layer(0).Digest.String()
			go func() {
				a, err := newClient(p.node, front.Host()).do(t.Context(), http.MethodGet, path)
				if err == nil && a.status == http.StatusOK {
					err = a.matches(want.layer(0))
				}
				gone <- err
			}()
			eventually(t, soon, func() error {
				if front.Count(http.MethodGet, faultproxy.Blob) == 0 {
					return fmt.Errorf("upstream has not been asked")
				}
				return nil
			})
			p.terminate(t, 10*time.Second)
			if err := <-gone; err != nil && strings.Contains(err.Error(), "bytes of digest") {
				t.Errorf("the client's answer ended as if it were whole: %v", err)
			}
		})
	}
}

func TestSIGTERMLetsARunningDownloadEnd(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	want := newImage(t, 8<<20)
	registry.put(t, "app", "v1", want)
	front := startFront(t, registry.addr, 4<<20) // 2 s
	p := startPier(t, pierConfig{upstreams: namedUpstream("registry.test", front.Host())})
	whole, first := download(t, newClient(p.node, "registry.test"), "app", want.layer(0))
	<-first
	p.terminate(t, 10*time.Second)
	if err := <-whole; err != nil {
		t.Errorf("a download that was running at SIGTERM: %v", err)
	}
}

// download begins to get a blob. It closes first after the first byte, and sends the outcome to whole.
func download(t *testing.T, door *client, repository string, b blob) (whole <-chan error, first <-chan struct{}) {
	t.Helper()
	resp, err := door.open(t.Context(), http.MethodGet, repository+"/blobs/"+b.Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	done, begun := make(chan error, 1), make(chan struct{})
	go func() {
		defer resp.Body.Close()
		body := make([]byte, 1)
		_, err := io.ReadFull(resp.Body, body)
		close(begun)
		if err == nil {
			var rest []byte
			rest, err = io.ReadAll(resp.Body)
			body = append(body, rest...)
		}
		if err == nil {
			err = answer{resp.StatusCode, resp.Header, body}.matches(b)
		}
		done <- err
	}()
	return done, begun
}
