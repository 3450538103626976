//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// blobFile is where the node's store keeps a blob.
func (n *siteNode) blobFile(b blob) string {
	if n.runtime == nil {
		return filepath.Join(n.cache, "blobs/sha256", b.Digest.Encoded())
	}
	return filepath.Join(n.runtime.root, "io.containerd.content.v1.content/blobs/sha256", b.Digest.Encoded())
}

// rot flips a bit of a blob on disk. Quietly, as disks do it, the file's time stays as it was.
func (n *siteNode) rot(t *testing.T, b blob, quietly bool) {
	t.Helper()
	file := n.blobFile(b)
	info, err := os.Stat(file)
	must(t, err)
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	must(t, err)
	at, bit := info.Size()/2, make([]byte, 1)
	_, err = f.ReadAt(bit, at)
	must(t, err)
	bit[0] ^= 1
	_, err = f.WriteAt(bit, at)
	must(t, err)
	must(t, f.Close())
	if quietly {
		must(t, os.Chtimes(file, time.Time{}, info.ModTime()))
	}
}

// A blob that is not what its name says, on one holder, never fails a pull elsewhere, and is not offered again.
func TestPeerWithARottenBlobFailsNoPull(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		served  bool // node 1 has served it before it rots
		restart bool // pier of node 1 starts after it rots
		quietly bool
		noticed bool // node 1 itself must find out. (What was proven is read again only if the file has changed.)
	}{
		{name: "before pier starts", restart: true, quietly: true, noticed: true},
		{name: "before it was served"},
		{name: "after it was served", served: true, noticed: true},
		{name: "after it was served, quietly", served: true, quietly: true},
	} {
		for _, store := range []string{"containerd1", "containerd2", "cache"} {
			t.Run(c.name+" from "+store, func(t *testing.T) {
				t.Parallel()
				s := startSite(t, siteConfig{stores: []string{store, "cache", "cache"}})
				one, two, three := s.node(1), s.node(2), s.node(3)
				want := newImage(t, 3*mib, 100<<10)
				s.registry.put(t, "app", "v1", want)
				one.pull(t, "v1", want)
				two.awaitHolder(t, one, want)
				if c.served {
					door := newClient(one.peer, "registry.test") // and no node has kept it
					door.http = two.http
					door.mustPull(t, "app", "v1", want)
				}
				if c.restart {
					one.kill()
				}
				one.rot(t, want.layer(0), c.quietly)
				if c.restart {
					one.restart(t)
					s.awaitPeers(t, two)
					two.awaitHolder(t, one, want)
				}

				two.pull(t, "v1", want)
				if c.noticed {
					eventually(t, siteWait, func() error {
						// A cache may have fetched it again already.
						if got := three.holders(t, want.layer(0)); store != "cache" && slices.Contains(got, one.name()) {
							return fmt.Errorf("node 1 is still said to have the blob: %q", got)
						}
						return nil
					})
					if one.sum(t, "pier_quarantines_total") == 0 {
						t.Error("pier_quarantines_total of node 1 is 0")
					}
				}
				three.pull(t, "v1", want)
				// Node 1's own clients get what is right, too, in the end from another node or upstream.
				eventually(t, siteWait, func() error { return one.client().pull(t.Context(), "app", "v1", want) })
			})
		}
	}
}
