//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pier/e2e/netns"
)

// The Dockers there are: directories of toolsDir.
const (
	classic = "docker20" // 20.10, with its own store: overlay2
	modern  = "docker29" // 29, with containerd's image store
)

// A dockerConfig says how dockerd is started. In the zero value it asks registries itself, over TLS but on loopback.
type dockerConfig struct {
	at     *netns.Place      // where it runs; nil means on the machine
	proxy  string            // URL of the proxy for everything, HTTPS included
	env    []string          // further environment variables; it gets none of the test's own but PATH
	daemon map[string]any    // what daemon.json has, "insecure-registries" for example
	hosts  map[string]string // hosts.toml by registry, below /etc/docker/certs.d

	ca    string // PEM file of an authority that it is to trust
	caBy  trust  // how it is told
	caFor string // the registry that trustRegistry is about

	overlay bool // it keeps images as the classic one does, whatever its version

	apart  bool   // its containerd was there before it, with a root of its own, as packages install it; not its child
	parent string // existing directory to make its own in; "" means the system's for temporary files
}

// A trust is a way to tell Docker of an authority.
type trust int

const (
	trustEnv      trust = iota // SSL_CERT_FILE
	trustRegistry              // certs.d/REGISTRY/ca.crt
	trustSystem                // the machine's trust store, as update-ca-certificates makes it
)

// A docker is a running dockerd with a containerd of its own, without network bridge and iptables. They have processes and
// mounts to themselves, which are gone when they are, and an /etc whose changes stay in dir.
type docker struct {
	*process
	version string
	overlay bool   // it has the classic store
	dir     string // of everything that is its own; goes with the test
	root    string // its data root
	socket  string
	etc     string // what it has as /etc/docker: daemon.json, certs.d
	env     []string
	start   func(t *testing.T) // with what env and etc are then

	containerdRoot, containerdSocket string // there, in namespace moby, is what the modern one has
}

// inNamespaces is how dockerd is started: DIR PROGRAM [ARG...]. What it changes in /etc and /opt, its key for example, does not
// reach the machine, and what it leaves in /run nobody sees. The trust store is made anew once there is an authority to add, without
// the hooks of other packages: Java's, for one, changes /var/lib/dpkg.
const inNamespaces = `set -e
dir=$1
shift
for top in etc opt; do
	mount -t overlay -o "lowerdir=/$top,upperdir=$dir/$top,workdir=$dir/$top.work" overlay /$top
done
mkdir -p /etc/docker /etc/ca-certificates/update.d
mount --bind "$dir/docker" /etc/docker
mount -t tmpfs tmpfs /etc/ca-certificates/update.d
mount --bind "$dir/share" /usr/local/share
mount -t tmpfs tmpfs /run
if [ -e "$dir/containerd.toml" ]; then containerd --config "$dir/containerd.toml" & fi
[ ! -e "$dir/share/ca-certificates/e2e.crt" ] || [ -e /etc/ssl/certs/e2e.pem ] || update-ca-certificates
exec "$@"
`

