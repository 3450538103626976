package bucket

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"pier/internal/oci"
)

// content returns size bytes that do not repeat.
func content(seed uint64, size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

func put(t *testing.T, b Bucket, key string, data []byte) {
	t.Helper()
	if err := b.Put(t.Context(), key, int64(len(data)), bytes.NewReader(data), false); err != nil {
		t.Fatalf("Put(%q): %v", key, err)
	}
}

func get(t *testing.T, b Bucket, key string, offset, length int64) []byte {
	t.Helper()
	r, err := b.Open(t.Context(), key, offset, length)
	if err != nil {
		t.Fatalf("Open(%q, %d, %d): %v", key, offset, length, err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("read of %q: %v", key, err)
	}
	return data
}

func absent(t *testing.T, b Bucket, key string) {
	t.Helper()
	if _, err := b.Stat(t.Context(), key); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("Stat(%q) = %v, want ErrNotFound", key, err)
	}
	if _, err := b.Open(t.Context(), key, 0, -1); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("Open(%q) = %v, want ErrNotFound", key, err)
	}
}

func keysOf(t *testing.T, b Bucket, prefix string) (found []string) {
	t.Helper()
	for o, err := range b.List(t.Context(), prefix) {
		if err != nil {
			t.Fatalf("List(%q): %v", prefix, err)
		}
		found = append(found, o.Key)
	}
	return found
}

// failing is a reader that ends with an error.
func failing(data []byte, err error) io.Reader {
	return io.MultiReader(bytes.NewReader(data), errorReader{err})
}

type errorReader struct{ error }

func (e errorReader) Read([]byte) (int, error) { return 0, e.error }

// testBucket is what every kind of bucket does. open returns one that is empty.
func testBucket(t *testing.T, open func(t *testing.T) Bucket) {
	for _, size := range []int{0, 1, 4096, partSize - 1, partSize, partSize + 1, 3*partSize + 5} {
		b, data := open(t), content(1, size)
		put(t, b, ".objects/abc/def", data)
		o, err := b.Stat(t.Context(), ".objects/abc/def")
		if err != nil || o.Key != ".objects/abc/def" || o.Size != int64(size) || time.Since(o.Modified).Abs() > time.Hour {
			t.Errorf("%d bytes: Stat = %+v, %v", size, o, err)
		}
		if !bytes.Equal(get(t, b, ".objects/abc/def", 0, -1), data) {
			t.Errorf("%d bytes: others came back", size)
		}
		for _, r := range [][2]int{{0, size}, {0, size + 10}, {size / 2, -1}, {size / 3, size / 3}, {size, -1}, {size, 5}, {0, 0}} {
			want := data[r[0]:]
			if r[1] >= 0 {
				want = want[:min(r[1], len(want))]
			}
			if !bytes.Equal(get(t, b, ".objects/abc/def", int64(r[0]), int64(r[1])), want) {
				t.Errorf("%d bytes: range %v gave others", size, r)
			}
		}
		if _, err := b.Open(t.Context(), ".objects/abc/def", int64(size+1), -1); !errors.Is(err, oci.ErrRange) {
			t.Errorf("%d bytes: Open past the end = %v, want ErrRange", size, err)
		}
		put(t, b, "copy", []byte("replaced by the copy"))
		if err := b.Copy(t.Context(), b, o, "copy"); err != nil || !bytes.Equal(get(t, b, "copy", 0, -1), data) {
			t.Errorf("%d bytes: Copy = %v, or others came back", size, err)
		}
	}
	t.Run("replace", func(t *testing.T) { testReplace(t, open(t)) })
	t.Run("refuse", func(t *testing.T) { testRefuse(t, open(t)) })
	t.Run("list", func(t *testing.T) { testList(t, open(t)) })
	t.Run("race", func(t *testing.T) { testRace(t, open(t)) })
	t.Run("stop", func(t *testing.T) { testStop(t, open(t)) })
}

func testReplace(t *testing.T, b Bucket) {
	for _, size := range []int{10, 2*partSize + 3} {
		put(t, b, "key", content(1, size))
		before, err := b.Stat(t.Context(), "key")
		if err != nil {
			t.Fatal(err)
		}
		other := content(2, size)
		if err := b.Put(t.Context(), "key", int64(size), bytes.NewReader(other), false); !errors.Is(err, ErrExists) {
			t.Errorf("%d bytes: second Put = %v, want ErrExists", size, err)
		}
		if !bytes.Equal(get(t, b, "key", 0, -1), content(1, size)) {
			t.Errorf("%d bytes: second Put replaced what was there", size)
		}
		if err := b.Put(t.Context(), "key", int64(size), bytes.NewReader(other), true); err != nil {
			t.Errorf("%d bytes: Put that replaces: %v", size, err)
		}
		if !bytes.Equal(get(t, b, "key", 0, -1), other) {
			t.Errorf("%d bytes: Put did not replace", size)
		}
		if after, err := b.Stat(t.Context(), "key"); before.Version != "" && (err != nil || before.Version == after.Version) {
			t.Errorf("%d bytes: version %q stayed, %v", size, before.Version, err)
		}
		if err := b.Delete(t.Context(), "key"); err != nil {
			t.Error(err)
		}
		if err := b.Delete(t.Context(), "key"); err != nil {
			t.Errorf("second Delete: %v", err)
		}
		absent(t, b, "key")
	}
	absent(t, b, ".objects/not/there")
}

