package authority

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// make returns the directory of a new authority.
func newDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := Open(Config{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func rewrite(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func contentOf(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestDamage(t *testing.T) {
	other := newDir(t)
	for name, damage := range map[string]func(dir string){
		"key of another": func(dir string) { rewrite(t, filepath.Join(dir, keyFile), contentOf(t, filepath.Join(other, keyFile))) },
		"certificate of another": func(dir string) {
			rewrite(t, filepath.Join(dir, certFile), contentOf(t, filepath.Join(other, certFile)))
		},
		"empty certificate":  func(dir string) { rewrite(t, filepath.Join(dir, certFile), "") },
		"empty key":          func(dir string) { rewrite(t, filepath.Join(dir, keyFile), "") },
		"half a certificate": func(dir string) { p := filepath.Join(dir, certFile); rewrite(t, p, contentOf(t, p)[:200]) },
		"damaged certificate": func(dir string) {
			p := filepath.Join(dir, certFile)
			rewrite(t, p, strings.Replace(contentOf(t, p), "MII", "AAA", 1))
		},
		"half a key": func(dir string) { p := filepath.Join(dir, keyFile); rewrite(t, p, contentOf(t, p)[:80]) },
		"no key":     func(dir string) { os.Remove(filepath.Join(dir, keyFile)) },
		"a leaf": func(dir string) {
			a, err := Open(Config{Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			leaf, err := a.Certificate("registry.test")
			if err != nil {
				t.Fatal(err)
			}
			rewrite(t, filepath.Join(dir, certFile), string(encode("CERTIFICATE", leaf.Certificate[0])))
		},
	} {
		dir := newDir(t)
		damage(dir)
		_, err := Open(Config{Dir: dir})
		if !errors.Is(err, ErrUnusable) || !strings.Contains(err.Error(), "pier ca init --force") {
			t.Errorf("%s: got error %v, want ErrUnusable and what to run", name, err)
		}
		if _, err := Create(Config{Dir: dir}, true); err != nil {
			t.Errorf("%s: replaced: %v", name, err)
		}
		if _, err := Open(Config{Dir: dir}); err != nil {
			t.Errorf("%s: after it was replaced: %v", name, err)
		}
	}
}

// A crash between the two files, or a certificate lost: those who trust the key go on doing so.
func TestKeyAlone(t *testing.T) {
	dir := newDir(t)
	old, err := Load(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(dir, certFile))
	a, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.Certificate("registry.test")
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(t, old, cert, "registry.test", time.Now()); err != nil {
		t.Errorf("a client with the old certificate: %v", err)
	}
}

func TestValidity(t *testing.T) {
	dir := newDir(t)
	for what, at := range map[string]time.Time{"expired": time.Now().AddDate(11, 0, 0), "not valid before": time.Now().AddDate(-1, 0, 0)} {
		a, err := Open(Config{Dir: dir, Now: func() time.Time { return at }})
		if err != nil { // its clock may be set later
			t.Fatalf("%s: %v", what, err)
		}
		_, err = a.Certificate("registry.test")
		if !errors.Is(err, ErrUnusable) || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), "pier ca init --force") {
			t.Errorf("%s: got error %v", what, err)
		}
		if _, err := Load(Config{Dir: dir, Now: func() time.Time { return at }}); err != nil {
			t.Errorf("%s: it cannot be looked at: %v", what, err)
		}
	}
	// An hour off is nothing.
	for _, d := range []time.Duration{-time.Hour, time.Hour} {
		a, err := Open(Config{Dir: dir, Now: func() time.Time { return time.Now().Add(d) }})
		if err != nil {
			t.Fatal(err)
		}
		cert, err := a.Certificate("registry.test")
		if err != nil {
			t.Fatal(err)
		}
		if err := verify(t, a, cert, "registry.test", time.Now()); err != nil {
			t.Errorf("clock off by %v: %v", d, err)
		}
	}
	empty := t.TempDir()
	if _, err := Open(Config{Dir: empty, Now: func() time.Time { return time.Unix(0, 0) }}); err == nil || !strings.Contains(err.Error(), "set the clock") {
		t.Errorf("in 1970: got error %v", err)
	}
	if names, _ := os.ReadDir(empty); len(names) > 0 {
		t.Errorf("in 1970: made %v", names)
	}
}

func TestCreate(t *testing.T) {
	dir := newDir(t)
	if _, err := Create(Config{Dir: dir}, false); !errors.Is(err, fs.ErrExist) {
		t.Errorf("again: got error %v, want ErrExist", err)
	}
	old, err := Load(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	a, err := Create(Config{Dir: dir, Names: []string{"registry.test"}}, true)
	if err != nil {
		t.Fatal(err)
	}
	if a.Fingerprint() == old.Fingerprint() || a.Permits("other.test") {
		t.Error("it was not replaced")
	}
	if _, err := Load(Config{Dir: t.TempDir()}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing there: got error %v, want ErrNotExist", err)
	}
	for _, name := range []string{"Registry.test", "a:5000", "", "a b", "*.", "**", "[::1]"} {
		if _, err := Create(Config{Dir: t.TempDir(), Names: []string{name}}, false); err == nil {
			t.Errorf("name %q was taken", name)
		}
	}
}

// An authority made for other hosts than those configured says so, and signs for none of them.
func TestOtherNames(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(Config{Dir: dir, Names: []string{"registry.test"}}); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	a, err := Open(Config{Dir: dir, Names: []string{"registry.test", "other.test"}, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if !a.Permits("registry.test") || a.Permits("other.test") || !strings.Contains(log.String(), "host=other.test") {
		t.Errorf("permits registry.test %v, other.test %v; logged %s", a.Permits("registry.test"), a.Permits("other.test"), log.String())
	}
}

func TestKeyMode(t *testing.T) {
	dir := newDir(t)
	path := filepath.Join(dir, keyFile)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	if _, err := Open(Config{Dir: dir, Log: slog.New(slog.NewTextHandler(&log, nil))}); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 || !strings.Contains(log.String(), "mode=0644") {
		t.Errorf("mode is %v, logged: %s", info.Mode(), log.String())
	}
}

// Processes that start at once end with one authority.
func TestTogether(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	var mu sync.Mutex
	seen := make(map[string]bool)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			a, err := Open(Config{Dir: dir})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			seen[a.Fingerprint()] = true
		})
	}
	wg.Wait()
	if len(seen) != 1 {
		t.Errorf("%d authorities, want 1", len(seen))
	}
}

// In a directory of somebody else the key's name may lead to any file: none is changed, and none waited for, that is not the key.
func TestKeyIsNoOtherFile(t *testing.T) {
	elsewhere := filepath.Join(t.TempDir(), "passwd")
	for what, put := range map[string]func(path string) error{
		"it is a symbolic link":  func(path string) error { return os.Symlink(elsewhere, path) },
		"it has other names too": func(path string) error { return os.Link(elsewhere, path) },
		"it is no file":          func(path string) error { return syscall.Mkfifo(path, 0o644) },
		"it belongs to user 12345: ": func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o644), os.Chown(path, 12345, 12345))
		},
	} {
		if strings.Contains(what, "belongs") && os.Getuid() != 0 {
			continue // who is not root gives nothing away
		}
		rewrite(t, elsewhere, "root:x:0:0")
		if err := os.Chmod(elsewhere, 0o644); err != nil {
			t.Fatal(err)
		}
		dir := newDir(t)
		key := filepath.Join(dir, keyFile)
		if err := errors.Join(os.Remove(key), put(key)); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(Config{Dir: dir}); !errors.Is(err, ErrUnusable) || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), "pier ca init --force") {
			t.Errorf("%s: got error %v", what, err)
		}
		for _, path := range []string{elsewhere, key} {
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
				t.Errorf("%s: the mode of %s is now %v, %v", what, path, info.Mode(), err)
			}
		}
		if _, err := Create(Config{Dir: dir}, true); err != nil {
			t.Errorf("%s: replaced: %v", what, err)
		}
	}
}

// Root looks at the authority of a node that runs as another user.
func TestKeyOfTheNodesUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("NOT TESTED without root: only root gives files away")
	}
	dir := newDir(t)
	for _, path := range []string{dir, filepath.Join(dir, keyFile)} {
		if err := os.Chown(path, 12345, 12345); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Load(Config{Dir: dir}); err != nil {
		t.Error(err)
	}
}
