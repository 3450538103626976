package directory

import (
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// wantHolder checks that all coordinators of k, and nobody else, know whether n holds it.
func (net *network) wantHolder(k Key, n *node, want bool) {
	net.t.Helper()
	for _, m := range net.members() {
		c := net.node(m.ID)
		expected := want && c.coordinates(k)
		if got := slices.Contains(c.holders(k), n.ID); got != expected && (c.coordinates(k) || want) {
			net.t.Errorf("key %x: coordinator %t knows the holder: %t, want %t", k[:2], c.coordinates(k), got, expected)
		}
	}
}

func keys(n int) (all []Key) {
	for i := range n {
		all = append(all, testKey(i))
	}
	return all
}

// A node that has to make content first is asked only where nobody has it ready, or receives it.
func TestLateHolders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 30)
		k := testKey(1)
		others := net.others(k)
		slow, asker, receiver, ready := others[0], others[1], others[2], others[3]
		want := func(when string, want ...Source) {
			t.Helper()
			settle()
			if a, _ := asker.lookup(Want{Key: k}); !slices.Equal(a.Sources, want) {
				t.Errorf("%s: sources are %v, want %v", when, a.Sources, want)
			}
		}
		slow.HoldLate([]Key{k})
		want("alone", Source{slow.ID, wholeLate})
		if a, _ := receiver.lookup(Want{Key: k, Scope: 1, Join: true, Fetch: true}); len(a.Sources) != 1 || !a.Sources[0].Late() {
			t.Errorf("who receives it is sent to %v, want %x", a.Sources, slow.ID)
		}
		receiver.Track(k, 1, nil).At(5)
		time.Sleep(maxReport)
		want("with a receiver", Source{receiver.ID, 5}, Source{slow.ID, wholeLate})
		ready.Hold([]Key{k}, nil)
		want("with a holder", Source{ready.ID, whole}, Source{receiver.ID, 5}, Source{slow.ID, wholeLate})
		slow.Hold([]Key{k}, nil)
		ready.Hold(nil, []Key{k})
		want("made", Source{slow.ID, whole}, Source{receiver.ID, 5})
	})
}

func TestHoldIsAnnouncedInBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 4)
		n, all := net.nodes[0], keys(1000)
		n.Hold(all[:500], nil)
		n.Hold(all[500:], nil) // gathers with the first
		n.Hold(all, nil)       // is nothing new
		settle()
		for _, k := range all {
			net.wantHolder(k, n, true)
		}
		// Each of the three others has at most all the keys.
		if most, sent := 3*(len(all)/maxKeys+1), net.count(kindAnnounce); sent > most {
			t.Errorf("%d announcements, want at most %d", sent, most)
		}
		n.Hold(nil, all[:10])
		settle()
		for i, k := range all[:20] {
			net.wantHolder(k, n, i >= 10)
		}
		for _, c := range net.nodes {
			if _, ok := c.records[all[0]]; ok {
				t.Error("an empty record is kept")
			}
		}
	})
}

// Not more leave at once than a socket buffer takes.
func TestAnnouncementsArePaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 200)
		n := net.nodes[0]
		net.count(kindAnnounce)
		n.Hold(keys(500), nil)
		begun := time.Now()
		for most := flushBatches; time.Since(begun) < time.Second; most += flushBatches {
			time.Sleep(flushAfter)
			synctest.Wait()
			net.mu.Lock()
			if sent := net.sent[kindAnnounce]; sent > most {
				t.Errorf("%d announcements after %s, want at most %d", sent, time.Since(begun), most)
			}
			net.mu.Unlock()
		}
		for _, k := range keys(50) {
			net.wantHolder(k, n, true)
		}
	})
}

func TestAnnouncementsSurviveLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 20)
		net.losing(losses(5))
		n, all := net.nodes[0], keys(300)
		n.Hold(all, nil)
		time.Sleep(resendAfter << (resends + 1))
		settle()
		missing := 0
		for _, k := range all {
			for _, c := range net.coordinators(k) {
				if !slices.Contains(c.holders(k), n.ID) {
					missing++
				}
			}
		}
		// An announcement is lost four times in a row with a probability of 1 in 600, and with it some 45 keys of 900.
		if missing > 100 {
			t.Errorf("%d of %d are not known", missing, 3*len(all))
		}
		n.lock()
		if len(n.batches) > 20 { // those of a refresh are lost, too
			t.Errorf("%d announcements are still waiting for an answer", len(n.batches))
		}
		n.unlock()
		net.losing(nil)
		time.Sleep(refreshEvery)
		settle()
		for _, k := range all {
			net.wantHolder(k, n, true)
		}
	})
}

func TestHoldingsAreRefreshedAndExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 10)
		n, all := net.nodes[0], keys(100)
		n.Hold(all, nil)
		time.Sleep(3 * recordTTL)
		settle()
		for _, k := range all {
			net.wantHolder(k, n, true)
		}
		net.kill(n.ID) // silently, and nobody is told
		time.Sleep(recordTTL + sweepEvery)
		settle()
		for _, c := range net.nodes[1:] {
			c.lock()
			if len(c.records) != 0 || c.kept.holders != 0 {
				t.Errorf("%d records with %d holders are kept of who is gone", len(c.records), c.kept.holders)
			}
			c.unlock()
		}
	})
}

// A dead holder is not offered once it is no member any more, whatever the records say.
func TestMembersAloneAreOffered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 10)
		k := testKey(1)
		holder, asker := net.others(k)[0], net.others(k)[1]
		holder.Hold([]Key{k}, nil)
		settle()
		net.kill(holder.ID)
		net.meet()
		if a, _ := asker.lookup(Want{Key: k}); len(a.Sources) != 0 {
			t.Errorf("sent to %v, who is no member", a.Sources)
		}
	})
}

func TestMembersMoveKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 20)
		n, all := net.nodes[0], keys(300)
		n.Hold(all, nil)
		settle()

		joined := net.start("joined", "")
		sent := 0
		net.losing(func(_, to ID, k kind) bool {
			if to == joined.ID && k == kindAnnounce {
				sent++
			}
			return false
		})
		net.meet()
		settle()
		moved := 0
		for _, k := range all {
			if joined.coordinates(k) {
				moved++
				if !slices.Contains(joined.holders(k), n.ID) {
					t.Errorf("key %x: the new coordinator was not told", k[:2])
				}
			}
		}
		net.losing(nil)
		if moved == 0 || sent > moved/maxKeys+2 { // and a refresh
			t.Errorf("%d announcements for the %d keys of one who joined", sent, moved)
		}

		net.kill(net.nodes[5].ID)
		net.meet()
		settle()
		for _, k := range all {
			for _, c := range net.coordinators(k) {
				if !slices.Contains(c.holders(k), n.ID) {
					t.Errorf("key %x: a coordinator was not told after another left", k[:2])
				}
			}
		}
	})
}

func TestRenamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 10)
		n, all := net.nodes[0], keys(50)
		n.Hold(all, nil)
		settle()
		n.Member.ID = IDOf("renamed")
		net.meet()
		settle()
		for _, k := range all {
			for _, c := range net.coordinators(k) {
				if !slices.Contains(c.holders(k), n.ID) {
					t.Errorf("key %x: a coordinator was not told of the new name", k[:2])
				}
			}
		}
		net.nodes[1].lock()
		defer net.nodes[1].unlock()
		if net.nodes[1].member(IDOf("node-0")) {
			t.Error("the former name is still a member")
		}
	})
}

// A list in order is shared, not copied; any other is put in order.
func TestMembersAreOrdered(t *testing.T) {
	self := Member{ID: 5, Zone: "a"}
	shared := []Member{{ID: 1}, {ID: 5, Zone: "a"}, {ID: 9}}
	if got := ordered(self, shared); &got[0] != &shared[0] {
		t.Error("a list in order was copied")
	}
	for _, others := range [][]Member{
		{{ID: 1}, {ID: 9}},
		{{ID: 9}, {ID: 1}},
		{{ID: 9}, {ID: 1}, {ID: 9}, {ID: 5, Zone: "b"}},
		{{ID: 1}, {ID: 5, Zone: "b"}, {ID: 9}},
	} {
		if got := ordered(self, others); !slices.Equal(got, shared) {
			t.Errorf("of %v came %v, want %v", others, got, shared)
		}
	}
	joined, left := compare(shared, []Member{{ID: 2}, {ID: 5}, {ID: 7}, {ID: 9}, {ID: 10}})
	if !slices.Equal(joined, []ID{2, 7, 10}) || !slices.Equal(left, []ID{1}) {
		t.Errorf("joined %v, left %v", joined, left)
	}
}

// An announcement that was lost, and is sent again, says what is so by then: a phantom holder stayed for twelve minutes.
func TestWhatIsSentAgainIsUpToDate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 10)
		k := testKey(1)
		n := net.others(k)[0]
		var lost atomic.Bool
		net.losing(func(_, _ ID, kind kind) bool { return lost.Load() && kind == kindAnnounce })
		lose := func(announce func()) {
			lost.Store(true)
			announce()
			time.Sleep(2 * flushAfter)
			lost.Store(false)
		}
		lose(func() { n.Hold([]Key{k}, nil) })
		n.Hold(nil, []Key{k})
		time.Sleep(2 * resendAfter << resends)
		net.wantHolder(k, n, false)

		n.HoldLate([]Key{k})
		settle()
		lose(func() { n.Hold([]Key{k}, nil) })
		n.HoldLate([]Key{k})
		time.Sleep(2 * resendAfter << resends)
		for _, c := range net.coordinators(k) {
			c.lock()
			if holders := c.records[k].holders; len(holders) != 1 || !holders[0].late {
				t.Errorf("%x knows of %+v, want one late holder", c.ID, holders)
			}
			c.unlock()
		}
	})
}
