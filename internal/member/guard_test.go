package member

import (
	"bytes"
	"compress/lzw"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/hashicorp/go-msgpack/v2/codec"
)

const typeCompress = 9

// message returns a message of that type as memberlist encodes it.
func message(kind byte, v any) []byte {
	var b bytes.Buffer
	b.WriteByte(kind)
	if err := codec.NewEncoder(&b, &codec.MsgpackHandle{}).Encode(v); err != nil {
		panic(err)
	}
	return b.Bytes()
}

type pushPull struct {
	Nodes, UserStateLen int
	Join                bool
}

// bomb returns a message that inflates to size bytes.
func bomb(size int) []byte {
	var z bytes.Buffer
	w := lzw.NewWriter(&z, lzw.LSB, 8)
	_, _ = w.Write(make([]byte, size))
	w.Close()
	return message(typeCompress, struct {
		Algo byte
		Buf  []byte
	}{0, z.Bytes()})
}

func labelled(b []byte) []byte {
	return append(append([]byte{typeLabel, 6}, "pier x"...), b...)
}

func checked(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{typeCRC}, crc32.ChecksumIEEE(b)), b...)
}

func compound(parts ...[]byte) []byte {
	b := []byte{typeCompound, byte(len(parts))}
	for _, p := range parts {
		b = binary.BigEndian.AppendUint16(b, uint16(len(p)))
	}
	return append(b, bytes.Join(parts, nil)...)
}

// growth returns the bytes that the heap grew by at most while f ran, with little garbage among them.
func growth(f func()) int {
	defer debug.SetGCPercent(debug.SetGCPercent(20))
	runtime.GC()
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	peak := before.HeapAlloc
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	look := time.NewTicker(2 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case <-done:
			return int(peak - before.HeapAlloc)
		case <-look.C:
			runtime.ReadMemStats(&now)
			peak = max(peak, now.HeapAlloc)
		}
	}
}

// knock sends b over as many connections as a node takes at once, from as many addresses as that needs, and waits until it closed them.
// It returns how many bytes were answered.
func knock(t *testing.T, n *node, b []byte) (answered int64) {
	t.Helper()
	var wg sync.WaitGroup
	var sum atomic.Int64
	for i := range maxStreams {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i/maxCalls))}}
		conn, err := d.Dial("tcp", n.name())
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			_, _ = conn.Write(b) // may be cut
			got, err := io.Copy(io.Discard, conn)
			sum.Add(got)
			if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
				t.Error("a connection is not closed")
			}
		})
	}
	wg.Wait()
	return sum.Load()
}

func gossiping(t *testing.T, c Config) *node {
	t.Helper()
	c.Cluster = "x"
	n := start(t, c)
	eventually(t, func() string {
		if n.list.Load() == nil {
			return "it does not gossip"
		}
		return ""
	})
	return n
}

// A header of 44 bytes that announced a million members cost 112 MB on every connection.
func TestHeaderAllocatesForAMillion(t *testing.T) {
	n := gossiping(t, Config{})
	for _, header := range []pushPull{{Nodes: 1 << 20, Join: true}, {Nodes: -1}, {UserStateLen: 20 << 20}} {
		got := growth(func() { knock(t, n, labelled(message(typePushPull, header))) })
		if got > 4<<20 {
			t.Errorf("%+v: the heap grew by %d bytes", header, got)
		}
	}
}

// Headers that announce what is possible, each, cost as much on all connections together as the budget has.
func TestHeadersTogetherExceedTheBudget(t *testing.T) {
	n := gossiping(t, Config{})
	header := labelled(message(typePushPull, pushPull{Nodes: maxStates}))
	if got := growth(func() { knock(t, n, header) }); got > 32<<20 {
		t.Errorf("the heap grew by %d bytes, the budget is %d", got, maxHeld)
	}
	if held := n.opened().held.inbound.Load(); held != 0 {
		t.Errorf("%d bytes are still held", held)
	}
}

