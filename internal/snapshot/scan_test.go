package snapshot

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func scan(t *testing.T, s Scanner, root string) string {
	t.Helper()
	m, err := s.Scan(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	return string(m.Text())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestScan(t *testing.T) {
	root := example(t)
	must(t, os.Chmod(filepath.Join(root, "a"), 0o600|os.ModeSetuid))
	must(t, os.Chmod(filepath.Join(root, "void"), 0o777|os.ModeSticky))
	must(t, os.Chmod(root, 0o750))
	const empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
	got := scan(t, Scanner{Jobs: 3}, root)
	for _, line := range []string{
		"F 4600 " + string(digestOf([]byte("A"))) + " 1 ./a\n",
		"F 644 " + string(digestOf([]byte("same"))) + " 4 ./b c/d e\n",
		"D 755 " + string(digestOf([]byte(digestOf([]byte("same"))))) + " 8 ./b c/\n",
		"F 644 " + empty + " 0 ./empty\n", "D 1777 " + empty + " 0 ./void/\n", " 60000 ./z/y/x\n", "D 755 ",
	} {
		if !strings.Contains(got, line) {
			t.Errorf("no line %q in\n%s", line, got)
		}
	}
	if !strings.HasPrefix(got, "D 750 ") || !strings.Contains(got, " 60009 ./\n") {
		t.Errorf("the root is wrong in\n%s", got)
	}
	if _, err := Parse(strings.NewReader(got)); err != nil {
		t.Error(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(root, link))
	if linked := scan(t, Scanner{}, link); linked != got {
		t.Errorf("through a link it is\n%s, want\n%s", linked, got)
	}
}

// Links stand for what they lead to, with their own permissions.
func TestScanLinks(t *testing.T) {
	root := example(t)
	must(t, os.Symlink("a", filepath.Join(root, "to a")))
	must(t, os.Symlink("b c", filepath.Join(root, "to b")))
	got := scan(t, Scanner{}, root)
	for _, line := range []string{
		"F 777 " + string(digestOf([]byte("A"))) + " 1 ./to a\n", "D 777 " + string(digestOf([]byte(digestOf([]byte("same"))))) + " 8 ./to b/\n", " 4 ./to b/d e\n",
	} {
		if !strings.Contains(got, line) {
			t.Errorf("no line %q in\n%s", line, got)
		}
	}
	if got := scan(t, Scanner{NoFollow: true}, root); strings.Contains(got, "to ") {
		t.Errorf("links are in\n%s", got)
	}
}

func TestScanRefuses(t *testing.T) {
	for name, make := range map[string]func(path string) error{
		"../.pier-part-x": func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"itself":          func(path string) error { return os.Symlink(filepath.Base(path), path) },
		"parent":          func(path string) error { return os.Symlink("..", path) },
		"nowhere":         func(path string) error { return os.Symlink("none", path) },
		"line's\nend":     func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"pipe":            func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"link to pipe": func(path string) error {
			return errors.Join(syscall.Mkfifo(path+"'s target", 0o600), os.Symlink(path+"'s target", path))
		},
		"other's other": func(path string) error { return errors.Join(os.Symlink(path+"2", path), os.Symlink(path, path+"2")) },
	} {
		t.Run(name, func(t *testing.T) {
			root := example(t)
			must(t, make(filepath.Join(root, "z", name)))
			_, err := Scanner{}.Scan(t.Context(), root)
			if err == nil || !strings.Contains(err.Error(), strings.ReplaceAll(filepath.Join(root, "z", name), "\n", `\n`)) {
				t.Errorf("got %v, want an error that names it", err)
			}
		})
	}
	file := filepath.Join(example(t), "a")
	for _, root := range []string{file, file + "/none"} {
		if _, err := (Scanner{}).Scan(t.Context(), root); err == nil {
			t.Errorf("%s: no error", root)
		}
	}
}

func TestScanExcludes(t *testing.T) {
	root := write(t, t.TempDir(), map[string]string{"keep": "", ".git/config": "", "x/node_modules/y": "", "x/.gitignore": "", "x/a.log": "", ".cache/z": ""})
	for pattern, want := range map[string]string{
		"":                    "./ ./.cache/ ./.cache/z ./.git/ ./.git/config ./keep ./x/ ./x/.gitignore ./x/a.log ./x/node_modules/ ./x/node_modules/y",
		"%common%":            "./ ./keep ./x/ ./x/.gitignore ./x/a.log",
		`%common%|\.log$`:     "./ ./keep ./x/ ./x/.gitignore",
		"/(x|[.]git|[.]cach)": "./ ./keep",
	} {
		exclude, noFollow, err := Exclude(pattern, "/home/none")
		must(t, err)
		m, err := Scanner{Exclude: exclude, NoFollow: noFollow}.Scan(t.Context(), root)
		must(t, err)
		var paths []string
		for _, e := range m {
			paths = append(paths, e.Path)
		}
		if got := strings.Join(paths, " "); got != want || noFollow {
			t.Errorf("%q: got %s, want %s; no links: %v", pattern, got, want, noFollow)
		}
	}
	system, noFollow, err := Exclude("%system%", "/home/me/")
	must(t, err)
	for path, want := range map[string]bool{"/proc/1": true, "/home/me/.cache/x": true, "/data/proc/1": false, "/lost+found/x": true, "/lostfound/x": false} {
		if system.MatchString(path) != want || !noFollow {
			t.Errorf("%s: %v, want %v; no links: %v", path, !want, want, noFollow)
		}
	}
	if _, _, err := Exclude("(", ""); err == nil {
		t.Error("a pattern that is none: no error")
	}
}

// What did not change is not read again, and what did is, whatever its times say.
func TestScanRemembers(t *testing.T) {
	root, digests := example(t), t.TempDir()
	old := time.Now().Add(-time.Hour)
	read := func(s Scanner) (m Manifest, size int64) {
		t.Helper()
		s.Digests, s.Meter = digests, &Meter{}
		m, err := s.Scan(t.Context(), root)
		must(t, err)
		_, done, _ := s.Meter.Read()
		return m, done
	}
	all := int64(60009)
	if _, n := read(Scanner{}); n != all {
		t.Errorf("first %d bytes were read, want %d", n, all)
	}
	if _, n := read(Scanner{}); n != all {
		t.Errorf("%d bytes were read of files that may just have changed, want %d", n, all)
	}
	settle(t, root)
	first, _ := read(Scanner{})
	if _, n := read(Scanner{}); n != 0 {
		t.Errorf("then %d bytes were read, want none", n)
	}
	if _, n := read(Scanner{Paranoid: true}); n != all {
		t.Errorf("%d bytes were read where all should be", n)
	}
	path := filepath.Join(root, "a")
	must(t, os.Chtimes(path, old, old))
	read(Scanner{})
	must(t, os.WriteFile(path, []byte("B"), 0o644))
	must(t, os.Chtimes(path, old, old))
	if m, n := read(Scanner{}); n != 1 || m.ID() == first.ID() {
		t.Errorf("a file with its times as they were: %d bytes were read, and the ID is %s", n, m.ID())
	}
	files, err := os.ReadDir(digests)
	must(t, err)
	if len(files) != 1 {
		t.Fatalf("%d files remember", len(files))
	}
	name := filepath.Join(digests, files[0].Name())
	b, err := os.ReadFile(name)
	must(t, err)
	for i := range b {
		if i%97 != 0 {
			continue
		}
		changed := []byte(string(b))
		changed[i] ^= 1
		must(t, os.WriteFile(name, changed, 0o600))
		if d := openDigests(digests, root); len(d.old) != 0 {
			t.Errorf("byte %d changed: %d records are taken", i, len(d.old))
		}
	}
	must(t, os.WriteFile(name, b[:len(b)-1], 0o600))
	if d := openDigests(digests, root); len(d.old) != 0 {
		t.Errorf("cut: %d records are taken", len(d.old))
	}
}

// settle has the clock that files are dated with be later than their change by more than what is taken for a moment.
func settle(t *testing.T, root string) {
	t.Helper()
	time.Sleep(settled + 100*time.Millisecond) // the kernel's clock: nothing else can make ctime old
	if _, err := os.Stat(root); err != nil {
		t.Fatal(err)
	}
}

// A file that changes is named, and is no part of any snapshot.
func TestScanChanges(t *testing.T) {
	root := write(t, t.TempDir(), map[string]string{"file": random(1, 3<<20)})
	path := filepath.Join(root, "file")
	w, err := Scanner{}.walk(t.Context(), root)
	must(t, err)
	f := w.found[1]
	for name, change := range map[string]func() error{
		"longer":   func() error { return os.WriteFile(path, []byte(random(1, 3<<20+1)), 0o644) },
		"replaced": func() error { return errors.Join(os.Remove(path), os.WriteFile(path, []byte(random(2, 3<<20)), 0o644)) },
		"pipe":     func() error { return errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)) },
	} {
		must(t, change())
		if r, err := openUnchanged(t.Context(), root, f); !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, %v, want ErrChanged", name, r, err)
		}
		must(t, os.Remove(path))
		must(t, os.WriteFile(path, []byte(random(1, 3<<20)), 0o644))
	}
	w, err = Scanner{}.walk(t.Context(), root)
	must(t, err)
	r, err := openUnchanged(t.Context(), root, w.found[1])
	must(t, err)
	defer r.Close()
	if _, err := r.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	must(t, os.Truncate(path, 1<<20))
	b := make([]byte, 1<<20)
	for err == nil {
		_, err = r.Read(b)
	}
	if !errors.Is(err, ErrChanged) {
		t.Errorf("cut while it is read: got %v, want ErrChanged", err)
	}
}
