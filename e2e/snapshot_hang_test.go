//go:build e2e

package e2e

import (
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"pier/e2e/faultproxy"
)

// A service that falls silent in the middle is given up after a minute: what passes goes on then, what does not is an error.
func TestSnapshotGivesUpOnSilence(t *testing.T) {
	t.Parallel()
	eachBucket(t, func(t *testing.T, s *store) {
		m, dir := newMover(t, s), newFiles(t, map[string]int{"large": 12 << 20, "a": 100_000})
		id := m.push(t, s, dir).ID
		s.front.Set(faultproxy.Rule{Method: http.MethodGet, Path: isObject, Times: 1, Fault: faultproxy.HangAfter(50_000)})
		another := startFront(t, s.addr, 0)
		another.Set(faultproxy.Rule{Fault: faultproxy.Hang()})
		done := make(chan ending, 1)
		go func() {
			url := s.kind + "://" + bucketName + "/x?endpoint=" + another.URL
			done <- m.try(t, "push", "--store", url, "--max-retries", "0", dir)
		}()
		begin, out := time.Now(), filepath.Join(t.TempDir(), "out")
		m.must(t, "pull", "--store", s.url, "--id", id, out)
		checkSame(t, dir, out)
		o := <-done
		t.Logf("%s", o.stderr)
		if took := time.Since(begin); o.status != 1 || took > 100*time.Second {
			t.Errorf("after %v: %s", took, o)
		}
	})
}
