package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Place is one network namespace of a site: a node, upstream, or the switch.
type Place struct {
	name         string
	addr4, addr6 netip.Addr
}

// newPlace returns a place whose addresses end in host. It has no namespace yet.
func newPlace(name string, host int) *Place {
	v6 := [16]byte{0: 0xfd, 1: 0x77, 15: byte(host)}
	return &Place{name: name, addr4: netip.AddrFrom4([4]byte{10, 77, 0, byte(host)}), addr6: netip.AddrFrom16(v6)}
}

// Name returns the name of the namespace, as ip netns knows it.
func (p *Place) Name() string { return p.name }

// Addr returns the place's IPv4 address.
func (p *Place) Addr() netip.Addr { return p.addr4 }

// Addr6 returns the place's IPv6 address, of unique local range.
func (p *Place) Addr6() netip.Addr { return p.addr6 }

// HostPort returns the place's IPv4 address with a port.
func (p *Place) HostPort(port uint16) string { return netip.AddrPortFrom(p.addr4, port).String() }

// Command returns a command that runs a program at this place. The process that it starts is the program itself, which
// leads a process group of its own and is killed if the thread that started it ends; to end it and what it started, kill the
// group.
func (p *Place) Command(program string, args ...string) *exec.Cmd {
	line := p.Line(program, args...)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// CommandContext is Command for a program that is killed, with its group, when ctx ends.
func (p *Place) CommandContext(ctx context.Context, program string, args ...string) *exec.Cmd {
	line := p.Line(program, args...)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second // for those who left the group and hold on to its output
	return cmd
}

// Line returns the command line by which any process, with root's rights, becomes the program at this place.
func (p *Place) Line(program string, args ...string) []string {
	return slices.Concat([]string{"nsenter", "--net=" + p.path(), "--", program}, args)
}

func (p *Place) path() string { return directory + "/" + p.name }

// Do calls f on a thread that is in the namespace. Sockets that f opens belong to it for as long as they live, whoever uses
// them later; those that f's goroutines open do not.
func (p *Place) Do(f func() error) error {
	result := make(chan error, 1)
	go func() {
		result <- func() error {
			runtime.LockOSThread()
			own, err := os.Open("/proc/thread-self/ns/net")
			if err != nil {
				runtime.UnlockOSThread()
				return err
			}
			defer own.Close()
			space, err := os.Open(p.path())
			if err != nil {
				runtime.UnlockOSThread()
				return err
			}
			defer space.Close()
			if err := unix.Setns(int(space.Fd()), unix.CLONE_NEWNET); err != nil {
				runtime.UnlockOSThread()
				return fmt.Errorf("namespace %s: %w", p.name, err)
			}
			err = f()
			if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
				// The thread stays locked, so it ends with this goroutine: better than a stray one in the wrong network.
				return errors.Join(err, fmt.Errorf("back from namespace %s: %w", p.name, back))
			}
			runtime.UnlockOSThread()
			return err
		}()
	}()
	return <-result
}

// DialContext dials from this place. The address must be an IP address with a port: what resolves names does so on other
// threads.
func (p *Place) DialContext(ctx context.Context, network, address string) (conn net.Conn, err error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dial %s at %s: %w", address, p.name, err)
	}
	err = p.Do(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens at this place, on an IP address with a port.
func (p *Place) Listen(ctx context.Context, network, address string) (l net.Listener, err error) {
	err = p.Do(func() error {
		l, err = new(net.ListenConfig).Listen(ctx, network, address)
		return err
	})
	return l, err
}

// Transport returns an HTTP transport that dials from this place, by address only. It changes no content, and the caller
// closes its idle connections.
func (p *Place) Transport() *http.Transport {
	return &http.Transport{DialContext: p.DialContext, DisableCompression: true}
}

// create makes the namespace, with addresses that can be used at once: nobody else here could have them.
func (p *Place) create(ctx context.Context) error {
	_, err := output(ctx, nil, "ip", "netns", "add", p.name)
	if err != nil { // two processes that make the very first namespaces of a machine are in each other's way
		if _, err = output(ctx, nil, "ip", "netns", "add", p.name); err != nil {
			return err
		}
	}
	if err := p.sysctl("net/ipv6/conf/all/accept_dad", "0", "net/ipv6/conf/default/accept_dad", "0",
		"net/ipv6/conf/all/disable_ipv6", "0", "net/ipv6/conf/default/disable_ipv6", "0"); err != nil {
		return err
	}
	return p.ip(ctx, "link set lo up")
}

// sysctl sets parameters of the namespace, given as name and value in turn.
func (p *Place) sysctl(pairs ...string) error {
	return p.Do(func() error {
		for pair := range slices.Chunk(pairs, 2) {
			if err := os.WriteFile("/proc/sys/"+pair[0], []byte(pair[1]), 0); err != nil {
				return err
			}
		}
		return nil
	})
}

// ip runs commands of ip in the namespace, one a line, until one fails.
func (p *Place) ip(ctx context.Context, lines ...string) error { return p.batch(ctx, "ip", lines) }

// tc is ip for tc.
func (p *Place) tc(ctx context.Context, lines ...string) error { return p.batch(ctx, "tc", lines) }

func (p *Place) batch(ctx context.Context, program string, lines []string) error {
	_, err := output(ctx, strings.NewReader(strings.Join(lines, "\n")+"\n"), program, "-n", p.name, "-batch", "-")
	return err
}
