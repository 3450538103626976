package snapshot

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/zeebo/blake3"
)

// ErrManifest is the error for a text that is no manifest, or one that must not be trusted.
var ErrManifest = errors.New("not a valid manifest")

// MaxManifest is the size of the largest manifest that is read, in bytes: two million files or so.
const MaxManifest = 256 << 20

// A Digest is the BLAKE3 of something, 64 lower-case hexadecimal digits.
type Digest string

// ParseDigest returns s if it is a Digest.
func ParseDigest(s string) (Digest, error) {
	if b, err := hex.DecodeString(s); err != nil || len(b) != 32 || strings.ToLower(s) != s {
		return "", fmt.Errorf("%.80q is no BLAKE3 digest: want 64 lower-case hexadecimal digits", s)
	}
	return Digest(s), nil
}

func digestOf(b []byte) Digest {
	sum := blake3.Sum256(b)
	return Digest(hex.EncodeToString(sum[:]))
}

// key returns where something is kept: below a directory of its kind, three levels of three digits deep.
func (d Digest) key(kind string) string {
	return kind + "/" + string(d[:3]) + "/" + string(d[3:6]) + "/" + string(d[6:9]) + "/" + string(d[9:])
}

// ObjectKey returns the key of content.
func (d Digest) ObjectKey() string { return d.key(".objects") }

// ManifestKey returns the key of the manifest whose ID d is.
func (d Digest) ManifestKey() string { return d.key(".manifests") }

// maxPerm is all that chmod sets.
const maxPerm = 0o7777

// An Entry is a file or a directory of a tree.
type Entry struct {
	Path   string `json:"path"`   // "./" is the root; a directory ends in "/"
	Perm   uint32 `json:"perm"`   // the bits of chmod(2), 07777 at most
	Digest Digest `json:"digest"` // of a file, of its content; of a directory, of the digests in it
	Size   int64  `json:"size"`   // bytes; of a directory, of all files below it
}

// Dir reports whether e is a directory.
func (e Entry) Dir() bool { return strings.HasSuffix(e.Path, "/") }

// parent returns the path of the directory that a path is in; "" for the root.
func parent(path string) string {
	return path[:strings.LastIndexByte(strings.TrimSuffix(path, "/"), '/')+1]
}

// appendTo appends the line of e.
func (e Entry) appendTo(b []byte) []byte {
	kind := byte('F')
	if e.Dir() {
		kind = 'D'
	}
	b = append(b, kind, ' ')
	b = strconv.AppendUint(b, uint64(e.Perm), 8)
	b = append(b, ' ')
	b = append(b, e.Digest...)
	b = append(b, ' ')
	b = strconv.AppendInt(b, e.Size, 10)
	b = append(b, ' ')
	b = append(b, e.Path...)
	return append(b, '\n')
}

// A Manifest describes a tree: its entries by path, in the order of bytes, the root first.
type Manifest []Entry

// Text returns the text of m.
func (m Manifest) Text() []byte {
	var b []byte
	for _, e := range m {
		b = e.appendTo(b)
	}
	return b
}

// ID returns the ID of the snapshot that m describes: the BLAKE3 of its text.
func (m Manifest) ID() Digest { return digestOf(m.Text()) }

