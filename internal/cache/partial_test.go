package cache

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	pier "pier/internal/oci"
	"pier/internal/oci/ocitest"
)

func TestPut(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	b := ocitest.Bytes(1, 1000)
	desc := pier.Descriptor{MediaType: "application/octet-stream", Digest: ocitest.Digest(b)}
	if err := k.Put(t.Context(), desc, bytes.NewReader(b[:999])); !errors.Is(err, pier.ErrDigestMismatch) {
		t.Errorf("Put of other content: got error %v, want ErrDigestMismatch", err)
	}
	if has(k, desc.Digest) {
		t.Error("other content was stored")
	}
	if err := k.Put(t.Context(), desc, bytes.NewReader(b)); err != nil || !has(k, desc.Digest) {
		t.Errorf("Put: %v", err)
	}
	if n, _ := k.Size(); n != 1000 {
		t.Errorf("%d bytes kept, want 1000", n)
	}
	left, err := os.ReadDir(k.path("pier", "partial"))
	if err != nil || len(left) != 0 {
		t.Errorf("left in partial: %v, %v", left, err)
	}
}

func TestOldPartialsGo(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir, 0)
	for i, by := range []time.Duration{time.Hour, 25 * time.Hour} {
		p, err := k.Begin(pier.Reference{Digest: ocitest.Digest([]byte{byte(i)})})
		if err != nil {
			t.Fatal(err)
		}
		p.File().Close()
		at := time.Now().Add(-by)
		if err := os.Chtimes(p.File().Name(), at, at); err != nil {
			t.Fatal(err)
		}
	}
	shut(t, k)
	k = open(t, dir, 0)
	defer shut(t, k)
	left, err := os.ReadDir(k.path("pier", "partial"))
	if err != nil || len(left) != 1 {
		t.Errorf("partial files left: %v, %v; want the one that is an hour old", left, err)
	}
}

// What a large layer left is the one worth resuming, whatever its share of the limit.
func TestTheNewestPartialStays(t *testing.T) {
	dir := t.TempDir()
	ref := pier.Reference{Registry: "registry.test", Kind: pier.Blob, Digest: ocitest.Absent}
	left := func(k *Cache) int64 {
		t.Helper()
		p, err := k.Begin(ref)
		if err != nil {
			t.Fatal(err)
		}
		defer p.File().Close()
		info, err := p.File().Stat()
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	k := open(t, dir, 10<<20)
	p, err := k.Begin(ref)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.File().Write(make([]byte, 2<<20)); err != nil {
		t.Fatal(err)
	}
	p.File().Close()
	shut(t, k) // as after a kill: nobody settled it
	k = open(t, dir, 10<<20)
	defer shut(t, k)
	if n := left(k); n != 2<<20 {
		t.Errorf("after a restart %d bytes are left, want all", n)
	}
	if err := p.Suspend(); err != nil {
		t.Fatal(err)
	}
	if err := k.sweepPartials(partialLife); err != nil {
		t.Fatal(err)
	}
	if n := left(k); n != 2<<20 {
		t.Errorf("after a sweep %d bytes are left, want all", n)
	}
}

// Files of interrupted transfers are bounded, and those of running ones are left alone.
func TestPartialsAreBounded(t *testing.T) {
	k := open(t, t.TempDir(), 10<<20)
	defer shut(t, k)
	var running string
	for i := range 20 {
		p, err := k.Begin(pier.Reference{Kind: pier.Blob, Digest: ocitest.Digest([]byte{byte(i)})})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.File().Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		p.File().Close()
		if i == 0 {
			running = p.File().Name()
			continue
		}
		k.settled(p.(*partial).name)
	}
	if err := k.sweepPartials(partialLife); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(k.path("pier", "partial"))
	if err != nil || len(files) != 2 {
		t.Errorf("%d files left, error %v; want the running one and a tenth of the limit", len(files), err)
	}
	if _, err := os.Stat(running); err != nil {
		t.Errorf("the running transfer's file: %v", err)
	}
}

// Two registries may bring the same content at once. It is counted once.
func TestTwoCommitsOfOneDigest(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	for i := range 100 {
		b := fmt.Append(nil, "blob ", i)
		done := make(chan error, 2)
		for _, host := range []string{"a.test", "b.test"} {
			ref := pier.Reference{Registry: host, Kind: pier.Blob, Digest: ocitest.Digest(b)}
			p, err := k.Begin(ref)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.File().Write(b); err != nil {
				t.Fatal(err)
			}
			go func() {
				defer p.File().Close()
				done <- p.Commit(ref, pier.Descriptor{Digest: ref.Digest, Size: int64(len(b))})
			}()
		}
		if err := errors.Join(<-done, <-done); err != nil {
			t.Fatal(err)
		}
	}
	if _, n := k.Size(); n != 100 {
		t.Errorf("%d blobs counted, want 100", n)
	}
}

// What was asked for and is nowhere leaves nothing behind.
func TestAnEmptyPartialIsNotKept(t *testing.T) {
	k := open(t, t.TempDir(), 0)
	defer shut(t, k)
	p, err := k.Begin(pier.Reference{Kind: pier.Blob, Digest: ocitest.Absent})
	if err != nil {
		t.Fatal(err)
	}
	defer p.File().Close()
	if err := p.Suspend(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(k.path("pier", "partial")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
