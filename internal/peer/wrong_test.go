package peer

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"pier/internal/directory"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// spoil returns content with one wrong byte.
func spoil(content []byte) []byte {
	wrong := slices.Clone(content)
	wrong[len(wrong)/2] ^= 1
	return wrong
}

// wantDoubted makes sure that a node was told that its copy is wrong.
func (n *node) wantDoubted(ref oci.Reference) {
	t := n.site.t
	t.Helper()
	select {
	case key := <-n.doubted:
		if key != directory.KeyOf(ref) {
			t.Errorf("%s is told of wrong content for another key", n.name)
		}
	case <-time.After(time.Second):
		t.Errorf("%s is not told that its copy is wrong", n.name)
	}
}

// Wrong bytes are not kept, the holder is told, and not asked again; the next pull succeeds.
func TestWrongBytes(t *testing.T) {
	bubble(t, 2, func(t *testing.T, s *site) {
		content := ocitest.Bytes(30, 2*mib)
		ref := s.up.has(content)
		puller, liar := s.nodes[0], s.nodes[1]
		liar.lies(ref, spoil(content))
		s.settle()
		b, err := puller.pull(ref)
		wantClass(t, err, oci.ErrDigestMismatch)
		if len(b) == len(content) {
			t.Error("all of the wrong content was given out")
		}
		if _, err := puller.store.Resolve(t.Context(), ref); err == nil {
			t.Error("wrong content is kept")
		}
		if puller.left(leftWrong) != 1 || len(s.up.blamed) != 0 {
			t.Errorf("neighbours left as wrong: %d, registries blamed: %v; want one neighbour alone", puller.left(leftWrong), s.up.blamed)
		}
		liar.wantDoubted(ref)
		asked := liar.door.requests()
		puller.within(second, content)
		if liar.door.requests() != asked {
			t.Error("who gave wrong content was asked again")
		}
		if got := s.up.gave(ref); got != len(content) {
			t.Errorf("the registry gave %d bytes, want %d", got, len(content))
		}
	})
}

// Nothing of small content is given out before it is proven: the pull that meets the wrong copy succeeds itself.
func TestSmallWrongBytes(t *testing.T) {
	bubble(t, 3, func(t *testing.T, s *site) {
		content := ocitest.Bytes(31, 10_000)
		ref := s.up.has(content)
		for _, n := range s.nodes[1:] {
			n.lies(ref, spoil(content))
		}
		s.settle()
		s.nodes[0].within(second, content)
		for _, n := range s.nodes[1:] {
			n.wantDoubted(ref)
		}
	}, zones("here", "here", "there"))
}

// Regression: a pull of which nothing was given out yet ended after three wrong copies.
func TestManyWrongCopies(t *testing.T) {
	bubble(t, 7, func(t *testing.T, s *site) {
		content := ocitest.Bytes(32, 10_000)
		ref := s.up.has(content)
		for _, n := range s.nodes[1:] {
			n.lies(ref, spoil(content))
		}
		s.settle()
		s.nodes[0].within(second, content)
	})
}

// A copy of another size fails no pull either, whether it is met first or in the middle.
func TestAnotherSize(t *testing.T) {
	for name, change := range map[string]func(content []byte) []byte{
		"longer":  func(content []byte) []byte { return append(slices.Clone(content), "more"...) },
		"shorter": func(content []byte) []byte { return content[:len(content)-1000] },
		"empty":   func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, 3, func(t *testing.T, s *site) {
				content := ocitest.Bytes(33, 2*mib)
				ref := s.up.has(content)
				puller, liar, good := s.nodes[0], s.nodes[1], s.nodes[2]
				liar.lies(ref, change(content))
				good.has(content)
				s.settle()
				if b, err := puller.pull(ref); err == nil && !bytes.Equal(b, content) {
					t.Errorf("%d wrong bytes ended cleanly", len(b))
				}
				puller.within(2*second, content)
			}, zones("here", "here", "there"))
		})
		t.Run(name+" in the middle", func(t *testing.T) {
			bubble(t, 3, func(t *testing.T, s *site) {
				content := ocitest.Bytes(34, 2*mib)
				ref := s.up.has(content)
				puller, good, liar := s.nodes[0], s.nodes[1], s.nodes[2]
				liar.lies(ref, change(content))
				good.has(content)
				s.settle()
				good.door.fails(after(mib, breaks))
				puller.within(second, content)
				if got := puller.received(liar); got != 0 {
					t.Errorf("%d bytes of content of another size were read", got)
				}
			}, zones("here", "here", "there"))
		})
	}
}

// A copy of another size whose holder then hangs is not asked again, once the registry has said better.
func TestAnotherSizeAndNothingElse(t *testing.T) {
	bubble(t, 2, func(t *testing.T, s *site) {
		content := ocitest.Bytes(37, 2*mib)
		ref := s.up.has(content)
		puller, liar := s.nodes[0], s.nodes[1]
		liar.lies(ref, content[1:])
		liar.door.fails(after(0, stops))
		s.settle()
		if b, err := puller.pull(ref); err == nil && !bytes.Equal(b, content) {
			t.Errorf("%d wrong bytes ended cleanly", len(b))
		}
		puller.within(0, content)
	})
}

// Regression: a neighbour that gave no byte of it was blamed for wrong content, too.
func TestOnlySuppliersAreBlamed(t *testing.T) {
	bubble(t, 3, func(t *testing.T, s *site) {
		content := ocitest.Bytes(35, 2*mib)
		ref := s.up.has(content)
		puller, slow, liar := s.nodes[0], s.nodes[1], s.nodes[2]
		slow.has(content)
		slow.door.fails(after(0, stops))
		liar.lies(ref, spoil(content))
		s.settle()
		_, err := puller.pull(ref)
		wantClass(t, err, oci.ErrDigestMismatch)
		liar.wantDoubted(ref)
		s.settle()
		if len(slow.doubted) != 0 {
			t.Error("a neighbour that gave nothing is blamed")
		}
	}, zones("here", "here", "there"))
}

// Without a registry, one wrong copy among several that are read at once costs that pull, and no other.
func TestOneWrongCopyOfSeveralAirGapped(t *testing.T) {
	bubble(t, 4, func(t *testing.T, s *site) {
		content := ocitest.Bytes(36, 8*mib)
		ref := blobRef(content)
		s.nodes[1].lies(ref, make([]byte, len(content))) // so that it does not matter which parts are read there
		s.nodes[2].has(content)
		s.nodes[3].has(content)
		for _, n := range s.nodes[1:] {
			n.door.fails(late(time.Millisecond))
		}
		s.settle()
		puller := s.nodes[0]
		for range 4 {
			if b, err := puller.pull(ref); err == nil && bytes.Equal(b, content) {
				return
			}
		}
		t.Error("two of three copies are right, and none of four pulls succeeded")
	}, airGapped)
}
