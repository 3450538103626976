package setup

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// setKeys returns a document with all keys set.
func setKeys(data []byte, keys []Key) ([]byte, error) {
	if _, err := parse(data); err != nil {
		return nil, err
	}
	for _, k := range keys {
		raw := k.Value
		old, ok := get(data, k.Path)
		if k.Element {
			list, err := elements(old)
			if err != nil {
				return nil, fmt.Errorf("%q is no list", strings.Join(k.Path, "."))
			}
			if slices.ContainsFunc(list, func(e json.RawMessage) bool { return equal(e, k.Value) }) {
				continue
			}
			raw = join(append([]json.RawMessage{k.Value}, list...))
		} else if ok && equal(old, raw) {
			continue
		}
		var err error
		if data, err = set(data, k.Path, raw); err != nil {
			return nil, err
		}
	}
	return data, nil
}

// unsetKeys returns a document whose keys are what they are in original, all else being as it is. Keys that are not what
// they were set to any more stay, and are named in left.
func unsetKeys(data []byte, original state, keys []Key) (out []byte, left []string, err error) {
	if _, err := parse(data); err != nil {
		return nil, nil, err
	}
	for _, k := range slices.Backward(keys) {
		now, ok := get(data, k.Path)
		if !ok {
			continue
		}
		old, had := get(original.Content, k.Path)
		switch {
		case k.Element:
			list, err := elements(now)
			if err != nil {
				left = append(left, strings.Join(k.Path, "."))
				continue
			}
			if theirs, err := elements(old); err == nil && slices.ContainsFunc(theirs, func(e json.RawMessage) bool { return equal(e, k.Value) }) {
				continue // it was there before
			}
			list = slices.DeleteFunc(list, func(e json.RawMessage) bool { return equal(e, k.Value) })
			old, had = join(list), had || len(list) > 0
		case !equal(now, k.Value):
			left = append(left, strings.Join(k.Path, "."))
			continue
		}
		if had {
			if data, err = set(data, k.Path, old); err != nil {
				return nil, nil, err
			}
			continue
		}
		data = unset(data, k.Path)
		for path := k.Path[:len(k.Path)-1]; len(path) > 0; path = path[:len(path)-1] { // objects made for the key
			raw, _ := get(data, path)
			if _, had := get(original.Content, path); had || !equal(raw, json.RawMessage("{}")) {
				break
			}
			data = unset(data, path)
		}
	}
	return data, left, nil
}

// elements returns those of a list; nothing and null are empty ones.
func elements(raw json.RawMessage) ([]json.RawMessage, error) {
	var list []json.RawMessage
	if raw == nil {
		return nil, nil
	}
	err := json.Unmarshal(raw, &list)
	return list, err
}

func join(list []json.RawMessage) json.RawMessage {
	out := []byte("[")
	for i, e := range list {
		if i > 0 {
			out = append(out, ", "...)
		}
		out = append(out, e...)
	}
	return append(out, ']')
}

// equal reports whether two values are the same but for white space.
func equal(a, b json.RawMessage) bool {
	var x, y bytes.Buffer
	return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}

// size returns how many members the object has that data holds, -1 if it holds none.
func size(data []byte) int {
	v, err := parse(data)
	if err != nil {
		return -1
	}
	return len(v.members)
}
