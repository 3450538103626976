package setup

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// A Key is one setting in a file of JSON objects.
type Key struct {
	Path    []string        `json:"path"`              // names of the members that lead to it
	Value   json.RawMessage `json:"value"`             // what it is set to
	Element bool            `json:"element,omitempty"` // Value is put in front of the list that the setting is, instead
}

// A positionError is what is wrong with JSON, and where.
type positionError struct {
	line, column int // from 1, column in bytes
	text         string
}

func (e *positionError) Error() string { return fmt.Sprintf("%d:%d: %s", e.line, e.column, e.text) }

func positioned(data []byte, offset int, format string, args ...any) error {
	before := data[:min(offset, len(data))]
	return &positionError{bytes.Count(before, []byte("\n")) + 1, len(before) - bytes.LastIndexByte(before, '\n'), fmt.Sprintf(format, args...)}
}

// A value is where a JSON value lies in a document: [start, end).
type value struct {
	start, end int
	object     bool
	members    []member // of an object, in order
}

// A member is a name and its value.
type member struct {
	name  string
	start int // of the name
	value value
}

// member returns the index of the member of that name, or -1.
func (v value) member(name string) int {
	return slices.IndexFunc(v.members, func(m member) bool { return m.name == name })
}

// parse reads a document that is one object. It is stricter than [json.Unmarshal]: a name may occur only once in an object,
// because editing one of two would not do what it says. Empty data is an empty object, as it is for Docker.
func parse(data []byte) (value, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return value{start: 0, end: len(data), object: true}, nil
	}
	if bytes.HasPrefix(data, []byte("\xef\xbb\xbf")) {
		return value{}, positioned(data, 0, "it begins with a byte order mark, which is no JSON")
	}
	var syntax *json.SyntaxError
	if err := json.Unmarshal(data, new(json.RawMessage)); errors.As(err, &syntax) {
		at := max(int(syntax.Offset)-1, 0)
		switch {
		case at >= len(data)-1 && strings.Contains(syntax.Error(), "unexpected end"):
			return value{}, positioned(data, len(data), "it breaks off")
		case data[at] == '/' || data[at] == '#':
			return value{}, positioned(data, at, "a comment, which JSON has none of")
		case (data[at] == '}' || data[at] == ']') && bytes.HasSuffix(bytes.TrimSpace(data[:at]), []byte(",")):
			return value{}, positioned(data, at, "a comma before %q", data[at])
		}
		return value{}, positioned(data, at, "%s", syntax.Error())
	} else if err != nil {
		return value{}, err
	}
	p := parser{data: data, dec: json.NewDecoder(bytes.NewReader(data))}
	p.dec.UseNumber()
	v, err := p.value()
	if err == nil && !v.object {
		err = positioned(data, v.start, "no object where settings should be")
	}
	return v, err
}

// A parser finds the values of valid JSON.
type parser struct {
	data []byte
	dec  *json.Decoder
}

// token returns the next token and where it begins.
func (p *parser) token() (json.Token, int, error) {
	start := int(p.dec.InputOffset())
	tok, err := p.dec.Token()
	for start < len(p.data) && strings.IndexByte(" \t\r\n,:", p.data[start]) >= 0 {
		start++
	}
	return tok, start, err
}

func (p *parser) value() (value, error) {
	tok, start, err := p.token()
	if err != nil {
		return value{}, err
	}
	v := value{start: start, object: tok == json.Delim('{')}
	for open := v.object || tok == json.Delim('['); open && p.dec.More(); {
		var m member
		if v.object {
			name, at, err := p.token()
			if err != nil {
				return value{}, err
			}
			m.name, m.start = name.(string), at // names are strings in valid JSON
			if i := v.member(m.name); i >= 0 {
				return value{}, positioned(p.data, at, "%.80q again, after line %d", m.name, 1+bytes.Count(p.data[:v.members[i].start], []byte("\n")))
			}
		}
		if m.value, err = p.value(); err != nil {
			return value{}, err
		}
		if v.object {
			v.members = append(v.members, m)
		}
	}
	if _, ok := tok.(json.Delim); ok {
		if _, err := p.dec.Token(); err != nil && err != io.EOF {
			return value{}, err
		}
	}
	v.end = int(p.dec.InputOffset())
	return v, nil
}

