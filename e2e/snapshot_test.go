//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A mover runs pier snapshot, with a home of its own, as one machine does.
type mover struct {
	home string
	env  []string
}

// newMover returns one that can reach these stores.
func newMover(t *testing.T, stores ...*store) *mover {
	t.Helper()
	m := &mover{home: t.TempDir()}
	m.env = slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "PIER_") || strings.HasPrefix(kv, "AWS_") })
	m.env = append(m.env, "HOME="+m.home, "XDG_CACHE_HOME="+filepath.Join(m.home, "cache"), "AWS_EC2_METADATA_DISABLED=true")
	for _, s := range stores {
		m.env = append(m.env, s.env...)
	}
	return m
}

// command is pier snapshot with these arguments.
func (m *mover) command(args ...string) *exec.Cmd {
	cmd := exec.Command(pierBinary, append([]string{"snapshot"}, args...)...)
	cmd.Env = m.env
	return cmd
}

// An ending is how a program ended.
type ending struct {
	stdout, stderr string
	status         int
}

func (o ending) String() string {
	return fmt.Sprintf("status %d\n%s%s", o.status, o.stdout, o.stderr)
}

// try runs pier snapshot to its end, which must come within commandTimeout.
func (m *mover) try(t *testing.T, args ...string) ending {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	plain := m.command(args...)
	cmd := exec.CommandContext(ctx, plain.Path, plain.Args[1:]...)
	cmd.Env, cmd.SysProcAttr = plain.Env, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("pier snapshot %s: %v\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	o := ending{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
	for _, sign := range []string{"panic", "DATA RACE", "fatal error:"} {
		if strings.Contains(o.stderr, sign) {
			t.Errorf("pier snapshot %s: %s", strings.Join(args, " "), o)
		}
	}
	return o
}

// must is try for what must succeed. It returns stdout without surrounding white space.
func (m *mover) must(t *testing.T, args ...string) string {
	t.Helper()
	o := m.try(t, args...)
	if o.status != 0 {
		t.Fatalf("pier snapshot %s: %s", strings.Join(args, " "), o)
	}
	return strings.TrimSpace(o.stdout)
}

// fails is try for what must end with this status, and say all these words.
func (m *mover) fails(t *testing.T, status int, words []string, args ...string) ending {
	t.Helper()
	o := m.try(t, args...)
	if o.status != status {
		t.Errorf("pier snapshot %s: want status %d, got %s", strings.Join(args, " "), status, o)
	}
	for _, word := range words {
		if !strings.Contains(o.stdout+o.stderr, word) {
			t.Errorf("pier snapshot %s does not say %q: %s", strings.Join(args, " "), word, o)
		}
	}
	return o
}

// A moved is the summary of a push or sync.
type moved struct {
	ID        string
	Files     int
	Objects   int
	Sent      int
	SentBytes int64
	Skipped   int
	Repaired  int
}

// push pushes a directory, and returns the summary.
func (m *mover) push(t *testing.T, s *store, dir string, args ...string) (sum moved) {
	t.Helper()
	text := m.must(t, append([]string{"push", "--store", s.url, "--json", dir}, args...)...)
	if err := json.Unmarshal([]byte(text), &sum); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return sum
}

// newFiles makes a directory of the given files, all of random bytes, and returns its path. Those whose name ends in a slash
// are directories, whatever their size.
func newFiles(t *testing.T, sizes map[string]int) string {
	t.Helper()
	dir, random := filepath.Join(t.TempDir(), "tree"), newRandom(t)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	names := make([]string, 0, len(sizes))
	for name := range sizes {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		full := filepath.Join(dir, name)
		parent := filepath.Dir(full)
		if strings.HasSuffix(name, "/") {
			parent = full
		}
		if err := os.MkdirAll(parent, 0o755); err != nil {
			t.Fatal(err)
		}
		if parent == full {
			continue
		}
		b := make([]byte, sizes[name])
		_, _ = random.Read(b) // never fails
		writeFile(t, full, string(b))
	}
	return dir
}

// newMixedTree makes a directory that has something of everything.
func newMixedTree(t *testing.T) string {
	t.Helper()
	dir := newFiles(t, map[string]int{
		"large": 20 << 20, "layer": 9<<20 + 17, "a": 1, "b/c/d": 300_000, "b-": 100, "b/empty": 0, "nothing/": 0, "nothing at all/in here/": 0,
		"with some  spaces in it/ first and last ": 1000, "# no comment": 10, "größe/日本語": 2000, `back\slash "quoted"`: 12, "-rf": 3, "tab\there": 4,
	})
	for name, to := range map[string]string{"link to a file": "b/c/d", "b/up": "../nothing", "c/": ""} {
		if to == "" {
			if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
				t.Fatal(err)
			}
			writeFile(t, filepath.Join(dir, name, "copy of a"), string(readFile(t, filepath.Join(dir, "a"))))
			continue
		}
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, perm := range map[string]uint32{"a": 0o600, "layer": 0o444, "b/c": 0o711, "b/c/d": 0o4755, "nothing": 0o1777, "-rf": 0o000, "c": 0o555} {
		if err := syscall.Chmod(filepath.Join(dir, name), perm); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// checkSame fails the test unless two directories have the same files with the same permissions.
func checkSame(t *testing.T, want, got string) {
	t.Helper()
	if out, err := tryRun(t, nil, "diff", "-r", want, got); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	a, b := readTree(t, want), readTree(t, got)
	if a.id() != b.id() {
		t.Errorf("want:\n%sgot:\n%s", a.text(), b.text())
	}
}

func TestSnapshotsOfEveryStore(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, s *store) {
		m, dir := newMover(t, s), newMixedTree(t)
		want := readTree(t, dir)

		first := m.push(t, s, dir)
		if first.ID != want.id() || first.Sent != len(want.files) || first.Skipped != 0 {
			t.Fatalf("first push: %+v, want %d objects and ID %s", first, len(want.files), want.id())
		}
		if n := checkNothingDangles(t, s, true); n != 1 {
			t.Errorf("there are %d manifests", n)
		}
		if got := len(s.list(t, ".objects/")); got != len(want.files) {
			t.Errorf("there are %d objects, want %d", got, len(want.files))
		}
		before := s.received()
		if again := m.push(t, s, dir); again.ID != first.ID || again.Sent != 0 || again.SentBytes != 0 || s.received() != before {
			t.Errorf("push again: %+v, and %d bytes were sent", again, s.received()-before)
		}
		another := newMover(t, s) // which remembers nothing
		if again := another.push(t, s, dir); again.ID != first.ID || again.Sent != 0 || s.received() != before {
			t.Errorf("push from another machine: %+v, and %d bytes were sent", again, s.received()-before)
		}

		// One layer changes: it goes, and nothing else but what says so.
		layer := filepath.Join(dir, "layer")
		if err := os.Chmod(layer, 0o644); err != nil {
			t.Fatal(err)
		}
		writeFile(t, layer, strings.Repeat("new ", 3<<20))
		before = s.received()
		second := m.push(t, s, dir)
		if second.Sent != 1 || second.SentBytes != 12<<20 || second.Skipped != len(want.files)-1 {
			t.Errorf("one layer changed: %+v", second)
		}
		if sent := s.received() - before; s.front != nil && (sent < 12<<20 || sent > 12<<20+64<<10) {
			t.Errorf("one layer of %d bytes changed, and %d were sent", 12<<20, sent)
		}

		out := filepath.Join(t.TempDir(), "out")
		m.must(t, "pull", "--store", s.url, "--id", second.ID, out)
		checkSame(t, dir, out)
		sent := s.sent()
		m.must(t, "pull", "--store", s.url, "--id", second.ID, out)
		if got := s.sent() - sent; s.front != nil && got > 64<<10 {
			t.Errorf("a pull into what is right fetched %d bytes", got)
		}

		testSpoiled(t, m, s, dir, second.ID)
		testCollected(t, m, s, first.ID, second.ID)
	})
}

// received and sent are the bytes that the server of a bucket got and sent; 0 for a directory.
func (s *store) received() int64 {
	if s.front == nil {
		return 0
	}
	return s.front.Received()
}

func (s *store) sent() int64 {
	if s.front == nil {
		return 0
	}
	return s.front.Sent()
}

// testSpoiled spoils several objects in a store, and has them found and mended.
func testSpoiled(t *testing.T, m *mover, s *store, dir, id string) {
	t.Helper()
	for _, level := range []string{"list", "size", "full"} {
		m.must(t, "verify", "--store", s.url, "--id", id, "--level", level)
	}
	sums := make(map[string]string) // by path
	for _, line := range manifestOf(t, s, id) {
		fields := strings.SplitN(line, " ", 5)
		sums[fields[4]] = fields[2]
	}
	spoil := func(path string, change func(b []byte) []byte) {
		key := keyOf(".objects", sums[path])
		b, _ := s.get(t, key)
		s.put(t, key, change(b))
	}
	missing := []string{"./b/c/d", "./link to a file", "./größe/日本語"}
	s.remove(t, keyOf(".objects", sums["./b/c/d"]))
	s.remove(t, keyOf(".objects", sums["./größe/日本語"]))
	short := []string{"./b-", "./with some  spaces in it/ first and last "}
	spoil("./b-", func(b []byte) []byte { return b[:99] })
	spoil("./with some  spaces in it/ first and last ", func(b []byte) []byte { return append(b, 0) })
	wrong := []string{"./large", "./a", "./c/copy of a"}
	spoil("./large", func(b []byte) []byte { b[10<<20] ^= 1; return b })
	spoil("./a", func(b []byte) []byte { b[0] ^= 1; return b })

	verify := []string{"verify", "--store", s.url, "--id", id, "--level"}
	o := m.fails(t, 3, append(missing, "--repair"), append(verify, "list")...)
	if strings.Contains(o.stdout, "./b-") {
		t.Errorf("--level list says more than what is missing: %s", o)
	}
	o = m.fails(t, 3, slices.Concat(missing, short), append(verify, "size")...)
	if strings.Contains(o.stdout, "./large") {
		t.Errorf("--level size read content: %s", o)
	}
	all := slices.Concat(missing, short, wrong)
	m.fails(t, 3, all, append(verify, "full")...)
	o = m.fails(t, 3, nil, append(verify, "full", "--json")...)
	var verdict struct {
		Faults []struct {
			Fault string
			Paths []string
		}
	}
	if err := json.Unmarshal([]byte(o.stdout), &verdict); err != nil || len(verdict.Faults) != 6 {
		t.Errorf("verify --json: %v: %s", err, o)
	}

	out := filepath.Join(t.TempDir(), "out")
	m.fails(t, 3, []string{s.plain(), "verify"}, "pull", "--store", s.url, "--id", id, "--jobs", "1", out)
	for _, path := range all {
		if _, err := os.Lstat(filepath.Join(out, path)); err == nil {
			t.Errorf("%s was written from an object that is missing or wrong", path)
		}
	}

	mended := m.push(t, s, dir, "--repair")
	if mended.Sent != 6 || mended.Repaired != 4 {
		t.Errorf("push --repair: %+v, want 6 sent, of which 4 replace others", mended)
	}
	m.must(t, append(verify, "full")...)
	checkNothingDangles(t, s, true)
	m.must(t, "pull", "--store", s.url, "--id", id, out)
	checkSame(t, dir, out)
}

// plain is what pier calls the store: without options.
func (s *store) plain() string {
	name, _, _ := strings.Cut(s.url, "?")
	return name
}

// testCollected has all but the last snapshot removed.
func testCollected(t *testing.T, m *mover, s *store, first, second string) {
	t.Helper()
	s.put(t, keyOf(".objects", blake([]byte("nobody's"))), []byte("nobody's"))
	before := s.list(t, "")
	m.must(t, "gc", "--store", s.url, "--dry-run", "--keep-last", "1")
	if after := s.list(t, ""); len(after) != len(before) {
		t.Errorf("gc --dry-run: %d objects before, %d after", len(before), len(after))
	}
	m.must(t, "gc", "--store", s.url)
	if got := len(s.list(t, ".objects/")); got != countOf(before, ".objects/")-1 {
		t.Errorf("gc left %d objects of %d, of which one was nobody's", got, countOf(before, ".objects/"))
	}
	m.must(t, "gc", "--store", s.url, "--keep-last", "1")
	if got := len(s.list(t, ".objects/")); got != countOf(before, ".objects/")-2 {
		t.Errorf("gc --keep-last 1 left %d objects, want %d", got, countOf(before, ".objects/")-2)
	}
	m.fails(t, 1, []string{first}, "verify", "--store", s.url, "--id", first)
	m.must(t, "verify", "--store", s.url, "--id", second)
	checkNothingDangles(t, s, false)
}

func countOf(list map[string]int64, prefix string) (n int) {
	for key := range list {
		if strings.HasPrefix(key, prefix) {
			n++
		}
	}
	return n
}

func TestSnapshotGoesThroughAllStoresAndKeepsItsID(t *testing.T) {
	t.Parallel()
	stores := []*store{startStore(t, "file"), startStore(t, "s3"), startStore(t, "gs"), startStore(t, "file")}
	m, dir, other := newMover(t, stores...), newMixedTree(t), newFiles(t, map[string]int{"x": 100})
	ids := []string{m.push(t, stores[0], dir).ID, m.push(t, stores[0], other).ID}
	slices.Sort(ids)
	for i := 1; i < len(stores); i++ {
		args := []string{"sync", "--from", stores[i-1].url, "--to", stores[i].url, "--all"}
		if i == 2 { // one after the other
			args = append(args[:5], "--id", ids[0], "--id", ids[1])
		}
		got := strings.Fields(m.must(t, args...))
		if slices.Sort(got); !slices.Equal(got, ids) {
			t.Errorf("sync to %s: %q, want %q", stores[i].url, got, ids)
		}
		if n := checkNothingDangles(t, stores[i], true); n != 2 {
			t.Errorf("%s has %d manifests", stores[i].url, n)
		}
		before := stores[i].received()
		m.must(t, args...)
		if stores[i].received() != before {
			t.Errorf("sync again to %s sent %d bytes", stores[i].url, stores[i].received()-before)
		}
	}
	out := filepath.Join(t.TempDir(), "out")
	m.must(t, "pull", "--store", stores[3].url, "--id", readTree(t, dir).id(), out)
	checkSame(t, dir, out)
	for _, s := range stores[1:] {
		if got := m.must(t, "revisions", "--store", s.url); strings.Count(got, "sync") != 2 {
			t.Errorf("revisions of %s:\n%s", s.url, got)
		}
	}

	// What is damaged at the source is refused and named, and nothing of it arrives.
	tr, fresh := readTree(t, dir), startStore(t, "file")
	key := keyOf(".objects", blake(readFile(t, filepath.Join(dir, "large"))))
	b, _ := stores[1].get(t, key)
	b[0] ^= 1
	stores[1].put(t, key, b)
	m.fails(t, 3, []string{stores[1].plain(), key, "--repair"}, "sync", "--from", stores[1].url, "--to", fresh.url, "--id", tr.id())
	if n := checkNothingDangles(t, fresh, true); n != 0 {
		t.Errorf("%d manifests arrived", n)
	}
	m.must(t, "sync", "--from", stores[2].url, "--to", stores[1].url, "--id", tr.id(), "--repair")
	m.must(t, "sync", "--from", stores[1].url, "--to", fresh.url, "--id", tr.id())
	checkNothingDangles(t, fresh, true)
}

// Stores that something else wrote are read, and what pier writes is read by something else.
func TestSnapshotsAreThoseOfSnapdir(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, s *store) {
		m, dir := newMover(t, s), newMixedTree(t)
		tr := readTree(t, dir)
		if got := m.must(t, "id", dir); got != tr.id() {
			t.Errorf("id: got %s, want %s", got, tr.id())
		}
		if o := m.try(t, "manifest", dir); o.stdout != tr.text() {
			t.Errorf("manifest: %s\nwant\n%s", o, tr.text())
		}

		id := storeTree(t, s, tr)
		m.must(t, "verify", "--store", s.url, "--id", id)
		if got := m.must(t, "ls", "--store", s.url); !strings.Contains(got, id) {
			t.Errorf("ls: %s", got)
		}
		out := filepath.Join(t.TempDir(), "out")
		m.must(t, "pull", "--store", s.url, "--id", id, out)
		checkSame(t, dir, out)
		if again := m.push(t, s, dir); again.ID != id || again.Sent != 0 {
			t.Errorf("push of what something else stored: %+v", again)
		}

		// Comments count for nothing, and nor does a line's end too few.
		s.put(t, keyOf(".manifests", id), []byte("#! snapdir-manifest\n"+tr.text()+"# the end"))
		m.must(t, "verify", "--store", s.url, "--id", id, "--level", "list")
		if _, err := tryRun(t, nil, "rm", "-r", out); err != nil {
			t.Fatal(err)
		}
		m.must(t, "pull", "--store", s.url, "--id", id, out)
		checkSame(t, dir, out)

		// The other way, of a snapshot that shares some of it.
		writeFile(t, filepath.Join(dir, "new file"), "new\n")
		theirs := filepath.Join(t.TempDir(), "theirs")
		restoreTree(t, s, m.push(t, s, dir).ID, theirs)
		checkSame(t, dir, theirs)
	})
}