// Whoever did not show a key yet made a node keep 16 MiB on each of 128 connections.
func TestCiphertextIsKeptUnread(t *testing.T) {
	n := gossiping(t, Config{Keys: func() [][]byte { return [][]byte{bytes.Repeat([]byte{1}, 32)} }})
	const size = 4 << 20
	sealed := binary.BigEndian.AppendUint32([]byte{typeEncrypt}, size+1) // of which the last byte never comes
	sealed = labelled(append(sealed, make([]byte, size)...))
	if got := growth(func() { knock(t, n, sealed) }); got > 40<<20 {
		t.Errorf("the heap grew by %d bytes, the budget is %d", got, maxHeld)
	}
	if held := n.opened().held.inbound.Load(); held != 0 {
		t.Errorf("%d bytes are still held", held)
	}
}

// Compressed messages were inflated, a thousandfold, though no member sends any.
func TestCompressedIsInflated(t *testing.T) {
	n := gossiping(t, Config{})
	large, small := bomb(38<<20), bomb(400<<10)
	got := growth(func() {
		udp, err := net.Dial("udp", n.name())
		if err != nil {
			t.Fatal(err)
		}
		defer udp.Close()
		for _, b := range [][]byte{large, small, checked(large), checked(small), compound(small), checked(compound(small))} {
			for range 10 {
				_, _ = udp.Write(labelled(b)) // some are refused here already
			}
		}
		if answered := knock(t, n, labelled(large)); answered > 0 {
			t.Errorf("%d bytes answered", answered)
		}
		if answered := knock(t, n, labelled(append([]byte{typeUser, 0x81, 0xaa}, "UserMsgLen\xce\x01\x00\x00\x00"...))); answered > 0 {
			t.Errorf("%d bytes answered", answered)
		}
	})
	if got > 4<<20 {
		t.Errorf("the heap grew by %d bytes", got)
	}
}

func TestGuard(t *testing.T) {
	ping := message(typePing, struct {
		SeqNo      uint32
		Node       string
		SourceAddr []byte
		SourcePort uint16
	}{1 << 31, "127.0.0.1:7946", []byte{127, 0, 0, 1}, 7946})
	alive := message(typeAlive, struct {
		Incarnation uint32
		Meta, Vsn   []byte
		A, B, C, D  int
	}{300, make([]byte, 300), make([]byte, 6), -1, 1000, -100000, 1 << 40})
	user := []byte{typeUser, 'm'}
	for _, good := range [][]byte{ping, alive, user, compound(ping, alive, user), compound()} {
		for _, b := range [][]byte{good, labelled(good), checked(good), labelled(checked(good))} {
			if !new(guard).admits(b, time.Now()) {
				t.Errorf("%x is refused", b)
			}
		}
	}
	bad := map[string][]byte{
		"nothing":          {},
		"a label alone":    labelled(nil),
		"half a label":     {typeLabel, 9, 'x'},
		"half a sum":       {typeCRC, 1, 2, 3, 4},
		"a push and pull":  message(typePushPull, pushPull{}),
		"an error":         message(typeErr, struct{ Error string }{"x"}),
		"compressed":       bomb(100),
		"in a compound":    compound(ping, bomb(100)),
		"nested":           compound(compound(ping)),
		"a sum in a sum":   checked(checked(ping)),
		"too short lists":  {typeCompound, 4, 0, 0},
		"too short parts":  {typeCompound, 1, 0, 9, typeUser},
		"an empty part":    compound(nil),
		"a text of 4 GiB":  append([]byte{typePing, 0x81, 0xa4}, "Node\xdb\xff\xff\xff\xff"...),
		"a text of 64 KiB": append([]byte{typePing, 0x81, 0xa4}, "Node\xda\xff\xff"...),
		"a map cut off":    {typePing, 0x82, 0xc0, 0xc0},
		"two labels":       labelled(labelled(ping)),
	}
	for what, b := range bad {
		if new(guard).admits(b, time.Now()) {
			t.Errorf("%s is admitted", what)
		}
	}
}

// Each indirect ping cost a goroutine for a second and a half, however many came: 260 MB at 50 Mbit/s.
func TestIndirectPingsWithoutEnd(t *testing.T) {
	ping := message(typeIndirectPing, struct{ Node string }{"x"})
	var g guard
	at := time.Now()
	for range 3 {
		admitted := 0
		for range 10 * maxRelays {
			if g.admits(compound(ping), at) {
				admitted++
			}
		}
		if admitted != maxRelays {
			t.Errorf("%d are admitted within a second, want %d", admitted, maxRelays)
		}
		at = at.Add(time.Second)
	}
	if g.admits(compound(slices.Repeat([][]byte{ping}, maxRelays+1)...), at) {
		t.Errorf("%d are admitted in one packet", maxRelays+1)
	}
}

