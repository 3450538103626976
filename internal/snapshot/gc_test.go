package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pier/internal/bucket"
	"pier/internal/oci"
)

// several returns a store with n snapshots of each name, an hour apart, the last of each at the end.
func several(t *testing.T, n int, names ...string) (s *Store, m *memory, ids map[string][]Digest) {
	t.Helper()
	m, ids = newMemory(), make(map[string][]Digest)
	s = &Store{Bucket: m, Jobs: 2}
	for i := range n {
		for _, name := range names {
			root := write(t, t.TempDir(), map[string]string{"shared": "shared", "own": name + strings.Repeat("x", i)})
			ids[name] = append(ids[name], pushed(t, s, root, Options{Origin: Revision{Action: "push", Name: name, From: root}}).ID)
		}
		time.Sleep(time.Hour)
	}
	return s, m, ids
}

func TestGC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			name string
			keep Retention
			stay map[string]int // how many of the last ones
		}{
			{"all stay", Retention{}, map[string]int{"a": 4, "b": 4}},
			{"last", Retention{Last: 1}, map[string]int{"a": 1, "b": 1}},
			{"more than there are", Retention{Last: 9}, map[string]int{"a": 4, "b": 4}},
			{"older", Retention{Older: 150 * time.Minute}, map[string]int{"a": 2, "b": 2}},
			{"both", Retention{Last: 1, Older: 210 * time.Minute}, map[string]int{"a": 3, "b": 3}},
			{"both the other way", Retention{Last: 3, Older: time.Minute}, map[string]int{"a": 3, "b": 3}},
		} {
			s, m, ids := several(t, 4, "a", "b")
			m.objects[objectsPrefix+"not/of/ours"] = []byte("x")
			m.objects[incomingPrefix+"cut"] = []byte("x")
			garbage := digestOf([]byte("garbage")).ObjectKey()
			m.objects[garbage] = []byte("garbage")
			var want []Digest
			for name, n := range c.stay {
				want = append(want, ids[name][4-n:]...)
			}
			before := m.keys("")
			if dry, err := s.GC(t.Context(), c.keep, true); err != nil || len(dry.Snapshots) != 8-len(want) || !slices.Equal(m.keys(""), before) {
				t.Errorf("%s: a dry run would remove %d, %v", c.name, len(dry.Snapshots), err)
			}
			m.reset()
			got, err := s.GC(t.Context(), c.keep, false)
			if err != nil || got.Kept != len(want) || got.Objects != 1+8-len(want) {
				t.Errorf("%s: got %+v, %v", c.name, got, err)
			}
			for _, id := range want {
				if v, err := s.Verify(t.Context(), id, LevelFull); err != nil || len(v.Faults) > 0 {
					t.Errorf("%s: %s: %+v, %v", c.name, id, v.Faults, err)
				}
			}
			items, err := s.Snapshots(t.Context())
			if err != nil || len(items) != len(want) {
				t.Errorf("%s: %d snapshots stay, want %d, %v", c.name, len(items), len(want), err)
			}
			if revisions, err := s.Revisions(t.Context(), "", ""); err != nil || len(revisions) != len(want) {
				t.Errorf("%s: %d revisions stay, want %d, %v", c.name, len(revisions), len(want), err)
			}
			keys := m.keys("")
			if slices.Contains(keys, garbage) || slices.Contains(keys, incomingPrefix+"cut") || !slices.Contains(keys, objectsPrefix+"not/of/ours") {
				t.Errorf("%s: there is %v", c.name, keys)
			}
			first := slices.IndexFunc(m.order, func(key string) bool { return strings.HasPrefix(key, "-"+objectsPrefix) })
			for i, key := range m.order {
				if strings.HasPrefix(key, "-"+manifestsPrefix) && i > first {
					t.Errorf("%s: a manifest went after an object", c.name)
				}
			}
		}
	})
}

// What a manifest names that cannot be read is not known, and nothing may go.
func TestGCStops(t *testing.T) {
	s, m, id := memoryStore(t, example(t))
	garbage := digestOf([]byte("garbage")).ObjectKey()
	m.objects[garbage] = []byte("garbage")
	text := m.objects[id.ManifestKey()]
	for name, damage := range map[string]func(){
		"damaged":   func() { m.objects[id.ManifestKey()] = text[:len(text)-10] },
		"not a key": func() { m.objects[id.ManifestKey()] = text; m.objects[manifestsPrefix+"x"] = nil },
	} {
		damage()
		if _, err := s.GC(t.Context(), Retention{Last: 1}, false); err == nil {
			t.Errorf("%s: no error", name)
		}
		if !slices.Contains(m.keys(""), garbage) {
			t.Errorf("%s: objects were removed", name)
		}
	}
}

