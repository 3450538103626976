//go:build e2e

package overlay2

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// real is a dockerd of our own, in a directory of its own, which pulls from loopback only.
type real struct {
	t     *testing.T
	tools string // what e2e/tools.sh installed
	dir   string

	buildKit string // "1" to build with it
}

// startReal starts a dockerd with the classic store. Rootless means in a user namespace of its own.
func startReal(t *testing.T, rootless bool) *real {
	t.Helper()
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	d := &real{t: t, tools: cmp.Or(os.Getenv("PIER_TOOLS"), filepath.Join(home, ".cache", "pier", "tools"))}
	bin := filepath.Join(d.tools, "docker20")
	if _, err := os.Stat(filepath.Join(bin, "dockerd")); err != nil || os.Getuid() != 0 {
		t.Skipf("NOT TESTED against a real dockerd: it needs root (uid is %d) and the programs of e2e/tools.sh (%v)", os.Getuid(), err)
	}
	if d.dir, err = os.MkdirTemp("", "dkr"); err != nil { // short: a socket lies in it
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d.dir) })
	if err := os.WriteFile(filepath.Join(d.dir, "daemon.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(d.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	// A mount namespace of its own: its mounts are gone with it.
	args := []string{"--mount", "--propagation", "private"}
	if rootless {
		args = append(args, "--user", "--map-root-user", "--net")
	}
	args = append(args, "dockerd", "--config-file", filepath.Join(d.dir, "daemon.json"), "--data-root", d.root(),
		"--exec-root", filepath.Join(d.dir, "exec"), "--pidfile", filepath.Join(d.dir, "pid"), "-H", d.host(),
		"--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-masq=false", "--storage-driver=overlay2")
	if rootless {
		args = append(args, "--rootless")
	}
	cmd := exec.Command("unshare", args...)
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "DOCKER_RAMDISK=", "XDG_RUNTIME_DIR="+d.dir, "HOME="+d.dir)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // cmd.ProcessState says it
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may be gone
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			t.Error("dockerd did not stop within 30 s")
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-ended
		}
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		conn, err := net.Dial("unix", strings.TrimPrefix(d.host(), "unix://"))
		if err == nil {
			conn.Close()
			break
		}
		select {
		case <-ended:
			text, _ := os.ReadFile(log.Name())
			t.Fatalf("dockerd ended: %v\n%s", cmd.ProcessState, text)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("dockerd does not listen: %v", err)
		}
	}
	d.docker(nil, "version") // it listens before it answers
	return d
}

func (d *real) root() string { return filepath.Join(d.dir, "root") }
func (d *real) host() string { return "unix://" + filepath.Join(d.dir, "s") }

// docker runs a command of Docker's client, which must succeed, and returns what it says.
func (d *real) docker(stdin io.Reader, args ...string) string {
	d.t.Helper()
	cmd := exec.Command(filepath.Join(d.tools, "docker20", "docker"), args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+d.host(), "DOCKER_BUILDKIT="+d.buildKit, "DOCKER_CONFIG="+d.dir, "HTTP_PROXY=", "HTTPS_PROXY=", "ALL_PROXY=")
	cmd.Stdin = stdin
	out, err := cmd.CombinedOutput()
	if err != nil {
		d.t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// startRegistry starts an empty registry and returns its address.
func (d *real) startRegistry() string {
	d.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		d.t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	config := filepath.Join(d.dir, "registry.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %q, secret: e2e}\n", filepath.Join(d.dir, "registry"), addr)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(d.tools, "bin", "docker-registry"), "serve", config)
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
			return addr
		}
		if time.Now().After(deadline) {
			d.t.Fatal(err)
		}
	}
}
