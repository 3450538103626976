//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"pier/e2e/netns"
)

func TestPeersGoOnWhileContainerdOfOneRestarts(t *testing.T) {
	t.Parallel()
	eachRuntime(t, func(t *testing.T, version string) {
		s := startSite(t, siteConfig{stores: []string{version, version}, wan: netns.Link{Down: 50 * netns.Mbit}})
		want := newImage(t, 20*mib, 4*mib)
		s.registry.put(t, "app", "v1", want)
		before := s.fetched(t)
		broken, whole := s.node(1).beginPull(t, "v1", want), s.node(2).beginPull(t, "v1", want)
		s.awaitFetched(t, before, want.size()/3, broken, whole)
		runtime := s.node(1).runtime
		runtime.kill()
		if err := broken.wait(); err == nil {
			t.Error("the pull ended well though containerd was killed in the middle: this test tests nothing")
		}
		runtime.start(t)
		s.node(1).pull(t, "v1", want)
		if err := whole.wait(); err != nil {
			t.Errorf("the pull of the other node: %v", err)
		}
		s.wantFetched(t, before, want, 1.2)
	})
}

// reading reads a blob through a node's door, and tells how far it is.
type reading struct {
	got  atomic.Int64 // bytes
	done chan struct{}
	err  error // to be read after done
}

func (n *siteNode) beginReading(t *testing.T, b blob) *reading {
	t.Helper()
	r := &reading{done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = func() error {
			resp, err := n.client().open(t.Context(), http.MethodGet, "app/blobs/"+b.Digest.String())
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("blob: %s", resp.Status)
			}
			digester := digest.Canonical.Digester()
			if _, err := io.Copy(io.MultiWriter(digester.Hash(), r), resp.Body); err != nil {
				return fmt.Errorf("after %d bytes of %d: %w", r.got.Load(), b.Size, err)
			}
			if got := digester.Digest(); got != b.Digest {
				return fmt.Errorf("%d bytes of digest %s, want %d of %s", r.got.Load(), got, b.Size, b.Digest)
			}
			return nil
		}()
	}()
	t.Cleanup(func() { <-r.done }) // the test's context has ended
	return r
}

func (r *reading) Write(p []byte) (int, error) {
	r.got.Add(int64(len(p)))
	return len(p), nil
}

// awaitBytes waits until so much has been read.
func (r *reading) awaitBytes(t *testing.T, n int64) {
	t.Helper()
	eventually(t, siteWait, func() error {
		select {
		case <-r.done:
			t.Fatalf("the reading ended after %d bytes, before %d: %v", r.got.Load(), n, r.err)
		default:
		}
		if got := r.got.Load(); got < n {
			return fmt.Errorf("%d bytes have been read, want %d", got, n)
		}
		return nil
	})
}

func (r *reading) wait(t *testing.T) {
	t.Helper()
	<-r.done
	if r.err != nil {
		t.Errorf("reading: %v", r.err)
	}
}

// sent returns how many bytes of payload each node has put on the LAN.
func (s *site) sent(t *testing.T) []int64 {
	t.Helper()
	var list []int64
	for k := range s.nodes {
		up, _, err := s.LAN(t.Context(), k+1)
		must(t, err)
		list = append(list, up.Payload())
	}
	return list
}

// busiest returns the node that has sent most since what is given.
func (s *site) busiest(t *testing.T, since []int64) *siteNode {
	t.Helper()
	most, best := 0, int64(-1)
	for i, sent := range s.sent(t) {
		if sent -= since[i]; sent > best {
			most, best = i, sent
		}
	}
	return s.nodes[most]
}

