package setup

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

const (
	containerdCerts  = "/etc/containerd/certs.d"
	containerdConfig = "/etc/containerd/config.toml"
	authorityJournal = "ca"
	authorityFile    = "pier.crt"
)

// An Authority says where a certificate is to be trusted.
type Authority struct {
	PEM        []byte   // the certificate
	System     bool     // by all programs of the machine that use its store
	Docker     []string // by Docker, for these registries
	Containerd []string // by containerd, for these registries
}

// InstallAuthority makes programs trust a certificate, beside those that they were told to trust before.
func (m *Machine) InstallAuthority(ctx context.Context, a Authority) (Report, error) {
	var (
		r       Report
		changes []Change
	)
	if a.System {
		s, err := m.store()
		if err != nil {
			return r, err
		}
		changes = append(changes, Change{Path: s.anchor, Content: a.PEM, After: s.command, Undone: s.undone})
		r.Notes = append(r.Notes, "programs read the system's store when they start: restart those that are to trust it, dockerd and containerd too")
	}
	for _, host := range a.Docker {
		changes = append(changes, Change{Path: filepath.Join(dockerCerts, host, authorityFile), Content: a.PEM})
		if host == "docker.io" {
			r.Notes = append(r.Notes, "Docker with its classic image store does not read certs.d for docker.io: that needs the system's store (--system) and a restart")
		}
		if m.exists(filepath.Join(dockerCerts, host, hostsFile)) {
			r.Notes = append(r.Notes, fmt.Sprintf("Docker reads %s of %s only if the hosts.toml beside it says so: ca = [%[1]q]", authorityFile, host))
		}
	}
	if len(a.Docker) > 0 {
		r.Notes = append(r.Notes, "Docker reads certs.d at each pull: no restart is needed")
	}
	for _, host := range a.Containerd {
		c, steps := m.containerdChanges(host, a.PEM)
		changes, r.Steps = append(changes, c...), append(r.Steps, steps...)
	}
	if len(a.Containerd) > 0 {
		r.Notes = append(r.Notes, "containerd reads certs.d at each pull: no restart is needed")
		if !m.configPath() {
			r.Notes = append(r.Notes, fmt.Sprintf("%s does not set config_path = %q: until it does, and containerd is restarted, Kubernetes' pulls do not look there", containerdConfig, containerdCerts))
		}
	}
	steps, err := m.Apply(ctx, authorityJournal, changes, false)
	r.Steps = append(r.Steps, steps...)
	return r, err
}

// UninstallAuthority restores what InstallAuthority changed.
func (m *Machine) UninstallAuthority(ctx context.Context) (Report, error) {
	var r Report
	var err error
	r.Steps, err = m.Undo(ctx, authorityJournal)
	if len(r.Steps) > 0 {
		r.Notes = append(r.Notes, "programs that run go on trusting it until they are restarted")
	}
	return r, err
}

// containerdChanges makes containerd trust a certificate for one registry. The empty [host] table is for containerd before
// 2.0, which ignores a hosts.toml without one.
func (m *Machine) containerdChanges(host string, pem []byte) ([]Change, []Step) {
	dir := filepath.Join(containerdCerts, host)
	cert, hosts := filepath.Join(dir, authorityFile), filepath.Join(dir, hostsFile)
	line := fmt.Sprintf("ca = [%q]", cert)
	if m.shadows(containerdCerts, host) {
		detail := fmt.Sprintf("_default/hosts.toml is for this registry too, and would not be read any more; write one for %s that says what that does, add at its top\n%s\nand run this again", host, line)
		return nil, []Step{{Action: Leave, Path: hosts, Detail: detail}}
	}
	changes := []Change{{Path: cert, Content: pem}}
	if step, done := m.hostsPresent(containerdCerts, host, cert); done {
		return changes, []Step{step}
	}
	text := "# Written by pier ca install.\n"
	if host != defaultHost {
		text += fmt.Sprintf("server = \"https://%s\"\n", Server(host))
	}
	return append(changes, Change{
		Path: hosts, Content: []byte(text + line + "\n\n[host]\n"),
		ByHand: "add at its top, and below each [host.…] that is reached through the proxy\n" + line,
	}), nil
}

