package peer

import (
	"fmt"
	"testing"

	"pier/internal/directory"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// knows has a node know a tag as a manifest of its own.
func (n *node) knows(ref oci.Reference, text string) oci.Descriptor {
	desc := n.store.Manifest(ref, "application/vnd.oci.image.manifest.v1+json", text)
	n.announce(ref)
	return desc
}

// Of what neighbours say that a tag names, most decide.
func TestNames(t *testing.T) {
	bubble(t, 4, func(t *testing.T, s *site) {
		ref := oci.Reference{Registry: registryName, Repository: "team/app", Tag: "v1"}
		names := s.nodes[0].Names()
		if _, err := names.Resolve(t.Context(), ref); err == nil {
			t.Error("a tag that nobody knows is resolved")
		} else {
			wantClass(t, err, oci.ErrNotFound)
		}
		s.nodes[1].knows(ref, "old")
		want := s.nodes[2].knows(ref, "new")
		s.nodes[3].knows(ref, "new")
		s.settle()
		desc, err := names.Resolve(t.Context(), ref)
		if err != nil || desc.Digest != want.Digest || desc.Size != want.Size || desc.MediaType != want.MediaType {
			t.Errorf("got %+v, error %v; want %+v", desc, err, want)
		}
		if _, err := names.Resolve(t.Context(), ref.WithDigest(want.Digest)); err == nil {
			t.Error("content is resolved among the names")
		}
		if _, _, err := names.Open(t.Context(), ref.WithDigest(want.Digest), 0, -1); err == nil {
			t.Error("content is opened among the names")
		}
	})
}

// A neighbour that hangs decides nothing, and holds up no answer beyond a second.
func TestNamesOfAHungNeighbour(t *testing.T) {
	bubble(t, 3, func(t *testing.T, s *site) {
		ref := oci.Reference{Registry: registryName, Repository: "team/app", Tag: "v1"}
		s.nodes[1].knows(ref, "old")
		s.nodes[1].door.fails(hangs)
		want := s.nodes[2].knows(ref, "new")
		s.settle()
		desc, err := s.nodes[0].Names().Resolve(t.Context(), ref)
		if err != nil || desc.Digest != want.Digest {
			t.Errorf("got %s, error %v; want %s", desc.Digest, err, want.Digest)
		}
	})
}

// Neighbours are asked for tags only through Names.
func TestTagsAreTheRegistrys(t *testing.T) {
	bubble(t, 2, func(t *testing.T, s *site) {
		ref := oci.Reference{Registry: registryName, Repository: "team/app", Tag: "v1"}
		s.nodes[1].knows(ref, "of the neighbour")
		want := s.up.Manifest(ref, "application/vnd.oci.image.manifest.v1+json", "of the registry")
		s.settle()
		desc, err := s.nodes[0].Resolve(t.Context(), ref)
		if err != nil || desc.Digest != want.Digest {
			t.Errorf("got %s, error %v; want %s", desc.Digest, err, want.Digest)
		}
		s.up.refuse = func(string) error { return fmt.Errorf("%w: %w", errDown, oci.ErrRateLimited) }
		if _, err := s.nodes[0].Resolve(t.Context(), ref); err == nil {
			t.Error("a neighbour's tag is taken for the registry's")
		}
		if n := s.nodes[1].door.requests(); n != 0 {
			t.Errorf("the neighbour was asked %d times", n)
		}
	})
}

func TestAirGapped(t *testing.T) {
	bubble(t, 3, func(t *testing.T, s *site) {
		_, err := s.nodes[0].pull(blobRef(ocitest.Bytes(70, 100)))
		wantClass(t, err, oci.ErrNotFound)
		content := ocitest.Bytes(71, mib)
		s.nodes[2].has(content)
		s.settle()
		s.nodes[0].within(second, content)
	}, airGapped)
}

// A node without a registry follows one that has a registry.
func TestAirGappedFollows(t *testing.T) {
	bubble(t, 3, func(t *testing.T, s *site) {
		r := s.rollOut(4 * mib)
		r.finish(second, 0)
		<-r.ended
	}, func(n *node, c *Config) {
		if n.name != "node-0" {
			c.Upstream = nil
		}
	})
}

// A site whose nodes change their addresses must not make metrics without end.
func TestMetricsOfNeighboursAreBounded(t *testing.T) {
	s := New(Config{Directory: directory.New(directory.Config{Send: func(directory.ID, []byte) {}})})
	for i := range 3 * maxReceived {
		s.received(fmt.Sprintf("10.0.0.1:%d", i)).Inc()
	}
	if n := len(s.meter.set.ListMetricNames()); n > maxReceived+50 {
		t.Errorf("%d metrics", n)
	}
	s.Close()
	s.c.Directory.Close()
}
