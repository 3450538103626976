package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// The examples in the documents of snapdir: digests, and the beginning and end of IDs.
const (
	exampleEmpty = `D 700 dba5865c0d91b17958e4d2cac98c338f85cbbda07b71a020ab16c391b5e7af4b 0 ./
F 600 af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262 0 ./bar.txt
F 600 af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262 0 ./foo.txt
`
	exampleTree = `D 700 4257cc46336b9d0ae70a3104ae0382ac6a75da0ee49ffe69b423997e872276a7 11 ./
D 700 40bdff878af8e7ffbc40f1d4b5a72c892a0773df2d47cd164c2dc2e684299dfa 6 ./a/
F 600 92719755f8d6c804d44192bb5835654d27003fc8fdbb36a633b9063c7f9396a4 3 ./a/a1
F 600 ff3e86a123552d66c31eb3308916d76bf9d918b1f635aa39d00d3a3428bda536 3 ./a/a2
F 600 b9af5f26c46534d25add40a12c3f0b1ae926e39a2e669162664295040943f54a 5 ./base
`
)

func TestExamplesOfSnapdir(t *testing.T) {
	m := parse(t, exampleEmpty)
	if id := string(m.ID()); !strings.HasPrefix(id, "c678a299") || !strings.HasSuffix(id, "ae3c27857") {
		t.Errorf("two empty files have the ID %s", id)
	}
	m[2].Digest, m[2].Size = digestOf([]byte("foo\n")), 4
	m.complete()
	if root := string(m[0].Digest); !strings.HasPrefix(root, "4a0732cf") || !strings.HasSuffix(root, "89427d4d") {
		t.Errorf("with foo the root has the digest %s", root)
	}
	if id := string(m.ID()); !strings.HasPrefix(id, "8af03a1b") || !strings.HasSuffix(id, "ba82b9be") {
		t.Errorf("with foo the ID is %s", id)
	}
	if text := string(parse(t, exampleTree).Text()); text != exampleTree {
		t.Errorf("got\n%s", text)
	}
	d := digestOf([]byte("foo\n"))
	if got, want := d.ObjectKey(), ".objects/49d/c87/0df/1de7fd60794cebce449f5ccdae575affaa67a24b62acb03e039db92"; got != want {
		t.Errorf("key %s, want %s", got, want)
	}
	if got, want := d.ManifestKey(), ".manifests/49d/c87/0df/1de7fd60794cebce449f5ccdae575affaa67a24b62acb03e039db92"; got != want {
		t.Errorf("key %s, want %s", got, want)
	}
}

