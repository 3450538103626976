package transfer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/iotest"
	"time"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

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
	f.until(t, f.ref, func(fl *flight) bool { return fl.readers == 2 })
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

func TestManifestTooLarge(t *testing.T) {
	f := setup(t, t.TempDir())
	big := f.up.Add("application/vnd.oci.image.manifest.v1+json", make([]byte, oci.MaxManifest+1))
	f.ref.Kind, f.ref.Digest = oci.Manifest, big.Digest
	if _, _, err := f.Open(t.Context(), f.ref, 0, -1); !errors.Is(err, oci.ErrTooLarge) {
		t.Errorf("got error %v, want ErrTooLarge", err)
	}
}

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
	f.until(t, m, func(*flight) bool { return true })
	b, _, err := ocitest.ReadAll(t.Context(), f, f.ref)
	close(hold)
	if err == nil && !bytes.Equal(b, f.blob) {
		t.Errorf("%d wrong bytes ended cleanly", len(b))
	}
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
	f.until(t, f.ref, func(fl *flight) bool { return len(fl.origins) == 2 })
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
