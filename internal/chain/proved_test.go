package chain

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// gated is a Source whose readers wait at a gate before every read.
type gated struct {
	*ocitest.Memory
	gate    chan struct{} // closed: open
	waiting atomic.Int64  // readers at the gate
	bytes   atomic.Int64  // read
}

func newGated() *gated { return &gated{Memory: &ocitest.Memory{}, gate: make(chan struct{})} }

func (g *gated) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	rc, desc, err := g.Memory.Open(ctx, ref, offset, length)
	if err != nil {
		return nil, desc, err
	}
	return &gatedReader{rc, g}, desc, nil
}

type gatedReader struct {
	io.ReadCloser
	g *gated
}

func (r *gatedReader) Read(p []byte) (int, error) {
	r.g.waiting.Add(1)
	<-r.g.gate
	r.g.waiting.Add(-1)
	n, err := r.ReadCloser.Read(p)
	r.g.bytes.Add(int64(n))
	return n, err
}

func TestProvedGivesNoByteOfWrongContent(t *testing.T) {
	b := ocitest.Bytes(1, 5*HoldBack)
	for _, length := range []int64{-1, 10} {
		src := &ocitest.Memory{}
		ref := blobOf(src, b)
		wrong := bytes.Clone(b)
		wrong[4*HoldBack] ^= 1
		src.AddAs(ref.Digest, "", wrong)
		p := Proved(Once(quiet, "memory", src))
		rc, desc, err := p.Open(t.Context(), ref, 0, length)
		if err != nil || desc.Missing != desc.Size {
			t.Fatalf("got %+v, %v, want all of it missing", desc, err)
		}
		var got bytes.Buffer
		if _, err := io.Copy(&got, rc); !errors.Is(err, oci.ErrDigestMismatch) || got.Len() > 0 {
			t.Errorf("length %d: got %d bytes, error %v, want none and ErrDigestMismatch", length, got.Len(), err)
		}
		if _, err := rc.Read(make([]byte, 1)); !errors.Is(err, oci.ErrDigestMismatch) {
			t.Errorf("read on: got error %v, want ErrDigestMismatch", err)
		}
		rc.Close()
		if _, _, err := p.Open(t.Context(), ref, 0, length); !errors.Is(err, oci.ErrNotFound) {
			t.Errorf("found wrong: got error %v, want ErrNotFound", err)
		}
	}
}

func TestProvedSaysWhatIsMissing(t *testing.T) {
	src := &ocitest.Memory{}
	ref := blobOf(src, ocitest.Bytes(1, 1000))
	p := Proved(src) // of any Source
	if desc, err := p.Resolve(t.Context(), ref); err != nil || desc.Missing != 1000 {
		t.Errorf("before the proof: got %+v, %v", desc, err)
	}
	if _, _, err := ocitest.ReadAll(t.Context(), p, ref); err != nil {
		t.Fatal(err)
	}
	if desc, err := p.Resolve(t.Context(), ref); err != nil || desc.Missing != 0 {
		t.Errorf("after the proof: got %+v, %v", desc, err)
	}
	if rc, desc, err := p.Open(t.Context(), ref, 10, 10); err != nil || desc.Missing != 0 {
		t.Errorf("after the proof: got %+v, %v", desc, err)
	} else {
		rc.Close()
	}
}

func TestProvedOneProofForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newGated()
		b := ocitest.Bytes(1, 100_000)
		ref := blobOf(src.Memory, b)
		o := Once(quiet, "memory", src)
		var wg sync.WaitGroup
		wg.Go(func() {
			rc, _, err := o.Open(t.Context(), ref, 0, 1) // waits for the proof, too
			if err != nil {
				t.Error(err)
				return
			}
			rc.Close()
		})
		for range 10 {
			wg.Go(func() {
				if got, _, err := ocitest.ReadAll(t.Context(), Proved(o), ref); err != nil || !bytes.Equal(got, b) {
					t.Errorf("got %d bytes, error %v", len(got), err)
				}
			})
		}
		synctest.Wait()
		if n := src.waiting.Load(); n != 1 {
			t.Errorf("%d read to prove the same, want 1", n)
		}
		close(src.gate)
		wg.Wait()
		if n := src.bytes.Load(); n != 11*int64(len(b)) {
			t.Errorf("%d bytes read, want the proof's and those of 10 clients", n)
		}
	})
}