func parse(t *testing.T, text string) Manifest {
	t.Helper()
	m, err := Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestCommentsAreNoPartOfTheID(t *testing.T) {
	with := parse(t, "# made by hand\n\n"+strings.ReplaceAll(exampleTree, "\n", "\n#\n\n"))
	if want := parse(t, exampleTree); !slices.Equal(with, want) || with.ID() != want.ID() {
		t.Errorf("got %v", with)
	}
	if without := parse(t, strings.TrimSuffix(exampleTree, "\n")); without.ID() != with.ID() {
		t.Error("the last line's end changes the ID")
	}
}

// tree returns the text of a manifest of files with these paths, all empty, and of the directories that they are in.
func tree(paths ...string) string {
	all := map[string]bool{"./": true}
	for _, p := range paths {
		for ; p != ""; p = parent(p) {
			all[p] = true
		}
	}
	var m Manifest
	for p := range all {
		m = append(m, Entry{Path: p, Perm: 0o755, Digest: digestOf(nil)})
	}
	slices.SortFunc(m, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	m.complete()
	return string(m.Text())
}

func TestNames(t *testing.T) {
	for _, path := range []string{"./ ", "./a b  c", "./a/ /b", "./...", "./a\tb", "./\xff\xfe", "./#", "./日本", "./a-b/c", "./" + strings.Repeat("x", 255)} {
		m := parse(t, tree(path, "./a/", "./empty/"))
		if !m.has(path) {
			t.Errorf("%q: not there in %v", path, m)
		}
	}
}

func TestBadManifests(t *testing.T) {
	line := fmt.Sprintf
	empty := string(digestOf(nil))
	root := line("D 755 %s 0 ./\n", digestOf([]byte(empty)))
	for _, c := range []struct{ name, text, says string }{
		{"nothing", "", "no entries"},
		{"comments only", "# x\n\n", "no entries"},
		{"no root", line("F 644 %s 0 ./a\n", empty), "want ./ first"},
		{"four fields", root + "F 644 x 0\n", "five fields"},
		{"type", root + line("L 644 %s 0 ./a\n", empty), "want \"F"},
		{"file with a slash", root + line("F 644 %s 0 ./a/\n", empty), "want \"D"},
		{"directory without", root + line("D 644 %s 0 ./a\n", empty), "want \"F"},
		{"permissions", root + line("F 648 %s 0 ./a\n", empty), "octal"},
		{"permissions too large", root + line("F 10644 %s 0 ./a\n", empty), "octal"},
		{"permissions with a zero", root + line("F 0644 %s 0 ./a\n", empty), "want \"F 644"},
		{"digest of another kind", root + "F 644 d41d8cd98f00b204e9800998ecf8427e 0 ./a\n", "64 lower-case"},
		{"capital digest", root + line("F 644 %s 0 ./a\n", strings.ToUpper(empty)), "64 lower-case"},
		{"size", root + line("F 644 %s -1 ./a\n", empty), "number of bytes"},
		{"size with a plus", root + line("F 644 %s +0 ./a\n", empty), "want \"F"},
		{"size too large", root + line("F 644 %s 9223372036854775808 ./a\n", empty), "number of bytes"},
		{"absolute path", root + line("F 644 %s 0 /etc/passwd\n", empty), "begins with ./"},
		{"traversal", root + line("F 644 %s 0 ./../a\n", empty), `part ".."`},
		{"traversal inside", root + line("D 755 %s 0 ./a/\nF 644 %s 0 ./a/../b\n", empty, empty), `part ".."`},
		{"dot", root + line("F 644 %s 0 ././a\n", empty), `part "."`},
		{"two slashes", root + line("F 644 %s 0 .//a\n", empty), `part ""`},
		{"zero byte", root + line("F 644 %s 0 ./a\x00b\n", empty), "zero byte"},
		{"twice", root + line("F 644 %s 0 ./a\nF 644 %s 0 ./a\n", empty, empty), "twice"},
		{"order", root + line("F 644 %s 0 ./b\nF 644 %s 0 ./a\n", empty, empty), "out of order"},
		{"no directory", root + line("F 644 %s 0 ./a/b\n", empty), "its directory is not there"},
		{"file and directory", root + line("F 644 %s 0 ./a\nD 755 %s 0 ./a/\n", empty, empty), "it is a file, too"},
		{"directory's digest", line("D 755 %s 0 ./\nF 644 %s 0 ./a\n", empty, empty), "directory"},
		{"directory's size", line("D 755 %s 1 ./\nF 644 %s 0 ./a\n", digestOf([]byte(empty)), empty), "directory"},
		{"two sizes", line("D 755 %s 1 ./\nF 644 %s 0 ./a\nF 644 %s 1 ./b\n", digestOf([]byte(empty)), empty, empty), "elsewhere"},
		{"too much", line("D 755 %s 0 ./\nF 644 %s 9223372036854775807 ./a\nF 644 %s 1 ./b\n", empty, empty, digestOf([]byte("b"))), "larger than"},
		{"carriage returns", strings.ReplaceAll(tree("./a", "./b"), "\n", "\r\n"), "want \"F"},
	} {
		m, err := Parse(strings.NewReader(c.text))
		if !errors.Is(err, ErrManifest) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, error %v; want one that says %q", c.name, m, err, c.says)
		}
	}
}

// FuzzParse feeds texts of strangers: what is a manifest is the only text of its tree.
func FuzzParse(f *testing.F) {
	f.Add([]byte(exampleEmpty))
	f.Add([]byte("# x\n" + exampleTree))
	f.Add([]byte(tree("./a b/c", "./a", "./d/")))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := Parse(bytes.NewReader(text))
		if err != nil {
			if !errors.Is(err, ErrManifest) {
				t.Error(err)
			}
			return
		}
		again, err := Parse(bytes.NewReader(m.Text()))
		if err != nil || !slices.Equal(again, m) {
			t.Errorf("%q: parses again as %v, error %v", text, again, err)
		}
		for _, e := range m {
			if !strings.HasPrefix(e.Path, "./") || strings.Contains(e.Path, "/../") {
				t.Errorf("path %q", e.Path)
			}
		}
	})
}
