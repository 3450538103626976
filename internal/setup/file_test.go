package setup

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// A crash leaves a journal that knows of more than was done, never of less: the journal is written before a file is changed,
// and forgets it after it is restored.
func TestCrash(t *testing.T) {
	m := newMachine(t, ourKey.Path, `{"a": 1}`)
	before := tree(t, m)

	// Between the journal and the first change.
	apply(t, m, ourKey)
	put(t, m, ourKey.Path, `{"a": 1}`)
	wantSame(t, actions(undo(t, m)), "keep")
	wantSame(t, tree(t, m), before)
	apply(t, m, ourKey)
	put(t, m, ourKey.Path, `{"a": 1}`)
	wantSame(t, actions(apply(t, m, ourKey)), "write")

	// Between the journal and the second change.
	first := text(t, m, ourKey.Path)
	apply(t, m, Change{Path: ourKey.Path, Keys: []Key{key(`"q"`, "proxies", "http-proxy")}})
	put(t, m, ourKey.Path, first)
	wantSame(t, actions(undo(t, m)), "restore")
	wantSame(t, tree(t, m), before)

	// Between restoring and the journal.
	apply(t, m, ourFile, ourKey)
	saved := text(t, m, m.journal("test"))
	undo(t, m)
	put(t, m, m.journal("test"), saved)
	wantSame(t, actions(undo(t, m)), "keep keep")
	wantSame(t, tree(t, m), before)

	// A journal that cannot be read stops everything.
	put(t, m, m.journal("test"), "{")
	if _, err := m.Undo(t.Context(), "test"); err == nil || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("got %v", err)
	}
	if _, err := m.Apply(t.Context(), "test", []Change{ourFile}, false); err == nil {
		t.Error("changed files without being able to undo that")
	}
}

// Links are followed as they are below the root, and stay links.
func TestLinks(t *testing.T) {
	m := newMachine(t, "/srv/docker/daemon.json", `{"a": 1}`)
	link := func(target, path string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(m.Root, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(m.Root, path)); err != nil {
			t.Fatal(err)
		}
	}
	link("/srv/docker", "/etc/docker")
	link("../../../../../opt/new.conf", "/etc/x/y/pier.conf") // dangling, and past the root
	if err := os.Mkdir(filepath.Join(m.Root, "opt"), 0o755); err != nil {
		t.Fatal(err)
	}
	before := tree(t, m)
	apply(t, m, ourKey, ourFile)
	wantSame(t, text(t, m, "/srv/docker/daemon.json"), `{"a": 1, "proxies": {"http-proxy": "p"}}`)
	wantSame(t, text(t, m, "/opt/new.conf"), "ours\n")
	undo(t, m)
	wantSame(t, tree(t, m), before)

	link("/loop/b", "/loop/a")
	link("/loop/a", "/loop/b")
	if _, err := m.Apply(t.Context(), "test", []Change{{Path: "/loop/a", Content: []byte("x")}}, false); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("got %v", err)
	}
	if _, err := m.Apply(t.Context(), "test", []Change{{Path: "/srv/docker", Content: []byte("x")}}, false); err == nil || !strings.HasSuffix(err.Error(), "is no file") {
		t.Errorf("got %v", err)
	}
}

// Who may not write is told so, and nothing is left behind.
func TestReadOnly(t *testing.T) {
	m := newMachine(t, ourKey.Path, `{"a": 1}`)
	journals := filepath.Join(m.Root, m.DataDir, "setup")
	if err := os.Mkdir(journals, 0o700); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(journals, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	for path, mode := range map[string]fs.FileMode{"/..": 0o755, "/var": 0o755, "/var/lib": 0o755, "/var/lib/pier": 0o755, "/etc/docker": 0o555} {
		if err := os.Chmod(filepath.Join(m.Root, path), mode); err != nil {
			t.Fatal(err)
		}
	}
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if os.Getuid() == 0 {  // root may write everywhere
			same := ^uintptr(0)
			if _, _, err := syscall.RawSyscall(syscall.SYS_SETRESUID, same, 65534, same); err != 0 { // of this thread alone
				errs <- err
				return
			}
		}
		_, err := m.Apply(context.Background(), "test", []Change{ourKey}, false)
		errs <- err
	}()
	if err := <-errs; !errors.Is(err, fs.ErrPermission) || !strings.HasSuffix(err.Error(), "; run it as root") {
		t.Errorf("got %v", err)
	}
	wantSame(t, text(t, m, ourKey.Path), `{"a": 1}`)
	for _, path := range []string{journals, filepath.Join(m.Root, m.journal("test"))} {
		if err := os.Chown(path, os.Getuid(), os.Getgid()); err != nil {
			t.Fatal(err)
		}
	}
	wantSame(t, actions(undo(t, m)), "keep")
	entries, err := os.ReadDir(filepath.Join(m.Root, "etc/docker"))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v %v", entries, err)
	}
}
