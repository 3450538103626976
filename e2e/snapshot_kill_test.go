//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What is killed is cut at as many points as this.
var kills = map[string]int{"file": 6, "s3": 6, "gs": 3}

const (
	largeFile  = 40 << 20
	largeFiles = 3
	smallFiles = 300
)

// newKillTree makes a directory of a few large files and many small ones.
func newKillTree(t *testing.T) string {
	t.Helper()
	sizes := make(map[string]int)
	for i := range largeFiles {
		sizes[fmt.Sprintf("large%d", i)] = largeFile
	}
	for i := range smallFiles {
		sizes[fmt.Sprintf("small/%d/%d", i%7, i)] = 100 + i
	}
	return newFiles(t, sizes)
}

// killed starts pier snapshot and kills it as soon as due says so, and reports whether it was still at work then.
func (m *mover) killed(t *testing.T, due func(at time.Duration) bool, args ...string) bool {
	t.Helper()
	cmd := m.command(args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	begin, ticker := time.Now(), time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case err := <-ended:
			if err != nil {
				t.Fatalf("pier snapshot %s: %v\n%s", strings.Join(args, " "), err, out.Bytes())
			}
			return false
		case <-ticker.C:
		}
		if at := time.Since(begin); due(at) || at > commandTimeout {
			_ = cmd.Process.Kill() // it may have ended
			return (<-ended) != nil
		}
	}
}

// killOften kills pier snapshot at random points, and calls check after each.
func killOften(t *testing.T, m *mover, kind string, check func(), args ...string) {
	t.Helper()
	ended := 0
	for n := range kills[kind] {
		after := 20*time.Millisecond + rand.N(600*time.Millisecond)
		if !m.killed(t, func(at time.Duration) bool { return at > after }, args...) {
			ended++
			t.Logf("point %d: it had ended after %v", n, after)
		}
		check()
	}
	if ended > kills[kind]/2 {
		t.Errorf("%d of %d were over before they were killed: this tests nothing", ended, kills[kind])
	}
}

// slowly is at what rate what is to be killed moves bytes: that it is not over before it is killed.
const slowly = "--limit-rate=50MiB"

// A push that is killed leaves no manifest of what is not there, and the next completes it.
func TestSnapshotPushIsKilled(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, s *store) {
		m := newMover(t, s)
		dir := newKillTree(t)
		push := []string{"push", "--store", s.url, slowly, dir}
		killOften(t, m, s.kind, func() { checkNothingDangles(t, s, false) }, push...)
		m.atOnce(t, "gc", "--store", s.url)
		sum := m.push(t, s, dir)
		checkNothingDangles(t, s, true)
		if left := partialBytes(s); left > 1<<20 { // small ones that were cut begin anew, under other names
			t.Errorf("%d bytes were left beside the objects", left)
		}
		m.must(t, "verify", "--store", s.url, "--id", sum.ID)
	})
}

// partialBytes is how much of objects on their way a directory has.
func partialBytes(s *store) (n int64) {
	files, _ := filepath.Glob(filepath.Join(s.dir, ".pier/partial/*")) // the pattern is right
	for _, name := range files {
		if info, err := os.Stat(name); err == nil {
			n += info.Size()
		}
	}
	return n
}

// atOnce is must for what must not wait for a process that is gone.
func (m *mover) atOnce(t *testing.T, args ...string) {
	t.Helper()
	begin := time.Now()
	m.must(t, args...)
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("pier snapshot %s took %v after another was killed", args[0], took)
	}
}

// A pull that is killed leaves files that are right or not there, and the next completes them.
func TestSnapshotPullIsKilled(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, s *store) {
		m := newMover(t, s)
		dir := newKillTree(t)
		id := m.push(t, s, dir).ID
		out := filepath.Join(t.TempDir(), "out")
		check := func() {
			for _, name := range []string{"large0", "large1", "large2", "small/3/3", "small/5/250"} {
				if b, err := os.ReadFile(filepath.Join(out, name)); err == nil && blake(b) != blake(readFile(t, filepath.Join(dir, name))) {
					t.Errorf("%s is there, and is not what it must be", name)
				}
			}
		}
		pull := []string{"pull", "--store", s.url, "--id", id, out}
		killOften(t, m, s.kind, check, append(pull, slowly)...)
		m.must(t, pull...)
		checkSame(t, dir, out)
	})
}

// A sync that is killed goes on, too, and keeps nothing on this machine.
func TestSnapshotSyncIsKilled(t *testing.T) {
	t.Parallel()
	for _, kinds := range [][2]string{{"file", "s3"}, {"s3", "file"}, {"file", "gs"}} {
		t.Run(kinds[0]+" to "+kinds[1], func(t *testing.T) {
			t.Parallel()
			from, to := startStore(t, kinds[0]), startStore(t, kinds[1])
			m := newMover(t, from, to)
			dir := newKillTree(t)
			id := m.push(t, from, dir).ID
			sync := []string{"sync", "--from", from.url, "--to", to.url, "--id", id}
			killOften(t, m, to.kind, func() { checkNothingDangles(t, to, false) }, append(sync, slowly)...)
			m.atOnce(t, append(sync, "--quiet")...)
			checkNothingDangles(t, to, true)
			m.must(t, "verify", "--store", to.url, "--id", id)
		})
	}
}

