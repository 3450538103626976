package setup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Where Docker keeps its configuration.
const (
	daemonFile    = "/etc/docker/daemon.json"
	dockerCerts   = "/etc/docker/certs.d"
	dropInDir     = "/etc/systemd/system/docker.service.d"
	dropInFile    = dropInDir + "/pier-proxy.conf"
	dockerJournal = "docker"
)

// A Mode is a way in which Docker comes to ask the node.
type Mode string

// Modes.
const (
	ModeAuto   Mode = "auto"   // what the daemon understands: hosts from version 29 on with containerd's store, else proxy
	ModeProxy  Mode = "proxy"  // all of the daemon's traffic goes through the node's forward proxy
	ModeMirror Mode = "mirror" // registry-mirrors: images of Docker Hub only
	ModeHosts  Mode = "hosts"  // certs.d/HOST/hosts.toml: the node is asked first for the registries named
)

// A Docker says how Docker is to be set up.
type Docker struct {
	Mode       Mode     // "" is ModeAuto
	Proxy      string   // URL of the node's forward proxy
	Mirror     string   // URL of the node door
	Registries []string // whose images ModeHosts is for, as images name them; empty: WellKnown
	Daemon     Daemon
}

// A Report is what was done.
type Report struct {
	Mode    Mode       `json:"mode,omitempty"`
	Steps   []Step     `json:"steps"`
	Notes   []string   `json:"notes,omitempty"`   // what else there is to know
	Restart string     `json:"restart,omitempty"` // why the daemon has to be restarted; "" if it need not be
	Command [][]string `json:"command,omitempty"` // commands that restart it; nil if none is known
}

// Left reports how many files were left alone that were meant to be changed.
func (r Report) Left() int {
	n := 0
	for _, s := range r.Steps {
		if s.Action == Leave {
			n++
		}
	}
	return n
}

// SetUpDocker changes Docker's configuration, and undoes what an earlier run changed in another way. It restarts nothing.
func (m *Machine) SetUpDocker(ctx context.Context, d Docker) (Report, error) {
	r := Report{Mode: d.mode()}
	var (
		changes []Change
		err     error
	)
	switch r.Mode {
	case ModeHosts:
		changes, r.Steps, err = m.hostsChanges(d)
	case ModeMirror:
		raw, _ := json.Marshal(d.Mirror)
		changes = []Change{{Path: daemonFile, Keys: []Key{{Path: []string{"registry-mirrors"}, Value: raw, Element: true}}}}
		err = m.conflict("registry-mirror")
	default:
		changes, err = m.proxyChanges(d)
	}
	if err != nil {
		return r, err
	}
	steps, err := m.Apply(ctx, dockerJournal, changes, true)
	r.Steps = append(r.Steps, steps...)
	if err != nil {
		return r, err
	}
	switch {
	case d.Daemon.Running:
		m.needRestart(&r, !d.inUse(r.Mode))
	case r.Mode != ModeHosts:
		r.Notes = append(r.Notes, "it counts from Docker's next start on")
	}
	if private := d.private(); r.Mode == ModeProxy && len(private) > 0 {
		r.Notes = append(r.Notes, "Docker was told of registries that may be private: "+strings.Join(private, ", ")+": list them in the file that 'pier serve --upstreams' reads, or the node refuses to ask them; or add them to no-proxy, and Docker asks them itself")
	}
	if r.Mode == ModeProxy && !m.exists(m.journal(authorityJournal)) {
		r.Notes = append(r.Notes, "nothing was told yet to trust this node's certificate authority: run 'pier ca install', and restart Docker after that")
	}
	if known := d.Daemon.Major > 0; r.Mode == ModeHosts && known && (d.Daemon.Major < 29 || !d.Daemon.Containerd) {
		r.Notes = append(r.Notes, "this Docker does not read hosts.toml: 29 and later do, with containerd's image store")
	}
	return r, nil
}

// UndoDocker restores what SetUpDocker changed.
func (m *Machine) UndoDocker(ctx context.Context) (Report, error) {
	var r Report
	var err error
	r.Steps, err = m.Undo(ctx, dockerJournal)
	m.needRestart(&r, false)
	return r, err
}

func (d Docker) mode() Mode {
	switch {
	case d.Mode != ModeAuto && d.Mode != "":
		return d.Mode
	case d.Daemon.Major >= 29 && d.Daemon.Containerd:
		return ModeHosts
	}
	return ModeProxy
}

