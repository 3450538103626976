package chain

import (
	"context"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

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
		"fresh": func(s oci.Source) oci.Source {
			return Fresh(FreshConfig{Content: s, Local: &ocitest.Memory{}, Authority: s, TTL: time.Minute, Log: quiet})
		},
	} {
		t.Run(name, func(t *testing.T) {
			ocitest.TestSource(t, func(_ *testing.T, content *ocitest.Memory, _ oci.Reference) oci.Source { return wrap(content) })
		})
	}
}
