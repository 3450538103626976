package mdns

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// packets were made by github.com/miekg/dns 1.1.73, of the messages beside them.
func packets() map[string]*dns.Msg {
	of := func(name string, kind uint16, ttl uint32) dns.RR_Header {
		return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl}
	}
	const instance, host = `10\.0\.0\.9:7946\ caf\195\169.` + service, "pier-0011.local."
	return map[string]*dns.Msg{
		"000084000000000600000000095f7365727669636573075f646e732d7364045f756470056c6f63616c00000c000100001194000d055f70696572045f746370c023c034000c00010000119400161331302e302e302e393a3739343620636166c3a9c034c04d00210001000000780017000100021f0a09706965722d30303131056c6f63616c00c04d001000010000119400110c636c75737465723de422785c03763d31c075000100010000007800040a000009c075001c0001000000780010fd000000000000000000000000000009": {
			MsgHdr: dns.MsgHdr{Response: true, Authoritative: true}, Compress: true, Answer: []dns.RR{
				&dns.PTR{Hdr: of(catalog, dns.TypePTR, 4500), Ptr: service},
				&dns.PTR{Hdr: of(service, dns.TypePTR, 4500), Ptr: instance},
				&dns.SRV{Hdr: of(instance, dns.TypeSRV, 120), Priority: 1, Weight: 2, Port: 7946, Target: host},
				&dns.TXT{Hdr: of(instance, dns.TypeTXT, 4500), Txt: []string{`cluster=\228\"x\\`, "v=1"}},
				&dns.A{Hdr: of(host, dns.TypeA, 120), A: []byte{10, 0, 0, 9}},
				&dns.AAAA{Hdr: of(host, dns.TypeAAAA, 120), AAAA: []byte{0xfd, 15: 9}},
			},
		},
		"004d01000002000000000000055f70696572045f746370056c6f63616c00000c00011331302e302e302e393a3739343620636166c3a9055f70696572045f746370056c6f63616c0000ff8001": {
			MsgHdr:   dns.MsgHdr{Id: 77, RecursionDesired: true},
			Question: []dns.Question{{Name: service, Qtype: dns.TypePTR, Qclass: 1}, {Name: instance, Qtype: dns.TypeANY, Qclass: 0x8001}},
		},
		"000000000001000100000002055f70696572045f746370056c6f63616c00000c0001c00c000c0001000000630008056f74686572c00c0161016200000500010000000100040178c036c03600100001000000010000": {
			Compress: true, Question: []dns.Question{{Name: service, Qtype: dns.TypePTR, Qclass: 1}},
			Answer: []dns.RR{&dns.PTR{Hdr: of(service, dns.TypePTR, 99), Ptr: "other." + service}},
			Extra:  []dns.RR{&dns.CNAME{Hdr: of("a.b.", dns.TypeCNAME, 1), Target: "x.a.b."}, &dns.TXT{Hdr: of("a.b.", dns.TypeTXT, 1)}},
		},
		"000084000000000100000000311f202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f404142434445464748494a4b4c4d4e4f31505152535455565758595a5b5c5d5e5f606162636465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f8000000c0001000000010002c00c": {
			MsgHdr: dns.MsgHdr{Response: true, Authoritative: true}, Compress: true,
			Answer: []dns.RR{&dns.PTR{Hdr: of(printable, dns.TypePTR, 1), Ptr: printable}},
		},
	}
}

// printable is a name with what is printable, and what is next to it.
const printable = `\031\ !\"#$%&\'\(\)*+,-\./0123456789:\;<=>?\@ABCDEFGHIJKLMNO.PQRSTUVWXYZ[\\]^_` + "`" + `abcdefghijklmnopqrstuvwxyz{|}~\127\128.`

func TestPackets(t *testing.T) {
	for text, m := range packets() {
		packed, err := m.Pack()
		if got := hex.EncodeToString(packed); err != nil || got != text {
			t.Errorf("packed as\n%s, %v, want\n%s", got, err, text)
		}
		if got := m.Len(); got != len(text)/2 {
			t.Errorf("got a length of %d, want %d", got, len(text)/2)
		}
		var back dns.Msg
		if err := back.Unpack(packed); err != nil {
			t.Error(err)
			continue
		}
		for i, rr := range slices.Concat(back.Answer, back.Extra) {
			want := slices.Concat(m.Answer, m.Extra)[i]
			want.Header().Rdlength = rr.Header().Rdlength
			if !dns.IsDuplicate(rr, want) || rr.Header().Ttl != want.Header().Ttl {
				t.Errorf("got %+v, want %+v", rr, want)
			}
		}
		for i := range packed {
			if back.Unpack(packed[:i]) == nil {
				t.Errorf("the first %d of %d bytes are a message", i, len(packed))
			}
		}
	}
	for want, rr := range map[int]dns.RR{
		58: &dns.PTR{Hdr: header(catalog, dns.TypePTR, 1), Ptr: service}, 31: &dns.A{Hdr: header("pier-0011.local.", dns.TypeA, 1), A: []byte{1, 2, 3, 4}},
	} {
		if got := dns.Len(rr); got != want {
			t.Errorf("%+v: got a length of %d, want %d", rr, got, want)
		}
	}
}

