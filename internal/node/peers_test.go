package node

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/clusterkey"
	"pier/internal/config"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// names returns who these are, to be compared and printed.
func names(list []PeerRef) string {
	var b bytes.Buffer
	for _, p := range list {
		fmt.Fprint(&b, p.Name, " ")
	}
	return b.String()
}

// heldBy reports what is wrong if other nodes than these are said to hold content.
func heldBy(c LocatedContent, holders ...*running) string {
	var want []PeerRef
	for _, h := range holders {
		want = append(want, PeerRef{Name: h.self().Name})
	}
	if names(c.Holders) != names(want) {
		return fmt.Sprintf("%+v, want the holders %s", c, names(want))
	}
	return ""
}

// One life of a site: nodes find each other through any door of one, see what is on its way, had and lost, and who leaves.
func TestSite(t *testing.T) {
	s := newSite(t)
	layer := ocitest.Bytes(1, 4<<20)
	dgst := ocitest.Digest(layer)
	image, manifest := s.image("team/app", layer)

	a := s.node(func(c *config.Config) { c.Zone = "hall-1" })
	b := s.node(func(c *config.Config) { c.Peers = []string{a.door("peer")} })
	file := filepath.Join(t.TempDir(), "peers")
	s.write(file, "http://x\n"+b.door("metrics")+"\n")
	c := s.node(func(c *config.Config) { c.PeersFile = file })
	a.sees(b, c)
	b.sees(a, c)
	c.sees(a, b)

	info := c.members()
	if len(info.Faults) != 1 || len(info.Ways) != 1 || info.Ways[0] != "peers-file" {
		t.Errorf("got faults %q and ways %q, want the first line of the file, and the file", info.Faults, info.Ways)
	}
	if p, _ := c.peer(a); p.Zone != "hall-1" || p.Door != a.door("peer") || p.Version != "test" || p.State != StateUp || p.Blobs != 0 {
		t.Errorf("of a node with nothing: %+v", p)
	}
	if _, err := c.locate("metrics", dgst.String()); err != nil {
		t.Errorf("what nobody has: %v", err)
	}
	if _, err := c.locate("metrics", image); !errors.Is(err, errStatus(http.StatusNotFound)) {
		t.Errorf("a tag that nobody has, asked for at the metrics door: got %v, want 404", err)
	}
	if n := s.asked.Load(); n != 0 {
		t.Errorf("the registry was asked %d times", n)
	}

	onItsWay(t, s, a, b, layer)
	located(t, s, a, b, image, manifest, dgst)

	eventually(t, "how much a node with an image of one layer holds", func() string {
		if p, _ := b.peer(a); p.Blobs != 3 {
			return fmt.Sprintf("%+v", p)
		}
		return ""
	})
	if err := a.cache.Delete(t.Context(), dgst); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what was lost", func() string {
		info, err := c.locate("metrics", dgst.String())
		if err != nil {
			return err.Error()
		}
		return heldBy(info.Content[0])
	})

	for _, d := range a.doors {
		if d.name == "peer" {
			d.server.Close()
		}
	}
	eventually(t, "that a node's door is closed", func() string {
		if p, ok := b.peer(a); !ok || p.State != StateUnreachable || p.Blobs != -1 {
			return fmt.Sprintf("%+v", p)
		}
		return ""
	})
	c.stop()
	a.sees(b)
	b.sees(a)
}

