package directory

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestLookupIsOneRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 30)
		present, absent := testKey(1), testKey(2)
		holder := net.others(present)[0]
		holder.Hold([]Key{present}, nil)
		settle()
		net.count(kindAsk)
		asker := net.others(present)[1]
		a, took := asker.lookup(Want{Key: present})
		if len(a.Sources) != 1 || a.Sources[0].ID != holder.ID || !a.Sources[0].Whole() {
			t.Errorf("sources are %v, want %x", a.Sources, holder.ID)
		}
		if took != 2*latency {
			t.Errorf("what is there was found after %s, want %s", took, 2*latency)
		}
		asker = net.others(absent)[0]
		a, took = asker.lookup(Want{Key: absent})
		if len(a.Sources) != 0 || a.Alone || a.Granted || a.Fetcher != 0 {
			t.Errorf("nobody has it: got %+v", a)
		}
		if took != 2*latency {
			t.Errorf("what is not there was not found after %s, want %s", took, 2*latency)
		}
		if n := net.count(kindAsk); n != 2*coordinators {
			t.Errorf("two look-ups sent %d questions, want %d", n, 2*coordinators)
		}
	})
}

// A coordinator asks itself without the network, and also whoever else may know.
func TestCoordinatorAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 10)
		k := testKey(1)
		holder, asker := net.others(k)[0], net.coordinators(k)[0]
		holder.Hold([]Key{k}, nil)
		settle()
		a, took := asker.lookup(Want{Key: k})
		if len(a.Sources) != 1 || took != 0 {
			t.Errorf("the first coordinator found %v after %s, want one at once", a.Sources, took)
		}
		asker = net.coordinators(k)[2]
		if a, took = asker.lookup(Want{Key: k}); len(a.Sources) != 1 || took > 2*latency {
			t.Errorf("the last coordinator found %v after %s, want one within a round trip", a.Sources, took)
		}
	})
}

func TestOneNodeIsItsOwnCoordinator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, 1).nodes[0]
		n.Hold([]Key{testKey(1)}, nil)
		settle()
		if a, took := n.lookup(Want{Key: testKey(2), Join: true, Fetch: true}); !a.Granted || a.Alone || took != 0 {
			t.Errorf("a node alone: got %+v after %s, want the lease at once", a, took)
		}
		if a, _ := n.lookup(Want{Key: testKey(1)}); len(a.Sources) != 0 {
			t.Errorf("a node was sent to itself: %+v", a)
		}
	})
}

func TestDeadCoordinatorCostsItsDeadlineOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 30)
		k := testKey(1)
		holder, asker := net.others(k)[0], net.others(k)[1]
		holder.Hold([]Key{k}, nil)
		settle()
		net.kill(net.coordinators(k)[0].ID)
		for i, want := range []time.Duration{firstDeadline, 2 * latency} {
			a, took := asker.lookup(Want{Key: k, Join: true, Fetch: true})
			if len(a.Sources) != 1 || a.Alone {
				t.Errorf("look-up %d: got %+v, want the holder", i, a)
			}
			if took > want {
				t.Errorf("look-up %d took %s, want at most %s", i, took, want)
			}
		}
	})
}

// Where nothing is found, everybody is waited for, and the lease is asked for once more at one that lives.
func TestDeadCoordinatorOfAnAbsentKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 30)
		k := testKey(1)
		asker, next := net.others(k)[0], net.others(k)[1]
		net.kill(net.coordinators(k)[0].ID)
		a, took := asker.lookup(Want{Key: k, Join: true, Fetch: true})
		if !a.Granted || took > firstDeadline+2*latency {
			t.Errorf("got %+v after %s, want the lease within %s", a, took, firstDeadline+2*latency)
		}
		asker.Track(k, 0, nil).Report(0, true)
		synctest.Wait()
		a, _ = next.lookup(Want{Key: k, Join: true, Fetch: true})
		if a.Granted || a.Fetcher != asker.ID {
			t.Errorf("the next: got %+v, want the fetcher %x", a, asker.ID)
		}
	})
}

func TestAllCoordinatorsDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 30)
		k := testKey(1)
		asker := net.others(k)[0]
		for _, c := range net.coordinators(k) {
			net.kill(c.ID)
		}
		for i := range 5 {
			a, took := asker.lookup(Want{Key: k, Join: true, Fetch: true})
			if !a.Alone || a.Granted || len(a.Sources) > 0 {
				t.Errorf("look-up %d: got %+v, want alone", i, a)
			}
			if took > 2*maxDeadline {
				t.Errorf("look-up %d took %s, want at most %s", i, took, 2*maxDeadline)
			}
		}
		net.meet() // they are found to be gone, and others take their place
		if a, took := asker.lookup(Want{Key: k, Join: true, Fetch: true}); !a.Granted || took > 2*latency {
			t.Errorf("with new coordinators: got %+v after %s, want the lease within a round trip", a, took)
		}
	})
}

// One that is heard of again is waited for again.
func TestSuspicionEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 10)
		k := testKey(1)
		asker, first := net.others(k)[0], net.coordinators(k)[0]
		net.losing(func(from, _ ID, _ kind) bool { return from == first.ID })
		asker.lookup(Want{Key: k})
		if !asker.peer(first.ID).suspect {
			t.Fatal("who missed its deadline is not suspected")
		}
		net.losing(nil)
		asker.lookup(Want{Key: k})
		synctest.Wait()
		if asker.peer(first.ID).suspect {
			t.Error("who answered is still suspected")
		}
	})
}

func TestLookupUnderLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 30)
		var keys []Key
		for i := range 200 {
			keys = append(keys, testKey(i))
		}
		holder, asker := net.nodes[0], net.nodes[1]
		holder.Hold(keys, nil)
		settle()
		net.losing(losses(10))
		for _, joins := range []bool{false, true} {
			slow := 0
			for i, k := range keys {
				a, took := asker.lookup(Want{Key: k, Join: joins})
				if len(a.Sources) == 0 || a.Sources[0].ID != holder.ID || took > 2*maxDeadline {
					t.Errorf("key %d: found %v after %s, want the holder within %s", i, a.Sources, took, 2*maxDeadline)
				}
				if took > 2*latency {
					slow++
				}
			}
			// Who receives waits for one coordinator (1 loses in 5), who does not for any of three (1 in 125).
			if most := map[bool]int{false: len(keys) / 20, true: len(keys) / 2}[joins]; slow > most {
				t.Errorf("join %t: %d of %d look-ups took longer than a round trip, want at most %d", joins, slow, len(keys), most)
			}
		}
	})
}

func TestLookupEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 30)
		k := testKey(1)
		asker := net.others(k)[0]
		net.losing(func(ID, ID, kind) bool { return true })
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := asker.Lookup(ctx, Want{Key: k}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with the context over: got error %v, want DeadlineExceeded", err)
		}
		answer := make(chan Answer, 2)
		asker.Ask(Want{Key: k}, func(a Answer) { answer <- a })
		asker.Close()
		asker.Ask(Want{Key: k}, func(a Answer) { answer <- a })
		for range 2 {
			if a := <-answer; !a.Alone {
				t.Errorf("a closed directory answers %+v, want alone", a)
			}
		}
	})
}

func TestStrangersAreIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 3)
		k := testKey(1)
		net.nodes[0].Receive(message{kind: kindAnnounce, from: 42, held: []Key{k}}.encode())
		net.nodes[0].Receive([]byte("nonsense"))
		net.nodes[0].Receive(nil)
		if ids := net.nodes[0].holders(k); len(ids) != 0 {
			t.Errorf("a stranger is a holder: %x", ids)
		}
	})
}

func TestDoubtReachesItsHolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 3)
		doubted := make(chan Key, 1)
		net.nodes[1].c.Doubted = func(k Key) { doubted <- k }
		net.nodes[0].Doubt(net.nodes[1].ID, testKey(7))
		net.nodes[0].Doubt(net.nodes[2].ID, testKey(8)) // has nobody to tell
		if k := <-doubted; k != testKey(7) {
			t.Errorf("doubted is %x, want %x", k, testKey(7))
		}
	})
}

func TestAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 3)
		asker, other, dead := net.nodes[0], net.nodes[1], net.nodes[2]
		net.kill(dead.ID)
		for id, want := range map[ID]bool{other.ID: true, dead.ID: false, 42: false, asker.ID: false} {
			begun := time.Now()
			if got := asker.Alive(t.Context(), id); got != want {
				t.Errorf("%x is alive: %t, want %t", id, got, want)
			}
			if took := time.Since(begun); took > 2*maxDeadline {
				t.Errorf("%x: it took %s to find out, want at most %s", id, took, 2*maxDeadline)
			}
		}
		if n := asker.count.Get(); n != 0 {
			t.Errorf("%d look-ups are counted, want 0", n)
		}
	})
}