func TestPeerThatIsKilledWhileItServesIsReplacedByAnother(t *testing.T) {
	t.Parallel()
	s := startSite(t, siteConfig{stores: []string{"containerd2", "none", "containerd1"}})
	want := newImage(t, 24*mib)
	s.registry.put(t, "app", "v1", want)
	pullAll(t, "v1", want, s.node(1), s.node(3))
	for _, k := range []int{1, 3} {
		s.node(2).awaitHolder(t, s.node(k), want)
		s.shapeLAN(t, k, netns.Link{Up: 60 * netns.Mbit}) // 3 s, if all comes from one
	}
	s.cutWAN(t)
	sent := s.sent(t)
	r := s.node(2).beginReading(t, want.layer(0))
	r.awaitBytes(t, want.layer(0).Size/4)
	s.busiest(t, sent).kill()
	r.wait(t)
}

func TestPeerThatIsKilledWhileItServesIsReplacedByUpstream(t *testing.T) {
	t.Parallel()
	s := startSite(t, siteConfig{
		stores: []string{"containerd2", "containerd1"}, wan: netns.Link{Down: 100 * netns.Mbit}, lan: netns.Link{Up: 60 * netns.Mbit},
	})
	want := newImage(t, 24*mib)
	s.registry.put(t, "app", "v1", want)
	s.node(1).pull(t, "v1", want)
	s.node(2).awaitHolder(t, s.node(1), want)
	before, sent := s.fetched(t), s.sent(t)
	pull := s.node(2).beginPull(t, "v1", want)
	eventually(t, siteWait, func() error {
		if got := s.sent(t)[0] - sent[0]; got < want.size()/4 {
			return fmt.Errorf("node 1 has sent %d bytes", got)
		}
		return nil
	})
	s.node(1).kill()
	if err := pull.wait(); err != nil {
		t.Errorf("node 2: %v", err)
	}
	s.wantFetched(t, before, want, 0.9) // the rest, not all of it again
}

func TestPeersTakeOverFromAFetcherThatIsKilled(t *testing.T) {
	t.Parallel()
	for name, stores := range map[string][]string{
		"runtimes": {"containerd1", "containerd2", "containerd2"},
		"caches":   {"cache", "cache", "cache"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startSite(t, siteConfig{stores: stores, wan: netns.Link{Down: 60 * netns.Mbit}})
			want := newImage(t, 28*mib)
			s.registry.put(t, "app", "v1", want)
			before := s.fetched(t)
			var pulls []*pulling
			for _, n := range s.nodes {
				pulls = append(pulls, n.beginPull(t, "v1", want))
			}
			s.awaitFetched(t, before, want.size()/2, pulls...)
			fetcher := slices.MaxFunc(s.nodes, func(a, b *siteNode) int {
				return int(a.sum(t, "pier_upstream_received_bytes_total") - b.sum(t, "pier_upstream_received_bytes_total"))
			})
			fetcher.kill()
			for _, p := range pulls {
				// The killed node's own runtime has nobody left to ask.
				if err := p.wait(); err != nil && p.node != fetcher {
					t.Errorf("node %d: %v", p.node.number, err)
				}
			}
			s.wantFetched(t, before, want, 1.15) // none of it twice, but for what was on its way
			takeovers := 0.0
			for _, n := range s.nodes {
				if n != fetcher {
					takeovers += n.sum(t, "pier_takeovers_total")
				}
			}
			if takeovers == 0 {
				t.Error("pier_takeovers_total is 0")
			}

			fetcher.restart(t)
			for _, n := range s.nodes {
				s.awaitPeers(t, n)
			}
			fetcher.pull(t, "v1", want)
		})
	}
}

// The bound for a peer that hangs or crawls is a delay of 1 s for a whole pull. patience is what these tests add to it for
// a machine that is busy with other tests: all that such a peer could cost otherwise, a time-out of gossip or HTTP, or
// minutes of crawling, is longer.
const patience = 3 * time.Second

// wantUndelayed compares how long the same took with a bad peer and without.
func wantUndelayed(t *testing.T, took, undisturbed time.Duration) {
	t.Helper()
	t.Logf("it took %v, and %v without a bad peer", took, undisturbed)
	if took > undisturbed+time.Second+patience {
		t.Errorf("it took %v, and %v without a bad peer: want at most 1 s more, and %v for this machine", took, undisturbed, patience)
	}
}

