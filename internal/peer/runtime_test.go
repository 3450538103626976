package peer

import (
	"bytes"
	"context"
	"io"
	"sync"
	"testing"
	"time"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// A runtime is the image store of a runtime that fetches by itself: it has what was written of each content so far.
type runtimeStore struct {
	mu      sync.Mutex // guards all below
	content map[oci.Digest][]byte
	written map[oci.Digest]int
}

// writes has the runtime write content at so many bytes a second, until it is whole or ctx ends.
func (r *runtimeStore) writes(ctx context.Context, content []byte, rate int) {
	const each = 50 * time.Millisecond
	for {
		r.mu.Lock()
		d := ocitest.Digest(content)
		r.content[d] = content
		r.written[d] = min(r.written[d]+rate/20, len(content))
		done := r.written[d] == len(content)
		r.mu.Unlock()
		if done || wait(ctx, each) != nil {
			return
		}
	}
}

func (r *runtimeStore) look(ref oci.Reference) ([]byte, oci.Descriptor, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.content[ref.Digest]
	if !ok {
		return nil, oci.Descriptor{}, oci.ErrNotFound
	}
	size := int64(len(b))
	has := b[:r.written[ref.Digest]]
	return has, oci.Descriptor{Digest: ref.Digest, Size: size, Missing: size - int64(len(has)), Source: "runtime"}, nil
}

// Resolve implements [oci.Source].
func (r *runtimeStore) Resolve(_ context.Context, ref oci.Reference) (oci.Descriptor, error) {
	_, desc, err := r.look(ref)
	return desc, err
}

// Open implements [oci.Source]: the reader waits for what is written.
func (r *runtimeStore) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	_, desc, err := r.look(ref)
	if err != nil {
		return nil, desc, err
	}
	end := desc.Size
	if length >= 0 {
		end = min(end, offset+length)
	}
	return io.NopCloser(&following{ctx, r, ref, offset, end}), desc, nil
}

type following struct {
	ctx     context.Context
	r       *runtimeStore
	ref     oci.Reference
	at, end int64
}

func (f *following) Read(p []byte) (int, error) {
	for f.at < f.end {
		b, _, err := f.r.look(f.ref)
		if err != nil {
			return 0, err
		}
		if b = b[:min(int64(len(b)), f.end)]; int64(len(b)) > f.at {
			n := copy(p, b[f.at:])
			f.at += int64(n)
			return n, nil
		}
		if err := wait(f.ctx, 10*time.Millisecond); err != nil {
			return 0, err
		}
	}
	return 0, io.EOF
}

// withRuntime gives every node a runtime that fetches by itself, from a registry that the node does not know, and which
// refuses it.
func withRuntime(stores map[string]*runtimeStore) option {
	return func(n *node, c *Config) {
		r := &runtimeStore{content: make(map[oci.Digest][]byte), written: make(map[oci.Digest]int)}
		stores[n.name] = r
		c.Runtime, c.Local, c.Knows = true, r, func(string) bool { return false }
	}
}

// mirrored pulls content as a runtime does that goes to the registry itself when it is answered not found.
func (n *node) mirrored(content []byte) ([]byte, error) {
	b, _, err := ocitest.ReadAll(oci.WithFallback(n.site.t.Context()), n.engine, blobRef(content))
	return b, err
}

// One runtime fetches, the others read what it writes.
func TestLeftToTheRuntime(t *testing.T) {
	stores := make(map[string]*runtimeStore)
	bubble(t, 4, func(t *testing.T, s *site) {
		content := ocitest.Bytes(90, 4*mib)
		ref := s.up.has(content)
		first := s.nodes[0]
		_, err := first.mirrored(content)
		wantClass(t, err, oci.ErrNotFound)
		var wg sync.WaitGroup
		for _, n := range s.nodes[1:] {
			wg.Go(func() {
				if b, err := n.mirrored(content); err != nil || !bytes.Equal(b, content) {
					t.Errorf("%s: got %d bytes, error %v", n.name, len(b), err)
				}
			})
		}
		time.Sleep(time.Second) // the runtime meets the registry first
		begun := time.Now()
		stores[first.name].writes(t.Context(), content, mib)
		wg.Wait()
		if took := time.Since(begun); took > 5*second {
			t.Errorf("the others had it after %s, want at most the 4 s of the registry and one more", took)
		}
		if got := s.up.gave(ref); got != 0 {
			t.Errorf("the nodes fetched %d bytes, want none: the runtime does", got)
		}
	}, withRuntime(stores))
}

// Regression: a runtime that asked again while it was fetching made others believe that nobody did.
func TestRuntimeAsksAgain(t *testing.T) {
	stores := make(map[string]*runtimeStore)
	bubble(t, 4, func(t *testing.T, s *site) {
		content := ocitest.Bytes(91, 4*mib)
		first := s.nodes[0]
		_, err := first.mirrored(content)
		wantClass(t, err, oci.ErrNotFound)
		done := make(chan struct{})
		go func() {
			defer close(done)
			stores[first.name].writes(t.Context(), content, mib)
		}()
		time.Sleep(time.Second)
		_, err = first.mirrored(content)
		wantClass(t, err, oci.ErrNotFound)
		if b, err := s.nodes[1].mirrored(content); err != nil || !bytes.Equal(b, content) {
			t.Errorf("got %d bytes, error %v", len(b), err)
		}
		<-done
	}, withRuntime(stores))
}

// A runtime that never writes is waited for as long as a lease, and then by nobody.
func TestRuntimeNeverWrites(t *testing.T) {
	bubble(t, 3, func(t *testing.T, s *site) {
		content := ocitest.Bytes(92, mib)
		s.up.has(content)
		first := s.nodes[0]
		_, err := first.mirrored(content)
		wantClass(t, err, oci.ErrNotFound)
		s.nodes[1].within(8*second, content)
		time.Sleep(awaitRuntime + time.Second)
		first.mu.Lock()
		defer first.mu.Unlock()
		if len(first.awaiting) != 0 {
			t.Error("the runtime is still awaited")
		}
	}, func(n *node, c *Config) {
		if n.name == "node-0" {
			withRuntime(make(map[string]*runtimeStore))(n, c)
		}
	})
}

// Where the registry is known, the node fetches; where it then refuses the node, its runtime may have credentials.
func TestRuntimeOfAKnownRegistry(t *testing.T) {
	stores := make(map[string]*runtimeStore)
	bubble(t, 2, func(t *testing.T, s *site) {
		content, secret := ocitest.Bytes(93, mib), ocitest.Bytes(94, mib)
		s.up.has(content)
		s.up.has(secret)
		if b, err := s.nodes[0].mirrored(content); err != nil || !bytes.Equal(b, content) {
			t.Errorf("got %d bytes, error %v", len(b), err)
		}
		s.up.refuse = func(string) error { return oci.ErrDenied }
		_, err := s.nodes[0].mirrored(secret)
		wantClass(t, err, oci.ErrNotFound)
		go stores["node-0"].writes(t.Context(), secret, mib)
		if b, err := s.nodes[1].mirrored(secret); err != nil || !bytes.Equal(b, secret) {
			t.Errorf("got %d bytes, error %v", len(b), err)
		}
	}, withRuntime(stores), func(_ *node, c *Config) { c.Knows = func(string) bool { return true } })
}

// A client without a way of its own is not sent away.
func TestNotLeftToTheRuntime(t *testing.T) {
	bubble(t, 2, func(_ *testing.T, s *site) {
		content := ocitest.Bytes(95, mib)
		s.up.has(content)
		s.nodes[0].gets(content)
	}, withRuntime(make(map[string]*runtimeStore)))
}
