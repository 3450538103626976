package containerd

import (
	"testing"
	"time"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

func testImage(t *testing.T, f *fake, tag string) (oci.Reference, oci.Digest) {
	t.Helper()
	ref := oci.Reference{Registry: "registry.test", Repository: "app", Tag: tag}
	return ref, f.blob(t, []byte(`{"schemaVersion":2,"manifests":[],"annotations":{"tag":"`+tag+`"}}`))
}

func TestEvents(t *testing.T) {
	f := startFake(t)
	s := open(t, Config{Socket: f.socket})
	if !s.Ready() || s.Version() != f.version || s.Images() != 0 {
		t.Errorf("ready %v, version %q, %d images, want true, %q, 0", s.Ready(), s.Version(), s.Images(), f.version)
	}
	changed := run(t, s)
	one, first := testImage(t, f, "one")
	f.name("k8s.io", one.String(), first, true)
	until(t, changed, "an image that came", tagged(s, one))
	if s.Images() != 1 {
		t.Errorf("%d images, want 1", s.Images())
	}

	_, second := testImage(t, f, "two")
	f.name("k8s.io", one.String(), second, true)
	until(t, changed, "a tag that moved", func() bool {
		desc, err := s.Resolve(t.Context(), one)
		return err == nil && desc.Digest == second
	})
	f.name("k8s.io", one.String(), "", true)
	until(t, changed, "an image that went", untagged(s, one))
}

// A roll-out makes hundreds of events; listing once for each would cost containerd more than the pulls.
func TestBurstIsListedOnce(t *testing.T) {
	f := startFake(t)
	s := open(t, Config{Socket: f.socket})
	changed := run(t, s)
	before, dgst := testImage(t, f, "before")
	f.name("k8s.io", before.String(), dgst, true)
	until(t, changed, "the first image", tagged(s, before))

	lists := f.listed()
	const events = 500
	for range events {
		f.name("k8s.io", "registry.test/other:v1", dgst, true)
	}
	last, dgst := testImage(t, f, "last")
	f.name("k8s.io", last.String(), dgst, true)
	until(t, changed, "the last image", tagged(s, last))
	if n := f.listed() - lists; n > events/10 {
		t.Errorf("%d listings after %d events", n, events)
	}
}

// An image that comes between the first listing and the moment a subscription stands makes no event that is heard.
func TestMissedEvent(t *testing.T) {
	f := startFake(t)
	s := open(t, Config{Socket: f.socket})
	changed := run(t, s)
	ref, dgst := testImage(t, f, "quiet")
	f.name("k8s.io", ref.String(), dgst, false)
	until(t, changed, "an image without an event", tagged(s, ref))
}

func TestRestart(t *testing.T) {
	f := newFake(t)
	old, oldDigest := testImage(t, f, "old")
	f.name("k8s.io", old.String(), oldDigest, false)
	s := open(t, Config{Socket: f.socket, Root: f.content})
	changed := run(t, s)
	if s.Ready() {
		t.Error("ready before containerd came up")
	}
	if _, err := s.Resolve(t.Context(), old.WithDigest(oldDigest)); err != nil {
		t.Errorf("content while containerd is down: %v", err)
	}
	f.start(t)
	until(t, changed, "containerd coming up", tagged(s, old))

	f.stop()
	next, nextDigest := testImage(t, f, "next")
	f.name("k8s.io", old.String(), "", false)
	f.name("k8s.io", next.String(), nextDigest, false)
	f.version = "v3.0.0-fake"
	if !tagged(s, old)() || !s.Ready() {
		t.Errorf("while containerd restarts: tag known %v, ready %v, want both", tagged(s, old)(), s.Ready())
	}
	f.start(t)
	until(t, changed, "what changed meanwhile", tagged(s, next))
	if tagged(s, old)() || s.Version() != f.version {
		t.Errorf("after the restart: removed tag known %v, version %s", tagged(s, old)(), s.Version())
	}
}

// The content directory is learnt when containerd answers for the first time, however late.
func TestRootIsAsked(t *testing.T) {
	f := newFake(t)
	ref, dgst := testImage(t, f, "v1")
	f.name("default", ref.String(), dgst, false)
	s := open(t, Config{Socket: f.socket})
	if s.root() != contentRoot(defaultRoot) {
		t.Errorf("content expected in %s before anybody was asked", s.root())
	}
	changed := run(t, s)
	f.start(t)
	until(t, changed, "the image", tagged(s, ref))
	if _, _, err := ocitest.ReadAll(t.Context(), s, ref.WithDigest(dgst)); err != nil {
		t.Error(err)
	}
}

// Connections to containerd are closed by who made them, not by its patience.
func TestConnectionsAreClosed(t *testing.T) {
	f := startFake(t)
	s := open(t, Config{Socket: f.socket})
	ref, dgst := testImage(t, f, "v1")
	t.Run("run", func(t *testing.T) {
		changed := run(t, s)
		f.name("default", ref.String(), dgst, true)
		until(t, changed, "the image", tagged(s, ref))
	})
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		f.conns.Wait()
	}()
	select {
	case <-closed:
	case <-time.After(20 * time.Second):
		t.Error("connections are left after Run ended")
	}
}
