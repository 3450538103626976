//go:build e2e

package e2e

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// An image out of a bucket gets into containerd by itself, and by a pull from the store, the registry gone.
func TestSnapshotToContainerd(t *testing.T) {
	eachContainerd(t, func(t *testing.T, c *containerd) {
		registry := startReferrersRegistry(t)
		index := newIndex(t, 2<<20, amd64, arm64)
		pushImage(t, "http://"+registry, "team/app", "v1", index)
		s3 := startStore(t, "s3")
		m := newMover(t, s3)
		writeFile(t, filepath.Join(m.home, "upstreams.yaml"), plainUpstream(registry))
		id := m.must(t, "push", "--store", s3.url, "--upstreams", filepath.Join(m.home, "upstreams.yaml"), registry+"/team/app:v1")

		m.must(t, "load", "--store", s3.url, "--id", id, "--containerd="+c.socket, "--as", "registry.test/loaded/app:v1")
		if listed := c.do(t, "images", "list", "name==registry.test/loaded/app:v1"); !strings.Contains(listed, index.root().Digest.String()) {
			t.Errorf("containerd has %s", listed)
		}
		c.do(t, "images", "export", "--all-platforms", filepath.Join(t.TempDir(), "image.tar"), "registry.test/loaded/app:v1") // all is there

		addr := freeAddr(t)
		serve := startProcess(t, "pier snapshot serve", m.command("serve", "--store", s3.url, "--listen", addr))
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			conn, err := net.Dial("tcp", addr)
			if err == nil {
				conn.Close()
				break
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
		c.pull(t, hostsDir(t, registry, "http://"+addr), registry+"/team/app:v1")
		if listed := c.do(t, "images", "list", "name=="+registry+"/team/app:v1"); !strings.Contains(listed, index.root().Digest.String()) {
			t.Errorf("pulled: containerd has %s", listed)
		}
		serve.terminate(t, 10*time.Second)
	})
}
