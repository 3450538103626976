package dns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

const (
	maxName  = 255     // bytes of a name in a message
	maxLabel = 63      // of a label
	pointer  = 0xc0    // begins a pointer to what was there before
	reach    = 1 << 14 // pointers lead to what is before that

	maxPointers = maxName/2 - 1 // of a name: one between two labels, the shortest of which take two bytes

	flagResponse           = 1 << 15
	flagAuthoritative      = 1 << 10
	flagTruncated          = 1 << 9
	flagRecursionDesired   = 1 << 8
	flagRecursionAvailable = 1 << 7
	flagZero               = 1 << 6
	flagAuthenticated      = 1 << 5
	flagChecking           = 1 << 4
)

var (
	errName  = errors.New("dns: no name that a message can have")
	errShort = errors.New("dns: the message ends too early")
)

// split returns the labels of a name that ends in a dot, without what is escaped.
func split(name string) (labels []string, err error) {
	if name == "." {
		return nil, nil
	}
	var label []byte
	total := 1
	for len(name) > 0 {
		c, rest, escaped := next(name)
		name = rest
		if c != '.' || escaped {
			label = append(label, c)
			continue
		}
		total += 1 + len(label)
		if len(label) == 0 || len(label) > maxLabel || total > maxName {
			return nil, errName
		}
		labels = append(labels, string(label))
		label = label[:0]
	}
	if len(label) > 0 || labels == nil {
		return nil, errName // it does not end in a dot
	}
	return labels, nil
}

// next returns the first byte of a text that is not empty, what follows, and whether it was escaped.
func next(s string) (c byte, rest string, escaped bool) {
	if s[0] != '\\' || len(s) == 1 {
		return s[0], s[1:], false
	}
	if len(s) >= 4 && digit(s[1]) && digit(s[2]) && digit(s[3]) {
		if n := int(s[1]-'0')*100 + int(s[2]-'0')*10 + int(s[3]-'0'); n <= math.MaxUint8 {
			return byte(n), s[4:], true
		}
	}
	return s[1], s[2:], true
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

// A packer makes a message.
type packer struct {
	b    []byte
	seen map[string]int // where names are; nil: nothing is compressed
}

// Pack returns the message.
func (m *Msg) Pack() ([]byte, error) {
	p := packer{b: make([]byte, 0, 512)}
	if m.Compress {
		p.seen = make(map[string]int)
	}
	flags := uint16(m.Opcode&0xf)<<11 | uint16(m.Rcode&0xf)
	for _, f := range m.flags() {
		if *f.is {
			flags |= f.bit
		}
	}
	for _, n := range []int{int(m.Id), int(flags), len(m.Question), len(m.Answer), len(m.Ns), len(m.Extra)} {
		if n > math.MaxUint16 {
			return nil, errors.New("dns: too many records")
		}
		p.b = binary.BigEndian.AppendUint16(p.b, uint16(n))
	}
	for _, q := range m.Question {
		if err := p.name(q.Name, true); err != nil {
			return nil, err
		}
		p.numbers(q.Qtype, q.Qclass)
	}
	for _, rrs := range [][]RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range rrs {
			if err := p.record(rr); err != nil {
				return nil, err
			}
		}
	}
	return p.b, nil
}

type flag struct {
	is  *bool
	bit uint16
}

func (h *MsgHdr) flags() []flag {
	return []flag{
		{&h.Response, flagResponse}, {&h.Authoritative, flagAuthoritative}, {&h.Truncated, flagTruncated}, {&h.RecursionDesired, flagRecursionDesired},
		{&h.RecursionAvailable, flagRecursionAvailable}, {&h.Zero, flagZero}, {&h.AuthenticatedData, flagAuthenticated}, {&h.CheckingDisabled, flagChecking},
	}
}

// Len returns how many bytes the message takes, 0 if it cannot be packed.
func (m *Msg) Len() int {
	b, _ := m.Pack()
	return len(b)
}

// Len returns how many bytes a record takes that is not compressed, 0 if it cannot be packed.
func Len(rr RR) int {
	var p packer
	if p.record(rr) != nil {
		return 0
	}
	return len(p.b)
}

func (p *packer) numbers(list ...uint16) {
	for _, n := range list {
		p.b = binary.BigEndian.AppendUint16(p.b, n)
	}
}

// name appends a name. In the data of records of service locations it must not be a pointer (RFC 2782).
func (p *packer) name(name string, compress bool) error {
	labels, err := split(name)
	if err != nil {
		return fmt.Errorf("%w: %.300q", err, name)
	}
	var wire []byte
	for _, label := range labels {
		wire = append(append(wire, byte(len(label))), label...)
	}
	for _, label := range labels {
		if p.seen != nil {
			rest := string(wire)
			at, ok := p.seen[rest]
			if ok && compress {
				p.numbers(pointer<<8 | uint16(at))
				return nil
			}
			if !ok && len(p.b) < reach {
				p.seen[rest] = len(p.b)
			}
		}
		p.b = append(p.b, wire[:1+len(label)]...)
		wire = wire[1+len(label):]
	}
	p.b = append(p.b, 0)
	return nil
}

func (p *packer) record(rr RR) error {
	h := rr.Header()
	if err := p.name(h.Name, true); err != nil {
		return err
	}
	p.numbers(h.Rrtype, h.Class, uint16(h.Ttl>>16), uint16(h.Ttl), 0)
	start := len(p.b)
	if err := p.data(rr); err != nil {
		return err
	}
	n := len(p.b) - start
	if n > math.MaxUint16 {
		return errors.New("dns: the record is too large")
	}
	binary.BigEndian.PutUint16(p.b[start-2:], uint16(n))
	return nil
}

func (p *packer) data(rr RR) error {
	switch rr := rr.(type) {
	case *A:
		return p.address(rr.A, 4)
	case *AAAA:
		return p.address(rr.AAAA, 16)
	case *CNAME:
		return p.name(rr.Target, true)
	case *PTR:
		return p.name(rr.Ptr, true)
	case *SRV:
		p.numbers(rr.Priority, rr.Weight, rr.Port)
		return p.name(rr.Target, false)
	case *TXT:
		return p.texts(rr.Txt)
	}
	return fmt.Errorf("dns: a record of type %d cannot be packed", rr.Header().Rrtype)
}

func (p *packer) address(b []byte, size int) error {
	if len(b) != size {
		return fmt.Errorf("dns: an address of %d bytes", len(b))
	}
	p.b = append(p.b, b...)
	return nil
}

func (p *packer) texts(list []string) error {
	for _, s := range list {
		at := len(p.b)
		p.b = append(p.b, 0)
		for len(s) > 0 {
			var c byte
			c, s, _ = next(s)
			p.b = append(p.b, c)
		}
		n := len(p.b) - at - 1
		if n > math.MaxUint8 {
			return errors.New("dns: a text of more than 255 bytes")
		}
		p.b[at] = byte(n)
	}
	return nil
}
