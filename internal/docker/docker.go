// Package docker is a Source over Docker's classic image store (the overlay2 storage driver), which keeps what layers contain, but
// not the layers. What Docker has lost is made up for with a few kilobytes an image in a directory of Pier's own:
//
//   - Layers are packed again, byte for byte ([Store.Rebuilt]): how, was found out when they passed through this node
//     ([Store.Spool], learn.go), or is found by trial for those that were there before (study.go). Those that nothing packs as they
//     were are kept, up to a quota (kept.go).
//   - Manifests and indexes are kept as they pass through, or put together anew (regenerate.go).
//   - Configurations are Docker's own files.
//
// Nothing is written into Docker's directories, and nothing is offered under a digest that it was not found to have.
//
// With Docker's other image store, that of containerd, this package only says where that is, see [Ask].
package docker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"pier/internal/oci"
	"pier/internal/overlay2"
)

// source is what Descriptor.Source says.
const source = "docker"

// Config says where Docker is, and what may be used on its behalf. Root, Dir and Files are needed.
type Config struct {
	Socket string    // of Docker's API; "": images are looked at every second only
	Root   string    // Docker's data root, as this process sees it
	Dir    string    // where to remember what Docker forgets
	Files  oci.Spool // lends files to layers that are made again

	// Elsewhere is what other runtimes of this node have: content that arrived for them is not waited for. Nil: there are none.
	Elsewhere oci.Source

	Keep int64 // bytes of layers that are kept: those that nothing makes again, and above 1 GiB also those that were made lately; 0: none
	CPU  int   // processors that make layers again; 0: 1

	// Reserve is told how many bytes more are taken from now on to make layers, or fewer. Nil: nobody wants to know.
	Reserve func(bytes int64)

	Log     *slog.Logger // nil: silent
	Metrics *metrics.Set // nil: a set of its own
}

// A Store knows what a Docker has.
type Store struct {
	c    Config
	log  *slog.Logger
	disk *overlay2.Store
	kept *kept
	lock *os.File            // of c.Dir
	full func(*os.File) bool // nearlyFull, but in tests

	processors chan struct{}       // a token for each processor that makes layers, or finds out how, see turn
	places     *semaphore.Weighted // for layers that are being made
	parts      *semaphore.Weighted // and for parts of such
	background *semaphore.Weighted // what may be taken of places where no client waits
	changed    chan struct{}       // holds one element if Docker may have changed
	read       chan struct{}       // holds one element if view is new
	studying   chan struct{}       // holds one element if there may be something to study

	mu      sync.Mutex // guards all below
	view    view       // what Docker has; its maps never change
	altered time.Time  // when view, arrived or recipes last changed
	arrived map[oci.Digest]*arrival

	lastArrived time.Time
	recipes     *recipes

	rebuiltBytes *metrics.Counter
	rebuiltFails *metrics.Counter
	learned      map[string]*metrics.Counter // layers, by what came of them
}

// A view is what Docker had at one time.
type view struct {
	read    bool                          // it was
	layers  map[oci.Digest]overlay2.Layer // by diff ID
	digests map[oci.Digest][]oci.Digest   // that Docker saw each layer under, by diff ID: hints, which nobody proved
	configs map[oci.Digest]bool           // image IDs
	tags    map[string]map[string]oci.Digest
	named   map[oci.Digest]bool // digests of manifests that Docker knows images by
	images  int
}

