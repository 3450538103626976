//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// asNobody is a script that runs pier, a copy of it that everybody may read, with a user ID that has no rights. Its first argument
// is left out.
const asNobody = `shift; exec setpriv --reuid 65534 --regid 65534 --clear-groups "$0" "$@"`

// An open place is a directory that user 65534 may use, with a copy of pier.
func openPlace(t *testing.T) (dir, program string) {
	t.Helper()
	needProgram(t, "setpriv")
	dir, err := os.MkdirTemp("", "pier-e2e-open-") // t.TempDir is root's
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	program = filepath.Join(dir, "pier")
	must(t, copyFile(program, pierBinary))
	for _, path := range []string{dir, program} {
		must(t, os.Chmod(path, 0o755))
		must(t, os.Chown(path, 65534, 65534))
	}
	return dir, program
}

func TestUserWhoMayNotUseDockerIsToldWhatToDo(t *testing.T) {
	t.Parallel()
	d := startDocker(t, classic, dockerConfig{})
	must(t, os.Chmod(d.dir, 0o711))
	dir, program := openPlace(t)
	serve := []string{
		"-c", asNobody, program, "", "serve", "--data-dir", filepath.Join(dir, "data"), "--listen", freeAddr(t), "--peer-listen", freeAddr(t),
		"--metrics-listen", "none", "--gossip-listen", "none", "--proxy-listen", "none", "--store", "docker", "--docker-socket", d.socket,
	}
	for _, c := range []struct {
		name string
		mode os.FileMode // of the socket
		want []string
	}{
		{"no socket", 0o660, []string{d.socket, "run as root", "member of the group", "--store"}},
		{"no data root", 0o666, []string{d.root, "CAP_DAC_READ_SEARCH"}},
	} {
		must(t, os.Chmod(d.socket, c.mode))
		_, err := tryRun(t, []string{"HOME=" + dir, "TMPDIR=" + dir}, "sh", serve...)
		if err == nil {
			t.Fatalf("%s: pier started", c.name)
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: the error says nothing of %q: %v", c.name, want, err)
			}
		}
	}
}

// Where nobody asked for Docker, that it cannot be used keeps no node from starting.
func TestDockerThatWasFoundAndMayNotBeUsedIsSaid(t *testing.T) {
	t.Parallel()
	d := startDocker(t, classic, dockerConfig{})
	must(t, os.Chmod(d.dir, 0o711))
	for mode, want := range map[os.FileMode]string{0o660: "may not use its socket", 0o666: "CAP_DAC_READ_SEARCH"} {
		must(t, os.Chmod(d.socket, mode))
		dir, program := openPlace(t)
		p := startPier(t, pierConfig{
			store: "auto", env: []string{"HOME=" + dir, "TMPDIR=" + dir, "PIER_DATA_DIR=" + filepath.Join(dir, "data")},
			wrap: []string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs none /run && touch /run/docker.sock && mount --bind ` + d.socket + ` /run/docker.sock && ` + asNobody, program},
		})
		if log := p.log.String(); !strings.Contains(log, want) || !strings.Contains(log, "level=WARN") {
			t.Errorf("the log does not warn with %q:\n%s", want, log)
		}
		p.kill()
	}
}

// Docker's images are served while it is down, if pier knows where they are; and those that come when it is up again.
func TestPierStartsBeforeDocker(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	before, after := newImage(t, 2*mib, 1000), newImage(t, 2*mib, 1000)
	registry.put(t, "app", "before", before)
	registry.put(t, "app", "after", after)
	d, p := startBeside(t, classic, namedUpstream("registry.test", registry.addr), nil)
	d.pull(t, "registry.test/app:before")
	p.awaitLearned(t, 2)
	p.terminate(t, 20*time.Second)
	d.stop(t)

	_, err := tryRun(t, nil, pierBinary, "serve", "--data-dir", p.data, "--listen", freeAddr(t), "--peer-listen", freeAddr(t),
		"--metrics-listen", "none", "--gossip-listen", "none", "--proxy-listen", "none", "--store", "docker", "--docker-socket", d.socket)
	if err == nil || !strings.Contains(err.Error(), "--docker-root") || !strings.Contains(err.Error(), "start Docker") {
		t.Errorf("error %v, want one that says what to do", err)
	}

	again := startPier(t, pierConfig{
		store: "docker", data: p.data, proxy: true, upstreams: namedUpstream("registry.test", registry.addr),
		args: []string{"--proxy-listen", p.proxyAddr(), "--docker-socket", d.socket, "--docker-root", d.root},
	})
	door := newClient(again.peer, "registry.test")
	eventually(t, siteWait, func() error { return door.pull(t.Context(), "app", "before", before) })
	d.start(t)
	d.pull(t, "registry.test/app:after")
	eventually(t, siteWait, func() error { return door.pull(t.Context(), "app", "after", after) })
	again.awaitLearned(t, 2) // until then pier has what arrived
	d.do(t, "rmi", "registry.test/app:after")
	eventually(t, siteWait, func() error { return wantAt(door, "app/blobs/"+after.layer(0).Digest.String(), 404) })
}
