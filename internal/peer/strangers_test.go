package peer

import (
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"pier/internal/directory"
	"pier/internal/oci/ocitest"
)

// All the others waited for what a node fetched that they could not read from, and then for each other.
func TestFetcherThatCannotBeRead(t *testing.T) {
	bubble(t, 4, func(t *testing.T, s *site) {
		content := ocitest.Bytes(40, 8*mib)
		ref := s.up.has(content)
		s.up.set(func() { s.up.rate = rate })
		doorless := s.nodes[0]
		doorless.door.addr = ""
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = doorless.pull(ref) })
		s.until("the first node fetches", func() bool { return s.up.gaveTo(doorless) > 0 })
		begun := time.Now()
		for _, n := range s.nodes[1:] {
			wg.Go(func() {
				rc, _, err := n.engine.Open(t.Context(), ref, 0, -1)
				if err != nil {
					t.Error(err)
					return
				}
				defer rc.Close()
				if _, err := rc.Read(make([]byte, 1)); err != nil || time.Since(begun) > second {
					t.Errorf("%s: first byte after %s, error %v", n.name, time.Since(begun), err)
				}
			})
		}
		wg.Wait()
	})
}

// A neighbour that kept the lease with a few bytes now and then held up everybody for ever.
func TestDrippingFetcher(t *testing.T) {
	bubble(t, 4, func(t *testing.T, s *site) {
		content := ocitest.Bytes(41, 4*mib)
		ref := s.up.has(content)
		drips := s.nodes[0]
		want := directory.Want{Key: directory.KeyOf(ref), Scope: directory.ScopeOf(ref), Join: true, Fetch: true}
		if a, err := drips.dir.Lookup(t.Context(), want); err != nil || !a.Granted {
			t.Fatalf("lease: %+v, %v", a, err)
		}
		track := drips.dir.Track(want.Key, want.Scope, nil)
		stop := make(chan struct{})
		var wg, pulls sync.WaitGroup
		wg.Go(func() {
			for n := int64(0); ; n += 100 {
				track.Report(n, true)
				select {
				case <-stop:
					return
				case <-time.After(250 * time.Millisecond):
				}
			}
		})
		drips.door.fails(func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			w.Header().Set("Pier-Missing", strconv.Itoa(len(content)))
			w.Header().Set("Content-Length", strconv.Itoa(len(content)))
			for at := 0; ; at += 100 {
				if _, err := w.Write(content[at : at+100]); err != nil {
					return
				}
				_ = http.NewResponseController(w).Flush()
				if wait(r.Context(), 250*time.Millisecond) != nil {
					return
				}
			}
		})
		for _, n := range s.nodes[1:] {
			pulls.Go(func() { n.within(20*time.Second, content) })
		}
		pulls.Wait()
		close(stop)
		wg.Wait()
		track.End(false)
	})
}

// A holder that takes long to prove its copy must not hold up a pull that the registry can serve; once it has, the rest comes
// from there.
func TestSlowProofIsNotWaitedFor(t *testing.T) {
	bubble(t, 2, func(t *testing.T, s *site) {
		content := ocitest.Bytes(42, 40*mib)
		ref := s.up.has(content)
		s.up.set(func() { s.up.rate = rate })
		holder := s.nodes[1]
		holder.has(content)
		proven := time.Now().Add(15 * time.Second)
		holder.door.fails(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if left := time.Until(proven); left > 0 {
				proving(left)(w, r, next)
				return
			}
			next.ServeHTTP(w, r)
		})
		s.settle()
		s.nodes[0].within(25*time.Second, content)
		if got := s.up.gave(ref); got == 0 || got > len(content)/2 {
			t.Errorf("the registry gave %d of %d bytes, want what came in ten seconds", got, len(content))
		}
	})
}
