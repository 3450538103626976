package gzexact

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
)

// content returns n bytes that are the same everywhere and always, of all that layers have: words, numbers, zeros, tables, a small
// alphabet, bytes without order, and repetitions of what came up to 60 KB before, some of them with a change.
func content(n int) []byte {
	words := strings.Fields("layer the of index usr lib python3 share 0755 root bin manifest deflate int return if { } ; = \n")
	r := rand.NewPCG(1, 2)
	below := func(n int) int { return int(r.Uint64() % uint64(n)) }
	var b []byte
	for len(b) < n {
		switch k := below(100); {
		case k < 70:
			b = append(append(b, words[below(len(words))]...), ' ')
		case k < 80:
			b = fmt.Appendf(b, "%d", below(1000))
		case k < 90:
			from := max(len(b)-1-below(60000), 0)
			b = append(b, b[from:min(from+below(400), len(b))]...)
			if below(2) == 0 && len(b) > 0 {
				b[len(b)-1-below(min(len(b), 40))]++
			}
		case k < 93:
			for i := range below(60) {
				b = append(b, byte(i), 0, 0, 0, byte(r.Uint64()), byte(below(4)), 0xff, 0x7f, 0, 0, byte(below(16)), 0)
			}
		case k < 96:
			for range below(600) {
				b = append(b, "ACGT"[below(4)])
			}
		case k < 98:
			b = append(b, make([]byte, below(3000))...)
		default:
			size := 500
			if below(50) == 0 {
				size = 400_000
			}
			for range below(size) {
				b = append(b, byte(r.Uint64()))
			}
		}
	}
	return b[:n]
}

func encode(t testing.TB, e Encoder, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := e.Encode(context.Background(), &b, bytes.NewReader(content)); err != nil {
		t.Fatalf("encode %s: %v", e.Recipe, err)
	}
	return b.Bytes()
}

// contains is what Learn opens.
func contains(content []byte) func(Recipe) (io.ReadCloser, error) {
	return func(Recipe) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }
}

func learn(stream, content []byte) (Recipe, Index, error) {
	return Learn(context.Background(), bytes.NewReader(stream), int64(len(stream)), contains(content))
}

// recipe returns one of an encoder, with a header as good as any.
func (c *codec) recipe(level int8) Recipe {
	if c.zstd {
		return Recipe{codec: c.name, level: level}
	}
	xfl := map[int8]byte{1: xflFast, 9: xflBest}[level]
	return Recipe{codec: c.name, level: level, header: string([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, xfl, osUnknown})}
}

// recipes returns a recipe for every encoder and level.
func recipes() (all []Recipe) {
	for _, c := range codecs() {
		for _, level := range c.levels {
			all = append(all, c.recipe(level))
		}
	}
	return all
}

// decompress returns what a stream contains, by decoders that are not ours.
func decompress(stream []byte) ([]byte, error) {
	if bytes.HasPrefix(stream, []byte("\x1f\x8b")) {
		z, err := gzip.NewReader(bytes.NewReader(stream))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(z)
	}
	z, err := zstd.NewReader(bytes.NewReader(stream), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return io.ReadAll(z)
}

func TestEncodeIsValid(t *testing.T) {
	all := content(shorter(256<<10 + 1))
	for _, r := range recipes() {
		for _, n := range []int{0, 1, 16, 17, 127, 128, 65535, 128 << 10, len(all)} {
			want := all[:min(n, len(all))]
			got, err := decompress(encode(t, Encoder{Recipe: r}, want))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s, %d bytes: decompressed other content (error %v)", r, n, err)
			}
		}
	}
}

// How content arrives is no part of a recipe.
func TestEncodeOfCrumbs(t *testing.T) {
	want := content(shorter(150_000))
	for _, r := range recipes() {
		var b bytes.Buffer
		if err := r.Encode(context.Background(), &b, iotest.HalfReader(bytes.NewReader(want))); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b.Bytes(), encode(t, Encoder{Recipe: r}, want)) {
			t.Errorf("%s: content in pieces makes another stream", r)
		}
	}
}

