package setup

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// forge writes a journal that would change a file of root's and run a command, and returns that file.
func forge(t *testing.T, data string, command ...string) string {
	t.Helper()
	victim := filepath.Join(t.TempDir(), "victim")
	now := []byte("nothing")
	if err := os.WriteFile(victim, now, 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(journal{Version: 1, Files: []record{{
		Path: victim, Original: state{Content: []byte("evil"), Mode: 0o755, UID: -1}, Wrote: []string{digest(now)}, Undone: command,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(data, "setup")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return victim
}

// A data directory may be another user's: a journal that is, or that others could write or put in its place, gives them
// what whoever undoes it may do. It is neither carried out nor written.
func TestJournalOfSomebodyElse(t *testing.T) {
	for want, change := range map[string]func(dir string) error{
		"setup belongs to another user":   func(dir string) error { return os.Chown(dir, 12345, 12345) },
		"ca.json belongs to another user": func(dir string) error { return os.Chown(filepath.Join(dir, "ca.json"), 12345, 12345) },
		"setup can be written by others":  func(dir string) error { return os.Chmod(dir, 0o770) },
		"ca.json can be written by others": func(dir string) error {
			return os.Chmod(filepath.Join(dir, "ca.json"), 0o602)
		},
		"setup is a symbolic link": func(dir string) error {
			if err := os.Rename(dir, dir+".real"); err != nil {
				return err
			}
			return os.Symlink(filepath.Base(dir)+".real", dir)
		},
		"ca.json is a symbolic link": func(dir string) error {
			file := filepath.Join(dir, "ca.json")
			if err := os.Rename(file, file+".real"); err != nil {
				return err
			}
			return os.Symlink("ca.json.real", file)
		},
	} {
		if strings.Contains(want, "belongs") && os.Getuid() != 0 {
			continue // who is not root gives nothing away
		}
		data := t.TempDir()
		victim := forge(t, data, "update-ca-certificates")
		if err := change(filepath.Join(data, "setup")); err != nil {
			t.Fatal(err)
		}
		m := &Machine{DataDir: data, Run: func(context.Context, []string) error { t.Errorf("%s: the command was run", want); return nil }}
		_, undone := m.UninstallAuthority(t.Context())
		_, applied := m.Apply(t.Context(), "ca", []Change{{Path: victim, Content: []byte("x")}}, true)
		_, looked := m.Installed(nil)
		for _, err := range []error{undone, applied, looked} {
			if err == nil || !strings.Contains(err.Error(), want+", ") {
				t.Errorf("%s: got error %v", want, err)
			}
		}
		if b, err := os.ReadFile(victim); err != nil || string(b) != "nothing" {
			t.Errorf("%s: the file is now %q, %v", want, b, err)
		}
	}
}

// As root, through a stranger's link, a journal would be written anywhere.
func TestJournalThroughLink(t *testing.T) {
	data, elsewhere := t.TempDir(), t.TempDir()
	if err := os.Symlink(elsewhere, filepath.Join(data, "setup")); err != nil {
		t.Fatal(err)
	}
	m := &Machine{DataDir: data}
	_, err := m.Apply(t.Context(), "docker", []Change{{Path: filepath.Join(data, "f"), Content: []byte("x")}}, false)
	if err == nil || !strings.Contains(err.Error(), "is a symbolic link") {
		t.Errorf("got error %v", err)
	}
	if entries, err := os.ReadDir(elsewhere); err != nil || len(entries) > 0 {
		t.Errorf("through the link were written %v, %v", entries, err)
	}
}

// Whatever a journal says, no command is run but those that this package runs by itself.
func TestJournalCommand(t *testing.T) {
	for _, command := range [][]string{{"touch", "pwned"}, {"update-ca-certificates", "--hooksdir", "/tmp"}, {}} {
		data := t.TempDir()
		forge(t, data, command...)
		m := &Machine{DataDir: data, Run: func(_ context.Context, c []string) error { t.Errorf("%v was run", c); return nil }}
		r, err := m.UninstallAuthority(t.Context())
		if want := map[bool]string{true: "restore leave", false: "restore"}[len(command) > 0]; err != nil || actions(r.Steps) != want {
			t.Errorf("%v: got %+v, %v", command, r, err)
		}
	}
}
