package directory

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// A follower is a node with whom it was sent to first.
type follower struct {
	*node
	parent ID
}

// follow has all nodes but the coordinators of k ask for it, one after the other.
func follow(net *network, k Key) (list []follower) {
	for _, n := range net.others(k) {
		a := n.receive(k, 0)
		f := follower{node: n}
		if len(a.Sources) > 0 {
			f.parent = a.Sources[0].ID
		}
		list = append(list, f)
	}
	return list
}

func TestTree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 100, "a", "b", "c")
		k := testKey(1)
		list := follow(net, k)
		arrival := make(map[ID]int)
		children := make(map[ID]int)
		depth := make(map[ID]int)
		zone := make(map[ID]string)
		firsts := make(map[string]bool)
		for i, f := range list {
			arrival[f.ID], zone[f.ID] = i, f.Zone
			if i == 0 {
				if f.parent != 0 {
					t.Errorf("the fetcher is sent to %x", f.parent)
				}
				continue
			}
			at, ok := arrival[f.parent]
			if !ok || at >= i {
				t.Errorf("receiver %d is sent to %d, who came later or is nobody", i, at)
			}
			if f.parent != list[0].ID && zone[f.parent] != f.Zone {
				t.Errorf("receiver %d of zone %s is sent to zone %s", i, f.Zone, zone[f.parent])
			}
			if f.parent == list[0].ID {
				firsts[f.Zone] = true
			}
			children[f.parent]++
			depth[f.ID] = depth[f.parent] + 1
		}
		if len(firsts) != 3 {
			t.Errorf("receivers of %d zones are sent to the fetcher, want 3", len(firsts))
		}
		for id, n := range children {
			most := fanOut
			if id == list[0].ID {
				most *= 3 // zones
			}
			if n > most {
				t.Errorf("receiver %d of %d has %d below it, want at most %d", arrival[id], len(list), n, most)
			}
			if depth[id] > 6 { // 33 receivers in each zone
				t.Errorf("receiver %d is %d steps from the fetcher", arrival[id], depth[id])
			}
		}
	})
}

// Roots are those that hold the content, if there are any in the zone; a zone without one gets it once from another.
func TestTreeUnderHolders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 60, "a", "b")
		k := testKey(1)
		var holders []ID
		for _, n := range net.others(k)[:8] {
			if n.Zone == "a" {
				n.Hold([]Key{k}, nil)
				holders = append(holders, n.ID)
			}
		}
		settle()
		children := make(map[ID]int)
		across := 0
		for _, n := range net.others(k)[8:] {
			a := n.receive(k, 0)
			if len(a.Sources) == 0 {
				t.Fatalf("nobody is named: %+v", a)
			}
			first := a.Sources[0].ID
			children[first]++
			if n.Zone == "b" && slices.Contains(holders, first) {
				across++
			}
		}
		for _, id := range holders {
			if n := children[id]; n < fanOut || n > fanOut+2 {
				t.Errorf("a holder has %d below it, want %d and the other zone's", n, fanOut)
			}
		}
		if across > 2 {
			t.Errorf("%d of zone b are sent to zone a, want 1", across)
		}
	})
}

func TestDeadParentIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 60)
		k := testKey(1)
		list := follow(net, k)
		dead := list[3]
		net.kill(dead.ID)
		for i, f := range list {
			if f.parent != dead.ID {
				continue
			}
			a := f.receive(k, 0, dead.ID)
			if len(a.Sources) == 0 || a.Sources[0].ID == dead.ID {
				t.Fatalf("the child of who died is sent to %v", a.Sources)
			}
			at := slices.IndexFunc(list, func(f follower) bool { return f.ID == a.Sources[0].ID })
			if at < 0 || at >= i {
				t.Errorf("receiver %d is sent to %d, who came later", i, at)
			}
		}
		// Who was not heard of for long is not offered, even if nobody complains.
		quiet := list[5]
		live := []*node{}
		for _, f := range list[1:] {
			if f.ID != dead.ID && f.ID != quiet.ID {
				live = append(live, f.node)
				f.Track(k, 0, nil).Report(1, false)
			}
		}
		time.Sleep(receiverTTL + sweepEvery)
		for _, n := range live {
			if a := n.receive(k, 0); slices.ContainsFunc(a.Sources, func(s Source) bool { return s.ID == quiet.ID }) {
				t.Errorf("%x is sent to who was not heard of for %s", n.ID, receiverTTL)
			}
		}
	})
}

// What the coordinator knows of who has most is what counting everybody would give.
func TestLeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 1))
		d := New(Config{Send: func(ID, []byte) {}})
		defer d.Close()
		tr := newTransfer(0, 0)
		offsets := make(map[ID]int64)
		for step := range 20000 {
			id := ID(r.IntN(100))
			switch r.IntN(8) {
			case 0:
				d.gone(tr, id, 0)
				delete(offsets, id)
			case 1:
				offsets[id] = r.Int64N(1000) // began anew
				d.heard(tr, id, offsets[id], 0)
			default:
				offsets[id] += r.Int64N(100)
				d.heard(tr, id, offsets[id], 0)
			}
			var want []int64
			for _, o := range offsets {
				want = append(want, o)
			}
			slices.SortFunc(want, func(a, b int64) int { return int(b - a) })
			got := tr.leaders()
			if len(got) < min(maxSources, len(want)) {
				t.Fatalf("step %d: %d leaders of %d", step, len(got), len(want))
			}
			for i, r := range got {
				if r.offset != want[i] {
					t.Fatalf("step %d: leader %d has %d, want %d", step, i, r.offset, want[i])
				}
			}
			if d.kept.receivers != len(tr.receivers) || len(tr.receivers) != len(offsets) {
				t.Fatalf("step %d: %d receivers are counted, there are %d", step, d.kept.receivers, len(tr.receivers))
			}
		}
	})
}

