package peer

import (
	"bytes"
	"net/http"
	"testing"
	"time"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// second is what a neighbour may delay a pull by. In a bubble time is exact, and all else takes none.
const second = time.Second

// troubles are the ways in which a neighbour can fail, what they cost at most, and why it is left then; "": another is asked,
// too, and is faster. That it is slow shows only in time.
var troubles = []struct {
	name   string
	fail   func(s *site, n *node)
	most   time.Duration
	reason string
}{
	{"refuses connections", func(s *site, n *node) { s.kill(n) }, second, leftGone},
	{"black hole", func(s *site, n *node) { s.pipes.swallow(n.door.addr) }, second, ""},
	{"hangs before the header", func(_ *site, n *node) { n.door.fails(hangs) }, second, ""},
	{"hangs after the header", func(_ *site, n *node) { n.door.fails(after(0, stops)) }, second, leftHung},
	{"hangs in the middle", func(_ *site, n *node) { n.door.fails(after(mib+100, stops)) }, second, leftHung},
	{"is cut in the middle", func(_ *site, n *node) { n.door.fails(after(mib+100, breaks)) }, second, leftGone},
	{"crawls", func(_ *site, n *node) { n.door.fails(paced(20_000)) }, 5 * second / 2, leftCrawls},
	{"crawls after the middle", func(_ *site, n *node) { n.door.fails(slowing(mib+100, 20_000)) }, 5 * second / 2, leftCrawls},
	{"answers 404", func(_ *site, n *node) { n.door.fails(answers(http.StatusNotFound)) }, second, leftEmpty},
	{"answers 500", func(_ *site, n *node) { n.door.fails(answers(http.StatusInternalServerError)) }, second, leftGone},
	{"answers 503", func(_ *site, n *node) { n.door.fails(answers(http.StatusServiceUnavailable)) }, second, leftBusy},
	{"answers 416", func(_ *site, n *node) { n.door.fails(answers(http.StatusRequestedRangeNotSatisfiable)) }, second, leftWrong},
	{"redirects", func(_ *site, n *node) { n.door.fails(answers(http.StatusTemporaryRedirect)) }, second, leftGone},
}

// A neighbour that fails, however it does, costs at most a second: the pull goes on with the next one, at the same offset.
func TestNeighbourFails(t *testing.T) {
	for _, tt := range troubles {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, 3, func(t *testing.T, s *site) {
				content := ocitest.Bytes(10, 3*mib)
				s.up.has(content)
				puller, bad, good := s.nodes[0], s.nodes[1], s.nodes[2]
				bad.has(content)
				good.has(content)
				s.settle()
				tt.fail(s, bad)
				puller.within(tt.most, content)
				if got := puller.received(bad) + puller.received(good); got != len(content) {
					t.Errorf("the neighbours gave %d bytes, want %d: none twice", got, len(content))
				}
				if got := s.up.gave(blobRef(content)); got != 0 {
					t.Errorf("the registry gave %d bytes, want none", got)
				}
				if tt.reason != "" && puller.left(tt.reason) == 0 {
					t.Errorf("the neighbour was not left as %q", tt.reason)
				}
			}, zones("here", "here", "there")) // so that the bad one is asked first
		})
	}
}

// Where there is no other neighbour, the pull goes on from the registry.
func TestOnlyNeighbourFails(t *testing.T) {
	for _, tt := range troubles {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, 2, func(t *testing.T, s *site) {
				content := ocitest.Bytes(11, 3*mib)
				s.up.has(content)
				puller, bad := s.nodes[0], s.nodes[1]
				bad.has(content)
				s.settle()
				tt.fail(s, bad)
				most := tt.most
				if tt.reason == leftBusy {
					most = busyWait + second // it has the content, and slots come free
				}
				puller.within(most, content)
				if got := puller.received(bad) + s.up.gave(blobRef(content)); got != len(content) {
					t.Errorf("neighbour and registry gave %d bytes, want %d: none twice", got, len(content))
				}
			})
		})
	}
}