func testRefuse(t *testing.T, b Bucket) {
	cut := errors.New("cut")
	for _, size := range []int{0, 10, 3*partSize + 1} {
		for name, r := range map[string]io.Reader{
			"shorter": bytes.NewReader(content(1, max(size-1, 0))),
			"longer":  bytes.NewReader(content(1, size+1)),
			"fails":   failing(content(1, size/2), cut),
			"wrong":   failing(content(1, size), oci.ErrDigestMismatch),
		} {
			err := b.Put(t.Context(), "key", int64(size), r, false)
			switch {
			case name == "shorter" && size == 0:
				if err != nil {
					t.Error(err)
				}
				if err := b.Delete(t.Context(), "key"); err != nil {
					t.Error(err)
				}
			case err == nil, name == "fails" && !errors.Is(err, cut), name == "wrong" && !errors.Is(err, oci.ErrDigestMismatch):
				t.Errorf("%d bytes, %s: Put = %v", size, name, err)
			case !strings.Contains(err.Error(), "key"), !strings.Contains(err.Error(), b.String()):
				t.Errorf("%d bytes, %s: %v does not name the object and its store", size, name, err)
			}
			absent(t, b, "key")
		}
		put(t, b, "key", content(3, size)) // nothing of the others is in it
		if !bytes.Equal(get(t, b, "key", 0, -1), content(3, size)) {
			t.Errorf("%d bytes: others came back", size)
		}
		if err := b.Delete(t.Context(), "key"); err != nil {
			t.Error(err)
		}
	}
}

func testList(t *testing.T, b Bucket) {
	all := []string{".manifests/abc", ".objects/0", ".objects/a/b", ".objects/a/c", ".objects/a-b", ".objects/ab", "z z?&%+ü"}
	slices.Sort(all)
	for _, key := range all {
		put(t, b, key, []byte(key))
	}
	for _, prefix := range []string{"", ".objects/", ".objects/a", ".objects/a/", ".objects/ab", "none", "none/", ".manifests/abc", "z z"} {
		var want []string
		for _, key := range all {
			if strings.HasPrefix(key, prefix) {
				want = append(want, key)
			}
		}
		if got := keysOf(t, b, prefix); !slices.Equal(got, want) {
			t.Errorf("List(%q) = %q, want %q", prefix, got, want)
		}
	}
	for o, err := range b.List(t.Context(), ".objects/") {
		if err != nil || o.Size != int64(len(o.Key)) || time.Since(o.Modified).Abs() > time.Hour {
			t.Errorf("List gave %+v, %v", o, err)
		}
		break
	}
	for _, key := range all {
		if got := string(get(t, b, key, 0, -1)); got != key {
			t.Errorf("%q came back as %q", key, got)
		}
		if err := b.Delete(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
	if got := keysOf(t, b, ""); len(got) > 0 {
		t.Errorf("after all was deleted there is %q", got)
	}
	if err := b.Sync(t.Context()); err != nil {
		t.Error(err)
	}
}

// testRace has several put the same at once: one does it, and the others find it there.
func testRace(t *testing.T, b Bucket) {
	for _, size := range []int{100, 2*partSize + 1} {
		var group sync.WaitGroup
		errs := make([]error, 4)
		for i := range errs {
			group.Go(func() {
				errs[i] = b.Put(context.WithoutCancel(t.Context()), "key", int64(size), bytes.NewReader(content(1, size)), false)
			})
		}
		group.Wait()
		stored := 0
		for _, err := range errs {
			if err == nil {
				stored++
			} else if !errors.Is(err, ErrExists) {
				t.Errorf("%d bytes: %v", size, err)
			}
		}
		if stored == 0 || !bytes.Equal(get(t, b, "key", 0, -1), content(1, size)) {
			t.Errorf("%d bytes: stored %d times, or others came back", size, stored)
		}
		if err := b.Delete(t.Context(), "key"); err != nil {
			t.Error(err)
		}
	}
}

// testStop ends a context in the middle.
func testStop(t *testing.T, b Bucket) {
	ctx, cancel := context.WithCancel(t.Context())
	data := content(1, 3*partSize)
	r := io.MultiReader(bytes.NewReader(data[:2*partSize]), readerFunc(func([]byte) (int, error) {
		cancel()
		return 0, context.Canceled
	}))
	if err := b.Put(ctx, "key", int64(len(data)), r, false); !errors.Is(err, context.Canceled) {
		t.Errorf("Put = %v, want Canceled", err)
	}
	absent(t, b, "key")
	put(t, b, "key", data)
	if n, err := b.Clean(t.Context(), time.Now().Add(time.Hour)); n != 0 || err != nil {
		t.Errorf("Clean = %d, %v, want nothing left", n, err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestDirectory(t *testing.T) {
	testBucket(t, func(t *testing.T) Bucket {
		t.Helper()
		return openTest(t, Config{URL: "file://" + t.TempDir() + "/a store"})
	})
	t.Run("limited", func(t *testing.T) {
		testBucket(t, func(t *testing.T) Bucket {
			t.Helper()
			return openTest(t, Config{URL: "file://" + t.TempDir(), Limit: rate.NewLimiter(4<<30, 64<<10)})
		})
	})
}

func openTest(t *testing.T, cfg Config) Bucket {
	t.Helper()
	b, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestOpen(t *testing.T) {
	for _, url := range []string{
		"", "store", "/store", "file://", "file://host/store", "file:///store?x=1", "ftp://host/x", "s3://", "s3:///prefix", "gs://", "://",
		"s3://key:secret@bucket", "file:///%zz",
	} {
		if b, err := Open(Config{URL: url}); err == nil {
			t.Errorf("Open(%q) = %v, want an error", url, b)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("Open(%q) tells of the secret: %v", url, err)
		}
	}
}
