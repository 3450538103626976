//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"pier/e2e/faultproxy"
	"pier/e2e/netns"
)

// awaitSent waits until node 1 has put so many bytes on the LAN since there had been from, of what p pulls.
func (s *site) awaitSent(t *testing.T, from, bytes int64, p *pulling) {
	t.Helper()
	eventually(t, siteWait, func() error {
		select {
		case <-p.done:
			t.Fatalf("the pull on node %d has ended already: %v", p.node.number, p.err)
		default:
		}
		if got := s.sent(t)[0] - from; got < bytes {
			return fmt.Errorf("node 1 has sent %d bytes, want %d", got, bytes)
		}
		return nil
	})
}

// startServing starts two nodes, and a pull on node 2 of what node 1 alone has, and waits until a quarter has come.
func startServing(t *testing.T, holder string, want *image, cut bool) (*site, *pulling) {
	t.Helper()
	s := startSite(t, sealed(t, siteConfig{stores: []string{holder, classic}, lan: netns.Link{Up: netns.Rate(8 * want.size() / 4)}})) // 4 s
	s.registry.put(t, "app", "v1", want)
	s.node(1).pull(t, "v1", want)
	s.node(2).awaitHolder(t, s.node(1), want)
	s.node(1).wantNoLayers(t)
	if cut {
		s.cutWAN(t)
	}
	sent := s.sent(t)[0]
	pull := s.node(2).beginPull(t, "v1", want)
	s.awaitSent(t, sent, want.size()/4, pull)
	return s, pull
}

func TestHolderServesOnWhileItsDockerRestarts(t *testing.T) {
	t.Parallel()
	eachDocker(t, func(t *testing.T, version string) {
		want := newImage(t, 12*mib)
		s, pull := startServing(t, version, want, true)
		s.node(1).docker.restart(t)
		if err := pull.wait(); err != nil {
			t.Errorf("node 2: %v", err)
		}
		s.node(2).docker.do(t, "rmi", s.node(2).named("v1"))
		s.node(2).awaitHolder(t, s.node(1), want)
		s.node(2).pull(t, "v1", want)
	})
}

func TestImageThatIsRemovedWhileItIsServedFailsNoPull(t *testing.T) {
	t.Parallel()
	eachDocker(t, func(t *testing.T, version string) {
		want := makeImage(t, "crane")
		s, pull := startServing(t, version, want.image, false)
		one, two := s.node(1), s.node(2)
		one.docker.do(t, "rmi", one.named("v1"))
		if err := pull.wait(); err != nil {
			t.Errorf("node 2: %v", err)
		}
		if got := two.docker.run(t, two.named("v1")); got != want.says {
			t.Errorf("docker run printed %q, want %q", got, want.says)
		}
		for _, b := range want.blobs { // manifests may stay for an hour
			eventually(t, siteWait, func() error {
				if got := two.holders(t, b); slices.Contains(got, one.name()) {
					return fmt.Errorf("node 1 is still said to have %s", b.Digest)
				}
				return nil
			})
		}
	})
}

// A layer whose files are not what they were is given to nobody, and its holder says so.
func TestLayerWhoseFilesChangedOnItsHolderIsFetchedElsewhere(t *testing.T) {
	t.Parallel()
	s := startSite(t, sealed(t, siteConfig{stores: []string{classic, classic, classic}}))
	one, two, three := s.node(1), s.node(2), s.node(3)
	want := makeImage(t, "crane")
	s.registry.put(t, "app", "v1", want.image)
	one.pull(t, "v1", want.image)
	two.awaitHolder(t, one, want.image)
	one.wantNoLayers(t)
	files, err := filepath.Glob(filepath.Join(one.docker.root, "overlay2/*/diff/data/random"))
	must(t, err)
	if len(files) != 1 {
		t.Fatalf("Docker keeps %q, want one file", files)
	}
	info, err := os.Stat(files[0])
	must(t, err)
	f, err := os.OpenFile(files[0], os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("changed"), info.Size()/2)
	must(t, err)
	must(t, f.Close())
	must(t, os.Chtimes(files[0], time.Time{}, info.ModTime())) // as a disk that rots

	for _, n := range []*siteNode{two, three} {
		n.pull(t, "v1", want.image)
		if got := n.docker.run(t, n.named("v1")); got != want.says {
			t.Errorf("docker run on node %d printed %q, want %q", n.number, got, want.says)
		}
	}
	if log := one.log.String(); !strings.Contains(log, "layer was not made as it was") {
		t.Error("node 1 does not say that a layer has changed")
	}
	large := slices.MaxFunc(want.blobs[1:], func(a, b blob) int { return int(a.Size - b.Size) })
	if got := two.holders(t, large); slices.Contains(got, one.name()) {
		t.Errorf("the layer that changed is still said to be at %q", got)
	}
}

