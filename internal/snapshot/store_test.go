package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pier/internal/oci"
)

// A push stores each content once, the manifest last, and then nothing more.
func TestPush(t *testing.T) {
	m := newMemory()
	s := &Store{Bucket: m, Jobs: 4}
	root := example(t)
	sum := pushed(t, s, root, Options{Origin: Revision{Action: "push", From: root}})
	if want := (Summary{ID: sum.ID, Files: 5, Bytes: 60009, Objects: 4, Sent: 4, SentSize: 60005, Saved: 4}); sum != want {
		t.Errorf("got %+v, want %+v", sum, want)
	}
	manifest := slices.Index(m.order, sum.ID.ManifestKey())
	for _, key := range m.keys(objectsPrefix) {
		if at := slices.Index(m.order, key); at < 0 || at > manifest {
			t.Errorf("%s was put as number %d, the manifest as %d", key, at, manifest)
		}
	}
	if left := m.keys(holdsPrefix); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	m.reset()
	again := pushed(t, s, root, Options{Origin: Revision{Action: "push", From: root}})
	if again.Sent != 0 || again.Skipped != 4 || again.ID != sum.ID || m.calls["Put"] > 0 || m.calls["Stat"] != 1 || m.calls["List"] != 1 || m.calls["Open"] > 0 {
		t.Errorf("again: %+v, by %v", again, m.calls)
	}
	must(t, os.WriteFile(filepath.Join(root, "a"), []byte("changed"), 0o644))
	m.reset()
	if sum := pushed(t, s, root, Options{DryRun: true}); sum.Sent != 1 || sum.SentSize != 7 || m.calls["Put"] > 0 || !sum.DryRun {
		t.Errorf("a dry run: %+v, by %v", sum, m.calls)
	}
	if sum := pushed(t, s, root, Options{}); sum.Sent != 1 || sum.SentSize != 7 {
		t.Errorf("one changed: %+v", sum)
	}
}

func TestPushRepairs(t *testing.T) {
	m := newMemory()
	s := &Store{Bucket: m, Jobs: 4}
	root := example(t)
	sum := pushed(t, s, root, Options{})
	flipped, cut, gone := digestOf([]byte("same")).ObjectKey(), digestOf([]byte("A")).ObjectKey(), digestOf(nil).ObjectKey()
	m.flip(t, flipped)
	m.objects[cut] = nil
	delete(m.objects, gone)
	v, err := s.Verify(t.Context(), sum.ID, LevelFull)
	must(t, err)
	kinds := make(map[string]FaultKind)
	for _, f := range v.Faults {
		kinds[f.Key] = f.Fault
	}
	if len(v.Faults) != 3 || kinds[flipped] != FaultContent || kinds[cut] != FaultSize || kinds[gone] != FaultMissing || v.Needed != 5 {
		t.Errorf("got %+v", v)
	}
	if !errors.Is(v.Err(), oci.ErrDigestMismatch) {
		t.Errorf("the verdict's error is %v", v.Err())
	}
	for level, want := range map[Level]int{LevelList: 1, LevelSize: 2} {
		if v, err := s.Verify(t.Context(), sum.ID, level); err != nil || len(v.Faults) != want {
			t.Errorf("%s: %+v, %v, want %d faults", level, v.Faults, err, want)
		}
	}
	if got := pushed(t, s, root, Options{}); got.Sent != 0 {
		t.Errorf("without being asked for: %+v", got)
	}
	if got := pushed(t, s, root, Options{Repair: true}); got.Sent != 3 || got.Repaired != 2 || got.Skipped != 1 {
		t.Errorf("got %+v", got)
	}
	if v, err := s.Verify(t.Context(), sum.ID, LevelFull); err != nil || len(v.Faults) > 0 {
		t.Errorf("after that: %+v, %v", v.Faults, err)
	}
	for _, f := range v.Faults {
		if f.Key == flipped && !slices.Equal(f.Paths, []string{"./b c/d e", "./b c/f"}) {
			t.Errorf("%s is in %q", f.Key, f.Paths)
		}
	}
	delete(m.objects, sum.ID.ManifestKey()) // as when a push was cut: what has another size is replaced
	m.objects[cut] = []byte("longer")
	if got := pushed(t, s, root, Options{}); got.Sent != 1 || got.Repaired != 1 {
		t.Errorf("got %+v", got)
	}
}

