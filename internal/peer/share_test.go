package peer

import (
	"io"
	"sync"
	"testing"
	"time"

	"pier/internal/oci/ocitest"
)

const mib = 1 << 20

// all pulls content at all nodes at once.
func (s *site) all(content []byte, nodes ...*node) {
	s.t.Helper()
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() { n.gets(content) })
	}
	wg.Wait()
}

// wantOnce makes sure that the registry gave content once.
func (s *site) wantOnce(content []byte) {
	s.t.Helper()
	if got := s.up.gave(blobRef(content)); got != len(content) {
		s.t.Errorf("the registry gave %d bytes, want %d: every byte once", got, len(content))
	}
	if n := s.up.fetchers(); n != 1 {
		s.t.Errorf("%d nodes fetched from the registry, want 1", n)
	}
}

// wantKept makes sure that everybody has content in the end.
func (s *site) wantKept(content []byte, nodes ...*node) {
	s.t.Helper()
	ref := blobRef(content)
	for _, n := range nodes {
		s.until(n.name+" keeps the content", func() bool {
			_, err := n.store.Resolve(s.t.Context(), ref)
			return err == nil
		})
	}
}

func TestManyAtOnce(t *testing.T) {
	bubble(t, 12, func(t *testing.T, s *site) {
		content := ocitest.Bytes(1, 3*mib)
		s.up.has(content)
		s.up.rate = mib
		s.all(content, s.nodes...)
		s.wantOnce(content)
		s.wantKept(content, s.nodes...)
	})
}

func TestManySmallAtOnce(t *testing.T) {
	bubble(t, 12, func(t *testing.T, s *site) {
		content := ocitest.Bytes(2, 700)
		s.up.has(content)
		s.up.rate = 7000
		s.all(content, s.nodes...)
		s.wantOnce(content)
	})
}

func TestStaggered(t *testing.T) {
	bubble(t, 8, func(t *testing.T, s *site) {
		content := ocitest.Bytes(3, 4*mib)
		s.up.has(content)
		s.up.rate = mib
		var wg sync.WaitGroup
		for i, n := range s.nodes {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * time.Second)
				n.gets(content)
			})
		}
		wg.Wait()
		s.wantOnce(content)
		s.wantKept(content, s.nodes...)
	})
}

// A follower's first byte comes before the fetcher has half.
func TestFollowersReadWhileItArrives(t *testing.T) {
	bubble(t, 4, func(t *testing.T, s *site) {
		content := ocitest.Bytes(4, 4*mib)
		ref := s.up.has(content)
		s.up.rate = mib
		var wg sync.WaitGroup
		for _, n := range s.nodes {
			wg.Go(func() {
				rc, _, err := n.engine.Open(t.Context(), ref, 0, -1)
				if err != nil {
					t.Error(err)
					return
				}
				defer rc.Close()
				if _, err := io.ReadFull(rc, make([]byte, 1)); err != nil {
					t.Error(err)
				}
				if gave := s.up.gave(ref); gave >= len(content)/2 {
					t.Errorf("%s: the first byte came when the registry had given %d of %d", n.name, gave, len(content))
				}
				if _, err := io.Copy(io.Discard, rc); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		s.wantOnce(content)
	})
}

// What a neighbour holds is not asked of the registry.
func TestHeldByANeighbour(t *testing.T) {
	bubble(t, 5, func(t *testing.T, s *site) {
		content := ocitest.Bytes(5, 2*mib)
		ref := s.nodes[3].has(content)
		s.up.has(content)
		s.settle()
		s.nodes[0].within(time.Second, content)
		if got := s.up.gave(ref); got != 0 {
			t.Errorf("the registry gave %d bytes, want none", got)
		}
		if got := s.nodes[0].received(s.nodes[3]); got != len(content) {
			t.Errorf("the neighbour gave %d bytes, want %d", got, len(content))
		}
	})
}

// Regression: when a registry that could not be reached was back, each of those who waited fetched a copy.
func TestRegistryComesBack(t *testing.T) {
	bubble(t, 6, func(t *testing.T, s *site) {
		content := ocitest.Bytes(6, 2*mib)
		ref := s.up.has(content)
		s.up.rate = mib
		s.up.refuse = func(string) error {
			time.Sleep(2 * time.Second) // as long as it takes to find out
			return errDown
		}
		var wg sync.WaitGroup
		for _, n := range s.nodes {
			wg.Go(func() {
				for range 20 { // as a client does
					if b, err := n.pull(ref); err == nil && len(b) == len(content) {
						return
					}
					time.Sleep(time.Second)
				}
				t.Errorf("%s: 20 attempts failed", n.name)
			})
		}
		time.Sleep(7 * time.Second)
		s.up.set(func() { s.up.refuse = nil })
		wg.Wait()
		s.wantOnce(content)
	})
}
