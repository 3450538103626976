package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A process is a server that this run started. The kernel kills it if this process dies first.
type process struct {
	name string
	addr string // where it serves
	log  string // file of what it writes
	cmd  *exec.Cmd
	done chan struct{} // closed once it has been waited for
}

const (
	startFor = 20 * time.Second // bounds a start
	stopFor  = 15 * time.Second // bounds an end, before it is killed
)

// program finds a program in the tools directory (e2e/tools.sh) or on the PATH.
func program(name string) (string, error) {
	tools := os.Getenv("PIER_TOOLS")
	if home, err := os.UserHomeDir(); tools == "" && err == nil {
		tools = filepath.Join(home, ".cache", "pier", "tools")
	}
	if path, err := exec.LookPath(filepath.Join(tools, "bin", name)); err == nil {
		return path, nil
	}
	return exec.LookPath(name)
}

// freeAddr returns an address of the loopback interface that nobody listens on.
func freeAddr() (string, error) {
	addrs, err := freeAddrs("127.0.0.1", 1)
	if err != nil {
		return "", err
	}
	return addrs[0], nil
}

// freeAddrs returns n different addresses of a host that nobody listens on.
func freeAddrs(host string, n int) (addrs []string, err error) {
	for range n {
		l, lerr := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if lerr != nil {
			return nil, lerr
		}
		defer func() { err = errors.Join(err, l.Close()) }() // not before the last one is found
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}

// start runs a server on loopback and waits until it listens on addr. The caller stops it.
func (b *bench) start(ctx context.Context, name, addr string, env []string, path string, args ...string) (*process, error) {
	cmd := exec.Command(path, args...)
	cmd.Env = env
	return b.startCommand(ctx, name, addr, (&net.Dialer{}).DialContext, cmd)
}

// A dialer connects to where a process listens: on loopback, or in a namespace.
type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

// startCommand runs a server, with its Env beside that of this process, and waits until it listens on addr. The caller stops it.
func (b *bench) startCommand(ctx context.Context, name, addr string, dial dialer, cmd *exec.Cmd) (*process, error) {
	log, err := os.CreateTemp(b.dir, name+"-*.log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &process{name: name, addr: addr, log: log.Name(), cmd: cmd, done: make(chan struct{})}
	// Settings of pier in the environment would be others than the ones measured.
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "PIER_") })
	cmd.Env = append(append(env, "HOME="+b.dir, "TMPDIR="+b.dir), cmd.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // how it ended is in cmd.ProcessState
	}()
	if err := p.await(ctx, dial); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w\n%s", name, err, p.tail()), p.stop())
	}
	return p, nil
}

// await waits until the process listens.
func (p *process) await(ctx context.Context, dial dialer) error {
	ctx, cancel := context.WithTimeout(ctx, startFor)
	defer cancel()
	for {
		conn, err := dial(ctx, "tcp", p.addr)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-p.done:
			return fmt.Errorf("ended early: %v", p.cmd.ProcessState)
		case <-ctx.Done():
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// stop asks the process to end and waits for that; one that does not is killed, and an error.
func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	select {
	case <-p.done:
		return nil
	case <-time.After(stopFor):
		_ = p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("%s did not end within %s of SIGTERM", p.name, stopFor)
	}
}

// tail returns the end of what the process wrote.
func (p *process) tail() string {
	log, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(log[max(0, len(log)-2000):])
}

// cpu returns the CPU time of the process so far, user and system, of all threads. Its clock is exact to the nanosecond,
// unlike /proc/PID/stat. The ID of the clock is made as clock_getcpuclockid(3) does.
func (p *process) cpu() (time.Duration, error) {
	const processClock = 2 // CPUCLOCK_SCHED, linux/posix-timers.h
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^p.cmd.Process.Pid<<3|processClock), &t); err != nil {
		return 0, fmt.Errorf("CPU time of %s: %w", p.name, err)
	}
	return time.Duration(t.Nano()), nil
}

// forgetPeak makes what is resident now the most that was, see memory.
func (p *process) forgetPeak() error {
	const peak = "5" // CLEAR_REFS_MM_HIWATER_RSS of linux/fs/proc/task_mmu.c, proc(5)
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.cmd.Process.Pid), []byte(peak), 0)
}

// memory returns how many bytes of the process are resident, and were at most.
func (p *process) memory() (now, peak float64, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(status)) {
		var kib float64
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kib); n == 1 {
			now = kib * 1024
		}
		if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kib); n == 1 {
			peak = kib * 1024
		}
	}
	if now == 0 || peak == 0 {
		return 0, 0, fmt.Errorf("memory of %s: nothing in /proc/PID/status", p.name)
	}
	return now, peak, nil
}
