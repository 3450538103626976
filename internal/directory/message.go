package directory

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Messages are binary: a byte that is version and kind, the sender's ID, and what the kind has, in this order and in
// big-endian: number (4 bytes), key (16), scope (8), flags (1), offset (uvarint), lease (8) with its offset (uvarint),
// and lists, each with its length in a byte before it. A message fits one datagram.
type kind byte

// The kinds of messages. A later, incompatible version begins at another multiple of 16.
const (
	kindAnnounce kind = 1 + iota // number, keys held, keys not held any more, keys held late
	kindAck                      // number of an announcement
	kindAsk                      // number, key, scope, flags, offset, failed
	kindAnswer                   // number, flags, lease, sources
	kindProgress                 // key, scope, flags, offset, lease: whom the sender reads from
	kindConflict                 // key, scope, lease
	kindDoubt                    // key
)

// Flags of messages.
const (
	flagLease  = 1 << iota // ask: gives the lease if it is free. answer: it is the asker's. progress: the sender has it
	flagJoin               // ask: the asker begins or goes on to receive
	flagEnded              // progress: the transfer is over
	flagFailed             // progress: it is over because the registry did not supply it to this node
	flagWhole              // progress: it is over because this node has all of it now
	flagPlace              // ask: gives the asker its place among those who receive
	flagAll                // ask: names everybody, rather than a few to read from
)

// MaxMessage is the size of the largest message, in bytes: it fits a datagram on every link, with room for encryption.
const MaxMessage = 1200

const (
	maxKeys    = 72 // in one announcement
	maxFailed  = 8
	maxSources = 8          // in one answer
	maxAll     = maxHolders // in one that names everybody
)

var errMessage = errors.New("malformed message")

// Offsets of who has all of the content, and of who has it once it has made it. In messages the first is 0, and the second more than
// any content has, as which nodes that know nothing of it take it.
const (
	whole     = -1
	wholeLate = -2

	lateOffset = 1 << 62
)

// A message is any message; a kind uses some of the fields.
type message struct {
	kind    kind
	from    ID
	number  uint32
	key     Key
	scope   Scope
	flags   byte
	offset  int64
	lease   ID // 0: nobody
	reached int64
	held    []Key
	dropped []Key
	late    []Key
	failed  []ID
	sources []Source
}

// encode returns the message as it is sent.
func (m message) encode() []byte {
	b := []byte{byte(m.kind)}
	b = binary.BigEndian.AppendUint64(b, uint64(m.from))
	switch m.kind {
	case kindAnnounce:
		b = binary.BigEndian.AppendUint32(b, m.number)
		b = appendKeys(appendKeys(b, m.held), m.dropped)
		if len(m.late) > 0 { // older nodes know of no third list
			b = appendKeys(b, m.late)
		}
	case kindAck:
		b = binary.BigEndian.AppendUint32(b, m.number)
	case kindAsk:
		b = binary.BigEndian.AppendUint32(b, m.number)
		b = m.appendTransfer(b)
		b = append(b, byte(len(m.failed)))
		for _, id := range m.failed {
			b = binary.BigEndian.AppendUint64(b, uint64(id))
		}
	case kindAnswer:
		b = binary.BigEndian.AppendUint32(b, m.number)
		b = append(b, m.flags)
		b = m.appendLease(b)
		b = append(b, byte(len(m.sources)))
		for _, s := range m.sources {
			b = binary.BigEndian.AppendUint64(b, uint64(s.ID))
			b = binary.AppendUvarint(b, s.encodedOffset())
		}
	case kindProgress:
		b = m.appendTransfer(b)
		b = binary.BigEndian.AppendUint64(b, uint64(m.lease))
	case kindConflict:
		b = append(b, m.key[:]...)
		b = binary.BigEndian.AppendUint64(b, uint64(m.scope))
		b = m.appendLease(b)
	case kindDoubt:
		b = append(b, m.key[:]...)
	}
	return b
}