// inUse reports whether the running daemon does already what it is to do.
func (d Docker) inUse(mode Mode) bool {
	switch mode {
	case ModeHosts:
		return true // read at each pull
	case ModeMirror:
		return slices.ContainsFunc(d.Daemon.Mirrors, func(m string) bool { return strings.TrimSuffix(m, "/") == strings.TrimSuffix(d.Mirror, "/") })
	}
	return d.Daemon.HTTPProxy == d.Proxy && d.Daemon.HTTPSProxy == d.Proxy
}

// needRestart says why Docker has to be restarted, and how. stale is whether it has to be even if no file changed.
func (m *Machine) needRestart(r *Report, stale bool) {
	var names []string
	for _, s := range r.Steps {
		base := filepath.Base(s.Path)
		changed := s.Action == Write || s.Action == Restore || s.Action == Remove
		if (base == filepath.Base(daemonFile) || base == filepath.Base(dropInFile)) && (changed || stale) {
			names = append(names, base)
		}
	}
	if names == nil {
		return
	}
	r.Restart = "it reads " + strings.Join(names, " and ") + " only when it starts"
	switch {
	case m.systemd() && slices.Contains(names, filepath.Base(dropInFile)):
		r.Command = [][]string{{"systemctl", "daemon-reload"}, {"systemctl", "restart", "docker"}}
	case m.systemd():
		r.Command = [][]string{{"systemctl", "restart", "docker"}}
	case m.tool("service"):
		r.Command = [][]string{{"service", "docker", "restart"}}
	}
}

// systemd reports whether services of the machine are systemd's.
func (m *Machine) systemd() bool {
	if !m.below() {
		return m.exists("/run/systemd/system") // sd_booted(3)
	}
	return m.exists("/usr/lib/systemd/systemd") || m.exists("/lib/systemd/systemd")
}

// tool reports whether a program is on the machine.
func (m *Machine) tool(name string) bool {
	return slices.ContainsFunc([]string{"/usr/sbin/", "/usr/bin/", "/sbin/", "/bin/", "/usr/local/sbin/", "/usr/local/bin/"},
		func(dir string) bool { return m.exists(dir + name) })
}

// proxyChanges are those for ModeProxy.
func (m *Machine) proxyChanges(d Docker) ([]Change, error) {
	content, err := m.before(dockerJournal, daemonFile)
	if err != nil && d.Daemon.Major >= 23 {
		var merge *mergeError
		if errors.As(err, &merge) {
			merge.keys = d.proxyKeys(nil)
		}
		return nil, err
	}
	if err := m.foreignProxy(d, content); err != nil && !m.Force {
		return nil, err
	}
	if d.Daemon.Major >= 23 {
		return []Change{{Path: daemonFile, Keys: d.proxyKeys(content)}}, m.conflict("http-proxy|https-proxy|no-proxy")
	}
	lines := []string{"HTTP_PROXY=" + d.Proxy, "HTTPS_PROXY=" + d.Proxy, "NO_PROXY=" + d.noProxy()}
	if !m.systemd() {
		return nil, fmt.Errorf("docker %s takes its proxy from its environment, and this machine has no systemd: add to /etc/default/docker, or wherever dockerd is started,\nexport %s",
			d.Daemon.Version, strings.Join(lines, "\nexport "))
	}
	text := "# Written by pier setup docker.\n[Service]\n"
	for _, l := range lines {
		text += `Environment="` + strings.ReplaceAll(l, "%", "%%") + "\"\n" // systemd.unit(5): specifiers
	}
	return []Change{{Path: dropInFile, Content: []byte(text)}}, nil
}

// proxyKeys are the settings of ModeProxy. A no-proxy that content has stays.
func (d Docker) proxyKeys(content []byte) []Key {
	key := func(name, v string) Key {
		raw, _ := json.Marshal(v)
		return Key{Path: []string{"proxies", name}, Value: raw}
	}
	keys := []Key{key("http-proxy", d.Proxy), key("https-proxy", d.Proxy)}
	if _, ok := get(content, []string{"proxies", "no-proxy"}); !ok {
		keys = append(keys, key("no-proxy", d.noProxy()))
	}
	return keys
}

