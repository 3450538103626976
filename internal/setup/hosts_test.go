package setup

import (
	"strings"
	"testing"
)

func TestDockerHosts(t *testing.T) {
	m := newMachine(
		t,
		dockerCerts+"/registry.corp:5000/ca.crt", "x",
		dockerCerts+"/registry.corp:5000/client.cert", "x",
		dockerCerts+"/registry.corp:5000/client.key", "x",
		dockerCerts+"/registry.corp:5000/pier.crt", "x",
		dockerCerts+"/own.test/hosts.toml", "server = \"https://own.test\"\n",
		dockerCerts+"/knows.test/hosts.toml", "[host.\"http://127.0.0.1:5001\"]\n",
	)
	before := tree(t, m)
	d := docker(29)
	d.Registries = []string{"docker.io", "registry.corp:5000", "own.test", "knows.test", "_default"}
	r := setUp(t, m, d)
	if actions(r.Steps) != "keep write write leave write" || r.Left() != 1 || r.Mode != ModeHosts || r.Restart != "" {
		t.Errorf("got %+v", r)
	}
	table := "\n[host.\"http://127.0.0.1:5001\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
	wantSame(t, text(t, m, dockerCerts+"/docker.io/hosts.toml"), "# Written by pier setup docker.\nserver = \"https://registry-1.docker.io\"\n"+table)
	// Certificates count by their names only while there is no hosts.toml.
	wantSame(t, text(t, m, dockerCerts+"/registry.corp:5000/hosts.toml"), "# Written by pier setup docker.\nserver = \"https://registry.corp:5000\"\nca = [\"ca.crt\"]\nclient = [[\"client.cert\", \"client.key\"]]\n"+table)
	wantSame(t, text(t, m, dockerCerts+"/_default/hosts.toml"), "# Written by pier setup docker.\n"+table)

	after := tree(t, m)
	d.Registries = []string{"registry.corp:5000", "docker.io", "_default"}
	if r := setUp(t, m, d); actions(r.Steps) != "keep keep keep" {
		t.Errorf("got %+v", r)
	}
	wantSame(t, tree(t, m), after)

	// Fewer registries, and another Docker: each run stands for itself.
	d.Registries = []string{"docker.io"}
	if r := setUp(t, m, d); actions(r.Steps) != "remove remove keep" {
		t.Errorf("got %+v", r)
	}
	if r := setUp(t, m, docker(28)); actions(r.Steps) != "remove write" {
		t.Errorf("got %+v", r)
	}
	undoDocker(t, m)
	wantSame(t, tree(t, m), before)

	// The well-known ones, where nothing is said; and _default of somebody else's is not taken away from them.
	if r := setUp(t, m, docker(29)); len(r.Steps) != len(WellKnown()) || r.Left() != 0 {
		t.Errorf("got %+v", r)
	}
	undoDocker(t, m)
	put(t, m, dockerCerts+"/_default/hosts.toml", "[host.\"https://mirror.corp\"]\n")
	if r := setUp(t, m, docker(29)); r.Left() != len(WellKnown()) || !strings.Contains(r.Steps[0].Detail, "_default") {
		t.Errorf("got %+v", r)
	}
	put(t, m, dockerCerts+"/_default/hosts.toml", "[host.\"http://127.0.0.1:5001\"]\n")
	if r := setUp(t, m, docker(29)); r.Left() != 0 || r.Steps[0].Action != Keep {
		t.Errorf("got %+v", r)
	}

	d = docker(28)
	d.Mode = ModeHosts
	if r := setUp(t, m, d); !strings.Contains(strings.Join(r.Notes, "; "), "does not read hosts.toml") {
		t.Errorf("got %+v", r)
	}
}

// Where there is a hosts.toml, Docker forgets what else it was told of a registry.
func TestDockerHostsSayItAgain(t *testing.T) {
	m := newMachine(t, daemonFile, `{"registry-mirrors": ["https://mirror.corp/"], "insecure-registries": ["registry.corp:5000", "10.0.0.0/8", "127.0.0.0/8", "::1/128"]}`)
	before := tree(t, m)
	mirror := docker(29)
	mirror.Mode = ModeMirror
	setUp(t, m, mirror) // that one goes
	d := docker(29)
	var err error
	if d.Daemon, err = m.AssumeDaemon("29.0.0"); err != nil {
		t.Fatal(err)
	}
	d.Daemon.Mirrors = append(d.Daemon.Mirrors, ourMirror+"/")
	d.Registries = []string{"docker.io", "registry.corp:5000", "registry.corp", "10.1.2.3:80", "[::1]:5000", "localhost:5000", "11.0.0.1"}
	setUp(t, m, d)
	table := "\n[host.\"http://127.0.0.1:5001\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
	for host, server := range map[string]string{
		"registry.corp:5000": "server = \"http://registry.corp:5000\"\nskip_verify = true\n",
		"registry.corp":      "server = \"https://registry.corp\"\n",
		"10.1.2.3:80":        "server = \"http://10.1.2.3:80\"\nskip_verify = true\n",
		"[::1]:5000":         "server = \"http://[::1]:5000\"\nskip_verify = true\n",
		"localhost:5000":     "server = \"http://localhost:5000\"\nskip_verify = true\n",
		"11.0.0.1":           "server = \"https://11.0.0.1\"\n",
	} {
		wantSame(t, text(t, m, dockerCerts+"/"+host+"/hosts.toml"), "# Written by pier setup docker.\n"+server+table)
	}
	wantSame(t, text(t, m, dockerCerts+"/docker.io/hosts.toml"), "# Written by pier setup docker.\nserver = \"https://registry-1.docker.io\"\n"+table+"\n[host.\"https://mirror.corp\"]\n  capabilities = [\"pull\", \"resolve\"]\n")
	undoDocker(t, m)
	wantSame(t, tree(t, m), before)
}

func TestValidHost(t *testing.T) {
	for name, want := range map[string]bool{
		"docker.io": true, "registry.corp:5000": true, "localhost": true, "10.0.0.1:5000": true, "[2001:db8::1]:5000": true, "_default": true, "a": true,
		"": false, ".": false, "..": false, "../x": false, "a/b": false, "Docker.io": false, "a:": false, "a:b": false, "a b": false, "a\"b": false, "-a": false, "a.": false,
	} {
		if got := ValidHost(name); got != want {
			t.Errorf("%q: got %v", name, got)
		}
	}
}