// A mover's progress and results are for people and for programs.
func TestSnapshotSummaries(t *testing.T) {
	t.Parallel()
	s := startStore(t, "file")
	m, dir := newMover(t, s), newFiles(t, map[string]int{"a": 1 << 20, "b": 10})
	o := m.try(t, "push", "--store", s.url, dir)
	if len(strings.Fields(o.stdout)) != 1 || !strings.Contains(o.stderr, "2 files") {
		t.Errorf("push: %s", o)
	}
	if o = m.try(t, "push", "--quiet", "--store", s.url, dir); len(strings.Fields(o.stdout)) != 1 || o.stderr != "" {
		t.Errorf("push --quiet: %s", o)
	}
	begin := time.Now()
	m.must(t, "pull", "--limit-rate", "1MiB", "--store", s.url, "--id", strings.TrimSpace(o.stdout), filepath.Join(t.TempDir(), "out"))
	if took := time.Since(begin); took < 700*time.Millisecond {
		t.Errorf("1 MiB at 1 MiB/s took %v", took)
	}
}

// Within one service no byte of an object is sent: it copies, after the bytes were proven.
func TestSnapshotIsCopiedWithinAService(t *testing.T) {
	t.Parallel()
	eachBucket(t, func(t *testing.T, s *store) {
		m, dir := newMover(t, s), newFiles(t, map[string]int{"large": 20 << 20, "small": 300_000, "empty": 0})
		id := m.push(t, s, dir).ID
		other := strings.Replace(s.url, "some/prefix", "another place", 1)
		before := s.received()
		m.must(t, "sync", "--from", s.url, "--to", other, "--all")
		if sent := s.received() - before; sent > 64<<10 {
			t.Errorf("%d bytes were sent", sent)
		}
		m.must(t, "verify", "--store", other, "--id", id)
		out := filepath.Join(t.TempDir(), "out")
		m.must(t, "pull", "--store", other, "--id", id, out)
		checkSame(t, dir, out)
	})
}

