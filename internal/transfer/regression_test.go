package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"pier/internal/cache"
	"pier/internal/chain"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// Content is proven also while the same digest is in flight as another kind.
func TestTheSameDigestAsAnotherKind(t *testing.T) {
	f := setup(t, t.TempDir())
	wrong := bytes.Clone(f.blob)
	wrong[10] ^= 1
	f.up.AddAs(f.ref.Digest, "", wrong)
	hold := make(chan struct{})
	f.up.hook = func(_ int64, ref oci.Reference, _ int64, rc io.ReadCloser) (io.ReadCloser, error) {
		if ref.Kind == oci.Manifest {
			<-hold
			return nil, oci.ErrNotFound
		}
		return rc, nil
	}
	m := f.ref
	m.Kind = oci.Manifest
	go func() { _, _, _ = ocitest.ReadAll(context.Background(), f, m) }()
	for {
		f.mu.Lock()
		n := len(f.flights)
		f.mu.Unlock()
		if n == 1 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	b, _, err := ocitest.ReadAll(t.Context(), f, f.ref)
	close(hold)
	if err == nil && !bytes.Equal(b, f.blob) {
		t.Errorf("%d wrong bytes ended cleanly", len(b))
	}
}

// Without a size there is no telling the last bytes: wrong content of a registry that tells none must not pass when the disk fails.
func TestDiskFullAndSizeUnknown(t *testing.T) {
	for _, mid := range []bool{true, false} {
		f := setup(t, "")
		spool := &sealing{Source: &ocitest.Memory{}}
		if !mid {
			spool.err = os.ErrPermission
		}
		f.c.Store, f.spool = spool, spool
		f.c.Source = sizeless{f.up}
		wrong := bytes.Clone(f.blob)
		wrong[10] ^= 1
		f.up.AddAs(f.ref.Digest, "", wrong)
		f.up.hook = func(n int64, _ oci.Reference, _ int64, rc io.ReadCloser) (io.ReadCloser, error) {
			if n == 1 && mid {
				return withReader(rc, io.MultiReader(io.LimitReader(rc, 300_000), readerFunc(func([]byte) (int, error) {
					spool.seal(t)
					return 0, io.EOF
				}), rc)), nil
			}
			return rc, nil
		}
		b, _, err := ocitest.ReadAll(t.Context(), f, f.ref)
		if err == nil && !bytes.Equal(b, f.blob) {
			t.Errorf("mid=%v: %d wrong bytes ended cleanly", mid, len(b))
		}
	}
}

// A reader that boarded before the disk failed and looks only after it has nothing to go on from, and proves from the start.
func TestAReaderThatComesAfterTheDiskFailed(t *testing.T) {
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
	// what Open does, with the scheduler's pause between board and embark
	fl, _, _, _ := f.board(t.Context(), f.ref, 0, -1)
	for {
		fl.mu.Lock()
		br := fl.broken
		fl.mu.Unlock()
		if br != nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	rc, _, err := f.reader(t.Context(), fl, f.ref, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err == nil && !bytes.Equal(b, f.blob) {
		t.Errorf("%d wrong bytes ended cleanly", len(b))
	}
}

// The file of a flight that ends must be gone before the next flight begins with the same name.
func TestDiscardLeavesTheNextFlightItsFile(t *testing.T) {
	f := setup(t, t.TempDir())
	s := slowDiscard{f.cache}
	f.c.Store, f.spool = s, s
	right := []byte(`{"os":"linux"}`)
	f.ref.Digest, f.blob = ocitest.Digest(right), right
	f.up.AddAs(f.ref.Digest, "", []byte(`{"os":"linuX"}`))
	f.up.onBlame = func() { f.up.AddAs(f.ref.Digest, "", right) }
	if b, _, err := ocitest.ReadAll(t.Context(), f, f.ref); err != nil || !bytes.Equal(b, right) {
		t.Errorf("client: %q %v", b, err)
	}
	f.landed(t)
	if _, err := f.cache.Resolve(t.Context(), f.ref); err != nil {
		t.Errorf("content was not kept: %v", err)
	}
	if n := f.diskFaults.Get(); n != 0 {
		t.Errorf("%d disk faults on a healthy disk", n)
	}
}

// The same without any help from the clock.
func TestHealingManyTimes(t *testing.T) {
	bad, nokeep := 0, 0
	f := setup(t, t.TempDir())
	f.c.Log = slog.New(slog.DiscardHandler)
	for i := range 1500 {
		right := []byte(fmt.Sprintf(`{"os":"linux %d"}`, i))
		f.ref.Digest, f.blob = ocitest.Digest(right), right
		f.up.AddAs(f.ref.Digest, "", []byte(strings.ToUpper(string(right))))
		f.up.onBlame = func() { f.up.AddAs(f.ref.Digest, "", right) }
		if b, _, err := ocitest.ReadAll(t.Context(), f, f.ref); err != nil || !bytes.Equal(b, right) {
			bad++
		}
		f.landed(t)
		if _, err := f.cache.Resolve(t.Context(), f.ref); err != nil {
			nokeep++
		}
	}
	disk := f.diskFaults.Get()
	if bad+nokeep > 0 || disk > 0 {
		t.Errorf("of 1500: %d clients failed, %d not kept, %d disk faults", bad, nokeep, disk)
	}
}

// Many bogus names for a blob must not use up what a flight asks.
func TestStrangersNamesDoNotKeepAnHonestOneOut(t *testing.T) {
	f := setup(t, t.TempDir())
	entered, proceed := make(chan struct{}), make(chan struct{})
	f.up.hook = func(n int64, ref oci.Reference, _ int64, rc io.ReadCloser) (io.ReadCloser, error) {
		if n == 1 {
			close(entered)
			<-proceed
		}
		if ref.Repository != "app" {
			return nil, oci.ErrNotFound
		}
		return rc, nil
	}
	for i := range 64 {
		r := f.ref
		r.Repository = fmt.Sprintf("bogus%d", i)
		go func() { _, _, _ = ocitest.ReadAll(context.Background(), f, r) }()
	}
	<-entered
	for {
		f.mu.Lock()
		n := f.flights[keyOf(f.ref)].readers
		f.mu.Unlock()
		if n == 64 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	f.want(t, f)
	close(proceed)
}

// What one registry supplies for a digest is no matter to those who ask another.
func TestOneRegistryDoesNotSpoilAnother(t *testing.T) {
	f := setup(t, t.TempDir())
	entered, proceed := make(chan struct{}), make(chan struct{})
	wrong := bytes.Clone(f.blob)
	wrong[10] ^= 1
	f.up.hook = func(n int64, ref oci.Reference, _ int64, rc io.ReadCloser) (io.ReadCloser, error) {
		if ref.Registry == "evil.test" {
			close(entered)
			<-proceed
			return withReader(rc, bytes.NewReader(wrong)), nil
		}
		return rc, nil
	}
	evil := f.ref
	evil.Registry = "evil.test"
	go func() { _, _, _ = ocitest.ReadAll(context.Background(), f, evil) }()
	<-entered
	f.want(t, f)
	close(proceed)
}

// All bytes are there, and wrong: others must not be told that the content is complete.
func TestInFlightIsNotCompleteBeforeItIsProven(t *testing.T) {
	f := setup(t, t.TempDir())
	p, err := f.cache.Begin(f.ref)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.File().Write(ocitest.Bytes(99, size)); err != nil {
		t.Fatal(err)
	}
	p.File().Close()
	hold := make(chan struct{})
	f.up.hook = func(_ int64, _ oci.Reference, _ int64, rc io.ReadCloser) (io.ReadCloser, error) {
		return withReader(rc, io.MultiReader(&waiting{rc, hold})), nil
	}
	rc, _, err := f.Open(t.Context(), f.ref, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	desc, err := f.InFlight().Resolve(t.Context(), f.ref)
	close(hold)
	if err == nil && desc.Missing == 0 {
		t.Errorf("wrong, unproven content is offered as complete: %+v", desc)
	}
}

// Somebody cuts the file of a transfer: neither a clean end nor an endless loop.
func TestTruncatedSpool(t *testing.T) {
	dir := t.TempDir()
	f := setup(t, dir)
	hold := make(chan struct{})
	f.up.hook = func(_ int64, _ oci.Reference, _ int64, rc io.ReadCloser) (io.ReadCloser, error) {
		return gate(rc, size/2, hold), nil
	}
	rc, _, err := f.Open(t.Context(), f.ref, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	for {
		d, err := f.InFlight().Resolve(t.Context(), f.ref)
		if err == nil && d.Missing <= size/2 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	es, _ := filepath.Glob(filepath.Join(dir, "pier", "partial", "*"))
	if err := os.Truncate(es[0], 10); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, onlyReader{rc}, 10); err != nil {
		t.Fatal(err)
	}
	if n, err := rc.Read(make([]byte, 10)); n == 0 && err == io.EOF {
		t.Error("Read: a clean end after 10 bytes")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := rc.(io.WriterTo).WriteTo(writerFunc(func(p []byte) (int, error) { return len(p), nil })); err == nil {
			t.Error("WriteTo: a clean end")
		}
	}()
	select {
	case <-done:
	case <-time.After(2 * time.Second):
		t.Error("WriteTo spins")
	}
	close(hold)
	<-done
	rc.Close()
}

// What is served as a manifest and is none is given through and not kept; the disk is well.
func TestContentThatIsNoManifestIsNoDiskFault(t *testing.T) {
	f := setup(t, t.TempDir())
	d := f.up.Add("application/vnd.oci.image.manifest.v1+json", []byte("hello"))
	f.ref.Kind, f.ref.Digest, f.blob = oci.Manifest, d.Digest, []byte("hello")
	f.want(t, f)
	f.landed(t)
	if n := f.diskFaults.Get(); n != 0 {
		t.Errorf("%d disk faults on a healthy disk", n)
	}
}

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

// Clients that come and go leave neither flights nor memory without bound.
func TestFlightsAreBounded(t *testing.T) {
	f := setup(t, t.TempDir())
	f.c.Log = slog.New(slog.DiscardHandler)
	hold := make(chan struct{})
	f.up.hook = func(_ int64, _ oci.Reference, _ int64, rc io.ReadCloser) (io.ReadCloser, error) {
		return gate(rc, 1, hold), nil
	}
	for i := range maxFlights + 50 {
		r := f.ref
		r.Digest = f.up.Add("", []byte(fmt.Sprint("blob ", i))).Digest
		rc, _, err := f.Open(t.Context(), r, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer rc.Close()
	}
	f.mu.Lock()
	n := len(f.flights)
	f.mu.Unlock()
	if n != maxFlights {
		t.Errorf("%d flights, want %d", n, maxFlights)
	}
	f.up.hook = nil
	f.want(t, f) // beyond the bound, content is still had, and proven
	close(hold)
}

// More than may be kept is not spooled into the cache, and is had all the same.
func TestMoreThanMayBeKept(t *testing.T) {
	f := setup(t, t.TempDir())
	f.c.Max = size / 2
	f.want(t, f)
	f.landed(t)
	if _, err := f.cache.Resolve(t.Context(), f.ref); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("got error %v, want ErrNotFound", err)
	}
	if n := f.diskFaults.Get(); n != 0 {
		t.Errorf("%d disk faults on a healthy disk", n)
	}
	f.c.Source = sizeless{f.up} // and where only the bytes tell
	if _, _, err := ocitest.ReadAll(t.Context(), f, f.ref); err == nil {
		t.Error("content of unknown size beyond the limit was given through unproven")
	}
	f.landed(t)
}

// Content that nobody can tell the end of is not fetched for nobody.
func TestUnknownSizeEndsWithItsReaders(t *testing.T) {
	f := setup(t, t.TempDir())
	hold, opened := make(chan struct{}), make(chan struct{})
	f.up.hook = func(_ int64, _ oci.Reference, _ int64, rc io.ReadCloser) (io.ReadCloser, error) {
		close(opened)
		return gate(rc, 1000, hold), nil
	}
	f.c.Source = sizeless{f.up}
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, _, err := f.Open(ctx, f.ref, 0, -1)
		left <- err
	}()
	<-opened
	for { // until the flight knows that it does not know
		f.mu.Lock()
		fl := f.flights[keyOf(f.ref)]
		f.mu.Unlock()
		if !fl.sized() {
			break
		}
		time.Sleep(time.Millisecond)
	}
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want context.Canceled", err)
	}
	f.mu.Lock()
	fl := f.flights[keyOf(f.ref)]
	f.mu.Unlock()
	if fl != nil && fl.ctx.Err() == nil {
		t.Error("the transfer goes on although nobody can know what for")
	}
	close(hold)
	f.landed(t)
}

// What a tag names for a client with credentials of its own is not recorded for others.
func TestPrivateTagsAreNotRecorded(t *testing.T) {
	f := setup(t, t.TempDir())
	ref := oci.Reference{Registry: "registry.test", Repository: "private", Tag: "v1"}
	desc := f.up.Image(ref, []byte("secret"))
	ctx := oci.WithAuthorization(t.Context(), "Basic YWxpY2U6eA==")
	if _, _, err := ocitest.ReadAll(ctx, f, ref.WithDigest(desc.Digest)); err != nil {
		t.Fatal(err)
	}
	f.landed(t)
	if _, err := f.cache.Resolve(t.Context(), ref); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("the tag: got error %v, want ErrNotFound", err)
	}
	if _, err := f.cache.Resolve(t.Context(), ref.WithDigest(desc.Digest)); err != nil {
		t.Errorf("the content: %v", err)
	}
}

// Flights that strangers left must not keep others from sharing theirs.
func TestAbandonedFlightsMakeRoom(t *testing.T) {
	f := setup(t, t.TempDir())
	f.c.Log = slog.New(slog.DiscardHandler)
	hold := make(chan struct{})
	defer close(hold)
	var honest atomic.Int64
	f.up.hook = func(_ int64, ref oci.Reference, _ int64, rc io.ReadCloser) (io.ReadCloser, error) {
		if ref.Registry == "evil.test" {
			return gate(rc, 1, hold), nil
		}
		honest.Add(1)
		time.Sleep(50 * time.Millisecond)
		return rc, nil
	}
	for i := range 128 {
		r := f.ref
		r.Registry = "evil.test"
		r.Digest = f.up.Add("", []byte(fmt.Sprint("blob ", i))).Digest
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			if rc, _, err := f.Open(ctx, r, 0, -1); err == nil {
				rc.Close()
			}
		}()
		time.Sleep(2 * time.Millisecond)
		cancel() // gone
	}
	done := make(chan struct{})
	for range 20 {
		go func() {
			_, _, _ = ocitest.ReadAll(t.Context(), f, f.ref)
			done <- struct{}{}
		}()
	}
	for range 20 {
		<-done
	}
	_, err := f.cache.Resolve(t.Context(), f.ref)
	if honest.Load() != 1 || err != nil {
		t.Errorf("20 honest clients of one blob: %d upstream requests, kept: %v", honest.Load(), err)
	}
}

// A flight that ends because nobody can know its end must not take the next client with it.
func TestTheNextAfterAnUnsizedFlight(t *testing.T) {
	f := setup(t, t.TempDir())
	f.c.Source = ctxSource{f.up}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		_, _, _ = ocitest.ReadAll(ctx, f, f.ref)
		close(done)
	}()
	for f.up.opens.Load() < 1 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond)
	cancel()
	<-done
	b, _, err := ocitest.ReadAll(t.Context(), f, f.ref)
	if err != nil || !bytes.Equal(b, f.blob) {
		t.Errorf("the next client: %d bytes, %v", len(b), err)
	}
}

