package chain

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

var quiet = slog.New(slog.DiscardHandler)

// faulty is a Source that a test can break.
type faulty struct {
	*ocitest.Memory
	err     error                             // of every call
	wrap    func(io.ReadCloser) io.ReadCloser // readers pass through it
	calls   atomic.Int64
	blamed  atomic.Int64
	resolve func(ctx context.Context) error
}

func (f *faulty) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	f.calls.Add(1)
	if f.resolve != nil {
		if err := f.resolve(ctx); err != nil {
			return oci.Descriptor{}, err
		}
	}
	if f.err != nil {
		return oci.Descriptor{}, f.err
	}
	return f.Memory.Resolve(ctx, ref)
}

func (f *faulty) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	f.calls.Add(1)
	if f.err != nil {
		return nil, oci.Descriptor{}, f.err
	}
	rc, desc, err := f.Memory.Open(ctx, ref, offset, length)
	if err == nil && f.wrap != nil {
		rc = f.wrap(rc)
	}
	return rc, desc, err
}

func (f *faulty) Tags(ctx context.Context, registry, repository string) ([]string, error) {
	if f.err != nil {
		return nil, f.err
	}
	return f.Memory.Tags(ctx, registry, repository)
}

func (f *faulty) Blame(oci.Reference, string) { f.blamed.Add(1) }

func newFaulty() *faulty { return &faulty{Memory: &ocitest.Memory{}} }

var app = oci.Reference{Registry: "registry.test", Repository: "app", Tag: "v1"}

func blobOf(m *ocitest.Memory, b []byte) oci.Reference {
	ref := app
	ref.Kind, ref.Tag, ref.Digest = oci.Blob, "", m.Add("application/octet-stream", b).Digest
	return ref
}

func TestConformance(t *testing.T) {
	for name, wrap := range map[string]func(oci.Source) oci.Source{
		"first":    func(s oci.Source) oci.Source { return First(quiet, &ocitest.Memory{}, s) },
		"once":     func(s oci.Source) oci.Source { return Once(quiet, "memory", s) },
		"resume":   func(s oci.Source) oci.Source { return Resume(quiet, s, First(quiet)) },
		"verified": Verified,
		"proved":   func(s oci.Source) oci.Source { return Proved(First(quiet, Once(quiet, "memory", s))) },
		"limited":  func(s oci.Source) oci.Source { return Limited(s, rate.NewLimiter(1<<30, 1000)) },
		"unlimited": func(s oci.Source) oci.Source {
			return Limited(s, rate.NewLimiter(rate.Inf, 0))
		},
		"fresh": func(s oci.Source) oci.Source {
			return Fresh(FreshConfig{Content: s, Local: &ocitest.Memory{}, Authority: s, TTL: time.Minute, Log: quiet})
		},
	} {
		t.Run(name, func(t *testing.T) {
			ocitest.TestSource(t, func(_ *testing.T, content *ocitest.Memory, _ oci.Reference) oci.Source { return wrap(content) })
		})
	}
}

// files is a Source of files, as a runtime's store is.
type files struct {
	root  string
	blobs Blobs
}

func newFiles(t *testing.T) *files {
	t.Helper()
	f := &files{root: t.TempDir(), blobs: Blobs{Source: "files"}}
	for _, alg := range algorithms() {
		if err := os.MkdirAll(filepath.Join(f.root, "blobs", alg), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func (f *files) Resolve(_ context.Context, ref oci.Reference) (oci.Descriptor, error) {
	desc, _, err := f.blobs.Stat(f.root, ref)
	return desc, err
}

func (f *files) Open(_ context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	rc, desc, _, err := f.blobs.Open(f.root, ref, offset, length)
	return rc, desc, err
}

// add writes b where dgst is kept, elsewhere first, as runtimes do, who set mtime to the time of the commit.
func (f *files) add(t *testing.T, dgst oci.Digest, b []byte, committed time.Time) oci.Reference {
	t.Helper()
	data := filepath.Join(f.root, "data")
	if err := errors.Join(
		os.WriteFile(data, b, 0o600), os.Chtimes(data, committed, committed), os.Rename(data, BlobPath(f.root, dgst)),
	); err != nil {
		t.Fatal(err)
	}
	ref := app.WithDigest(dgst)
	ref.Kind, ref.Tag = oci.Blob, ""
	return ref
}

// stamp returns the stamp of the file that dgst is in.
func (f *files) stamp(t *testing.T, dgst oci.Digest) stamp {
	t.Helper()
	info, err := os.Stat(BlobPath(f.root, dgst))
	if err != nil {
		t.Fatal(err)
	}
	return stampOf(info)
}

// altered calls do until it has changed the stamp of the file: the filesystem's clock ticks every few milliseconds.
func (f *files) altered(t *testing.T, dgst oci.Digest, do func(path string) error) {
	t.Helper()
	before := f.stamp(t, dgst)
	for range 10_000 {
		if err := do(BlobPath(f.root, dgst)); err != nil {
			t.Fatal(err)
		}
		if f.stamp(t, dgst) != before {
			return
		}
	}
	t.Fatal("the file's stamp does not change")
}