// Many cold blobs asked for at once must not take the disk from everybody.
func TestProvedInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newGated()
		p := Proved(Once(quiet, "memory", src))
		ctx, cancel := context.WithCancel(t.Context())
		outcome := make(chan error, 5)
		for i := range 5 {
			ref := blobOf(src.Memory, ocitest.Bytes(uint64(i), 1000))
			go func() {
				_, _, err := ocitest.ReadAll(ctx, p, ref)
				outcome <- err
			}()
		}
		synctest.Wait()
		if n := src.waiting.Load(); n != maxProofs {
			t.Errorf("%d contents read at once, want %d", n, maxProofs)
		}
		cancel()
		for range 5 - maxProofs { // those who wait for their turn
			if err := <-outcome; !errors.Is(err, context.Canceled) {
				t.Errorf("got error %v, want context.Canceled", err)
			}
		}
		close(src.gate)
		for range maxProofs {
			if err := <-outcome; !errors.Is(err, context.Canceled) {
				t.Errorf("in its turn: got error %v, want context.Canceled", err)
			}
		}
	})
}

// Peers that wait less long than a proof takes kept content from ever being proven.
func TestProvedThoughNobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newGated()
		b := ocitest.Bytes(1, 100_000)
		ref := blobOf(src.Memory, b)
		p := Proved(Once(quiet, "memory", src))
		ctx, leave := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, _, err := ocitest.ReadAll(ctx, p, ref); !errors.Is(err, context.Canceled) {
				t.Errorf("who left: got error %v, want context.Canceled", err)
			}
		})
		synctest.Wait()
		wg.Go(func() { // waits for the proof of one who leaves
			if got, _, err := ocitest.ReadAll(t.Context(), p, ref); err != nil || !bytes.Equal(got, b) {
				t.Errorf("who stayed: got %d bytes, error %v", len(got), err)
			}
		})
		synctest.Wait()
		leave()
		close(src.gate)
		wg.Wait()

		other := blobOf(src.Memory, b[1:])
		rc, _, err := p.Open(ctx, other, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := rc.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
			t.Errorf("who left: got error %v, want context.Canceled", err)
		}
		rc.Close()
		synctest.Wait()
		if desc, err := p.Resolve(t.Context(), other); err != nil || desc.Missing != 0 {
			t.Errorf("proven in the background: got %+v, %v", desc, err)
		}
	})
}

// A disk that fails while content is proven: the content is not offered again, and had elsewhere.
func TestProvedMeetsAReadFault(t *testing.T) {
	sick := &sickly{Memory: &ocitest.Memory{}, sick: true}
	ref := blobOf(sick.Memory, ocitest.Bytes(1, 3*HoldBack))
	p := Proved(Once(quiet, "memory", sick))
	var path *fs.PathError
	if got, _, err := ocitest.ReadAll(t.Context(), p, ref); !errors.As(err, &path) || len(got) > 0 {
		t.Errorf("got %d bytes, error %v, want none and the fault", len(got), err)
	}
	if _, _, err := p.Open(t.Context(), ref, 0, -1); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("after the fault: got error %v, want ErrNotFound", err)
	}
}

// fileSink is a writer that takes files, as a connection does.
type fileSink struct {
	bytes.Buffer
	files int
}

func (s *fileSink) ReadFrom(r io.Reader) (int64, error) {
	if l, ok := r.(*io.LimitedReader); ok {
		if _, ok := l.R.(*os.File); ok {
			s.files++
		}
	}
	return s.Buffer.ReadFrom(r)
}

// The kernel sends a file also right after its proof.
func TestProvedHandsFilesThrough(t *testing.T) {
	src := newFiles(t)
	b := ocitest.Bytes(1, 3*HoldBack)
	ref := src.add(t, ocitest.Digest(b), b, time.Now())
	p := Proved(Once(quiet, "files", src))
	for range 2 {
		rc, _, err := p.Open(t.Context(), ref, 5, -1)
		if err != nil {
			t.Fatal(err)
		}
		var sink fileSink
		if _, err := io.Copy(&sink, rc); err != nil || !bytes.Equal(sink.Bytes(), b[5:]) || sink.files != 1 {
			t.Errorf("got %d bytes, %d files, error %v", sink.Len(), sink.files, err)
		}
		rc.Close()
	}
}

// The proof is of the file that is there when it runs, which may not be the one that was opened before.
func TestProvedFileReplacedMeanwhile(t *testing.T) {
	src := newFiles(t)
	b := ocitest.Bytes(1, 3*HoldBack)
	wrong := bytes.Clone(b)
	wrong[5] ^= 1
	ref := src.add(t, ocitest.Digest(b), wrong, time.Now())
	rc, _, err := Proved(Once(quiet, "files", src)).Open(t.Context(), ref, 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	src.add(t, ref.Digest, b, time.Now()) // the runtime pulled it again
	if got, err := io.ReadAll(rc); err != nil || !bytes.Equal(got, b[:10]) {
		t.Errorf("got %x, error %v, want the file that was proven", got, err)
	}
}
