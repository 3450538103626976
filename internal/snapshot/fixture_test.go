package snapshot

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pier/internal/bucket"
	"pier/internal/oci"
)

// A memory is a bucket elsewhere, as far as a Store can tell: it lists in pages. It counts what it is asked for.
type memory struct {
	mu      sync.Mutex // guards all below
	objects map[string][]byte
	dates   map[string]time.Time
	calls   map[string]int                    // by the name of the method
	order   []string                          // keys that were put or deleted, the latter with a minus
	fault   func(method, key string) error    // nil: none
	onOpen  func(key string, offset int64)    // nil: nothing
	alter   func(key string, b []byte) []byte // what is read in place of the content; nil: that
}

func newMemory() *memory {
	return &memory{objects: make(map[string][]byte), dates: make(map[string]time.Time), calls: make(map[string]int)}
}

func (m *memory) String() string { return "memory://store" }

func (m *memory) begin(method, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls[method]++
	if m.fault != nil {
		if err := m.fault(method, key); err != nil {
			return fmt.Errorf("%s/%s: %w", m, key, err)
		}
	}
	return nil
}

func (m *memory) Stat(_ context.Context, key string) (bucket.Object, error) {
	if err := m.begin("Stat", key); err != nil {
		return bucket.Object{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.objects[key]
	if !ok {
		return bucket.Object{}, fmt.Errorf("%s/%s: %w", m, key, oci.ErrNotFound)
	}
	return bucket.Object{Key: key, Size: int64(len(b)), Modified: m.dates[key]}, nil
}

func (m *memory) Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := m.begin("Open", key); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.objects[key]
	switch {
	case !ok:
		return nil, fmt.Errorf("%s/%s: %w", m, key, oci.ErrNotFound)
	case offset > int64(len(b)):
		return nil, fmt.Errorf("%s/%s: %w", m, key, oci.ErrRange)
	}
	if m.onOpen != nil {
		m.onOpen(key, offset)
	}
	if m.alter != nil {
		b = m.alter(key, bytes.Clone(b))
	}
	b = b[min(offset, int64(len(b))):]
	if length >= 0 {
		b = b[:min(length, int64(len(b)))]
	}
	return io.NopCloser(&stoppable{ctx, bytes.NewReader(b)}), nil
}

func (m *memory) Put(_ context.Context, key string, size int64, r io.Reader, replace bool) error {
	if err := m.begin("Put", key); err != nil {
		return err
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("%s/%s: %w", m, key, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects[key]; ok && !replace {
		return fmt.Errorf("%s/%s: %w", m, key, bucket.ErrExists)
	}
	if int64(len(b)) != size {
		return fmt.Errorf("%s/%s: %d bytes, want %d", m, key, len(b), size)
	}
	m.objects[key], m.dates[key] = b, time.Now()
	m.order = append(m.order, key)
	return nil
}

func (m *memory) Copy(context.Context, bucket.Bucket, bucket.Object, string) error {
	return oci.ErrUnsupported
}

func (m *memory) List(_ context.Context, prefix string) iter.Seq2[bucket.Object, error] {
	return func(yield func(bucket.Object, error) bool) {
		if err := m.begin("List", prefix); err != nil {
			yield(bucket.Object{}, err)
			return
		}
		m.mu.Lock()
		keys := slices.Sorted(maps.Keys(m.objects))
		m.mu.Unlock()
		n := 0
		for _, key := range keys {
			if !strings.HasPrefix(key, prefix) {
				continue
			}
			if n++; n > 1 && n%m.Page() == 1 {
				if err := m.begin("List", prefix); err != nil {
					yield(bucket.Object{}, err)
					return
				}
			}
			m.mu.Lock()
			b, ok := m.objects[key]
			o := bucket.Object{Key: key, Size: int64(len(b)), Modified: m.dates[key]}
			m.mu.Unlock()
			if ok && !yield(o, nil) {
				return
			}
		}
	}
}

func (m *memory) Page() int { return 1000 }

func (m *memory) Delete(_ context.Context, key string) error {
	if err := m.begin("Delete", key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, key)
	m.order = append(m.order, "-"+key)
	return nil
}

func (m *memory) Sync(context.Context) error { return nil }

func (m *memory) Clean(context.Context, time.Time) (int, error) { return 0, nil }

// reset forgets what was asked for.
func (m *memory) reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls, m.order = make(map[string]int), nil
}

// flip changes an object without changing its size.
func (m *memory) flip(t *testing.T, key string) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	b := bytes.Clone(m.objects[key])
	if len(b) == 0 {
		t.Fatalf("there is nothing of %s", key)
	}
	b[len(b)/2] ^= 1
	m.objects[key] = b
}

// keys returns the keys below a prefix.
func (m *memory) keys(prefix string) (keys []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key := range m.objects {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// write makes a tree: a directory where the name ends in a slash.
func write(t *testing.T, root string, files map[string]string) string {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		path := filepath.Join(root, name)
		dir := filepath.Dir(path)
		if strings.HasSuffix(name, "/") {
			dir = path
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if dir == path {
			continue
		}
		if err := os.WriteFile(path, []byte(files[name]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// example is a tree with what trees have.
func example(t *testing.T) string {
	t.Helper()
	return write(t, t.TempDir(), map[string]string{
		"a": "A", "b c/d e": "same", "b c/f": "same", "empty": "", "void/": "", "z/y/x": strings.Repeat("large ", 10_000),
	})
}

// random returns size bytes that do not repeat.
func random(seed byte, size int) string {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return string(b)
}

// contents returns what is in a directory: contents, and permissions, by path.
func contents(t *testing.T, root string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name := fmt.Sprintf("%s %v", strings.TrimPrefix(path, root), info.Mode())
		if info.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			found[name] = string(b)
			return nil
		}
		found[name] = ""
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func same(t *testing.T, got, want string) {
	t.Helper()
	if g, w := contents(t, got), contents(t, want); !maps.Equal(g, w) {
		t.Errorf("%s has %q, want %q", got, slices.Sorted(maps.Keys(g)), slices.Sorted(maps.Keys(w)))
	}
}

func pushed(t *testing.T, s *Store, dir string, opt Options) Summary {
	t.Helper()
	sum, err := s.Push(t.Context(), Scanner{Jobs: 2}, dir, opt)
	if err != nil {
		t.Fatalf("Push: %v", err)
	}
	return sum
}

func pulled(t *testing.T, s *Store, id Digest, dir string, opt PullOptions) Pulled {
	t.Helper()
	p, err := s.Pull(t.Context(), id, dir, opt)
	if err != nil {
		t.Fatalf("Pull: %v", err)
	}
	return p
}

// directoryStore returns a store of files, and where it is.
func directoryStore(t *testing.T) (*Store, string) {
	t.Helper()
	dir := t.TempDir()
	b, err := bucket.Open(bucket.Config{URL: "file://" + dir})
	if err != nil {
		t.Fatal(err)
	}
	return &Store{Bucket: b, Jobs: 3}, dir
}