func TestLearn(t *testing.T) {
	long := content(shorter(1_200_000))
	for _, r := range recipes() {
		for _, n := range []int{100, 60_000, len(long)} {
			c := r.find()
			if raced && c.block == 0 {
				continue // without goroutines
			}
			if n != 60_000 && r.level != c.levels[0] || n == len(long) && c.block == 0 {
				continue // one level is enough, and long streams are for blocks
			}
			all := long[:n]
			stream := encode(t, Encoder{Recipe: r}, all)
			got, index, err := learn(stream, all)
			if err != nil {
				t.Errorf("%s, %d bytes: %v", r, n, err)
				continue
			}
			if _, has := got.Before(); has != (index.Content == int64(n)) {
				t.Errorf("%s, %d bytes: learned %s and index %+v", r, n, got, index)
			}
			// Another recipe may make the same stream.
			if !bytes.Equal(encode(t, Encoder{Recipe: got}, all), stream) {
				t.Errorf("%s, %d bytes: learned %s, which makes another stream", r, n, got)
			}
		}
	}
}

func TestLearnKeepsHeader(t *testing.T) {
	all := content(50_000)
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Name, z.Comment, z.Extra, z.OS = "layer.tar", "made by hand", []byte("XX\x02\x00ab"), 3
	if _, err := z.Write(all); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	r := Recipe{codec: "go1", level: 6, header: string(b.Bytes()[:headerBytes+2+6+10+13])}
	stream := encode(t, Encoder{Recipe: r}, all)
	got, _, err := learn(stream, all)
	if err != nil || got != r {
		t.Errorf("learned %s (error %v), want %s", got, err, r)
	}
}

// A program that looks at the start of the content first makes a block of it.
func TestLearnFlushed(t *testing.T) {
	all := content(300_000)
	for _, first := range []int{1, 8, 100_000} {
		var b bytes.Buffer
		z, err := zstd.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := z.Write(all[:first]); err != nil {
			t.Fatal(err)
		}
		if err := z.Flush(); err != nil {
			t.Fatal(err)
		}
		if _, err := z.ReadFrom(bytes.NewReader(all[first:])); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		got, _, err := learn(b.Bytes(), all)
		if first == 100_000 {
			if !errors.Is(err, ErrUnknown) { // it is compressed: its size does not show
				t.Errorf("first %d: learned %s, error %v; want ErrUnknown", first, got, err)
			}
			continue
		}
		if want := (Recipe{codec: "klauspost1203", level: zstdDefault, first: first}); err != nil || got.first != want.first ||
			!bytes.Equal(encode(t, Encoder{Recipe: want}, all), b.Bytes()) || !bytes.Equal(encode(t, Encoder{Recipe: got}, all), b.Bytes()) {
			t.Errorf("learned %s (error %v), want %s", got, err, want)
		}
	}
	// Content may be shorter than what it says, in a stream of a stranger.
	encode(t, Encoder{Recipe: Recipe{codec: "klauspost120", level: zstdDefault, first: 8}}, all[:3])
}

// Layers shorter than a block have a header of another form: none of its bytes is taken for a block.
func TestLearnShort(t *testing.T) {
	mixed := content(128 << 10)
	for _, all := range [][]byte{make([]byte, len(mixed)), mixed} {
		for n := 512; n <= len(all); n += 512 {
			var b bytes.Buffer
			z, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := z.Write(all[:n]); err != nil {
				t.Fatal(err)
			}
			if err := z.Close(); err != nil {
				t.Fatal(err)
			}
			candidates, err := zstdCandidates(b.Bytes())
			if err != nil || candidates[0].first != 0 {
				t.Fatalf("%d bytes: %v, error %v", n, candidates, err)
			}
			if n != 1024 && n%10240 > 0 {
				continue // the empty layer, and those of GNU tar
			}
			if r, _, err := learn(b.Bytes(), all[:n]); err != nil {
				t.Errorf("%d bytes: learned %s, error %v", n, r, err)
			}
		}
	}
}

