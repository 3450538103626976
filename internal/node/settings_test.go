package node

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"pier/internal/config"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// What the configuration says of sharing reaches what shares.
func TestSharingSettings(t *testing.T) {
	s := newSite(t)
	small, large := ocitest.Bytes(1, 300_000), ocitest.Bytes(2, 16<<20)
	s.image("team/app", small, large)
	path := func(b []byte) string { return "blobs/" + ocitest.Digest(b).String() }
	pull := func(n *running, b []byte) time.Duration {
		t.Helper()
		begun := time.Now()
		if got, err := n.pull(s.host, "team/app", path(b)); err != nil || len(got) != len(b) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		dur := time.Since(begun)
		eventually(t, "what was pulled is kept", func() string {
			if _, err := n.cache.Resolve(t.Context(), oci.Reference{Kind: oci.Blob, Digest: ocitest.Digest(b)}); err != nil {
				return err.Error()
			}
			return ""
		})
		return dur
	}
	const atLeast = 150 * time.Millisecond // for 300 kB at 1 MB/s, of which the first 100 are free

	t.Run("upstream-rate", func(t *testing.T) {
		n := s.node(func(c *config.Config) { c.UpstreamRate = 1e6 })
		if dur := pull(n, small); dur < atLeast {
			t.Errorf("fetched in %s", dur)
		}
	})
	t.Run("peer-rate", func(t *testing.T) {
		n := s.node(func(c *config.Config) { c.PeerRate = 1e6 })
		pull(n, small)
		begun := time.Now()
		if _, err := n.fetch("peer", "/v2/team/app/"+path(small)); err != nil || time.Since(begun) < atLeast {
			t.Errorf("served in %s, %v", time.Since(begun), err)
		}
	})
	t.Run("peer-slots", func(t *testing.T) {
		n := s.node(func(c *config.Config) { c.PeerSlots = 1 })
		pull(n, large)
		resp, err := client.Get("http://" + n.door("peer") + "/v2/team/app/" + path(large)) // it stalls, since it is not read
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := n.fetch("peer", "/v2/team/app/"+path(large)); !errors.Is(err, errStatus(http.StatusServiceUnavailable)) {
			t.Errorf("the second request at once: got %v, want 503", err)
		}
	})
	t.Run("fetchers", func(t *testing.T) {
		n := s.node(func(c *config.Config) { c.Fetchers = 4 })
		asked := s.asked.Load()
		pull(n, large)
		if asked = s.asked.Load() - asked; asked < 16<<20/(512<<10) {
			t.Errorf("the registry was asked %d times for 16 MiB in parts of 512 KiB", asked)
		}
	})
	t.Run("advertise-addr", func(t *testing.T) {
		n := s.node(func(c *config.Config) { c.AdvertiseAddr = "127.0.0.2" })
		eventually(t, "the name", func() string {
			if name := n.members().Self.Name; !strings.HasPrefix(name, "127.0.0.2:") {
				return fmt.Sprintf("%q", name)
			}
			return ""
		})
	})
	t.Run("cluster", func(t *testing.T) {
		a := s.node(func(c *config.Config) { c.Cluster = "hall-1" })
		b := s.node(func(c *config.Config) { c.Cluster, c.Peers = "hall-2", []string{a.door("peer")} })
		eventually(t, "the knock of another cluster", func() string {
			if a.log.has("somebody gossips with another key or cluster name") {
				return ""
			}
			return "nothing in the log"
		})
		a.sees()
		b.sees()
	})
}