// configPath reports whether containerd's configuration names the directory that is written to.
func (m *Machine) configPath() bool {
	full, err := m.resolve(containerdConfig)
	if err != nil {
		return false
	}
	st, err := read(full)
	return err == nil && slices.ContainsFunc(bytes.Split(st.Content, []byte("\n")), func(line []byte) bool {
		line = bytes.TrimSpace(line)
		return bytes.HasPrefix(line, []byte("config_path")) && bytes.Contains(line, []byte(containerdCerts))
	})
}

// An Installed is a place where a certificate of this node was installed.
type Installed struct {
	Path    string `json:"path"`
	Current bool   `json:"current"` // it is the one asked about, not an older one or somebody else's
}

// Installed returns where certificates were installed, and whether they are this one.
func (m *Machine) Installed(pem []byte) ([]Installed, error) {
	look := *m
	look.DryRun = true
	j, err := look.open(authorityJournal)
	if err != nil {
		return nil, err
	}
	var list []Installed
	for _, r := range j.Files {
		full, err := m.resolve(r.Path)
		if err != nil {
			return nil, err
		}
		if filepath.Base(full) == hostsFile {
			continue
		}
		st, err := read(full)
		if err != nil {
			return nil, hint(err)
		}
		list = append(list, Installed{full, bytes.Equal(st.Content, pem)})
	}
	return list, nil
}

// A trustStore is where a distribution keeps authorities that its owner adds.
type trustStore struct {
	like    []string // ID or ID_LIKE of /etc/os-release
	anchor  string
	command []string // makes bundles of what is there
	undone  []string // the same after something went, if that is another command
	install string   // how to get the command
}

// trustStores are those known, from the manual pages update-ca-certificates(8), update-ca-trust(8) and trust(1). Debian's
// tool leaves dangling links behind unless told to begin afresh.
func trustStores() []trustStore {
	return []trustStore{
		{[]string{"alpine"}, "/usr/local/share/ca-certificates/" + authorityFile, []string{"update-ca-certificates"}, nil, "apk add ca-certificates"},
		{[]string{"debian", "ubuntu"}, "/usr/local/share/ca-certificates/" + authorityFile, []string{"update-ca-certificates"}, []string{"update-ca-certificates", "--fresh"}, "apt-get install ca-certificates"},
		{[]string{"fedora", "rhel", "centos", "amzn"}, "/etc/pki/ca-trust/source/anchors/pier.pem", []string{"update-ca-trust", "extract"}, nil, "dnf install ca-certificates"},
		{[]string{"suse", "opensuse", "sles"}, "/etc/pki/trust/anchors/pier.pem", []string{"update-ca-certificates"}, nil, "zypper install ca-certificates"},
		{[]string{"arch"}, "/etc/ca-certificates/trust-source/anchors/" + authorityFile, []string{"trust", "extract-compat"}, nil, "pacman -S ca-certificates-utils"},
	}
}

// store returns the machine's: by the name of its distribution, else by the directory and the tool that are there.
func (m *Machine) store() (trustStore, error) {
	ids := m.distribution()
	stores := trustStores()
	for _, id := range ids {
		for _, s := range stores {
			if !slices.Contains(s.like, id) {
				continue
			}
			if !m.tool(s.command[0]) {
				return s, fmt.Errorf("%s is not installed: run '%s'", s.command[0], s.install)
			}
			return s, nil
		}
	}
	for _, s := range stores {
		if m.exists(filepath.Dir(s.anchor)) && m.tool(s.command[0]) {
			return s, nil
		}
	}
	return trustStore{}, fmt.Errorf("no trust store that pier knows (this is %q): trust the certificate by hand ('pier ca show --pem'), name the file in SSL_CERT_FILE of the program, or use --docker or --containerd", strings.Join(ids, " "))
}

// distribution returns ID and ID_LIKE of os-release(5), in that order.
func (m *Machine) distribution() []string {
	for _, path := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		full, err := m.resolve(path)
		if err != nil {
			continue
		}
		st, err := read(full)
		if err != nil || st.Absent {
			continue
		}
		fields := make(map[string]string)
		for line := range strings.Lines(string(st.Content)) {
			if name, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
				fields[name] = strings.Trim(v, `"'`)
			}
		}
		return strings.Fields(fields["ID"] + " " + fields["ID_LIKE"])
	}
	return nil
}
