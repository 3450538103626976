package member

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-msgpack/v2/codec"
)

// What others may take of this node with connections.
const (
	maxStreams = 32       // at once; each lives for an exchange, of seconds at most
	maxCalls   = 8        // of them from one address
	maxInbound = 16 << 20 // bytes taken of one connection: what 16,384 members tell of themselves, twice over
	// maxHeld is the bytes that all connections from others together make this node hold, and all those to others: enough for one exchange,
	// encrypted, with a cluster of maxMembers. With many members few exchange at once; the others try again.
	maxHeld = 24 << 20
	// maxStates is the members in one exchange. Memberlist tells also of the dead, as many as may have been replaced meanwhile.
	maxStates = 2 * maxMembers
)

// What a connection makes memberlist hold, in bytes.
const (
	costOpen   = 256 << 10 // its decoder allocates as much for a text that announces more, before any of it came
	costState  = 128       // a member's state, allocated as soon as the number of them is known; what it points to comes with its bytes
	costAnswer = 512       // a member in the answer, which is made as a whole: its state, and 250 bytes in a buffer that grew
	// costSealed is for each encrypted byte: in a buffer that doubles as they come, then in the plain text, too.
	costSealed = 3
)

var (
	errUnfamiliar = errors.New("no message that a member sends on a connection")
	errHeld       = errors.New("connections hold too much memory")
)

// callers counts the connections from others.
type callers struct {
	mu   sync.Mutex // guards all below
	all  int
	from map[netip.Addr]int
}

// enter counts one more from that address, until leave is called. It returns nil if that is one too many.
func (c *callers) enter(from netip.Addr) (leave func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == maxStreams || c.from[from] == maxCalls {
		return nil
	}
	c.all++
	c.from[from]++
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.all--
		if c.from[from]--; c.from[from] == 0 {
			delete(c.from, from)
		}
	})
}

// A stream is a connection of gossip that counts, takes no more than left bytes, holds no more than its budget has, and hands on only
// what members say. Its reads and Close must not run at the same time, as in memberlist they do not.
type stream struct {
	net.Conn
	meter   *instruments
	budget  *atomic.Int64 // bytes held, shared with others
	answer  int           // bytes that are held for what is answered to a push and pull
	release func()

	left   int
	held   int64 // of budget
	weight int   // bytes held for one that comes
	in     *bufio.Reader
	err    error // of what it began with
}

// hold takes n bytes of the budget until s is closed.
func (s *stream) hold(n int) error {
	if s.budget.Add(int64(n)) > maxHeld {
		s.budget.Add(int64(-n))
		return errHeld
	}
	s.held += int64(n)
	return nil
}

// Read gives the bytes as they come. The first call looks at what they begin with, before memberlist allocates for it.
func (s *stream) Read(p []byte) (int, error) {
	if s.in == nil {
		s.weight = 1
		s.in = bufio.NewReader(intake{s})
		s.err = s.begin()
	}
	if s.err != nil {
		return 0, s.err
	}
	return s.in.Read(p)
}

// begin refuses what no member sends, and holds what the rest will take.
func (s *stream) begin() error {
	if err := s.hold(costOpen); err != nil {
		return err
	}
	next := &ahead{in: s.in}
	kind, err := next.ReadByte()
	if err == nil && kind == typeLabel {
		var size byte
		if size, err = next.ReadByte(); err == nil {
			next.at += int(size)
			kind, err = next.ReadByte()
		}
	}
	if err != nil {
		return err
	}
	switch kind {
	case typePing, typeAck, typeErr:
		s.left = min(s.left, maxPacket)
		return nil
	case typeEncrypt:
		s.weight = costSealed
		return s.hold(s.answer)
	case typePushPull:
		var header struct {
			Nodes, UserStateLen int
			Join                bool
		}
		if err := codec.NewDecoder(next, &codec.MsgpackHandle{}).Decode(&header); err != nil {
			return err
		}
		if header.Nodes < 0 || header.Nodes > maxStates || header.UserStateLen != 0 {
			return fmt.Errorf("%w: states of %d members and %d bytes", errUnfamiliar, header.Nodes, header.UserStateLen)
		}
		return s.hold(s.answer + header.Nodes*costState)
	default:
		return fmt.Errorf("%w: type %d", errUnfamiliar, kind)
	}
}

func (s *stream) Write(p []byte) (int, error) {
	n, err := s.Conn.Write(p)
	s.meter.sentBytes.Add(n)
	return n, err
}

func (s *stream) Close() error {
	s.budget.Add(-s.held)
	s.held = 0
	s.release()
	return s.Conn.Close()
}

// An intake takes the bytes of a stream from the network.
type intake struct{ *stream }

func (s intake) Read(p []byte) (int, error) {
	const most = 32 << 10 // at once: they are held before they are counted
	if s.left <= 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n, err := s.Conn.Read(p[:min(len(p), s.left, most)])
	s.left -= n
	s.meter.receivedBytes.Add(n)
	if held := s.hold(n * s.weight); held != nil {
		return 0, held
	}
	return n, err
}

// An ahead reads what comes next of in, at most its buffer, and leaves it there.
type ahead struct {
	in *bufio.Reader
	at int
}

func (a *ahead) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if _, err := a.in.Peek(a.at + 1); err != nil {
		return 0, err
	}
	b, _ := a.in.Peek(a.in.Buffered()) // cannot fail: they are there
	n := copy(p, b[a.at:])
	a.at += n
	return n, nil
}

// ReadByte implements [io.ByteReader].
func (a *ahead) ReadByte() (byte, error) {
	var b [1]byte
	_, err := a.Read(b[:])
	return b[0], err
}
