package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// A fullRound is one start of a node with a full cache.
type fullRound struct {
	ready, list           time.Duration
	rested, listed, after float64 // bytes resident: once it rests, at most while it lists, once it rests again
	full, empty           work    // a manifest by tag, from it and from a node with nothing else
}

// full measures a cache with very many images against one that has a single one.
func (s *single) full(ctx context.Context) (err error) {
	s.say("a full cache: making %d images of %d blobs", s.set.tags, s.set.blobs)
	dir, err := os.MkdirTemp(s.dir, "full-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := fillCache(dir, s.set.tags, s.set.blobs); err != nil {
		return err
	}
	empty, err := s.startNode(ctx, nodeConfig{cached: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, empty.stop()) }()
	for range 2 {
		if _, err := pullImage(ctx, empty.server, s.image); err != nil {
			return err
		}
	}
	rounds := make([]fullRound, s.set.cold)
	for i := range rounds {
		s.say("a full cache, %d of %d", i+1, len(rounds))
		if err := s.fullRound(ctx, &rounds[i], i, dir, empty); err != nil {
			return err
		}
	}
	r := &s.report
	figures := func(f func(fullRound) float64) series { return collect(rounds, f) }
	r.section("A cache of %d blobs and %d tags", s.set.tags*s.set.blobs, s.set.tags)
	r.check("from the start until it is ready", seconds, atMost(1), figures(func(f fullRound) float64 { return f.ready.Seconds() }))
	r.check("pier list, of all of it", seconds, atMost(1), figures(func(f fullRound) float64 { return f.list.Seconds() }))
	r.check("resident memory, once it rests", megabytes, never(40), figures(func(f fullRound) float64 { return f.rested / mb }))
	r.check("resident memory, at most while it lists", megabytes, never(40), figures(func(f fullRound) float64 { return f.listed / mb }))
	r.note("resident memory, once it rests again", figures(func(f fullRound) float64 { return f.after / mb }).text(megabytes))
	r.check("a warm manifest by tag, to an empty cache: requests per second", ratio, atLeast(0.9), figures(func(f fullRound) float64 { return f.full.rate() / f.empty.rate() }))
	return nil
}

func (s *single) fullRound(ctx context.Context, f *fullRound, i int, dir string, empty *node) (err error) {
	start := time.Now()
	n, err := s.startNode(ctx, nodeConfig{in: dir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.stop()) }()
	if err := n.awaitReady(ctx); err != nil {
		return err
	}
	f.ready = time.Since(start)
	for range 2 {
		if _, err := pullImage(ctx, n.server, s.image); err != nil {
			return err
		}
	}
	if f.rested, err = n.idle(ctx, s.set.rest); err != nil {
		return err
	}
	if err := n.forgetPeak(); err != nil {
		return err
	}
	start = time.Now()
	if out, err := exec.CommandContext(ctx, s.pier, "list", "--cache-dir", dir, "--json").Output(); err != nil || len(out) < 100*s.set.tags {
		return fmt.Errorf("pier list: %d bytes, %w", len(out), err)
	}
	f.list = time.Since(start)
	if _, f.listed, err = n.memory(); err != nil {
		return err
	}
	path := s.image.path("manifests", tag)
	if err := inTurn(i,
		func() (err error) { f.full, err = s.manifests(ctx, n.process, n.server, path); return err },
		func() (err error) { f.empty, err = s.manifests(ctx, empty.process, empty.server, path); return err },
	); err != nil {
		return err
	}
	f.after, err = n.idle(ctx, s.set.rest)
	return err
}

// awaitReady waits until the node says that it is ready.
func (n *node) awaitReady(ctx context.Context) error {
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.metrics+"/readyz", nil)
		if err != nil {
			return err
		}
		resp, err := n.client.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
}

// fillCache makes a cache of images with so many blobs each, of which one is the manifest.
func fillCache(dir string, images, blobs int) error {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return err
	}
	random := rand.NewChaCha8([32]byte{1})
	put := func(mediaType string, content []byte) (v1.Descriptor, error) {
		d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
		return d, os.WriteFile(filepath.Join(dir, "blobs", "sha256", d.Digest.Encoded()), content, 0o644)
	}
	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}
	for n := range images {
		m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
		for i := range blobs - 1 {
			content := make([]byte, 64)
			_, _ = random.Read(content)
			d, err := put(v1.MediaTypeImageLayerGzip, content)
			if err != nil {
				return err
			}
			if m.Layers = append(m.Layers, d); i == 0 {
				m.Config, m.Layers = d, nil
				m.Config.MediaType = v1.MediaTypeImageConfig
			}
		}
		text, err := json.Marshal(m)
		if err != nil {
			return err
		}
		d, err := put(v1.MediaTypeImageManifest, text)
		if err != nil {
			return err
		}
		d.Annotations = map[string]string{v1.AnnotationRefName: fmt.Sprintf("registry.test/team-%d/app:v%d", n/10, n%10)}
		index.Manifests = append(index.Manifests, d)
	}
	text, err := json.Marshal(index)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, v1.ImageIndexFile), text, 0o644),
		os.WriteFile(filepath.Join(dir, v1.ImageLayoutFile), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644),
	)
}
