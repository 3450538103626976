package transfer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"

	"pier/internal/cache"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// upstream is a Source under a test's control. Each Open passes through hook, if there is one.
type upstream struct {
	*ocitest.Memory
	opens   atomic.Int64
	blamed  atomic.Int64
	hook    func(open int64, ref oci.Reference, offset int64, rc io.ReadCloser) (io.ReadCloser, error)
	onBlame func()
}

func (u *upstream) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	n := u.opens.Add(1)
	rc, desc, err := u.Memory.Open(ctx, ref, offset, length)
	if err == nil && u.hook != nil {
		rc, err = u.hook(n, ref, offset, rc)
	}
	return rc, desc, err
}

func (u *upstream) Blame(oci.Reference, string) {
	u.blamed.Add(1)
	if u.onBlame != nil {
		u.onBlame()
	}
}

func withReader(rc io.ReadCloser, r io.Reader) io.ReadCloser {
	return struct {
		io.Reader
		io.Closer
	}{r, rc}
}

// cut returns rc's first n bytes and then an error, as a connection that breaks.
func cut(rc io.ReadCloser, n int64) io.ReadCloser {
	return withReader(rc, io.MultiReader(io.LimitReader(rc, n), iotest.ErrReader(oci.ErrUnavailable)))
}

// gate lets n bytes through at once and the rest when open is closed.
func gate(rc io.ReadCloser, n int64, open <-chan struct{}) io.ReadCloser {
	return withReader(rc, io.MultiReader(io.LimitReader(rc, n), &waiting{rc, open}))
}

type waiting struct {
	r    io.Reader
	open <-chan struct{}
}

func (w *waiting) Read(p []byte) (int, error) {
	<-w.open
	return w.r.Read(p)
}

const size = 1 << 20

type fixture struct {
	*Engine
	up    *upstream
	cache *cache.Cache
	blob  []byte
	ref   oci.Reference
}

// setup returns an engine over an upstream with one blob, with a cache in dir unless that is empty.
func setup(t *testing.T, dir string) *fixture {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	f := &fixture{up: &upstream{Memory: &ocitest.Memory{Name: "registry.test"}}, blob: ocitest.Bytes(7, size)}
	desc := f.up.Add("application/octet-stream", f.blob)
	f.ref = oci.Reference{Registry: "registry.test", Repository: "app", Kind: oci.Blob, Digest: desc.Digest}
	c := Config{Source: f.up, Dir: t.TempDir(), Timeout: 10 * time.Second, Log: log}
	if dir != "" {
		k, err := cache.Open(cache.Config{Dir: dir, Log: log})
		if err != nil {
			t.Fatal(err)
		}
		f.cache, c.Store = k, k
	}
	f.Engine = New(c)
	t.Cleanup(func() { f.close(t) })
	return f
}

func (f *fixture) close(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := f.Engine.Close(ctx); err != nil {
		t.Error(err)
	}
	if f.cache != nil {
		if err := f.cache.Close(); err != nil {
			t.Error(err)
		}
		f.cache = nil
	}
}

// landed waits until nothing is in flight.
func (f *fixture) landed(t *testing.T) {
	t.Helper()
	f.soon(t, func() bool { return len(f.flights) == 0 })
}

// until waits until there is a flight of ref that meets a condition, which is asked with the engine's lock held.
func (f *fixture) until(t *testing.T, ref oci.Reference, condition func(*flight) bool) {
	t.Helper()
	f.soon(t, func() bool {
		fl := f.flights[keyOf(ref)]
		return fl != nil && condition(fl)
	})
}