// announced puts an announcement of another process.
func announced(t *testing.T, m *memory, key string, o origin) {
	t.Helper()
	b, err := json.Marshal(o)
	must(t, err)
	must(t, m.Put(t.Context(), key, int64(len(b)), strings.NewReader(string(b)), true))
}

// ended is the origin of a process of this machine that is gone.
func ended(t *testing.T) origin {
	t.Helper()
	cmd := exec.Command("true")
	must(t, cmd.Run())
	o := newOrigin()
	o.Process = cmd.Process.Pid
	return o
}

func TestOriginGone(t *testing.T) {
	own, past := newOrigin(), ended(t)
	if own.gone() || own.Space == "" || own.Started == "" {
		t.Errorf("%+v is gone", own)
	}
	if !past.gone() {
		t.Errorf("%+v is not gone", past)
	}
	past.Process = own.Process // another process has its number now
	past.Started = "1"
	if !past.gone() {
		t.Errorf("%+v is not gone", past)
	}
	for _, o := range []origin{{}, {Process: 1 << 22, Space: own.Space}, {Process: 1 << 22, Started: "1", Space: "elsewhere"}} {
		if o.gone() {
			t.Errorf("%+v is gone, and nobody can know that", o)
		}
	}
}

// While a push is at work nothing is removed; one that is gone is not waited for, and one elsewhere until it is stale.
func TestGCWaits(t *testing.T) {
	root := example(t)
	past := ended(t)
	synctest.Test(t, func(t *testing.T) {
		s, m, _ := memoryStore(t, root)
		h, err := s.hold(t.Context())
		must(t, err)
		start := time.Now()
		if _, err := s.GC(t.Context(), Retention{}, false); !errors.Is(err, ErrBusy) || time.Since(start) > time.Minute {
			t.Errorf("beside a push: %v after %v", err, time.Since(start))
		}
		h.release()
		announced(t, m, holdsPrefix+"dead", past)
		start = time.Now()
		if _, err := s.GC(t.Context(), Retention{}, false); err != nil || time.Since(start) > time.Second {
			t.Errorf("after a push that was killed: %v after %v", err, time.Since(start))
		}
		announced(t, m, holdsPrefix+"elsewhere", origin{Host: "elsewhere", Process: 7})
		start = time.Now()
		if _, err := s.GC(t.Context(), Retention{}, false); err != nil || time.Since(start) < stale {
			t.Errorf("after a push elsewhere: %v after %v", err, time.Since(start))
		}
		if left := m.keys(".pier/"); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}

// A push waits while objects are removed, and one removal keeps another out.
func TestPushWaits(t *testing.T) {
	root := example(t)
	past := ended(t)
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		s := &Store{Bucket: m}
		h, err := s.holdAlone(t.Context())
		must(t, err)
		if _, err := s.GC(t.Context(), Retention{}, false); !errors.Is(err, ErrBusy) {
			t.Errorf("two removals: %v", err)
		}
		start := time.Now()
		go func() {
			time.Sleep(5 * time.Minute)
			h.release()
		}()
		if pushed(t, s, root, Options{}); time.Since(start) < 5*time.Minute || time.Since(start) > 6*time.Minute {
			t.Errorf("the push took %v", time.Since(start))
		}
		announced(t, m, removalKey, past)
		must(t, os.WriteFile(filepath.Join(root, "a"), []byte("news"), 0o644))
		start = time.Now()
		if pushed(t, s, root, Options{}); time.Since(start) > time.Second {
			t.Errorf("after a removal that was killed the push took %v", time.Since(start))
		}
		announced(t, m, removalKey, past)
		if _, err := s.GC(t.Context(), Retention{}, false); err != nil {
			t.Errorf("after a removal that was killed: %v", err)
		}
		announced(t, m, removalKey, origin{Host: "elsewhere"})
		time.Sleep(2 * stale)
		if _, err := s.GC(t.Context(), Retention{}, false); err != nil {
			t.Errorf("after a removal elsewhere: %v", err)
		}
	})
}