// Others say more than what a node knows: that is passed over, and the rest is heard.
func TestPacketsOfOthers(t *testing.T) {
	text := "1a6e010000010000000000010161016200000100010000290578000000000000" // with options (RFC 6891)
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	var m dns.Msg
	if err := m.Unpack(b); err != nil || len(m.Extra) != 1 || m.Extra[0].Header().Rrtype != 41 || m.Question[0].Name != "a.b." {
		t.Errorf("got %+v, %v", m, err)
	}
	question := func(name string) string { return "000000000001000000000000" + name + "000c0001" }
	for what, text := range map[string]string{
		"a pointer to itself":      question("c00c"),
		"a pointer ahead":          question("c00e00"),
		"two pointers in a circle": question("0161c00c"),
		"a reserved label":         question("4061" + "00"),
		"more than is there":       question("3f61"),
		"a long name":              question("3f" + hex.EncodeToString(make([]byte, 63)) + "3f" + hex.EncodeToString(make([]byte, 63)) + "3f" + hex.EncodeToString(make([]byte, 63)) + "3f" + hex.EncodeToString(make([]byte, 63)) + "00"),
		"a short address":          "000084000000000100000000" + "00" + "000100010000000000030a0000",
		"a text that is cut":       "000084000000000100000000" + "00" + "00100001000000000002" + "0561",
		"a name, and more":         "000084000000000100000000" + "00" + "000c0001000000000002" + "0000",
		"records that never come":  "0000ffffffffffffffffffff",
	} {
		b, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		if m.Unpack(b) == nil {
			t.Errorf("%s: taken for %+v", what, m)
		}
	}
}

// A name may have as many pointers as labels can follow, and no more, or a packet costs whoever reads it a thousand times its size.
func TestPointers(t *testing.T) {
	for n, want := range map[int]bool{1: true, 126: true, 127: false, 4000: false} {
		b := []byte{5: 1, 7: 2, 11: 0, 12: 0, 14: byte(dns.TypePTR), 16: 1} // a question for ".", to which the pointers lead,
		b = append(b, 0, 0xff, 0xf0, 0, 1, 0, 0, 0, 0)                      // a record of a type that nobody knows, with all but the last,
		b = binary.BigEndian.AppendUint16(b, uint16(2*(n-1)))
		last := 12
		for range n {
			b, last = binary.BigEndian.AppendUint16(b, 0xc000|uint16(last)), len(b)
		}
		b = append(b, 0xff, 0xf0, 0, 1, 0, 0, 0, 0, 0, 0) // and one with that as its name
		var m dns.Msg
		if err := m.Unpack(b); (err == nil) != want {
			t.Errorf("%d pointers: got %v", n, err)
		}
	}
}

// A query may list hundreds of long names, each of which is compared with all records of a node.
func TestIsDuplicateAllocatesNothing(t *testing.T) {
	of := func(name string) dns.RR { return &dns.PTR{Hdr: header(service, dns.TypePTR, 1), Ptr: name} }
	a, b := of(printable), of(strings.ToUpper(printable))
	if got := testing.AllocsPerRun(10, func() {
		if !dns.IsDuplicate(a, b) {
			t.Error("not the same in capitals")
		}
	}); got != 0 {
		t.Errorf("got %v allocations", got)
	}
	if dns.IsDuplicate(a, of(printable[:len(printable)-1]+"x")) {
		t.Error("the same but for the last byte")
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string]bool{
		".": true, "a.": true, "a": true, `a\.b.`: true, `a\.`: true, `\000\255.`: true, "": true, "a..": false, ".a.": false,
	} {
		if _, ok := dns.IsDomainName(name); ok != want {
			t.Errorf("%q: got %t, want %t", name, ok, want)
		}
	}
	for name, want := range map[string]string{
		"ÄbC.LOCAL": "Äbc.local.", "": ".", ".": ".", `A\.`: `a\..`, `a\\.`: `a\\.`, `a\\\.`: `a\\\..`, `\.`: `\..`,
	} {
		if got := dns.CanonicalName(name); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
}

// FuzzUnpack unpacks anything: it never panics, and what it knows packs and unpacks to the same again.
func FuzzUnpack(f *testing.F) {
	for text := range packets() {
		b, _ := hex.DecodeString(text)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m, again dns.Msg
		if m.Unpack(b) != nil {
			return
		}
		m.Compress = true
		for _, rrs := range []*[]dns.RR{&m.Answer, &m.Ns, &m.Extra} {
			*rrs = slices.DeleteFunc(*rrs, func(rr dns.RR) bool { _, opaque := rr.(*dns.Opaque); return opaque })
		}
		packed, err := m.Pack()
		if err != nil {
			t.Fatalf("%+v: %v", m, err)
		}
		if err := again.Unpack(packed); err != nil {
			t.Fatalf("%+v: %v", m, err)
		}
		again.Compress = true
		for _, rrs := range [][]dns.RR{m.Answer, m.Ns, m.Extra, again.Answer, again.Ns, again.Extra} {
			for _, rr := range rrs {
				rr.Header().Rdlength = 0 // other names may be pointers
			}
		}
		if fmt.Sprintf("%+v", m.Question) != fmt.Sprintf("%+v", again.Question) || !same(m.Answer, again.Answer) || !same(m.Ns, again.Ns) || !same(m.Extra, again.Extra) {
			t.Errorf("got %+v, want %+v", again, m)
		}
	})
}

func same(a, b []dns.RR) bool { return len(a) == 0 && len(b) == 0 || reflect.DeepEqual(a, b) }
