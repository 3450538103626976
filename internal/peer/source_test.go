package peer

import (
	"context"
	"encoding/json"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// withNames is a Source that also asks neighbours for tags, as a node does whose registry cannot be asked.
type withNames struct{ *Source }

func (w withNames) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	if ref.Digest == "" {
		return w.Names().Resolve(ctx, ref)
	}
	return w.Source.Resolve(ctx, ref)
}

// announceImage tells the site that a node holds an image.
func announceImage(n *node, ref oci.Reference) {
	b, desc, err := ocitest.ReadAll(n.site.t.Context(), n.store, ref.WithDigest(mustResolve(n, ref)))
	if err != nil {
		n.site.t.Fatal(err)
	}
	var m v1.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		n.site.t.Fatal(err)
	}
	n.announce(ref, oci.Reference{Digest: desc.Digest}, oci.Reference{Digest: m.Config.Digest})
	for _, l := range m.Layers {
		n.announce(oci.Reference{Digest: l.Digest})
	}
}

func mustResolve(n *node, ref oci.Reference) oci.Digest {
	desc, err := n.store.Resolve(n.site.t.Context(), ref)
	if err != nil {
		n.site.t.Fatal(err)
	}
	return desc.Digest
}

func TestConformanceNeighbour(t *testing.T) {
	ocitest.TestSource(t, func(t *testing.T, content *ocitest.Memory, ref oci.Reference) oci.Source {
		s := onLoopback(t, 3)
		s.nodes[1].store.Memory = content
		announceImage(s.nodes[1], ref)
		s.settle()
		return withNames{s.nodes[0].Source}
	})
}

func TestConformanceUpstream(t *testing.T) {
	ocitest.TestSource(t, func(t *testing.T, content *ocitest.Memory, _ oci.Reference) oci.Source {
		s := onLoopback(t, 3)
		s.up.Memory = content
		return s.nodes[0].Source
	})
}
