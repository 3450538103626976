package peer

import (
	"bytes"
	"io"
	"testing"
	"time"

	"pier/internal/directory"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// held makes a site on which all nodes but the first hold content, each answering after a millisecond, so that none of them
// has it all done before another began.
func held(s *site, content []byte) oci.Reference {
	for _, n := range s.nodes[1:] {
		n.has(content)
		n.door.fails(late(time.Millisecond))
	}
	s.settle()
	return blobRef(content)
}

func TestStriped(t *testing.T) {
	bubble(t, 4, func(t *testing.T, s *site) {
		content := ocitest.Bytes(50, 16*mib+12345)
		held(s, content)
		s.nodes[0].within(second, content)
		total := 0
		for _, n := range s.nodes[1:] {
			got := s.nodes[0].received(n)
			if total += got; got < len(content)/6 {
				t.Errorf("%s gave %d of %d bytes, want about a third", n.name, got, len(content))
			}
		}
		if total != len(content) {
			t.Errorf("the neighbours gave %d bytes, want %d: none twice", total, len(content))
		}
	})
}

// Who would have to make content first is not asked for parts of it while another has it ready.
func TestStripedWithoutWhoMakesIt(t *testing.T) {
	bubble(t, 3, func(t *testing.T, s *site) {
		content := ocitest.Bytes(50, 16*mib)
		ref := held(s, content)
		late := s.nodes[2]
		late.dir.HoldLate([]directory.Key{directory.KeyOf(ref)})
		s.settle()
		s.nodes[0].within(second, content)
		if got := s.nodes[0].received(late); got > 0 {
			t.Errorf("%d bytes were made for it", got)
		}
	})
}

// Of all transfers together, no more than 4 MiB are in memory; the harness makes sure that all of it is given back.
func TestStripedMemory(t *testing.T) {
	bubble(t, 4, func(t *testing.T, s *site) {
		puller := s.nodes[0]
		if most := cap(puller.parts) * partSize; most > 4*mib {
			t.Fatalf("%d bytes of parts, want at most 4 MiB", most)
		}
		var readers []io.ReadCloser
		for seed := range uint64(6) {
			ref := held(s, ocitest.Bytes(60+seed, 8*mib))
			rc, _, err := puller.Open(t.Context(), ref, 0, -1)
			if err != nil {
				t.Fatal(err)
			}
			readers = append(readers, rc)
		}
		for i, rc := range readers { // the first has all the memory, and the others go on with what one connection buffers
			if b, err := io.ReadAll(rc); err != nil || !bytes.Equal(b, ocitest.Bytes(60+uint64(i), 8*mib)) {
				t.Errorf("reader %d: got %d bytes, error %v", i, len(b), err)
			}
			rc.Close()
		}
	})
}

// Regression: a client that reads nothing more held all the memory there is for parts, and others waited for it.
func TestSlowClientStopsNobody(t *testing.T) {
	bubble(t, 4, func(t *testing.T, s *site) {
		puller := s.nodes[0]
		ref := held(s, ocitest.Bytes(51, 16*mib))
		slow, _, err := puller.Open(t.Context(), ref, 1, 12*mib)
		if err != nil {
			t.Fatal(err)
		}
		defer slow.Close()
		if _, err := io.ReadFull(slow, make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		content := ocitest.Bytes(52, 16*mib)
		held(s, content)
		puller.within(second, content)
	})
}

// One of several that are read at once fails: its part is read by another.
func TestStripedLaneFails(t *testing.T) {
	for _, tt := range []struct {
		name string
		fail fault
		most time.Duration
	}{
		{"cut", after(100_000, breaks), second},
		{"hangs", after(100_000, stops), second},
		{"hangs before the header", hangs, second},
		{"hangs after the header", after(0, stops), second},
		{"busy", answers(503), second},
		{"crawls", paced(30_000), 5 * second / 2},
		{"slower than the others by far", paced(100_000), 5 * second / 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, 4, func(t *testing.T, s *site) {
				content := ocitest.Bytes(53, 16*mib)
				ref := held(s, content)
				s.up.has(content)
				puller, bad := s.nodes[0], s.nodes[2]
				bad.door.fails(tt.fail)
				puller.within(tt.most, content)
				total := 0
				for _, n := range s.nodes[1:] {
					total += puller.received(n)
				}
				if total < len(content) || total > len(content)+partSize {
					t.Errorf("the neighbours gave %d bytes, want %d and at most one part twice", total, len(content))
				}
				if got := s.up.gave(ref); got != 0 {
					t.Errorf("the registry gave %d bytes, want none", got)
				}
			})
		})
	}
}

