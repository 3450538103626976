package member

import (
	"encoding/binary"
	"time"

	"github.com/hashicorp/memberlist"
)

// The types of memberlist's messages that members send, and of what messages are wrapped in. It does not export them; they are its
// protocol, and do not change.
const (
	typePing         = 0
	typeIndirectPing = 1
	typeAck          = 2
	typeSuspect      = 3
	typeAlive        = 4
	typeDead         = 5
	typePushPull     = 6
	typeCompound     = 7
	typeUser         = 8
	typeEncrypt      = 10
	typeNack         = 11
	typeCRC          = 12
	typeErr          = 13
	typeLabel        = 244
)

// maxRelays is the indirect pings a node passes on in a second, each of which takes memberlist a goroutine for pace.timeout. If all
// members miss all the answers to their probes, it is asked for less than two.
const maxRelays = 100

// A guard looks at unencrypted packets before memberlist does. Not for concurrent use; its zero value works.
type guard struct {
	second time.Time // when the present one began
	relays int       // in it
}

// admits reports whether a packet that came at that time is one that members send. Memberlist takes more: it inflates what is
// compressed, a thousandfold, whether or not it was told to compress; and for a text it allocates 256 KiB if that claims to be so long.
func (g *guard) admits(packet []byte, at time.Time) bool {
	if at.Sub(g.second) >= time.Second {
		g.second, g.relays = at, 0
	}
	b, _, err := memberlist.RemoveLabelHeaderFromPacket(packet)
	if err != nil {
		return false
	}
	const crc = 5 // bytes, with the type
	if len(b) > crc && b[0] == typeCRC {
		b = b[crc:]
	}
	if len(b) < 2 || b[0] != typeCompound {
		return g.admitsMessage(b)
	}
	// The type, the number of parts, the length of each in two bytes, the parts.
	lengths, parts := b[2:], []byte(nil)
	if n := 2 * int(b[1]); n <= len(lengths) {
		lengths, parts = lengths[:n], lengths[n:]
	}
	for ; len(lengths) >= 2; lengths = lengths[2:] {
		n := int(binary.BigEndian.Uint16(lengths))
		if n > len(parts) || !g.admitsMessage(parts[:n]) {
			return false
		}
		parts = parts[n:]
	}
	return true
}

// admitsMessage is admits for a message that has no others in it.
func (g *guard) admitsMessage(b []byte) bool {
	if len(b) == 0 {
		return false
	}
	switch b[0] {
	case typeUser: // only Config.Message knows what it says
		return true
	case typeIndirectPing:
		g.relays++
		return g.relays <= maxRelays && complete(b[1:])
	case typePing, typeAck, typeSuspect, typeAlive, typeDead, typeNack:
		return complete(b[1:])
	default:
		return false
	}
}

// complete reports whether b begins with a value in MessagePack that is all there. Of its formats it knows those that members use.
func complete(b []byte) bool {
	for pending := 1; pending > 0; pending-- { // values
		if len(b) == 0 {
			return false
		}
		size := 1
		switch c := b[0]; {
		case c < 0x80, c >= 0xe0, c == 0xc0, c == 0xc2, c == 0xc3: // small integers, nil, false, true
		case c < 0x90: // a map
			pending += 2 * int(c&0xf)
		case c < 0xa0: // an array
			pending += int(c & 0xf)
		case c < 0xc0: // a text or bytes, as the next two
			size += int(c & 0x1f)
		case (c == 0xd9 || c == 0xc4) && len(b) >= 2:
			size += 1 + int(b[1])
		case (c == 0xda || c == 0xc5) && len(b) >= 3:
			size += 2 + int(binary.BigEndian.Uint16(b[1:]))
		case c >= 0xcc && c <= 0xd3: // integers of 1, 2, 4 and 8 bytes, without and with a sign
			size += 1 << (c & 3)
		default:
			return false
		}
		if size > len(b) {
			return false
		}
		b = b[size:]
	}
	return true
}
