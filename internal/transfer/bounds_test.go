package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

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
	f.until(t, f.ref, func(fl *flight) bool { return fl.readers == 64 })
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
	f.until(t, f.ref, func(fl *flight) bool { return !fl.sized() })
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
	for end := time.Now().Add(10 * time.Second); err != nil && time.Now().Before(end); _, err = f.cache.Resolve(t.Context(), f.ref) {
		time.Sleep(10 * time.Millisecond) // it is kept a moment after the clients have it
	}
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
