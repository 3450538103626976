package peer

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// pair returns two nodes of the site, that with the smaller ID first.
func (s *site) pair() (small, great *node) {
	small, great = s.nodes[0], s.nodes[1]
	if small.id > great.id {
		small, great = great, small
	}
	return small, great
}

// counts returns how often each node opens the registry, which takes ttfb to answer.
func (s *site) counts(ttfb time.Duration) map[string]*atomic.Int64 {
	m := make(map[string]*atomic.Int64)
	for _, n := range s.nodes {
		m[n.name] = new(atomic.Int64)
	}
	s.up.set(func() {
		s.up.refuse = func(node string) error {
			m[node].Add(1)
			time.Sleep(ttfb)
			return nil
		}
	})
	return m
}

// One part held a fetcher in trouble for unreadable, another for readable: the pull turned in a circle between it and the registry.
func TestFetcherInTroubleIsLeftAlone(t *testing.T) {
	bubble(t, 4, func(t *testing.T, s *site) {
		f, p := s.pair()
		content := ocitest.Bytes(200, 8*mib)
		s.up.has(content)
		s.up.rate = mib
		opens := s.counts(100 * time.Millisecond)
		var wg sync.WaitGroup
		wg.Go(func() { f.gets(content) })
		s.until("it fetches", func() bool { return s.up.gaveTo(f) > mib })
		p.trust.failed(f.id)
		p.trust.failed(f.id)
		rc, _, err := p.Source.Open(t.Context(), blobRef(content), 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(rc, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		if opens[p.name].Load() > 3 {
			t.Errorf("the registry was opened %d times before the first byte", opens[p.name].Load())
		}
		rc.Close()
		wg.Wait()
	})
}

// A fetcher all of whose slots are taken was waited for again and again.
func TestFetcherThatIsBusyIsNotWaitedForForEver(t *testing.T) {
	bubble(t, 4, func(t *testing.T, s *site) {
		f, p := s.pair()
		content := ocitest.Bytes(201, 60*mib)
		s.up.has(content)
		s.up.rate = mib

		f.door.fails(answers(503))
		var wg sync.WaitGroup
		wg.Go(func() { f.gets(content) })
		s.until("it fetches", func() bool { return s.up.gaveTo(f) > mib })
		begun := time.Now()
		rc, _, err := p.Source.Open(t.Context(), blobRef(content), 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(rc, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		took := time.Since(begun)
		if took > 10*time.Second {
			t.Errorf("the first byte came after %s, want at most maxWait and a bit", took)
		}
		rc.Close()
		wg.Wait()
	})
}

// A fetcher whose registry hangs got the lease back from who had taken it over, having the smaller ID.
func TestStalledFetcherDoesNotTakeTheLeaseBack(t *testing.T) {
	for _, order := range []string{"small", "great"} {
		t.Run(order, func(t *testing.T) {
			bubble(t, 2, func(t *testing.T, s *site) {
				f, p := s.pair()
				if order == "great" {
					f, p = p, f
				}
				content := ocitest.Bytes(202, 60*mib)
				ref := s.up.has(content)
				s.up.rate = mib

				ended := make(chan struct{})
				go func() { defer close(ended); _, _ = f.pull(ref) }()
				s.until("it fetches", func() bool { return s.up.gaveTo(f) > 0 })
				done := make(chan struct{})
				go func() { defer close(done); p.gets(content) }()
				s.until("most is there", func() bool { return s.up.gave(ref) >= 40*mib })
				begun := time.Now()
				s.up.set(func() { s.up.stop = func(node string) bool { return node == f.name } })
				<-done
				if took := time.Since(begun); took > 27*time.Second {
					t.Errorf("took %s, want at most 20 s and some 5 s", took)
				}
				<-ended
			})
		})
	}
}

// Over a thin link everybody gets next to nothing, and still only one is to fetch.
func TestThinLinkHasOneFetcher(t *testing.T) {
	bubble(t, 6, func(t *testing.T, s *site) {
		content := ocitest.Bytes(203, 400_000)
		s.up.has(content)
		s.up.rate = 6000
		opens := s.counts(300 * time.Millisecond)

		s.all(content, s.nodes...)
		total := int64(0)
		for _, n := range opens {
			total += n.Load()
		}
		if total > 3 {
			t.Errorf("the registry was opened %d times", total)
		}
	})
}

// A node that the registry refuses must not lose what it gets from one on a thin link.
func TestRefusedFollowerOnAThinLink(t *testing.T) {
	bubble(t, 3, func(t *testing.T, s *site) {
		f, p := s.pair()
		content := ocitest.Bytes(204, 400_000)
		s.up.has(content)
		s.up.rate = 6000
		s.up.refuse = func(node string) error {
			if node == p.name {
				return oci.ErrUnauthorized
			}
			return nil
		}
		var wg sync.WaitGroup
		wg.Go(func() { f.gets(content) })
		s.until("it fetches", func() bool { return s.up.gaveTo(f) > 0 })
		p.gets(content)
		wg.Wait()
	})
}

// hanging is a registry that answers nothing.
type hanging struct{ oci.Source }

func (h hanging) Open(ctx context.Context, _ oci.Reference, _, _ int64) (io.ReadCloser, oci.Descriptor, error) {
	<-ctx.Done()
	return nil, oci.Descriptor{}, ctx.Err()
}

// A holder that has proven its copy is gone back to also while the registry does not answer.
func TestProvenWhileRegistryHangs(t *testing.T) {
	bubble(t, 2, func(t *testing.T, s *site) {
		p, h := s.nodes[0], s.nodes[1]
		content := ocitest.Bytes(205, 300*mib)
		h.has(content)
		h.door.fails(proving(8 * time.Second))
		s.settle()
		time.AfterFunc(8*time.Second, func() { h.door.fails(nil) })
		ctx, cancel := context.WithTimeout(t.Context(), 45*time.Second)
		defer cancel()
		begun := time.Now()
		rc, _, err := p.Source.Open(ctx, blobRef(content), 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(rc, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		if took := time.Since(begun); took > 12*time.Second {
			t.Errorf("first byte after %s, want it soon after the 8 s of the proof", took)
		}
		rc.Close()
	}, func(_ *node, c *Config) { c.Upstream = hanging{} })
}

// What was left to the runtime for two registries was reported for ever for one of them.
func TestRuntimeIsFollowedForEachRegistry(t *testing.T) {
	stores := make(map[string]*runtimeStore)
	bubble(t, 4, func(t *testing.T, s *site) {
		content := ocitest.Bytes(206, mib)
		first := s.nodes[0]
		_, err := first.mirrored(content)
		wantClass(t, err, oci.ErrNotFound)
		other := blobRef(content)
		other.Registry = "other.test"
		_, _, err = ocitest.ReadAll(oci.WithFallback(t.Context()), first.engine, other)
		wantClass(t, err, oci.ErrNotFound)
		stores[first.name].writes(t.Context(), content, mib)
		time.Sleep(10 * time.Minute)
		var sent atomic.Int64
		s.losing(func(from, _ *node) bool {
			if from == first {
				sent.Add(1)
			}
			return false
		})
		time.Sleep(20 * time.Second)
		if n := sent.Load(); n > 10 {
			t.Errorf("ten minutes after all is over the node sends %d messages in 20 s", n)
		}
	}, withRuntime(stores))
}

// Without a registry, a holder that is busy is waited for.
func TestBusyAirGapped(t *testing.T) {
	bubble(t, 2, func(_ *testing.T, s *site) {
		content := ocitest.Bytes(207, mib)
		s.nodes[1].has(content)
		s.settle()
		s.nodes[1].door.fails(answers(503))
		time.AfterFunc(12*time.Second, func() { s.nodes[1].door.fails(nil) })
		s.nodes[0].gets(content)
	}, airGapped)
}

// A fetcher whose registry hangs must not be sent to those who read from it.
func TestStalledFetcherFollows(t *testing.T) {
	for seed := range uint64(6) {
		bubble(t, 6, func(t *testing.T, s *site) {
			content := ocitest.Bytes(210+seed, 1_000_000)
			ref := s.up.has(content)
			s.up.rate = 30_000
			var f *node // with the greatest ID: it yields
			for _, n := range s.nodes {
				if f == nil || n.id > f.id {
					f = n
				}
			}
			ended := make(chan struct{})
			go func() { defer close(ended); _, _ = f.pull(ref) }()
			s.until("it fetches", func() bool { return s.up.gaveTo(f) > 0 })
			var wg sync.WaitGroup
			begun := time.Now()
			for _, n := range s.nodes {
				if n != f {
					wg.Go(func() { n.gets(content) })
				}
			}
			s.until("some is there", func() bool { return s.up.gave(ref) >= 300_000 })
			s.up.set(func() { s.up.stop = func(node string) bool { return node == f.name } })
			wg.Wait()
			<-ended
			if took := time.Since(begun); took > 45*time.Second {
				t.Errorf("took %s, want at most 34 s and 5 or so", took)
			}
		})
	}
}

// A holder that is busy is waited for by all who ask at once, also by those who are sent to others that wait for it: the registry
// is not asked for what is there.
func TestBusyHolderIsWaitedForByAll(t *testing.T) {
	bubble(t, 6, func(t *testing.T, s *site) {
		content := ocitest.Bytes(209, 4*mib)
		ref := s.up.has(content)
		holder := s.nodes[0]
		holder.has(content)
		s.settle()
		holder.door.fails(answers(503))
		time.AfterFunc(3*time.Second, func() { holder.door.fails(nil) })
		s.all(content, s.nodes[1:]...)
		if got := s.up.gave(ref); got != 0 {
			t.Errorf("the registry gave %d bytes, want none", got)
		}
	})
}
