package overlay2

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pier/internal/oci"
)

func TestLayers(t *testing.T) {
	d := newData(t)
	base, app := []member{file("base", big)}, []member{file("app", "content"), file(".wh.base", "")}
	first := d.layer("", pack(t, base...), file("base", big))
	second := d.layer(first, pack(t, app...), file("app", "content"))
	again := d.layer("", pack(t, app...), file("app", "content")) // the same layer, on nothing
	d.must(os.Mkdir(filepath.Join(d.root, "image/overlay2/layerdb/sha256", first.Encoded()+"-0123abcd-removing"), 0o700))

	layers, err := d.store().Layers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(layers, func(a, b Layer) int { return len(a.Parent) - len(b.Parent) })
	want := map[oci.Digest]Layer{
		first:  {ChainID: first, DiffID: first, Size: int64(len(pack(t, base...)))},
		second: {ChainID: second, DiffID: again, Parent: first, Size: int64(len(pack(t, app...)))},
		again:  {ChainID: again, DiffID: again, Size: int64(len(pack(t, app...)))},
	}
	if len(layers) != len(want) {
		t.Fatalf("got %d layers, want %d", len(layers), len(want))
	}
	for _, l := range layers {
		w := want[l.ChainID]
		w.CacheID = l.CacheID // it names a directory that Tar finds
		if l != w || l.CacheID == "" {
			t.Errorf("got %+v, want %+v", l, w)
		}
	}
}

func TestDamagedEntryCostsThatEntryOnly(t *testing.T) {
	for name, damage := range map[string]func(d *data, dir string, l Layer) error{
		"no diff ID": func(_ *data, dir string, _ Layer) error { return os.Remove(dir + "diff") },
		"bad diff ID": func(_ *data, dir string, _ Layer) error {
			return os.WriteFile(dir+"diff", []byte("sha256:../.."), 0o600)
		},
		"another diff ID": func(_ *data, dir string, _ Layer) error { return os.WriteFile(dir+"diff", []byte(sha("e")), 0o600) },
		"huge diff ID":    func(_ *data, dir string, _ Layer) error { return os.Truncate(dir+"diff", 1<<40) },
		"another parent":  func(_ *data, dir string, _ Layer) error { return os.WriteFile(dir+"parent", []byte(sha("e")), 0o600) },
		"no cache ID":     func(_ *data, dir string, _ Layer) error { return os.Remove(dir + "cache-id") },
		"empty cache ID":  func(_ *data, dir string, _ Layer) error { return os.Truncate(dir+"cache-id", 0) },
		"hostile cache ID": func(_ *data, dir string, _ Layer) error {
			return os.WriteFile(dir+"cache-id", []byte("../../.."), 0o600)
		},
		"no record":         func(_ *data, dir string, _ Layer) error { return os.Remove(dir + recordName) },
		"half a record":     func(_ *data, dir string, _ Layer) error { return os.Truncate(dir+recordName, 50) },
		"no files":          func(d *data, _ string, l Layer) error { return os.RemoveAll(d.path(l, "")) },
		"a file for them":   func(d *data, _ string, l Layer) error { return replace(d.path(l, "")) },
		"a file for itself": func(_ *data, dir string, _ Layer) error { return replace(dir) },
	} {
		t.Run(name, func(t *testing.T) {
			d := newData(t)
			good, bad := file("good", big), file("bad", big)
			d.layer("", pack(t, bad), bad)
			_, l := d.only()
			chain := d.layer("", pack(t, good), good)
			s := d.store()
			if layers, err := s.Layers(t.Context()); len(layers) != 2 || err != nil {
				t.Fatalf("got %d layers and error %v, want 2", len(layers), err)
			}
			d.must(damage(d, filepath.Join(d.root, "image/overlay2/layerdb/sha256", l.ChainID.Encoded())+"/", l))
			for range 2 { // what is remembered is no other
				layers, err := s.Layers(t.Context())
				if len(layers) != 1 || layers[0].ChainID != chain || err == nil || !strings.Contains(err.Error(), l.ChainID.String()) {
					t.Errorf("got layers %v and error %v, want the good one and an error that names the other", layers, err)
				}
			}
		})
	}
}

func sha(s string) string { return "sha256:" + strings.Repeat(s, 64)[:64] }

func replace(name string) error {
	return errors.Join(os.RemoveAll(name), os.WriteFile(strings.TrimSuffix(name, "/"), nil, 0o600))
}

