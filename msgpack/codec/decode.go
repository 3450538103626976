package codec

import (
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"slices"
	"sort"
)

// A Decoder reads values. It reads no byte beyond the value that it is asked for.
type Decoder struct{ r io.Reader }

// NewDecoder returns a Decoder that reads from r.
func NewDecoder(r io.Reader, _ *MsgpackHandle) *Decoder { return &Decoder{r} }

// Decode reads a value into v, a pointer to a structure: a map from names of its fields, of which those that it has not are skipped, or a list
// of their values by name. Null makes it, or a field, zero. It returns io.EOF if there is no byte.
func (d *Decoder) Decode(v any) error {
	to := reflect.ValueOf(v)
	if to.Kind() != reflect.Pointer || to.Elem().Kind() != reflect.Struct {
		return fmt.Errorf("msgpack: %v is no pointer to a structure", to.Type())
	}
	form, err := d.byte()
	if err != nil {
		return err
	}
	err = d.structure(form, to.Elem())
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (d *Decoder) structure(form byte, to reflect.Value) error {
	if form == null {
		to.SetZero()
		return nil
	}
	n, isMap, err := d.length(form)
	if err != nil {
		return err
	}
	fields := fieldsOf(to.Type())
	for i := range n {
		at := int(min(i, math.MaxInt32))
		if isMap {
			name, err := d.name()
			if err != nil {
				return err
			}
			at = slices.IndexFunc(fields, func(f field) bool { return f.name == name })
		} else {
			fields = listed(fields)
		}
		form, err := d.byte()
		if err != nil {
			return err
		}
		if at < 0 || at >= len(fields) {
			err = d.skip(form, maxDepth)
		} else {
			err = d.value(form, to.Field(fields[at].index))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// listed returns fields in the order in which a list has their values: that of the structure.
func listed(fields []field) []field {
	sort.Slice(fields, func(i, j int) bool { return fields[i].index < fields[j].index })
	return fields
}

// length reads how many entries a map, or elements a list, has.
func (d *Decoder) length(form byte) (n uint64, isMap bool, err error) {
	switch {
	case form >= fixMap && form < fixArray:
		return uint64(form - fixMap), true, nil
	case form >= fixArray && form < fixText:
		return uint64(form - fixArray), false, nil
	case form == array16 || form == map16:
		n, err = d.number(2)
	case form == array32 || form == map32:
		n, err = d.number(4)
	default:
		return 0, false, errForm
	}
	return n, form == map16 || form == map32, err
}

// maxName is more than the bytes of any field's name.
const maxName = 64

// name reads the key of a map's entry. One that is longer than any field's is not kept.
func (d *Decoder) name() (string, error) {
	form, err := d.byte()
	if err != nil {
		return "", err
	}
	n, err := d.textLength(form)
	if err != nil {
		return "", err
	}
	if n > maxName {
		_, err := io.CopyN(io.Discard, d.r, int64(n))
		return "", err
	}
	b, err := d.text(n)
	return string(b), err
}

func (d *Decoder) value(form byte, to reflect.Value) error {
	switch {
	case form == null:
		to.SetZero()
		return nil
	case to.Kind() == reflect.Bool:
		to.SetBool(form == yes || form == 1) // the other took numbers, too
		if form != yes && form != no && form > 1 {
			return errForm
		}
		return nil
	case to.CanInt() || to.CanUint():
		return d.integer(form, to)
	case isBytes(to) && (form >= fixArray && form < fixText || form == array16 || form == array32):
		return d.bytesOfList(form, to)
	case to.Kind() == reflect.String || isBytes(to):
		n, err := d.textLength(form)
		if err != nil {
			return err
		}
		b, err := d.text(n)
		if to.Kind() == reflect.String {
			to.SetString(string(b))
		} else {
			to.SetBytes(b)
		}
		return err
	}
	return fmt.Errorf("msgpack: there is no message with a %v", to.Type())
}

// integer reads a number that to can hold.
func (d *Decoder) integer(form byte, to reflect.Value) error {
	signed, n := int64(0), uint64(0)
	var err error
	switch {
	case form <= maxFixIndex:
		n = uint64(form)
	case form >= minFixInt:
		signed = int64(int8(form))
	case form >= uint8f && form <= uint64f:
		n, err = d.number(1 << (form - uint8f))
	case form >= int8f && form <= int64f:
		size := 1 << (form - int8f)
		n, err = d.number(size)
		shift := 64 - 8*size
		if signed = int64(n<<shift) >> shift; signed >= 0 {
			n, signed = uint64(signed), 0
		}
	default:
		return errForm
	}
	switch {
	case err != nil:
		return err
	case signed < 0 && to.CanInt() && !to.OverflowInt(signed):
		to.SetInt(signed)
	case signed == 0 && to.CanInt() && n <= math.MaxInt64 && !to.OverflowInt(int64(n)):
		to.SetInt(int64(n))
	case signed == 0 && to.CanUint() && !to.OverflowUint(n):
		to.SetUint(n)
	default:
		return fmt.Errorf("msgpack: a number that is no %v", to.Type())
	}
	return nil
}

// bytesOfList reads bytes that are a list of numbers.
func (d *Decoder) bytesOfList(form byte, to reflect.Value) error {
	n, _, err := d.length(form)
	if err != nil {
		return err
	}
	b := make([]byte, 0, min(n, maxStep))
	one := reflect.New(reflect.TypeFor[uint8]()).Elem()
	for range n {
		form, err := d.byte()
		if err != nil {
			return err
		}
		if err := d.integer(form, one); err != nil {
			return err
		}
		b = append(b, byte(one.Uint()))
	}
	to.SetBytes(b)
	return nil
}

// textLength reads how long a text is, or bytes are.
func (d *Decoder) textLength(form byte) (uint64, error) {
	switch {
	case form >= fixText && form < null:
		return uint64(form - fixText), nil
	case form == text8 || form == bin8:
		return d.number(1)
	case form == text16 || form == bin16:
		return d.number(2)
	case form == text32 || form == bin32:
		return d.number(4)
	}
	return 0, errForm
}

// text reads n bytes. It allocates as they come.
func (d *Decoder) text(n uint64) ([]byte, error) {
	b := []byte{}
	for n > 0 {
		step := int(min(n, maxStep))
		b = slices.Grow(b, step)
		if _, err := io.ReadFull(d.r, b[len(b):len(b)+step]); err != nil {
			return nil, err
		}
		b = b[:len(b)+step]
		n -= uint64(step)
	}
	return b, nil
}

// skip reads a value of any kind, nested at most so deep.
func (d *Decoder) skip(form byte, depth int) error {
	if depth == 0 {
		return errForm
	}
	if n, isMap, err := d.length(form); !errors.Is(err, errForm) {
		if isMap {
			n *= 2
		}
		for ; err == nil && n > 0; n-- {
			if form, err = d.byte(); err == nil {
				err = d.skip(form, depth-1)
			}
		}
		return err
	}
	n, err := d.textLength(form)
	switch {
	case !errors.Is(err, errForm):
	case form <= maxFixIndex, form >= minFixInt, form == null, form == no, form == yes:
		return nil
	case form >= ext8 && form <= ext32:
		if n, err = d.number(1 << (form - ext8)); err == nil {
			n++ // its type
		}
	case form >= fixExt1 && form <= fixExt16:
		n, err = 1+1<<(form-fixExt1), nil
	case form == float32f || form == uint32f || form == int32f:
		n, err = 4, nil
	case form == float64f || form == uint64f || form == int64f:
		n, err = 8, nil
	case form == uint16f || form == int16f:
		n, err = 2, nil
	case form == uint8f || form == int8f:
		n, err = 1, nil
	}
	if err != nil {
		return err
	}
	_, err = io.CopyN(io.Discard, d.r, int64(n))
	return err
}

func (d *Decoder) byte() (byte, error) {
	if r, ok := d.r.(io.ByteReader); ok {
		return r.ReadByte()
	}
	var b [1]byte
	_, err := io.ReadFull(d.r, b[:])
	return b[0], err
}

// number reads an unsigned number of so many bytes.
func (d *Decoder) number(size int) (n uint64, err error) {
	var b [8]byte
	_, err = io.ReadFull(d.r, b[:size])
	for _, v := range b[:size] {
		n = n<<8 | uint64(v)
	}
	return n, err
}
