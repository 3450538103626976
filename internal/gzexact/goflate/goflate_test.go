package goflate

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
)

// mixed returns n bytes, the same always: text with repetitions near and far, and stretches without order.
func mixed(n int) []byte {
	words := strings.Fields("a layer is made of files , each with name mode 0755 and owner root : usr lib bin share doc")
	r := rand.NewPCG(3, 4)
	var b []byte
	for len(b) < n {
		switch r.Uint64() % 40 {
		case 0:
			for range r.Uint64() % 200 {
				b = append(b, byte(r.Uint64()))
			}
		case 1, 2, 3:
			from := max(len(b)-int(r.Uint64()%40000), 0)
			b = append(b, b[from:min(from+int(r.Uint64()%300), len(b))]...)
		default:
			b = append(append(b, words[r.Uint64()%uint64(len(words))]...), ' ')
		}
	}
	return b[:n]
}

var allLevels = []int{HuffmanOnly, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9}

func compress(t testing.TB, level int, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := NewWriter(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Digests of what compress/flate of Go 1.26 makes of mixed(400_000).
func TestGolden(t *testing.T) {
	want := map[int]string{
		HuffmanOnly: "570999beb543edb4",
		0:           "09ca83693795f369",
		1:           "440e101439c13d77",
		2:           "e46f1e6fb45211c7",
		3:           "b699abc662b46ba3",
		4:           "b2c81c27c9c51483",
		5:           "453d2298c41aeed7",
		6:           "4cf6b4df9407ad51",
		7:           "ba469f1ed96a2046",
		8:           "d152a6a3fefc4500",
		9:           "7e4b2208d2581560",
	}
	for _, level := range allLevels {
		sum := sha256.Sum256(compress(t, level, mixed(400_000)))
		if got := fmt.Sprintf("%x", sum[:8]); got != want[level] {
			t.Errorf("level %d: got %s, want %s", level, got, want[level])
		}
	}
}

// What a toolchain of the era makes is the standard; of others, that they read it.
func TestStandardLibrary(t *testing.T) {
	var minor int
	_, err := fmt.Sscanf(runtime.Version(), "go1.%d", &minor)
	era := err == nil && minor >= 9 && minor <= 26
	for _, n := range []int{0, 1, 3, 4, 16, 17, 100, 127, 128, 300, 32768, 65274, 65535, 65536, 65535 + 16, 65535 + 17, 65535 + 128, 200_000} {
		content := mixed(n)
		for _, level := range allLevels {
			got := compress(t, level, content)
			back, err := io.ReadAll(flate.NewReader(bytes.NewReader(got)))
			if err != nil || !bytes.Equal(back, content) {
				t.Errorf("level %d, %d bytes: decompresses to other content (error %v)", level, n, err)
			}
			if !era {
				continue
			}
			want := standard(t, level, content)
			if !bytes.Equal(got, want) {
				t.Errorf("level %d, %d bytes: not what %s makes", level, n, runtime.Version())
			}
		}
	}
}

// standard returns what compress/flate of this toolchain makes of content.
func standard(t *testing.T, level int, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := flate.NewWriter(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// FuzzStandardLibrary compares with a standard library of the era; with others it finds crashes only.
func FuzzStandardLibrary(f *testing.F) {
	var minor int
	_, err := fmt.Sscanf(runtime.Version(), "go1.%d", &minor)
	era := err == nil && minor >= 9 && minor <= 26
	f.Add([]byte("abcabcabcabcaaaaaaaaaaaaaaaaaaaaaaaa"), uint8(6), uint16(3000))
	f.Add(mixed(3000), uint8(1), uint16(30))
	f.Fuzz(func(t *testing.T, b []byte, level uint8, times uint16) {
		// Repeated with a byte more each time, so that the window slides.
		var content []byte
		for i := range times {
			if content = append(append(content, b...), byte(i)); len(content) > 300_000 {
				break
			}
		}
		l := allLevels[int(level)%len(allLevels)]
		got := compress(t, l, content)
		want := standard(t, l, content)
		if era && !bytes.Equal(got, want) {
			t.Errorf("level %d: not what %s makes", l, runtime.Version())
		}
	})
}

// Positions start anew after a gigabyte; nothing may show it.
func TestRebase(t *testing.T) {
	content := mixed(400_000)
	for _, level := range allLevels {
		var b bytes.Buffer
		z, err := NewWriter(&b, level)
		if err != nil {
			t.Fatal(err)
		}
		switch e := z.enc.(type) {
		case *chains:
			e.base = maxPosition - 100_000
		case *blocks:
			if level != 1 {
				continue
			}
			f := &fast{out: z.out}
			f.start()
			f.base = maxPosition - 100_000
			e.block = f.block
		}
		if _, err := z.Write(content); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b.Bytes(), compress(t, level, content)) {
			t.Errorf("level %d: another stream after a gigabyte", level)
		}
	}
}

func TestErrors(t *testing.T) {
	for _, level := range []int{-3, -1, 10} {
		if _, err := NewWriter(io.Discard, level); err == nil {
			t.Errorf("there is a level %d", level)
		}
	}
	full := errors.New("no space")
	for _, level := range allLevels {
		z, err := NewWriter(failing{full}, level)
		if err != nil {
			t.Fatal(err)
		}
		_, err = z.Write(mixed(400_000))
		if err := z.Close(); !errors.Is(err, full) {
			t.Errorf("level %d: Close says %v", level, err)
		}
		if _, again := z.Write([]byte("x")); !errors.Is(err, full) && !errors.Is(again, full) {
			t.Errorf("level %d: Write says %v, then %v", level, err, again)
		}
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func Benchmark(b *testing.B) {
	content := mixed(4 << 20)
	for _, level := range []int{1, 5, 6, 9} {
		b.Run(fmt.Sprintf("goflate-%d", level), func(b *testing.B) {
			b.SetBytes(int64(len(content)))
			for range b.N {
				z, err := NewWriter(io.Discard, level)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := z.Write(content); err != nil {
					b.Fatal(err)
				}
				if err := z.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("%s-%d", runtime.Version(), level), func(b *testing.B) {
			b.SetBytes(int64(len(content)))
			for range b.N {
				z, err := flate.NewWriter(io.Discard, level)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := z.Write(content); err != nil {
					b.Fatal(err)
				}
				if err := z.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
