//go:build e2e

package e2e

import (
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pier/e2e/faultproxy"
)

// eachBucket runs a test for every kind of store that is reached over a network, at once.
func eachBucket(t *testing.T, test func(t *testing.T, s *store)) {
	t.Helper()
	for _, kind := range storeKinds[1:] {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			test(t, startStore(t, kind))
		})
	}
}

// The throttling of a service, as it says it.
func throttled(kind string) faultproxy.Fault {
	if kind == "s3" {
		return faultproxy.Answer(http.StatusServiceUnavailable, "application/xml",
			`<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>`)
	}
	return faultproxy.Answer(http.StatusTooManyRequests, "application/json",
		`{"error":{"code":429,"message":"Too many requests.","errors":[{"reason":"rateLimitExceeded"}]}}`)
}

var errNotYet = errors.New("not yet")

func isObject(path string) bool { return strings.Contains(path, ".objects/") }

// isUpload picks requests that bring objects. Those of gs name them elsewhere.
func isUpload(path string) bool { return isObject(path) || strings.HasPrefix(path, "/upload/") }

// What passes is waited for, and a snapshot goes to and fro as if nothing had been.
func TestSnapshotSurvivesPassingFaults(t *testing.T) {
	t.Parallel()
	eachBucket(t, func(t *testing.T, s *store) {
		m := newMover(t, s)
		upload := func(f faultproxy.Fault, skip, times int) faultproxy.Rule {
			return faultproxy.Rule{Path: isUpload, Skip: skip, Times: times, Fault: f}
		}
		download := func(f faultproxy.Fault, skip, times int) faultproxy.Rule {
			return faultproxy.Rule{Method: http.MethodGet, Path: isObject, Skip: skip, Times: times, Fault: f}
		}
		for _, c := range []struct {
			name  string
			rules []faultproxy.Rule
		}{
			{"cut", []faultproxy.Rule{upload(faultproxy.CutUpload(60_000), 5, 3), download(faultproxy.CutAfter(60_000), 0, 5)}},
			{"dropped", []faultproxy.Rule{{Skip: 2, Times: 4, Fault: faultproxy.Drop()}, download(faultproxy.Drop(), 0, 3)}},
			{"delayed", []faultproxy.Rule{{Times: 8, Fault: faultproxy.Latency(300 * time.Millisecond)}, download(faultproxy.Latency(300*time.Millisecond), 0, 5)}},
			{"throttled", []faultproxy.Rule{{Times: 3, Fault: throttled(s.kind)}, download(throttled(s.kind), 1, 3)}},
			{"slow", []faultproxy.Rule{upload(faultproxy.SlowUpload(8<<20), 0, 0), download(faultproxy.Drip(64<<10, 2*time.Millisecond), 0, 0)}},
			{"faulty", []faultproxy.Rule{{Skip: 4, Times: 4, Fault: faultproxy.Status(http.StatusInternalServerError)}, download(faultproxy.Status(http.StatusBadGateway), 0, 3)}},
		} {
			t.Run(c.name, func(t *testing.T) {
				dir := newFiles(t, map[string]int{"large": 12 << 20, "a": 100_000, "b/c": 80_000, "b/d": 10})
				s.front.Set(c.rules...)
				defer s.front.Clear()
				sum := m.push(t, s, dir)
				if sum.ID != readTree(t, dir).id() {
					t.Errorf("ID %s", sum.ID)
				}
				checkNothingDangles(t, s, true)
				out := filepath.Join(t.TempDir(), "out")
				m.must(t, "pull", "--store", s.url, "--id", sum.ID, out)
				checkSame(t, dir, out)
			})
		}
	})
}

