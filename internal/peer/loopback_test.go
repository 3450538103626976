package peer

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pier/internal/oci/ocitest"
)

// blackHole returns an address of loopback that answers nothing: a socket whose queue of connections is full.
func blackHole(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: name.(*unix.SockaddrInet4).Port}).String()
	for range 8 {
		c, err := net.DialTimeout("tcp", addr, 50*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("this kernel takes connections over the backlog, so nothing here is a black hole")
	return ""
}

// On real connections, too, a neighbour that cannot be reached costs a second at most. The limit here is three: the machine
// may be busy.
func TestUnreachableOnLoopback(t *testing.T) {
	for _, tt := range []struct {
		name string
		fail func(s *site, n *node)
	}{
		{"refused", func(s *site, n *node) { n.door.close() }},
		{"black hole", func(_ *site, n *node) { n.door.addr = blackHole(t) }},
		{"hangs", func(_ *site, n *node) { n.door.fails(hangs) }},
		{"hangs in the middle", func(_ *site, n *node) { n.door.fails(after(mib, stops)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := onLoopback(t, 2)
			content := ocitest.Bytes(100, 3*mib)
			s.up.has(content)
			s.nodes[1].has(content)
			s.settle()
			tt.fail(s, s.nodes[1])
			s.nodes[0].within(3*second, content)
			if got := s.nodes[0].received(s.nodes[1]) + s.up.gave(blobRef(content)); got != len(content) {
				t.Errorf("neighbour and registry gave %d bytes, want %d: none twice", got, len(content))
			}
		})
	}
}