// What one registry says of a size is not what another one has.
func TestResolveDoesNotMixRegistries(t *testing.T) {
	f := setup(t, t.TempDir())
	hold := make(chan struct{})
	defer close(hold)
	f.c.Source = lyingSize{f.up}
	f.up.hook = func(_ int64, _ oci.Reference, _ int64, rc io.ReadCloser) (io.ReadCloser, error) {
		return gate(rc, 1000, hold), nil
	}
	evil := f.ref
	evil.Registry = "evil.test"
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	rc, _, err := f.Open(ctx, evil, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	d, err := f.Resolve(t.Context(), f.ref)
	if err != nil || d.Size != size {
		t.Errorf("HEAD to the honest registry: size %d, %v", d.Size, err)
	}
}

// A reader that failed stays failed.
func TestReadAfterAnError(t *testing.T) {
	f := setup(t, t.TempDir())
	right := []byte(`{"os":"linux"}`)
	f.ref.Digest = ocitest.Digest(right)
	f.up.AddAs(f.ref.Digest, "", []byte(`{"os":"linuX"}`))
	f.up.onBlame = func() { _ = f.up.Delete(context.Background(), f.ref.Digest) }
	open := make(chan struct{})
	f.up.hook = func(_ int64, _ oci.Reference, _ int64, rc io.ReadCloser) (io.ReadCloser, error) {
		return gate(rc, 1, open), nil
	}
	rc, _, err := f.Open(t.Context(), f.ref, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	close(open)
	for range 3 {
		if n, err := rc.Read(make([]byte, 100)); err == nil || err == io.EOF {
			t.Errorf("got %d bytes, error %v, want a failure", n, err)
		}
	}
}

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

// Credentials are part of whom to ask: one client's refusal is not another's.
func TestAnotherClientsCredentials(t *testing.T) {
	f := setup(t, t.TempDir())
	f.c.Source = asking{f.up}
	entered, proceed := make(chan struct{}), make(chan struct{})
	f.up.hook = func(n int64, _ oci.Reference, _ int64, rc io.ReadCloser) (io.ReadCloser, error) {
		if n == 1 {
			close(entered)
			<-proceed
		}
		return rc, nil
	}
	errs := make(chan error, 2)
	for i, who := range []string{"Basic bWFsbG9yeTp4", "Basic YWxpY2U6eA=="} {
		go func() {
			_, _, err := ocitest.ReadAll(oci.WithAuthorization(context.Background(), who), f, f.ref)
			errs <- err
		}()
		if i == 0 {
			<-entered
		}
	}
	for {
		f.mu.Lock()
		n := len(f.flights[keyOf(f.ref)].origins)
		f.mu.Unlock()
		if n == 2 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	close(proceed)
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := f.up.opens.Load(); n != 2 {
		t.Errorf("asked %d times, want twice: with each client's credentials", n)
	}
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

// After Close nothing begins.
func TestClosed(t *testing.T) {
	f := setup(t, t.TempDir())
	if err := f.Engine.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.want(t, f) // straight through
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.flights) != 0 {
		t.Error("a transfer began after Close")
	}
}

// A source may say that there is nothing, and be wrong: the end of nothing waits for the proof, too.
func TestNothingIsProven(t *testing.T) {
	for _, dir := range []string{"", t.TempDir()} {
		f := setup(t, dir)
		f.up.AddAs(f.ref.Digest, "", nil)
		if b, _, err := ocitest.ReadAll(t.Context(), f, f.ref); !errors.Is(err, oci.ErrDigestMismatch) {
			t.Errorf("got %d bytes, error %v, want ErrDigestMismatch", len(b), err)
		}
		f.ref.Digest, f.blob = f.up.Add("", nil).Digest, nil
		f.want(t, f)
	}
}

// A file of the cache that cannot be opened, or read, is fetched again and replaced.
func TestASickFileIsReplaced(t *testing.T) {
	for _, opens := range []bool{false, true} {
		f := setup(t, t.TempDir())
		f.want(t, f)
		f.landed(t)
		sick := &sickStore{Cache: f.cache, opens: opens}
		disk := chain.Once(f.c.Log, "cache", sick)
		f.c.Store = struct {
			oci.Spool
			oci.Source
		}{f.cache, disk}
		full := chain.First(f.c.Log, chain.Resume(f.c.Log, disk, f.Engine), f.Engine)
		f.want(t, full)
		f.landed(t)
		if n := f.up.opens.Load(); n != 2 {
			t.Errorf("opens %v: upstream was asked %d times, want once more", opens, n)
		}
		sick.well = true
		f.want(t, full)
		if n := f.up.opens.Load(); n != 2 {
			t.Errorf("opens %v: the file was not replaced", opens)
		}
	}
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

// Two nodes that are each other's mirrors and are asked for the same at once must not wait for each other.
func TestAnotherNodeDoesNotWaitForAFlightThatWaits(t *testing.T) {
	f := setup(t, t.TempDir())
	entered, answer := make(chan struct{}), make(chan struct{})
	f.up.hook = func(n int64, _ oci.Reference, _ int64, rc io.ReadCloser) (io.ReadCloser, error) {
		if n == 1 { // the other node, which waits for us
			close(entered)
			<-answer
		}
		return rc, nil
	}
	first := make(chan error, 1)
	go func() {
		_, _, err := ocitest.ReadAll(context.Background(), f, f.ref)
		first <- err
	}()
	<-entered
	b, _, err := ocitest.ReadAll(oci.WithVia(t.Context(), "1.1 pier-2"), f, f.ref)
	if err != nil || !bytes.Equal(b, f.blob) {
		t.Errorf("the other node: got %d bytes, error %v", len(b), err)
	}
	close(answer)
	if err := <-first; err != nil {
		t.Error(err)
	}
}
