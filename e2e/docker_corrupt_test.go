//go:build e2e

package e2e

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pier/e2e/faultproxy"
)

// pathOf matches the requests for a blob.
func pathOf(b blob) func(path string) bool {
	return func(path string) bool { return strings.HasSuffix(path, "/blobs/"+b.Digest.String()) }
}

// ranges returns the Range headers of the requests for a blob so far.
func ranges(front *faultproxy.Proxy, b blob) (list []string) {
	for _, r := range asked(front, "GET", b.Digest.String()) {
		list = append(list, r.Header.Get("Range"))
	}
	return list
}

// eachDocker runs a test for every Docker there is.
func eachDocker(t *testing.T, test func(t *testing.T, version string)) {
	for _, version := range []string{classic, modern} {
		t.Run(version, func(t *testing.T) { test(t, version) })
	}
}

// What Docker does by itself: it takes nothing that is corrupt, and goes on where it was cut off.
func TestDockerFailsOnACorruptBlobAndResumesATruncatedOne(t *testing.T) {
	t.Parallel()
	eachDocker(t, func(t *testing.T, version string) {
		registry := startRegistry(t, registryConfig{})
		front := startFront(t, registry.addr, 0)
		corrupt, truncated := newImage(t, 3*mib), newImage(t, 3*mib)
		registry.put(t, "app", "corrupt", corrupt)
		registry.put(t, "app", "truncated", truncated)
		d := startDocker(t, version, dockerConfig{})
		front.Set(
			faultproxy.Rule{Path: pathOf(corrupt.layer(0)), Fault: faultproxy.Flip(mib)},
			faultproxy.Rule{Path: pathOf(truncated.layer(0)), Times: 1, Fault: faultproxy.CutAfter(mib)},
		)
		began := time.Now()
		if _, err := d.try(t, "pull", "--quiet", front.Host()+"/app:corrupt"); err == nil {
			t.Error("a corrupt layer was taken")
		} else if took := time.Since(began); took > 20*time.Second {
			t.Errorf("it took %v to find a layer corrupt: %v", took, err)
		}
		d.pull(t, front.Host()+"/app:truncated")
		if got := ranges(front, truncated.layer(0)); len(got) != 2 || !strings.HasPrefix(got[1], "bytes=") {
			t.Errorf("the layer that was cut off was asked for with the ranges %q", got)
		}
	})
}

// startBeside starts a Docker on the machine that pulls from registry.test by the proxy of a pier beside it.
func startBeside(t *testing.T, version, upstreams string, daemon map[string]any) (*docker, *pier) {
	t.Helper()
	data, addr := t.TempDir(), freeAddr(t)
	run(t, pierBinary, "ca", "init", "--data-dir", data, "--host", "registry.test")
	d := startDocker(t, version, dockerConfig{proxy: "http://" + addr, ca: filepath.Join(data, "ca.crt"), daemon: daemon})
	p := startPier(t, pierConfig{
		store: "docker", data: data, proxy: true, upstreams: upstreams, args: []string{"--proxy-listen", addr, "--docker-socket", d.socket},
	})
	p.proxy = "http://" + addr
	return d, p
}

func TestDockerBehindPierGetsNothingCorrupt(t *testing.T) {
	t.Parallel()
	eachDocker(t, func(t *testing.T, version string) {
		registry := startRegistry(t, registryConfig{})
		front := startFront(t, registry.addr, 0)
		d, p := startBeside(t, version, namedUpstream("registry.test", front.Host()), map[string]any{"max-download-attempts": 2})
		for _, c := range []struct {
			name   string
			times  int
			fault  faultproxy.Fault
			always bool // the first pull must succeed
		}{
			{"once", 1, faultproxy.Flip(mib), false},
			{"ever", 0, faultproxy.Flip(mib), false},
			{"truncated", 1, faultproxy.CutAfter(mib), true},
		} {
			i := newImage(t, 3*mib, 1000)
			registry.put(t, "app", c.name, i)
			front.Set(faultproxy.Rule{Path: pathOf(i.layer(0)), Times: c.times, Fault: c.fault})
			_, err := d.try(t, "pull", "--quiet", "registry.test/app:"+c.name)
			switch {
			case err == nil && c.name == "ever":
				t.Errorf("%s: a corrupt layer was taken", c.name)
			case err != nil && c.always:
				t.Errorf("%s: %v", c.name, err)
			}
			if got := ranges(front, i.layer(0)); c.name == "truncated" && (len(got) != 2 || !strings.HasPrefix(got[1], "bytes=")) {
				t.Errorf("the layer that was cut off was asked for with the ranges %q", got)
			}
			front.Clear()
			eventually(t, time.Minute, func() error {
				_, err := d.try(t, "pull", "--quiet", "registry.test/app:"+c.name)
				return err
			})
			eventually(t, siteWait, func() error { return newClient(p.peer, "registry.test").pull(t.Context(), "app", c.name, i) })
		}
	})
}