// A byte that is flipped on its way is never kept: not in a directory, and not in a store.
func TestSnapshotRefusesFlippedBytes(t *testing.T) {
	t.Parallel()
	eachBucket(t, func(t *testing.T, s *store) {
		m, dir := newMover(t, s), newFiles(t, map[string]int{"large": 20 << 20, "small": 100_000, "right": 50})
		id := readTree(t, dir).id()
		push := []string{"push", "--store", s.url, "--max-retries", "1", dir}

		// On the way there: the service refuses it, by the checksum that goes with it, or what it has is looked at.
		s.front.Set(faultproxy.Rule{Path: isUpload, Fault: faultproxy.FlipUpload(70_000)})
		o := m.try(t, push...)
		t.Logf("push: %s", o)
		if o.status == 0 {
			t.Errorf("push with flipped bytes: %s", o)
		}
		if n := checkNothingDangles(t, s, true); n != 0 {
			t.Error("there is a manifest")
		}

		// Once, and in a part of a large object.
		key := keyOf(".objects", blake(readFile(t, filepath.Join(dir, "large"))))
		s.front.Set(faultproxy.Rule{Method: http.MethodPut, Skip: 1, Times: 1, Fault: faultproxy.FlipUpload(70_000), Path: func(path string) bool {
			return strings.Contains(path, key) || strings.HasPrefix(path, "/upload/")
		}})
		o = m.try(t, push...)
		t.Logf("push: %s", o)
		if checkNothingDangles(t, s, true) != 0 && o.status != 0 {
			t.Error("there is a manifest")
		}
		s.front.Clear()
		m.must(t, push...)
		checkNothingDangles(t, s, true)
		m.must(t, "verify", "--store", s.url, "--id", id)

		// On the way back.
		s.front.Set(faultproxy.Rule{Method: http.MethodGet, Path: isObject, Fault: faultproxy.Flip(70_000)})
		out := filepath.Join(t.TempDir(), "out")
		m.fails(t, 3, []string{s.plain(), "digest"}, "pull", "--store", s.url, "--id", id, "--max-retries", "1", out)
		checkNoFiles(t, out, "large", "small")
		m.fails(t, 3, []string{"./large", "./small"}, "verify", "--store", s.url, "--id", id, "--max-retries", "1")
		fresh := startStore(t, "file")
		m.fails(t, 3, []string{s.plain()}, "sync", "--from", s.url, "--to", fresh.url, "--id", id, "--max-retries", "1")
		if n := checkNothingDangles(t, fresh, true); n != 0 {
			t.Error("there is a manifest")
		}
		s.front.Clear()
		m.must(t, "pull", "--store", s.url, "--id", id, out)
		checkSame(t, dir, out)

		// In a manifest.
		s.front.Set(faultproxy.Rule{Method: http.MethodGet, Path: func(path string) bool { return strings.Contains(path, ".manifests/") }, Fault: faultproxy.Flip(3)})
		m.fails(t, 3, []string{s.plain(), "manifest"}, "pull", "--store", s.url, "--id", id, filepath.Join(t.TempDir(), "nothing"))
	})
}

// checkNoFiles fails the test if a directory has one of these files, or one that was on its way.
func checkNoFiles(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if slices.Contains(names, e.Name()) || strings.HasPrefix(e.Name(), ".pier") {
			t.Errorf("%s has %s", dir, e.Name())
		}
	}
}

