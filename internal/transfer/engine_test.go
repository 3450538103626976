package transfer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"testing"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

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
