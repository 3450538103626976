package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/zeebo/blake3"

	"pier/internal/snapshot"
)

// moving is the suite of snapshots.
type moving struct {
	*bench
	set    snapshotSettings
	fast   string // a directory in memory
	skopeo string
	rclone string
}

// snapshotSettings say how much is measured of snapshots.
type snapshotSettings struct {
	layers int   // of the layout
	layer  int64 // bytes of each
	files  int   // of the tree
	huge   int64 // bytes of the sparse file
	rounds int
}

func snapshotSettingsOf(quick bool) snapshotSettings {
	if quick {
		return snapshotSettings{layers: 5, layer: 2 * mb, files: 500, huge: 64 << 20, rounds: 2}
	}
	return snapshotSettings{layers: 30, layer: 1000 * mb / 30, files: 20_000, huge: 8 << 30, rounds: 5}
}

func snapshotSuite() suite {
	return suite{
		name: "snapshot", title: "Snapshots", command: "make bench-snapshot", takes: "five minutes", timeout: 30 * time.Minute,
		parts: []string{"layout", "tree", "memory"}, measure: measureSnapshots,
		reading: `- Sources, stores and copies are in memory (tmpfs), so that what is measured is the work, and not a disk; but for the sparse file,
  which is on disk. Each round copies into directories that were not there before; nothing is removed before all is measured.
- A **cold push** is one into an empty store, of files that no digest is remembered of: they are read twice, digested twice, and written.
  What bounds it is ` + "`cp -r`" + ` of the same directory, plus one pass that reads all and digests it with BLAKE3, file by file, by the same library.
- The store has three directories for each object, as snapdir's stores have: of small files, making these is most of the work.
- skopeo copies the layout to another one (oci: to oci:), and digests with SHA-256. rclone copies the directory to another one, and
  compares times and sizes; it digests nothing.
- A **re-push** is the same push again, after files have been left alone for two seconds: it reads names and times.
- Memory is the most that was resident of the process, which the kernel says when it has ended.
`,
	}
}

func measureSnapshots(ctx context.Context, b *bench) (err error) {
	m := &moving{bench: b, set: snapshotSettingsOf(b.quick)}
	if err := b.build(ctx); err != nil {
		return err
	}
	if m.skopeo, err = b.tool(ctx, "skopeo", "--version"); err != nil {
		return err
	}
	if m.rclone, err = b.tool(ctx, "rclone", "version"); err != nil {
		return err
	}
	if m.fast, err = os.MkdirTemp("/dev/shm", "pier-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(m.fast)) }()
	return b.measure(ctx, []part{{"layout", m.layout}, {"tree", m.tree}, {"memory", m.memory}})
}

// A job is how long a program took, how long processors were at it, and how many bytes of it were resident at most.
type job struct {
	effort
	peak float64
}

// do runs a program to its end.
func (m *moving) do(ctx context.Context, args ...string) (j job, out []byte, err error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = append(os.Environ(), "HOME="+m.fast, "XDG_CACHE_HOME="+filepath.Join(m.fast, "cache"), "AWS_ACCESS_KEY_ID=bench", "AWS_SECRET_ACCESS_KEY=benchsecret")
	start := time.Now()
	if err := cmd.Run(); err != nil {
		return j, nil, fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	j.effort = effort{time.Since(start), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}
	const maxrssUnit = 1024 // getrusage(2)
	j.peak = float64(cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss) * maxrssUnit
	return j, stdout.Bytes(), nil
}

// push pushes a directory, and says what it did.
func (m *moving) push(ctx context.Context, store, dir string) (j job, sum snapshot.Summary, err error) {
	j, out, err := m.do(ctx, m.pier, "snapshot", "push", "--json", "--quiet", "--store", store, dir)
	if err != nil {
		return j, sum, err
	}
	return j, sum, json.Unmarshal(out, &sum)
}

// runBlake3 is the pass that a push is compared with: it reads the files of a directory, one after the other, and digests them.
func runBlake3(_ context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("usage: bench blake3 DIRECTORY")
	}
	buf := make([]byte, 256<<10)
	return filepath.WalkDir(args[0], func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		h := blake3.New()
		if _, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, buf); err != nil {
			return err
		}
		h.Sum(nil)
		return nil
	})
}

// A moved is one round.
type moved struct{ cp, pass, push, skopeo, rclone, pull job }

func (r moved) bounds() float64 { return in(r.push.wall, r.cp.wall+r.pass.wall) }