// onItsWay has a pull the layer, and b say how far it is.
func onItsWay(t *testing.T, s *site, a, b *running, layer []byte) {
	t.Helper()
	dgst := ocitest.Digest(layer)
	release := s.slow(dgst)
	pulled := make(chan error, 1)
	go func() {
		got, err := a.pull(s.host, "team/app", "blobs/"+dgst.String())
		if err == nil && !bytes.Equal(got, layer) {
			err = fmt.Errorf("%d wrong bytes", len(got))
		}
		pulled <- err
	}()
	for _, asked := range []*running{a, b} {
		eventually(t, "what is on its way", func() string {
			info, err := asked.locate("metrics", dgst.String())
			if err != nil {
				return err.Error()
			}
			c := info.Content[0]
			name := a.self().Name
			far := len(c.Receiving) == 1 && c.Receiving[0].Peer.Name == name && c.Receiving[0].Offset > 0 && c.Receiving[0].Offset < int64(len(layer))
			if !far || len(c.Holders) != 0 || asked != a && names(c.Fetching) != name+" " {
				return fmt.Sprintf("%+v, want %s receiving it from the registry", c, name)
			}
			return ""
		})
	}
	release()
	if err := <-pulled; err != nil {
		t.Fatal(err)
	}
}

// located has a pull the rest of the image, and b, which has nothing of it, say who has what.
func located(t *testing.T, s *site, a, b *running, image string, manifest, layer oci.Digest) {
	t.Helper()
	config := ocitest.Digest([]byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`))
	for _, what := range []string{"manifests/v1", "blobs/" + config.String()} {
		if _, err := a.pull(s.host, "team/app", what); err != nil {
			t.Fatal(err)
		}
	}
	asked := s.asked.Load()
	eventually(t, "the image by its tag, asked for at the metrics door", func() string {
		info, err := b.locate("metrics", image)
		switch {
		case err != nil:
			return err.Error()
		case info.Ref != image || info.Content[0].Digest != manifest || info.Content[0].Kind != "manifest":
			return fmt.Sprintf("%+v", info)
		case info.Partial == "" && len(info.Content) != 3: // without the manifest, it must say so
			return fmt.Sprintf("%+v", info)
		}
		return heldBy(info.Content[0], a)
	})
	if n := s.asked.Load(); n != asked {
		t.Errorf("the metrics door asked the registry %d times", n-asked)
	}
	eventually(t, "the image by its tag", func() string {
		info, err := b.locate("node", image)
		if err != nil || len(info.Content) != 3 || info.Partial != "" {
			return fmt.Sprintf("%+v, %v", info, err)
		}
		for i, want := range []oci.Digest{manifest, config, layer} {
			c := info.Content[i]
			if c.Digest != want {
				return fmt.Sprintf("%+v, want %s", c, want)
			}
			if i > 0 {
				if wrong := heldBy(c, a); wrong != "" {
					return wrong
				}
			}
		}
		return ""
	})
	for dgst, want := range map[oci.Digest]LocatedContent{
		layer:    {Kind: "blob", Size: 4 << 20},
		manifest: {Kind: "manifest", Size: info(a, manifest).Content[0].Size},
	} {
		if c := info(a, dgst).Content[0]; c.Kind != want.Kind || c.Size != want.Size || c.Size <= 0 {
			t.Errorf("%s alone, where it is: %+v", dgst, c)
		}
	}
	if c := info(b, layer).Content[0]; c.Kind != "" || heldBy(c, a) != "" {
		t.Errorf("a digest alone, where it is not: %+v", c)
	}
}

// info locates a digest alone.
func info(r *running, dgst oci.Digest) LocateInfo {
	r.t.Helper()
	info, err := r.locate("node", dgst.String())
	if err != nil {
		r.t.Fatal(err)
	}
	return info
}

// What is not the whole of an image is said not to be.
func TestLocatePart(t *testing.T) {
	s := newSite(t)
	n := s.node(func(*config.Config) {})
	layers := make([][]byte, maxLocated)
	for i := range layers {
		layers[i] = fmt.Append(nil, i)
	}
	image, manifest := s.image("team/many", layers...)
	many, err := n.locate("node", image)
	if err != nil || len(many.Content) != maxLocated || many.Partial != "there are more than 256 parts" {
		t.Errorf("an image of 258 parts: %d, %q, %v", len(many.Content), many.Partial, err)
	}

	eventually(t, "the manifest is kept", func() string { // its reader had it before the disk did
		if _, err := n.cache.Resolve(t.Context(), oci.Reference{Kind: oci.Manifest, Digest: manifest}); err != nil {
			return err.Error()
		}
		return ""
	})

	index := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{{MediaType: v1.MediaTypeImageManifest, Digest: ocitest.Absent, Size: 1}}}
	index.SchemaVersion = 2
	ref := oci.Reference{Registry: "docker.io", Repository: "team/index", Tag: "v1"}
	s.content.Manifest(ref, index.MediaType, index)
	name := s.host + "/team/index:v1"
	got, err := n.locate("node", name)
	if err != nil || len(got.Content) != 1 || got.Partial != "this node has none of the manifests that the index lists" {
		t.Errorf("an index with nothing of it: %+v, %v", got, err)
	}
	index.Manifests = append(index.Manifests, v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: manifest, Size: 1})
	ref.Tag = "v2"
	s.content.Manifest(ref, index.MediaType, index)
	got, err = n.locate("node", s.host+"/team/index:v2")
	if err != nil || len(got.Content) != maxLocated || got.Content[1].Digest != manifest {
		t.Errorf("an index of whose manifests one is here: %d, %q, %v", len(got.Content), got.Partial, err)
	}
}

// A digest that was shortened was taken for an image of that name, and the registry was asked for it.
func TestLocateShortDigest(t *testing.T) {
	s := newSite(t)
	n := s.node(func(c *config.Config) { c.GossipListen = "" })
	for _, arg := range []string{"sha256:12", "sha512:", "sha256:" + ocitest.Absent.Encoded()[1:]} {
		if _, err := n.locate("node", arg); !errors.Is(err, errStatus(http.StatusBadRequest)) {
			t.Errorf("%s: got %v, want 400", arg, err)
		}
	}
	if info := n.members(); len(info.Peers)+len(info.Ways) != 0 || info.Self.Name != "" {
		t.Errorf("a node that is to have no peers: %+v", info)
	}
}

// Nodes with one key are peers. One with another key hears nothing, and is let in nowhere.
func TestClusterKey(t *testing.T) {
	s := newSite(t)
	dir := t.TempDir()
	ours, other := filepath.Join(dir, "ours"), filepath.Join(dir, "other")
	s.write(ours, clusterkey.New())
	s.write(other, clusterkey.New())

	a := s.node(func(c *config.Config) { c.ClusterKeyFile = ours })
	stranger := s.node(func(c *config.Config) { c.ClusterKeyFile, c.Peers = other, []string{a.peers.group.Self().Name} })
	eventually(t, "the stranger's knock", func() string {
		if a.log.has("somebody gossips with another key") {
			return ""
		}
		return "nothing in the log"
	})
	b := s.node(func(c *config.Config) { c.ClusterKeyFile, c.Peers = ours, []string{a.peers.group.Self().Name} })
	a.sees(b)
	b.sees(a)
	stranger.sees()

	layer := ocitest.Bytes(2, 100_000)
	_, _ = s.image("team/app", layer)
	blob := "blobs/" + ocitest.Digest(layer).String()
	if _, err := a.pull(s.host, "team/app", blob); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the number of blobs, through mutual TLS, and who has one", func() string {
		if p, _ := b.peer(a); p.Blobs != 1 || p.State != StateUp {
			return fmt.Sprintf("%+v", p)
		}
		return heldBy(info(b, ocitest.Digest(layer)).Content[0], a)
	})
	asked := s.asked.Load()
	if got, err := b.pull(s.host, "team/app", blob); err != nil || !bytes.Equal(got, layer) || s.asked.Load() != asked {
		t.Errorf("from the peer: %d bytes, %v, and %d requests to the registry", len(got), err, s.asked.Load()-asked)
	}
	if _, err := a.fetch("peer", "/v2/team/app/"+blob); err == nil {
		t.Error("somebody without a key was served")
	}
}
