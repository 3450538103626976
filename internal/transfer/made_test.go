package transfer

import (
	"bytes"
	"io"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// What a Source has to make is made once for those who read it in parts, and let go of soon after.
func TestWhatIsMadeIsMadeOnce(t *testing.T) {
	f := setup(t, "")
	f.c.Linger = 50 * time.Millisecond
	parts := func() {
		t.Helper()
		for _, offset := range []int64{size / 2, 0, size - 1} {
			rc, _, err := f.Open(t.Context(), f.ref, offset, 1)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(rc); err != nil || !bytes.Equal(b, f.blob[offset:offset+1]) {
				t.Errorf("a byte at %d: got %x, %v, want %x", offset, b, err, f.blob[offset])
			}
			rc.Close()
		}
	}
	parts()
	parts()
	if n := f.up.opens.Load(); n != 1 {
		t.Errorf("it was made %d times", n)
	}
	f.landed(t)
	parts()
	if n := f.up.opens.Load(); n != 2 {
		t.Errorf("after a rest it was made %d times in all, want 2", n)
	}
}

// A reader that comes while a transfer lingers is not cut off when the first one's time is over.
func TestLingerEndsWithTheLastReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := New(Config{Source: &ocitest.Memory{}, Linger: time.Second})
		defer func() { _ = e.Close(t.Context()) }()
		fl := newFlight(e, oci.Reference{Digest: ocitest.Absent})
		fl.known = true
		e.flights[fl.key] = fl
		fl.readers = 1
		e.leave(fl)
		time.Sleep(900 * time.Millisecond)
		fl.readers++
		e.leave(fl)
		time.Sleep(900 * time.Millisecond)
		if synctest.Wait(); fl.ctx.Err() != nil {
			t.Error("it ended a second after the first reader left, not after the last")
		}
		time.Sleep(200 * time.Millisecond)
		if synctest.Wait(); fl.ctx.Err() == nil || len(e.flights) != 0 {
			t.Error("it does not end")
		}
	})
}

// spoolOf is a Spool that notes what it is shown.
type spoolOf struct {
	oci.Spool
	committed atomic.Int64
}

func (s *spoolOf) Begin(ref oci.Reference) (oci.Partial, error) {
	p, err := s.Spool.Begin(ref)
	return &shown{p, s}, err
}

type shown struct {
	oci.Partial
	s *spoolOf
}

func (s *shown) Commit(ref oci.Reference, desc oci.Descriptor) error {
	var info os.FileInfo
	info, err := s.File().Stat()
	if err == nil && info.Size() == desc.Size {
		s.s.committed.Add(1)
	}
	return err
}

// Without a Store, whoever lends the files sees what was proven, and nothing else.
func TestWhoLendsFilesSeesWhatWasProven(t *testing.T) {
	f := setup(t, "")
	spool := &spoolOf{Spool: Temporary(t.TempDir())}
	e := New(Config{Source: f.up, Spool: spool, Log: f.c.Log})
	defer func() { _ = e.Close(t.Context()) }()
	rc, _, err := e.Open(t.Context(), f.ref, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if b, err := io.ReadAll(rc); err != nil || !bytes.Equal(b, f.blob) {
		t.Fatalf("read %d bytes, %v", len(b), err)
	}
	f.soon(t, func() bool { return spool.committed.Load() == 1 })

	wrong := f.ref.WithDigest(ocitest.Digest([]byte("others")))
	f.up.AddAs(wrong.Digest, "", f.blob)
	rc, _, err = e.Open(t.Context(), wrong, 0, -1)
	if err == nil {
		_, err = io.ReadAll(rc)
		rc.Close()
	}
	if err == nil || spool.committed.Load() != 1 {
		t.Errorf("wrong content: %v, and %d contents were shown, want 1", err, spool.committed.Load())
	}
}