// Open returns the Store of the Docker whose data is under c.Root. [Store.Run] must be called: it reads
// what Docker has, which takes seconds where that is much, and follows what changes.
func Open(c Config) (*Store, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = metrics.NewSet()
	}
	if c.Reserve == nil {
		c.Reserve = func(int64) {}
	}
	c.CPU = max(c.CPU, 1)
	disk, err := overlay2.Open(overlay2.Config{Root: c.Root})
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("docker: %w: let this user write there, or set --data-dir", err)
	}
	lock, err := lockDir(c.Dir)
	if err != nil {
		return nil, err
	}
	recipes, err := openRecipes(filepath.Join(c.Dir, "recipes"), c.Log)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	s := &Store{
		c: c, log: c.Log, disk: disk, lock: lock, recipes: recipes, full: nearlyFull,
		processors: make(chan struct{}, c.CPU), places: semaphore.NewWeighted(maxMaking), parts: semaphore.NewWeighted(maxMaking), background: semaphore.NewWeighted(maxMaking - 1), changed: make(chan struct{}, 1), read: make(chan struct{}, 1), studying: make(chan struct{}, 1),
		arrived:      make(map[oci.Digest]*arrival),
		rebuiltBytes: c.Metrics.NewCounter("pier_rebuilt_bytes_total"),
		rebuiltFails: c.Metrics.NewCounter("pier_rebuild_failures_total"),
		learned:      make(map[string]*metrics.Counter),
	}
	for _, outcome := range []string{learnedExact, learnedKept, learnedLost} {
		s.learned[outcome] = c.Metrics.NewCounter(fmt.Sprintf("pier_layers_learned_total{outcome=%q}", outcome))
	}
	isSpare := func(d oci.Digest) bool { _, ok := recipes.get(d); return ok }
	if s.kept, err = openKept(c.Dir, c.Keep, isSpare, c.Log); err != nil {
		return nil, errors.Join(err, recipes.close(), lock.Close())
	}
	for state, count := range map[string]func(Layers) int{
		"rebuilt": func(l Layers) int { return l.Rebuilt }, "kept": func(l Layers) int { return l.Kept }, "withheld": func(l Layers) int { return l.Withheld },
	} {
		c.Metrics.NewGauge(fmt.Sprintf("pier_docker_layers{state=%q}", state), func() float64 { return float64(count(s.Layers())) })
	}
	c.Metrics.NewGauge("pier_kept_layers_bytes", func() float64 { return float64(s.Layers().KeptBytes) })
	return s, nil
}

// Close lets go of files. What was opened from the Store may still be read. Run must have returned.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for d, a := range s.arrived {
		a.file.Close()
		delete(s.arrived, d)
	}
	return errors.Join(s.recipes.close(), s.lock.Close())
}

// lockDir keeps other processes out of a directory until the file that it returns is closed.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("docker: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("docker: %s is in use by another process: stop that, or set --data-dir: %w", dir, err)
	}
	return f, nil
}

// Images returns how many images Docker has.
func (s *Store) Images() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.view.images
}

// Layers says how many layers Docker has, and what others can get of them.
type Layers struct {
	All       int   `json:"all"`
	Rebuilt   int   `json:"rebuilt"`    // made again when somebody asks
	Kept      int   `json:"kept"`       // others, kept as they came
	KeptBytes int64 `json:"kept_bytes"` // of all that is kept
	Withheld  int   `json:"withheld"`   // not offered: nothing is known that makes them, or nobody ever gave them a name
}

// Layers counts the layers of Docker.
func (s *Store) Layers() (l Layers) {
	s.mu.Lock()
	defer s.mu.Unlock()
	offered := s.offered()
	l.All, l.Rebuilt = len(s.view.layers), len(offered)
	for diffID := range s.view.layers {
		switch {
		case offered[diffID]:
		case slices.ContainsFunc(s.view.digests[diffID], s.kept.has):
			l.Kept++
		default:
			l.Withheld++
		}
	}
	_, l.KeptBytes = s.kept.layers()
	return l
}

// offered returns the diff IDs of the layers that are made again. The caller holds mu.
func (s *Store) offered() map[oci.Digest]bool {
	offered := make(map[oci.Digest]bool)
	for _, r := range s.recipes.byDigest {
		if s.makes(r) {
			offered[r.diffID] = true
		}
	}
	return offered
}

// makes reports whether Docker has what a recipe needs. The caller holds mu.
func (s *Store) makes(r recipe) bool {
	layer, here := s.view.layers[r.diffID]
	return here && layer.Unsupported == ""
}

// Ready reports whether it is known what Docker has.
func (s *Store) Ready() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.view.read
}

const (
	lookEvery    = time.Second      // that Docker's directories are looked at: a few calls of stat
	refreshEvery = 5 * time.Minute  // that they are read though nothing seems to have changed
	reconnect    = 10 * time.Second // until Docker's events are asked for again
	gather       = 100 * time.Millisecond
)