// Parse reads a manifest. Lines that begin with # and empty ones count for nothing. It returns an error wrapping [ErrManifest], which
// names the line, for anything but the one text that a tree has: entries out of order, twice or without their directory, paths that
// lead out of the tree, and directories that are not what is in them.
func Parse(r io.Reader) (Manifest, error) {
	text, err := io.ReadAll(io.LimitReader(r, MaxManifest+1))
	if err != nil {
		return nil, err
	}
	if len(text) > MaxManifest {
		return nil, fmt.Errorf("%w: it is larger than %d bytes", ErrManifest, MaxManifest)
	}
	var m Manifest
	for number := 1; len(text) > 0; number++ {
		var line []byte
		line, text, _ = bytes.Cut(text, []byte("\n"))
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		e, err := parseEntry(string(line))
		if err == nil {
			err = m.follows(e)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", ErrManifest, number, err)
		}
		m = append(m, e)
	}
	if len(m) == 0 {
		return nil, fmt.Errorf("%w: it has no entries", ErrManifest)
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	return m, nil
}

func parseEntry(line string) (e Entry, err error) {
	fields := strings.SplitN(line, " ", 5)
	if len(fields) != 5 {
		return e, errors.New("want five fields: type, permissions, checksum, size and path")
	}
	perm, err := strconv.ParseUint(fields[1], 8, 32)
	if err != nil || perm > maxPerm {
		return e, fmt.Errorf("permissions %.20q: want an octal number up to 7777", fields[1])
	}
	e.Perm = uint32(perm)
	if e.Digest, err = ParseDigest(fields[2]); err != nil {
		return e, err
	}
	if e.Size, err = strconv.ParseInt(fields[3], 10, 64); err != nil || e.Size < 0 {
		return e, fmt.Errorf("size %.30q: want a number of bytes", fields[3])
	}
	e.Path = fields[4]
	if err := checkPath(e.Path); err != nil {
		return e, err
	}
	if want := string(e.appendTo(nil)); want != line+"\n" {
		return e, fmt.Errorf("got %.200q, want %.200q", line, strings.TrimSuffix(want, "\n"))
	}
	return e, nil
}

// checkPath returns an error if a path is not one of a tree.
func checkPath(path string) error {
	name, ok := strings.CutPrefix(path, "./")
	if !ok {
		return fmt.Errorf("path %.200q: want one that begins with ./", path)
	}
	if name == "" {
		return nil
	}
	for part := range strings.SplitSeq(strings.TrimSuffix(name, "/"), "/") {
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("path %.200q: it has a part %q", path, part)
		}
	}
	if strings.ContainsAny(path, "\x00\n") {
		return fmt.Errorf("path %.200q: it has a zero byte or a line's end", path)
	}
	return nil
}

// follows returns an error if e cannot stand after m.
func (m Manifest) follows(e Entry) error {
	switch {
	case len(m) == 0 && e.Path != "./":
		return fmt.Errorf("path %.200q: want ./ first", e.Path)
	case len(m) == 0:
		return nil
	case e.Path == m[len(m)-1].Path:
		return fmt.Errorf("path %.200q: it is there twice", e.Path)
	case e.Path < m[len(m)-1].Path:
		return fmt.Errorf("path %.200q: it stands after %.200q, which is out of order", e.Path, m[len(m)-1].Path)
	}
	if !m.has(parent(e.Path)) {
		return fmt.Errorf("path %.200q: its directory is not there", e.Path)
	}
	if e.Dir() && m.has(strings.TrimSuffix(e.Path, "/")) {
		return fmt.Errorf("path %.200q: it is a file, too", e.Path)
	}
	return nil
}

// has reports whether a path is there.
func (m Manifest) has(path string) bool {
	_, ok := slices.BinarySearchFunc(m, path, func(e Entry, path string) int { return strings.Compare(e.Path, path) })
	return ok
}

// check returns an error if a directory is not what is in it, or the same content has two sizes.
func (m Manifest) check() error {
	sizes := make(map[Digest]int64)
	total := int64(0)
	for _, e := range m {
		if e.Dir() {
			continue
		}
		if size, ok := sizes[e.Digest]; ok && size != e.Size {
			return fmt.Errorf("path %.200q: its content has %d bytes, and elsewhere %d", e.Path, e.Size, size)
		}
		sizes[e.Digest] = e.Size
		if total += e.Size; total < 0 {
			return fmt.Errorf("path %.200q: with it all is larger than %d bytes", e.Path, int64(math.MaxInt64))
		}
	}
	whole := slices.Clone(m)
	whole.complete()
	for i, e := range m {
		if e != whole[i] {
			return fmt.Errorf("directory %.200q: digest and size are not those of what is in it: want %s and %d", e.Path, whole[i].Digest, whole[i].Size)
		}
	}
	return nil
}

// complete sets digest and size of the directories, by what is in them: the digest is that of the digests, in order and each once.
func (m Manifest) complete() {
	type directory struct {
		index   int
		digests []Digest
		size    int64
	}
	directories := make(map[string]*directory)
	for i, e := range m {
		if e.Dir() {
			directories[e.Path] = &directory{index: i}
		}
	}
	for i := len(m) - 1; i >= 0; i-- { // what is in a directory stands after it
		e := &m[i]
		if d := directories[e.Path]; e.Dir() {
			slices.Sort(d.digests)
			e.Digest, e.Size = digestOf(joined(slices.Compact(d.digests))), d.size
			delete(directories, e.Path)
		}
		if in := directories[parent(e.Path)]; in != nil {
			in.digests = append(in.digests, e.Digest)
			in.size += e.Size
		}
	}
}

func joined(digests []Digest) (b []byte) {
	for _, d := range digests {
		b = append(b, d...)
	}
	return b
}