// round moves a directory in each way, all into new directories.
func (m *moving) round(ctx context.Context, i int, dir string) (r moved, err error) {
	self, err := os.Executable()
	if err != nil {
		return r, err
	}
	fresh := func(kind string) string { return fmt.Sprintf("%s-%s%d", dir, kind, i) }
	one := func(j *job, args ...string) func() error {
		return func() (err error) {
			*j, _, err = m.do(ctx, args...)
			return err
		}
	}
	steps := []func() error{
		one(&r.cp, "cp", "-r", dir, fresh("cp")),
		one(&r.pass, self, "blake3", dir),
		func() (err error) {
			if err = os.RemoveAll(filepath.Join(m.fast, "cache")); err == nil {
				r.push, _, err = m.push(ctx, "file://"+fresh("store"), dir)
			}
			return err
		},
		one(&r.rclone, m.rclone, "copy", "--config", "", dir, fresh("rclone")),
	}
	if _, err := os.Stat(filepath.Join(dir, v1.ImageIndexFile)); err == nil {
		steps = append(steps, one(&r.skopeo, m.skopeo, "--insecure-policy", "copy", "oci:"+dir+":"+tag, "oci:"+fresh("skopeo")+":"+tag))
	}
	if err := inTurn(i, steps...); err != nil {
		return r, err
	}
	_, out, err := m.do(ctx, m.pier, "snapshot", "id", dir)
	if err != nil {
		return r, err
	}
	r.pull, _, err = m.do(ctx, m.pier, "snapshot", "pull", "--quiet", "--store", "file://"+fresh("store"), "--id", strings.TrimSpace(string(out)), fresh("pull"))
	if err != nil {
		return r, err
	}
	if diff, err := exec.CommandContext(ctx, "diff", "-r", dir, fresh("pull")).CombinedOutput(); err != nil {
		return r, fmt.Errorf("what was pulled differs: %w\n%s", err, diff)
	}
	for _, kind := range []string{"cp", "rclone", "skopeo", "pull"} { // the first store stays
		if err := os.RemoveAll(fresh(kind)); err != nil {
			return r, err
		}
	}
	return r, nil
}

// rounds measures and reports what happens to a directory.
func (m *moving) rounds(ctx context.Context, dir string) error {
	var all []moved
	for i := range m.set.rounds {
		m.say("%s, %d of %d", filepath.Base(dir), i+1, m.set.rounds)
		r, err := m.round(ctx, i, dir)
		if err != nil {
			return err
		}
		all = append(all, r)
	}
	rep := &m.report
	rep.check("cold push, to cp -r and one BLAKE3 pass", ratio, atMost(1.2), collect(all, moved.bounds))
	kinds := []struct {
		name string
		of   func(moved) job
	}{
		{"cp -r", func(r moved) job { return r.cp }}, {"one BLAKE3 pass", func(r moved) job { return r.pass }},
		{"cold push", func(r moved) job { return r.push }}, {"pull", func(r moved) job { return r.pull }},
		{"skopeo copy oci: to oci:", func(r moved) job { return r.skopeo }}, {"rclone copy", func(r moved) job { return r.rclone }},
	}
	for _, k := range kinds {
		if k.of(all[0]).wall == 0 {
			continue
		}
		rep.note(k.name, fmt.Sprintf("%s; CPU %s; memory %s",
			collect(all, func(r moved) float64 { return in(k.of(r).wall, time.Second) }).text(seconds),
			collect(all, func(r moved) float64 { return in(k.of(r).cpu, time.Second) }).text(seconds),
			collect(all, func(r moved) float64 { return k.of(r).peak / mb }).text(megabytes)))
	}
	rep.check("memory of the cold push", megabytes, never(64), collect(all, func(r moved) float64 { return r.push.peak / mb }))
	rep.check("memory of the pull", megabytes, never(64), collect(all, func(r moved) float64 { return r.pull.peak / mb }))
	return nil
}

