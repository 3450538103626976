//go:build e2e

package mdns

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Nodes run in network namespaces of their own: this test binary is started there once more, with the Config of a node in
// this variable.
const nodeVariable = "PIER_TEST_MDNS_NODE"

func TestMain(m *testing.M) {
	text := os.Getenv(nodeVariable)
	if text == "" {
		os.Exit(m.Run())
	}
	c := Config{
		Log:   slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Found: func(addr netip.AddrPort) { fmt.Println(addr) },
	}
	var settings struct {
		Instance, Cluster string
		Port              uint16
	}
	if err := json.Unmarshal([]byte(text), &settings); err != nil {
		panic(err)
	}
	c.Instance, c.Cluster, c.Port = settings.Instance, settings.Cluster, settings.Port
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	if err := Run(ctx, c); err != nil {
		panic(err)
	}
	stop()
}

// soon is how long it may take to find a node. It is twice what is promised, since machines that test are busy.
const soon = 4 * time.Second

// A segment is a switch in a network namespace, to which other namespaces are connected.
type segment struct{ prefix string }

// newSegment connects n namespaces: number k, from 1, has eth0 with 10.78.0.k and fd78::k.
func newSegment(t *testing.T, n int) segment {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skipf("NOT TESTED: network namespaces need root (uid is %d)", os.Getuid())
	}
	s := segment{fmt.Sprintf("pier-mdns-%d", os.Getpid())}
	s.add(t, s.prefix)
	s.ip(t, "-n", s.prefix, "link", "add", "br0", "type", "bridge", "stp_state", "0", "forward_delay", "0", "mcast_snooping", "0")
	s.ip(t, "-n", s.prefix, "link", "set", "br0", "up")
	for k := 1; k <= n; k++ {
		s.add(t, s.space(k))
		s.ip(t, "-n", s.space(k), "link", "add", "eth0", "type", "veth", "peer", "name", fmt.Sprintf("v%d", k), "netns", s.prefix)
		s.ip(t, "-n", s.prefix, "link", "set", fmt.Sprintf("v%d", k), "master", "br0", "up")
		s.ip(t, "-n", s.space(k), "addr", "add", fmt.Sprintf("10.78.0.%d/24", k), "dev", "eth0")
		s.ip(t, "-n", s.space(k), "addr", "add", fmt.Sprintf("fd78::%d/64", k), "dev", "eth0", "nodad")
		s.ip(t, "-n", s.space(k), "link", "set", "eth0", "up")
	}
	return s
}

func (s segment) space(k int) string { return fmt.Sprintf("%s-%d", s.prefix, k) }

func (s segment) add(t *testing.T, space string) {
	t.Helper()
	s.ip(t, "netns", "add", space)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", space).Run() })
	s.ip(t, "-n", space, "link", "set", "lo", "up")
}

func (segment) ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// A process is a program in a namespace.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}

	mu    sync.Mutex // guards lines
	lines []string   // of stdout
}

// start starts a program, which ends with the test.
func (s segment) start(t *testing.T, k int, env string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command("ip", append([]string{"netns", "exec", s.space(k)}, args...)...), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	var errs strings.Builder // read when the process has ended
	p.cmd.Stderr = &errs
	r, w := io.Pipe()
	p.cmd.Stdout = w
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for lines := bufio.NewScanner(r); lines.Scan(); {
			p.mu.Lock()
			p.lines = append(p.lines, lines.Text())
			p.mu.Unlock()
		}
	}()
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait()
		w.Close()
	}()
	t.Cleanup(func() {
		p.stop(syscall.SIGKILL)
		if t.Failed() {
			t.Logf("%s:\n%s\n%s", strings.Join(args, " "), strings.Join(p.lines, "\n"), errs.String())
		}
	})
	return p
}

// stop ends the process, and returns how it ended.
func (p *process) stop(sig syscall.Signal) *os.ProcessState {
	select {
	case <-p.done:
	default:
		_ = syscall.Kill(-p.cmd.Process.Pid, sig)
		<-p.done
	}
	return p.cmd.ProcessState
}

// node starts a node.
func (s segment) node(t *testing.T, k int, port uint16, cluster string) *process {
	t.Helper()
	text, err := json.Marshal(map[string]any{"Instance": fmt.Sprintf("node.%d:%d", k, port), "Port": port, "Cluster": cluster})
	if err != nil {
		t.Fatal(err)
	}
	return s.start(t, k, nodeVariable+"="+string(text), os.Args[0])
}

