package directory

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestLeaseIsGrantedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 60)
		k := testKey(1)
		var mu sync.Mutex // guards granted and waiting
		var granted []ID
		waiting := make(map[ID]Answer)
		var wg sync.WaitGroup
		for _, n := range net.nodes {
			wg.Go(func() {
				a := n.receive(k, 0)
				mu.Lock()
				defer mu.Unlock()
				if a.Granted {
					granted = append(granted, n.ID)
				} else {
					waiting[n.ID] = a
				}
			})
		}
		wg.Wait()
		if len(granted) != 1 {
			t.Fatalf("%d of %d who asked at once fetch, want 1", len(granted), len(net.nodes))
		}
		for id, a := range waiting {
			if a.Fetcher != granted[0] || len(a.Sources) == 0 {
				t.Errorf("%x is told of %+v, want the fetcher %x", id, a, granted[0])
			}
		}
	})
}

func TestLeaseEndsWithoutProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 30)
		k := testKey(1)
		nodes := net.others(k)
		fetcher, ahead, behind := nodes[0], nodes[1], nodes[2]
		if a := fetcher.receive(k, 0); !a.Granted {
			t.Fatalf("the first gets %+v, want the lease", a)
		}
		track := fetcher.Track(k, 0, nil)
		for i := range 20 {
			track.Report(int64(i)<<20, true)
			time.Sleep(reportFetcher)
		}
		// From here on it gets nothing, and says so.
		if a := ahead.receive(k, 15<<20); a.Granted || a.Fetcher != fetcher.ID {
			t.Errorf("while it gets on: got %+v, want the fetcher %x", a, fetcher.ID)
		}
		behind.receive(k, 5<<20)
		time.Sleep(leaseRest + reportFetcher)
		if a := behind.receive(k, 5<<20, fetcher.ID); a.Granted {
			t.Error("the lease was given to who has less than another")
		}
		if a := ahead.receive(k, 15<<20, fetcher.ID); !a.Granted {
			t.Errorf("who has most got %+v, want the lease", a)
		}
	})
}

// A fetcher that began with nothing has longer: the registry is met first.
func TestLeaseHasLongerToBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 30)
		k := testKey(1)
		fetcher, next := net.others(k)[0], net.others(k)[1]
		fetcher.receive(k, 0)
		time.Sleep(leaseStart - 100*time.Millisecond)
		if a := next.receive(k, 0); a.Granted {
			t.Errorf("the lease was given twice within %s", leaseStart)
		}
		time.Sleep(200 * time.Millisecond)
		if a := next.receive(k, 0); !a.Granted {
			t.Errorf("got %+v, want the lease after %s", a, leaseStart)
		}
	})
}

func TestFailedFetcherIsReplacedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 30)
		k := testKey(1)
		fetcher, next, third := net.others(k)[0], net.others(k)[1], net.others(k)[2]
		fetcher.receive(k, 0)
		fetcher.Track(k, 0, nil).Report(9, true)
		next.receive(k, 5)
		net.kill(fetcher.ID)
		if a := next.receive(k, 7, fetcher.ID); !a.Granted || a.Fetcher != 0 {
			t.Errorf("who names it as failed gets %+v, want the lease", a)
		}
		next.Track(k, 0, nil).Report(7, true)
		synctest.Wait()
		if a := third.receive(k, 0); a.Granted || a.Fetcher != next.ID {
			t.Errorf("the third gets %+v, want the fetcher %x", a, next.ID)
		}
	})
}

// The receiver that had most never got the lease where it was gone, too, or did not fetch at all, and nobody else did either.
func TestLeaseIsNotKeptForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 30)
		k := testKey(1)
		fetcher, ahead, behind := net.others(k)[0], net.others(k)[1], net.others(k)[2]
		fetcher.receive(k, 0)
		behind.receive(k, 5)
		ahead.lookup(Want{Key: k, Offset: 10, Join: true}) // never asks for the lease
		ahead.Track(k, 0, nil).Report(10, false)
		net.kill(fetcher.ID)
		if a := behind.receive(k, 5, fetcher.ID); a.Granted {
			t.Error("the lease was given to who has less, before who has more could ask")
		}
		time.Sleep(aheadRest + 10*time.Millisecond)
		if a := behind.receive(k, 5, fetcher.ID); !a.Granted {
			t.Errorf("got %+v, want the lease after %s", a, aheadRest)
		}
	})
}

