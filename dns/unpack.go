package dns

import (
	"encoding/binary"
	"errors"
	"strings"
)

// An unpacker reads a message.
type unpacker struct {
	b  []byte
	at int
}

// Unpack reads a message, which may come from anybody. What follows its records is passed over.
func (m *Msg) Unpack(b []byte) error {
	u := unpacker{b: b}
	var head [6]uint16
	if err := u.numbers(&head[0], &head[1], &head[2], &head[3], &head[4], &head[5]); err != nil {
		return err
	}
	*m = Msg{MsgHdr: MsgHdr{Id: head[0], Opcode: int(head[1] >> 11 & 0xf), Rcode: int(head[1] & 0xf)}}
	for _, f := range m.flags() {
		*f.is = head[1]&f.bit != 0
	}
	for range head[2] {
		var q Question
		var err error
		if q.Name, err = u.name(); err == nil {
			err = u.numbers(&q.Qtype, &q.Qclass)
		}
		if err != nil {
			return err
		}
		m.Question = append(m.Question, q)
	}
	for i, rrs := range []*[]RR{&m.Answer, &m.Ns, &m.Extra} {
		for range head[3+i] {
			rr, err := u.record()
			if err != nil {
				return err
			}
			*rrs = append(*rrs, rr)
		}
	}
	return nil
}

func (u *unpacker) numbers(list ...*uint16) error {
	if len(u.b)-u.at < 2*len(list) {
		return errShort
	}
	for _, n := range list {
		*n = binary.BigEndian.Uint16(u.b[u.at:])
		u.at += 2
	}
	return nil
}

// name reads a name, and follows its pointers: each must lead to before the one before it, so that this ends, and there may be
// only so many, so that it ends soon: a packet can have thousands, and as many names that begin with the last of them.
func (u *unpacker) name() (string, error) {
	s := make([]byte, 0, 4*maxName) // on the stack: no name is longer, with every byte escaped
	size, pointers := 1, 0
	at, before, after := u.at, u.at, -1 // after is where the next begins, once a pointer was followed
	for {
		if at >= len(u.b) {
			return "", errShort
		}
		n := int(u.b[at])
		at++
		switch {
		case n == 0:
			if u.at = at; after >= 0 {
				u.at = after
			}
			if len(s) == 0 {
				return ".", nil
			}
			return string(s), nil
		case n&pointer == pointer:
			if at >= len(u.b) {
				return "", errShort
			}
			to := n&^pointer<<8 | int(u.b[at])
			if after < 0 {
				after = at + 1
			}
			if pointers++; to >= before || pointers > maxPointers {
				return "", errName
			}
			at, before = to, to
		case n > maxLabel:
			return "", errName
		case at+n > len(u.b):
			return "", errShort
		default:
			if size += 1 + n; size > maxName {
				return "", errName
			}
			s = append(escape(s, u.b[at:at+n], true), '.')
			at += n
		}
	}
}

// escape appends text to s, so that next reads it again.
func escape(s, text []byte, label bool) []byte {
	for _, c := range text {
		switch {
		case c < ' ' || c > '~':
			s = append(s, '\\', '0'+c/100, '0'+c/10%10, '0'+c%10)
		case c == '\\' || c == '"' || label && strings.IndexByte(".();'@ ", c) >= 0:
			s = append(s, '\\', c)
		default:
			s = append(s, c)
		}
	}
	return s
}

func (u *unpacker) record() (RR, error) {
	var h RR_Header
	var err error
	if h.Name, err = u.name(); err != nil {
		return nil, err
	}
	var high, low uint16
	if err := u.numbers(&h.Rrtype, &h.Class, &high, &low, &h.Rdlength); err != nil {
		return nil, err
	}
	h.Ttl = uint32(high)<<16 | uint32(low)
	end := u.at + int(h.Rdlength)
	if end > len(u.b) {
		return nil, errShort
	}
	rr, err := (&unpacker{u.b[:end], u.at}).data(h)
	u.at = end
	return rr, err
}

var errData = errors.New("dns: no such record can be")

// data reads the rest of a record, which is all that there is.
func (u *unpacker) data(h RR_Header) (rr RR, err error) {
	data := u.b[u.at:]
	switch h.Rrtype {
	case TypeA, TypeAAAA:
		b := append([]byte(nil), data...)
		if h.Rrtype == TypeA && len(b) == 4 {
			return &A{h, b}, nil
		}
		if h.Rrtype == TypeAAAA && len(b) == 16 {
			return &AAAA{h, b}, nil
		}
		return nil, errData
	case TypeCNAME:
		r := &CNAME{Hdr: h}
		r.Target, err = u.name()
		rr = r
	case TypePTR:
		r := &PTR{Hdr: h}
		r.Ptr, err = u.name()
		rr = r
	case TypeSRV:
		r := &SRV{Hdr: h}
		if err = u.numbers(&r.Priority, &r.Weight, &r.Port); err == nil {
			r.Target, err = u.name()
		}
		rr = r
	case TypeTXT:
		r := &TXT{Hdr: h}
		for u.at < len(u.b) && err == nil {
			n := int(u.b[u.at])
			if u.at++; u.at+n > len(u.b) {
				return nil, errData
			}
			r.Txt = append(r.Txt, string(escape(nil, u.b[u.at:u.at+n], false)))
			u.at += n
		}
		rr = r
	default:
		return &Opaque{h, append([]byte(nil), data...)}, nil
	}
	if err == nil && u.at != len(u.b) {
		err = errData
	}
	return rr, err
}