// A gc that is killed has not touched what stays, and is not in anybody's way.
func TestSnapshotGCIsKilled(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, s *store) {
		m, sizes := newMover(t, s), make(map[string]int)
		for i := range 600 {
			sizes[fmt.Sprintf("dir%d/%d", i%9, i)] = 50 + i
		}
		dir := newFiles(t, sizes)
		m.push(t, s, dir, "--name", "tree")
		if err := os.RemoveAll(filepath.Join(dir, "dir0")); err != nil {
			t.Fatal(err)
		}
		stays := m.push(t, s, newFiles(t, map[string]int{"a": 1000, "b/c": 2 << 20}), "--name", "tree").ID
		garbage := len(s.list(t, ".objects/")) - 2
		for range kills[s.kind] {
			point, before := rand.N(130), 0
			if s.front != nil {
				before = s.front.Count("DELETE", "")
			}
			m.killed(t, func(at time.Duration) bool {
				if s.front == nil {
					return at > 10*time.Millisecond+time.Duration(point)*300*time.Microsecond
				}
				return s.front.Count("DELETE", "") > before+point
			}, "gc", "--store", s.url, "--keep-last", "1")
			checkNothingDangles(t, s, false)
		}
		left := len(s.list(t, ".objects/")) - 2
		t.Logf("%d of %d objects to be removed were left", left, garbage)
		if s.front != nil && left == garbage {
			t.Error("it was killed before it began")
		}
		m.atOnce(t, "push", "--store", s.url, "--name", "another", dir)
		checkNothingDangles(t, s, true)
		m.atOnce(t, "gc", "--store", s.url, "--keep-last", "1")
		m.must(t, "verify", "--store", s.url, "--id", stays)
		want := 2 + len(readTree(t, dir).files)
		if got := len(s.list(t, ".objects/")); got != want {
			t.Errorf("there are %d objects, want %d", got, want)
		}
	})
}

// What was moved of one large object before a kill is not moved again, but for a few parts that were under way.
func TestSnapshotGoesOnInsideOfALargeObject(t *testing.T) {
	t.Parallel()
	const size, point, underWay = 64 << 20, 44 << 20, 28 << 20
	eachStore(t, func(t *testing.T, s *store) {
		m, dir := newMover(t, s), newFiles(t, map[string]int{"large": size})
		push := []string{"push", "--store", s.url, "--quiet", dir}
		if s.front == nil {
			testGoesOnInADirectory(t, m, s, size, point, push)
			return
		}
		halfway := func(moved func() int64) func(time.Duration) bool {
			return func(time.Duration) bool { return moved() > point }
		}
		again := func(moved func() int64, args []string) {
			before := moved()
			m.must(t, args...)
			t.Logf("%s: %.1f MB were moved, then %.1f MB, of %.1f MB", args[0], float64(before)/1e6, float64(moved()-before)/1e6, size/1e6)
			if got := moved() - before; got > size-point+underWay {
				t.Errorf("%s was killed after %d bytes, and moved %d bytes then", args[0], before, got)
			}
		}
		if !m.killed(t, halfway(s.received), append(push, slowly)...) {
			t.Fatal("push was not killed")
		}
		again(s.received, push)
		id := m.must(t, "id", dir)
		pull := []string{"pull", "--store", s.url, "--id", id, "--quiet", filepath.Join(t.TempDir(), "out")}
		s.front.Reset()
		if !m.killed(t, halfway(s.sent), append(pull, slowly)...) {
			t.Fatal("pull was not killed")
		}
		again(s.sent, pull)
		checkSame(t, dir, pull[len(pull)-1])
	})
}

// testGoesOnInADirectory sees by the time that it takes, as only what is written counts for the rate, how much of a file was
// written again.
func testGoesOnInADirectory(t *testing.T, m *mover, s *store, size, point int64, push []string) {
	t.Helper()
	if !m.killed(t, func(time.Duration) bool { return partialBytes(s) > point }, append(push, slowly)...) {
		t.Fatal("push was not killed")
	}
	left := partialBytes(s)
	begin := time.Now()
	m.must(t, append(push, "--limit-rate", "16MiB")...)
	took := time.Since(begin)
	t.Logf("%d of %d bytes were there, and the rest took %v", left, size, took)
	if whole := time.Duration(size) * time.Second / (16 << 20); took > whole*9/10 {
		t.Errorf("%d of %d bytes were there, and to write the rest took %v at 16 MiB/s", left, size, took)
	}
	checkNothingDangles(t, s, true)
}
