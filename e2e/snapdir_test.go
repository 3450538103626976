//go:build e2e

package e2e

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"lukechampine.com/blake3"
)

// What is in this file is the format of stores, written down once more from its description and in the simplest way, so
// that pier is held to that and not to itself.

func blake(b []byte) string {
	sum := blake3.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// keyOf is where an object or a manifest is kept.
func keyOf(kind, sum string) string {
	return kind + "/" + sum[:3] + "/" + sum[3:6] + "/" + sum[6:9] + "/" + sum[9:]
}

// A tree is a directory as its manifest describes it.
type tree struct {
	lines []string          // of the manifest, sorted by path
	files map[string][]byte // contents by checksum
}

func (tr *tree) text() string { return strings.Join(tr.lines, "\n") + "\n" }
func (tr *tree) id() string   { return blake([]byte(tr.text())) }

// readTree describes a directory. Symbolic links are followed, and keep the permissions of links.
func readTree(t *testing.T, dir string) *tree {
	t.Helper()
	tr := &tree{files: make(map[string][]byte)}
	byPath := make(map[string]string)
	tr.directory(t, dir, "./", byPath)
	paths := make([]string, 0, len(byPath))
	for path := range byPath {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	for _, path := range paths {
		tr.lines = append(tr.lines, byPath[path])
	}
	return tr
}

// directory adds a directory and what is below it, and returns its checksum and size.
func (tr *tree) directory(t *testing.T, name, path string, byPath map[string]string) (sum string, size int64) {
	t.Helper()
	children, err := os.ReadDir(name)
	if err != nil {
		t.Fatal(err)
	}
	var sums []string
	for _, child := range children {
		full := filepath.Join(name, child.Name())
		info, err := os.Stat(full)
		if err != nil {
			t.Fatal(err)
		}
		if info.IsDir() {
			childSum, n := tr.directory(t, full, path+child.Name()+"/", byPath)
			sums, size = append(sums, childSum), size+n
			continue
		}
		b, err := os.ReadFile(full)
		if err != nil {
			t.Fatal(err)
		}
		tr.files[blake(b)] = b
		sums, size = append(sums, blake(b)), size+int64(len(b))
		byPath[path+child.Name()] = fmt.Sprintf("F %s %s %d %s", permissionsOf(t, full), blake(b), len(b), path+child.Name())
	}
	slices.Sort(sums)
	sum = blake([]byte(strings.Join(slices.Compact(sums), "")))
	byPath[path] = fmt.Sprintf("D %s %s %d %s", permissionsOf(t, name), sum, size, path)
	return sum, size
}

// permissionsOf returns what stat -c %a prints.
func permissionsOf(t *testing.T, name string) string {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Lstat(name, &st); err != nil {
		t.Fatal(err)
	}
	return strconv.FormatUint(uint64(st.Mode&0o7777), 8)
}

// storeTree writes a snapshot into a store, and returns its ID.
func storeTree(t *testing.T, s *store, tr *tree) string {
	t.Helper()
	for sum, b := range tr.files {
		s.put(t, keyOf(".objects", sum), b)
	}
	s.put(t, keyOf(".manifests", tr.id()), []byte(tr.text()))
	return tr.id()
}

// manifestOf returns the lines of a manifest in a store, after it has seen that it has this ID.
func manifestOf(t *testing.T, s *store, id string) []string {
	t.Helper()
	text, ok := s.get(t, keyOf(".manifests", id))
	if !ok {
		t.Fatalf("%s: there is no manifest %s", s.url, id)
	}
	var lines []string
	for line := range strings.SplitSeq(strings.TrimRight(string(text), "\n"), "\n") {
		if !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	if got := blake([]byte(strings.Join(lines, "\n") + "\n")); got != id {
		t.Errorf("%s: manifest %s has ID %s", s.url, id, got)
	}
	return lines
}

// restoreTree writes what a store has of a snapshot to a directory that is not there.
func restoreTree(t *testing.T, s *store, id, dir string) {
	t.Helper()
	lines := manifestOf(t, s, id)
	for _, line := range lines {
		fields := strings.SplitN(line, " ", 5)
		name := filepath.Join(dir, fields[4])
		if fields[0] == "D" {
			if err := os.Mkdir(name, 0o777); err != nil {
				t.Fatal(err)
			}
			continue
		}
		b, ok := s.get(t, keyOf(".objects", fields[2]))
		if !ok || blake(b) != fields[2] || strconv.Itoa(len(b)) != fields[3] {
			t.Fatalf("%s: object %s of %s is not what it must be", s.url, fields[2], fields[4])
		}
		writeFile(t, name, string(b))
	}
	for _, line := range slices.Backward(lines) {
		fields := strings.SplitN(line, " ", 5)
		perm, err := strconv.ParseUint(fields[1], 8, 12)
		if err == nil {
			err = syscall.Chmod(filepath.Join(dir, fields[4]), uint32(perm))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// checkNothingDangles fails the test if a manifest of a store names an object that is not there, or with another size.
// With content, objects must also be what their keys say.
func checkNothingDangles(t *testing.T, s *store, content bool) (manifests int) {
	t.Helper()
	all := s.list(t, ".manifests/") // first: what a manifest names is there before it
	objects := s.list(t, ".objects/")
	for key := range all {
		manifests++
		for _, line := range manifestOf(t, s, strings.ReplaceAll(strings.TrimPrefix(key, ".manifests/"), "/", "")) {
			fields := strings.SplitN(line, " ", 5)
			if size, ok := objects[keyOf(".objects", fields[2])]; fields[0] == "F" && (!ok || strconv.FormatInt(size, 10) != fields[3]) {
				t.Errorf("%s: %s names %s, which is there: %t, with %d bytes", s.kind, key, line, ok, size)
			}
		}
	}
	if content {
		for key := range objects {
			b, _ := s.get(t, key)
			if keyOf(".objects", blake(b)) != key {
				t.Errorf("%s: %s is not what its key says", s.kind, key)
			}
		}
	}
	return manifests
}