// startDocker starts a Docker and waits until it answers.
func startDocker(t *testing.T, version string, cfg dockerConfig) *docker {
	t.Helper()
	dir, err := os.MkdirTemp(cfg.parent, "pier-e2e-docker-") // not t.TempDir, as for containerd
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The kernel takes a moment to end everything that was in the namespaces.
		eventually(t, 20*time.Second, func() error { return os.RemoveAll(dir) })
	})
	root, state := filepath.Join(dir, "root"), filepath.Join(dir, "exec")
	d := &docker{
		version: version, overlay: cfg.overlay || version == classic, dir: dir, root: root, socket: filepath.Join(dir, "docker.sock"), etc: filepath.Join(dir, "docker"),
		containerdRoot:   filepath.Join(root, "containerd/daemon"),
		containerdSocket: filepath.Join(state, "containerd/containerd.sock"),
	}
	for _, name := range []string{"etc", "etc.work", "opt", "opt.work", "docker/certs.d", "share/ca-certificates", "home"} {
		must(t, os.MkdirAll(filepath.Join(dir, name), 0o755))
	}
	d.configure(t, cfg)
	line := []string{
		"unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc",
		"sh", "-c", inNamespaces, "sh", dir, "dockerd",
		"--data-root", root, "--exec-root", state, "--pidfile", filepath.Join(state, "pid"), "--host", "unix://" + d.socket,
		"--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-masq=false", "--userland-proxy=false",
	}
	if cfg.apart {
		d.containerdRoot, d.containerdSocket = filepath.Join(dir, "containerd"), filepath.Join(state, "containerd.sock")
		writeFile(t, filepath.Join(dir, "containerd.toml"), fmt.Sprintf(`version = 2
root = %[1]q
state = "%[2]s/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
[grpc]
  address = %[3]q
`, d.containerdRoot, state, d.containerdSocket))
		line = append(line, "--containerd", d.containerdSocket)
	}
	command := exec.Command
	if cfg.at != nil {
		command = cfg.at.Command
	}
	d.start = func(t *testing.T) {
		t.Helper()
		// What is in it was about processes that are gone, as in /run after a boot.
		eventually(t, 20*time.Second, func() error { return os.RemoveAll(state) })
		must(t, os.MkdirAll(state, 0o711))
		cmd := command(line[0], line[1:]...)
		cmd.Env = d.env
		d.process = startProcess(t, version, cmd)
		d.awaitReady(t)
	}
	d.start(t)
	return d
}

// configure writes the files of a Docker, and sets its environment.
func (d *docker) configure(t *testing.T, cfg dockerConfig) {
	t.Helper()
	env := []string{"PATH=" + tool(d.version) + ":" + os.Getenv("PATH"), "HOME=" + filepath.Join(d.dir, "home")}
	if cfg.proxy != "" {
		env = append(env, "HTTP_PROXY="+cfg.proxy, "HTTPS_PROXY="+cfg.proxy)
	}
	if cfg.ca != "" {
		switch cfg.caBy {
		case trustEnv:
			env = append(env, "SSL_CERT_FILE="+cfg.ca)
		case trustRegistry:
			must(t, copyFile(filepath.Join(d.etc, "certs.d", cfg.caFor, "ca.crt"), cfg.ca))
		case trustSystem:
			if _, err := exec.LookPath("update-ca-certificates"); err != nil {
				t.Skipf("SKIPPED, Debian's package ca-certificates is not installed: %v", err)
			}
			must(t, copyFile(filepath.Join(d.dir, "share/ca-certificates/e2e.crt"), cfg.ca))
		}
	}
	for registry, toml := range cfg.hosts {
		writeFile(t, filepath.Join(d.etc, "certs.d", registry, "hosts.toml"), toml)
	}
	daemon := map[string]any{}
	if d.version == modern {
		daemon["features"] = map[string]bool{"time-namespaces": false, "containerd-snapshotter": !cfg.overlay} // the first: see tools.sh
	}
	for key, value := range cfg.daemon {
		daemon[key] = value
	}
	config, err := json.Marshal(daemon)
	must(t, err)
	writeFile(t, filepath.Join(d.etc, "daemon.json"), string(config))
	d.env = slices.Concat(env, cfg.env)
}

func copyFile(to, from string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o644)
}

func (d *docker) awaitReady(t *testing.T) {
	t.Helper()
	client := d.api()
	defer client.CloseIdleConnections()
	eventually(t, 60*time.Second, func() error {
		if d.ended() {
			t.Fatalf("%s ended before it answered: %v", d.version, d.cmd.ProcessState)
		}
		resp, err := client.Get("http://docker/_ping")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
			return fmt.Errorf("%s: %s: %s", d.version, resp.Status, text)
		}
		return nil
	})
}

// api returns a client of Docker's socket, for any URL. The caller closes its idle connections.
func (d *docker) api() *http.Client {
	return &http.Client{
		Timeout: requestTimeout,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", d.socket)
		}},
	}
}

// stop ends Docker with SIGTERM, and waits until everything that it started is gone.
func (d *docker) stop(t *testing.T) {
	t.Helper()
	// To the group, for the process itself is unshare, which waits for dockerd. That one's containerd has a group of its own.
	if err := syscall.Kill(-d.pid(), syscall.SIGTERM); err != nil {
		t.Fatalf("SIGTERM to %s: %v", d.version, err)
	}
	select {
	case <-d.done:
	case <-time.After(30 * time.Second):
		t.Fatalf("%s did not end within 30s of SIGTERM", d.version)
	}
}