func TestLearnUnknown(t *testing.T) {
	all := content(200_000)
	one := encode(t, Encoder{Recipe: Candidates()[0]}, all)
	frame := encode(t, Encoder{Recipe: Recipe{codec: "klauspost120", level: zstdDefault}}, all)
	otherFlags, otherWindow := bytes.Clone(frame), bytes.Clone(frame)
	otherFlags[4], otherWindow[5] = 0, 0x58
	// Incompressible blocks of odd sizes, as no encoder here makes them.
	odd := append([]byte(plainHeader), 0, 3, 0, 0xfc, 0xff, 'a', 'b', 'c', 1, 2, 0, 0xfd, 0xff, 'd', 'e', 0, 0, 0, 0, 5, 0, 0, 0)
	changed := bytes.Clone(one)
	changed[len(changed)-5]++ // the digest in the trailer
	tests := map[string][]byte{
		"empty":            {},
		"short":            one[:5],
		"tar":              content(5000),
		"tiny window":      []byte("\x28\xb5\x2f\xfd\x04\x00\x01\x00\x00ABC"),
		"no checksum":      otherFlags,
		"other window":     otherWindow,
		"zstd, short":      frame[:5],
		"zstd, truncated":  frame[:len(frame)/2],
		"two frames":       append(bytes.Clone(frame), frame...),
		"frame skipped":    append([]byte("\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"), frame...),
		"skipped after":    append(bytes.Clone(frame), "\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"...), // zstd:chunked
		"two members":      append(bytes.Clone(one), one...),
		"trailing zeros":   append(bytes.Clone(one), make([]byte, 512)...),
		"truncated":        one[:len(one)/2],
		"without trailer":  one[:len(one)-8],
		"odd blocks":       odd,
		"changed trailer":  changed,
		"header too long":  append([]byte("\x1f\x8b\x08\x08\x00\x00\x00\x00\x00\xff"), bytes.Repeat([]byte("x"), 2000)...),
		"unknown XFL":      append([]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x07\xff"), one[10:]...),
		"header cut":       []byte("\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff\xff"),
		"reserved flag":    append([]byte("\x1f\x8b\x08\x80\x00\x00\x00\x00\x00\xff"), one[10:]...),
		"no deflate after": append([]byte(plainHeader), 0xff, 0xff, 0xff),
	}
	for name, stream := range tests {
		if r, _, err := learn(stream, all); !errors.Is(err, ErrUnknown) {
			t.Errorf("%s: learned %s, error %v; want ErrUnknown", name, r, err)
		}
	}
	for name, other := range map[string][]byte{"none": nil, "less": all[:len(all)-1], "more": append(bytes.Clone(all), 1), "changed": append(bytes.Clone(all[:len(all)-1]), all[len(all)-1]+1)} {
		for _, stream := range [][]byte{one, frame} {
			if r, _, err := learn(stream, other); !errors.Is(err, ErrUnknown) {
				t.Errorf("stream of %d bytes, content with %s: learned %s, error %v; want ErrUnknown", len(stream), name, r, err)
			}
		}
	}
}

const plainHeader = "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"

// A fault of the disk is not taken for a stream without a recipe.
func TestLearnFault(t *testing.T) {
	fault := errors.New("disk on fire")
	all := content(1_000_000)
	stream := encode(t, Encoder{Recipe: Candidates()[0]}, all)
	for _, at := range []int64{0, 20, int64(len(stream)) - 9} {
		r := faulty{bytes.NewReader(stream), at, fault}
		if _, _, err := Learn(context.Background(), r, int64(len(stream)), contains(all)); !errors.Is(err, fault) {
			t.Errorf("fault at %d: error %v", at, err)
		}
	}
	// Nor is one of what it contains, in which another encoder than that of the stream was tried last.
	for _, r := range []Recipe{Candidates()[0], {codec: "klauspost117", level: 8, header: plainHeader}, {codec: "pgzip117-1m", level: 5, header: plainHeader}, {codec: "klauspost120", level: zstdDefault}} {
		stream := encode(t, Encoder{Recipe: r}, all)
		for _, at := range []int{0, len(all) - 1, len(all)} {
			content := func(Recipe) (io.ReadCloser, error) {
				return io.NopCloser(io.MultiReader(bytes.NewReader(all[:at]), iotest.ErrReader(fault))), nil
			}
			if _, _, err := Learn(context.Background(), bytes.NewReader(stream), int64(len(stream)), content); !errors.Is(err, fault) {
				t.Errorf("%s: fault at %d of what it contains: error %v", r, at, err)
			}
		}
	}
	gone := func(Recipe) (io.ReadCloser, error) { return nil, fault }
	if _, _, err := Learn(context.Background(), bytes.NewReader(stream), int64(len(stream)), gone); !errors.Is(err, fault) {
		t.Errorf("what it contains is gone: error %v", err)
	}
	// The file is shorter than was said.
	if _, _, err := Learn(context.Background(), bytes.NewReader(stream[:100_000-1]), int64(len(stream)), contains(all)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short file: error %v, want that of reading", err)
	}
}

type faulty struct {
	io.ReaderAt
	at  int64
	err error
}

func (f faulty) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.at {
		return 0, f.err
	}
	return f.ReaderAt.ReadAt(p, off)
}

