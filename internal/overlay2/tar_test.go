package overlay2

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"pier/internal/oci"
)

// wantTar checks that the only layer of d is content, from several offsets.
func (d *data) wantTar(content []byte) {
	d.t.Helper()
	s, l := d.only()
	d.wantTarOf(s, l, content)
}

func (d *data) wantTarOf(s *Store, l Layer, content []byte) {
	d.t.Helper()
	size := int64(len(content))
	if l.Size != size {
		d.t.Errorf("layer of size %d, want %d", l.Size, size)
	}
	for _, offset := range []int64{0, 1, 511, 512, 513, size / 3, size - HoldBack, size - 1025, size - 1, size} {
		if offset < 0 || offset > size {
			continue
		}
		r, err := s.Tar(d.t.Context(), l, offset)
		if err != nil {
			d.t.Errorf("from %d: %v", offset, err)
			continue
		}
		var reads io.Reader = r
		if size < 10_000 {
			reads = iotest.OneByteReader(r)
		}
		got, err := io.ReadAll(reads)
		if err != nil || !bytes.Equal(got, content[offset:]) {
			d.t.Errorf("from %d: got %d bytes and error %v, want the %d bytes of the tar", offset, len(got), err, size-offset)
		}
		d.must(r.Close())
	}
	for _, offset := range []int64{-1, size + 1} {
		if _, err := s.Tar(d.t.Context(), l, offset); !errors.Is(err, oci.ErrRange) {
			d.t.Errorf("from %d: got error %v, want ErrRange", offset, err)
		}
	}
}

// read returns what can be read of the only layer of d.
func (d *data) read() ([]byte, error) {
	d.t.Helper()
	s, l := d.only()
	r, err := s.Tar(d.t.Context(), l, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

var (
	big  = strings.Repeat("0123456789abcdef", 20_000) // 320 kB: several times what is held back
	long = strings.Repeat("directory of a rather long name/", 12)
)

func TestTarIsExact(t *testing.T) {
	header := func(m member, change func(*tar.Header)) member {
		change(&m.Header)
		return m
	}
	for name, members := range map[string][]member{
		"empty layer": {},
		"files":       {dir("etc"), file("etc/passwd", "root\n"), file("empty", ""), file("big", big), file("./dot", "x"), file("/slash", "y")},
		"hard links": {
			file("a", "content"), header(member{}, func(h *tar.Header) { *h = tar.Header{Name: "b", Linkname: "a", Typeflag: tar.TypeLink} }),
		},
		"whiteouts":          {dir("d"), file("d/.wh.gone", ""), file(".wh.also gone", ""), file("d/kept", "content")},
		"opaque directories": {dir("d"), file("d/.wh..wh..opq", ""), file("d/new", "content")},
		"devices": {
			header(member{}, func(h *tar.Header) { *h = tar.Header{Name: "fifo", Typeflag: tar.TypeFifo} }),
			header(member{}, func(h *tar.Header) {
				*h = tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}
			}),
			file("after", "x"),
		},
		"extended attributes": {header(file("ping", "elf"), func(h *tar.Header) {
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20"}
		})},
		"names over 100 bytes, PAX": {header(file(long+"file", "content"), func(h *tar.Header) { h.Format = tar.FormatPAX })},
		"names over 100 bytes, GNU": {header(file(long+"file", "content"), func(h *tar.Header) { h.Format = tar.FormatGNU })},
		"names over 100 bytes, USTAR": {header(file(strings.Repeat("n", 100)+"/"+strings.Repeat("m", 90), "content"), func(h *tar.Header) {
			h.Format = tar.FormatUSTAR
		})},
		"link targets over 100 bytes":    {symlink("link", "/"+long+"file"), file("a", "b")},
		"names of 255 bytes in a path":   {file(strings.Repeat("x", 255)+"/"+strings.Repeat("y", 255), "content")},
		"names that are not UTF-8":       {header(file("caf\xe9/\xff\xfe", "content"), func(h *tar.Header) { h.Format = tar.FormatGNU })},
		"names that JSON escapes":        {file("a\"b\\c\n<&>\u2028", "content")},
		"names with a directory missing": {file("not/a/member/file", "content")},
		"names with dots":                {file("a/../b/./c", "content").at("b/c")},
		"times and owners": {header(file("f", "content"), func(h *tar.Header) {
			h.Format, h.Uname, h.Uid = tar.FormatPAX, "häns", 1<<30
			h.PAXRecords = map[string]string{"mtime": "1700000000.123456789"}
		})},
		"global headers": {
			{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "git"}}, disk: "-"},
			file("f", "content"),
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newData(t)
			content := pack(t, members...)
			d.layer("", content, members...)
			d.wantTar(content)
		})
	}
}

