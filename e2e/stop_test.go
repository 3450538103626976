//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"testing"
	"time"

	"pier/e2e/faultproxy"
)

// A stopCase is a node in the middle of something. It begins that, and waits until it is under way; what it leaves in
// the background ends with ctx.
type stopCase struct {
	name  string
	args  []string
	begin func(ctx context.Context, t *testing.T, s *stocked)
}

// A stop ends the process in time whatever it is in the middle of, and what comes after it is healthy.
func TestSIGTERMInTheMiddleOfEverything(t *testing.T) {
	t.Parallel()
	large, shared := newImage(t, 4<<20), newImage(t, 2000)
	shared.blobs[1] = large.layer(0)
	shared.manifests[0] = newManifest(t, shared.blobs, 0)
	many, wide := newImage(t, make([]int, 60)...), newImage(t, 1000)
	wide.manifests[0] = newManifest(t, wide.blobs, 4<<20-2000)
	images := map[string]*image{"large": large, "shared": shared, "many": many, "wide": wide, "V1": newImage(t, 4<<20)}

	for _, c := range []stopCase{
		{"what changed on disk while the node was down is fetched again", nil, func(ctx context.Context, t *testing.T, s *stocked) {
			s.terminate(t, 10*time.Second)
			flip(t, blobFile(s.dir, s.image.layer(0)), 1<<20)
			s.start(t)
			pullInBackground(ctx, s, "v1", s.image)
			s.awaitAsked(t, s.image.layer(0))
		}},
		{"a torn file is fetched again", nil, func(ctx context.Context, t *testing.T, s *stocked) {
			must(t, os.Truncate(blobFile(s.dir, s.image.layer(0)), 1000))
			pullInBackground(ctx, s, "v1", s.image)
			s.awaitAsked(t, s.image.layer(0))
		}},
		{"a scrub", []string{"--scrub-rate", "100kB"}, func(_ context.Context, t *testing.T, s *stocked) {
			s.terminate(t, 10*time.Second)
			s.start(t)
		}},
		{"a download whose first client has left", nil, func(ctx context.Context, t *testing.T, s *stocked) {
			first, leave := context.WithCancel(ctx)
			pullInBackground(first, s, "large", large)
			s.awaitAsked(t, large.layer(0))
			pullInBackground(ctx, s, "large", large)
			leave()
		}},
		{"pulls of two images that share a layer", nil, func(ctx context.Context, t *testing.T, s *stocked) {
			pullInBackground(ctx, s, "large", large)
			pullInBackground(ctx, s, "shared", shared)
			s.awaitAsked(t, large.layer(0))
		}},
		{"an image of sixty layers", nil, func(ctx context.Context, t *testing.T, s *stocked) {
			s.front.Add(faultproxy.Rule{Path: faultproxy.Of(faultproxy.Blob), Fault: faultproxy.Latency(100 * time.Millisecond)})
			pullInBackground(ctx, s, "many", many)
			s.awaitAsked(t, many.layer(3))
		}},
		{"a manifest of 4 MiB", nil, func(ctx context.Context, t *testing.T, s *stocked) {
			pullInBackground(ctx, s, "wide", wide)
			eventually(t, soon, func() error {
				if s.front.Count(http.MethodGet, faultproxy.Manifest) == 0 {
					return errors.New("the manifest was not asked for")
				}
				return nil
			})
		}},
		{"tags that differ in case", nil, func(ctx context.Context, t *testing.T, s *stocked) {
			pullInBackground(ctx, s, "v1", s.image)
			pullInBackground(ctx, s, "V1", images["V1"])
			s.awaitAsked(t, images["V1"].layer(0))
		}},
		{"prunes during pulls", nil, func(ctx context.Context, t *testing.T, s *stocked) {
			pullInBackground(ctx, s, "large", large)
			go func() {
				for ctx.Err() == nil {
					_, _ = tryRun(t, nil, pierBinary, "prune", "--cache-dir", s.dir, "--all") // the node may be gone
				}
			}()
			s.awaitAsked(t, large.layer(0))
		}},
		{"dry runs", nil, func(ctx context.Context, t *testing.T, s *stocked) {
			go func() {
				for ctx.Err() == nil {
					_, _ = tryRun(t, nil, pierBinary, "prune", "--cache-dir", s.dir, "--all", "--dry-run")
				}
			}()
			time.Sleep(200 * time.Millisecond)
		}},
		{"files of other centuries", nil, func(ctx context.Context, t *testing.T, s *stocked) {
			for n, b := range s.image.blobs {
				at := time.Date(1970+120*(n%2), 1, 1, 0, 0, 0, 0, time.UTC)
				must(t, os.Chtimes(blobFile(s.dir, b), at, at))
			}
			pullInBackground(ctx, s, "v1", s.image)
			pullInBackground(ctx, s, "large", large)
			s.awaitAsked(t, large.layer(0))
		}},
		{"a list with bad lines", []string{"--preload", preloadList(t, "registry.test/app:large", "://", "registry.test/none:v1", "a b c", "registry.test/app:V1")},
			func(_ context.Context, t *testing.T, s *stocked) {
				s.terminate(t, 10*time.Second)
				s.start(t)
				s.awaitAsked(t, large.layer(0))
			}},
		{"a second process that waits for the directory", nil, func(_ context.Context, t *testing.T, s *stocked) {
			second := startPier(t, pierConfig{unready: true, args: []string{"--cache-dir", s.dir}})
			time.Sleep(time.Second)
			second.terminate(t, 10*time.Second)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := startStocked(t, c.args...)
			s.more(t, images)
			s.front.Reset()
			s.front.LimitRate(500<<10, 0)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			c.begin(ctx, t, s)
			s.terminate(t, 10*time.Second)
			cancel()
			checkDigests(t, s.dir)
			s.front.LimitRate(0, 0)
			s.front.Clear()
			s.start(t)
			s.door.mustPull(t, "app", "v1", s.image)
			for tag, want := range images {
				s.door.mustPull(t, "app", tag, want)
			}
		})
	}
}

// more puts further images at the registry.
func (s *stocked) more(t *testing.T, images map[string]*image) {
	t.Helper()
	for tag, i := range images {
		s.registry.put(t, "app", tag, i)
	}
}

// awaitAsked waits until the registry was asked for a blob, and a little longer.
func (s *stocked) awaitAsked(t *testing.T, b blob) {
	t.Helper()
	eventually(t, soon, func() error {
		if len(asked(s.front, http.MethodGet, b.Digest.String())) == 0 {
			return fmt.Errorf("%s was not asked for", b.Digest)
		}
		return nil
	})
	time.Sleep(200 * time.Millisecond)
}

// pullInBackground pulls until that works, or ctx is over.
func pullInBackground(ctx context.Context, s *stocked, tag string, want *image) {
	door := newClient(s.node, "registry.test")
	go func() {
		for ctx.Err() == nil && door.pull(ctx, "app", tag, want) != nil {
			time.Sleep(10 * time.Millisecond)
		}
	}()
}