// The failure of one must not send all of a site to the registry at once, nor have them wait for each other's failures.
func TestRefusalOpens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 30)
		k := testKey(1)
		nodes := net.others(k)
		nodes[0].receive(k, 0)
		track := nodes[0].Track(k, 0, nil)
		track.Report(0, true)
		track.End(true)
		settle()
		fetch := func(nodes []*node) (granted []*node) {
			for _, n := range nodes {
				if n.receive(k, 0).Granted {
					granted = append(granted, n)
				}
			}
			return granted
		}
		first := fetch(nodes[1:10])
		if len(first) != 3 { // two beside each other, and one with the lease
			t.Errorf("after a refusal %d fetch, want 3", len(first))
		}
		for _, n := range first {
			track := n.Track(k, 0, nil)
			track.Report(0, true)
			track.End(true)
			settle()
		}
		if n := len(fetch(nodes[10:])); n < 8 {
			t.Errorf("after four refusals %d fetch, want more each time", n)
		}
		time.Sleep(openFor)
		granted := 0
		for _, n := range nodes[10:] {
			if n.receive(k, 0).Granted {
				granted++
			}
		}
		if granted != 1 {
			t.Errorf("%d fetch %s after the refusal, want 1", granted, openFor)
		}
	})
}

// A fetcher is a node that reads from a registry until it is told that another does.
type fetcher struct {
	*node
	track *Track
	mu    sync.Mutex // guards lost
	lost  ID
}

func (n *node) fetch(k Key) *fetcher {
	f := &fetcher{node: n}
	f.track = n.Track(k, 0, func(id ID) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.lost = id
	})
	return f
}

func (f *fetcher) loser() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lost != 0
}

// Two that fetched at the same speed went on to the end: each reported more than what the other had reported before.
func TestTwoFetchersBecomeOne(t *testing.T) {
	for _, c := range []struct {
		name  string
		rates [2]int64 // bytes every 50 ms; the first node has the smaller ID
		stays int      // which fetches to the end; -1: either
	}{
		{"the same", [2]int64{1 << 20, 1 << 20}, 0},
		{"the smaller is slower", [2]int64{1 << 20, 1<<20 + 1<<17}, 0},
		{"the smaller is much slower", [2]int64{1 << 20, 2 << 20}, 1},
		{"the smaller is faster", [2]int64{2 << 20, 1 << 20}, 0},
		{"at the margin", [2]int64{4 << 20, 5 << 20}, -1},
		{"no byte yet", [2]int64{0, 0}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork(t, 30)
				k := testKey(1)
				nodes := net.others(k)[:2]
				if nodes[0].ID > nodes[1].ID {
					nodes[0], nodes[1] = nodes[1], nodes[0]
				}
				// Each asked when it reached a coordinator of its own alone.
				fetchers := []*fetcher{nodes[0].fetch(k), nodes[1].fetch(k)}
				offsets := [2]int64{}
				for range 80 { // 4 s
					for i, f := range fetchers {
						if !f.loser() {
							offsets[i] += c.rates[i]
						}
						f.track.Report(offsets[i], !f.loser())
					}
					time.Sleep(50 * time.Millisecond)
				}
				synctest.Wait()
				lost := [2]bool{fetchers[0].loser(), fetchers[1].loser()}
				if lost[0] == lost[1] {
					t.Fatalf("who gave up: %v, want one of them", lost)
				}
				if c.stays >= 0 && lost[c.stays] {
					t.Errorf("who gave up: %v, want the other", lost)
				}
			})
		})
	}
}

func TestNeverDoBothYield(t *testing.T) {
	const a, b = ID(1), ID(2)
	for x := range int64(60) {
		for y := range int64(60) {
			if yields(a, x, b, y) == yields(b, y, a, x) {
				t.Errorf("with %d and %d bytes both, or none of them, yields", x, y)
			}
			// What a knows of b is at most what b has then, and the other way round.
			for late := range int64(20) {
				if yields(a, x, b, y-late) && yields(b, y, a, x-late) {
					t.Errorf("with %d and %d bytes, and reports %d bytes ago, both yield", x, y, late)
				}
			}
		}
	}
}

// Between the end of a transfer and its announcement nobody fetched, and nobody held it: who asked then fetched again.
func TestNoGapBetweenFetchingAndHolding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 30)
		k := testKey(1)
		first, next := net.others(k)[0], net.others(k)[1]
		first.receive(k, 0)
		track := first.Track(k, 0, nil)
		track.Report(100, true)
		first.Hold([]Key{k}, nil)
		track.End(false)
		time.Sleep(latency)
		synctest.Wait()
		a := next.receive(k, 0)
		if len(a.Sources) == 0 || a.Sources[0].ID != first.ID || !a.Sources[0].Whole() {
			t.Errorf("just after it ended: got %+v, want the holder %x", a, first.ID)
		}
	})
}

