package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pier/internal/chain"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// A pull is content on its way into a content directory, as containerd writes it.
type pull struct {
	t    *testing.T
	root string
	dir  string
	dgst oci.Digest
	all  []byte
	file *os.File
	n    int
}

// startPull begins a pull of b under ref, whose verb stands for the digest, with its size known.
func startPull(t *testing.T, root, ref string, b []byte) *pull {
	t.Helper()
	p := &pull{t: t, root: root, dgst: ocitest.Digest(b), all: b}
	ref = fmt.Sprintf(ref, p.dgst)
	p.dir = filepath.Join(root, "ingest", ocitest.Digest([]byte(ref)).Encoded())
	p.must(os.MkdirAll(p.dir, 0o755))
	p.must(os.WriteFile(filepath.Join(p.dir, "ref"), []byte(ref), 0o644))
	p.must(os.WriteFile(filepath.Join(p.dir, "total"), fmt.Append(nil, len(b)), 0o644))
	f, err := os.Create(filepath.Join(p.dir, "data"))
	p.must(err)
	t.Cleanup(func() { f.Close() })
	p.file = f
	p.touch()
	return p
}

const layerRef = "k8s.io/7/layer-%s"

func (p *pull) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// touch gives data the time of the bubble that the test runs in.
func (p *pull) touch() { p.must(os.Chtimes(filepath.Join(p.dir, "data"), time.Now(), time.Now())) }

// write writes the next n bytes.
func (p *pull) write(n int) {
	p.t.Helper()
	_, err := p.file.WriteAt(p.all[p.n:p.n+n], int64(p.n))
	p.must(err)
	p.n += n
	p.touch()
}

func (p *pull) truncate() {
	p.t.Helper()
	p.must(p.file.Truncate(0))
	p.n = 0
	p.touch()
}

func (p *pull) commit() {
	p.t.Helper()
	p.must(os.MkdirAll(filepath.Join(p.root, "blobs", "sha256"), 0o755))
	p.must(os.Rename(filepath.Join(p.dir, "data"), chain.BlobPath(p.root, p.dgst)))
	p.must(os.RemoveAll(p.dir))
}

func (p *pull) abort() { p.must(os.RemoveAll(p.dir)) }

func (p *pull) ref() oci.Reference {
	return oci.Reference{Registry: "registry.test", Repository: "app", Kind: oci.Blob, Digest: p.dgst}
}

func newIngest(t *testing.T) (oci.Source, string) {
	t.Helper()
	root := filepath.Join(t.TempDir(), contentDir)
	return open(t, Config{Socket: filepath.Join(root, "none"), Root: root}).Ingest(), root
}

// A follower reads a blob as it arrives. got and err may be looked at after end.
type follower struct {
	n   atomic.Int64 // bytes so far
	got bytes.Buffer
	err error
	end chan struct{}
}

func (f *follower) Write(p []byte) (int, error) {
	f.n.Add(int64(len(p)))
	return f.got.Write(p)
}

func follow(t *testing.T, src oci.Source, ref oci.Reference, offset, length int64) *follower {
	t.Helper()
	rc, _, err := src.Open(t.Context(), ref, offset, length)
	if err != nil {
		t.Fatal(err)
	}
	f := &follower{end: make(chan struct{})}
	go func() {
		defer close(f.end)
		defer rc.Close()
		var r io.Reader = rc
		if length >= 0 {
			r = struct{ io.Reader }{rc} // by Read, not WriteTo
		}
		_, f.err = io.Copy(f, r)
	}()
	return f
}

func TestIngestGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, root := newIngest(t)
		p := startPull(t, root, layerRef, ocitest.Bytes(1, 100_000))
		p.write(1000)
		desc, err := src.Resolve(t.Context(), p.ref())
		if want := (oci.Descriptor{MediaType: "application/octet-stream", Digest: p.dgst, Size: 100_000, Missing: 99_000, Source: "containerd"}); err != nil || desc != want {
			t.Errorf("Resolve = %+v, %v, want %+v", desc, err, want)
		}
		whole := follow(t, src, p.ref(), 0, -1)
		part := follow(t, src, p.ref(), 500, 2000)
		for range 9 {
			time.Sleep(time.Second)
			if n := whole.n.Load(); n != int64(p.n) {
				t.Errorf("%d bytes handed out of %d that are there", n, p.n)
			}
			p.write(10_000)
		}
		<-part.end
		if part.err != nil || !bytes.Equal(part.got.Bytes(), p.all[500:2500]) {
			t.Errorf("part: got %d bytes, error %v", part.got.Len(), part.err)
		}
		late := follow(t, src, p.ref(), 80_000, -1)
		p.write(9000)
		time.Sleep(20 * time.Second) // containerd syncs what it received to disk
		if n := whole.n.Load(); n != int64(len(p.all)-1) {
			t.Errorf("%d bytes handed out before the commit, want all of %d but one", n, len(p.all))
		}
		later := follow(t, src, p.ref(), 10, -1)
		p.commit()
		for _, f := range []*follower{whole, late, later} {
			<-f.end
			if f.err != nil || !bytes.Equal(f.got.Bytes(), p.all[len(p.all)-f.got.Len():]) {
				t.Errorf("got %d bytes, error %v", f.got.Len(), f.err)
			}
		}
		if whole.got.Len() != len(p.all) || late.got.Len() != 20_000 || later.got.Len() != len(p.all)-10 {
			t.Errorf("got %d, %d and %d bytes", whole.got.Len(), late.got.Len(), later.got.Len())
		}
	})
}

