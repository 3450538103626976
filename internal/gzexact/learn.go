package gzexact

import (
	"bytes"
	"cmp"
	"compress/flate"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
)

// PrefixSize is how much of a stream [Detect] wants, in bytes: the encoders that people use differ before that on all but odd content.
const PrefixSize = 512 << 10

// detectContent is how much content Detect decompresses at most, in bytes: a prefix can stand for a thousand times its size.
const detectContent = 8 << 20

// Detect returns the recipes that may have made a stream which begins with prefix, most likely first; whole says that prefix is all of
// it. It reports ErrUnknown if none can have. That all of a prefix fits is no proof. Of zstd only the header is looked at.
func Detect(prefix []byte, whole bool) ([]Recipe, error) {
	candidates, err := headerCandidates(prefix)
	if err != nil {
		return nil, err
	}
	var found []Recipe
	for _, r := range candidates {
		if r.header == "" {
			found = append(found, r)
			continue
		}
		content := &decompressed{r: flate.NewReader(bytes.NewReader(prefix[len(r.header):])), whole: whole}
		t := trial{stream: bytes.NewReader(prefix), size: int64(len(prefix)), whole: whole}
		if ok, _, err := t.run(context.Background(), r, content); err == nil && ok { // an error says that it is no deflate stream
			found = append(found, r)
		}
	}
	if len(found) == 0 {
		return nil, ErrUnknown
	}
	return found, nil
}

// Learn finds the recipe of the stream that is the first size bytes of stream: it compresses its content by each recipe that may have made
// it, and compares, until one made all of it. A recipe is given up at the first difference. content opens the content for a recipe, which
// takes the memory it says until the content is closed. Learn returns the index too, if streams of the recipe have points. Time is that of
// compressing the content once, and a little for each recipe that is given up. Learn reports ErrUnknown if no recipe makes the stream of
// that content; other errors are those of ctx and of reading.
func Learn(ctx context.Context, stream io.ReaderAt, size int64, content func(Recipe) (io.ReadCloser, error)) (Recipe, Index, error) {
	start := make([]byte, min(size, maxHeader))
	if _, err := stream.ReadAt(start, 0); err != nil && err != io.EOF {
		return Recipe{}, Index{}, err
	}
	candidates, err := headerCandidates(start)
	if err != nil {
		return Recipe{}, Index{}, err
	}
	for _, r := range candidates {
		c, err := content(r)
		if err != nil {
			return Recipe{}, Index{}, err
		}
		t := trial{stream: stream, size: size, whole: true}
		ok, index, err := t.run(ctx, r, c)
		c.Close()
		if err != nil {
			return Recipe{}, Index{}, err
		}
		if ok {
			return r, index, nil
		}
	}
	return Recipe{}, Index{}, ErrUnknown
}

// headerCandidates returns the recipes that write the header which prefix begins with, most likely first.
func headerCandidates(prefix []byte) ([]Recipe, error) {
	if all, err := zstdCandidates(prefix); err == nil {
		return all, nil
	}
	h, err := parseHeader(prefix)
	if err != nil {
		return nil, err
	}
	type candidate struct {
		Recipe
		codec, level int // how uncommon they are
	}
	var all []candidate
	for i, c := range codecs() {
		for j, level := range c.levels {
			if !c.zstd && h.allows(c.name, level) {
				all = append(all, candidate{Recipe{codec: c.name, level: level, header: string(prefix[:h.size])}, i - h.suggests(&c), j})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(min(a.level, 1), min(b.level, 1)), cmp.Compare(a.codec, b.codec), cmp.Compare(a.level, b.level))
	})
	recipes := make([]Recipe, len(all))
	for i, c := range all {
		recipes[i] = c.Recipe
	}
	if len(recipes) == 0 {
		return nil, fmt.Errorf("gzip header with XFL %d: %w", h.xfl, ErrUnknown)
	}
	return recipes, nil
}

// allows says whether the encoder at level writes the header's XFL. All say the same, but Java, which has zlib inside: it says 0.
func (h header) allows(codec string, level int8) bool {
	want := byte(0)
	switch level {
	case 9:
		want = xflBest
	case 1:
		want = xflFast
	}
	return h.xfl == want || codec == "zlib" && h.xfl == 0
}

// suggests returns how much sooner than usual an encoder is tried: first those whose programs write such a header.
func (h header) suggests(c *codec) int {
	const first = 100
	isPgzip := c.block > 0 && c.emptyLast
	isGo := c.name == "go1" || c.name == "go2"
	switch {
	case h.mtime == pgzipTime && isPgzip:
		return first
	case h.os == osUnknown && isGo:
		return first / 2
	case h.os == osUnix && !isGo && !isPgzip:
		return first
	case h.os == osFAT && c.name == "zlib":
		return first
	}
	return 0
}

