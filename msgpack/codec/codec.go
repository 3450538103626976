// Package codec stands in for the package of that path which memberlist encodes its messages with: structures of numbers, texts and bytes, as
// maps from names of fields, in MessagePack (github.com/msgpack/msgpack/blob/master/spec.md). What it writes is the same, byte for byte, and
// what it reads may have any form that the other would write. Types that no message has are an error.
package codec

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"slices"
	"sort"
	"strings"
)

// MsgpackHandle holds options that no message of memberlist depends on.
type MsgpackHandle struct{ TimeNotBuiltin bool }

// Formats of MessagePack.
const (
	fixMap, fixArray, fixText = 0x80, 0x90, 0xa0

	null, no, yes          = 0xc0, 0xc2, 0xc3
	bin8, bin16, bin32     = 0xc4, 0xc5, 0xc6
	ext8, ext16, ext32     = 0xc7, 0xc8, 0xc9
	float32f, float64f     = 0xca, 0xcb
	uint8f, uint16f        = 0xcc, 0xcd
	uint32f, uint64f       = 0xce, 0xcf
	int8f, int16f          = 0xd0, 0xd1
	int32f, int64f         = 0xd2, 0xd3
	fixExt1, fixExt16      = 0xd4, 0xd8
	text8, text16, text32  = 0xd9, 0xda, 0xdb
	array16, array32       = 0xdc, 0xdd
	map16, map32           = 0xde, 0xdf
	minFixInt, maxFixIndex = 0xe0, 0x7f
)

const (
	maxDepth = 1024     // of maps and arrays in what is skipped
	maxStep  = 64 << 10 // bytes that are allocated for a text before any of it was read
)

var errForm = errors.New("msgpack: not of the form that was expected")

// An Encoder writes values.
type Encoder struct{ w io.Writer }

// NewEncoder returns an Encoder that writes to w.
func NewEncoder(w io.Writer, _ *MsgpackHandle) *Encoder { return &Encoder{w} }

// Encode writes v, a structure or a pointer to one.
func (e *Encoder) Encode(v any) error {
	b, err := appendStruct(nil, reflect.Indirect(reflect.ValueOf(v)))
	if err != nil {
		return err
	}
	_, err = e.w.Write(b)
	return err
}

// A field is one of a structure.
type field struct {
	index     int
	name      string
	omitEmpty bool
}

// fieldsOf returns the fields that are encoded, by name.
func fieldsOf(t reflect.Type) (fields []field) {
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.IsExported() {
			continue
		}
		name, options, _ := strings.Cut(f.Tag.Get("codec"), ",")
		fields = append(fields, field{i, cmp.Or(name, f.Name), options == "omitempty"})
	}
	sort.Slice(fields, func(i, j int) bool { return fields[i].name < fields[j].name })
	return fields
}

func appendStruct(b []byte, v reflect.Value) ([]byte, error) {
	if v.Kind() != reflect.Struct {
		return nil, fmt.Errorf("msgpack: %v is no structure", v.Kind())
	}
	fields := slices.DeleteFunc(fieldsOf(v.Type()), func(f field) bool { return f.omitEmpty && isEmpty(v.Field(f.index)) })
	if len(fields) >= 16 {
		return nil, fmt.Errorf("msgpack: %v has more than 15 fields", v.Type())
	}
	b = append(b, fixMap|byte(len(fields)))
	for _, f := range fields {
		var err error
		if b, err = appendValue(appendText(b, f.name), v.Field(f.index)); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func isEmpty(v reflect.Value) bool {
	if v.Kind() == reflect.Slice {
		return v.Len() == 0
	}
	return v.IsZero()
}

func appendValue(b []byte, v reflect.Value) ([]byte, error) {
	switch {
	case v.Kind() == reflect.Bool && v.Bool():
		return append(b, yes), nil
	case v.Kind() == reflect.Bool:
		return append(b, no), nil
	case v.CanInt():
		return appendInt(b, v.Int()), nil
	case v.CanUint():
		return appendUint(b, v.Uint()), nil
	case v.Kind() == reflect.String:
		return appendText(b, v.String()), nil
	case isBytes(v) && v.IsNil():
		return append(b, null), nil
	case isBytes(v):
		return appendText(b, string(v.Bytes())), nil
	}
	return nil, fmt.Errorf("msgpack: there is no message with a %v", v.Type())
}

func isBytes(v reflect.Value) bool {
	return v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8
}

// appendText appends a text as it was before there was a form for bytes, and one for texts of 32 to 255 bytes.
func appendText(b []byte, s string) []byte {
	switch n := len(s); {
	case n < 32:
		b = append(b, fixText|byte(n))
	case n <= math.MaxUint16:
		b = binary.BigEndian.AppendUint16(append(b, text16), uint16(n))
	default:
		b = binary.BigEndian.AppendUint32(append(b, text32), uint32(n))
	}
	return append(b, s...)
}

func appendInt(b []byte, n int64) []byte {
	switch {
	case n >= -32 && n <= maxFixIndex:
		return append(b, byte(n))
	case n >= math.MinInt8 && n <= math.MaxInt8:
		return append(b, int8f, byte(n))
	case n >= math.MinInt16 && n <= math.MaxInt16:
		return binary.BigEndian.AppendUint16(append(b, int16f), uint16(n))
	case n >= math.MinInt32 && n <= math.MaxInt32:
		return binary.BigEndian.AppendUint32(append(b, int32f), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(b, int64f), uint64(n))
}

func appendUint(b []byte, n uint64) []byte {
	switch {
	case n <= maxFixIndex:
		return append(b, byte(n))
	case n <= math.MaxUint8:
		return append(b, uint8f, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(b, uint16f), uint16(n))
	case n <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(b, uint32f), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(b, uint64f), n)
}
