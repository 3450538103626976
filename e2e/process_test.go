//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A process is a program that a test started. It has a process group of its own, and the kernel kills it if the test
// binary dies first.
type process struct {
	name string
	cmd  *exec.Cmd
	log  *logBuffer    // stdout and stderr
	done chan struct{} // closed once the process has been waited for
}

// startProcess starts cmd. When the test ends, the process and whatever it started are killed; if the test failed, the
// end of what they wrote is logged.
func startProcess(t *testing.T, name string, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{name: name, cmd: cmd, log: &logBuffer{}, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.log, p.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // how it ended is in cmd.ProcessState
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("the last lines of %s:\n%s", name, p.log.tail(60))
		}
	})
	return p
}

// pid is the process's ID, which is also that of its group.
func (p *process) pid() int { return p.cmd.Process.Pid }

// ended reports whether the process is gone.
func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// kill ends the process and its group at once, as kill -9 does, and waits until it is gone.
func (p *process) kill() {
	if !p.ended() {
		_ = syscall.Kill(-p.pid(), syscall.SIGKILL)
		<-p.done
	}
}

func (p *process) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatalf("signal %v to %s: %v", sig, p.name, err)
	}
}

// terminate sends SIGTERM and returns how long the process took to end. The test fails if that was longer than within.
func (p *process) terminate(t *testing.T, within time.Duration) time.Duration {
	t.Helper()
	begin := time.Now()
	p.signal(t, syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(within):
		p.kill()
		t.Fatalf("%s did not end within %v of SIGTERM", p.name, within)
	}
	return time.Since(begin)
}

// A logBuffer keeps the output of a process.
type logBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logBuffer) tail(lines int) string {
	all := strings.Split(strings.TrimRight(l.String(), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// commandTimeout bounds every program that runs to its end.
const commandTimeout = 2 * time.Minute

// tryRun runs a program to its end with extra environment variables, and returns what it wrote to stdout. The error
// holds what it wrote to stderr.
func tryRun(t *testing.T, env []string, program string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, stderr.Bytes())
	}
	return stdout.String(), nil
}

// run is tryRun for programs that must succeed. It returns stdout without surrounding white space.
func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := tryRun(t, nil, program, args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// Ports are handed out once each, from below the range that the kernel uses for outgoing connections.
var ports = struct {
	sync.Mutex
	next int
}{next: 20000 + rand.IntN(8000)}

// freeAddr returns a loopback host:port that nothing listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	for range 1000 {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(ports.next))
		ports.next++
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
			return addr
		}
	}
	t.Fatal("no free port on loopback")
	return ""
}

// eventually calls condition until it returns nil, and fails the test with its last error after within.
func eventually(t *testing.T, within time.Duration, condition func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := condition()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still after %v: %v", within, err)
		}
		time.Sleep(25 * time.Millisecond)
	}
}

// awaitListener waits until p accepts connections on addr.
func awaitListener(t *testing.T, p *process, addr string) {
	t.Helper()
	awaitDial(t, p, addr, new(net.Dialer).DialContext)
}

// awaitDial is awaitListener for what is not on loopback.
func awaitDial(t *testing.T, p *process, addr string, dial func(ctx context.Context, network, addr string) (net.Conn, error)) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		if p.ended() {
			t.Fatalf("%s ended before it listened on %s: %v", p.name, addr, p.cmd.ProcessState)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		conn, err := dial(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}
