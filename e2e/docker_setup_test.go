//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// command runs pier beside Docker, where what it changes in /etc is what Docker sees, and returns what it printed.
func (d *docker) command(t *testing.T, p *pier, args ...string) string {
	t.Helper()
	line := d.inside(pierBinary, args...)
	out, err := tryRun(t, []string{"DOCKER_HOST=unix://" + d.socket, "PIER_DATA_DIR=" + p.data, "HOME=" + p.dir}, line[0], line[1:]...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// files returns what is below /etc/docker, by name.
func (d *docker) files(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	must(t, filepath.WalkDir(d.etc, func(file string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		text := entry.Type().String()
		if entry.Type().IsRegular() {
			content, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			text = string(content)
		}
		found[strings.TrimPrefix(file, d.etc)] = text
		return nil
	}))
	return found
}

// wantUndone fails the test unless all is as it was.
func (d *docker) wantUndone(t *testing.T, before map[string]string) {
	t.Helper()
	if after := d.files(t); !reflect.DeepEqual(after, before) {
		t.Errorf("after --undo /etc/docker holds %q, want %q", after, before)
	}
}

// Each way to set Docker up, for real: what is changed, that Docker pulls by it, and that undoing it leaves no trace.
func TestSetupDockerChangesWhatDockerReadsAndUndoesIt(t *testing.T) {
	t.Parallel()
	registry := startRegistry(t, registryConfig{})
	proxy, data := freeAddr(t), t.TempDir()
	run(t, pierBinary, "ca", "init", "--data-dir", data, "--host", "registry.test")
	d := startDocker(t, modern, dockerConfig{daemon: map[string]any{"labels": []string{"e2e=1"}}})
	p := startPier(t, pierConfig{
		store: "docker", data: data, proxy: true,
		// Docker Hub is not to be had here: the registry stands in for it.
		upstreams: namedUpstream("registry.test", registry.addr) + strings.Replace(namedUpstream("docker.io", registry.addr), plainUpstream(registry.addr), "", 1),
		args:      []string{"--proxy-listen", proxy, "--docker-socket", d.socket},
	})
	before := d.files(t)
	pull := func(tag, reference string) {
		t.Helper()
		repository, _, _ := strings.Cut(strings.TrimPrefix(reference, "registry.test/"), ":")
		if !strings.HasPrefix(reference, "registry.test/") {
			repository = "library/" + repository
		}
		registry.put(t, repository, tag, newImage(t, 100<<10))
		d.pull(t, reference)
	}

	// hosts.toml is what Docker 29 is given unless somebody says otherwise, and counts at once.
	out := d.command(t, p, "setup", "docker", "--registry", "registry.test", "--mirror", p.node)
	if !strings.Contains(out, "/etc/docker/certs.d/registry.test/hosts.toml") || strings.Contains(out, "has to be restarted") {
		t.Errorf("setup docker printed %s", out)
	}
	pull("hosts", "registry.test/hosts:hosts")
	if again := d.command(t, p, "setup", "docker", "--registry", "registry.test", "--mirror", p.node); strings.Contains(again, "wrote") {
		t.Errorf("setup docker changed something again: %s", again)
	}
	d.command(t, p, "setup", "docker", "--undo")
	d.wantUndone(t, before)

	// The proxy, which Docker has to trust: for this registry, by what it reads at each pull.
	out = d.command(t, p, "setup", "docker", "--mode", "proxy", "--proxy", "http://"+proxy)
	if !strings.Contains(out, "has to be restarted") || !strings.Contains(out, "pier ca install") {
		t.Errorf("setup docker --mode proxy printed %s", out)
	}
	var daemon struct {
		Labels  []string
		Proxies map[string]string
	}
	must(t, json.Unmarshal([]byte(d.files(t)["/daemon.json"]), &daemon))
	if !slices.Equal(daemon.Labels, []string{"e2e=1"}) || daemon.Proxies["https-proxy"] != "http://"+proxy {
		t.Errorf("daemon.json has %+v", daemon)
	}
	if out := d.command(t, p, "ca", "install", "--docker", "registry.test"); !strings.Contains(out, "/etc/docker/certs.d/registry.test/pier.crt") {
		t.Errorf("ca install printed %s", out)
	}
	d.restart(t)
	pull("proxy", "registry.test/proxy:proxy")
	if out := d.command(t, p, "setup", "docker", "--mode", "proxy", "--proxy", "http://"+proxy); strings.Contains(out, "has to be restarted") {
		t.Errorf("Docker has the proxy, and is to be restarted all the same: %s", out)
	}
	d.command(t, p, "setup", "docker", "--undo")
	d.command(t, p, "ca", "uninstall")
	d.wantUndone(t, before)

	// registry-mirrors, for Docker Hub only.
	d.command(t, p, "setup", "docker", "--mode", "mirror", "--mirror", p.node)
	d.restart(t)
	pull("v1", "mirrored:v1")
	d.command(t, p, "setup", "docker", "--undo")
	d.wantUndone(t, before)
}

// The trust store of the whole system, with the classic Docker, which looks nowhere else for Docker Hub.
func TestCAInstalledInTheSystemIsTrustedByDockerAndGoneAfterwards(t *testing.T) {
	t.Parallel()
	needProgram(t, "update-ca-certificates")
	registry := startRegistry(t, registryConfig{})
	proxy, data := freeAddr(t), t.TempDir()
	run(t, pierBinary, "ca", "init", "--data-dir", data, "--host", "registry.test")
	d := startDocker(t, classic, dockerConfig{proxy: "http://" + proxy})
	p := startPier(t, pierConfig{
		store: "docker", data: data, proxy: true, upstreams: namedUpstream("registry.test", registry.addr),
		args: []string{"--proxy-listen", proxy, "--docker-socket", d.socket},
	})
	want := newImage(t, 100<<10)
	registry.put(t, "app", "v1", want)
	if _, err := d.try(t, "pull", "--quiet", "registry.test/app:v1"); err == nil || !strings.Contains(err.Error(), "x509") {
		t.Errorf("a pull through an authority that is not trusted: error %v, want one of x509", err)
	}
	eventually(t, soon, func() error { return wantLogged(p, "does not trust") })
	fresh := d.inside("update-ca-certificates") // without what the machine has for itself, which Docker's mounts hide
	run(t, fresh[0], fresh[1:]...)
	bundle := d.inside("sha256sum", "/etc/ssl/certs/ca-certificates.crt")
	before := run(t, bundle[0], bundle[1:]...)
	// The tool's hooks are other packages' and change what is beyond /etc; in Docker's mounts there are none.
	d.command(t, p, "ca", "install")
	d.restart(t)
	d.pull(t, "registry.test/app:v1")
	bundle = d.inside("sha256sum", "/etc/ssl/certs/ca-certificates.crt")
	d.command(t, p, "ca", "uninstall")
	if after := run(t, bundle[0], bundle[1:]...); after != before {
		t.Error("the system's trust store is not what it was after ca uninstall")
	}
}

// wantLogged returns an error unless pier's log says something.
func wantLogged(p *pier, text string) error {
	if !strings.Contains(p.log.String(), text) {
		return fmt.Errorf("the log says nothing of %q", text)
	}
	return nil
}
