package zlib

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
)

const goldenFile = "testdata/golden.txt"

// With -args -golden TestGolden writes its file anew from what the original programs put out.
var writeGolden = flag.Bool("golden", false, "write "+goldenFile)

// encode returns what a Writer makes of content.
func encode(t testing.TB, c Config, content []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z, err := NewWriter(&out, c)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := z.Write(content); n != len(content) || err != nil {
		t.Fatalf("Write of %d bytes: got %d, error %v", len(content), n, err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// compress has z make a stream of content, for nobody.
func compress(t testing.TB, z *Writer, content []byte) {
	t.Helper()
	z.Reset(io.Discard)
	if _, err := z.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
}

// decode complains if stream is not content compressed.
func decode(t testing.TB, stream, content []byte) {
	t.Helper()
	r := bytes.NewReader(stream)
	got, err := io.ReadAll(flate.NewReader(r))
	if err != nil || !bytes.Equal(got, content) || r.Len() > 0 {
		t.Fatalf("decoded: got %d bytes of %d, equal %v, error %v, %d bytes after the stream",
			len(got), len(content), bytes.Equal(got, content), err, r.Len())
	}
}

// A golden input has a name and content.
type golden struct {
	name    string
	content []byte
}

func goldens() []golden {
	list := []golden{
		{"empty", nil},
		{"byte", []byte("a")},
		{"two", []byte("aa")},
		{"three", []byte("aaa")},
		{"four", []byte("aaaa")},
		{"text-100kB", text(100_000, 1)},
		{"random-1MB", random(1_000_000, 2)},
		{"zeros-1MB", make([]byte, 1_000_000)},
		{"archive-5MB", archive(5_000_000, 3)},
		{"transitions", slices.Concat(
			random(70_000, 4), text(90_000, 5), random(20_000, 6), make([]byte, 140_000), random(40_000, 7), text(300, 8),
		)},
		{"farthest", farthest()},
		{"skewed", skewed(200_000, 9)},
	}
	for i := range 12 {
		list = append(list, golden{fmt.Sprintf("structured-%d", i), structured(10_000+20_000*i, 100+i)})
	}
	for i, n := range []int{minLookahead, windowSize, farEnd, 2 * windowSize, 3 * windowSize, PigzBlock, 2 * PigzBlock} {
		for d := -2; d <= 1; d++ {
			list = append(list, golden{fmt.Sprintf("ends-%d", n+d), structured(n+d, 200+i)})
		}
	}
	return list
}

// farthest has a match at maxDistance, where the window moves.
func farthest() []byte {
	b := random(100_000, 25)
	for i := range b {
		b[i] %= 200
	}
	copy(b[farEnd:farEnd+100], b[windowSize:])
	return b
}

// Every level of every variant puts out what its original did, for which the digests stand.
func TestGolden(t *testing.T) {
	if *writeGolden {
		recordGolden(t)
	}
	file, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	want := make(map[string][]string)
	for line := range strings.Lines(string(file)) {
		if f := strings.Fields(line); f[0] != "#" {
			want[f[0]+" "+f[1]] = f[2:]
		}
	}
	inputs := goldens()
	for _, k := range kinds() {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			for _, in := range inputs {
				if k.few && len(in.content) > fewBytes || len(in.content) > goldenMax {
					continue
				}
				sums := want[k.name+" "+in.name]
				if len(sums) != len(levelLimits) {
					t.Errorf("%s: %d digests", in.name, len(sums))
					continue
				}
				for i, sum := range sums {
					if len(in.content) > 1_000_000 && !slices.Contains([]int{0, 3, 5, 8}, i) {
						continue // for time's sake
					}
					c := k.config
					c.Level = i + 1
					out := encode(t, c, in.content)
					if got := digest(out); got != sum {
						t.Errorf("%s, level %d: got %s, want %s", in.name, c.Level, got, sum)
					}
					if len(in.content) < 1e6 {
						decode(t, out, in.content)
					}
				}
			}
		})
	}
}

// digest returns the start of the SHA-256: a change that leaves it as it is by chance will not happen.
func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return fmt.Sprintf("%x", sum[:6])
}