func TestTarsEnd(t *testing.T) {
	members := []member{file("a", "content"), file("b", strings.Repeat("b", 512))}
	content := pack(t, members...)
	for name, content := range map[string][]byte{
		"padded to 10 KiB":   append(bytes.Clone(content), make([]byte, 10240-len(content))...),
		"padded by 2 MiB":    append(bytes.Clone(content), make([]byte, 2<<20)...),
		"one block of zeros": content[:len(content)-512],
		"no block of zeros":  content[:len(content)-1024],
		"something after it": append(bytes.Clone(content), "something"...),
		"nothing at all":     {},
	} {
		t.Run(name, func(t *testing.T) {
			d := newData(t)
			d.layer("", content, members...)
			d.wantTar(content)
		})
	}
}

// linkWithSize is a tar with a hard link that states the size of what it names, and has nothing there: tars of old do, and those of
// some programs of today.
func linkWithSize(t testing.TB) ([]byte, []member) {
	t.Helper()
	members := []member{file("sized", "content"), {Header: tar.Header{Name: "sized-link", Linkname: "sized", Typeflag: tar.TypeLink}}}
	content := pack(t, members...)
	h := content[1024:1536] // after the file and its block
	copy(h[124:], "00000000007")
	copy(h[148:], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00", sum))
	return content, members
}

func TestLinkThatStatesASize(t *testing.T) {
	d := newData(t)
	content, members := linkWithSize(t)
	d.layer("", content, members...)
	d.wantTar(content)
}

// Nothing of a file's last bytes, or of what follows it, comes out after a change in it.
func TestFilesThatChanged(t *testing.T) {
	members := []member{file("first", big), file("second", big+big), file("third", big)}
	content := pack(t, members...)
	second := len(big) + 2*512 // where its content begins
	for name, change := range map[string]func(path string) error{
		"a byte": func(p string) error {
			return os.WriteFile(p, []byte(big+strings.Replace(big, "7", "8", 1)), 0o600)
		},
		"truncated": func(p string) error { return os.Truncate(p, int64(len(big))) },
		"longer":    func(p string) error { return os.WriteFile(p, []byte(big+big+"x"), 0o600) },
		"empty":     func(p string) error { return os.Truncate(p, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			d := newData(t)
			d.layer("", content, members...)
			s, l := d.only()
			d.must(change(d.path(l, "second")))
			for _, offset := range []int{0, 512} {
				r, err := s.Tar(t.Context(), l, int64(offset))
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(r)
				d.must(r.Close())
				if !errors.Is(err, oci.ErrDigestMismatch) || offset+len(got) >= second+2*len(big) {
					t.Errorf("from %d: got %d bytes and error %v, want ErrDigestMismatch before byte %d", offset, len(got), err, second+2*len(big))
				}
			}
		})
	}
}

// The file shrinks while it is read.
func TestTruncatedWhileRead(t *testing.T) {
	d := newData(t)
	members := []member{file("a", big)}
	d.layer("", pack(t, members...), members...)
	s, l := d.only()
	r, err := s.Tar(t.Context(), l, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, 10_000)); err != nil {
		t.Fatal(err)
	}
	d.must(os.Truncate(d.path(l, "a"), 20_000))
	if rest, err := io.ReadAll(r); !errors.Is(err, oci.ErrDigestMismatch) || len(rest) > 20_000 {
		t.Errorf("got %d more bytes and error %v, want ErrDigestMismatch", len(rest), err)
	}
}

