package peer

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// A rollout is one content that all nodes pull, first among them the one that fetches.
type rollout struct {
	*site
	content []byte
	ref     oci.Reference
	fetcher *node
	others  []*node
	begun   time.Time
	wg      sync.WaitGroup
	ended   chan struct{} // the pull of the fetcher, however it ended
	err     error         // of it
}

// rate is that of the registry in these tests, in bytes a second.
const rate = mib

// rollOut begins to pull content of a size at all nodes, and returns when half of it is there.
func (s *site) rollOut(size int) *rollout {
	content := ocitest.Bytes(40, size)
	r := &rollout{site: s, content: content, ref: s.up.has(content), fetcher: s.nodes[0], others: s.nodes[1:], begun: time.Now(), ended: make(chan struct{})}
	s.up.set(func() { s.up.rate = rate })
	go func() {
		defer close(r.ended)
		_, r.err = r.fetcher.pull(r.ref)
	}()
	s.until("the first node fetches", func() bool { return s.up.gaveTo(r.fetcher) > 0 })
	for _, n := range r.others {
		r.wg.Go(func() { n.gets(content) })
	}
	s.until("half is there", func() bool { return s.up.gave(r.ref) >= size/2 })
	return r
}

// finish waits for all pulls but the fetcher's, and makes sure of how long they took beyond what the registry needs, and how
// many bytes were fetched beyond one copy.
func (r *rollout) finish(late time.Duration, more int) {
	r.t.Helper()
	r.wg.Wait()
	least := time.Second * time.Duration(len(r.content)) / rate
	if took := time.Since(r.begun); took > least+late {
		r.t.Errorf("the last node had it after %s, want at most %s", took, least+late)
	}
	if got := r.up.gave(r.ref); got > len(r.content)+more {
		r.t.Errorf("the registry gave %d bytes, want at most %d: one copy, and what was lost on the way", got, len(r.content)+more)
	}
}

// lost is what may be on its way when a node dies: two buffers.
const lost = 128 << 10

func TestFetcherKilled(t *testing.T) {
	bubble(t, 4, func(_ *testing.T, s *site) {
		r := s.rollOut(8 * mib)
		s.kill(r.fetcher)
		r.finish(second, lost)
		<-r.ended
	})
}

// A fetcher whose machine hangs answers nothing: its door is open, its directory silent.
func TestFetcherHangs(t *testing.T) {
	bubble(t, 4, func(_ *testing.T, s *site) {
		r := s.rollOut(8 * mib)
		s.losing(func(from, to *node) bool { return from == r.fetcher || to == r.fetcher })
		r.fetcher.door.freeze()
		s.up.set(func() { s.up.stop = func(node string) bool { return node == r.fetcher.name } })
		r.finish(2*second, lost)
		s.kill(r.fetcher)
		<-r.ended
	})
}

// A fetcher whose connection to the registry hangs is taken over from when its lease has lapsed, and goes on from there itself.
func TestFetchersRegistryHangs(t *testing.T) {
	bubble(t, 4, func(t *testing.T, s *site) {
		r := s.rollOut(8 * mib)
		s.up.set(func() { s.up.stop = func(node string) bool { return node == r.fetcher.name } })
		r.finish(5*second, lost)
		select {
		case <-r.ended:
			if r.err != nil {
				t.Errorf("the first fetcher: %v", r.err)
			}
		case <-time.After(second):
			t.Error("the first fetcher does not go on from the node that took over")
			s.kill(r.fetcher)
			<-r.ended
		}
	})
}

// A registry that refuses one node is asked by another at once.
func TestFetcherRefused(t *testing.T) {
	bubble(t, 4, func(t *testing.T, s *site) {
		s.up.refuse = func(node string) error {
			if node == s.nodes[0].name {
				return fmt.Errorf("registry.test: %w", oci.ErrUnauthorized)
			}
			return nil
		}
		content := ocitest.Bytes(41, 2*mib)
		ref := s.up.has(content)
		s.up.rate = rate
		done := make(chan error, 1)
		go func() { _, err := s.nodes[0].pull(ref); done <- err }()
		time.Sleep(5 * time.Millisecond)
		begun := time.Now()
		s.all(content, s.nodes[1:]...)
		if took := time.Since(begun); took > 3*second {
			t.Errorf("the others had it after %s, want at most the 2 s of the registry and one more", took)
		}
		if err := <-done; err != nil {
			wantClass(t, err, oci.ErrUnauthorized)
		}
		if got := s.up.gave(ref); got > 3*len(content) {
			t.Errorf("the registry gave %d bytes to three nodes", got)
		}
	})
}

// Two that fetch the same because they do not hear of each other become one when they do.
func TestTwoFetchersBecomeOne(t *testing.T) {
	bubble(t, 6, func(t *testing.T, s *site) {
		content := ocitest.Bytes(42, 16*mib)
		ref := s.up.has(content)
		s.up.rate = rate
		half := func(n *node) bool { return n == s.nodes[0] || n == s.nodes[1] || n == s.nodes[2] }
		s.losing(func(from, to *node) bool { return half(from) != half(to) })
		var wg sync.WaitGroup
		for _, n := range s.nodes {
			wg.Go(func() { n.gets(content) })
		}
		s.until("a quarter is there twice", func() bool { return s.up.gave(ref) >= len(content)/2 })
		if n := s.up.fetchers(); n != 2 {
			t.Errorf("%d nodes fetch, want 2: one on each side", n)
		}
		s.losing(nil)
		wg.Wait()
		if got, most := s.up.gave(ref), len(content)+len(content)/4+4*rate; got > most {
			t.Errorf("the registry gave %d bytes, want at most %d: two fetched a quarter, and 2 s more", got, most)
		}
	})
}

// Whatever ends in the middle of a roll-out, everybody has it in the end.
func TestFollowersKilled(t *testing.T) {
	bubble(t, 8, func(_ *testing.T, s *site) {
		content := ocitest.Bytes(43, 8*mib)
		ref := s.up.has(content)
		s.up.rate = rate
		var wg sync.WaitGroup
		for i, n := range s.nodes {
			wg.Go(func() {
				if i == 2 || i == 3 {
					_, _ = n.pull(ref) // it is killed
					return
				}
				n.gets(content)
			})
		}
		s.until("half is there", func() bool { return s.up.gave(ref) >= len(content)/2 })
		s.kill(s.nodes[2])
		s.kill(s.nodes[3])
		wg.Wait()
	})
}

// A neighbour that a follower reads from hangs, though its directory answers and the registry gives: it costs a second until
// it is known that who fetches gets on. Here two do, and some node may meet both.
func TestParentHangs(t *testing.T) {
	bubble(t, 8, func(t *testing.T, s *site) {
		r := s.rollOut(8 * mib)
		for _, n := range r.others[:2] {
			n.door.freeze()
		}
		r.finish(5*second/2, 0)
		<-r.ended
	})
}