// What counts as complete is, to the decoder that memberlist uses.
func FuzzComplete(f *testing.F) {
	f.Add(message(typePushPull, pushPull{1 << 20, -1, true})[1:])
	f.Add([]byte("\x93\xda\x00\x01x\xd9\x01y\xd3\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		field := io.MultiReader(strings.NewReader("\x81\xa1x"), bytes.NewReader(b))
		if err := codec.NewDecoder(field, &codec.MsgpackHandle{}).Decode(&struct{}{}); err != nil && complete(b) {
			t.Errorf("%x is not complete: %v", b, err)
		}
	})
}

// A connection hands on what came, or less.
func FuzzStream(f *testing.F) {
	f.Add(labelled(message(typePushPull, pushPull{Nodes: 1 << 20})))
	f.Add(message(typeAck, struct{ SeqNo int }{1}))
	f.Add([]byte{typeEncrypt, 0, 0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		s := streamOf(bytes.NewReader(b))
		got, err := io.ReadAll(s)
		if !bytes.HasPrefix(b, got) || err == nil && len(got) > 0 && len(got) < len(b) {
			t.Errorf("%x came of %x, and %v", got, b, err)
		}
		s.Close()
		if held := s.budget.Load(); held != 0 {
			t.Errorf("%d bytes are still held", held)
		}
	})
}

type readConn struct {
	net.Conn
	io.Reader
}

func (c readConn) Read(p []byte) (int, error) { return c.Reader.Read(p) }

func (readConn) Close() error { return nil }

// streamOf returns a connection from another member of the largest cluster.
func streamOf(r io.Reader) *stream {
	return &stream{
		Conn: readConn{Reader: r}, meter: newInstruments(metrics.NewSet(), nil), left: maxInbound,
		budget: new(atomic.Int64), answer: maxMembers * costAnswer, release: func() {},
	}
}

// One address that holds all the connections it can get keeps nobody else out.
func TestOneAddressTakesAllConnections(t *testing.T) {
	p := quick()
	p.exchange = 30 * time.Second
	a := gossiping(t, Config{pace: p})
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, 1)}}
	for range maxCalls {
		conn, err := d.Dial("tcp", a.name())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	eventually(t, func() string {
		if got := a.opened().callers.count(); got != maxCalls {
			return fmt.Sprintf("%d connections are counted, want %d", got, maxCalls)
		}
		return ""
	})
	conn, err := d.Dial("tcp", a.name())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("one more connection: got error %v, want it closed", err)
	}
	b := start(t, Config{Cluster: "x", Peers: at(a)})
	a.sees(t, b)
	b.sees(t, a)
}

// What the largest cluster has to tell goes through, encrypted or not.
func TestLargestClusterExchanges(t *testing.T) {
	states := make([]byte, maxMembers*300)
	plain := labelled(append(message(typePushPull, pushPull{Nodes: maxMembers, Join: true}), states...))
	sealed := labelled(append(binary.BigEndian.AppendUint32([]byte{typeEncrypt}, uint32(len(states))), states...))
	for _, b := range [][]byte{plain, sealed} {
		s := streamOf(bytes.NewReader(b))
		if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, b) {
			t.Errorf("%d bytes of %d came, and %v", len(got), len(b), err)
		}
		s.Close()
	}
}

// Headers come in any number of pieces.
func TestHeaderInPieces(t *testing.T) {
	b := labelled(message(typePushPull, pushPull{Nodes: 300, Join: true}))
	s := streamOf(iotest.OneByteReader(bytes.NewReader(b)))
	defer s.Close()
	if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, b) {
		t.Errorf("%x came, and %v; want %x", got, err, b)
	}
	if want := int64(costOpen + len(b) + 300*costState + s.answer); s.held != want {
		t.Errorf("%d bytes are held, want %d", s.held, want)
	}
}

// count returns how many connections are open.
func (c *callers) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all
}
