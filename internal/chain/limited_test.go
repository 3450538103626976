package chain

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

func TestLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &ocitest.Memory{}
		const size = 1 << 20
		ref := blobOf(src, ocitest.Bytes(1, size))
		l := Limited(src, rate.NewLimiter(size, quantum)) // one second each
		start := time.Now()
		if got, _, err := ocitest.ReadAll(t.Context(), l, ref); err != nil || len(got) != size {
			t.Fatalf("got %d bytes, error %v", len(got), err)
		}
		// The first quantum is the burst.
		if d, want := time.Since(start), time.Second*(size-quantum)/size; d < want-time.Millisecond || d > want+time.Millisecond {
			t.Errorf("took %s, want %s", d, want)
		}
	})
}

// A reader that came later, or reads in larger pieces, must not starve another.
func TestLimitedSharesFairly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &ocitest.Memory{}
		ref := blobOf(src, ocitest.Bytes(1, 4<<20))
		l := Limited(src, rate.NewLimiter(1<<20, quantum))
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		var given [3]int
		var wg sync.WaitGroup
		for i := range given {
			wg.Go(func() {
				rc, _, err := l.Open(ctx, ref, 0, -1)
				if err != nil {
					t.Error(err)
					return
				}
				defer rc.Close()
				buf := make([]byte, quantum<<i)
				for err == nil {
					var n int
					n, err = rc.Read(buf)
					given[i] += n
				}
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got error %v, want DeadlineExceeded", err)
				}
			})
		}
		wg.Wait()
		for _, n := range given {
			if share := 2 << 20 / len(given); n < share-2*quantum || n > share+2*quantum {
				t.Errorf("readers were given %v bytes, want %d each", given, share)
			}
		}
	})
}

func TestLimitedByNothing(t *testing.T) {
	src := newFaulty()
	if Limited(src, nil) != oci.Source(src) {
		t.Error("no limit is a wrapper")
	}
	files := newFiles(t)
	b := ocitest.Bytes(1, 1000)
	ref := files.add(t, ocitest.Digest(b), b, time.Now())
	rc, _, err := Limited(files, rate.NewLimiter(1<<20, quantum)).Open(t.Context(), ref, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if _, ok := rc.(io.WriterTo); ok {
		t.Error("a limited reader hands its file to the kernel, which pays nothing")
	}
}

func TestLimitedForwards(t *testing.T) {
	src := newFaulty()
	src.Image(app)
	l := Limited(src, rate.NewLimiter(rate.Inf, 0))
	if tags, err := l.(oci.Lister).Tags(t.Context(), app.Registry, app.Repository); err != nil || len(tags) != 1 {
		t.Errorf("got tags %v, %v", tags, err)
	}
	l.(oci.Blamer).Blame(app, "memory")
	if src.blamed.Load() != 1 {
		t.Error("blame is not forwarded")
	}
	var plain struct{ oci.Source }
	l = Limited(plain, rate.NewLimiter(rate.Inf, 0))
	if _, err := l.(oci.Lister).Tags(t.Context(), app.Registry, app.Repository); !errors.Is(err, oci.ErrUnsupported) {
		t.Errorf("lists of a source without: got error %v, want ErrUnsupported", err)
	}
}