func timed(t *testing.T, f func()) time.Duration {
	t.Helper()
	begin := time.Now()
	f()
	return time.Since(begin)
}

func TestPeerThatHangsDelaysAPullByASecondAtMost(t *testing.T) {
	t.Parallel()
	s := startSite(t, siteConfig{stores: []string{"cache", "none", "cache"}, wan: netns.Link{Down: 100 * netns.Mbit}})
	one, two, three := s.node(1), s.node(2), s.node(3)
	put := func(tag string, holders ...*siteNode) *image {
		i := newImage(t, mib, mib, mib, mib, mib, mib, mib, mib, 1000) // a second for each would be many
		s.registry.put(t, "app", tag, i)
		pullAll(t, tag, i, holders...)
		for _, n := range holders {
			two.awaitHolder(t, n, i)
		}
		return i
	}
	calm, both, alone := put("v1", one, three), put("v2", one, three), put("v3", one)
	pull := func(tag string, i *image) time.Duration {
		return timed(t, func() { two.client().mustPull(t, "app", tag, i) })
	}
	undisturbed := pull("v1", calm)
	one.signal(t, syscall.SIGSTOP)
	wantUndelayed(t, pull("v2", both), undisturbed)
	one.signal(t, syscall.SIGCONT)
	s.awaitPeers(t, two)
	one.signal(t, syscall.SIGSTOP)
	wantUndelayed(t, pull("v3", alone), undisturbed+time.Second) // by the WAN
	one.signal(t, syscall.SIGCONT)
}

func TestPeerThatHangsInMidBlobDelaysAPullByASecondAtMost(t *testing.T) {
	t.Parallel()
	for name, holders := range map[string][]int{"another holder": {1, 3}, "upstream": {1}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startSite(t, siteConfig{
				stores: []string{"cache", "none", "cache"}, wan: netns.Link{Down: 100 * netns.Mbit}, lan: netns.Link{Up: 80 * netns.Mbit},
			})
			want := newImage(t, 20*mib)
			s.registry.put(t, "app", "v1", want)
			for _, k := range holders {
				s.node(k).pull(t, "v1", want)
				s.node(2).awaitHolder(t, s.node(k), want)
			}
			before, sent := s.fetched(t), s.sent(t)
			var hung *siteNode
			took := timed(t, func() {
				r := s.node(2).beginReading(t, want.layer(0))
				r.awaitBytes(t, want.layer(0).Size/4)
				hung = s.busiest(t, sent)
				hung.signal(t, syscall.SIGSTOP)
				r.wait(t)
			})
			hung.signal(t, syscall.SIGCONT)
			wantUndelayed(t, took, 2100*time.Millisecond) // what 20 MiB take at 80 Mbit/s
			s.wantFetched(t, before, want, 0.9)
		})
	}
}

func TestPeerThatCrawlsDelaysAPullByASecondAtMost(t *testing.T) {
	t.Parallel()
	for name, holders := range map[string][]int{"another holder": {1, 3}, "upstream": {1}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startSite(t, siteConfig{stores: []string{"cache", "none", "cache"}, wan: netns.Link{Down: 100 * netns.Mbit}})
			calm, slow := newImage(t, 12*mib), newImage(t, 12*mib)
			for tag, i := range map[string]*image{"v1": calm, "v2": slow} {
				s.registry.put(t, "app", tag, i)
				for _, k := range holders {
					s.node(k).pull(t, tag, i)
					s.node(2).awaitHolder(t, s.node(k), i)
				}
			}
			pull := func(tag string, i *image) time.Duration {
				return timed(t, func() { s.node(2).client().mustPull(t, "app", tag, i) })
			}
			undisturbed := max(pull("v1", calm), 1100*time.Millisecond) // through the WAN if need be
			s.shapeLAN(t, 1, netns.Link{Up: 400 * netns.Kbit})          // 4 minutes
			wantUndelayed(t, pull("v2", slow), undisturbed)
		})
	}
}