// await waits until the output of p has a line that contains each of want.
func (p *process) await(t *testing.T, want ...string) {
	t.Helper()
	start := time.Now()
	for {
		p.mu.Lock()
		lines := slices.Clone(p.lines)
		p.mu.Unlock()
		missing := slices.DeleteFunc(slices.Clone(want), func(w string) bool {
			return slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, w) })
		})
		if len(missing) == 0 {
			t.Logf("%v after %v", want, time.Since(start).Round(time.Millisecond))
			return
		}
		if time.Since(start) > soon {
			t.Fatalf("after %v there is no %v in:\n%s", soon, missing, strings.Join(lines, "\n"))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// lacks fails the test if a line of p contains text.
func (p *process) lacks(t *testing.T, text string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.ContainsFunc(p.lines, func(l string) bool { return strings.Contains(l, text) }) {
		t.Errorf("%s is in:\n%s", text, strings.Join(p.lines, "\n"))
	}
}

func TestNodes(t *testing.T) {
	s := newSegment(t, 3)
	first := s.node(t, 1, 7001, "site")
	other := s.node(t, 1, 7009, "neighbour")
	beside := s.node(t, 1, 7002, "site") // on the same machine
	first.await(t, "10.78.0.1:7002", "[fd78::1]:7002")
	beside.await(t, "10.78.0.1:7001", "[fd78::1]:7001")

	late := s.node(t, 2, 7003, "site")
	late.await(t, "10.78.0.1:7001", "[fd78::1]:7001", "10.78.0.1:7002", "%eth0]:7001")
	first.await(t, "10.78.0.2:7003", "[fd78::2]:7003")
	beside.await(t, "10.78.0.2:7003", "[fd78::2]:7003")

	// A machine that has been disconnected, and one with IPv6 alone.
	s.ip(t, "-n", s.space(3), "link", "set", "eth0", "down")
	s.ip(t, "-n", s.space(3), "addr", "flush", "dev", "eth0")
	lone := s.node(t, 3, 7004, "site")
	time.Sleep(500 * time.Millisecond) // it looks for interfaces and finds none
	s.ip(t, "-n", s.space(3), "link", "set", "eth0", "up")
	lone.await(t, "%eth0]:7001", "%eth0]:7003")
	first.await(t, "%eth0]:7004")
	lone.lacks(t, "[fd78:") // to which it has no route
	// And then gets an address.
	s.ip(t, "-n", s.space(3), "addr", "add", "10.78.0.3/24", "dev", "eth0")
	first.await(t, "10.78.0.3:7004")

	for _, p := range []*process{first, beside, late, lone} {
		p.lacks(t, ":7009")
	}
	other.lacks(t, ":700")
	first.lacks(t, ":7001")
}

// Interfaces of containers come and go: each group joined counts against a limit, also when its interface is gone.
func TestManyInterfaces(t *testing.T) {
	s := newSegment(t, 2)
	first := s.node(t, 1, 7001, "site")
	for i := range 25 {
		name := fmt.Sprintf("con%d", i)
		s.ip(t, "-n", s.space(1), "link", "add", name, "type", "veth", "peer", "name", "peer"+name)
		s.ip(t, "-n", s.space(1), "link", "set", "peer"+name, "up")
		s.ip(t, "-n", s.space(1), "link", "set", name, "multicast", "on", "up")
		s.ip(t, "-n", s.space(1), "addr", "add", fmt.Sprintf("10.79.%d.1/24", i), "dev", name)
		if i%2 == 0 {
			time.Sleep(300 * time.Millisecond) // until it is looked at
		}
		s.ip(t, "-n", s.space(1), "link", "del", name)
	}
	s.ip(t, "-n", s.space(1), "link", "del", "eth0")
	s.ip(t, "-n", s.space(1), "link", "add", "eth1", "type", "veth", "peer", "name", "w1", "netns", s.prefix)
	s.ip(t, "-n", s.prefix, "link", "set", "w1", "master", "br0", "up")
	s.ip(t, "-n", s.space(1), "addr", "add", "10.78.0.8/24", "dev", "eth1")
	s.ip(t, "-n", s.space(1), "link", "set", "eth1", "up")
	second := s.node(t, 2, 7002, "site")
	second.await(t, "10.78.0.8:7001")
	first.await(t, "10.78.0.2:7002")
}

func TestAvahi(t *testing.T) {
	s := newSegment(t, 2)
	s.avahi(t, 1) // beside the node
	near := s.start(t, 1, s.bus(t, 1), tool(t, "avahi-browse"), "-rp", "_pier._tcp")
	s.avahi(t, 2)
	far := s.start(t, 2, s.bus(t, 2), tool(t, "avahi-browse"), "-rp", "_pier._tcp")
	types := s.start(t, 2, s.bus(t, 2), tool(t, "avahi-browse"), "-pa")

	node := s.node(t, 1, 7001, "site")
	for name, p := range map[string]*process{"on the same machine": near, "on another": far} {
		t.Log(name)
		p.await(t, `=;eth0;IPv4;node\.1\0587001;_pier._tcp;local;pier-`, `;10.78.0.1;7001;"v=1" "cluster=site"`,
			`=;eth0;IPv6;node\.1\0587001;_pier._tcp;local;pier-`)
	}
	types.await(t, "+;eth0;IPv4;node\\.1\\0587001;_pier._tcp;local")

	// Who asks late gets an answer.
	again := s.start(t, 2, s.bus(t, 2), tool(t, "avahi-browse"), "-rpt", "_pier._tcp")
	again.await(t, `;10.78.0.1;7001;"v=1" "cluster=site"`)

	// What avahi announces, from a distance and beside the node.
	s.start(t, 2, s.bus(t, 2), tool(t, "avahi-publish"), "-s", "by avahi", "_pier._tcp", "7999", "v=1", "cluster=site")
	node.await(t, "10.78.0.2:7999", "[fd78::2]:7999")
	s.start(t, 1, s.bus(t, 1), tool(t, "avahi-publish"), "-s", "near", "_pier._tcp", "7998", "cluster=site")
	node.await(t, "10.78.0.1:7998")
	s.start(t, 2, s.bus(t, 2), tool(t, "avahi-publish"), "-s", "a neighbour", "_pier._tcp", "7997", "cluster=other")

	if state := node.stop(syscall.SIGTERM); !state.Success() {
		t.Errorf("told to end, the node ended with %v", state)
	}
	for _, p := range []*process{near, far} {
		p.await(t, `-;eth0;IPv4;node\.1\0587001;_pier._tcp;local`, `-;eth0;IPv6;node\.1\0587001;_pier._tcp;local`)
	}
	node.lacks(t, ":7997")
}

// bus returns the variable by which programs find the message bus of a namespace.
func (s segment) bus(t *testing.T, k int) string {
	t.Helper()
	return "DBUS_SYSTEM_BUS_ADDRESS=unix:path=" + filepath.Join(os.TempDir(), s.space(k)+".bus")
}

// avahi starts the daemon in a namespace, and what it needs.
func (s segment) avahi(t *testing.T, k int) {
	t.Helper()
	dir := t.TempDir()
	socket := strings.TrimPrefix(s.bus(t, k), "DBUS_SYSTEM_BUS_ADDRESS=")
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	bus := write("bus.conf", `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><listen>`+socket+`</listen><auth>EXTERNAL</auth><policy context="default"><allow user="*"/><allow own="*"/>
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/></policy></busconfig>`)
	s.start(t, k, "", tool(t, "dbus-daemon"), "--config-file="+bus, "--nofork", "--nopidfile", "--print-address").await(t, "unix:path=")
	t.Cleanup(func() { os.Remove(strings.TrimPrefix(socket, "unix:path=")) })

	conf := write("avahi.conf", fmt.Sprintf("[server]\nhost-name=machine%d\nuse-ipv4=yes\nuse-ipv6=yes\nallow-interfaces=eth0\n[rlimits]\n", k))
	// It wants a directory below /run, and a user of its own, which this machine may not have.
	users := write("passwd", "root:x:0:0::/:/bin/sh\navahi:x:1:1::/:/bin/false\n")
	groups := write("group", "root:x:0:\navahi:x:1:\nnetdev:x:2:\n")
	s.start(t, k, s.bus(t, k), "unshare", "-m", "--propagation", "private", "sh", "-c",
		`mount -t tmpfs tmpfs /run && mkdir /run/avahi-daemon && mount --bind "$2" /etc/passwd && mount --bind "$3" /etc/group &&
		exec "$0" -f "$1" --no-drop-root --no-chroot --no-rlimits`, tool(t, "avahi-daemon"), conf, users, groups)
	// It takes part once it has made sure that nobody else has its name.
	for range 100 {
		cmd := exec.Command("ip", "netns", "exec", s.space(k), tool(t, "avahi-browse"), "-t", "_none._tcp")
		cmd.Env = append(os.Environ(), s.bus(t, k))
		if cmd.Run() == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("avahi-daemon does not answer")
}

func tool(t *testing.T, name string) string {
	t.Helper()
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(cmp.Or(os.Getenv("PIER_TOOLS"), filepath.Join(home, ".cache", "pier", "tools")), "bin", name)
	if _, err := os.Stat(file); err != nil {
		t.Skipf("NOT TESTED against a real avahi: it needs the programs of e2e/tools.sh (%v)", err)
	}
	return file
}