// Whoever was not heard of for long looks again at what is there.
func TestPushThatSlept(t *testing.T) {
	root := example(t)
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		s := &Store{Bucket: m, Jobs: 1}
		object := digestOf([]byte("A")).ObjectKey()
		m.objects[object] = []byte("A") // of a snapshot that is gone
		slept := false
		m.fault = func(method, key string) error {
			switch {
			case slept || method != "Put" || key == object:
			case strings.HasPrefix(key, holdsPrefix) && m.calls["Put"] > 1:
				return oci.ErrUnavailable // it cannot renew
			case strings.HasPrefix(key, objectsPrefix) && m.calls["Put"] > 3:
				m.mu.Unlock()
				time.Sleep(stale + time.Minute)
				m.mu.Lock()
				slept = true
				delete(m.objects, object) // as a removal did meanwhile
			}
			return nil
		}
		sum := pushed(t, s, root, Options{})
		if v, err := s.Verify(t.Context(), sum.ID, LevelFull); err != nil || len(v.Faults) > 0 || !slept {
			t.Errorf("got %+v, %v; it slept: %v", v.Faults, err, slept)
		}
	})
}

// A hold ends with its context, and leaves nothing.
func TestHoldEnds(t *testing.T) {
	m := newMemory()
	s := &Store{Bucket: m}
	ctx, cancel := context.WithCancel(t.Context())
	h, err := s.hold(ctx)
	must(t, err)
	cancel()
	h.release()
	if left := m.keys(""); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if err := m.Put(t.Context(), "x", 1, strings.NewReader("x"), false); err != nil || errors.Is(err, bucket.ErrExists) {
		t.Error(err)
	}
}

// What is brought again and again without news does not grow old, and adds no revision; what two machines bring from one path is two things.
func TestRevisionsAreRenewed(t *testing.T) {
	root := example(t)
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		s := &Store{Bucket: m}
		origin := Revision{Action: "push", From: root}
		for range 5 {
			pushed(t, s, root, Options{Origin: origin})
			time.Sleep(20 * time.Hour)
		}
		revisions, err := s.Revisions(t.Context(), "", root)
		if err != nil || len(revisions) != 1 || revisions[0].Again.Sub(revisions[0].Time) != 80*time.Hour {
			t.Errorf("got %+v, %v", revisions, err)
		}
		other := revisions[0]
		other.Host, other.ID = "elsewhere", digestOf([]byte("x"))
		if other.Series() == revisions[0].Series() {
			t.Errorf("both are %s", other.Series())
		}
		if c, err := s.GC(t.Context(), Retention{Older: 24 * time.Hour}, false); err != nil || c.Kept != 1 {
			t.Errorf("got %+v, %v", c, err)
		}
		to := &Store{Bucket: newMemory()}
		for range 2 {
			if _, err := to.Sync(t.Context(), s, revisions[0].ID, Options{Origin: Revision{Action: "sync", From: "memory://store", Of: revisions[0].Series()}}); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := to.Revisions(t.Context(), "", ""); err != nil || len(got) != 1 || got[0].Series() != revisions[0].Series() {
			t.Errorf("synced: %+v, %v", got, err)
		}
		time.Sleep(30 * time.Hour)
		if c, err := s.GC(t.Context(), Retention{Older: 24 * time.Hour}, false); err != nil || c.Kept != 0 {
			t.Errorf("later: %+v, %v", c, err)
		}
	})
}

// A push and a removal that begin at once do not keep each other waiting.
func TestPushAndGCAtOnce(t *testing.T) {
	root := example(t)
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		s := &Store{Bucket: m}
		h, err := s.announce(t.Context(), removalKey) // before it looks for others
		must(t, err)
		begin := time.Now()
		done := make(chan error, 1)
		go func() {
			_, err := s.Push(context.WithoutCancel(t.Context()), Scanner{}, root, Options{})
			done <- err
		}()
		time.Sleep(10*time.Second + 500*time.Millisecond) // between two times that the push looks
		if who, working, err := h.others(make(map[string]time.Time)); who != nil || working || err != nil {
			t.Errorf("the removal waits for %v, at work: %v, %v", who, working, err)
		}
		h.release()
		if err := <-done; err != nil || time.Since(begin) > 12*time.Second {
			t.Errorf("the push: %v after %v", err, time.Since(begin))
		}
	})
}
