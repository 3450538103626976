package setup

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

func key(value string, path ...string) Key { return Key{Path: path, Value: json.RawMessage(value)} }

func element(value string, path ...string) Key {
	return Key{Path: path, Value: json.RawMessage(value), Element: true}
}

// TestSetKeys holds what a file looks like afterwards: what was there, to the byte, and what is new in the same manner.
func TestSetKeys(t *testing.T) {
	proxy := key(`"http://127.0.0.1:3128"`, "proxies", "http-proxy")
	for _, tc := range []struct {
		name, before string
		keys         []Key
		after        string
	}{
		{"no file", "", []Key{proxy}, "{\n  \"proxies\": {\n    \"http-proxy\": \"http://127.0.0.1:3128\"\n  }\n}\n"},
		{"white space", " \n", []Key{key("1", "a")}, "{\n  \"a\": 1\n}\n"},
		{"empty object", "{}", []Key{key("1", "a")}, "{\n  \"a\": 1\n}"},
		{"empty object with a line end", "{\n}\n", []Key{key("1", "a")}, "{\n  \"a\": 1\n}\n"},
		{"in one line", `{"b": 2}`, []Key{proxy}, `{"b": 2, "proxies": {"http-proxy": "http://127.0.0.1:3128"}}`},
		{"two keys", `{"b": 2}`, []Key{key("1", "p", "x"), key("2", "p", "y")}, `{"b": 2, "p": {"x": 1, "y": 2}}`},
		{
			"indented with tabs", "{\n\t\"b\": [1,\n2],\n\t\"c\": {}\n}\n", []Key{key("1", "p", "x"), key("2", "p", "y")},
			"{\n\t\"b\": [1,\n2],\n\t\"c\": {},\n\t\"p\": {\n\t\t\"x\": 1,\n\t\t\"y\": 2\n\t}\n}\n",
		},
		{
			"into an object that is there", "{\n    \"p\": {\n        \"other\": true\n    },\n    \"z\": 1\n}", []Key{key("1", "p", "x")},
			"{\n    \"p\": {\n        \"other\": true,\n        \"x\": 1\n    },\n    \"z\": 1\n}",
		},
		{"into an empty one", "{\n  \"p\": {}\n}", []Key{key("1", "p", "x")}, "{\n  \"p\": {\n    \"x\": 1\n  }\n}"},
		{"into null", `{"p": null}`, []Key{key("1", "p", "x")}, `{"p": {"x": 1}}`},
		{"in the place of another", `{"a" :  7 ,"b":2}`, []Key{key("1", "a")}, `{"a" :  1 ,"b":2}`},
		{"that is there already", `{"a" : {  "x":1}}`, []Key{key(`{"x": 1}`, "a")}, `{"a" : {  "x":1}}`},
		{"numbers and escapes stay", `{"n": 1e400, "m": 12345678901234567890, "é": "\u00e9\/\ud83d\ude00 ü"}`, []Key{key("1", "a")}, `{"n": 1e400, "m": 12345678901234567890, "é": "\u00e9\/\ud83d\ude00 ü", "a": 1}`},
		{"an escaped name is the same name", `{"\u0061": 7}`, []Key{key("1", "a")}, `{"\u0061": 1}`},
		{"Windows' line ends", "{\r\n  \"b\": 1\r\n}\r\n", []Key{key("1", "a")}, "{\r\n  \"b\": 1,\r\n  \"a\": 1\r\n}\r\n"},
		{"a list that is not there", `{}`, []Key{element(`"m"`, "list")}, "{\n  \"list\": [\"m\"]\n}"},
		{"a list", `{"list": ["a" , "b"]}`, []Key{element(`"m"`, "list")}, `{"list": ["m", "a", "b"]}`},
		{"a list that has it", `{"list": ["a" , "m"]}`, []Key{element(`"m"`, "list")}, `{"list": ["a" , "m"]}`},
		{"an empty list", `{"list": [ ]}`, []Key{element(`"m"`, "list")}, `{"list": ["m"]}`},
	} {
		got, err := setKeys([]byte(tc.before), tc.keys)
		if err != nil || string(got) != tc.after {
			t.Errorf("%s: got %v\n%s\nwant\n%s", tc.name, err, got, tc.after)
		}
	}
}

func TestSetKeysRefuses(t *testing.T) {
	for _, tc := range []struct{ name, data, want string }{
		{"a comment", "{\n  // why\n  \"a\": 1\n}", "2:3: a comment, which JSON has none of"},
		{"a shell's comment", "{\n# why\n}", "2:1: a comment, which JSON has none of"},
		{"a comma too many", "{\n  \"a\": 1,\n}", "3:1: a comma before '}'"},
		{"one in a list", `{"a": [1, ]}`, "1:11: a comma before ']'"},
		{"a comma missing", "{\"a\": 1\n\"b\": 2}", "2:1: invalid character '\"' after object key:value pair"},
		{"half of it", "{\n  \"a\": 1", "2:9: it breaks off"},
		{"a name again", "{\n  \"a\": 1,\n  \"b\": {},\n  \"a\": 2\n}", `4:3: "a" again, after line 2`},
		{"a name again below", `{"x": [{"a": 1, "\u0061": 2}]}`, `1:17: "a" again, after line 1`},
		{"a byte order mark", "\xef\xbb\xbf{}", "1:1: it begins with a byte order mark, which is no JSON"},
		{"UTF-16", "\xff\xfe{\x00}\x00", "1:1: invalid character"},
		{"a list", "\n[]", "2:1: no object where settings should be"},
		{"text", `"{}"`, "1:1: no object where settings should be"},
		{"two documents", "{}\n{}", "2:1: invalid character '{' after top-level value"},
		{"another kind on the way", `{"p": "http://x"}`, `1:7: "p" is no object`},
	} {
		if _, err := setKeys([]byte(tc.data), []Key{key("1", "p", "x")}); err == nil || !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %s", tc.name, err, tc.want)
		}
	}
	if _, err := setKeys([]byte(`{"list": "a"}`), []Key{element(`"m"`, "list")}); err == nil {
		t.Error("a text was taken for a list")
	}
}

