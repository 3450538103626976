package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"pier/internal/oci"
)

// memoryStore returns a store with the snapshot of a directory.
func memoryStore(t *testing.T, root string) (*Store, *memory, Digest) {
	t.Helper()
	m := newMemory()
	s := &Store{Bucket: m, Jobs: 3}
	return s, m, pushed(t, s, root, Options{}).ID
}

func TestPull(t *testing.T) {
	root := example(t)
	must(t, os.Chmod(filepath.Join(root, "a"), 0o4711|os.ModeSetuid))
	must(t, os.Chmod(filepath.Join(root, "z/y"), 0o555))
	must(t, os.Chmod(filepath.Join(root, "b c/f"), 0o400))
	s, m, id := memoryStore(t, root)
	out := filepath.Join(t.TempDir(), "new/out")
	if p := pulled(t, s, id, out, PullOptions{DryRun: true}); p.Fetched != 4 || p.Copied != 1 || p.Size != 60005 {
		t.Errorf("a dry run: %+v", p)
	}
	if _, err := os.Stat(filepath.Dir(out)); err == nil {
		t.Error("a dry run made a directory")
	}
	if p := pulled(t, s, id, out, PullOptions{}); p.Fetched != 4 || p.Copied != 1 || p.Size != 60005 || p.Skipped != 0 {
		t.Errorf("got %+v", p)
	}
	same(t, out, root)
	before, err := os.Stat(filepath.Join(out, "z/y/x"))
	must(t, err)
	m.reset()
	if p := pulled(t, s, id, out, PullOptions{}); p.Fetched != 0 || p.Skipped != 5 || m.calls["Open"] != 1 {
		t.Errorf("again: %+v by %v", p, m.calls)
	}
	if after, err := os.Stat(filepath.Join(out, "z/y/x")); err != nil || !os.SameFile(before, after) || !before.ModTime().Equal(after.ModTime()) {
		t.Errorf("a file that was right was written, %v", err)
	}
	must(t, os.WriteFile(filepath.Join(out, "a"), []byte("B"), 0o644))
	must(t, os.Chmod(filepath.Join(out, "empty"), 0o600))
	must(t, os.Rename(filepath.Join(out, "b c/f"), filepath.Join(out, "b c/renamed")))
	if p := pulled(t, s, id, out, PullOptions{Delete: true}); p.Fetched != 1 || p.Copied != 1 || p.Removed != 1 {
		t.Errorf("of one that was changed: %+v", p)
	}
	same(t, out, root)
}

// A directory with other files stays as it is, unless they may go.
func TestPullBesideOthers(t *testing.T) {
	for name, spoil := range map[string]func(out string) error{
		"file":                  func(out string) error { return os.WriteFile(filepath.Join(out, "b c/other"), nil, 0o600) },
		"directory":             func(out string) error { return os.MkdirAll(filepath.Join(out, "d/e/f"), 0o700) },
		"file for directory":    func(out string) error { return os.WriteFile(filepath.Join(out, "z"), nil, 0o600) },
		"directory for file":    func(out string) error { return os.MkdirAll(filepath.Join(out, "a/b"), 0o700) },
		"link for file":         func(out string) error { return os.Symlink("/etc/hostname", filepath.Join(out, "a")) },
		"pipe":                  func(out string) error { return syscall.Mkfifo(filepath.Join(out, "pipe"), 0o600) },
		"name with a line\nend": func(out string) error { return os.WriteFile(filepath.Join(out, "x\ny"), nil, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			root, out := example(t), t.TempDir()
			s, _, id := memoryStore(t, root)
			must(t, os.MkdirAll(filepath.Join(out, "b c"), 0o755))
			must(t, spoil(out))
			before := fmt.Sprint(contents(t, out))
			if _, err := s.Pull(t.Context(), id, out, PullOptions{}); err == nil || !strings.Contains(err.Error(), "--delete") {
				t.Errorf("got %v, want an error that names --delete", err)
			}
			if after := fmt.Sprint(contents(t, out)); after != before {
				t.Errorf("it was %s, and is %s", before, after)
			}
			pulled(t, s, id, out, PullOptions{Delete: true})
			same(t, out, root)
		})
	}
}

// Links in the destination lead nowhere.
func TestPullFollowsNoLinks(t *testing.T) {
	root, out, outside := example(t), t.TempDir(), t.TempDir()
	write(t, outside, map[string]string{"y/x": "mine", "precious": "mine"})
	s, _, id := memoryStore(t, root)
	must(t, os.Symlink(outside, filepath.Join(out, "z")))
	before := fmt.Sprint(contents(t, outside))
	if _, err := s.Pull(t.Context(), id, out, PullOptions{}); err == nil {
		t.Error("no error")
	}
	pulled(t, s, id, out, PullOptions{Delete: true})
	same(t, out, root)
	if after := fmt.Sprint(contents(t, outside)); after != before {
		t.Errorf("outside was %s, and is %s", before, after)
	}
}