// restart stops Docker and starts it again with all that it had, and with what has changed in env and etc.
func (d *docker) restart(t *testing.T) {
	t.Helper()
	d.stop(t)
	d.start(t)
}

// line is the command line of the docker client.
func (d *docker) line(args ...string) []string {
	return slices.Concat([]string{tool(d.version + "/docker"), "--host", "unix://" + d.socket}, args)
}

// inside is the command line by which a program runs in Docker's mounts, processes and network: what it changes in /etc is
// what Docker sees, and not the machine's.
func (d *docker) inside(program string, args ...string) []string {
	// unshare itself is in the new mounts, but not among the new processes.
	return slices.Concat([]string{
		"nsenter", "--target", fmt.Sprint(d.pid()), "--mount", "--net",
		fmt.Sprintf("--pid=/proc/%d/ns/pid_for_children", d.pid()), "--", program,
	}, args)
}

// try runs the docker client.
func (d *docker) try(t *testing.T, args ...string) (string, error) {
	line := d.line(args...)
	out, err := tryRun(t, []string{"DOCKER_CONFIG=" + filepath.Join(d.dir, "home")}, line[0], line[1:]...)
	return strings.TrimSpace(out), err
}

// do is try for what must succeed.
func (d *docker) do(t *testing.T, args ...string) string {
	t.Helper()
	out, err := d.try(t, args...)
	must(t, err)
	return out
}

func (d *docker) pull(t *testing.T, reference string) {
	t.Helper()
	d.do(t, "pull", "--quiet", reference)
}

// run runs a container that has no network, and returns what it printed.
func (d *docker) run(t *testing.T, reference string, args ...string) string {
	t.Helper()
	return d.do(t, slices.Concat([]string{"run", "--rm", "--network", "none", "--pull", "never", reference}, args)...)
}

// build builds an image from a directory with a Dockerfile, by the classic builder or, if kit is "1", by BuildKit.
func (d *docker) build(t *testing.T, kit, dir string, flags ...string) {
	t.Helper()
	build := d.line(slices.Concat([]string{"build", "--quiet", "--network", "none"}, flags, []string{dir})...)
	run(t, "env", append([]string{"DOCKER_BUILDKIT=" + kit, "DOCKER_CONFIG=" + filepath.Join(d.dir, "home")}, build...)...)
}

func (d *docker) push(t *testing.T, reference string) {
	t.Helper()
	d.do(t, "push", "--quiet", reference)
}

// load takes in the images of a file that docker save, skopeo or another tool has made.
func (d *docker) load(t *testing.T, file string) {
	t.Helper()
	d.do(t, "load", "--quiet", "--input", file)
}

// images lists what Docker has, as name:tag and, if it knows one, @digest.
func (d *docker) images(t *testing.T) []string {
	t.Helper()
	list := strings.Fields(d.do(t, "images", "--no-trunc", "--digests", "--format", "{{.Repository}}:{{.Tag}}@{{.Digest}}"))
	for n := range list {
		list[n] = strings.TrimSuffix(list[n], "@<none>")
	}
	return list
}

// onDisk returns the bytes of all regular files below a directory, and how many bytes of disk they take. A file with
// several names counts once; a directory that is not there has none.
func onDisk(t *testing.T, dir string) (size, disk int64) {
	t.Helper()
	seen := map[[2]uint64]bool{}
	err := filepath.WalkDir(dir, func(file string, entry fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil // it went while we looked
		}
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		var s syscall.Stat_t
		if err := syscall.Lstat(file, &s); err != nil {
			if os.IsNotExist(err) {
				return nil
			}
			return fmt.Errorf("%s: %w", file, err)
		}
		if id := [2]uint64{s.Dev, s.Ino}; !seen[id] {
			seen[id] = true
			size, disk = size+s.Size, disk+s.Blocks*512
		}
		return nil
	})
	must(t, err)
	return size, disk
}
