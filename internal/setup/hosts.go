package setup

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// hosts.toml is containerd's: one file for each registry, in a directory of its name. Docker has read it since version 29.
const (
	hostsFile   = "hosts.toml"
	defaultHost = "_default" // stands for registries that have no directory of their own
)

// WellKnown returns the public registries that most images come from, as images name them.
func WellKnown() []string {
	return []string{
		"docker.io", "gcr.io", "ghcr.io", "lscr.io", "mcr.microsoft.com", "nvcr.io", "public.ecr.aws", "quay.io", "registry.access.redhat.com",
		"registry.gitlab.com", "registry.k8s.io", "registry.redhat.io",
	}
}

// Server returns the host that is dialled for a registry as images name it: docker.io has another name on the network.
func Server(registry string) string {
	if registry == "docker.io" {
		return "registry-1.docker.io"
	}
	return registry
}

// portOf is the port at the end of host:port.
var portOf = regexp.MustCompile(`:[0-9]+$`)

// validHost is host, host:port or an address, or defaultHost.
var validHost = regexp.MustCompile(`^([a-z0-9_]([a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\])(:[0-9]{1,5})?$`)

// ValidHost reports whether a registry's name can be that of a directory: host[:port] in lower case.
func ValidHost(name string) bool { return len(name) < 256 && validHost.MatchString(name) }

// hostsPresent returns the step for a registry that needs none, because hosts.toml, or that for all registries, which
// somebody else wrote, mentions text already.
func (m *Machine) hostsPresent(certs, host, text string) (Step, bool) {
	dirs := []string{host}
	if m.shadows(certs, host) {
		dirs = append(dirs, defaultHost)
	}
	for _, dir := range dirs {
		full, err := m.resolve(filepath.Join(certs, dir, hostsFile))
		if err != nil {
			continue
		}
		st, err := read(full)
		if err == nil && bytes.Contains(st.Content, []byte(text)) && !bytes.HasPrefix(st.Content, []byte("# Written by pier ")) {
			return Step{Action: Keep, Done: !m.DryRun, Path: full, Detail: "it names " + text + " already"}, true
		}
	}
	return Step{}, false
}

// shadows reports whether a directory for host would take it away from one that is for all registries.
func (m *Machine) shadows(certs, host string) bool {
	return host != defaultHost && m.exists(filepath.Join(certs, defaultHost, hostsFile)) && !m.exists(filepath.Join(certs, host))
}

// hostsChanges are those for ModeHosts.
func (m *Machine) hostsChanges(d Docker) (changes []Change, steps []Step, err error) {
	registries := d.Registries
	if len(registries) == 0 {
		registries = WellKnown()
	}
	table := hostTable(d.Mirror)
	for _, host := range registries {
		dir := filepath.Join(dockerCerts, host)
		path := filepath.Join(dir, hostsFile)
		switch step, done := m.hostsPresent(dockerCerts, host, d.Mirror); {
		case done:
			steps = append(steps, step)
			continue
		case m.shadows(dockerCerts, host):
			steps = append(steps, Step{Action: Leave, Path: path, Detail: "_default/hosts.toml is for this registry too, and would not be read any more; add to it\n" + table})
			continue
		}
		text, err := m.hostsText(d, host)
		if err != nil {
			return nil, nil, err
		}
		changes = append(changes, Change{Path: path, Content: []byte(text), ByHand: "add to it, before other hosts\n" + table})
	}
	return changes, steps, nil
}

func hostTable(mirror string) string {
	return fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", mirror)
}

// hostsText is hosts.toml for a registry. Where it has one, Docker does not look at what else it was told of that registry,
// so this says it again: mirrors of Docker Hub, that a registry is insecure, and certificates.
func (m *Machine) hostsText(d Docker, host string) (string, error) {
	text, tables := "# Written by pier setup docker.\n", "\n"+hostTable(d.Mirror)
	switch {
	case host == defaultHost:
	case insecure(host, d.Daemon.Insecure): // HTTPS unverified, else HTTP: containerd's docs/hosts.md, and Docker's way
		text += fmt.Sprintf("server = \"http://%s\"\nskip_verify = true\n", host)
	default:
		text += fmt.Sprintf("server = \"https://%s\"\n", Server(host))
	}
	for _, mirror := range d.Daemon.Mirrors {
		mirror = strings.TrimSuffix(mirror, "/")
		if host == "docker.io" && mirror != strings.TrimSuffix(d.Mirror, "/") && !m.set(mirror) {
			tables += "\n" + hostTable(mirror)
		}
	}
	tls, err := m.certificates(filepath.Join(dockerCerts, host))
	return text + tls + tables, err
}

// set reports whether Pier has set a mirror in daemon.json.
func (m *Machine) set(mirror string) bool {
	before, err := m.before(dockerJournal, daemonFile)
	return err == nil && m.wrote(mirror) && !bytes.Contains(before, []byte(mirror))
}

// insecure reports whether a registry is among those that Docker need not verify.
func insecure(host string, list []string) bool {
	name := strings.TrimSuffix(host, portOf.FindString(host))
	if name == "localhost" {
		name = "127.0.0.1"
	}
	addr, err := netip.ParseAddr(strings.Trim(name, "[]"))
	return slices.ContainsFunc(list, func(entry string) bool {
		if prefix, perr := netip.ParsePrefix(entry); perr == nil && err == nil {
			return prefix.Contains(addr)
		}
		return entry == host
	})
}

// certificates returns the lines of hosts.toml for the certificates beside it. Without hosts.toml they count by their names
// alone: *.crt are authorities, *.cert and *.key what Docker shows of itself.
func (m *Machine) certificates(dir string) (string, error) {
	full, err := m.resolve(dir)
	if err != nil {
		return "", err
	}
	entries, err := os.ReadDir(full)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", hint(err)
	}
	var ca, client []string
	for _, e := range entries {
		switch name := e.Name(); {
		case name == authorityFile: // goes when it is uninstalled, and is not needed here
		case filepath.Ext(name) == ".crt":
			ca = append(ca, fmt.Sprintf("%q", name))
		case filepath.Ext(name) == ".cert":
			client = append(client, fmt.Sprintf("[%q, %q]", name, strings.TrimSuffix(name, ".cert")+".key"))
		}
	}
	text := ""
	if ca != nil {
		text += "ca = [" + strings.Join(ca, ", ") + "]\n"
	}
	if client != nil {
		text += "client = [" + strings.Join(client, ", ") + "]\n"
	}
	return text, nil
}
