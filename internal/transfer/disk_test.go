package transfer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pier/internal/chain"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

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
					f.until(t, f.ref, func(fl *flight) bool {
						fl.mu.Lock()
						defer fl.mu.Unlock()
						return fl.available >= c.at // what the disk takes
					})
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

// wrongOnAFullDisk returns an engine whose upstream has wrong content, and whose disk takes 300,000 bytes of it.
func wrongOnAFullDisk(t *testing.T) (*fixture, *sealing) {
	t.Helper()
	f := setup(t, "")
	spool := &sealing{Source: &ocitest.Memory{}}
	f.c.Store, f.spool = spool, spool
	wrong := bytes.Clone(f.blob)
	wrong[10] ^= 1
	f.up.AddAs(f.ref.Digest, "", wrong)
	f.up.hook = func(n int64, _ oci.Reference, _ int64, rc io.ReadCloser) (io.ReadCloser, error) {
		if n == 1 && spool.err == nil {
			return withReader(rc, io.MultiReader(io.LimitReader(rc, 300_000), readerFunc(func([]byte) (int, error) {
				spool.seal(t)
				return 0, io.EOF
			}), rc)), nil
		}
		return rc, nil
	}
	return f, spool
}

// Wrong content stays wrong when the disk fails: what is read past the file is proven together with it.
func TestDiskFullAndWrongContent(t *testing.T) {
	f, _ := wrongOnAFullDisk(t)
	if b, err := f.first(t); !errors.Is(err, oci.ErrDigestMismatch) {
		t.Errorf("got %d bytes, error %v, want ErrDigestMismatch", len(b), err)
	}
}

// Without a size there is no telling the last bytes: wrong content of a registry that tells none must not pass when the disk fails.
func TestDiskFullAndSizeUnknown(t *testing.T) {
	for _, mid := range []bool{true, false} {
		f, spool := wrongOnAFullDisk(t)
		if !mid {
			spool.err = os.ErrPermission
		}
		f.c.Source = sizeless{f.up}
		b, _, err := ocitest.ReadAll(t.Context(), f, f.ref)
		if err == nil && !bytes.Equal(b, f.blob) {
			t.Errorf("mid=%v: %d wrong bytes ended cleanly", mid, len(b))
		}
	}
}

// A reader that boarded before the disk failed and looks only after it has nothing to go on from, and proves from the start.
func TestAReaderThatComesAfterTheDiskFailed(t *testing.T) {
	f, _ := wrongOnAFullDisk(t)
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

// A source of wrong content was never told where nothing is spooled, and asked again each time: whoever claims that content is
// larger than may be kept gets there.
func TestWrongContentThatIsNotSpooledIsBlamed(t *testing.T) {
	f := setup(t, t.TempDir())
	f.c.Max = 1000
	wrong := bytes.Clone(f.blob)
	wrong[10] ^= 1
	f.up.AddAs(f.ref.Digest, "", wrong)
	if _, _, err := ocitest.ReadAll(t.Context(), f, f.ref); !errors.Is(err, oci.ErrDigestMismatch) {
		t.Errorf("got error %v, want ErrDigestMismatch", err)
	}
	if n := f.up.blamed.Load(); n != 1 {
		t.Errorf("the source was blamed %d times, want once", n)
	}
}
