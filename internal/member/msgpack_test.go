package member

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/hashicorp/go-msgpack/v2/codec"
)

// The messages of memberlist, as it declares them.
type (
	pingMessage struct {
		SeqNo      uint32
		Node       string
		SourceAddr []byte `codec:",omitempty"`
		SourcePort uint16 `codec:",omitempty"`
		SourceNode string `codec:",omitempty"`
	}
	indirectMessage struct {
		SeqNo      uint32
		Target     []byte
		Port       uint16
		Node       string
		Nack       bool
		SourceAddr []byte `codec:",omitempty"`
		SourcePort uint16 `codec:",omitempty"`
		SourceNode string `codec:",omitempty"`
	}
	aliveMessage struct {
		Incarnation uint32
		Node        string
		Addr        []byte
		Port        uint16
		Meta        []byte
		Vsn         []uint8
	}
	memberState  int
	stateMessage struct {
		Name        string
		Addr        []byte
		Port        uint16
		Meta        []byte
		Incarnation uint32
		State       memberState
		Vsn         []uint8
	}
	compressMessage struct {
		Algo uint8
		Buf  []byte
	}
	errorMessage struct{ Error string }
)

// What stands in for go-msgpack writes the bytes that release 2.1.5 of it wrote, and reads them.
func TestMessagesAreThoseOfGoMsgpack(t *testing.T) {
	for text, v := range map[string]any{
		"82a44e6f6465a16ea55365714e6f01": &pingMessage{SeqNo: 1, Node: "n"},
		"85a44e6f6465da0028" + strings.Repeat("78", 40) + "a55365714e6fce00011170aa536f7572636541646472a47f000001aa536f757263654e6f6465a26d65aa536f75726365506f7274cd1f0a": &pingMessage{
			SeqNo: 70000, Node: strings.Repeat("x", 40), SourceAddr: []byte{127, 0, 0, 1}, SourcePort: 7946, SourceNode: "me",
		},
		"86a441646472a401020304ab496e6361726e6174696f6e01a44d657461a46d657461a44e6f6465a46e6f6465a4506f7274cd1f0aa356736ea6010502020504": &aliveMessage{
			1, "node", []byte{1, 2, 3, 4}, 7946, []byte("meta"), []uint8{1, 5, 2, 2, 5, 4},
		},
		"86a441646472c0ab496e6361726e6174696f6eceffffffffa44d657461c0a44e6f6465a0a4506f727400a356736ec0": &aliveMessage{Incarnation: 1<<32 - 1},
		"87a441646472a101ab496e6361726e6174696f6ecd0100a44d657461c0a44e616d65a16ea4506f7274cc80a5537461746502a356736ea0": &stateMessage{
			"n", []byte{1}, 128, nil, 256, 2, []uint8{},
		},
		"83a44a6f696ec3a54e6f646573ffac5573657253746174654c656ed30000010000000000":         &pushPull{-1, 1 << 40, true},
		"83a44a6f696ec2a54e6f6465737fac5573657253746174654c656ed200010000":                 &pushPull{127, 65536, false},
		"83a44a6f696ec2a54e6f646573d0dfac5573657253746174654c656ed1ff38":                   &pushPull{-33, -200, false},
		"83a44a6f696ec2a54e6f646573d2ffff63c0ac5573657253746174654c656ed3ffffffff4d2fa200": &pushPull{-40000, -3000000000, false},
		"82a4416c676f00a3427566a3070707":                                                   &compressMessage{0, []byte{7, 7, 7}},
		"82a4416c676f01a3427566db00011170" + strings.Repeat("00", 70000):                   &compressMessage{1, make([]byte, 70000)},
		"85a44e61636bc3a44e6f6465da0020" + strings.Repeat("79", 32) + "a4506f7274cd0100a55365714e6fccffa6546172676574a0": &indirectMessage{
			SeqNo: 255, Target: []byte{}, Port: 256, Node: strings.Repeat("y", 32), Nack: true,
		},
		"81a54572726f72bf" + strings.Repeat("65", 31): &errorMessage{strings.Repeat("e", 31)},
	} {
		want, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := message(0, v)[1:]; !bytes.Equal(got, want) {
			t.Errorf("%+v is %x, want %x", v, got, want)
		}
		for name, r := range map[string]io.Reader{"bytes": bytes.NewReader(append(want, 0xff)), "blocks": io.MultiReader(bytes.NewReader(want), strings.NewReader("\xff"))} {
			got := reflect.New(reflect.TypeOf(v).Elem())
			if err := codec.NewDecoder(r, &codec.MsgpackHandle{}).Decode(got.Interface()); err != nil || !reflect.DeepEqual(got.Interface(), v) {
				t.Errorf("%x, in %s, is %+v, %v, want %+v", want, name, got.Interface(), err, v)
			}
			if rest, err := io.ReadAll(r); err != nil || string(rest) != "\xff" {
				t.Errorf("%x, in %s: %x is left, %v, want ff", want, name, rest, err)
			}
		}
	}
}

