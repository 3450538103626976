package setup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// newMachine returns a machine whose files are these, name and content in turn.
func newMachine(t *testing.T, files ...string) *Machine {
	t.Helper()
	m := &Machine{Root: t.TempDir(), DataDir: "/var/lib/pier"}
	for i := 0; i < len(files); i += 2 {
		put(t, m, files[i], files[i+1])
	}
	if err := os.MkdirAll(filepath.Join(m.Root, m.DataDir), 0o700); err != nil {
		t.Fatal(err)
	}
	return m
}

func put(t *testing.T, m *Machine, path, content string) {
	t.Helper()
	full := filepath.Join(m.Root, path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(full, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func text(t *testing.T, m *Machine, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(m.Root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// tree is all that is below the root: names, modes, owners, links and contents, but not times.
func tree(t *testing.T, m *Machine) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(m.Root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		sys := info.Sys().(*syscall.Stat_t)
		fmt.Fprintf(&b, "%s %s %d:%d", strings.TrimPrefix(path, m.Root), info.Mode(), sys.Uid, sys.Gid)
		switch {
		case info.Mode().IsRegular():
			content, err := os.ReadFile(path)
			fmt.Fprintf(&b, " %q %v", content, err)
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(path)
			fmt.Fprintf(&b, " -> %s %v", target, err)
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func apply(t *testing.T, m *Machine, changes ...Change) []Step {
	t.Helper()
	steps, err := m.Apply(t.Context(), "test", changes, false)
	if err != nil {
		t.Fatal(err)
	}
	return steps
}

func undo(t *testing.T, m *Machine) []Step {
	t.Helper()
	steps, err := m.Undo(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	return steps
}

func actions(steps []Step) string {
	var list []string
	for _, s := range steps {
		list = append(list, string(s.Action))
	}
	return strings.Join(list, " ")
}

func wantSame(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

var (
	ourKey  = Change{Path: "/etc/docker/daemon.json", Keys: []Key{key(`"p"`, "proxies", "http-proxy")}}
	ourFile = Change{Path: "/etc/x/y/pier.conf", Content: []byte("ours\n")}
)

func TestApplyAndUndo(t *testing.T) {
	m := newMachine(t, "/etc/docker/daemon.json", "{ \"a\":1 }")
	full := filepath.Join(m.Root, ourKey.Path)
	if err := os.Chmod(full, 0o640); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(full, 1234, 5678); err != nil {
			t.Fatal(err)
		}
	}
	before := tree(t, m)

	m.DryRun = true
	steps := apply(t, m, ourKey, ourFile)
	wantSame(t, actions(steps), "write write")
	wantSame(t, tree(t, m), before)
	m.DryRun = false

	steps = apply(t, m, ourKey, ourFile)
	wantSame(t, actions(steps), "write write")
	wantSame(t, text(t, m, ourKey.Path), `{ "a":1, "proxies": {"http-proxy": "p"} }`)
	wantSame(t, text(t, m, ourFile.Path), "ours\n")
	if info, err := os.Stat(full); err != nil || info.Mode() != 0o640 || os.Getuid() == 0 && info.Sys().(*syscall.Stat_t).Uid != 1234 {
		t.Errorf("mode or owner changed: %v %v", info, err)
	}
	if info, err := os.Stat(filepath.Join(m.Root, m.journal("test"))); err != nil || info.Mode() != 0o600 {
		t.Errorf("originals may hold secrets: journal %v %v", info, err)
	}

	after := tree(t, m)
	wantSame(t, actions(apply(t, m, ourKey, ourFile)), "keep keep")
	wantSame(t, tree(t, m), after)

	m.DryRun = true
	wantSame(t, actions(undo(t, m)), "remove restore")
	wantSame(t, tree(t, m), after)
	m.DryRun = false
	wantSame(t, actions(undo(t, m)), "remove restore")
	wantSame(t, tree(t, m), before)
	wantSame(t, actions(undo(t, m)), "")
	wantSame(t, tree(t, m), before)
}

// A later run with other values replaces what an earlier one wrote, and the original is still that of the first.
func TestApplyAgain(t *testing.T) {
	m := newMachine(t, "/etc/docker/daemon.json", "{\n\t\"a\": 1\n}\n")
	before := tree(t, m)
	apply(t, m, ourKey, ourFile)
	steps := apply(t, m, Change{Path: ourKey.Path, Keys: []Key{element(`"m"`, "list")}}, Change{Path: ourFile.Path, Content: []byte("newer\n")})
	wantSame(t, actions(steps), "write write")
	wantSame(t, text(t, m, ourKey.Path), "{\n\t\"a\": 1,\n\t\"list\": [\"m\"]\n}\n")
	wantSame(t, text(t, m, ourFile.Path), "newer\n")
	undo(t, m)
	wantSame(t, tree(t, m), before)

	// With replace, what is not mentioned again is undone.
	apply(t, m, ourKey, ourFile)
	replaced, err := m.Apply(t.Context(), "test", []Change{ourFile}, true)
	if err != nil || actions(replaced) != "restore keep" {
		t.Errorf("got %v, %v", replaced, err)
	}
	undo(t, m)
	wantSame(t, tree(t, m), before)
}

func TestNoFileBefore(t *testing.T) {
	m := newMachine(t)
	before := tree(t, m)
	apply(t, m, ourKey)
	wantSame(t, text(t, m, ourKey.Path), "{\n  \"proxies\": {\n    \"http-proxy\": \"p\"\n  }\n}\n")
	undo(t, m)
	wantSame(t, tree(t, m), before)

	// An empty file is not the same as none.
	put(t, m, ourKey.Path, "")
	before = tree(t, m)
	apply(t, m, ourKey)
	undo(t, m)
	wantSame(t, tree(t, m), before)
}

// What is already as wanted is nobody's change, and stays when everything is undone.
func TestAlreadyThere(t *testing.T) {
	m := newMachine(t, ourKey.Path, `{"proxies": {"http-proxy":"p"}}`, ourFile.Path, "ours\n")
	before := tree(t, m)
	wantSame(t, actions(apply(t, m, ourKey, ourFile)), "keep keep")
	undo(t, m)
	wantSame(t, tree(t, m), before)
}

// TestChangedByOthers: what somebody else changed after Pier did is theirs.
func TestChangedByOthers(t *testing.T) {
	m := newMachine(t, ourKey.Path, `{"a": 1}`)
	apply(t, m, ourKey, ourFile)
	put(t, m, ourKey.Path, `{"a": 2, "proxies": {"http-proxy": "p"}, "b": 3}`)
	put(t, m, ourFile.Path, "theirs\n")

	// Another run works on what it finds, and refuses where the whole file was Pier's, before it changes anything.
	found := tree(t, m)
	newer := Change{Path: ourFile.Path, Content: []byte("newer\n")}
	if _, err := m.Apply(t.Context(), "test", []Change{{Path: ourKey.Path, Keys: []Key{key("2", "c")}}, newer}, false); err == nil || !strings.Contains(err.Error(), "pier.conf was changed since pier wrote it") {
		t.Errorf("got %v", err)
	}
	wantSame(t, tree(t, m), found)
	newer.ByHand = "add a line"
	steps := apply(t, m, newer)
	if actions(steps) != "leave" || steps[0].Detail != "somebody else's; add a line" {
		t.Errorf("got %v", steps)
	}
	wantSame(t, tree(t, m), found)

	steps = undo(t, m)
	wantSame(t, actions(steps), "leave restore")
	wantSame(t, text(t, m, ourKey.Path), `{"a": 2, "b": 3}`)
	wantSame(t, text(t, m, ourFile.Path), "theirs\n")
	wantSame(t, actions(undo(t, m)), "")

	// A value that is not Pier's any more stays, and is named.
	apply(t, m, ourKey)
	put(t, m, ourKey.Path, `{"proxies": {"http-proxy": "theirs"}}`)
	steps = undo(t, m)
	if len(steps) != 1 || !strings.HasSuffix(steps[0].Detail, "; proxies.http-proxy left as found") {
		t.Errorf("got %v", steps)
	}
	wantSame(t, text(t, m, ourKey.Path), `{"proxies": {"http-proxy": "theirs"}}`)

	// A file that cannot be read any more, or is gone, is left so.
	apply(t, m, Change{Path: ourKey.Path, Keys: []Key{key("2", "c")}})
	put(t, m, ourKey.Path, `{"c": 2, // theirs`)
	wantSame(t, actions(undo(t, m)), "leave")
	put(t, m, ourKey.Path, `{"d": 1}`)
	apply(t, m, ourKey)
	if err := os.Remove(filepath.Join(m.Root, ourKey.Path)); err != nil {
		t.Fatal(err)
	}
	wantSame(t, actions(undo(t, m)), "leave")
}

// A run after somebody else's change keeps that change when it is undone.
func TestRunAfterOthers(t *testing.T) {
	m := newMachine(t)
	apply(t, m, ourKey)
	put(t, m, ourKey.Path, `{"proxies": {"http-proxy": "p"}, "theirs": 1}`)
	apply(t, m, Change{Path: ourKey.Path, Keys: []Key{key(`"q"`, "proxies", "http-proxy")}})
	wantSame(t, text(t, m, ourKey.Path), `{"theirs": 1, "proxies": {"http-proxy": "q"}}`)
	undo(t, m)
	wantSame(t, text(t, m, ourKey.Path), `{"theirs": 1}`)
}

func TestSomebodyElsesFile(t *testing.T) {
	m := newMachine(t, ourFile.Path, "theirs\n")
	before := tree(t, m)
	if _, err := m.Apply(t.Context(), "test", []Change{ourKey, ourFile}, false); err == nil || !strings.Contains(err.Error(), "replace it with --force") {
		t.Errorf("got %v", err)
	}
	wantSame(t, tree(t, m), before)
	m.Force = true
	apply(t, m, ourFile)
	wantSame(t, text(t, m, ourFile.Path), "ours\n")
	m.Force = false
	undo(t, m)
	wantSame(t, tree(t, m), before)
}

// All changes are checked before the first is made.
func TestNotUnderstood(t *testing.T) {
	m := newMachine(t, ourKey.Path, "{\n  // mine\n}\n")
	before := tree(t, m)
	_, err := m.Apply(t.Context(), "test", []Change{ourFile, ourKey}, false)
	want := m.Root + ourKey.Path + `:2:3: a comment, which JSON has none of; it is left alone: mend it, or add by hand
{
  "proxies": {
    "http-proxy": "p"
  }
}`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	wantSame(t, tree(t, m), before)
}

// Two at once would undo each other's.
func TestOneAtATime(t *testing.T) {
	m := newMachine(t)
	j, err := m.open("test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Apply(t.Context(), "test", []Change{ourFile}, false); err == nil || !strings.Contains(err.Error(), "another pier") {
		t.Errorf("got %v", err)
	}
	j.close()
	apply(t, m, ourFile)
}

// Commands are run once each, after all files, and not below another root.
func TestCommands(t *testing.T) {
	dir := t.TempDir()
	var ran []string
	m := &Machine{DataDir: dir, Run: func(_ context.Context, command []string) error {
		ran = append(ran, strings.Join(command, " "))
		if command[0] == "update-ca-trust" {
			return errors.New("no")
		}
		return nil
	}}
	change := func(name string, command ...string) Change {
		return Change{Path: filepath.Join(dir, name), Content: []byte("x"), After: command}
	}
	steps := apply(t, m, change("a", "update-ca-certificates"), change("b", "update-ca-certificates"), change("c"), change("d", "trust", "extract-compat"))
	wantSame(t, actions(steps), "write write write write run run")
	wantSame(t, strings.Join(ran, "; "), "update-ca-certificates; trust extract-compat")

	// Also if there is nothing to write: the last time may have ended before the command.
	ran = nil
	apply(t, m, change("a", "update-ca-certificates"))
	wantSame(t, strings.Join(ran, "; "), "update-ca-certificates")

	ran = nil
	if _, err := m.Apply(t.Context(), "test", []Change{change("e", "update-ca-trust", "extract"), change("f", "update-ca-certificates", "--fresh")}, false); err == nil || err.Error() != "update-ca-trust extract: no" {
		t.Errorf("got %v", err)
	}
	wantSame(t, strings.Join(ran, "; "), "update-ca-trust extract")

	ran = nil
	m.Run = func(_ context.Context, command []string) error {
		ran = append(ran, strings.Join(command, " "))
		return nil
	}
	wantSame(t, actions(undo(t, m)), "remove remove remove remove remove remove run run run run")
	wantSame(t, strings.Join(ran, "; "), "update-ca-certificates --fresh; update-ca-trust extract; trust extract-compat; update-ca-certificates")

	// The real thing, and what it says when it fails.
	m.Run = nil
	if steps, err := m.RunAll(t.Context(), [][]string{{"true"}}); err != nil || !steps[0].Done {
		t.Errorf("got %v %v", steps, err)
	}
	if _, err := m.RunAll(t.Context(), [][]string{{"sh", "-c", "echo why; exit 3"}}); err == nil || err.Error() != "sh -c echo why; exit 3: exit status 3: why" {
		t.Errorf("got %v", err)
	}
	m.Root = dir
	if steps, err := m.RunAll(t.Context(), [][]string{{"false"}}); err != nil || steps[0].Done {
		t.Errorf("got %v %v", steps, err)
	}
}