// Whatever becomes of a pull, its follower is told within a bounded time, after the bytes that were there.
func TestIngestBreaks(t *testing.T) {
	tests := map[string]struct {
		breaks func(p *pull)
		got    int
		within time.Duration
	}{
		"abort":     {(*pull).abort, 600, time.Second},
		"truncate":  {(*pull).truncate, 600, time.Second},
		"rest":      {func(*pull) {}, 600, 6 * time.Second},
		"no commit": {func(p *pull) { p.write(400) }, 999, 31 * time.Second},
		"larger than announced": {func(p *pull) {
			p.all = append(p.all, 1)
			p.write(401)
		}, 600, time.Second},
		"wrong content aborted": {func(p *pull) {
			p.write(400)
			time.Sleep(time.Second)
			p.abort()
		}, 999, 2 * time.Second},
		// Another pull committed the same digest; what this one wrote was never verified.
		"another committed": {func(p *pull) {
			p.write(400)
			other := startPull(p.t, p.root, "default/1/layer-%s", p.all)
			other.write(1000)
			other.commit()
			p.abort()
		}, 999, time.Second},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				src, root := newIngest(t)
				p := startPull(t, root, layerRef, ocitest.Bytes(1, 1000))
				p.write(600)
				f := follow(t, src, p.ref(), 0, -1)
				synctest.Wait()
				start := time.Now()
				tt.breaks(p)
				<-f.end
				if !errors.Is(f.err, oci.ErrUnavailable) || f.got.Len() != tt.got {
					t.Errorf("got %d bytes, error %v, want %d, ErrUnavailable", f.got.Len(), f.err, tt.got)
				}
				if d := time.Since(start); d > tt.within {
					t.Errorf("told after %v, want within %v", d, tt.within)
				}
				if _, _, err := src.Open(t.Context(), p.ref(), int64(f.got.Len()), -1); err == nil {
					t.Error("the same broken pull is offered again")
				}
			})
		})
	}
}

func TestIngestFollowerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, root := newIngest(t)
		p := startPull(t, root, layerRef, ocitest.Bytes(1, 1000))
		p.write(10)
		ctx, cancel := context.WithCancel(t.Context())
		rc, _, err := src.Open(ctx, p.ref(), 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer rc.Close()
		time.AfterFunc(time.Second, cancel)
		if n, err := io.Copy(io.Discard, rc); n != 10 || !errors.Is(err, context.Canceled) {
			t.Errorf("got %d bytes, error %v, want 10, Canceled", n, err)
		}
	})
}

// A runtime that pulls through Pier has its ingest before it asks: it must not be made to wait for itself.
func TestIngestNeverFeedsItsWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, root := newIngest(t)
		p := startPull(t, root, layerRef, ocitest.Bytes(1, 1000))
		absent := func(what string, offset int64) {
			t.Helper()
			if _, _, err := src.Open(t.Context(), p.ref(), offset, -1); !errors.Is(err, oci.ErrNotFound) {
				t.Errorf("%s: got error %v, want ErrNotFound", what, err)
			}
		}
		absent("a pull that begins", 0)
		if _, err := src.Resolve(t.Context(), p.ref()); !errors.Is(err, oci.ErrNotFound) {
			t.Errorf("Resolve of a pull that begins: got error %v, want ErrNotFound", err)
		}
		p.write(600)
		absent("a pull that resumes where it is", 600)
		absent("a part past what is there", 900)
		time.Sleep(3 * time.Second)
		absent("a pull that rests", 0)
		p.write(400)
		absent("a pull that has all", 1000)
		time.Sleep(31 * time.Second)
		absent("a pull that has all and was given up", 0)
	})
}

// Two pulls of one blob at once, as of two namespaces: the one that is behind may follow the other.
func TestIngestFurthestIsFollowed(t *testing.T) {
	src, root := newIngest(t)
	b := ocitest.Bytes(1, 1000)
	for ns, n := range map[string]int{"a": 10, "b": 700, "c": 300} {
		startPull(t, root, ns+"/1/layer-%s", b).write(n)
	}
	ref := oci.Reference{Kind: oci.Blob, Digest: ocitest.Digest(b)}
	if desc, err := src.Resolve(t.Context(), ref); err != nil || desc.Missing != 300 {
		t.Errorf("Resolve = %+v, %v, want 300 bytes missing", desc, err)
	}
	if _, _, err := src.Open(t.Context(), ref, 1001, -1); !errors.Is(err, oci.ErrRange) {
		t.Errorf("Open past the end: got error %v, want ErrRange", err)
	}
	ref.Kind = oci.Manifest
	if _, _, err := src.Open(t.Context(), ref, 0, -1); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("Open as a manifest: got error %v, want ErrNotFound", err)
	}
}