// What no file's sum tells is told by the digest, before the end.
func TestRecordThatChanged(t *testing.T) {
	d := newData(t)
	members := []member{file("a", big)}
	content := pack(t, members...)
	chain := d.layer("", content, members...)
	other := members[0]
	other.Mode = 0o600
	d.write("image/overlay2/layerdb/sha256/"+chain.Encoded()+"/"+recordName, compress(t, split(t, pack(t, other))))
	got, err := d.read()
	if !errors.Is(err, oci.ErrDigestMismatch) || len(got) > len(content)-HoldBack {
		t.Errorf("got %d of %d bytes and error %v, want ErrDigestMismatch and the last %d held back", len(got), len(content), err, HoldBack)
	}
}

// An image that goes before the first byte is a miss, and one that goes later no shorter tar.
func TestRemovedWhileRead(t *testing.T) {
	remove := func(d *data, l Layer) {
		d.must(os.RemoveAll(filepath.Join(d.root, "image/overlay2/layerdb/sha256", l.ChainID.Encoded())))
		d.must(os.RemoveAll(filepath.Join(d.root, "overlay2", l.CacheID)))
	}
	members := []member{file("a", big), file("b", "content"), file("c", big)}
	for _, read := range []int{-1, 0, 1, 512, len(big), len(big) + 1100} {
		d := newData(t)
		content := pack(t, members...)
		d.layer("", content, members...)
		s, l := d.only()
		if read < 0 {
			remove(d, l)
		}
		r, err := s.Tar(t.Context(), l, 0)
		if read < 0 {
			if !errors.Is(err, oci.ErrNotFound) {
				t.Errorf("removed before: got error %v, want ErrNotFound", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, make([]byte, read)); err != nil {
			t.Fatal(err)
		}
		remove(d, l)
		rest, err := io.ReadAll(bufio.NewReaderSize(r, 32<<10)) // more than the first header at once
		want := oci.ErrNotFound
		if read > 0 {
			want = oci.ErrUnavailable
		}
		if !errors.Is(err, want) || errors.Is(err, oci.ErrNotFound) != (read == 0) || read+len(rest) > len(content)-HoldBack {
			t.Errorf("removed after %d: got %d more bytes and error %v, want %v", read, len(rest), err, want)
		}
		d.must(r.Close())
	}
}

func TestSkippingReadsNoFile(t *testing.T) {
	d := newData(t)
	members := []member{file("a", big), file("b", big), file("c", "content")}
	content := pack(t, members...)
	d.layer("", content, members...)
	s, l := d.only()
	d.must(os.Remove(d.path(l, "a")))
	d.must(os.Remove(d.path(l, "b")))
	for _, offset := range []int{len(content) - 1024, len(content) - 2048} { // the end, and the header of c
		r, err := s.Tar(t.Context(), l, int64(offset))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content[offset:]) {
			t.Errorf("from %d: got %d bytes and error %v", offset, len(got), err)
		}
		d.must(r.Close())
	}
	if _, err := s.Tar(t.Context(), l, 600); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("in a file that is gone: got error %v, want ErrNotFound", err)
	}
}

func TestContextEndsReads(t *testing.T) {
	d := newData(t)
	members := []member{file("a", big)}
	d.layer("", pack(t, members...), members...)
	s, l := d.only()
	ctx, cancel := context.WithCancel(t.Context())
	r, err := s.Tar(ctx, l, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := r.Read(make([]byte, 1000)); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want Canceled", err)
	}
	if _, err := s.Tar(ctx, l, 2000); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want Canceled", err)
	}
	if _, err := d.store().Layers(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want Canceled", err)
	}
}