// Records are read once, and again when Docker pulled the layer again.
func TestRecordsAreReadOnce(t *testing.T) {
	d := newData(t)
	members := []member{file("a", big)}
	content := pack(t, members...)
	chain := d.layer("", content, members...)
	s, l := d.only()
	name := filepath.Join(d.root, "image/overlay2/layerdb/sha256", chain.Encoded(), recordName)
	info, err := os.Stat(name)
	d.must(err)
	record, err := os.ReadFile(name)
	d.must(err)
	d.must(os.WriteFile(name, bytes.Repeat([]byte("x"), len(record)), 0o600))
	d.must(os.Chtimes(name, info.ModTime(), info.ModTime()))
	if layers, err := s.Layers(t.Context()); err != nil || len(layers) != 1 || layers[0] != l {
		t.Errorf("got %v and error %v, want %v from memory", layers, err, l)
	}
	d.must(os.Chtimes(name, time.Now(), time.Now().Add(time.Second)))
	if layers, err := s.Layers(t.Context()); err == nil {
		t.Errorf("got %v, want an error for a record that is none", layers)
	}
	d.must(os.RemoveAll(filepath.Dir(name)))
	if layers, err := s.Layers(t.Context()); err != nil || len(layers) != 0 || len(s.measured) != 0 {
		t.Errorf("got %v, error %v, and %d records remembered, want nothing", layers, err, len(s.measured))
	}
}

func TestNotThereYet(t *testing.T) {
	root := filepath.Join(t.TempDir(), "docker")
	s, err := Open(Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	if s.Ready() {
		t.Error("ready without a store")
	}
	if layers, err := s.Layers(t.Context()); err != nil || len(layers) != 0 {
		t.Errorf("got layers %v and error %v", layers, err)
	}
	if images, err := s.Images(); err != nil || len(images) != 0 {
		t.Errorf("got images %v and error %v", images, err)
	}
	before := s.Changed()
	d := &data{t, root}
	content := pack(t, file("a", "b"))
	d.layer("", content, file("a", "b"))
	if !s.Ready() || !s.Changed().After(before) {
		t.Error("not ready, or not changed, when Docker came")
	}
	if layers, err := s.Layers(t.Context()); err != nil || len(layers) != 1 {
		t.Errorf("got layers %v and error %v, want one", layers, err)
	}
	if _, err := Open(Config{Root: "var/lib/docker"}); err == nil {
		t.Error("a relative data root was accepted")
	}
}

// asNobody runs f in a thread that may do what uid 65534 may.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("NOT TESTED without root: that other users are told what to do")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		_, _, _ = syscall.RawSyscall(syscall.SYS_SETFSUID, 65534, 0, 0)
		f()
	}()
	<-done
}

// Docker gives image the mode 0700, and its data root 0710.
func TestUnreadable(t *testing.T) {
	for name, prepare := range map[string]func(d *data) error{
		"data root": func(d *data) error { return os.Chmod(d.root, 0o700) },
		"images":    func(d *data) error { return os.Chmod(filepath.Join(d.root, "image"), 0o700) },
		"layers":    func(d *data) error { return os.Chmod(filepath.Join(d.root, "image/overlay2/layerdb/sha256"), 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			d := newData(t)
			d.must(os.Chmod(filepath.Dir(d.root), 0o755))
			d.must(filepath.WalkDir(d.root, func(p string, _ fs.DirEntry, err error) error { return errors.Join(err, os.Chmod(p, 0o755)) }))
			var err error
			asNobody(t, func() { _, err = Open(Config{Root: d.root}) })
			if err != nil {
				t.Fatalf("readable for all: %v", err)
			}
			d.must(prepare(d))
			asNobody(t, func() { _, err = Open(Config{Root: d.root}) })
			if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "CAP_DAC_READ_SEARCH") {
				t.Errorf("got error %v, want one that says what to do", err)
			}
		})
	}
}

func TestChanged(t *testing.T) {
	d := newData(t)
	d.write("image/overlay2/repositories.json", `{"Repositories":{}}`)
	old := func() { // so that what follows is no part of it
		for _, name := range []string{"repositories.json", "layerdb/sha256", "imagedb/content/sha256"} {
			at := time.Now().Add(-time.Hour)
			d.must(os.Chtimes(filepath.Join(d.root, "image/overlay2", name), at, at))
		}
	}
	s := d.store()
	old()
	last := s.Changed()
	if !s.Changed().Equal(last) {
		t.Error("changed, though nothing did")
	}
	var chain, id oci.Digest
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"layer", func() { chain = d.layer("", pack(t, file("a", "b")), file("a", "b")) }},
		{"image", func() { id = d.image(chain) }},
		{"name", func() {
			d.write("image/overlay2/.tmp-repositories.json1", `{"Repositories":{"app":{"app:v1":"`+id.String()+`"}}}`)
			d.must(os.Rename(filepath.Join(d.root, "image/overlay2/.tmp-repositories.json1"), filepath.Join(d.root, "image/overlay2/repositories.json")))
		}},
		{"image gone", func() {
			d.must(os.Remove(filepath.Join(d.root, "image/overlay2/imagedb/content/sha256", id.Encoded())))
		}},
		{"layer gone", func() { d.must(os.RemoveAll(filepath.Join(d.root, "image/overlay2/layerdb/sha256", chain.Encoded()))) }},
	} {
		old()
		s.Changed()
		before := s.Changed()
		step.do()
		after := s.Changed()
		if after.Equal(before) {
			t.Errorf("%s: no change seen", step.name)
		}
		// More of it may follow within one tick of the clock that gave the times.
		if s.Changed().Equal(after) {
			t.Errorf("%s: what came right after it would not be seen", step.name)
		}
	}
}
