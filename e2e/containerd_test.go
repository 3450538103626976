//go:build e2e

package e2e

import (
	"fmt"
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

// A containerd is a running containerd with root, state and socket of its own.
type containerd struct {
	*process
	ctr    string   // the client of the same version
	wrap   []string // programs that the client is started through
	root   string
	socket string
	start  func(t *testing.T)
}

// eachContainerd runs a test against every containerd there is.
func eachContainerd(t *testing.T, test func(t *testing.T, c *containerd)) {
	for _, version := range []string{"containerd1", "containerd2"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			test(t, startContainerd(t, version, nil))
		})
	}
}

// startContainerd starts the containerd in toolsDir/version, without the parts that run containers, at a place of a site or,
// if that is nil, on the machine. It and its client are given env.
func startContainerd(t *testing.T, version string, at *netns.Place, env ...string) *containerd {
	t.Helper()
	return startContainerdWith(t, version, at, `version = 2
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
  "io.containerd.nri.v1.nri", "io.containerd.internal.v1.restart", "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
]
`, env...)
}

// startCRI starts a containerd as Kubernetes has it, with the registry configuration that docs/containerd.md shows.
func startCRI(t *testing.T, version, hosts string) *containerd {
	t.Helper()
	if version == "containerd1" {
		return startContainerdWith(t, version, nil, fmt.Sprintf(`version = 2
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = %q
`, hosts))
	}
	return startContainerdWith(t, version, nil, fmt.Sprintf(`version = 3
disabled_plugins = ["io.containerd.nri.v1.nri"]
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = %q
`, hosts))
}

// startContainerdWith starts a containerd whose configuration begins with head.
func startContainerdWith(t *testing.T, version string, at *netns.Place, head string, env ...string) *containerd {
	t.Helper()
	// A socket's path is at most 107 bytes long, and t.TempDir holds the name of the test.
	dir, err := os.MkdirTemp("", "pier-e2e-ctd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unmountBelow(dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	config := filepath.Join(dir, "config.toml")
	top, tables, _ := strings.Cut(head, "[plugins")
	if tables != "" {
		tables = "[plugins" + tables
	}
	writeFile(t, config, top+fmt.Sprintf(`root = "%[1]s/root"
state = "%[1]s/state"
[debug]
  level = "warn"
[grpc]
  address = "%[1]s/c.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/opt"
`, dir)+tables)
	c := &containerd{ctr: tool(version + "/ctr"), root: filepath.Join(dir, "root"), socket: filepath.Join(dir, "c.sock")}
	command := exec.Command
	if at != nil {
		c.wrap, command = at.Line(""), at.Command
		c.wrap = c.wrap[:len(c.wrap)-1]
	}
	if len(env) > 0 {
		c.wrap = slices.Concat(c.wrap, []string{"env"}, env)
	}
	c.start = func(t *testing.T) {
		t.Helper()
		cmd := command(tool(version+"/containerd"), "--config", config)
		// containerd 1.x and 2.x start different programs of the same names.
		cmd.Env = slices.Concat(os.Environ(), []string{"PATH=" + tool(version) + ":" + os.Getenv("PATH")}, env)
		c.process = startProcess(t, version, cmd)
		eventually(t, 30*time.Second, func() error {
			if c.ended() {
				t.Fatalf("containerd ended before it answered: %v", c.cmd.ProcessState)
			}
			_, err := tryRun(t, nil, c.ctr, "--address", c.socket, "version")
			return err
		})
	}
	c.start(t)
	return c
}

// restart stops containerd and starts it again on the same root.
func (c *containerd) restart(t *testing.T) {
	t.Helper()
	c.terminate(t, 20*time.Second)
	c.start(t)
}

// args are the arguments of ctr for a command in namespace k8s.io.
func (c *containerd) args(args ...string) []string {
	return append([]string{"--address", c.socket, "--namespace", "k8s.io"}, args...)
}

// line is the command line of ctr for a command in namespace k8s.io.
func (c *containerd) line(args ...string) []string {
	return slices.Concat(c.wrap, []string{c.ctr}, c.args(args...))
}

// do runs ctr in namespace k8s.io.
func (c *containerd) do(t *testing.T, args ...string) string {
	t.Helper()
	line := c.line(args...)
	return run(t, line[0], line[1:]...)
}

// pull pulls an image for linux/amd64 by the given hosts directory.
func (c *containerd) pull(t *testing.T, hosts, reference string) {
	t.Helper()
	c.do(t, pullArgs(hosts, reference)...)
}

func pullArgs(hosts, reference string) []string {
	return []string{"images", "pull", "--hosts-dir", hosts, "--platform", "linux/amd64", reference}
}

// pierArgs are the flags of a node beside this containerd.
func (c *containerd) pierArgs(more ...string) []string {
	return append([]string{"--containerd-socket", c.socket, "--containerd-root", c.root}, more...)
}

// hostsDir returns a directory with the hosts.toml of one registry: its server, and before it, in order, mirrors. All
// are base URLs.
func hostsDir(t *testing.T, registry, server string, mirrors ...string) string {
	t.Helper()
	var toml strings.Builder
	fmt.Fprintf(&toml, "server = %q\n", server)
	if len(mirrors) == 0 {
		mirrors = []string{server} // containerd 1.6 does not read a file without a host
	}
	for _, mirror := range mirrors {
		fmt.Fprintf(&toml, "[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", mirror)
	}
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, registry, "hosts.toml"), toml.String())
	return dir
}

// unmountBelow unmounts what a killed containerd left mounted.
func unmountBelow(dir string) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return // nothing to be done; removing dir will say so
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], dir+"/") {
			_ = syscall.Unmount(fields[1], syscall.MNT_DETACH)
		}
	}
}