// What does not pass is an error that says where and what to do, soon.
func TestSnapshotTellsLastingFaults(t *testing.T) {
	t.Parallel()
	eachBucket(t, func(t *testing.T, s *store) {
		m, dir := newMover(t, s), newFiles(t, map[string]int{"large": 24 << 20, "a": 100})
		push := []string{"push", "--store", s.url, "--max-retries", "2", dir}
		soon := func(words []string, m *mover, args ...string) {
			t.Helper()
			begin := time.Now()
			o := m.fails(t, 1, append(words, s.plain()), args...)
			t.Logf("%s", o.stderr)
			if took := time.Since(begin); took > 20*time.Second {
				t.Errorf("it took %v: %s", took, o)
			}
			if strings.Contains(o.stderr, secretKey) || strings.Contains(o.stderr, "Signature=") {
				t.Errorf("a secret is told: %s", o)
			}
		}
		s.front.Set(faultproxy.Rule{Fault: throttled(s.kind)})
		soon([]string{"try again later"}, m, push...) // in the answer to HEAD there is no more than the status
		s.front.Set(faultproxy.Rule{Method: http.MethodGet, Fault: throttled(s.kind)}, faultproxy.Rule{Method: http.MethodHead, Fault: throttled(s.kind)})
		soon([]string{"try again later"}, m, "ls", "--store", s.url)
		s.front.Set(faultproxy.Rule{Path: isUpload, Fault: faultproxy.CutUpload(1000)})
		soon(nil, m, push...)
		s.front.Clear()

		denied := newMover(t)
		denied.env = append(denied.env, "AWS_ACCESS_KEY_ID="+accessKey, "AWS_SECRET_ACCESS_KEY=wrong")
		if s.kind == "gs" {
			s.front.Set(faultproxy.Rule{Fault: faultproxy.Answer(http.StatusForbidden, "application/json",
				`{"error":{"code":403,"message":"nobody@example.test does not have storage.objects.create access.","errors":[{"reason":"forbidden"}]}}`)})
		}
		soon([]string{"credentials"}, denied, push...)
		soon([]string{"credentials"}, denied, "ls", "--store", s.url)
		s.front.Clear()

		absent := strings.Replace(s.url, bucketName, "no-such-bucket", 1)
		o := m.fails(t, 1, []string{"://no-such-bucket/", "bucket does not exist", "create it"}, "push", "--store", absent, dir)
		t.Logf("%s", o.stderr)

		// It vanishes while it is written to.
		begin := s.received()
		done := make(chan ending, 1)
		go func() { done <- m.try(t, append(push, "--limit-rate", "8MiB")...) }()
		eventually(t, 20*time.Second, func() error {
			if s.received() < begin+1<<20 {
				return errNotYet
			}
			return nil
		})
		s.stop(t)
		at := time.Now()
		o = <-done
		t.Logf("%s", o.stderr)
		if o.status != 1 || !strings.Contains(o.stderr, s.plain()) || time.Since(at) > 30*time.Second {
			t.Errorf("a push into a store that vanished took %v: %s", time.Since(at), o)
		}
		s.front.Close()
		soon([]string{"refused", "run this again"}, m, "ls", "--store", s.url)
		soon([]string{"refused", "run this again"}, m, push...)
	})
}

// A disk that fills is told, and once there is room the same command goes on.
func TestSnapshotTellsThatADiskIsFull(t *testing.T) {
	t.Parallel()
	small := filepath.Join(t.TempDir(), "small")
	if err := os.Mkdir(small, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", small)
	t.Cleanup(func() { _ = exec.Command("umount", "-l", small).Run() }) // t.TempDir says if that failed
	from, to := startStore(t, "file"), &store{kind: "file", url: "file://" + small + "/store", dir: small + "/store"}
	m, dir := newMover(t), newFiles(t, map[string]int{"a": 10 << 20, "b": 10 << 20, "c": 1000})
	id := m.push(t, from, dir).ID

	m.fails(t, 1, []string{to.url, "make room"}, "push", "--store", to.url, dir)
	if n := checkNothingDangles(t, to, true); n != 0 {
		t.Error("there is a manifest")
	}
	run(t, "mount", "-o", "remount,size=30m", small)
	m.push(t, to, dir)
	checkNothingDangles(t, to, true)
	if err := os.RemoveAll(to.dir); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "-o", "remount,size=12m", small)
	out := filepath.Join(small, "out")
	m.fails(t, 1, []string{out, "make room"}, "pull", "--store", from.url, "--id", id, out)
	run(t, "mount", "-o", "remount,size=30m", small)
	m.must(t, "pull", "--store", from.url, "--id", id, out)
	checkSame(t, dir, out)
}