// private returns the registries that Docker was told of by address, and its mirrors.
func (d Docker) private() (list []string) {
	for _, name := range slices.Concat(d.Daemon.Insecure, d.Daemon.Mirrors) {
		if !strings.HasPrefix(name, "127.") && name != "::1/128" { // Docker's own defaults
			list = append(list, name)
		}
	}
	return list
}

// noProxy is what the daemon uses now, for instance from its environment, else this machine itself.
func (d Docker) noProxy() string {
	if d.Daemon.NoProxy != "" {
		return d.Daemon.NoProxy
	}
	return "localhost,127.0.0.0/8,::1"
}

// foreignProxy returns an error if Docker was told to use a proxy that is not the node. content is daemon.json without
// what Pier set there.
func (m *Machine) foreignProxy(d Docker, content []byte) error {
	refuse := func(proxy, where string) error {
		return fmt.Errorf("docker uses another proxy, %s (%s): it would not be asked any more; replace it with --force, and if this machine needs it, give it to pier serve: HTTPS_PROXY=%[1]s", redacted(proxy), where)
	}
	for _, name := range []string{"http-proxy", "https-proxy"} {
		var proxy string
		if raw, ok := get(content, []string{"proxies", name}); ok && json.Unmarshal(raw, &proxy) == nil && proxy != "" && proxy != d.Proxy {
			return refuse(proxy, daemonFile)
		}
	}
	if proxy, path := m.started(`\bHTTPS?_PROXY=["']?([^\s"']+)`, d.Proxy); path != "" {
		return refuse(proxy, path)
	}
	for _, proxy := range []string{d.Daemon.HTTPProxy, d.Daemon.HTTPSProxy} {
		if proxy != "" && proxy != d.Proxy && !m.wrote(proxy) {
			return refuse(proxy, "docker info")
		}
	}
	return nil
}

// redacted returns a proxy's address without user and password, also if it is none that net/url understands.
func redacted(proxy string) string {
	at := strings.LastIndexByte(proxy, '@')
	if at < 0 {
		return proxy
	}
	scheme := ""
	if i := strings.Index(proxy[:at], "://"); i >= 0 {
		scheme = proxy[:i+len("://")]
	}
	return scheme + "USER:PASSWORD" + proxy[at:]
}

// started looks into the files that say how dockerd is started for a setting. It returns the value, and the file, of the first
// that is another than this one; "" if there is none.
func (m *Machine) started(pattern, but string) (value, path string) {
	files := []string{
		"/etc/default/docker", "/etc/sysconfig/docker", "/etc/conf.d/docker",
		"/etc/systemd/system/docker.service", "/usr/lib/systemd/system/docker.service", "/lib/systemd/system/docker.service",
	}
	if dir, err := m.resolve(dropInDir); err == nil {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if filepath.Ext(e.Name()) == ".conf" && e.Name() != filepath.Base(dropInFile) {
				files = append(files, filepath.Join(dropInDir, e.Name()))
			}
		}
	}
	setting := regexp.MustCompile(`(?mi)^[^#\n]*?` + pattern)
	for _, path := range files {
		full, err := m.resolve(path)
		if err != nil {
			continue
		}
		st, err := read(full)
		if err != nil || st.Absent {
			continue
		}
		for _, found := range setting.FindAllSubmatch(st.Content, -1) {
			if v := string(found[1]); v != but {
				return v, path
			}
		}
	}
	return "", ""
}

// conflict returns an error if dockerd is started with an option that daemon.json is to set, because it would not start any
// more, or if it reads another file.
func (m *Machine) conflict(options string) error {
	if file, path := m.started(`[\s="']--config-file[\s=]+["']?([^\s"']+)`, daemonFile); path != "" {
		return fmt.Errorf("docker is started with --config-file %s (%s): link %s to it, or change it by hand", file, path, daemonFile)
	}
	option, path := m.started(`[\s="'](--(?:`+options+`))\b`, "")
	if path == "" {
		return nil
	}
	return fmt.Errorf("docker is started with %s (%s), and does not start if %s says so too: change it there, or take it out there and run this again", option, path, daemonFile)
}

// wrote reports whether text stands in a file that Pier may have written: the running daemon has it from there.
func (m *Machine) wrote(text string) bool {
	for _, path := range []string{daemonFile, dropInFile} {
		if full, err := m.resolve(path); err == nil {
			if st, err := read(full); err == nil && bytes.Contains(st.Content, []byte(text)) {
				return true
			}
		}
	}
	return false
}