func recordGolden(t *testing.T) {
	t.Helper()
	o := findOriginals(t)
	var b strings.Builder
	fmt.Fprintf(&b, "# Starts of the SHA-256 of the raw streams of levels 1 to 9, by\n# %s\n", o.versions(t))
	for _, k := range kinds() {
		if o.path(k) == "" {
			t.Fatalf("no program for %s: unpack it with e2e/tools.sh", k.name)
		}
		for _, in := range goldens() {
			if k.few && len(in.content) > fewBytes {
				continue
			}
			fmt.Fprintf(&b, "%s %s", k.name, in.name)
			for level := range levelLimits {
				fmt.Fprintf(&b, " %s", digest(o.compress(t, k, level+1, in.content)))
			}
			b.WriteString("\n")
		}
	}
	if err := os.WriteFile(goldenFile, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// How the content is cut into writes makes no difference, nor does what the Writer was used for before.
func TestCutsAndReset(t *testing.T) {
	contents := [][]byte{archive(400_000, 9), nil, structured(2*PigzBlock, 10), farthest(), text(98_301, 11)}
	for _, k := range kinds() {
		for _, level := range []int{1, 6} {
			c := k.config
			c.Level = level
			z, err := NewWriter(io.Discard, c)
			if err != nil {
				t.Fatal(err)
			}
			for i, content := range contents {
				var out bytes.Buffer
				z.Reset(&out)
				s := newSource(i)
				for rest := content; len(rest) > 0; {
					n := min(len(rest), s.below(1+s.below(70_000)))
					if _, err := z.Write(rest[:n]); err != nil {
						t.Fatal(err)
					}
					rest = rest[n:]
				}
				if err := z.Close(); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(out.Bytes(), encode(t, c, content)) {
					t.Errorf("%s, level %d, content %d: cut, the stream is another", k.name, level, i)
				}
			}
		}
	}
}

// The blocks of pigz are made in any order.
func TestBlockEncoder(t *testing.T) {
	for level := 1; level <= 9; level++ {
		e, err := NewBlockEncoder(level)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{0, 1, PigzBlock, PigzBlock + 1, 5*PigzBlock - 77} {
			content := archive(n, level)
			count := max(1, (n+PigzBlock-1)/PigzBlock)
			parts := make([][]byte, count)
			for i := count - 1; i >= 0; i-- {
				from := i * PigzBlock
				parts[i] = e.Encode([]byte("before"), content[:from], content[from:min(n, from+PigzBlock)], i == count-1)[6:]
			}
			if !bytes.Equal(slices.Concat(parts...), encode(t, Config{Variant: Pigz, Level: level}, content)) {
				t.Errorf("level %d, %d bytes: the blocks are not those of the stream", level, n)
			}
		}
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []Config{
		{}, {Level: 10}, {Level: -1}, {Level: 6, MemLevel: 10}, {Level: 6, MemLevel: -1},
		{Level: 6, Variant: GNU, MemLevel: 9}, {Level: 6, Variant: GNU + 1},
	} {
		if _, err := NewWriter(io.Discard, c); err == nil {
			t.Errorf("%+v: no error", c)
		}
	}
	if _, err := NewBlockEncoder(0); err == nil {
		t.Error("level 0 of a BlockEncoder: no error")
	}
}

var errFull = errors.New("full")

// broken is a writer that fails when limit bytes are written.
type broken struct{ limit int }

func (b *broken) Write(p []byte) (int, error) {
	b.limit -= len(p)
	if b.limit < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestWriteError(t *testing.T) {
	z, err := NewWriter(&broken{limit: 100_000}, Config{Level: 1})
	if err != nil {
		t.Fatal(err)
	}
	n, err := z.Write(random(500_000, 1))
	if n == 500_000 || !errors.Is(err, errFull) {
		t.Errorf("Write: got %d, error %v, want less than 500000 and %v", n, err, errFull)
	}
	if err := z.Close(); !errors.Is(err, errFull) {
		t.Errorf("Close: got error %v, want %v", err, errFull)
	}
	z.Reset(io.Discard)
	if err := errors.Join(z.Close(), z.Close()); err != nil {
		t.Errorf("Close twice: got error %v", err)
	}
	if _, err := z.Write([]byte("x")); err == nil {
		t.Error("Write after Close: no error")
	}
}

// Memory does not grow with the content, and a Writer that is used again allocates nothing.
func TestAllocations(t *testing.T) {
	content := archive(1_000_000, 12)
	for _, k := range kinds() {
		c := k.config
		c.Level = 4
		z, err := NewWriter(io.Discard, c)
		if err != nil {
			t.Fatal(err)
		}
		n := testing.AllocsPerRun(2, func() { compress(t, z, content) })
		if n > 0 {
			t.Errorf("%s: %v allocations", k.name, n)
		}
		if size := cap(z.e.bits.out); size > 128<<10 {
			t.Errorf("%s: a buffer of %d bytes for what is compressed", k.name, size)
		}
	}
}

func FuzzRoundTrip(f *testing.F) {
	for i, in := range goldens() {
		if len(in.content) < 100_000 {
			f.Add(in.content, byte(i%4), byte(i%9), 1+i)
		}
	}
	f.Fuzz(func(t *testing.T, content []byte, variant, level byte, repeat int) {
		if repeat > 1 && len(content) > 0 { // longer than windows and blocks
			content = bytes.Repeat(content, min(repeat, 1+300_000/len(content)))
		}
		c := Config{Variant: Variant(variant % 4), Level: 1 + int(level%9)}
		decode(t, encode(t, c, content), content)
	})
}

// Beside the originals: see TestSpeed.
func BenchmarkWriter(b *testing.B) {
	content := archive(5_000_000, 3)
	for _, k := range kinds() {
		for _, level := range []int{1, 6, 9} {
			b.Run(fmt.Sprintf("%s/%d", k.name, level), func(b *testing.B) {
				c := k.config
				c.Level = level
				z, err := NewWriter(io.Discard, c)
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(int64(len(content)))
				for b.Loop() {
					compress(b, z, content)
				}
			})
		}
	}
}