func TestDetect(t *testing.T) {
	skipRaced(t)
	all := content(400_000)
	for _, c := range codecs() {
		r := c.recipe(c.levels[0])
		stream := encode(t, Encoder{Recipe: r}, all)
		prefix := stream[:min(PrefixSize, len(stream)*9/10)]
		got, err := Detect(prefix, false)
		if err != nil || !slices.Contains(got, r) || len(got) > 6 {
			t.Errorf("%s: a prefix of %d bytes gives %v, error %v", r, len(prefix), got, err)
		}
		if c.name != "go1" {
			continue
		}
		clear(prefix[len(prefix)/4 : len(prefix)/2])
		if got, err := Detect(prefix, false); !errors.Is(err, ErrUnknown) {
			t.Errorf("%s: a wrong prefix gives %v, error %v", r, got, err)
		}
	}
	// Of a few bytes hardly anything can be said, but that which is whole.
	tiny := encode(t, Encoder{Recipe: Candidates()[0]}, []byte("x"))
	for _, whole := range []bool{false, true} {
		got, err := Detect(tiny, whole)
		if err != nil || len(got) == 0 || got[0] != Candidates()[0] {
			t.Errorf("tiny stream, whole %v: %v, error %v", whole, got, err)
		}
	}
	if got, err := Detect(tiny[:len(tiny)-1], true); !errors.Is(err, ErrUnknown) {
		t.Errorf("cut stream said to be whole: %v, error %v", got, err)
	}
}