// TestUnsetKeys holds what is left of Pier's keys in a file that somebody else changed meanwhile.
func TestUnsetKeys(t *testing.T) {
	for _, tc := range []struct {
		name, original, now string
		keys                []Key
		after, left         string
	}{
		{"was not there", `{"b": 2}`, `{"b": 3, "p": {"x": 1}}`, []Key{key("1", "p", "x")}, `{"b": 3}`, ""},
		{"was first", `{}`, `{"p": {"x": 1}, "b": 3}`, []Key{key("1", "p", "x")}, `{"b": 3}`, ""},
		{"the object was there", `{"p": {}}`, `{"b": 3, "p": {"x": 1}}`, []Key{key("1", "p", "x")}, `{"b": 3, "p": {}}`, ""},
		{"others use the object", `{}`, `{"p": {"x": 1, "y": 2, "theirs": 3}}`, []Key{key("1", "p", "x"), key("2", "p", "y")}, `{"p": {"theirs": 3}}`, ""},
		{"had another value", `{"a": {"k":7}}`, `{"a": 1, "b": 3}`, []Key{key("1", "a")}, `{"a": {"k":7}, "b": 3}`, ""},
		{"was changed", `{"a": 7}`, `{"a": 8}`, []Key{key("1", "a")}, `{"a": 8}`, "a"},
		{"was removed", `{"a": 7}`, `{"b": 8}`, []Key{key("1", "a")}, `{"b": 8}`, ""},
		{"all that there was", ``, "{\n  \"p\": {\n    \"x\": 1\n  }\n}\n", []Key{key("1", "p", "x")}, "{}\n", ""},
		{"a list that others added to", `{}`, `{"list": ["new", "m"]}`, []Key{element(`"m"`, "list")}, `{"list": ["new"]}`, ""},
		{"a list of its own", `{"b": 1}`, `{"b": 2, "list": ["m"]}`, []Key{element(`"m"`, "list")}, `{"b": 2}`, ""},
		{"a list that was empty", `{"list": []}`, `{"list": ["m"], "b": 1}`, []Key{element(`"m"`, "list")}, `{"list": [], "b": 1}`, ""},
		{"an element that was there before", `{"list": ["m"]}`, `{"list": ["m"], "b": 1}`, []Key{element(`"m"`, "list")}, `{"list": ["m"], "b": 1}`, ""},
		{"a list no more", `{}`, `{"list": "m"}`, []Key{element(`"m"`, "list")}, `{"list": "m"}`, "list"},
	} {
		got, left, err := unsetKeys([]byte(tc.now), state{Content: []byte(tc.original)}, tc.keys)
		if err != nil || string(got) != tc.after || strings.Join(left, " ") != tc.left {
			t.Errorf("%s: got %v, left %v\n%s\nwant\n%s", tc.name, err, left, got, tc.after)
		}
	}
}

// FuzzSetKeys holds that an edit is what it says, whatever the file: what was there stays, the key is set, and taking it
// out again leaves the values as they were.
func FuzzSetKeys(f *testing.F) {
	for _, seed := range []string{"", "{}", `{"a": 1}`, "{\n\t\"p\": {\"x\": null},\n\t\"q\": [{}, {\"p\": 1}]\n}", `{"p": null}`, `{"p": {"y": []}}`, "{\r\n\"\": 1}", `{"a":1,}`, `{"p":{"p":{"p":1}}}`} {
		f.Add([]byte(seed), "p", "x")
	}
	f.Fuzz(func(t *testing.T, data []byte, outer, inner string) {
		name := func(s string) string { // as JSON can say it
			raw, _ := json.Marshal(s)
			_ = json.Unmarshal(raw, &s)
			return s
		}
		k := key(`"pier's"`, name(outer), name(inner))
		out, err := setKeys(data, []Key{k})
		if err != nil {
			return
		}
		before, after := decode(t, data), decode(t, out)
		if raw, ok := get(out, k.Path); !ok || !equal(raw, k.Value) {
			t.Fatalf("%q: not set in %q", data, out)
		}
		back, left, err := unsetKeys(out, state{Content: data}, []Key{k})
		if err != nil || left != nil {
			t.Fatalf("%q: %v, left %v", out, err, left)
		}
		restored := decode(t, back)
		if before[k.Path[0]] == nil { // null became an object
			delete(before, k.Path[0])
			if m, ok := restored[k.Path[0]].(map[string]any); ok && len(m) == 0 {
				delete(restored, k.Path[0])
			}
		}
		if !reflect.DeepEqual(before, restored) {
			t.Fatalf("%q: became %q, and then %q", data, out, back)
		}
		delete(before, k.Path[0])
		delete(after, k.Path[0])
		if !reflect.DeepEqual(before, after) {
			t.Fatalf("%q: lost something in %q", data, out)
		}
	})
}

func decode(t *testing.T, data []byte) map[string]any {
	m := make(map[string]any)
	if len(bytes.TrimSpace(data)) == 0 {
		return m
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if err := dec.Decode(&m); err != nil {
		t.Fatalf("%q: %v", data, err)
	}
	return m
}