// All that are read at once fail: the registry goes on.
func TestStripedAllLanesFail(t *testing.T) {
	bubble(t, 4, func(t *testing.T, s *site) {
		content := ocitest.Bytes(54, 16*mib)
		ref := held(s, content)
		s.up.has(content)
		rc, _, err := s.nodes[0].Open(t.Context(), ref, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer rc.Close()
		got := make([]byte, 6*mib)
		if _, err := io.ReadFull(rc, got); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		for _, n := range s.nodes[1:] {
			s.kill(n)
		}
		rest, err := io.ReadAll(rc)
		if err != nil || !bytes.Equal(append(got, rest...), content) {
			t.Errorf("got %d bytes more, error %v", len(rest), err)
		}
		if took := time.Since(begun); took > second {
			t.Errorf("the registry went on after %s, want at most a second", took)
		}
		if gave := s.up.gave(ref); gave > 10*mib {
			t.Errorf("the registry gave %d bytes, want at most the 10 MiB that were not there", gave)
		}
	})
}

// A registry that limits each connection is asked for parts over several; no byte is fetched twice.
func TestFetchers(t *testing.T) {
	bubble(t, 4, func(t *testing.T, s *site) {
		content := ocitest.Bytes(55, 16*mib+777)
		s.up.has(content)
		s.up.rate = mib
		begun := time.Now()
		s.all(content, s.nodes...)
		if took := time.Since(begun); took > 6*second {
			t.Errorf("4 connections of 1 MiB/s each took %s for 16 MiB, want about 4 s", took)
		}
		s.wantOnce(content)
	}, func(_ *node, c *Config) { c.Fetchers = 4 })
}

// Regression: several connections to a registry were given up when nothing came for half a second, as those of neighbours are.
func TestFetchersArePatient(t *testing.T) {
	bubble(t, 1, func(t *testing.T, s *site) {
		content := ocitest.Bytes(56, 8*mib)
		ref := s.up.has(content)
		s.up.rate = mib
		pulled := make(chan struct{})
		go func() { defer close(pulled); s.nodes[0].gets(content) }()
		s.until("some of it is there", func() bool { return s.up.gave(ref) > mib })
		s.up.set(func() { s.up.stop = func(string) bool { return true } })
		time.Sleep(3 * time.Second)
		s.up.set(func() { s.up.stop = nil })
		<-pulled
		s.wantOnce(content)
	}, func(_ *node, c *Config) { c.Fetchers = 4 })
}

// A part is read from a neighbour, and offered to nobody.
func TestPart(t *testing.T) {
	bubble(t, 3, func(t *testing.T, s *site) {
		content := ocitest.Bytes(57, mib)
		ref := s.nodes[1].has(content)
		s.settle()
		rc, desc, err := s.nodes[0].Open(t.Context(), ref, 1000, 5000)
		if err != nil {
			t.Fatal(err)
		}
		defer rc.Close()
		b, err := io.ReadAll(rc)
		if err != nil || !bytes.Equal(b, content[1000:6000]) || desc.Size != mib {
			t.Errorf("got %d bytes of %d, error %v", len(b), desc.Size, err)
		}
		if got := s.nodes[0].received(s.nodes[1]); got != 5000 {
			t.Errorf("the neighbour gave %d bytes, want 5000", got)
		}
		a, err := s.nodes[2].dir.Lookup(t.Context(), wantOf(ref))
		if err != nil || len(a.Sources) != 1 || a.Sources[0].ID != s.nodes[1].id {
			t.Errorf("sources %v, error %v; want the holder alone", a.Sources, err)
		}
	})
}

// A part that nobody has yet is soon asked of the registry, whoever fetches the whole: what is before it may take hours.
func TestPartOfWhatIsFetched(t *testing.T) {
	bubble(t, 3, func(t *testing.T, s *site) {
		r := s.rollOut(6 * mib)
		begun := time.Now()
		rc, _, err := s.nodes[1].Open(t.Context(), r.ref, 5*mib, 1000)
		if err != nil {
			t.Fatal(err)
		}
		defer rc.Close()
		if b, err := io.ReadAll(rc); err != nil || !bytes.Equal(b, r.content[5*mib:5*mib+1000]) {
			t.Errorf("got %d bytes, error %v", len(b), err)
		}
		if took := time.Since(begun); took > second {
			t.Errorf("the part came after %s, want within a second", took)
		}
		if a, err := s.nodes[2].dir.Lookup(t.Context(), wantOf(r.ref)); err != nil || a.Fetcher != r.fetcher.id {
			t.Errorf("the lease is of %x, error %v; want it where it was", a.Fetcher, err)
		}
		r.finish(second, 1000)
		<-r.ended
	})
}

func wantOf(ref oci.Reference) directory.Want {
	return directory.Want{Key: directory.KeyOf(ref), Scope: directory.ScopeOf(ref)}
}