// Other forms of the same are read as go-msgpack read them.
func TestMessagesInOtherForms(t *testing.T) {
	for text, want := range map[string]pushPull{
		"\xc0":                              {},
		"\x81\xa1A\x01":                     {Nodes: 42},
		"\xdf\x00\x00\x00\x01\xa5Nodes\x05": {Nodes: 5},
		"\x81\xd9\x05Nodes\xcf\x00\x00\x00\x00\x00\x00\x00\x09": {Nodes: 9},
		"\x81\xc4\x05Nodes\xd1\xff\xfe":                         {Nodes: -2},
		"\x81\xa5Nodes\xc0":                                     {},
		"\x81\xa5nodes\x07":                                     {Nodes: 42},
		"\x80":                                                  {Nodes: 42},
		"\x93\x01\x02\xc3":                                      {1, 2, true},
		"\x81\xa4Join\x01":                                      {42, 0, true},
		"\x81\xa1X\xd4\x01\x02":                                 {Nodes: 42},
		"\x82\xa1X\x92\x81\xa1k\xca....\xd9\x01y\xa5Nodes\x06": {Nodes: 6},
	} {
		got := pushPull{Nodes: 42}
		if err := codec.NewDecoder(strings.NewReader(text), &codec.MsgpackHandle{}).Decode(&got); err != nil || got != want {
			t.Errorf("%x is %+v, %v, want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "\x05", "\xa1x", "\x81\xa5Nodes\xa1x", "\x81\x05\x05", "\x81\xa5Nodes\xca\x40\x40\x00\x00", "\x81\xa5Nodes", "\x81\xa4Join\x07", "\x81\xa1X\xc1",
		"\x81\xa5Nodes\xcf\xff\xff\xff\xff\xff\xff\xff\xff", "\x81\xa1X" + strings.Repeat("\x91", 100), "\xdf\xff\xff\xff\xff", "\x81\xdb\xff\xff\xff\xff.",
	} {
		if err := codec.NewDecoder(strings.NewReader(text), &codec.MsgpackHandle{}).Decode(&pushPull{}); err == nil {
			t.Errorf("%x: no error", text)
		}
	}
	for text, want := range map[string]string{"\x81\xa4Addr\x93\x01\x02\xcc\xff": "\x01\x02\xff", "\x81\xa4Addr\xc4\x02ab": "ab", "\x81\xa4Addr\xc0": ""} {
		var got aliveMessage
		if err := codec.NewDecoder(strings.NewReader(text), &codec.MsgpackHandle{}).Decode(&got); err != nil || string(got.Addr) != want {
			t.Errorf("%x is %x, %v, want %x", text, got.Addr, err, want)
		}
	}
}

// Whatever bytes come, what is decoded is bounded by them, and what was decoded is encoded and decoded to the same.
func FuzzMessage(f *testing.F) {
	f.Add([]byte("\x82\xa4Node\xa1n\xa5SeqNo\x01"))
	f.Add([]byte("\x81\xa4Addr\xdd\x00\x00\x00\x02\x01\x02"))
	f.Add([]byte("\x81\xa4Meta\xdb\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var v, again stateMessage
		if err := codec.NewDecoder(bytes.NewReader(b), &codec.MsgpackHandle{}).Decode(&v); err != nil {
			return
		}
		if len(v.Name)+len(v.Addr)+len(v.Meta)+len(v.Vsn) > len(b) {
			t.Errorf("%x is more than there is: %+v", b, v)
		}
		err := codec.NewDecoder(bytes.NewReader(message(0, &v)[1:]), &codec.MsgpackHandle{}).Decode(&again)
		if err != nil || !reflect.DeepEqual(v, again) && !errors.Is(err, io.EOF) {
			t.Errorf("%+v came back as %+v, %v", v, again, err)
		}
	})
}
