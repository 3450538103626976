package member

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	maxPacket   = 2 << 10 // bytes; members send 1,405 at most
	receiveSize = 1 << 20 // bytes of packets that the kernel keeps for a process that gets no processor; it may allow less
)

// A socket is the address that gossip comes to, TCP and UDP. It outlives the [transport]s that read from it: a node that
// gets another address keeps its port.
type socket struct {
	meter   *instruments
	members func() int // how many there are
	tcp     *net.TCPListener
	udp     *net.UDPConn
	port    uint16
	callers callers
	held    struct{ inbound, dialled atomic.Int64 } // bytes, see maxHeld
	wg      sync.WaitGroup

	reader atomic.Pointer[transport] // nil: what comes is dropped
}

// openSocket listens at addr, on every address if it is unspecified.
func openSocket(addr listenAddress, meter *instruments, members func() int) (*socket, error) {
	const tries = 10 // of ports that are free for TCP and turn out not to be for UDP
	for i := 1; ; i++ {
		s, err := listenBoth(addr)
		if err == nil {
			s.meter, s.members = meter, members
			s.wg.Go(s.accept)
			s.wg.Go(s.receive)
			return s, nil
		}
		if addr.port != 0 || i == tries || !errors.Is(err, syscall.EADDRINUSE) {
			return nil, err
		}
	}
}

func listenBoth(addr listenAddress) (*socket, error) {
	at := net.TCPAddr{Port: int(addr.port)}
	if addr.ip.IsValid() {
		at.IP = addr.ip.AsSlice()
	}
	tcp, err := net.ListenTCP("tcp", &at)
	if err != nil {
		return nil, err
	}
	port := tcp.Addr().(*net.TCPAddr).Port
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: at.IP, Port: port})
	if err != nil {
		tcp.Close()
		return nil, err
	}
	_ = udp.SetReadBuffer(receiveSize) // less than wished is no fault
	return &socket{tcp: tcp, udp: udp, port: uint16(port), callers: callers{from: make(map[netip.Addr]int)}}, nil
}

// close ends the socket. The transport reading from it must be closed before.
func (s *socket) close() {
	s.tcp.Close()
	s.udp.Close()
	s.wg.Wait()
}

// pause waits after a fault of the socket (no file descriptor left, say), so that it is not hit in a loop. It reports false if the socket is closed.
func (s *socket) pause(err error) bool {
	if errors.Is(err, net.ErrClosed) {
		return false
	}
	time.Sleep(100 * time.Millisecond)
	return true
}

func (s *socket) accept() {
	for {
		conn, err := s.tcp.AcceptTCP()
		if err != nil {
			if !s.pause(err) {
				return
			}
			continue
		}
		t := s.reader.Load()
		if t == nil {
			conn.Close()
			continue
		}
		leave := s.callers.enter(conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
		if leave == nil {
			conn.Close()
			continue
		}
		s.meter.received.Inc()
		t.stream(&stream{
			Conn: conn, meter: s.meter, left: maxInbound, budget: &s.held.inbound, answer: s.members() * costAnswer, release: leave,
		})
	}
}

func (s *socket) receive() {
	buf := make([]byte, maxPacket+1) // one more tells a packet that was cut off
	var g guard
	for {
		n, from, err := s.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			if !s.pause(err) {
				return
			}
			continue
		}
		at := time.Now()
		t := s.reader.Load()
		if t == nil || n == 0 {
			continue
		}
		s.meter.received.Inc()
		s.meter.receivedBytes.Add(n)
		// What is encrypted begins with anything, and memberlist takes nothing else then.
		if n > maxPacket || len(t.ring.GetKeys()) == 0 && !g.admits(buf[:n], at) {
			continue
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		// Unlike memberlist's own transport, this one allocates what the packet has, not the 64 KiB it could have had.
		packet := memberlist.Packet{Buf: append([]byte(nil), buf[:n]...), From: net.UDPAddrFromAddrPort(from), Timestamp: at}
		select {
		case t.packets <- &packet:
		case <-t.ctx.Done():
		}
	}
}

// A transport is a socket in the hands of one memberlist. It implements [memberlist.NodeAwareTransport].
type transport struct {
	socket    *socket
	advertise netip.AddrPort
	ring      *memberlist.Keyring // empty: gossip is not encrypted
	packets   chan *memberlist.Packet
	streams   chan net.Conn

	ctx  context.Context // ends with the transport, and with it all it dialled
	stop context.CancelFunc
}

// newTransport returns a transport that reads from s in the place of the one before.
func newTransport(s *socket, advertise netip.AddrPort, ring *memberlist.Keyring) *transport {
	t := &transport{socket: s, advertise: advertise, ring: ring, packets: make(chan *memberlist.Packet), streams: make(chan net.Conn)}
	t.ctx, t.stop = context.WithCancel(context.Background())
	s.reader.Store(t)
	return t
}

func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.advertise.Addr().AsSlice(), int(t.advertise.Port()), nil
}

func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

func (t *transport) stream(conn net.Conn) {
	select {
	case t.streams <- conn:
	case <-t.ctx.Done():
		conn.Close()
	}
}

func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	to, err := netip.ParseAddrPort(a.Addr)
	if err != nil {
		return time.Time{}, fmt.Errorf("gossip: %w", err)
	}
	n, err := t.socket.udp.WriteToUDPAddrPort(b, to)
	t.socket.meter.sent.Inc()
	t.socket.meter.sentBytes.Add(n)
	return time.Now(), err
}

func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: timeout}
	conn, err := d.DialContext(t.ctx, "tcp", a.Addr)
	if err != nil {
		return nil, err
	}
	cut := context.AfterFunc(t.ctx, func() { conn.Close() })
	t.socket.meter.sent.Inc()
	return &stream{
		Conn: conn, meter: t.socket.meter, left: maxInbound, budget: &t.socket.held.dialled, release: func() { cut() },
	}, nil
}

// Shutdown implements [memberlist.Transport]. The socket stays.
func (t *transport) Shutdown() error {
	t.socket.reader.CompareAndSwap(t, nil)
	t.stop()
	return nil
}
