package gzexact

import (
	"bufio"
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
// it. It reports ErrUnknown if none can have. That all of a prefix fits is no proof.
func Detect(prefix []byte, whole bool) ([]Recipe, error) {
	candidates, err := headerCandidates(prefix)
	if err != nil {
		return nil, err
	}
	var found []Recipe
	for _, r := range candidates {
		t := trial{stream: bytes.NewReader(prefix), size: int64(len(prefix)), whole: whole}
		ok, err := t.run(context.Background(), r)
		if err != nil {
			return nil, err
		}
		if ok {
			found = append(found, r)
		}
	}
	if len(found) == 0 {
		return nil, ErrUnknown
	}
	return found, nil
}

// Learn finds the recipe of the stream that is the first size bytes of stream: it decompresses it, compresses the content with each
// encoder that may have made it, and compares, until one made all of it. An encoder is given up at the first difference. Memory is a few
// megabytes whatever the size; time is that of compressing the content once, and a little for each encoder that is given up. It reports
// ErrUnknown if no encoder made it; other errors are those of ctx and of reading.
func Learn(ctx context.Context, stream io.ReaderAt, size int64) (Recipe, error) {
	start := make([]byte, min(size, maxHeader))
	if _, err := stream.ReadAt(start, 0); err != nil && err != io.EOF {
		return Recipe{}, err
	}
	candidates, err := headerCandidates(start)
	if err != nil {
		return Recipe{}, err
	}
	for _, r := range candidates {
		t := trial{stream: stream, size: size, whole: true}
		ok, err := t.run(ctx, r)
		if err != nil {
			return Recipe{}, err
		}
		if ok {
			return r, nil
		}
	}
	return Recipe{}, ErrUnknown
}

// headerCandidates returns the recipes that write the header which prefix begins with, most likely first.
func headerCandidates(prefix []byte) ([]Recipe, error) {
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
			if h.allows(c.name, level) {
				all = append(all, candidate{Recipe{c.name, level, string(prefix[:h.size])}, i - h.suggests(&c), j})
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
	fault error // of reading stream
}

// run reports whether r made the stream, or may have if only its start is there. Errors are those of ctx and of reading.
func (t *trial) run(ctx context.Context, r Recipe) (bool, error) {
	header := int64(len(r.header))
	err := r.Encode(ctx, t, &decompressed{t: t, r: flate.NewReader(bufio.NewReaderSize(&source{t: t, off: header}, len(t.buf)))})
	switch {
	case t.fault != nil:
		return false, t.fault
	case ctx.Err() != nil:
		return false, context.Cause(ctx)
	case err == nil:
		return t.off == t.size, nil
	case errors.Is(err, errCut):
		return !t.whole, nil
	}
	return false, nil // what differs, or is no deflate stream
}

// Write compares p with the stream.
func (t *trial) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		if t.off >= t.size {
			if t.whole {
				return 0, errDiffers
			}
			return 0, errCut
		}
		b := t.buf[:min(int64(len(t.buf)), int64(len(rest)), t.size-t.off)]
		if n, err := t.stream.ReadAt(b, t.off); n < len(b) {
			return 0, t.failed(err)
		}
		if !bytes.Equal(b, rest[:len(b)]) {
			return 0, errDiffers
		}
		t.off += int64(len(b))
		rest = rest[len(b):]
	}
	return len(p), nil
}

// source is what is compressed in the stream of a trial.
type source struct {
	t   *trial
	off int64
}

func (s *source) Read(p []byte) (int, error) {
	p = p[:min(int64(len(p)), s.t.size-s.off)]
	if len(p) == 0 {
		return 0, io.EOF
	}
	n, err := s.t.stream.ReadAt(p, s.off)
	s.off += int64(n)
	if n == 0 {
		return 0, s.t.failed(err)
	}
	return n, nil
}

// failed notes that the stream cannot be read.
func (t *trial) failed(err error) error {
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // it is shorter than was said
	}
	t.fault = err
	return err
}

// decompressed is the content of the stream of a trial. It ends with errCut where a start ends.
type decompressed struct {
	t *trial
	r io.Reader
	n int64
}

func (d *decompressed) Read(p []byte) (int, error) {
	if !d.t.whole && d.n >= detectContent {
		return 0, errCut
	}
	n, err := d.r.Read(p)
	d.n += int64(n)
	if err == io.ErrUnexpectedEOF && !d.t.whole {
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
		{"go1", 6, plain + "\x00\xff"}, // docker push, BuildKit, containerd
		{"go2", 6, plain + "\x00\xff"},
		{"pgzip117-1m", 5, pgzip + "\x00\xff"}, // buildah, podman, skopeo
		{"pgzip120-1m", 5, pgzip + "\x00\xff"},
		{"go1", 1, plain + "\x04\xff"}, // crane, ko, kaniko
		{"go2", 1, plain + "\x04\xff"},
		{"pgzip117-256k", 5, pgzip + "\x00\xff"}, // umoci
		{"pgzip120-256k", 5, pgzip + "\x00\xff"},
		{"zlib", 6, plain + "\x00\x00"}, // jib
		{"zlib", 6, plain + "\x00\xff"},
		{"gnu", 6, plain + "\x00\x03"}, // gzip -n
		{"pigz", 6, plain + "\x00\x03"},
		{"gnu", 9, plain + "\x02\x03"},
		{"pigz", 9, plain + "\x02\x03"},
		{"zlib", 9, plain + "\x02\xff"}, // Python with mtime=0
		{"go1", 9, plain + "\x02\xff"},
		{"go2", 9, plain + "\x02\xff"},
	}
}
