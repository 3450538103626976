package peer

import (
	"os"
	"path/filepath"
	"testing"

	"pier/internal/clusterkey"
	"pier/internal/oci/ocitest"
)

// newKeys returns the keys of a cluster.
func newKeys(t *testing.T) clusterkey.Keys {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(clusterkey.New()), 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := clusterkey.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// With a key, content comes from neighbours that have it, too; those without, or with another, are of no use and no harm.
func TestClusterKey(t *testing.T) {
	ours, theirs := newKeys(t), newKeys(t)
	s := onLoopback(t, 4, func(n *node, c *Config) {
		keys := ours
		switch n.name {
		case "node-2": // plain
			return
		case "node-3":
			keys = theirs
		}
		n.door.tls, c.TLS = clusterkey.TLS(func() clusterkey.Keys { return keys })
	})
	content, only := ocitest.Bytes(80, 8*mib), ocitest.Bytes(81, mib)
	for _, n := range s.nodes[1:] {
		n.has(content)
	}
	s.nodes[2].has(only)
	s.nodes[3].has(only)
	s.up.has(only)
	s.settle()
	s.nodes[0].gets(content)
	if got := s.nodes[0].received(s.nodes[1]); got != len(content) {
		t.Errorf("the neighbour with the key gave %d bytes, want %d", got, len(content))
	}
	s.nodes[0].gets(only)
	if got := s.up.gave(blobRef(only)); got != len(only) {
		t.Errorf("the registry gave %d bytes, want %d", got, len(only))
	}
	if n := s.nodes[2].door.requests() + s.nodes[3].door.requests(); n != 0 {
		t.Errorf("neighbours without the key answered %d requests, want none", n)
	}
	// Nor does a plain node ask those with a key.
	s.nodes[1].has(ocitest.Bytes(82, 1000))
	s.settle()
	if _, err := s.nodes[2].pull(blobRef(ocitest.Bytes(82, 1000))); err == nil {
		t.Error("a node without the key got content")
	}
}
