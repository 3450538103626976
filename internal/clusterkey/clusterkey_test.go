package clusterkey

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// write writes a key file and returns its name.
func write(t testing.TB, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "cluster.key")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// read returns the keys in the texts of New, in that order.
func read(t testing.TB, texts ...string) Keys {
	t.Helper()
	k, err := Read(write(t, strings.Join(texts, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// digits returns the key in a text of New.
func digits(text string) string { return strings.Split(text, "\n")[1] }

func TestNew(t *testing.T) {
	a, b := New(), New()
	if digits(a) == digits(b) {
		t.Error("two new keys are the same")
	}
	if k := read(t, a); k.Empty() || len(k.Gossip()) != 1 {
		t.Errorf("a new key: got %v, want one", k)
	}
	if !(Keys{}).Empty() || (Keys{}).Gossip() != nil {
		t.Error("the zero Keys has keys")
	}
}

func TestRead(t *testing.T) {
	a, b, c := digits(New()), digits(New()), digits(New())
	text := "# in use\r\n\r\n  " + a + "  # since spring\r\n" + strings.ToUpper(b) + "\n\n" + c // no end of line
	got := read(t, text).Gossip()
	want := append(append(read(t, a).Gossip(), read(t, b).Gossip()...), read(t, c).Gossip()...)
	if len(got) != 3 || !bytes.Equal(bytes.Join(got, nil), bytes.Join(want, nil)) {
		t.Errorf("got gossip keys %x, want %x", got, want)
	}
}

func TestReadFaults(t *testing.T) {
	a, b, c, d := digits(New()), digits(New()), digits(New()), digits(New())
	for _, tt := range []struct {
		name, text string
		want       []string // in the error, each after the file's name
	}{
		{"empty", "", []string{":1: no key: write one with 'pier key new'"}},
		{"comments only", "# soon\n\n# a key\n", []string{":3: no key"}},
		{"too short", "# key\n" + a[1:] + "\n", []string{":2: a key has 64 hexadecimal digits, this line 63 characters"}},
		{"too long", a + b, []string{":1: a key has 64 hexadecimal digits, this line 128"}},
		{"bad hex", a + "\n" + b[:63] + "g\n", []string{":2: not only hexadecimal digits"}},
		{"same twice", a + "\n" + b + "\n" + strings.ToUpper(a), []string{":3: the same key as in line 1: delete"}},
		{"too many", a + "\n" + b + "\n" + c + "\n" + d, []string{":4: more than 3 keys: delete"}},
		{"all faults at once", a[1:] + "\n" + b + "\n" + b + "\n", []string{":1: a key has", ":3: the same key"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := write(t, tt.text)
			k, err := Read(file)
			if err == nil || !k.Empty() {
				t.Fatalf("got %v and error %v, want an error alone", k, err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), file+want) {
					t.Errorf("error %q does not say %q", err, file+want)
				}
			}
			for _, key := range []string{a, b, c, d} {
				if strings.Contains(strings.ToLower(err.Error()), key[1:63]) {
					t.Errorf("the error shows a key: %v", err)
				}
			}
		})
	}
}

func TestReadNoFile(t *testing.T) {
	if _, err := Read(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: got error %v, want fs.ErrNotExist", err)
	}
	if _, err := Read("/dev/zero"); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("an endless file: got error %v", err)
	}
}

// Regression: a key given in place of the file's name stood in the error of opening it.
func TestReadKeyAsFile(t *testing.T) {
	key := digits(New())
	_, err := Read(key)
	if err == nil || strings.Contains(err.Error(), key) || !strings.Contains(err.Error(), "write the key into a file") {
		t.Errorf("got error %v", err)
	}
}

func TestGossip(t *testing.T) {
	text := New()
	k := read(t, text)
	secret, err := hex.DecodeString(digits(text))
	if err != nil {
		t.Fatal(err)
	}
	gossip := k.Gossip()[0]
	if len(gossip) != 32 {
		t.Errorf("a gossip key of %d bytes, want 32", len(gossip))
	}
	keys, err := derive([][]byte{secret})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(gossip, keys.Gossip()[0]) {
		t.Error("the same key gives another gossip key on another node")
	}
	// Who breaks one use of the key has not broken the others.
	if bytes.Equal(gossip, secret) {
		t.Error("the gossip key is the key in the file")
	}
	for name, seed := range map[string][]byte{"gossip key": gossip, "key in the file": secret} {
		a, err := newAuthority(seed)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.leaf.Leaf.CheckSignatureFrom(a.cert); err == nil {
			t.Errorf("the %s is the authority's", name)
		}
	}
	gossip[0]++
	if bytes.Equal(gossip, k.Gossip()[0]) {
		t.Error("what the caller does to a key changes Keys")
	}
}

func TestKeysDoNotPrint(t *testing.T) {
	k := read(t, New())
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
		fmt.Fprintf(&out, verb, k)
		fmt.Fprintf(&out, verb, struct{ K *Keys }{&k})
		fmt.Fprintf(&out, verb, struct{ K Keys }{k})
	}
	slog.New(slog.NewJSONHandler(&out, nil)).Info("keys", "keys", k)
	slog.New(slog.NewTextHandler(&out, nil)).Info("keys", "keys", k)
	for _, verb := range []string{"%x", "%X", "%v", "%#v", "%s"} {
		secret := strings.Trim(fmt.Sprintf(verb, k.Gossip()[0]), "[]")
		if strings.Contains(out.String(), secret) {
			t.Errorf("a secret is printed as %s: %s", verb, out.String())
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(New())
	f.Add("# x\n\n" + strings.Repeat("0f", 32) + " # y\r\n" + strings.Repeat("F", 64))
	f.Add(strings.Repeat("0", 65))
	f.Fuzz(func(t *testing.T, text string) {
		secrets, err := parse("key", text)
		if err != nil {
			for line := range strings.Lines(text) {
				if word := strings.TrimSpace(line); len(word) > 40 && strings.Contains(err.Error(), word) && !strings.Contains(word, " ") {
					t.Errorf("the error quotes the file: %v", err)
				}
			}
			return
		}
		if len(secrets) < 1 || len(secrets) > maxKeys {
			t.Fatalf("%d keys and no error", len(secrets))
		}
		again := ""
		for _, s := range secrets {
			if len(s) != keySize {
				t.Fatalf("a key of %d bytes", len(s))
			}
			again += hex.EncodeToString(s) + "\n"
		}
		if second, err := parse("key", again); err != nil || len(second) != len(secrets) {
			t.Errorf("the same keys, plainly written: %d keys, error %v", len(second), err)
		}
	})
}