// What is wrong in the store is refused and named, and there is no such file.
func TestPullRefuses(t *testing.T) {
	root := write(t, t.TempDir(), map[string]string{"small": "small", "large": random(1, 3<<20)})
	for name, damage := range map[string]func(m *memory, key string){
		"flipped": func(m *memory, key string) { m.flip(t, key) },
		"shorter": func(m *memory, key string) { m.objects[key] = m.objects[key][1:] },
		"longer":  func(m *memory, key string) { m.objects[key] = append(m.objects[key], 0) },
		"missing": func(m *memory, key string) { delete(m.objects, key) },
	} {
		for _, file := range []string{"small", "large"} {
			s, m, id := memoryStore(t, root)
			b, err := os.ReadFile(filepath.Join(root, file))
			must(t, err)
			o := digestOf(b)
			damage(m, o.ObjectKey())
			out := t.TempDir()
			_, err = s.Pull(t.Context(), id, out, PullOptions{})
			want := oci.ErrDigestMismatch
			if name == "missing" {
				want = oci.ErrNotFound
			}
			if !errors.Is(err, want) || !strings.Contains(err.Error(), string(o)) || !strings.Contains(err.Error(), file) {
				t.Errorf("%s %s: got %v", name, file, err)
			}
			if _, err := os.Lstat(filepath.Join(out, file)); err == nil {
				t.Errorf("%s %s: it is there", name, file)
			}
			pushed(t, s, root, Options{Repair: true})
			pulled(t, s, id, out, PullOptions{})
			same(t, out, root)
		}
	}
}

// A pull that was cut goes on where it was, and heals what it left if that is wrong.
func TestPullGoesOn(t *testing.T) {
	content := random(1, 7<<19) // one range
	root := write(t, t.TempDir(), map[string]string{"large": content})
	for _, c := range []struct {
		name, left string
		from       int64 // where the first read begins
	}{
		{"half", content[:3<<20], 3 << 20}, {"all", content, 7 << 19}, {"wrong", random(2, 3<<20), 3 << 20}, {"longer", content + "more", 0}, {"nothing", "", 0},
	} {
		s, m, id := memoryStore(t, root)
		out := t.TempDir()
		part := filepath.Join(out, partName+string(digestOf([]byte(content))))
		must(t, os.WriteFile(part, []byte(c.left), 0o600))
		var offsets []int64
		m.onOpen = func(key string, offset int64) {
			if strings.HasPrefix(key, objectsPrefix) {
				offsets = append(offsets, offset)
			}
		}
		pulled(t, s, id, out, PullOptions{})
		same(t, out, root)
		if len(offsets) == 0 || offsets[0] != c.from || c.name != "wrong" && len(offsets) != 1 {
			t.Errorf("%s: read from %v, want %d", c.name, offsets, c.from)
		}
	}
	s, m, id := memoryStore(t, root)
	ctx, cancel := context.WithCancel(t.Context())
	m.onOpen = func(key string, _ int64) {
		if strings.HasPrefix(key, objectsPrefix) {
			cancel()
		}
	}
	out := t.TempDir()
	if _, err := s.Pull(ctx, id, out, PullOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	m.onOpen = nil
	pulled(t, s, id, out, PullOptions{})
	same(t, out, root)
}

func TestPullAlone(t *testing.T) {
	s, m, id := memoryStore(t, example(t))
	out := t.TempDir()
	m.onOpen = func(key string, _ int64) {
		if !strings.HasPrefix(key, objectsPrefix) {
			return
		}
		p := &pull{Store: s, name: out}
		if err := p.open(); err == nil || !strings.Contains(err.Error(), "another pull") {
			t.Errorf("a second pull: %v", err)
		}
	}
	pulled(t, s, id, out, PullOptions{})
}

// Linked files share the store's bytes, and what is done to them later leaves the store alone.
func TestPullLinked(t *testing.T) {
	s, dir := directoryStore(t)
	root := example(t)
	must(t, os.Chmod(filepath.Join(root, "a"), 0o600))
	id := pushed(t, s, root, Options{}).ID
	out := filepath.Join(filepath.Dir(dir), "out")
	pulled(t, s, id, out, PullOptions{Linked: true})
	same(t, out, root)
	before := fmt.Sprint(contents(t, dir))
	other := example(t)
	must(t, os.WriteFile(filepath.Join(other, "b c/f"), []byte("other"), 0o600))
	otherID := pushed(t, s, other, Options{}).ID
	pulled(t, s, otherID, out, PullOptions{})
	same(t, out, other)
	pulled(t, s, id, out, PullOptions{Linked: true})
	same(t, out, root)
	if v, err := s.Verify(t.Context(), id, LevelFull); err != nil || len(v.Faults) > 0 {
		t.Errorf("got %+v, %v", v.Faults, err)
	}
	after := contents(t, dir)
	for name, b := range after {
		if strings.Contains(before, name) && !strings.Contains(before, name+":"+b) {
			t.Errorf("%s changed", name)
		}
	}
	object := s.Bucket.(interface{ Path(key string) string }).Path(digestOf([]byte("A")).ObjectKey())
	must(t, os.WriteFile(object, []byte("!"), 0o644)) // of the right size
	fresh := t.TempDir()
	if _, err := s.Pull(t.Context(), id, fresh, PullOptions{Linked: true}); !errors.Is(err, oci.ErrDigestMismatch) {
		t.Errorf("a damaged one: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(fresh, "a")); err == nil {
		t.Error("a damaged one is there")
	}
}

// A disk that is full is named, and after room was made the pull goes on.
func TestPullToFullDisk(t *testing.T) {
	out := t.TempDir()
	if err := syscall.Mount("tmpfs", out, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("NOT TESTED on a full disk: no mount here (%v)", err)
	}
	t.Cleanup(func() { must(t, syscall.Unmount(out, 0)) })
	root := write(t, t.TempDir(), map[string]string{"1": random(1, 2<<20), "2": random(2, 3<<20)})
	s, _, id := memoryStore(t, root)
	_, err := s.Pull(t.Context(), id, out, PullOptions{})
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "make room in "+out) {
		t.Errorf("got %v", err)
	}
	must(t, syscall.Mount("", out, "", syscall.MS_REMOUNT, "size=8m"))
	if p := pulled(t, s, id, out, PullOptions{}); p.Fetched > 2 {
		t.Errorf("then %+v", p)
	}
	same(t, out, root)
}