func TestIngestFiles(t *testing.T) {
	tests := map[string]struct {
		ref   string
		spoil func(p *pull)
		found bool
	}{
		"layer":             {ref: layerRef, found: true},
		"config":            {ref: "default/123/config-%s", found: true},
		"named":             {ref: "default/1/layer-docker.io/library/a-b@%s", found: true},
		"unknown media":     {ref: "default/1/unknown-%s", found: true},
		"conversion":        {ref: "default/1/convert-uncompress-from-%s"},
		"archive":           {ref: "default/1/tar-blobs/%s"},
		"no namespace":      {ref: "layer-%s"},
		"nothing after it":  {ref: "default/1/layer-%s.tmp"},
		"size unknown":      {ref: layerRef, spoil: func(p *pull) { p.must(os.Remove(filepath.Join(p.dir, "total"))) }},
		"size zero":         {ref: layerRef, spoil: func(p *pull) { p.must(os.WriteFile(filepath.Join(p.dir, "total"), []byte("0"), 0o644)) }},
		"size no number":    {ref: layerRef, spoil: func(p *pull) { p.must(os.WriteFile(filepath.Join(p.dir, "total"), nil, 0o644)) }},
		"ref half written":  {ref: layerRef, spoil: func(p *pull) { p.must(os.Truncate(filepath.Join(p.dir, "ref"), 20)) }},
		"ref of another id": {ref: layerRef, spoil: func(p *pull) { p.must(os.Rename(p.dir, p.dir[:len(p.dir)-1]+"x")) }},
		"no data yet":       {ref: layerRef, spoil: func(p *pull) { p.must(os.Remove(filepath.Join(p.dir, "data"))) }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			src, root := newIngest(t)
			p := startPull(t, root, tt.ref, ocitest.Bytes(1, 1000))
			p.write(500)
			if tt.spoil != nil {
				tt.spoil(p)
			}
			_, err := src.Resolve(t.Context(), p.ref())
			if tt.found != (err == nil) || (err != nil && !errors.Is(err, oci.ErrNotFound)) {
				t.Errorf("got error %v, want found %v", err, tt.found)
			}
		})
	}
}

// Followers are fed by the kernel as far as bytes are there.
func TestIngestHandsOutFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, root := newIngest(t)
		p := startPull(t, root, layerRef, ocitest.Bytes(1, 100_000))
		p.write(50_000)
		rc, _, err := src.Open(t.Context(), p.ref(), 1000, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer rc.Close()
		time.AfterFunc(time.Second, func() { p.write(50_000) })
		time.AfterFunc(2*time.Second, p.commit)
		var w fileSink
		if _, err := io.Copy(&w, rc); err != nil || !bytes.Equal(w.Bytes(), p.all[1000:]) || w.files != 3 {
			t.Errorf("got %d bytes in %d files, error %v", w.Len(), w.files, err)
		}
	})
}

// That a download was aborted while a part of it was read says nothing against the blob that containerd has in the end.
func TestAnAbortedDownloadIsNoDamage(t *testing.T) {
	root := t.TempDir() + "/" + contentDir
	store := open(t, Config{Socket: root + "/none", Root: root})
	log := slog.New(slog.DiscardHandler)
	right := ocitest.Bytes(3, 300_000)
	p := startPull(t, root, layerRef, right)
	p.write(200_000)
	local := chain.First(log, chain.Once(log, "containerd", store))
	src := chain.Resume(log, chain.First(log, local, chain.Verified(store.Ingest())), chain.First(log))
	rc, _, err := src.Open(t.Context(), p.ref(), 10, -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(rc, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	p.abort()
	_, err = io.Copy(io.Discard, rc)
	if err == nil {
		t.Error("a download that was aborted ended cleanly")
	}
	rc.Close()
	p = startPull(t, root, layerRef, right)
	p.write(300_000)
	p.commit()
	rc, _, err = local.Open(t.Context(), p.ref(), 0, -1)
	if err != nil {
		t.Fatalf("containerd has the blob, whole and right: %v", err)
	}
	rc.Close()
}

// containerd may be given wrong bytes by a registry, and refuses them. Whoever follows must not be left with them.
func TestWrongBytesOfAnAbortedDownload(t *testing.T) {
	src, root := newIngest(t)
	right := ocitest.Bytes(3, 200_000)
	wrong := bytes.Clone(right)
	wrong[10] ^= 1
	p := startPull(t, root, layerRef, right)
	p.all = wrong
	good := &ocitest.Memory{}
	good.Add("", right)
	log := slog.New(slog.DiscardHandler)
	p.write(len(wrong)) // all of it: now containerd checks the digest
	full := chain.Resume(log, chain.Verified(src), good)
	rc, _, err := full.Open(t.Context(), p.ref(), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	go func() { time.Sleep(200 * time.Millisecond); p.abort() }()
	b, err := io.ReadAll(rc)
	if err == nil && !bytes.Equal(b, right) {
		t.Errorf("%d wrong bytes ended cleanly", len(b))
	}
}