// What ends a trial, besides the end of the content.
var (
	errDiffers = errors.New("the streams differ")
	errCut     = errors.New("the content is not all there")
)

// A trial makes a stream again and compares.
type trial struct {
	stream io.ReaderAt
	size   int64
	whole  bool // stream is all there, not just its start

	off   int64 // how far it was compared, in bytes
	buf   [32 << 10]byte
	ended error // why it was compared no further: errDiffers, errCut, or that stream cannot be read
}

// run reports whether r makes the stream from content, or may if only its start is there, and the index if it has one. Errors are those
// of ctx and of reading.
func (t *trial) run(ctx context.Context, r Recipe, content io.Reader) (ok bool, index Index, err error) {
	e := Encoder{Recipe: r}
	if _, has := r.Before(); has && t.whole { // of a start there may be less than a block, of which nothing would be compared
		index, err = e.Index(ctx, t, content)
	} else {
		err = e.Encode(ctx, t, content)
	}
	switch {
	case ctx.Err() != nil:
		return false, Index{}, context.Cause(ctx)
	case errors.Is(t.ended, errDiffers):
		return false, Index{}, nil
	case errors.Is(t.ended, errCut) || errors.Is(err, errCut):
		return !t.whole, Index{}, nil
	case t.ended != nil:
		return false, Index{}, t.ended
	case err != nil:
		return false, Index{}, err
	}
	return t.off == t.size, index, nil
}

// Write compares p with the stream.
func (t *trial) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0 && t.ended == nil; {
		b := t.buf[:min(int64(len(t.buf)), int64(len(rest)), t.size-t.off)]
		switch n, err := t.stream.ReadAt(b, t.off); {
		case len(b) == 0 && t.whole:
			t.ended = errDiffers
		case len(b) == 0:
			t.ended = errCut
		case n < len(b) && err == io.EOF:
			t.ended = io.ErrUnexpectedEOF // it is shorter than was said
		case n < len(b):
			t.ended = err
		case !bytes.Equal(b, rest[:n]):
			t.ended = errDiffers
		}
		t.off += int64(len(b))
		rest = rest[len(b):]
	}
	if t.ended != nil {
		return 0, t.ended
	}
	return len(p), nil
}

// decompressed is the content of a stream, or of the start of one: then it ends with errCut where that ends.
type decompressed struct {
	r     io.Reader
	whole bool
	n     int64
}

func (d *decompressed) Read(p []byte) (int, error) {
	if !d.whole && d.n >= detectContent {
		return 0, errCut
	}
	n, err := d.r.Read(p)
	d.n += int64(n)
	if err == io.ErrUnexpectedEOF && !d.whole {
		err = errCut
	}
	return n, err
}

// Candidates returns the recipes worth trying where nothing of a stream is left, most common first: what builders write when they are
// told nothing.
func Candidates() []Recipe {
	const (
		plain = "\x1f\x8b\x08\x00\x00\x00\x00\x00"
		pgzip = "\x1f\x8b\x08\x00\x00\x09\x6e\x88"
	)
	return []Recipe{
		{codec: "go1", level: 6, header: plain + "\x00\xff"}, // docker push, BuildKit, containerd
		{codec: "go2", level: 6, header: plain + "\x00\xff"},
		{codec: "pgzip117-1m", level: 5, header: pgzip + "\x00\xff"}, // buildah, podman, skopeo
		{codec: "pgzip120-1m", level: 5, header: pgzip + "\x00\xff"},
		{codec: "go1", level: 1, header: plain + "\x04\xff"}, // crane, ko, kaniko
		{codec: "go2", level: 1, header: plain + "\x04\xff"},
		{codec: "pgzip117-256k", level: 5, header: pgzip + "\x00\xff"}, // umoci
		{codec: "pgzip120-256k", level: 5, header: pgzip + "\x00\xff"},
		{codec: "zlib", level: 6, header: plain + "\x00\x00"}, // jib
		{codec: "zlib", level: 6, header: plain + "\x00\xff"},
		{codec: "gnu", level: 6, header: plain + "\x00\x03"}, // gzip -n
		{codec: "pigz", level: 6, header: plain + "\x00\x03"},
		{codec: "gnu", level: 9, header: plain + "\x02\x03"},
		{codec: "pigz", level: 9, header: plain + "\x02\x03"},
		{codec: "zlib", level: 9, header: plain + "\x02\xff"}, // Python with mtime=0
		{codec: "go1", level: 9, header: plain + "\x02\xff"},
		{codec: "go2", level: 9, header: plain + "\x02\xff"},
		{codec: "klauspost120", level: zstdDefault}, // BuildKit and others that are told to make zstd
		{codec: "klauspost1203", level: zstdDefault},
		{codec: "klauspost120", level: zstdDefault, first: 8}, // buildah, podman, skopeo
		{codec: "klauspost1203", level: zstdDefault, first: 8},
	}
}
