package overlay2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/vbatts/tar-split/tar/storage"
)

// all reads a record as text, and returns what it is made of.
func all(t testing.TB, record string) ([]entry, error) {
	t.Helper()
	r, err := newRecords(strings.NewReader(compress(t, record)))
	if err != nil {
		t.Fatal(err)
	}
	var list []entry
	for {
		e, err := r.next()
		if err == io.EOF {
			return list, nil
		}
		if err != nil {
			return list, err
		}
		e.segment = bytes.Clone(e.segment)
		list = append(list, e)
	}
}

func TestRecordIsRefused(t *testing.T) {
	const sum = `"payload":"AAAAAAAAAAE="`
	for name, record := range map[string]string{
		"no JSON":                    "tar-split\n",
		"negative size":              `{"type":1,"name":"f","size":-1,` + sum + `,"position":0}` + "\n",
		"size of no number":          `{"type":1,"name":"f","size":99999999999999999999,` + sum + `,"position":0}` + "\n",
		"sizes that overflow":        strings.Repeat(`{"type":1,"name":"f","size":9223372036850000000,`+sum+`,"position":0}`+"\n", 2),
		"another type":               `{"type":3,"payload":"AAAA","position":0}` + "\n",
		"no type":                    `{"payload":"AAAA","position":0}` + "\n",
		"file without a sum":         `{"type":1,"name":"f","size":1,"payload":null,"position":0}` + "\n",
		"file with a short sum":      `{"type":1,"name":"f","size":1,"payload":"AAAA","position":0}` + "\n",
		"segment that is no base64":  `{"type":2,"payload":"A*==","position":0}` + "\n",
		"line without an end":        `{"type":2,"payload":"AAAA","position":0}`,
		"line that is cut":           `{"type":2,"payload":"AAAA","pos`,
		"something after the object": `{"type":2,"payload":"AAAA","position":0}{}` + "\n",
	} {
		size, unsupported, err := measure(t.Context(), strings.NewReader(compress(t, record)))
		if err == nil || unsupported != "" {
			t.Errorf("%s: got size %d, %q, want an error", name, size, unsupported)
		}
	}
	cut := compress(t, split(t, pack(t, file("a", big))))
	if _, _, err := measure(t.Context(), strings.NewReader(cut[:len(cut)/2])); err == nil {
		t.Error("record that ends in the middle: got no error")
	}
	if _, _, err := measure(t.Context(), strings.NewReader("tar")); err == nil {
		t.Error("record that is no gzip: got no error")
	}
}

// A few KB of image may be gigabytes of padding, in one line or in many.
func TestRecordBomb(t *testing.T) {
	padding := strings.Repeat("A", 1<<20)
	for name, text := range map[string][2]string{
		"one segment": {`{"type":2,"payload":"`, padding},
		"one name":    {`{"type":1,"name":"`, padding},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, unsupported, err := measure(t.Context(), endless(t, text[0], text[1]))
		runtime.ReadMemStats(&after)
		if unsupported != errLong.Error() || err != nil {
			t.Errorf("%s: got %q and error %v, want %q", name, unsupported, err, errLong)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
			t.Errorf("%s: %d MB allocated", name, n>>20)
		}
	}
	r, err := newRecords(endless(t, "", `{"type":2,"payload":"`+padding+`","position":0}`+"\n"))
	if err != nil {
		t.Fatal(err)
	}
	r.max = 10 << 20 // 1 GiB would take seconds
	for err == nil {
		_, err = r.next()
	}
	if !errors.Is(err, errLong) {
		t.Errorf("many lines: got error %v, want %v", err, errLong)
	}
}

// endless is the gzip of s and then of rest, without end. A gzip file may be many, one after the other.
func endless(t *testing.T, s, rest string) io.Reader {
	t.Helper()
	return io.MultiReader(strings.NewReader(compress(t, s)), &again{s: compress(t, rest)})
}

// again is a reader of s, again and again.
type again struct {
	s  string
	at int
}

func (a *again) Read(p []byte) (int, error) {
	n := copy(p, a.s[a.at:])
	a.at = (a.at + n) % len(a.s)
	return n, nil
}

func TestLongLines(t *testing.T) {
	var record bytes.Buffer
	w := storage.NewJSONPacker(&record)
	var want [][]byte
	for _, n := range []int{1, 10, 49_000, 1 << 20, 100, 3 << 20 * 99 / 100, 64 << 10} {
		b := bytes.Repeat([]byte{byte(n)}, n)
		want = append(want, b)
		if _, err := w.AddEntry(storage.Entry{Type: storage.SegmentType, Payload: b}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := all(t, record.String())
	if err != nil || len(got) != len(want) {
		t.Fatalf("got %d entries and error %v", len(got), err)
	}
	for i := range want {
		if !bytes.Equal(got[i].segment, want[i]) {
			t.Errorf("entry %d has %d bytes, want %d", i, len(got[i].segment), len(want[i]))
		}
	}
}

// FuzzRecord compares with tar-split's own reader.
func FuzzRecord(f *testing.F) {
	f.Add(split(f, pack(f, dir("d"), file("d/f", "content"), symlink("l", "d"), file("caf\xe9", "x"))))
	f.Add(`{"type":2,"payload":"AAAA","position":0}` + "\n")
	f.Add(`{"type":2,"payload":"AA\u0041A","position":-1}` + "\n" + `{"payload":"AAAAAAAAAAE=","size":1,"name":"\ud800","type":1}` + "\n")
	f.Fuzz(func(t *testing.T, record string) {
		got, err := all(t, record)
		if err != nil {
			return
		}
		theirs := storage.NewJSONUnpacker(strings.NewReader(record))
		for i, e := range got {
			want, err := theirs.Next()
			if err != nil {
				return // a name again, or a position that is none: Docker writes neither
			}
			s := fmt.Sprintf("%q %q %d", e.segment, e.name, e.size)
			if want.Type == storage.SegmentType && s != fmt.Sprintf("%q %q 0", want.Payload, "") ||
				want.Type == storage.FileType && s != fmt.Sprintf("%q %q %d", "", want.GetName(), want.Size) && e.crc != 0 {
				t.Fatalf("entry %d: %s, and tar-split says %+v", i, s, want)
			}
		}
	})
}

func BenchmarkMeasure(b *testing.B) {
	var members []member
	for i := range 10_000 {
		members = append(members, file(fmt.Sprintf("usr/share/doc/package-%d/copyright", i), "content"))
	}
	record := split(b, pack(b, members...))
	z := compress(b, record)
	b.SetBytes(int64(len(record)))
	for b.Loop() {
		if _, _, err := measure(b.Context(), strings.NewReader(z)); err != nil {
			b.Fatal(err)
		}
	}
}