// A push that fails in the middle leaves no manifest, and the next one sends the rest.
func TestPushGoesOn(t *testing.T) {
	m := newMemory()
	s := &Store{Bucket: m, Jobs: 1}
	root := example(t)
	fault := errors.New("broken")
	n := 0
	m.fault = func(method, key string) error {
		if method == "Put" && strings.HasPrefix(key, objectsPrefix) {
			if n++; n == 3 {
				return fault
			}
		}
		return nil
	}
	if _, err := s.Push(t.Context(), Scanner{}, root, Options{}); !errors.Is(err, fault) {
		t.Errorf("got %v", err)
	}
	if left := m.keys(manifestsPrefix); len(left) > 0 {
		t.Errorf("manifests: %v", left)
	}
	if left := m.keys(holdsPrefix); len(left) > 0 {
		t.Errorf("announcements: %v", left)
	}
	if sum := pushed(t, s, root, Options{}); sum.Sent != 2 || sum.Skipped != 2 {
		t.Errorf("then %+v", sum)
	}
}

// What a file has become since its digest was found is stored nowhere.
func TestPushOfWhatChanges(t *testing.T) {
	s, dir := directoryStore(t)
	root := example(t)
	w, err := Scanner{}.walk(t.Context(), root)
	must(t, err)
	path := filepath.Join(root, "b c/f")
	must(t, os.Remove(filepath.Join(root, "b c/d e")))
	must(t, os.WriteFile(path, []byte("SAME"), 0o644))
	from := make(files)
	for _, f := range w.found {
		from[f.Digest] = file{root, f}
	}
	if _, err := s.send(t.Context(), w.manifest(), from, Options{}, nil); !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v, want ErrChanged of %s", err, path)
	}
	for f := range contents(t, dir) {
		if strings.Contains(f, digestOf([]byte("same")).ObjectKey()) || strings.Contains(f, "/.manifests/") {
			t.Errorf("there is %s", f)
		}
	}
}

// Objects are listed, or asked for one by one, whichever takes fewer requests.
func TestSizes(t *testing.T) {
	m := newMemory()
	s := &Store{Bucket: m}
	var objects []object
	for i := range 20_000 {
		text := fmt.Sprint(i)
		o := object{digestOf([]byte(text)), int64(len(text))}
		if m.objects[o.key()] = []byte(text); i%100 == 0 {
			objects = append(objects, o)
		}
	}
	m.objects[objectsPrefix+"zzz/foreign"] = []byte("x")
	for _, c := range []struct{ wanted, lists, stats int }{{2, 0, 2}, {10, 1, 10}, {200, 21, 0}} {
		m.reset()
		got, err := s.sizes(t.Context(), append(objects[:c.wanted-1:c.wanted-1], object{digestOf([]byte("none")), 4}))
		if err != nil || len(got) != c.wanted-1 {
			t.Errorf("%d wanted: got %d, %v", c.wanted, len(got), err)
		}
		if m.calls["List"] != c.lists || m.calls["Stat"] != c.stats {
			t.Errorf("%d wanted: %v, want %+v", c.wanted, m.calls, c)
		}
	}
	for key, want := range map[string]int{objectsPrefix + "fff/fff/fff": 1000, objectsPrefix + "7ff/fff/000": 2000, objectsPrefix + "00f/fff/fff": 256000} {
		if got := estimate(1000, key); got < want*9/10 || got > want*11/10 {
			t.Errorf("estimate by %s: %d, want about %d", key, got, want)
		}
	}
}

// A large object comes in ranges, several at once, all in order.
func TestRanges(t *testing.T) {
	m := newMemory()
	s := &Store{Bucket: m, Jobs: 4}
	for _, size := range []int{2*rangeSize + 1, 5 * rangeSize, 7*rangeSize - 3} {
		content := random(byte(size), size)
		o := object{digestOf([]byte(content)), int64(size)}
		m.objects[o.key()] = []byte(content)
		m.reset()
		for _, offset := range []int64{0, 10} {
			r, err := s.read(t.Context(), o, offset)
			must(t, err)
			var b bytes.Buffer
			if _, err := b.ReadFrom(r); err != nil || b.String() != content[offset:] {
				t.Errorf("%d bytes from %d: others came, %v", size, offset, err)
			}
			must(t, r.Close())
		}
		if m.calls["Open"] < 2*size/rangeSize {
			t.Errorf("%d bytes by %v", size, m.calls)
		}
		cut := errors.New("cut")
		m.fault = func(method, _ string) error {
			if method == "Open" && m.calls["Open"]%5 == 3 {
				return cut
			}
			return nil
		}
		for range 4 { // and whoever leaves early gives back all that it had
			r, err := s.read(t.Context(), o, 0)
			must(t, err)
			_, _ = r.Read(make([]byte, 100))
			must(t, r.Close())
		}
		m.calls["Open"] = 0
		r, err := s.read(t.Context(), o, 0)
		must(t, err)
		if _, err := new(bytes.Buffer).ReadFrom(r); !errors.Is(err, cut) {
			t.Errorf("%d bytes, cut: %v", size, err)
		}
		must(t, r.Close())
		m.fault = nil
	}
	if len(s.pool.free) != maxRanges {
		t.Errorf("%d buffers are free, want %d", len(s.pool.free), maxRanges)
	}
}

