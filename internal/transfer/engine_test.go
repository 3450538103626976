package transfer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"sync"
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
	for range 1000 {
		f.mu.Lock()
		n := len(f.flights)
		f.mu.Unlock()
		if n == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("a transfer is still in flight")
}

func (f *fixture) want(t *testing.T, src oci.Source) {
	t.Helper()
	b, _, err := ocitest.ReadAll(t.Context(), src, f.ref)
	if err != nil || !bytes.Equal(b, f.blob) {
		t.Fatalf("got %d bytes, error %v; want the blob", len(b), err)
	}
}

func TestConformance(t *testing.T) {
	for _, kept := range []bool{true, false} {
		t.Run(map[bool]string{true: "kept", false: "not kept"}[kept], func(t *testing.T) {
			dir := ""
			if kept {
				dir = t.TempDir()
			}
			ocitest.TestSource(t, func(t *testing.T, content *ocitest.Memory, _ oci.Reference) oci.Source {
				f := setup(t, dir)
				f.up.Memory = content
				return f.Engine
			})
		})
	}
}

func TestManyAtOnceFetchOnce(t *testing.T) {
	for _, dir := range []string{"", t.TempDir()} {
		f := setup(t, dir)
		open := make(chan struct{})
		f.up.hook = func(_ int64, _ oci.Reference, _ int64, rc io.ReadCloser) (io.ReadCloser, error) {
			return gate(rc, size/2, open), nil
		}
		var wg, first sync.WaitGroup
		first.Add(20)
		for range 20 {
			wg.Go(func() {
				rc, _, err := f.Open(t.Context(), f.ref, 0, -1)
				if err != nil {
					t.Error(err)
					first.Done()
					return
				}
				defer rc.Close()
				head := make([]byte, 1000)
				_, err = io.ReadFull(rc, head) // while the second half has not even left upstream
				first.Done()
				rest, rerr := io.ReadAll(rc)
				if err != nil || rerr != nil || !bytes.Equal(append(head, rest...), f.blob) {
					t.Errorf("got %d bytes, errors %v, %v", 1000+len(rest), err, rerr)
				}
			})
		}
		first.Wait()
		close(open)
		wg.Wait()
		if n := f.up.opens.Load(); n != 1 {
			t.Errorf("20 clients caused %d upstream requests, want 1", n)
		}
		f.landed(t)
	}
}

