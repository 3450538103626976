// Package dns stands in for the package of that path: messages of DNS (RFC 1035) as multicast DNS has them (RFC 6762), with the records of
// service discovery. Names are texts as in zone files: dots end labels, and \. or \046 is a dot that ends none. What others ask
// the system's resolver is not for it.
package dns

import (
	"errors"
	"slices"
	"strings"
	"time"
)

// Types of records, the class of the Internet, and what the header of a plain question and its answer say.
const (
	TypeA     uint16 = 1
	TypeCNAME uint16 = 5
	TypePTR   uint16 = 12
	TypeTXT   uint16 = 16
	TypeAAAA  uint16 = 28
	TypeSRV   uint16 = 33
	TypeANY   uint16 = 255

	ClassINET = 1

	OpcodeQuery  = 0
	RcodeSuccess = 0
)

// A Msg is a message.
type Msg struct {
	MsgHdr
	Compress          bool // names that were there before are pointers to that
	Question          []Question
	Answer, Ns, Extra []RR
}

// MsgHdr is the header of a message, but for the numbers of records.
type MsgHdr struct {
	Id                                         uint16
	Response                                   bool
	Opcode                                     int
	Authoritative, Truncated                   bool
	RecursionDesired, RecursionAvailable, Zero bool
	AuthenticatedData, CheckingDisabled        bool
	Rcode                                      int
}

// SetQuestion makes m ask for records of a name.
func (m *Msg) SetQuestion(name string, kind uint16) *Msg {
	m.RecursionDesired = true
	m.Question = []Question{{name, kind, ClassINET}}
	return m
}

// A Question asks for records.
type Question struct {
	Name          string
	Qtype, Qclass uint16
}

// RR is a record.
type RR interface{ Header() *RR_Header }

// RR_Header is what all records have.
type RR_Header struct {
	Name          string
	Rrtype, Class uint16
	Ttl           uint32 // seconds
	Rdlength      uint16 // bytes of the rest, as it was read
}

// Header implements [RR].
func (h *RR_Header) Header() *RR_Header { return h }

// Records. Those of other types are read as [Opaque].
type (
	A struct {
		Hdr RR_Header
		A   []byte
	}
	AAAA struct {
		Hdr  RR_Header
		AAAA []byte
	}
	CNAME struct {
		Hdr    RR_Header
		Target string
	}
	PTR struct {
		Hdr RR_Header
		Ptr string
	}
	SRV struct {
		Hdr                    RR_Header
		Priority, Weight, Port uint16
		Target                 string
	}
	TXT struct {
		Hdr RR_Header
		Txt []string // escaped as names are, but for dots
	}
	Opaque struct {
		Hdr  RR_Header
		Data []byte // with pointers into the message that it was in, perhaps: it cannot be packed
	}
)

func (r *A) Header() *RR_Header      { return &r.Hdr }
func (r *AAAA) Header() *RR_Header   { return &r.Hdr }
func (r *CNAME) Header() *RR_Header  { return &r.Hdr }
func (r *PTR) Header() *RR_Header    { return &r.Hdr }
func (r *SRV) Header() *RR_Header    { return &r.Hdr }
func (r *TXT) Header() *RR_Header    { return &r.Hdr }
func (r *Opaque) Header() *RR_Header { return &r.Hdr }

// CanonicalName returns a name as all who mean the same write it.
func CanonicalName(s string) string {
	name := []byte(s)
	for i, c := range name {
		name[i] = lower(c)
	}
	rest := strings.TrimSuffix(s, ".")
	if escapes := len(rest) - len(strings.TrimRight(rest, `\`)); rest == s || escapes%2 == 1 {
		name = append(name, '.') // there is none, or it is part of the label
	}
	return string(name)
}

// lower is for letters of ASCII alone (RFC 4343).
func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// same reports whether two names mean the same. It does not allocate: one query can have thousands compared.
func same(s, t string) bool {
	if len(s) != len(t) {
		return false
	}
	for i := range len(s) {
		if lower(s[i]) != lower(t[i]) {
			return false
		}
	}
	return true
}

// IsDomainName reports whether s can be in a message, and how many labels it has.
func IsDomainName(s string) (labels int, ok bool) {
	list, err := split(CanonicalName(s))
	return len(list), err == nil
}

// IsDuplicate reports whether two records differ in their time to live alone.
func IsDuplicate(a, b RR) bool {
	x, y := a.Header(), b.Header()
	if x.Rrtype != y.Rrtype || x.Class != y.Class || !same(x.Name, y.Name) {
		return false
	}
	switch a := a.(type) {
	case *A:
		b, ok := b.(*A)
		return ok && string(a.A) == string(b.A)
	case *AAAA:
		b, ok := b.(*AAAA)
		return ok && string(a.AAAA) == string(b.AAAA)
	case *CNAME:
		b, ok := b.(*CNAME)
		return ok && same(a.Target, b.Target)
	case *PTR:
		b, ok := b.(*PTR)
		return ok && same(a.Ptr, b.Ptr)
	case *SRV:
		b, ok := b.(*SRV)
		return ok && a.Priority == b.Priority && a.Weight == b.Weight && a.Port == b.Port && same(a.Target, b.Target)
	case *TXT:
		b, ok := b.(*TXT)
		return ok && slices.Equal(a.Txt, b.Txt)
	}
	return false
}

// ErrNoClient is what is answered to whoever asks a server: the system's resolver is for that.
var ErrNoClient = errors.New("dns: no client here")

// ClientConfig says which servers there are.
type ClientConfig struct {
	Servers []string
	Port    string
}

// ClientConfigFromFile returns [ErrNoClient], upon which memberlist asks the system's resolver.
func ClientConfigFromFile(string) (*ClientConfig, error) { return nil, ErrNoClient }

// A Client asks nobody.
type Client struct{ Net string }

// Exchange returns [ErrNoClient].
func (*Client) Exchange(*Msg, string) (*Msg, time.Duration, error) { return nil, 0, ErrNoClient }
