package directory

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"reflect"
	"testing"
)

// largest returns a message of every kind with all it can have, each as large as it gets.
func largest() (all []message) {
	const far = int64(1)<<62 - 1
	m := message{
		from: ^ID(0), number: ^uint32(0), key: testKey(1), scope: ^Scope(0), flags: 0xff,
		offset: far, lease: ^ID(0), reached: far,
	}
	for i := range maxKeys {
		m.held = append(m.held, testKey(i))
	}
	for i := range maxFailed {
		m.failed = append(m.failed, ^ID(i))
	}
	for i := range maxAll {
		m.sources = append(m.sources, Source{^ID(i), far - 1})
	}
	for k := kindAnnounce; k <= kindDoubt; k++ {
		m.kind = k
		all = append(all, m)
	}
	return all
}

// of returns m with the fields alone that its kind uses.
func of(m message) message {
	u := message{kind: m.kind, from: m.from}
	switch m.kind {
	case kindAnnounce:
		u.number, u.held, u.dropped, u.late = m.number, m.held, m.dropped, m.late
	case kindAck:
		u.number = m.number
	case kindAsk:
		u.number, u.key, u.scope, u.flags, u.offset, u.failed = m.number, m.key, m.scope, m.flags, m.offset, m.failed
	case kindAnswer:
		u.number, u.flags, u.lease, u.reached, u.sources = m.number, m.flags, m.lease, m.reached, m.sources
	case kindProgress:
		u.key, u.scope, u.flags, u.offset, u.lease = m.key, m.scope, m.flags, m.offset, m.lease
	case kindConflict:
		u.key, u.scope, u.lease, u.reached = m.key, m.scope, m.lease, m.reached
	case kindDoubt:
		u.key = m.key
	}
	return u
}

func TestMessages(t *testing.T) {
	all := largest()
	for _, m := range all {
		all = append(all, message{kind: m.kind}) // the smallest
	}
	all = append(all, message{kind: kindAnnounce, dropped: keys(3)}, message{kind: kindAnnounce, late: keys(3)},
		message{kind: kindAnswer, sources: []Source{{1, whole}, {2, 0}, {3, wholeLate}}})
	for _, m := range all {
		b := m.encode()
		if len(b) > MaxMessage {
			t.Errorf("kind %d: %d bytes, want at most %d", m.kind, len(b), MaxMessage)
		}
		got, err := parseMessage(b)
		if want := of(m); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("kind %d: came back as\n%+v, %v, want\n%+v", m.kind, got, err, want)
		}
		for n := range b {
			got, err := parseMessage(b[:n])
			older := len(m.late) > 0 && got.late == nil && len(got.encode()) == n // what an older node would say
			if err == nil && !older {
				t.Errorf("kind %d: %d of its %d bytes are a message", m.kind, n, len(b))
			}
		}
		if _, err := parseMessage(append(b, 0)); err == nil {
			t.Errorf("kind %d: with a byte more it is a message", m.kind)
		}
	}
}

// What arrives is never trusted: it parses to what can be sent, or not at all; and no node falls over it.
func FuzzReceive(f *testing.F) {
	for _, m := range largest() {
		f.Add(m.encode())
		f.Add(message{kind: m.kind, from: 2, number: 1, key: testKey(1)}.encode())
	}
	d := New(Config{
		Send:  func(ID, []byte) {},
		After: nil,
	})
	f.Cleanup(d.Close)
	d.SetMembers(Member{ID: 1}, []Member{{ID: 1}, {ID: 2, Zone: "z"}, {ID: ^ID(0)}})
	r := rand.New(rand.NewPCG(1, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMessage(b)
		if err == nil {
			again, err := parseMessage(m.encode())
			if err != nil || !reflect.DeepEqual(m, again) {
				t.Errorf("%+v came back as %+v, %v", m, again, err)
			}
		}
		before := bytes.Clone(b)
		d.Receive(b)
		if !bytes.Equal(b, before) {
			t.Error("the message was changed")
		}
		if m.from = 2; err == nil {
			m.key = testKey(r.IntN(4))
			d.Receive(m.encode()) // of a member
		}
		if r.IntN(100) == 0 {
			d.wantCounts(t)
		}
	})
}

// Nodes of the version before, which knew nothing of late holders, are understood, and understand what they know of.
func TestMessagesOfOlderNodes(t *testing.T) {
	old := []byte{byte(kindAnnounce), 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 9, 1}
	old = append(append(old, testKey(1).bytes()...), 0) // held: one; dropped: none
	want := message{kind: kindAnnounce, from: 7, number: 9, held: []Key{testKey(1)}}
	if got, err := parseMessage(old); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("an announcement: %+v, %v", got, err)
	}
	if got := want.encode(); !bytes.Equal(got, old) {
		t.Errorf("an announcement is sent as %x, want %x", got, old)
	}
	answer := message{kind: kindAnswer, sources: []Source{{1, whole}, {2, 5}, {3, wholeLate}}}.encode()
	tail := append([]byte{3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 6, 0, 0, 0, 0, 0, 0, 0, 3}, binary.AppendUvarint(nil, 1<<62)...)
	if !bytes.HasSuffix(answer, tail) {
		t.Errorf("an answer ends in %x, want %x", answer, tail)
	}
}

func (k Key) bytes() []byte { return k[:] }