func TestOneClientLeavesTheOthersStay(t *testing.T) {
	for _, dir := range []string{"", t.TempDir()} {
		f := setup(t, dir)
		open := make(chan struct{})
		f.up.hook = func(_ int64, _ oci.Reference, _ int64, rc io.ReadCloser) (io.ReadCloser, error) {
			return gate(rc, 1000, open), nil
		}
		ctx, leave := context.WithCancel(t.Context())
		first, _, err := f.Open(ctx, f.ref, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		second, _, err := f.Open(t.Context(), f.ref, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		leave()
		if _, err := io.ReadAll(first); !errors.Is(err, context.Canceled) {
			t.Errorf("reader of a client that left: got error %v, want context.Canceled", err)
		}
		first.Close()
		close(open)
		b, err := io.ReadAll(second)
		if err != nil || !bytes.Equal(b, f.blob) {
			t.Errorf("got %d bytes, error %v", len(b), err)
		}
		second.Close()
		if n := f.up.opens.Load(); n != 1 {
			t.Errorf("%d upstream requests, want 1", n)
		}
	}
}

func TestAllClientsLeave(t *testing.T) {
	t.Run("kept: the transfer goes on", func(t *testing.T) {
		f := setup(t, t.TempDir())
		open := make(chan struct{})
		f.up.hook = func(_ int64, _ oci.Reference, _ int64, rc io.ReadCloser) (io.ReadCloser, error) {
			return gate(rc, 1000, open), nil
		}
		rc, _, err := f.Open(t.Context(), f.ref, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		rc.Close()
		close(open)
		f.landed(t)
		f.want(t, f.cache)
	})
	t.Run("not kept: the transfer ends", func(t *testing.T) {
		f := setup(t, "")
		ended := make(chan struct{})
		f.up.hook = func(_ int64, _ oci.Reference, _ int64, rc io.ReadCloser) (io.ReadCloser, error) {
			return &closer{Reader: io.MultiReader(io.LimitReader(rc, 1000), &waiting{rc, ended}), closed: ended}, nil
		}
		rc, _, err := f.Open(t.Context(), f.ref, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		rc.Close()
		f.landed(t)
		close(ended)
		f.up.hook = nil
		f.want(t, f) // a later client starts anew
	})
}

type closer struct {
	io.Reader
	closed chan struct{}
}

func (c *closer) Close() error { return nil }

func TestResumesWhereTheSourceBroke(t *testing.T) {
	f := setup(t, t.TempDir())
	var offsets []int64
	f.up.hook = func(n int64, _ oci.Reference, offset int64, rc io.ReadCloser) (io.ReadCloser, error) {
		offsets = append(offsets, offset)
		if n <= 3 {
			return cut(rc, 100_000), nil
		}
		return rc, nil
	}
	f.want(t, f)
	if want := []int64{0, 100_000, 200_000, 300_000}; len(offsets) != 4 || offsets[3] != want[3] {
		t.Errorf("upstream was asked at %v, want %v", offsets, want)
	}
	f.landed(t)
	f.want(t, f.cache)
}

func TestResumesAfterTheProcessDied(t *testing.T) {
	dir := t.TempDir()
	f := setup(t, dir)
	half := make(chan struct{})
	f.up.hook = func(_ int64, _ oci.Reference, _ int64, rc io.ReadCloser) (io.ReadCloser, error) {
		return withReader(rc, io.MultiReader(io.LimitReader(rc, size/2), &waiting{iotest.ErrReader(oci.ErrUnavailable), half})), nil
	}
	rc, _, err := f.Open(t.Context(), f.ref, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(rc, make([]byte, size/2)); err != nil {
		t.Fatal(err)
	}
	rc.Close()
	go func() { f.stop(); close(half) }() // as a kill would, it leaves the bytes written so far
	f.close(t)

	f = setup(t, dir)
	var offset int64
	f.up.hook = func(_ int64, _ oci.Reference, off int64, rc io.ReadCloser) (io.ReadCloser, error) {
		offset = off
		return rc, nil
	}
	f.want(t, f)
	if offset < size/2 {
		t.Errorf("after a restart upstream was asked from %d, want at least %d", offset, size/2)
	}
	f.landed(t)
	f.want(t, f.cache)
}

// A crash may leave anything in the file of a transfer: it costs a download, not the content, and not the source's name.
func TestWrongBytesLeftByACrash(t *testing.T) {
	f := setup(t, t.TempDir())
	for _, left := range []int64{10, 100_000, size, size + 10} {
		p, err := f.cache.Begin(f.ref)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.File().Write(ocitest.Bytes(99, int(left))); err != nil {
			t.Fatal(err)
		}
		p.File().Close()
		if _, err := f.first(t); err != nil {
			t.Logf("first client after %d wrong bytes: %v", left, err)
		}
		f.landed(t)
		f.want(t, f)
		f.landed(t)
		f.want(t, f.cache)
		if n := f.up.blamed.Load(); n != 0 {
			t.Errorf("upstream was blamed %d times for what was left on disk", n)
		}
		if err := f.cache.Delete(t.Context(), f.ref.Digest); err != nil {
			t.Fatal(err)
		}
	}
}

// first reads the blob as a client does, and makes sure that wrong bytes do not end cleanly.
func (f *fixture) first(t *testing.T) ([]byte, error) {
	t.Helper()
	b, _, err := ocitest.ReadAll(t.Context(), f, f.ref)
	if err == nil && !bytes.Equal(b, f.blob) {
		t.Fatalf("%d wrong bytes ended cleanly", len(b))
	}
	return b, err
}

func TestAWholeFileLeftByACrashNeedsNoUpstream(t *testing.T) {
	f := setup(t, t.TempDir())
	p, err := f.cache.Begin(f.ref)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.File().Write(f.blob); err != nil {
		t.Fatal(err)
	}
	p.File().Close()
	f.want(t, f)
	if n := f.up.opens.Load(); n != 0 {
		t.Errorf("%d upstream requests, want 0", n)
	}
}

func TestWrongContentIsNeverKeptAndNeverEndsCleanly(t *testing.T) {
	f := setup(t, t.TempDir())
	wrong := bytes.Clone(f.blob)
	wrong[size/2] ^= 1
	f.up.AddAs(f.ref.Digest, "", wrong)
	b, err := f.first(t)
	if !errors.Is(err, oci.ErrDigestMismatch) {
		t.Errorf("got %d bytes, error %v, want ErrDigestMismatch", len(b), err)
	}
	if len(b) == size {
		t.Error("all bytes of wrong content were given out")
	}
	f.landed(t)
	if _, err := f.cache.Resolve(t.Context(), f.ref); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("wrong content in the cache: got error %v, want ErrNotFound", err)
	}
	if f.up.blamed.Load() == 0 {
		t.Error("the source was not blamed")
	}
	f.up.AddAs(f.ref.Digest, "", f.blob)
	f.want(t, f)
}

// Content small enough to be held back whole is fetched again from the next source without the client noticing.
func TestSmallWrongContentHealsUnseen(t *testing.T) {
	f := setup(t, t.TempDir())
	right := []byte(`{"os":"linux"}`)
	f.ref.Digest, f.blob = ocitest.Digest(right), right
	f.up.AddAs(f.ref.Digest, "", []byte(`{"os":"linuX"}`))
	f.up.onBlame = func() { f.up.AddAs(f.ref.Digest, "", right) }
	f.want(t, f)
	if n := f.up.blamed.Load(); n != 1 {
		t.Errorf("source blamed %d times, want once", n)
	}
}

func TestAnotherSizeInMidContentIsAFault(t *testing.T) {
	f := setup(t, t.TempDir())
	f.up.hook = func(n int64, _ oci.Reference, _ int64, rc io.ReadCloser) (io.ReadCloser, error) {
		if n == 1 {
			f.up.AddAs(f.ref.Digest, "", append(bytes.Clone(f.blob), 1, 2, 3))
			return cut(rc, 300_000), nil
		}
		return rc, nil
	}
	if _, err := f.first(t); !errors.Is(err, oci.ErrDigestMismatch) {
		t.Errorf("got error %v, want ErrDigestMismatch", err)
	}
}

// Who may not have it under one name may have it under another: the first client's refusal is not everybody's.
func TestAnotherClientsNameOrCredentials(t *testing.T) {
	f := setup(t, t.TempDir())
	entered, proceed := make(chan struct{}), make(chan struct{})
	f.up.hook = func(n int64, ref oci.Reference, _ int64, rc io.ReadCloser) (io.ReadCloser, error) {
		if n == 1 {
			close(entered)
			<-proceed
			return nil, oci.ErrUnauthorized
		}
		if ref.Repository != "public" {
			return nil, oci.ErrDenied
		}
		return rc, nil
	}
	refused := make(chan error, 1)
	go func() {
		_, _, err := ocitest.ReadAll(t.Context(), f, f.ref)
		refused <- err
	}()
	<-entered
	public := f.ref
	public.Repository = "public"
	got := make(chan error, 1)
	go func() {
		_, _, err := ocitest.ReadAll(t.Context(), f, public)
		got <- err
	}()
	for { // until the second client is aboard
		f.mu.Lock()
		n := f.flights[keyOf(f.ref)].readers
		f.mu.Unlock()
		if n == 2 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	close(proceed)
	if err := <-got; err != nil {
		t.Errorf("client with the public name: %v", err)
	}
	if err := <-refused; err != nil {
		t.Errorf("client aboard the same flight: %v", err)
	}
}

func TestErrorsOfTheSource(t *testing.T) {
	for _, class := range []error{oci.ErrNotFound, oci.ErrUnauthorized, oci.ErrDenied, oci.ErrRateLimited, oci.ErrUnavailable} {
		f := setup(t, t.TempDir())
		f.up.hook = func(int64, oci.Reference, int64, io.ReadCloser) (io.ReadCloser, error) { return nil, class }
		if _, _, err := f.Open(t.Context(), f.ref, 0, -1); !errors.Is(err, class) {
			t.Errorf("got error %v, want %v", err, class)
		}
		if n := f.up.opens.Load(); n != 1 {
			t.Errorf("%v: source asked %d times, want once: it has attempts of its own", class, n)
		}
		f.landed(t)
		f.up.hook = nil
		f.want(t, f) // and it leaves later pulls healthy
	}
}

func TestSourceThatStallsIsAskedAnew(t *testing.T) {
	f := setup(t, t.TempDir())
	f.c.Timeout = 3 * time.Second // a stall ends after half of it
	f.up.hook = func(n int64, _ oci.Reference, _ int64, rc io.ReadCloser) (io.ReadCloser, error) {
		if n == 1 {
			return &stalling{rc: rc, n: 1000}, nil
		}
		return rc, nil
	}
	f.c.Source = stallContext{f.up}
	f.want(t, f)
	if n := f.up.opens.Load(); n != 2 {
		t.Errorf("%d upstream requests, want 2", n)
	}
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

func TestDiskFull(t *testing.T) {
	for name, c := range map[string]struct {
		at  int64 // bytes the disk takes
		err error // of the spool itself
	}{
		"before a byte": {err: unix.ENOSPC}, "in the middle": {at: 300_000}, "in what is held back": {at: size - 100},
	} {
		t.Run(name, func(t *testing.T) {
			f := setup(t, "")
			spool := &sealing{Source: &ocitest.Memory{}, err: c.err}
			f.c.Store, f.spool = spool, spool
			reached, proceed := make(chan struct{}), make(chan struct{})
			f.up.hook = func(n int64, _ oci.Reference, _ int64, rc io.ReadCloser) (io.ReadCloser, error) {
				if n == 1 && c.err == nil {
					return gate(rc, c.at, proceed), nil
				}
				return rc, nil
			}
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() { f.want(t, f) })
			}
			if c.err == nil {
				go func() {
					for { // until the disk has taken what it takes
						f.mu.Lock()
						fl := f.flights[keyOf(f.ref)]
						f.mu.Unlock()
						if fl != nil {
							fl.mu.Lock()
							n := fl.available
							fl.mu.Unlock()
							if n >= c.at {
								break
							}
						}
						time.Sleep(time.Millisecond)
					}
					spool.seal(t)
					close(proceed)
					close(reached)
				}()
				<-reached
			}
			wg.Wait()
			f.landed(t)
			if n := f.diskFaults.Get(); n == 0 {
				t.Error("the disk fault was not counted")
			}
		})
	}
}

// Wrong content stays wrong when the disk fails: what is read past the file is proven together with it.
func TestDiskFullAndWrongContent(t *testing.T) {
	f := setup(t, "")
	spool := &sealing{Source: &ocitest.Memory{}}
	f.c.Store, f.spool = spool, spool
	wrong := bytes.Clone(f.blob)
	wrong[10] ^= 1
	f.up.AddAs(f.ref.Digest, "", wrong)
	f.up.hook = func(n int64, _ oci.Reference, _ int64, rc io.ReadCloser) (io.ReadCloser, error) {
		if n == 1 {
			return withReader(rc, io.MultiReader(io.LimitReader(rc, 300_000), readerFunc(func([]byte) (int, error) {
				spool.seal(t)
				return 0, io.EOF
			}), rc)), nil
		}
		return rc, nil
	}
	if b, err := f.first(t); !errors.Is(err, oci.ErrDigestMismatch) {
		t.Errorf("got %d bytes, error %v, want ErrDigestMismatch", len(b), err)
	}
}

type readerFunc func([]byte) (int, error)

func (r readerFunc) Read(p []byte) (int, error) { return r(p) }

func TestManifestTooLarge(t *testing.T) {
	f := setup(t, t.TempDir())
	big := f.up.Add("application/vnd.oci.image.manifest.v1+json", make([]byte, oci.MaxManifest+1))
	f.ref.Kind, f.ref.Digest = oci.Manifest, big.Digest
	if _, _, err := f.Open(t.Context(), f.ref, 0, -1); !errors.Is(err, oci.ErrTooLarge) {
		t.Errorf("got error %v, want ErrTooLarge", err)
	}
}

func TestInFlightNeverStartsATransfer(t *testing.T) {
	f := setup(t, t.TempDir())
	if _, _, err := f.InFlight().Open(t.Context(), f.ref, 0, -1); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("nothing in flight: got error %v, want ErrNotFound", err)
	}
	open := make(chan struct{})
	f.up.hook = func(_ int64, _ oci.Reference, _ int64, rc io.ReadCloser) (io.ReadCloser, error) {
		return gate(rc, 200_000, open), nil
	}
	rc, _, err := f.Open(t.Context(), f.ref, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if _, err := io.ReadFull(rc, make([]byte, 200_000)); err != nil {
		t.Fatal(err)
	}
	desc, err := f.InFlight().Resolve(t.Context(), f.ref)
	if err != nil || desc.Missing != size-200_000 {
		t.Errorf("in flight: got %+v, %v, want %d bytes missing", desc, err, size-200_000)
	}
	peer, _, err := f.InFlight().Open(t.Context(), f.ref, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	close(open)
	if b, err := io.ReadAll(peer); err != nil || !bytes.Equal(b, f.blob) {
		t.Errorf("from what is in flight: got %d bytes, error %v", len(b), err)
	}
	if n := f.up.opens.Load(); n != 1 {
		t.Errorf("%d upstream requests, want 1", n)
	}
}

// Without a Store nothing of a transfer is left, on disk or in memory.
func TestNothingRemains(t *testing.T) {
	f := setup(t, "")
	f.want(t, f)
	f.landed(t)
	left, err := os.ReadDir(f.c.Dir)
	if err != nil || len(left) != 0 {
		t.Errorf("files left: %v, %v", left, err)
	}
}