// A coordinator that just came granted a second lease while the others knew who fetches.
func TestNewCoordinatorDoesNotGrantTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 30)
		k := testKey(1)
		first, next := net.others(k)[0], net.others(k)[1]
		first.receive(k, 0)
		first.Track(k, 0, nil).Report(1<<20, true)
		synctest.Wait()
		// One joins that is the first coordinator of k, and only next knows so far.
		best := net.coordinators(k)[0]
		for i := 0; ; i++ {
			name := "new-" + string(rune('a'+i%26)) + string(rune('a'+i/26))
			if score(IDOf(name), k) > score(best.ID, k) {
				net.start(name, "")
				break
			}
		}
		members := net.members()
		next.SetMembers(next.Member, members)
		joined := net.nodes[len(net.nodes)-1]
		joined.SetMembers(joined.Member, members)
		if a := next.receive(k, 0); a.Granted || a.Fetcher != first.ID {
			t.Errorf("got %+v, want the fetcher %x", a, first.ID)
		}
	})
}

// A fetcher that crashed and came again under its name begins anew, and its lease with it.
func TestFetcherBeginsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 30)
		k := testKey(1)
		n, next := net.others(k)[0], net.others(k)[1]
		n.receive(k, 0)
		track := n.Track(k, 0, nil)
		track.Report(100<<20, true)
		time.Sleep(2 * time.Second)
		if a := n.receive(k, 0); !a.Granted {
			t.Fatalf("the fetcher gets %+v, want its lease", a)
		}
		time.Sleep(leaseRest)
		if a := next.receive(k, 0); a.Granted {
			t.Error("the lease of who began anew ended too soon")
		}
	})
}

// A second Track replaced the first, which went on to report.
func TestTrackIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 30)
		k := testKey(1)
		n := net.others(k)[0]
		former := n.Track(k, 0, nil)
		n.Track(k, 0, nil).Report(1, false)
		net.count(kindProgress)
		time.Sleep(10*reportReceiver + latency)
		if sent := net.count(kindProgress); sent > 10*coordinators {
			t.Errorf("%d reports in %s, want %d", sent, 10*reportReceiver, 10*coordinators)
		}
		former.End(false)
		synctest.Wait()
		if a, _ := net.others(k)[1].lookup(Want{Key: k, Offset: 0}); len(a.Sources) != 1 {
			t.Errorf("got %+v, want the receiver: only its former Track ended", a)
		}
	})
}

// At a simultaneous start the first coordinator asks itself, at once, and so fetches. When it crashed nobody took over: the
// other coordinators named neighbours that waited as well, and the lease was not asked for once more.
func TestFetcherIsTheFirstCoordinator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 30)
		k := testKey(1)
		fetcher := net.coordinators(k)[0]
		if a := fetcher.receive(k, 0); !a.Granted {
			t.Fatalf("the first gets %+v, want the lease", a)
		}
		fetcher.Track(k, 0, nil).Report(100, true)
		synctest.Wait()
		for _, n := range net.others(k)[:5] {
			n.receive(k, 90)
		}
		net.kill(fetcher.ID)
		granted := 0
		for _, n := range net.others(k)[:5] {
			a := n.receive(k, 100, fetcher.ID)
			if a.Granted {
				granted++
				if len(a.Sources) > 0 {
					t.Errorf("who fetches is sent to %v, who have no more", a.Sources)
				}
			} else if a.Fetcher == 0 {
				t.Errorf("got %+v, want a fetcher", a)
			}
		}
		if granted != 1 {
			t.Errorf("%d took over, want 1", granted)
		}
	})
}

// A fetcher that gets a few bytes now and then held up everybody for ever.
func TestDripDoesNotKeepTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 10)
		k := testKey(1)
		nodes := net.others(k)
		nodes[0].receive(k, 0)
		track := nodes[0].Track(k, 0, nil)
		for i := range int64(20) {
			track.Report(100*i, true)
			time.Sleep(reportFetcher)
		}
		if a := nodes[1].receive(k, 1900); !a.Granted {
			t.Errorf("beside a fetcher of 400 bytes a second: got %+v, want the lease", a)
		}
	})
}
