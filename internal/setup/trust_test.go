package setup

import (
	"strings"
	"testing"
)

var pemText = []byte("-----BEGIN CERTIFICATE-----\nQQ==\n-----END CERTIFICATE-----\n")

func install(t *testing.T, m *Machine, a Authority) Report {
	t.Helper()
	a.PEM = pemText
	r, err := m.InstallAuthority(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func uninstall(t *testing.T, m *Machine) Report {
	t.Helper()
	r, err := m.UninstallAuthority(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestSystemStore goes through the distributions, as their os-release names them.
func TestSystemStore(t *testing.T) {
	const debian, redHat, suse, arch = "/usr/local/share/ca-certificates/pier.crt", "/etc/pki/ca-trust/source/anchors/pier.pem", "/etc/pki/trust/anchors/pier.pem", "/etc/ca-certificates/trust-source/anchors/pier.crt"
	for _, tc := range []struct{ name, release, tool, anchor, command string }{
		{"Debian 12", "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n", "/usr/sbin/update-ca-certificates", debian, "update-ca-certificates"},
		{"Ubuntu", "ID=ubuntu\nID_LIKE=debian\n", "/usr/sbin/update-ca-certificates", debian, "update-ca-certificates"},
		{"Raspberry Pi OS", "ID=raspbian\nID_LIKE=debian\n", "/sbin/update-ca-certificates", debian, "update-ca-certificates"},
		{"Linux Mint", "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", "/usr/sbin/update-ca-certificates", debian, "update-ca-certificates"},
		{"Alpine", "NAME=\"Alpine Linux\"\nID=alpine\n", "/usr/sbin/update-ca-certificates", debian, "update-ca-certificates"},
		{"Fedora", "ID=fedora\n", "/usr/bin/update-ca-trust", redHat, "update-ca-trust extract"},
		{"RHEL 9", "ID=\"rhel\"\nID_LIKE=\"fedora\"\n", "/usr/bin/update-ca-trust", redHat, "update-ca-trust extract"},
		{"Rocky", "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", "/usr/bin/update-ca-trust", redHat, "update-ca-trust extract"},
		{"Oracle Linux", "ID=\"ol\"\nID_LIKE=\"fedora\"\n", "/usr/bin/update-ca-trust", redHat, "update-ca-trust extract"},
		{"Amazon Linux", "ID=\"amzn\"\nID_LIKE=\"fedora\"\n", "/usr/bin/update-ca-trust", redHat, "update-ca-trust extract"},
		{"openSUSE Leap", "ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\n", "/usr/sbin/update-ca-certificates", suse, "update-ca-certificates"},
		{"SLES", "ID=\"sles\"\nID_LIKE='suse'\n", "/usr/sbin/update-ca-certificates", suse, "update-ca-certificates"},
		{"Arch", "ID=arch\n", "/usr/bin/trust", arch, "trust extract-compat"},
		{"Manjaro", "ID=manjaro\nID_LIKE=arch\n", "/usr/bin/trust", arch, "trust extract-compat"},
	} {
		m := newMachine(t, "/usr/lib/os-release", tc.release, tc.tool, "")
		before := tree(t, m)
		r := install(t, m, Authority{System: true})
		wantSame(t, text(t, m, tc.anchor), string(pemText))
		if len(r.Steps) != 2 || r.Steps[1].Line != tc.command || r.Steps[1].Done {
			t.Errorf("%s: got %+v", tc.name, r)
		}
		r = uninstall(t, m)
		if len(r.Steps) != 2 || r.Steps[0].Action != Remove || !strings.HasPrefix(r.Steps[1].Line, tc.command) {
			t.Errorf("%s: got %+v", tc.name, r)
		}
		wantSame(t, tree(t, m), before)
	}

	// One that is not known by name, but like one that is.
	m := newMachine(t, "/etc/os-release", "ID=other\n", "/usr/bin/update-ca-trust", "", "/etc/pki/ca-trust/source/anchors/README", "")
	install(t, m, Authority{System: true})
	wantSame(t, text(t, m, redHat), string(pemText))

	for release, want := range map[string]string{
		"ID=debian": "update-ca-certificates is not installed: run 'apt-get install ca-certificates'",
		"ID=alpine": "update-ca-certificates is not installed: run 'apk add ca-certificates'",
		"ID=nixos":  `no trust store that pier knows (this is "nixos"): trust the certificate by hand`,
	} {
		m := newMachine(t, "/etc/os-release", release)
		if _, err := m.InstallAuthority(t.Context(), Authority{System: true, PEM: pemText}); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: got %v", release, err)
		}
	}
}

func TestDockerTrust(t *testing.T) {
	m := newMachine(t, dockerCerts+"/quay.io/ca.crt", "theirs", dockerCerts+"/a.test/hosts.toml", "theirs", "/usr/bin/trust", "", "/etc/os-release", "ID=arch")
	before := tree(t, m)
	r := install(t, m, Authority{Docker: []string{"docker.io", "quay.io", "a.test"}})
	notes := strings.Join(r.Notes, "; ")
	for _, want := range []string{"classic image store does not read certs.d for docker.io", `pier.crt of a.test only if the hosts.toml beside it says so: ca = ["pier.crt"]`, "no restart is needed"} {
		if !strings.Contains(notes, want) {
			t.Errorf("got %s, want %s", notes, want)
		}
	}
	wantSame(t, text(t, m, dockerCerts+"/quay.io/ca.crt"), "theirs")
	wantSame(t, text(t, m, dockerCerts+"/quay.io/pier.crt"), string(pemText))

	// More is added to what there is, and a new authority replaces the old one.
	installed, err := m.Installed(pemText)
	if err != nil || len(installed) != 3 || !installed[0].Current {
		t.Errorf("got %v %v", installed, err)
	}
	if _, err := m.InstallAuthority(t.Context(), Authority{PEM: []byte("newer"), Docker: []string{"quay.io"}, System: true}); err != nil {
		t.Fatal(err)
	}
	installed, err = m.Installed([]byte("newer"))
	if err != nil || len(installed) != 4 || installed[0].Current || !installed[1].Current || !installed[3].Current {
		t.Errorf("got %v %v", installed, err)
	}

	// A hosts.toml that names the certificate would be an error without it.
	put(t, m, dockerCerts+"/a.test/hosts.toml", "ca = [\"pier.crt\"]\n")
	r = uninstall(t, m)
	if r.Left() != 1 || text(t, m, dockerCerts+"/a.test/pier.crt") != string(pemText) {
		t.Errorf("got %+v", r)
	}
	put(t, m, dockerCerts+"/a.test/hosts.toml", "theirs")
	if r = uninstall(t, m); actions(r.Steps) != "remove" {
		t.Errorf("got %+v", r)
	}
	wantSame(t, tree(t, m), before)
}

func TestContainerdTrust(t *testing.T) {
	m := newMachine(
		t, containerdConfig, "[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"/etc/containerd/certs.d\"\n",
		containerdCerts+"/a.test/hosts.toml", "theirs\n",
		containerdCerts+"/b.test:5000/hosts.toml", "ca = [\"/etc/containerd/certs.d/b.test:5000/pier.crt\"]\n",
	)
	before := tree(t, m)
	r := install(t, m, Authority{Containerd: []string{"docker.io", "a.test", "b.test:5000"}})
	if actions(r.Steps) != "keep write write write leave write" || r.Left() != 1 || !strings.HasSuffix(r.Steps[4].Detail, "\nca = [\"/etc/containerd/certs.d/a.test/pier.crt\"]") || len(r.Notes) != 1 {
		t.Errorf("got %+v", r)
	}
	wantSame(t, text(t, m, containerdCerts+"/docker.io/hosts.toml"), "# Written by pier ca install.\nserver = \"https://registry-1.docker.io\"\nca = [\"/etc/containerd/certs.d/docker.io/pier.crt\"]\n\n[host]\n")
	wantSame(t, text(t, m, containerdCerts+"/docker.io/pier.crt"), string(pemText))
	m.DryRun = true
	if r = uninstall(t, m); actions(r.Steps) != "leave remove remove remove" {
		t.Errorf("got %+v", r)
	}
	m.DryRun = false
	put(t, m, containerdCerts+"/b.test:5000/hosts.toml", "theirs\n")
	if r = uninstall(t, m); actions(r.Steps) != "remove remove remove remove" {
		t.Errorf("got %+v", r)
	}
	put(t, m, containerdCerts+"/b.test:5000/hosts.toml", "ca = [\"/etc/containerd/certs.d/b.test:5000/pier.crt\"]\n")
	wantSame(t, tree(t, m), before)

	// What is for all registries is not taken away from one.
	put(t, m, containerdCerts+"/_default/hosts.toml", "theirs\n")
	if r = install(t, m, Authority{Containerd: []string{"c.test"}}); actions(r.Steps) != "leave" {
		t.Errorf("got %+v", r)
	}
	put(t, m, containerdConfig, "# config_path = \"/etc/containerd/certs.d\"\n")
	if r = install(t, m, Authority{Containerd: []string{"a.test"}}); !strings.Contains(strings.Join(r.Notes, "; "), "does not set config_path") {
		t.Errorf("got %+v", r)
	}
}