// A prefix can stand for a thousand times its size; what is above 8 MiB is not looked at.
func TestDetectBomb(t *testing.T) {
	skipRaced(t)
	r := Recipe{codec: "zlib", level: 9, header: "\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03"}
	var b bytes.Buffer
	if err := r.Encode(context.Background(), &b, io.LimitReader(zeros{}, 20<<20)); err != nil {
		t.Fatal(err)
	}
	got, err := Detect(b.Bytes()[:b.Len()-100], false)
	if err != nil || len(got) == 0 {
		t.Errorf("zeros: %v, error %v", got, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestLearnEndsWithContext(t *testing.T) {
	all := content(3 << 20)
	stream := encode(t, Encoder{Recipe: Candidates()[0]}, all)
	ctx, cancel := context.WithCancelCause(context.Background())
	stop := errors.New("enough")
	cancel(stop)
	if _, _, err := Learn(ctx, bytes.NewReader(stream), int64(len(stream)), contains(all)); !errors.Is(err, stop) {
		t.Errorf("error %v, want the cause", err)
	}
}

// What Encode takes does not grow with the content.
func TestMemory(t *testing.T) {
	var all []Recipe
	for _, c := range codecs() {
		for _, level := range c.levels {
			if c.zstd || level == c.levels[0] {
				all = append(all, c.recipe(level))
			}
		}
	}
	piece := content(shorter(4 << 20))
	for _, r := range all {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if err := r.Encode(context.Background(), io.Discard, repeated(piece, 6)); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > uint64(r.Memory()) { // all that is ever allocated
			t.Errorf("%s: %d bytes allocated for %d", r, n, 6*len(piece))
		}
	}
}

func repeated(piece []byte, times int) io.Reader {
	all := make([]io.Reader, times)
	for i := range all {
		all[i] = bytes.NewReader(piece)
	}
	return io.MultiReader(all...)
}

func TestRecipeText(t *testing.T) {
	for _, r := range append(append(recipes(), Candidates()...), Identity(), Recipe{}) {
		text, err := r.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var got Recipe
		if err := got.UnmarshalText(text); err != nil || got != r {
			t.Errorf("%q: got %s, error %v", text, got, err)
		}
	}
	const text = "gzip go1 level=6 header=1f8b08000000000000ff"
	if got := Candidates()[0].String(); got != text {
		t.Errorf("got %q, want %q: texts that are stored must stay valid", got, text)
	}
	for _, bad := range []string{"gzip", "zip go1 level=6 header=1f8b08000000000000ff", "gzip go7 level=6 header=1f8b08000000000000ff",
		"gzip go1 level=10 header=1f8b08000000000000ff", "gzip go1 level=06 header=1f8b08000000000000ff", "gzip go1 level=6 header=1F8b08000000000000ff",
		"gzip go1 level=6 header=1f8b0800", "gzip go1 level=6 header=1f8b08000000000000ff00", " identity",
		"gzip go1 level=6 1f8b08000000000000ff", "zstd go1 level=6", "zstd go1 level=6 header=1f8b08000000000000ff", "zstd klauspost120",
		"gzip klauspost120 level=2", "gzip klauspost120 level=2 header=1f8b08000000000000ff", "zstd klauspost120 level=4",
		"zstd klauspost120 level=2 first=0", "zstd klauspost120 level=2 first=-1", "zstd klauspost120 level=2 first=131072",
		"zstd klauspost120 level=2 first=8 ", "zstd klauspost120 level=2 first=08", "zstd klauspost120 level=2 8", "gzip go1 level=600 header=1f8b08000000000000ff"} {
		if r, err := ParseRecipe(bad); err == nil {
			t.Errorf("%q: parsed as %s", bad, r)
		}
	}
}

func TestIdentity(t *testing.T) {
	want := content(100_000)
	if got := encode(t, Encoder{Recipe: Identity(), Workers: 2}, want); !bytes.Equal(got, want) {
		t.Error("identity changed the content")
	}
	if err := (Recipe{}).Encode(context.Background(), io.Discard, bytes.NewReader(want)); err == nil {
		t.Error("no recipe encoded something")
	}
}

func TestWorkersAndIndex(t *testing.T) {
	long := content(8<<20 + 12345)
	for _, n := range []int{0, 1, 16 << 10, 128 << 10, 256 << 10, 1<<20 + 5, 4 << 20, len(long)} {
		all := long[:n]
		for _, c := range codecs() {
			if c.block == 0 {
				continue
			}
			r := c.recipe(c.levels[0])
			want := encode(t, Encoder{Recipe: r}, all)
			if got := encode(t, Encoder{Recipe: r, Workers: 3}, all); !bytes.Equal(got, want) {
				t.Errorf("%s, %d bytes: three workers make another stream", r, n)
				continue
			}
			var b bytes.Buffer
			e := Encoder{Recipe: r, Workers: 2}
			index, err := e.Index(context.Background(), &b, bytes.NewReader(all))
			if err != nil || !bytes.Equal(b.Bytes(), want) {
				t.Errorf("%s, %d bytes: index makes another stream (error %v)", r, n, err)
			}
			points := max(n-1, 0) / pointBytes
			if c.emptyLast {
				points = n / pointBytes
			}
			if index.Content != int64(n) || index.Stream != int64(len(want)) || len(index.Points) != points {
				t.Errorf("%s, %d bytes: index %+v, stream has %d", r, n, index, len(want))
			}
			before, _ := r.Before()
			if p, ok := index.At(headerBytes); ok {
				t.Errorf("%s, %d bytes: the header is after %+v", r, n, p)
			}
			for i, p := range index.Points {
				last, _ := index.At(p.Stream - 1)
				if at, ok := index.At(p.Stream); !ok || at != p || i > 0 && last != index.Points[i-1] {
					t.Errorf("%s, %d bytes: %+v is at %+v, the one before at %+v", r, n, p, at, last)
				}
				b.Reset()
				err := e.EncodeFrom(context.Background(), &b, bytes.NewReader(all[p.Content-before:]), index, p)
				if err != nil || !bytes.Equal(b.Bytes(), want[p.Stream:]) {
					t.Errorf("%s, %d bytes: from %+v another stream (error %v)", r, n, p, err)
				}
			}
		}
	}
	if _, err := (Encoder{Recipe: Candidates()[0]}).Index(context.Background(), io.Discard, bytes.NewReader(nil)); err == nil {
		t.Error("a stream without blocks has an index")
	}
}

// Whatever fails, Encode returns with that error and leaves no goroutine.
func TestWorkersFail(t *testing.T) {
	fault := errors.New("fault")
	e := Encoder{Recipe: Candidates()[2], Workers: 3}
	long := io.LimitReader(zeros{}, 1<<40)
	if err := e.Encode(context.Background(), io.Discard, io.MultiReader(io.LimitReader(long, 5<<20), iotest.ErrReader(fault))); !errors.Is(err, fault) {
		t.Errorf("content fails: error %v", err)
	}
	if err := e.Encode(context.Background(), &failing{left: 3, err: fault}, long); !errors.Is(err, fault) {
		t.Errorf("writer fails: error %v", err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	w := &failing{left: 3, call: func() { cancel(fault) }}
	if err := e.Encode(ctx, w, long); !errors.Is(err, fault) {
		t.Errorf("context ends: error %v", err)
	}
}

// failing writes left times, then fails with err or calls call.
type failing struct {
	left int
	err  error
	call func()
}

func (f *failing) Write(p []byte) (int, error) {
	f.left--
	if f.left < 0 && f.err != nil {
		return 0, f.err
	}
	if f.left < 0 {
		f.call()
	}
	return len(p), nil
}