// Machines that push, sync and collect at once are not in each other's way, and nothing that a manifest names is lost.
func TestSnapshotsOfManyMachinesAtOnce(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, s *store) {
		sizes := map[string]int{"shared/large": 10 << 20}
		for i := range 40 {
			sizes[fmt.Sprintf("shared/%d", i)] = 1000 + i
		}
		first := newMover(t, s)
		dir := newFiles(t, sizes)
		var group sync.WaitGroup
		for i := range 4 { // they share nearly all
			m, own := newMover(t, s), filepath.Join(t.TempDir(), "own")
			run(t, "cp", "-a", dir, own)
			writeFile(t, filepath.Join(own, "own"), fmt.Sprint(i))
			group.Go(func() {
				for range 2 {
					m.must(t, "push", "--store", s.url, "--name", fmt.Sprint("machine ", i), own)
				}
			})
		}
		group.Go(func() {
			if o := first.try(t, "gc", "--store", s.url); o.status != 0 && !strings.Contains(o.stderr, "in use") {
				t.Errorf("gc: %s", o)
			}
		})
		group.Wait()
		if n := checkNothingDangles(t, s, true); n != 4 {
			t.Errorf("there are %d manifests, want 4", n)
		}
		first.must(t, "gc", "--store", s.url)
		checkNothingDangles(t, s, true)
		if left := s.list(t, ".pier/pushes/"); len(left) > 0 {
			t.Errorf("these announce work that is over: %v", left)
		}
	})
}