// awaitLearned waits until pier knows how to make so many layers that passed through it.
func (p *pier) awaitLearned(t *testing.T, layers float64) {
	t.Helper()
	eventually(t, siteWait, func() error {
		if got := p.metric(t, `pier_layers_learned_total{outcome="exact"}`); got != layers {
			return fmt.Errorf("%v layers are learned, want %v", got, layers)
		}
		return nil
	})
}

// What pier has learned survives it.
func TestPierThatIsKilledInMidPullKnowsItsRecipesAfterwards(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	front := startFront(t, registry.addr, mib)
	d, p := startBeside(t, classic, namedUpstream("registry.test", front.Host()), nil)
	known, want := newImage(t, mib, 1000), makeImage(t, "crane")
	registry.put(t, "app", "known", known)
	registry.put(t, "app", "v1", want.image)
	d.pull(t, "registry.test/app:known")
	p.awaitLearned(t, 2)

	var wg sync.WaitGroup
	wg.Go(func() { _, _ = d.try(t, "pull", "--quiet", "registry.test/app:v1") }) // as it may
	eventually(t, siteWait, func() error {
		if got := front.SentOf(faultproxy.Blob); got < known.size()+want.size()/4 {
			return fmt.Errorf("%d bytes have been fetched", got)
		}
		return nil
	})
	p.kill()
	p.restart(t)
	wg.Wait()
	d.pull(t, "registry.test/app:v1")
	// Of a layer that Docker went on with in the middle, nobody saw the whole: it is found by trial.
	eventually(t, studyTime, func() error { return newClient(p.peer, "registry.test").pull(t.Context(), "app", "v1", want.image) })
	p.kill()
	registry.stop(t)
	p.restart(t)
	for tag, i := range map[string]*image{"known": known, "v1": want.image} {
		eventually(t, siteWait, func() error { return newClient(p.peer, "registry.test").pull(t.Context(), "app", tag, i) })
	}
}

func TestPierThatIsToldToStopInMidPullEndsWithinTenSeconds(t *testing.T) {
	t.Parallel()
	eachDocker(t, func(t *testing.T, version string) {
		registry := startRegistry(t, registryConfig{})
		front := startFront(t, registry.addr, mib)
		d, p := startBeside(t, version, namedUpstream("registry.test", front.Host()), map[string]any{"max-download-attempts": 1})
		want := newImage(t, 40*mib)
		registry.put(t, "app", "v1", want)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := d.try(t, "pull", "--quiet", "registry.test/app:v1"); err == nil {
				t.Error("the pull ended well: this test tests nothing")
			}
		})
		eventually(t, siteWait, func() error {
			if got := front.SentOf(faultproxy.Blob); got < mib {
				return fmt.Errorf("%d bytes have been fetched", got)
			}
			return nil
		})
		took := p.terminate(t, 15*time.Second)
		if took > 10*time.Second {
			t.Errorf("pier ended %v after SIGTERM, want within 10s", took)
		}
		if status := p.cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signaled() || p.cmd.ProcessState.ExitCode() != 0 {
			t.Errorf("pier ended with %v", p.cmd.ProcessState)
		}
		wg.Wait()
	})
}