func TestSync(t *testing.T) {
	from, m := newMemory(), newMemory()
	a, b := &Store{Bucket: from, Jobs: 4}, &Store{Bucket: m, Jobs: 4}
	root := example(t)
	sum := pushed(t, a, root, Options{})
	if got, err := b.Sync(t.Context(), a, sum.ID, Options{}); err != nil || got.Sent != 4 || got.ID != sum.ID {
		t.Errorf("got %+v, %v", got, err)
	}
	out := t.TempDir()
	pulled(t, b, sum.ID, out, PullOptions{})
	same(t, out, root)
	for name, damage := range map[string]func(key string){
		"flipped": func(key string) { from.flip(t, key) },
		"shorter": func(key string) { from.objects[key] = from.objects[key][1:] },
		"longer":  func(key string) { from.objects[key] = append(from.objects[key], 0) },
		"missing": func(key string) { delete(from.objects, key) },
	} {
		t.Run(name, func(t *testing.T) {
			*from = *newMemory()
			pushed(t, a, root, Options{})
			c := &Store{Bucket: newMemory(), Jobs: 1}
			o := object{digestOf([]byte("same")), 4}
			damage(o.key())
			want := oci.ErrDigestMismatch
			if name == "missing" {
				want = oci.ErrNotFound
			}
			_, err := c.Sync(t.Context(), a, sum.ID, Options{})
			if !errors.Is(err, want) || !strings.Contains(err.Error(), string(o.digest[9:])) || !strings.Contains(err.Error(), from.String()) {
				t.Errorf("got %v, want one that names the object and the store", err)
			}
			if got := c.Bucket.(*memory); len(got.keys(manifestsPrefix)) > 0 || slices.Contains(got.keys(""), o.key()) {
				t.Errorf("there is %v", got.keys(""))
			}
		})
	}
}

// A manifest that is not what its ID says is refused, whoever asks.
func TestForeignManifests(t *testing.T) {
	m := newMemory()
	s := &Store{Bucket: m}
	id := digestOf([]byte("some"))
	empty := string(digestOf(nil))
	for name, text := range map[string]string{
		"other ID":  "D 755 " + empty + " 0 ./\n",
		"no text":   "",
		"traversal": "D 755 " + empty + " 0 ./\nF 644 " + empty + " 0 ./../x\n",
		"absolute":  "F 644 " + empty + " 0 /etc/passwd\n",
		"garbage":   "\x00\xff",
	} {
		id := id
		if name != "other ID" {
			id = digestOf([]byte(text))
		}
		m.objects[id.ManifestKey()] = []byte(text)
		out := filepath.Join(t.TempDir(), "out")
		_, err := s.Pull(t.Context(), id, out, PullOptions{})
		if !errors.Is(err, ErrManifest) && !errors.Is(err, oci.ErrDigestMismatch) {
			t.Errorf("%s: got %v", name, err)
		}
		if _, err := os.Stat(out); err == nil {
			t.Errorf("%s: something was written", name)
		}
	}
	if _, err := s.Manifest(t.Context(), digestOf([]byte("none"))); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("none: %v", err)
	}
}

