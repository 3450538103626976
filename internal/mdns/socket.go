package mdns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// port is that of multicast DNS. Who sends from another takes no part in it (RFC 6762, section 6.7).
const port = 5353

// hops that a packet may take: multicast DNS never crosses a router, and the greatest number proves that it did not
// (RFC 6762, section 11).
const hops = 255

// A packet was received, or ends its socket.
type packet struct {
	socket *socket
	from   netip.AddrPort
	msg    *dns.Msg
	err    error
}

// A socket is a member of the group at its place, and hears nothing else.
type socket struct {
	place
	group netip.AddrPort
	conn  *net.UDPConn
}

func (s *socket) send(b []byte, to netip.AddrPort) error {
	_, err := s.conn.WriteToUDPAddrPort(b, to)
	return err
}

// receive passes on what can be parsed, until ctx ends or the socket is closed, or fails.
func (s *socket) receive(ctx context.Context, packets chan<- packet) {
	b := make([]byte, 9000) // the largest there is (RFC 6762, section 17)
	for {
		p := packet{socket: s, msg: new(dns.Msg)}
		var n int
		n, p.from, p.err = s.conn.ReadFromUDPAddrPort(b)
		switch {
		case errors.Is(p.err, net.ErrClosed):
			return
		case p.err == nil && p.msg.Unpack(b[:n]) != nil:
			continue
		}
		select {
		case packets <- p:
		case <-ctx.Done():
			return
		}
		if p.err != nil {
			return
		}
	}
}

// open opens a socket that is bound to the group's address, and not, as those of package net would be, to all addresses:
// what is sent to this machine alone is for the responder that was here first.
func open(at place) (*socket, error) {
	s := &socket{place: at}
	if at.ip4 {
		s.group = netip.MustParseAddrPort("224.0.0.251:5353")
	} else {
		s.group = netip.AddrPortFrom(netip.MustParseAddr("ff02::fb").WithZone(strconv.Itoa(at.index)), port)
	}
	family, address := s.address()
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("mdns socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "mdns")
	defer f.Close() // conn has a descriptor of its own
	if err := s.options(fd); err != nil {
		return nil, fmt.Errorf("mdns socket: %w", err)
	}
	if err := unix.Bind(fd, address); err != nil {
		return nil, fmt.Errorf("mdns port %d: %w", port, err)
	}
	conn, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("mdns socket: %w", err)
	}
	s.conn = conn.(*net.UDPConn)
	return s, nil
}

// address returns that of the group for system calls.
func (s *socket) address() (family int, address unix.Sockaddr) {
	if s.ip4 {
		return unix.AF_INET, &unix.SockaddrInet4{Port: port, Addr: s.group.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: port, Addr: s.group.Addr().As16(), ZoneId: uint32(s.index)}
}

// options joins the group. That packets come back to this machine, where others may listen too, is the default.
func (s *socket) options(fd int) error {
	err := errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), // others on this machine
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1), // use the same port
	)
	if s.ip4 {
		join := &unix.IPMreqn{Multiaddr: s.group.Addr().As4(), Ifindex: int32(s.index)}
		return errors.Join(err,
			unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, join),
			unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, join),
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0), // not what came for others from another interface
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, hops),
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, hops),
		)
	}
	return errors.Join(err,
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1),
		unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP,
			&unix.IPv6Mreq{Multiaddr: s.group.Addr().As16(), Interface: uint32(s.index)}),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, hops),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, hops),
	)
}

// watch sends to changed whenever an interface or an address of this machine comes, goes or changes, until ctx ends.
func watch(ctx context.Context, log *slog.Logger, changed chan<- struct{}) {
	f, err := netlink()
	if err == nil {
		defer f.Close()
		defer context.AfterFunc(ctx, func() { f.Close() })()
		err = follow(f, changed)
	}
	if ctx.Err() == nil {
		log.DebugContext(ctx, "changes of interfaces are not told; they are looked at every minute", "err", err)
	}
}

// follow sends to changed for what is read from f, until that fails.
func follow(f *os.File, changed chan<- struct{}) error {
	b := make([]byte, 4<<10)
	for {
		// What has changed is looked up, so that it does not matter what does not fit. Messages lost (ENOBUFS) are a change.
		if _, err := f.Read(b); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
		select {
		case changed <- struct{}{}:
		default: // a look is due already
		}
	}
}

// netlink returns a socket on which the kernel tells of interfaces and addresses.
func netlink() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	err = unix.Bind(fd, &unix.SockaddrNetlink{
		Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR,
	})
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}