func TestDescriptors(t *testing.T) {
	count := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skipf("NOT TESTED without /proc: %v", err)
		}
		return len(list)
	}
	d := newData(t)
	members := []member{dir("y"), symlink("x", "/y")}
	for _, name := range strings.Fields("a/1 a/2 b/c/3 x/4 x/5 d/6 7 a/8") {
		members = append(members, file(name, big).at(strings.Replace(name, "x", "y", 1)))
	}
	d.layer("", pack(t, members...), members...)
	s, l := d.only()
	before := count()
	for _, read := range []int64{0, 1, 1 << 20, l.Size} {
		r, err := s.Tar(t.Context(), l, 0)
		if err != nil {
			t.Fatal(err)
		}
		most := 0
		for at := int64(0); at < read; at += 10_000 {
			if _, err := io.CopyN(io.Discard, r, 10_000); err != nil && err != io.EOF {
				t.Fatal(err)
			}
			most = max(most, count()-before)
		}
		if most > 4 {
			t.Errorf("%d files open at once, want at most 4", most)
		}
		d.must(r.Close())
		if n := count() - before; n != 0 {
			t.Errorf("%d files open after Close, having read %d bytes", n, read)
		}
	}
}

// sparseTars returns tars of a small file "before" and a sparse one "holes", and the latter.
func sparseTars(t *testing.T) (tars map[string][]byte, holes string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "tar", "--version").Output(); err != nil || !bytes.Contains(out, []byte("GNU tar")) {
		t.Skipf("NOT TESTED without GNU tar: %v", err)
	}
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "holes"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(9) { // more than a header has room for
		if _, err := f.WriteAt([]byte("data"), i<<20); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, "holes"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "before"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	tars = make(map[string][]byte)
	for _, format := range []string{"posix --sparse-version=0.0", "posix --sparse-version=0.1", "posix --sparse-version=1.0"} {
		args := append(strings.Fields("-c --sparse -f - --format="+format), "-C", dir, "before", "holes")
		content, err := exec.CommandContext(t.Context(), "tar", args...).Output()
		if err != nil {
			t.Fatal(err)
		}
		if len(content) > 100_000 {
			t.Skipf("NOT TESTED: the filesystem of %s made no holes", dir)
		}
		tars[format] = content
	}
	return tars, string(whole)
}

// tar-split keeps the content of a sparse file with its holes, and not the map of them, as the tar has it.
func TestSparse(t *testing.T) {
	tars, holes := sparseTars(t)
	for format, content := range tars {
		t.Run(format, func(t *testing.T) {
			d := newData(t)
			d.layer("", content, file("before", "x"), file("holes", holes))
			if got, err := d.read(); len(got) > 0 || !errors.Is(err, oci.ErrUnsupported) {
				t.Errorf("got %d bytes and error %v, want ErrUnsupported", len(got), err)
			}
		})
	}
}

func TestWhiteoutWithContent(t *testing.T) {
	d := newData(t)
	d.layer("", pack(t, file(".wh.gone", "content")), file(".wh.gone", ""))
	if got, err := d.read(); len(got) > 0 || !errors.Is(err, oci.ErrUnsupported) {
		t.Errorf("got %d bytes and error %v, want ErrUnsupported", len(got), err)
	}
}

// Forty links of four kilobytes each took a minute to follow, for one file of one byte.
func TestLinksThroughManyDirectories(t *testing.T) {
	dir := t.TempDir()
	deep := strings.Repeat("a/", 800)
	detour := "/" + deep + strings.Repeat("../", 800)
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, deep), 0o755),
		os.MkdirAll(filepath.Join(dir, "d"), 0o755),
		os.WriteFile(filepath.Join(dir, "d/f"), []byte("x"), 0o600),
		os.Symlink(detour+"d", filepath.Join(dir, "l0")),
		os.Symlink(detour+"l0", filepath.Join(dir, "l1")),
		os.Symlink("/d", filepath.Join(dir, "short")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	f := files{root: root, lowers: func() []string { return nil }}
	defer f.close()
	if _, err := f.open("l1/f", 1); !errors.Is(err, oci.ErrUnsupported) {
		t.Errorf("got error %v, want ErrUnsupported", err)
	}
	file, err := f.open("short/f", 1)
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
}