// A store that cannot be asked is no verdict.
func TestVerifyOfStoreThatIsAway(t *testing.T) {
	m := newMemory()
	s := &Store{Bucket: m, Jobs: 2}
	sum := pushed(t, s, example(t), Options{})
	m.fault = func(method, key string) error {
		if method == "Open" && strings.HasPrefix(key, objectsPrefix) {
			return oci.ErrUnavailable
		}
		return nil
	}
	if v, err := s.Verify(t.Context(), sum.ID, LevelFull); !errors.Is(err, oci.ErrUnavailable) || len(v.Faults) > 0 {
		t.Errorf("got %+v, %v", v, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	m.fault = nil
	if v, err := s.Verify(ctx, sum.ID, LevelFull); err == nil {
		t.Errorf("out of time: got %+v and no error", v)
	}
}

func TestRevisions(t *testing.T) {
	s, _ := directoryStore(t)
	root := example(t)
	names := []string{"", "release", "a/b:c ../ü\x01", strings.Repeat("long", 150), "."}
	for _, name := range names {
		for range 2 { // the same again is no news
			pushed(t, s, root, Options{Origin: Revision{Action: "push", Name: name, From: root}})
		}
	}
	must(t, os.WriteFile(filepath.Join(root, "a"), []byte("news"), 0o644))
	last := pushed(t, s, root, Options{Origin: Revision{Action: "push", Name: "release", From: root}})
	for _, name := range names {
		from := ""
		if name == "" {
			from = root
		}
		got, err := s.Revisions(t.Context(), name, from)
		want := 1
		if name == "release" {
			want = 2
		}
		if err != nil || len(got) != want || got[0].Name != name || got[0].From != root || got[0].User == "" || got[0].Files != 5 || time.Since(got[0].Time) > time.Hour {
			t.Errorf("%.20q: got %+v, %v", name, got, err)
		}
		if name == "release" && got[1].ID != last.ID {
			t.Errorf("the last is %s, want %s", got[1].ID, last.ID)
		}
	}
	if all, err := s.Revisions(t.Context(), "", ""); err != nil || len(all) != len(names)+1 {
		t.Errorf("in all %d, %v", len(all), err)
	}
	must(t, s.Bucket.Put(t.Context(), revisionsPrefix+"x/y", 3, strings.NewReader("{}x"), false))
	if _, err := s.Revisions(t.Context(), "", ""); err == nil || !strings.Contains(err.Error(), revisionsPrefix+"x/y") {
		t.Errorf("one that is none: %v", err)
	}
}

func TestDiff(t *testing.T) {
	a, b := example(t), example(t)
	must(t, os.WriteFile(filepath.Join(b, "a"), []byte("other"), 0o644))
	must(t, os.Remove(filepath.Join(b, "b c/f")))
	must(t, os.Chmod(filepath.Join(b, "empty"), 0o600))
	write(t, b, map[string]string{"new/x": "1"})
	m, err := Scanner{}.Scan(t.Context(), a)
	must(t, err)
	n, err := Scanner{}.Scan(t.Context(), b)
	must(t, err)
	want := []Change{{"content", "./a", 1, 5}, {"removed", "./b c/f", 4, 0}, {"mode", "./empty", 0, 0}, {"added", "./new/", 0, 1}, {"added", "./new/x", 0, 1}}
	if got := Diff(m, n); !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := Diff(m, m); len(got) != 0 {
		t.Errorf("of the same: %+v", got)
	}
}

// Into a directory small files go as they are read, once each, and what a push says of itself is the same.
func TestPushIntoDirectory(t *testing.T) {
	s, dir := directoryStore(t)
	root := example(t)
	must(t, os.WriteFile(filepath.Join(root, "large"), []byte(random(1, atOnce+1)), 0o644))
	s.Meter = &Meter{}
	sum := pushed(t, s, root, Options{})
	size := int64(60009 + atOnce + 1)
	if want := (Summary{ID: sum.ID, Files: 6, Bytes: size, Objects: 5, Sent: 5, SentSize: size - 4, Saved: 4}); sum != want {
		t.Errorf("got %+v, want %+v", sum, want)
	}
	if _, done, _ := s.Meter.Read(); done != atOnce+1 {
		t.Errorf("%d bytes were sent after the tree was read, want those of the large file", done)
	}
	if again := pushed(t, s, root, Options{}); again.Sent != 0 || again.Skipped != 5 || again.Saved != size {
		t.Errorf("again: %+v", again)
	}
	must(t, os.WriteFile(filepath.Join(root, "a"), []byte("news"), 0o644))
	before := fmt.Sprint(contents(t, dir))
	if dry := pushed(t, s, root, Options{DryRun: true}); dry.Sent != 1 || fmt.Sprint(contents(t, dir)) != before {
		t.Errorf("a dry run: %+v, or something was written", dry)
	}
	if got := pushed(t, s, root, Options{}); got.Sent != 1 || got.SentSize != 4 || got.Skipped != 4 {
		t.Errorf("one changed: %+v", got)
	}
	damaged := s.Bucket.(interface{ Path(key string) string }).Path(digestOf([]byte("same")).ObjectKey())
	must(t, os.WriteFile(damaged, []byte("no"), 0o644))
	if got := pushed(t, s, root, Options{}); got.Sent != 0 && got.Sent != 1 {
		t.Errorf("one was cut: %+v", got)
	}
	if v, err := s.Verify(t.Context(), pushed(t, s, root, Options{}).ID, LevelFull); err != nil || len(v.Faults) > 0 {
		t.Errorf("in the end %+v, %v", v.Faults, err)
	}
	for name := range contents(t, dir) {
		if strings.Contains(name, "/pushes/") || strings.Contains(name, "/partial/") {
			t.Errorf("left: %s", name)
		}
	}
}
