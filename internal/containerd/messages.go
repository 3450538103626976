package containerd

import (
	"encoding/binary"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protowire"

	"pier/internal/oci"
)

// The methods of containerd's API that are called, and the numbers of the fields that are read, from the .proto files
// of its version 1 services, which 1.6 and 2.x share.
const (
	methodVersion    = "/containerd.services.version.v1.Version/Version"
	methodPlugins    = "/containerd.services.introspection.v1.Introspection/Plugins"
	methodNamespaces = "/containerd.services.namespaces.v1.Namespaces/List"
	methodImages     = "/containerd.services.images.v1.Images/List"
	methodSubscribe  = "/containerd.services.events.v1.Events/Subscribe"

	fieldFilters protowire.Number = 1 // PluginsRequest, SubscribeRequest

	fieldVersion    protowire.Number = 1 // VersionResponse.version
	fieldPlugins    protowire.Number = 1 // PluginsResponse.plugins
	fieldExports    protowire.Number = 5 // Plugin.exports
	fieldKey        protowire.Number = 1 // of an entry of any map
	fieldValue      protowire.Number = 2
	fieldNamespaces protowire.Number = 1 // ListNamespacesResponse.namespaces
	fieldImages     protowire.Number = 1 // ListImagesResponse.images
	fieldName       protowire.Number = 1 // Namespace.name, Image.name
	fieldTarget     protowire.Number = 3 // Image.target
	fieldDigest     protowire.Number = 2 // Descriptor.digest
)

// An image is a name that containerd has for a manifest.
type image struct {
	name   string
	target oci.Digest // as containerd states it: unchecked
}

// encodeFilters encodes a request whose only field is a list of filters, any of which may match.
func encodeFilters(filters ...string) []byte {
	var b []byte
	for _, f := range filters {
		b = protowire.AppendTag(b, fieldFilters, protowire.BytesType)
		b = protowire.AppendString(b, f)
	}
	return b
}

// decodeImage decodes an Image.
func decodeImage(b []byte) (image, error) {
	var img image
	err := eachField(b, func(num protowire.Number, v []byte) error {
		switch num {
		case fieldName:
			img.name = string(v)
		case fieldTarget:
			s, err := stringField(v, fieldDigest)
			img.target = oci.Digest(s)
			return err
		}
		return nil
	})
	return img, err
}

// decodeExport returns what a Plugin exports under key, or "".
func decodeExport(b []byte, key string) (string, error) {
	var found string
	err := eachField(b, func(num protowire.Number, v []byte) error {
		if num != fieldExports {
			return nil
		}
		k, err := stringField(v, fieldKey)
		if err != nil || k != key {
			return err
		}
		found, err = stringField(v, fieldValue)
		return err
	})
	return found, err
}

// stringField returns field want of an encoded message, or "". The last of several counts, by protobuf's rule.
func stringField(b []byte, want protowire.Number) (string, error) {
	var s string
	err := eachField(b, func(num protowire.Number, v []byte) error {
		if num == want {
			s = string(v)
		}
		return nil
	})
	return s, err
}

// eachField calls each with the number and value of every field of b that is a string, bytes or a message, and skips the
// others: nothing that is read is a number.
func eachField(b []byte, each func(protowire.Number, []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if typ != protowire.BytesType {
			n = protowire.ConsumeFieldValue(num, typ, b)
			if n < 0 {
				return protowire.ParseError(n)
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if err := each(num, v); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// fields is eachField for a message that is still arriving: it holds one field at a time. A value is valid until each
// returns.
func (m *message) fields(each func(protowire.Number, []byte) error) error {
	var buf []byte
	for m.left > 0 {
		tag, err := m.varint()
		if err != nil {
			return err
		}
		num, typ := protowire.DecodeTag(tag)
		if num < protowire.MinValidNumber {
			return fmt.Errorf("field number %d", num)
		}
		var size uint64
		switch typ {
		case protowire.VarintType:
			_, err = m.varint()
		case protowire.Fixed32Type:
			size = 4
		case protowire.Fixed64Type:
			size = 8
		case protowire.BytesType:
			size, err = m.varint()
		default:
			err = fmt.Errorf("wire type %d", typ)
		}
		if err != nil {
			return err
		}
		if size > uint64(m.left) {
			return io.ErrUnexpectedEOF
		}
		if uint64(cap(buf)) < size {
			buf = make([]byte, size)
		}
		buf = buf[:size]
		if _, err := io.ReadFull(m, buf); err != nil {
			return err
		}
		if typ != protowire.BytesType {
			continue
		}
		if err := each(num, buf); err != nil {
			return err
		}
	}
	return nil
}

func (m *message) varint() (uint64, error) {
	v, err := binary.ReadUvarint(m)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // fields is only here while bytes are left
	}
	return v, err
}