func (f *fixture) soon(t *testing.T, condition func() bool) {
	t.Helper()
	for range 5000 {
		f.mu.Lock()
		ok := condition()
		f.mu.Unlock()
		if ok {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Error("what a test waits for did not come in 5 seconds")
}

func (f *fixture) want(t *testing.T, src oci.Source) {
	t.Helper()
	b, _, err := ocitest.ReadAll(t.Context(), src, f.ref)
	if err != nil || !bytes.Equal(b, f.blob) {
		t.Fatalf("got %d bytes, error %v; want the blob", len(b), err)
	}
}

type closer struct {
	io.Reader
	closed chan struct{}
}

func (c *closer) Close() error { return nil }

// first reads the blob as a client does, and makes sure that wrong bytes do not end cleanly.
func (f *fixture) first(t *testing.T) ([]byte, error) {
	t.Helper()
	b, _, err := ocitest.ReadAll(t.Context(), f, f.ref)
	if err == nil && !bytes.Equal(b, f.blob) {
		t.Fatalf("%d wrong bytes ended cleanly", len(b))
	}
	return b, err
}

// stallContext hands the request's context to readers that stall, as a connection does.
type stallContext struct{ *upstream }

func (s stallContext) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	rc, desc, err := s.upstream.Open(ctx, ref, offset, length)
	if st, ok := rc.(*stalling); ok {
		st.ctx = ctx
	}
	return rc, desc, err
}

type stalling struct {
	rc  io.ReadCloser
	n   int64
	ctx context.Context
}

func (s *stalling) Read(p []byte) (int, error) {
	if s.n == 0 {
		<-s.ctx.Done()
		return 0, s.ctx.Err()
	}
	n, err := s.rc.Read(p[:min(int64(len(p)), s.n)])
	s.n -= int64(n)
	return n, err
}

func (s *stalling) Close() error { return s.rc.Close() }

// sealing is a Spool of memory files, which refuse writes after they are sealed, as a full disk does.
type sealing struct {
	oci.Source
	file *os.File
	err  error
}

func (s *sealing) Begin(oci.Reference) (oci.Partial, error) {
	if s.err != nil {
		return nil, s.err
	}
	fd, err := unix.MemfdCreate("spool", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	s.file = os.NewFile(uintptr(fd), "spool")
	return unlinked{s.file}, nil
}

func (s *sealing) seal(t *testing.T) {
	if _, err := unix.FcntlInt(s.file.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE); err != nil {
		t.Error(err)
	}
}

type readerFunc func([]byte) (int, error)

func (r readerFunc) Read(p []byte) (int, error) { return r(p) }

// sizeless hides the size.
type sizeless struct{ *upstream }

func (s sizeless) Open(ctx context.Context, ref oci.Reference, o, l int64) (io.ReadCloser, oci.Descriptor, error) {
	rc, d, err := s.upstream.Open(ctx, ref, o, l)
	d.Size = -1
	return rc, d, err
}

// slowDiscard takes its time to delete a file.
type slowDiscard struct{ Store }

type slowPartial struct{ oci.Partial }

func (s slowDiscard) Begin(ref oci.Reference) (oci.Partial, error) {
	p, err := s.Store.Begin(ref)
	return slowPartial{p}, err
}

func (p slowPartial) Discard() error {
	time.Sleep(50 * time.Millisecond)
	return p.Partial.Discard()
}

type onlyReader struct{ io.Reader }

type writerFunc func([]byte) (int, error)

func (w writerFunc) Write(p []byte) (int, error) { return w(p) }

// ctxSource tells no size, and its first reader stalls after a read until its context ends.
type ctxSource struct{ *upstream }

type ctxReader struct {
	io.ReadCloser
	ctx context.Context
	n   int
	one bool
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if c.one && c.n > 0 {
		<-c.ctx.Done()
		time.Sleep(50 * time.Millisecond) // the transport notices a little later
		return 0, c.ctx.Err()
	}
	c.n++
	return c.ReadCloser.Read(p)
}

func (s ctxSource) Open(ctx context.Context, ref oci.Reference, o, l int64) (io.ReadCloser, oci.Descriptor, error) {
	rc, d, err := s.upstream.Open(ctx, ref, o, l)
	d.Size = -1
	if err != nil {
		return rc, d, err
	}
	return &ctxReader{ReadCloser: rc, ctx: ctx, one: s.upstream.opens.Load() == 1}, d, nil
}

// lyingSize adds to the size of what evil.test has.
type lyingSize struct{ *upstream }

func (s lyingSize) Open(ctx context.Context, ref oci.Reference, o, l int64) (io.ReadCloser, oci.Descriptor, error) {
	rc, d, err := s.upstream.Open(ctx, ref, o, l)
	if ref.Registry == "evil.test" {
		d.Size += 666
	}
	return rc, d, err
}

// asking is an upstream that knows only alice.
type asking struct{ *upstream }

func (a asking) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	rc, desc, err := a.upstream.Open(ctx, ref, offset, length)
	if oci.Authorization(ctx) != "Basic YWxpY2U6eA==" {
		return nil, oci.Descriptor{}, oci.ErrUnauthorized
	}
	return rc, desc, err
}

// sickStore is a cache on a disk that fails.
type sickStore struct {
	*cache.Cache
	opens, well bool
}

func (s *sickStore) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	rc, desc, err := s.Cache.Open(ctx, ref, offset, length)
	if err != nil || s.well {
		return rc, desc, err
	}
	fault := &fs.PathError{Op: "read", Path: "sick", Err: errors.New("input/output error")}
	if !s.opens {
		rc.Close()
		return nil, oci.Descriptor{}, fault
	}
	return withReader(rc, iotest.ErrReader(fault)), desc, nil
}

func (s *sickStore) Blame(ref oci.Reference, _ string) {
	_ = s.Delete(context.Background(), ref.Digest) // as the cache does after a look at the file
}