// find follows a path as far as it leads: the innermost value reached, and the names that are left.
func find(v value, path []string) (at value, rest []string) {
	for len(path) > 0 && v.object {
		i := v.member(path[0])
		if i < 0 {
			break
		}
		v, path = v.members[i].value, path[1:]
	}
	return v, path
}

// get returns the value at a path.
func get(data []byte, path []string) (json.RawMessage, bool) {
	v, err := parse(data)
	if err != nil {
		return nil, false
	}
	at, rest := find(v, path)
	if len(rest) > 0 {
		return nil, false
	}
	return data[at.start:at.end], true
}

// set returns data with the value at path set, and every other byte as it was. A path that leads through null makes an
// object of it.
func set(data []byte, path []string, raw json.RawMessage) ([]byte, error) {
	v, err := parse(data)
	if err != nil {
		return nil, err
	}
	at, rest := find(v, path)
	l := layoutOf(data, v)
	switch {
	case len(rest) == 0:
		return splice(data, at.start, at.end, string(raw)), nil
	case at.object && len(at.members) > 0:
		last := at.members[len(at.members)-1].value.end
		l.lines = l.lines && bytes.IndexByte(data[at.start:at.members[0].start], '\n') >= 0
		if l.lines {
			l.indent = indentation(data, at.members[0].start)
			return splice(data, last, last, ","+l.newline+l.indent+l.member(rest, raw)), nil
		}
		return splice(data, last, last, ", "+l.member(rest, raw)), nil
	case at.object, string(data[at.start:at.end]) == "null":
		l.indent = indentation(data, at.start)
		end := ""
		if len(bytes.TrimSpace(data)) == 0 {
			end = l.newline
		}
		return splice(data, at.start, at.end, l.object(rest, raw)+end), nil
	}
	name := strings.Join(path[:len(path)-len(rest)], ".")
	return nil, positioned(data, at.start, "%q is no object", name)
}

// unset returns data without the member at path.
func unset(data []byte, path []string) []byte {
	v, err := parse(data)
	if err != nil {
		return data
	}
	parent, rest := find(v, path[:len(path)-1])
	i := parent.member(path[len(path)-1])
	switch {
	case len(rest) > 0 || i < 0:
		return data
	case len(parent.members) == 1:
		return splice(data, parent.start, parent.end, "{}")
	case i == 0:
		return splice(data, parent.members[0].start, parent.members[1].start, "")
	}
	return splice(data, parent.members[i-1].value.end, parent.members[i].value.end, "")
}

func splice(data []byte, start, end int, text string) []byte {
	return slices.Concat(data[:start], []byte(text), data[end:])
}

// A layout is how a document is written.
type layout struct {
	newline, unit string
	lines         bool   // members stand on lines of their own
	indent        string // of the line at hand
}

func layoutOf(data []byte, v value) layout {
	l := layout{newline: "\n", unit: "  ", lines: true}
	if bytes.Contains(data, []byte("\r\n")) {
		l.newline = "\r\n"
	}
	if len(v.members) > 0 {
		l.lines = bytes.IndexByte(data[v.start:v.members[0].start], '\n') >= 0
		if in := indentation(data, v.members[0].start); l.lines && in != "" {
			l.unit = in
		}
	}
	return l
}

// indentation returns the white space at the beginning of the line of an offset, before it.
func indentation(data []byte, offset int) string {
	line := data[bytes.LastIndexByte(data[:offset], '\n')+1 : offset]
	return string(line[:len(line)-len(bytes.TrimLeft(line, " \t"))])
}

// member writes a member on the line at hand.
func (l layout) member(path []string, raw json.RawMessage) string {
	name, _ := json.Marshal(path[0])
	if len(path) == 1 {
		return string(name) + ": " + string(raw)
	}
	return string(name) + ": " + l.object(path[1:], raw)
}

// object writes an object of one member.
func (l layout) object(path []string, raw json.RawMessage) string {
	if !l.lines {
		return "{" + l.member(path, raw) + "}"
	}
	inner := l
	inner.indent += l.unit
	return "{" + l.newline + inner.indent + inner.member(path, raw) + l.newline + l.indent + "}"
}