// Run follows what changes in Docker, and learns from what arrives, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.learn(ctx) })
	wg.Go(func() { s.study(ctx) })
	if s.c.Socket != "" {
		wg.Go(func() { s.listen(ctx) })
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	seen, read := s.disk.Changed(), time.Now()
	s.refresh(ctx)
	for {
		asked := false
		select {
		case <-ctx.Done():
			return nil
		case <-s.changed:
			asked = true
			select { // events come in groups
			case <-time.After(gather):
			case <-ctx.Done():
			}
		case <-tick.C:
		}
		if now := s.disk.Changed(); asked || !now.Equal(seen) || time.Since(read) > refreshEvery {
			seen, read = now, time.Now()
			s.refresh(ctx)
		}
		s.forget(time.Now())
	}
}

// listen has events of Docker make the Store look, until ctx ends.
func (s *Store) listen(ctx context.Context) {
	c := newClient(s.c.Socket)
	defer c.http.CloseIdleConnections()
	for ctx.Err() == nil {
		if info, err := Ask(ctx, s.c.Socket); err == nil && (info.Containerd || info.Driver != "overlay2") {
			s.log.WarnContext(ctx, "Docker keeps its images elsewhere by now: restart pier", "driver", info.Driver, "containerd", info.Containerd)
		}
		err := c.events(ctx, s.look)
		if ctx.Err() != nil {
			return
		}
		s.log.DebugContext(ctx, "no events from Docker; its directories are looked at all the same", "err", err)
		select {
		case <-time.After(reconnect):
		case <-ctx.Done():
		}
	}
}

// look has Run read what Docker has.
func (s *Store) look() { notify(s.changed) }

// refresh reads what Docker has.
func (s *Store) refresh(ctx context.Context) {
	layers, lerr := s.disk.Layers(ctx)
	images, ierr := s.disk.Images()
	if ctx.Err() != nil {
		return
	}
	v := view{
		read: true, digests: make(map[oci.Digest][]oci.Digest, len(layers)),
		layers: make(map[oci.Digest]overlay2.Layer, len(layers)), configs: make(map[oci.Digest]bool, len(images)),
		named: make(map[oci.Digest]bool), images: len(images),
	}
	for _, l := range layers {
		v.layers[l.DiffID] = l
		hints, err := s.disk.Hints(l.DiffID)
		lerr = errors.Join(lerr, err)
		for _, h := range hints {
			v.digests[l.DiffID] = append(v.digests[l.DiffID], h.Digest)
		}
	}
	for _, img := range images {
		v.configs[img.ID] = true
		for _, name := range img.Names {
			if name.Digest != "" {
				v.named[name.Digest] = true
			}
		}
	}
	v.tags = s.tags(images)
	switch err := errors.Join(lerr, ierr); {
	case err != nil:
		s.log.WarnContext(ctx, "a part of what Docker has cannot be read; that part is not offered", "err", err)
	case s.disk.Ready(): // else it is somewhere else, or not mounted, and may come back
		s.kept.drop(v.named, v.digests)
	}
	s.mu.Lock()
	s.view, s.altered = v, time.Now()
	s.mu.Unlock()
	notify(s.read)
}

// notify puts an element into a channel that has room for one, unless one is there.
func notify(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// tags returns the manifest that each tag names: of those that Docker knows the image by in the same repository one that is
// here, the last that came.
func (s *Store) tags(images []overlay2.Image) map[string]map[string]oci.Digest {
	tags := make(map[string]map[string]oci.Digest)
	for _, img := range images {
		latest := make(map[string]oci.Digest) // by repository
		came := make(map[string]time.Time)
		for _, name := range img.Names {
			at, ok := s.kept.manifest(name.Digest)
			if ok && !at.Before(came[name.Name()]) {
				latest[name.Name()], came[name.Name()] = name.Digest, at
			}
		}
		for _, name := range img.Names {
			dgst, ok := latest[name.Name()]
			if name.Tag == "" || !ok {
				continue
			}
			if tags[name.Name()] == nil {
				tags[name.Name()] = make(map[string]oci.Digest)
			}
			tags[name.Name()][name.Tag] = dgst
		}
	}
	return tags
}