// A neighbour that failed is not what the next pull waits for.
func TestTroubledNeighbourComesLast(t *testing.T) {
	bubble(t, 3, func(t *testing.T, s *site) {
		puller, bad, good := s.nodes[0], s.nodes[1], s.nodes[2]
		for seed := range uint64(4) {
			content := ocitest.Bytes(20+seed, mib)
			bad.has(content)
			good.has(content)
			s.settle()
			bad.door.fails(hangs)
			most := time.Duration(0)
			if seed == 0 {
				most = second
			}
			puller.within(most+50*time.Millisecond, content)
		}
	}, zones("here", "here", "there"))
}

// Regression: of two that are equally slow, first the one and then the other was left, and the registry asked.
func TestEquallySlowNeighboursAreKept(t *testing.T) {
	bubble(t, 3, func(t *testing.T, s *site) {
		fast, content := ocitest.Bytes(12, 9*mib), ocitest.Bytes(13, 3*mib)
		s.up.has(content)
		for _, n := range s.nodes[1:] {
			n.door.fails(paced(4 * mib))
			n.has(fast)
			n.has(content)
		}
		s.settle()
		s.nodes[0].gets(fast)
		for _, n := range s.nodes[1:] {
			n.door.fails(paced(mib / 4))
		}
		s.nodes[0].gets(content)
		if got := s.up.gave(blobRef(content)); got != 0 {
			t.Errorf("the registry gave %d bytes, want none: both neighbours get on", got)
		}
	}, zones("here", "there", "elsewhere"))
}

// Regression: what failed once was never asked again, though the registry could not be reached.
func TestFailedNeighboursAreAskedAgain(t *testing.T) {
	bubble(t, 2, func(t *testing.T, s *site) {
		content := ocitest.Bytes(14, 2*mib)
		s.up.refuse = func(string) error { return errDown }
		puller, holder := s.nodes[0], s.nodes[1]
		holder.has(content)
		s.settle()
		holder.door.fails(once(after(mib, breaks)))
		b, _, err := ocitest.ReadAll(t.Context(), puller.Source, blobRef(content))
		if err != nil || !bytes.Equal(b, content) {
			t.Errorf("got %d bytes, error %v", len(b), err)
		}
		if got := puller.received(holder); got != len(content) {
			t.Errorf("the neighbour gave %d bytes, want %d", got, len(content))
		}
	})
}

// Regression: neighbours that hang and a registry that cannot be reached were asked in turn without end.
func TestNobodyGivesIt(t *testing.T) {
	bubble(t, 2, func(t *testing.T, s *site) {
		content := ocitest.Bytes(16, mib)
		s.up.refuse = func(string) error { return errDown }
		s.nodes[1].has(content)
		s.nodes[1].door.fails(after(0, stops))
		s.settle()
		begun := time.Now()
		_, _, err := ocitest.ReadAll(t.Context(), s.nodes[0].Source, blobRef(content))
		wantClass(t, err, oci.ErrUnavailable)
		if took := time.Since(begun); took > 3*second {
			t.Errorf("the failure took %s, want at most a second for each of two attempts, and one more", took)
		}
	})
}

// A holder that proves its copy first is left where another has done so; but not for the registry, and not for one that proves
// its own.
func TestProvingHolder(t *testing.T) {
	for _, tt := range []struct {
		name  string
		other func(*site, *node)
		most  time.Duration
	}{
		{"another has proven it", func(_ *site, n *node) { n.door.fails(nil) }, second},
		{"another proves it, too", func(*site, *node) {}, 3 * second},
		{"another is gone", func(s *site, n *node) { s.kill(n) }, 6 * second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, 3, func(t *testing.T, s *site) {
				content := ocitest.Bytes(15, 8*mib)
				ref := s.up.has(content)
				for _, n := range s.nodes[1:] {
					n.has(content)
					n.door.fails(proving(3 * time.Second / 2))
				}
				s.settle()
				tt.other(s, s.nodes[2])
				s.nodes[0].within(tt.most, content)
				if got := s.up.gave(ref); got != 0 {
					t.Errorf("the registry gave %d bytes, want none", got)
				}
			}, zones("here", "here", "there"))
		})
	}
}