func (s Source) encodedOffset() uint64 {
	if s.Late() {
		return lateOffset
	}
	return uint64(min(s.Offset+1, lateOffset-1))
}

func (m message) appendTransfer(b []byte) []byte {
	b = append(b, m.key[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(m.scope))
	b = append(b, m.flags)
	return binary.AppendUvarint(b, uint64(m.offset))
}

func (m message) appendLease(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(m.lease))
	return binary.AppendUvarint(b, uint64(m.reached))
}

func appendKeys(b []byte, keys []Key) []byte {
	b = append(b, byte(len(keys)))
	for _, k := range keys {
		b = append(b, k[:]...)
	}
	return b
}

// parseMessage decodes b. Nothing of the result is part of b.
func parseMessage(b []byte) (message, error) {
	r := parser{b: b}
	m := message{kind: kind(r.byte()), from: ID(r.uint64())}
	switch m.kind {
	case kindAnnounce:
		m.number = r.uint32()
		m.held, m.dropped = r.keys(), r.keys()
		if len(r.b) > 0 {
			m.late = r.keys()
			r.failed = r.failed || len(m.late) == 0
		}
	case kindAck:
		m.number = r.uint32()
	case kindAsk:
		m.number = r.uint32()
		r.transfer(&m)
		for range r.length(maxFailed) {
			m.failed = append(m.failed, ID(r.uint64()))
		}
	case kindAnswer:
		m.number, m.flags = r.uint32(), r.byte()
		r.lease(&m)
		for range r.length(maxAll) {
			id := ID(r.uint64())
			s := Source{id, r.varint() - 1}
			if s.Offset == lateOffset-1 {
				s.Offset = wholeLate
			}
			m.sources = append(m.sources, s)
		}
	case kindProgress:
		r.transfer(&m)
		m.lease = ID(r.uint64())
	case kindConflict:
		m.key, m.scope = r.key(), Scope(r.uint64())
		r.lease(&m)
	case kindDoubt:
		m.key = r.key()
	default:
		return message{}, fmt.Errorf("kind %d: %w", m.kind, errMessage)
	}
	if r.failed || len(r.b) > 0 {
		return message{}, fmt.Errorf("kind %d of %d bytes: %w", m.kind, len(b), errMessage)
	}
	return m, nil
}

// A parser takes fields from the front of b. Once one is not there it has failed, and gives zeros.
type parser struct {
	b      []byte
	failed bool
}

func (r *parser) take(n int) []byte {
	if r.failed || len(r.b) < n {
		r.failed, r.b = true, nil
		return make([]byte, n)
	}
	field := r.b[:n]
	r.b = r.b[n:]
	return field
}

func (r *parser) byte() byte     { return r.take(1)[0] }
func (r *parser) uint32() uint32 { return binary.BigEndian.Uint32(r.take(4)) }
func (r *parser) uint64() uint64 { return binary.BigEndian.Uint64(r.take(8)) }
func (r *parser) key() Key       { return Key(r.take(len(Key{}))) }

// varint takes a number of at most 62 bits, so that sums of two do not overflow.
func (r *parser) varint() int64 {
	v, n := binary.Uvarint(r.b)
	if r.failed || n <= 0 || v > 1<<62 {
		r.failed, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return int64(v)
}

func (r *parser) length(most int) int {
	n := int(r.byte())
	if n > most {
		r.failed, r.b = true, nil
		return 0
	}
	return n
}

func (r *parser) keys() (keys []Key) {
	for range r.length(maxKeys) {
		if r.failed {
			return nil
		}
		keys = append(keys, r.key())
	}
	return keys
}

func (r *parser) transfer(m *message) {
	m.key, m.scope, m.flags, m.offset = r.key(), Scope(r.uint64()), r.byte(), r.varint()
}

func (r *parser) lease(m *message) {
	m.lease = ID(r.uint64())
	m.reached = r.varint()
}