// A question at a coordinator of 10,000 receivers.
func BenchmarkAsked(b *testing.B) {
	for _, n := range []int{10, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			members := make([]Member, n)
			for i := range members {
				members[i].ID = IDOf(fmt.Sprint(i))
			}
			d := New(Config{Self: members[0], Send: func(ID, []byte) {}})
			defer d.Close()
			d.SetMembers(members[0], members)
			questions := make([][]byte, n)
			for i, m := range members {
				questions[i] = message{kind: kindAsk, from: m.ID, flags: flagJoin | flagLease | flagPlace, offset: int64(i)}.encode()
			}
			b.ResetTimer()
			for i := range b.N {
				d.Receive(questions[i%n])
			}
		})
	}
}

// Each coordinator saw the askers come in an order of its own. One that took over sent nodes to such as read from them, and
// half of the site stood still: now it is told whom everybody reads from.
func TestAnotherCoordinatorKnowsTheTree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 60)
		k := testKey(1)
		list := follow(net, k)
		parents := make(map[ID]ID)
		for i, f := range list {
			tr := f.Track(k, 0, nil)
			tr.Report(100, i == 0)
			tr.Reads(f.parent)
			parents[f.ID] = f.parent
		}
		time.Sleep(2 * reportReceiver)
		net.kill(net.coordinators(k)[0].ID, list[0].ID)
		orphans := 0
		for _, f := range list[1:] {
			a := f.receive(k, 100, list[0].ID)
			if f.parent == list[0].ID {
				orphans++
				f.parent = 0
			}
			if a.Granted {
				parents[f.ID] = 0
				continue
			}
			if len(a.Sources) == 0 {
				t.Fatalf("%x is sent to nobody: %+v", f.ID, a)
			}
			if f.parent != 0 && a.Sources[0].ID != f.parent {
				t.Errorf("%x lost its place below %x, who is there", f.ID, f.parent)
			}
			parents[f.ID] = a.Sources[0].ID
		}
		if orphans == 0 {
			t.Fatal("nobody was below the fetcher")
		}
		for id := range parents {
			steps := 0
			for at := id; at != 0; at = parents[at] {
				if steps++; steps > len(list) {
					t.Fatalf("%x waits in a circle", id)
				}
			}
		}
	})
}

// Who is not asked for a place gives none: places of two coordinators would contradict each other.
func TestOneCoordinatorGivesPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 40)
		k := testKey(1)
		list := follow(net, k)
		for i, c := range net.coordinators(k) {
			c.lock()
			tr := c.records[k].transfers[0]
			if want := map[bool]int{true: len(list) - 1, false: 0}[i == 0]; tr.placed != want || len(tr.receivers) != len(list) {
				t.Errorf("coordinator %d gave %d places to %d receivers, want %d", i, tr.placed, len(tr.receivers), want)
			}
			c.unlock()
		}
	})
}

// Nodes that come over a long time, while others end, do not all come below the same one.
func TestPlacesOfThoseWhoEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 100)
		k := testKey(1)
		const active = 12 // at a time
		below := make(map[ID]int)
		type reader struct {
			*node
			*Track
			parent ID
		}
		var readers []reader
		for i, n := range net.others(k) {
			a := n.receive(k, 0)
			r := reader{node: n, Track: n.Track(k, 0, nil)}
			if i > 0 {
				r.parent = a.Sources[0].ID
				if below[r.parent]++; below[r.parent] > fanOut+1 {
					t.Errorf("node %d is the %dth below one at a time", i, below[r.parent])
				}
			}
			r.Report(1, i == 0)
			if readers = append(readers, r); len(readers) > active {
				done := readers[0]
				readers = readers[1:]
				below[done.parent]--
				done.Hold([]Key{k}, nil)
				done.End(false)
			}
			time.Sleep(100 * time.Millisecond)
		}
	})
}

// Of two below one that died, one took its place and the other came below the root, and so did one of every two, until the
// root had no uplink left.
func TestOrphansDoNotGoToTheRoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 100)
		k := testKey(1)
		list := follow(net, k)
		orphans := 0
		for _, dead := range list[5:20] {
			net.kill(dead.ID)
			for _, f := range list[20:] {
				if f.parent != dead.ID {
					continue
				}
				orphans++
				a := f.receive(k, 0, dead.ID)
				if len(a.Sources) == 0 {
					t.Fatalf("%x is sent to nobody: %+v", f.ID, a)
				}
				if a.Sources[0].ID == list[0].ID {
					t.Errorf("%x is sent to the root", f.ID)
				}
			}
		}
		if orphans < 20 {
			t.Fatalf("%d were below one that died", orphans)
		}
	})
}