// again measures pushes of a directory that did not change, and after change one whose changed bytes are these.
func (m *moving) again(ctx context.Context, dir string, limit float64, change func(round int) (objects int, size int64, err error)) error {
	store := "file://" + dir + "-store0"
	if err := sleep(ctx, 2500*time.Millisecond); err != nil { // digests of what is younger are not remembered
		return err
	}
	if _, _, err := m.push(ctx, store, dir); err != nil {
		return err
	}
	var unchanged, objects, size series
	for range m.set.rounds * 2 {
		j, sum, err := m.push(ctx, store, dir)
		if err != nil {
			return err
		}
		if sum.Sent != 0 {
			return fmt.Errorf("re-push sent %d objects", sum.Sent)
		}
		unchanged = append(unchanged, in(j.wall, time.Second))
	}
	for i := range m.set.rounds {
		wantObjects, wantSize, err := change(i)
		if err != nil {
			return err
		}
		_, sum, err := m.push(ctx, store, dir)
		if err != nil {
			return err
		}
		objects = append(objects, float64(sum.Sent-wantObjects))
		size = append(size, float64(sum.SentSize-wantSize))
	}
	m.report.check("re-push, unchanged", seconds, never(limit), unchanged)
	m.report.check("one changed: objects sent beside it", count, exactly(0), objects)
	m.report.check("one changed: bytes sent beside it", count, exactly(0), size)
	return nil
}

func (m *moving) layout(ctx context.Context) error {
	m.report.section("An OCI layout of %d layers, %d MB", m.set.layers, int64(m.set.layers)*m.set.layer/mb)
	dir := filepath.Join(m.fast, "layout")
	l := layoutDir{dir: dir}
	for i := range m.set.layers {
		if err := l.add(byte(i), m.set.layer); err != nil {
			return err
		}
	}
	if _, err := l.finish(); err != nil {
		return err
	}
	if err := m.rounds(ctx, dir); err != nil {
		return err
	}
	return m.again(ctx, dir, 0.3, func(round int) (int, int64, error) {
		last := len(l.layers) - 1
		if err := os.Remove(l.blob(l.layers[last].Digest)); err != nil {
			return 0, 0, err
		}
		l.layers = l.layers[:last]
		if err := l.add(byte(100+round), m.set.layer); err != nil {
			return 0, 0, err
		}
		small, err := l.finish() // config, manifest and index change with it
		return 4, m.set.layer + small, err
	})
}

func (m *moving) tree(ctx context.Context) error {
	dir := filepath.Join(m.fast, "tree")
	random := rand.NewChaCha8([32]byte{1})
	size := int64(0)
	for i := range m.set.files {
		name := filepath.Join(dir, fmt.Sprintf("%03d/%02d/%d", i/400, i/20%20, i))
		if i%20 == 0 {
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				return err
			}
		}
		content := make([]byte, 200+random.Uint64()%8000)
		_, _ = random.Read(content) // never fails
		size += int64(len(content))
		if err := os.WriteFile(name, content, 0o644); err != nil {
			return err
		}
	}
	m.report.section("A tree of %d files of 200 B to 8.2 kB, %d MB", m.set.files, size/mb)
	if err := m.rounds(ctx, dir); err != nil {
		return err
	}
	return m.again(ctx, dir, 0.3, func(round int) (int, int64, error) {
		content := fmt.Sprintf("changed %d", round)
		return 1, int64(len(content)), os.WriteFile(filepath.Join(dir, "000/00/1"), []byte(content), 0o644)
	})
}

// memory has a file of many bytes go to stores of each kind and back.
func (m *moving) memory(ctx context.Context) (err error) {
	m.report.section("A sparse file of %d MB", m.set.huge/mb)
	dir := filepath.Join(m.dir, "huge")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(m.set.huge); err != nil {
		return err
	}
	if _, err := f.WriteAt([]byte("not all of it is zero"), m.set.huge/2); err != nil {
		return err
	}
	s3, stop, err := m.startS3(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	for _, store := range []struct{ kind, url string }{{"file", "file://" + filepath.Join(m.dir, "huge-store")}, {"s3", s3}} {
		m.say("a sparse file, to %s and back", store.kind)
		push, sum, err := m.push(ctx, store.url, dir)
		if err != nil {
			return err
		}
		out := filepath.Join(m.dir, "huge-"+store.kind)
		pull, _, err := m.do(ctx, m.pier, "snapshot", "pull", "--quiet", "--store", store.url, "--id", string(sum.ID), out)
		if err != nil {
			return err
		}
		m.report.check("push to "+store.kind+"://, memory", megabytes, never(64), series{push.peak / mb})
		m.report.check("pull from "+store.kind+"://, memory", megabytes, never(64), series{pull.peak / mb})
		m.report.note("push to "+store.kind+"://, and pull", fmt.Sprintf("%.1f s and %.1f s", push.wall.Seconds(), pull.wall.Seconds()))
		if err := os.RemoveAll(out); err != nil {
			return err
		}
	}
	return nil
}
