// Package cache is a Store on disk: an OCI image layout that other tools can read, with the tags of every registry and
// repository in its index.
//
// Beside the layout's own files it keeps a directory "pier": a lock against a second process, the files of transfers on
// their way, and markers of who refers to whom and of what was used when. A file under blobs is whole and was proven before it
// got there: it is written elsewhere, synced, and renamed. From then on Pier never changes it, nor its times, so that
// whoever else does is found out.
package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"pier/internal/chain"
	"pier/internal/oci"
)

// Config configures a [Cache]. Dir and Log are needed.
type Config struct {
	Dir      string // made if it is not there
	MaxBytes int64  // bytes of content kept before the least recently used images go; 0: no limit
	Log      *slog.Logger
	Metrics  *metrics.Set // nil: a set of its own

	// Wait is how long to wait for another process that has the directory open: a command that is over in a moment, say.
	Wait time.Duration
}

// A Cache is an [oci.Store] and an [oci.Spool] on disk.
type Cache struct {
	c    Config
	lock *os.File

	evicted *metrics.Counter

	bytes atomic.Int64 // of content
	blobs atomic.Int64
	stays atomic.Int64 // bytes up to which an eviction would free nothing, as far as is known

	settle sync.RWMutex // held for writing while images are evicted, for reading while content is kept

	files chain.Blobs

	writing sync.Mutex // held while the index is written

	mu       sync.Mutex // guards all below
	index    map[string]entry
	pending  map[string]oci.Digest   // names of manifests that are not here yet
	children map[oci.Digest]struct{} // manifests named by an index that was kept
	hidden   map[oci.Digest]struct{} // damaged, and not to be deleted
	touched  map[oci.Digest]time.Time
	expected map[oci.Digest]time.Time // when blobs were pushed whose manifest has not come
	active   map[string]struct{}      // names of the partial files of transfers that run
	dirty    bool                     // index differs from the file
	altered  time.Time                // when hidden or a name of a tag last changed

	write chan struct{} // asks the keeper to write the index
	full  chan struct{} // asks the keeper to evict
	swept chan struct{} // asks the keeper to sweep partial files
	stop  chan struct{}
	done  chan struct{}
}

var (
	_ oci.Store  = (*Cache)(nil)
	_ oci.Spool  = (*Cache)(nil)
	_ oci.Lister = (*Cache)(nil)
	_ oci.Tagger = (*Cache)(nil)
	_ oci.Blamer = (*Cache)(nil)

	_ chain.Holder = (*Cache)(nil)
)

// ErrLocked says that another process uses the directory.
var ErrLocked = errors.New("in use by another process")

// lockedAgain is how long after it was locked the directory is tried again.
const lockedAgain = 50 * time.Millisecond

// maxRemembered bounds each of the maps that only save work: about 0.5 MB.
const maxRemembered = 4096

// Open makes or opens the cache in c.Dir. It returns an error wrapping [ErrLocked] if another process has it open.
func Open(c Config) (*Cache, error) {
	if c.Metrics == nil {
		c.Metrics = metrics.NewSet()
	}
	k := &Cache{
		c: c, files: chain.Blobs{Source: "cache"}, pending: make(map[string]oci.Digest), children: make(map[oci.Digest]struct{}), active: make(map[string]struct{}), hidden: make(map[oci.Digest]struct{}), touched: make(map[oci.Digest]time.Time), expected: make(map[oci.Digest]time.Time),
		write: make(chan struct{}, 1), full: make(chan struct{}, 1), swept: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
		evicted: c.Metrics.NewCounter("pier_cache_evicted_bytes_total"),
	}
	for _, dir := range []string{k.path("blobs", "sha256"), k.path("blobs", "sha512"), k.path("pier", "partial"), k.path("pier", "referrers"), k.path("pier", "used")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("cache directory: %w", err)
		}
	}
	if err := k.acquire(); err != nil {
		return nil, err
	}
	if err := k.load(); err != nil {
		k.lock.Close()
		return nil, fmt.Errorf("cache %s: %w", c.Dir, err)
	}
	c.Metrics.NewGauge("pier_cache_bytes", func() float64 { return float64(k.bytes.Load()) })
	c.Metrics.NewGauge("pier_cache_blobs", func() float64 { return float64(k.blobs.Load()) })
	c.Metrics.NewGauge("pier_cache_max_bytes", func() float64 { return float64(c.MaxBytes) })
	go k.keep()
	k.checkFull()
	return k, nil
}

func (k *Cache) path(elem ...string) string {
	return filepath.Join(append([]string{k.c.Dir}, elem...)...)
}

func (k *Cache) blobPath(d oci.Digest) string { return chain.BlobPath(k.c.Dir, d) }

// acquire takes the lock that lasts as long as the process.
func (k *Cache) acquire() error {
	f, err := os.OpenFile(k.path("pier", "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("cache lock: %w", err)
	}
	for end := time.Now().Add(k.c.Wait); ; time.Sleep(lockedAgain) {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("cache directory %s: %w; give each node a directory of its own", k.c.Dir, ErrLocked)
		}
		return fmt.Errorf("cache lock: %w", err)
	}
	k.lock = f
	return nil
}

// load reads the index, and counts what is there.
func (k *Cache) load() error {
	layout := k.path(v1.ImageLayoutFile)
	if _, err := os.Stat(layout); errors.Is(err, fs.ErrNotExist) {
		if err := writeFile(layout, func(w io.Writer) error {
			_, err := io.WriteString(w, `{"imageLayoutVersion":"`+v1.ImageLayoutVersion+`"}`)
			return err
		}); err != nil {
			return err
		}
	}
	for _, dir := range []string{k.c.Dir, k.path("pier")} {
		left, err := filepath.Glob(filepath.Join(dir, ".new-*")) // what a crash left of writeFile
		if err != nil {
			return err
		}
		for _, f := range left {
			_ = os.Remove(f) // it is in nobody's way
		}
	}
	if err := k.loadIndex(); err != nil {
		return err
	}
	if err := k.sweepPartials(partialLife); err != nil {
		return err
	}
	return k.each(func(_ digest.Algorithm, _ string, st *unix.Stat_t) {
		k.bytes.Add(st.Size)
		k.blobs.Add(1)
	})
}

// each calls do for every blob: the kernel is asked of each by its name alone, as there may be very many.
func (k *Cache) each(do func(alg digest.Algorithm, name string, st *unix.Stat_t)) error {
	var errs []error
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		errs = append(errs, k.eachOf(alg, do))
	}
	return errors.Join(errs...)
}

func (k *Cache) eachOf(alg digest.Algorithm, do func(alg digest.Algorithm, name string, st *unix.Stat_t)) error {
	dir, err := os.Open(k.path("blobs", alg.String()))
	if err != nil {
		return err
	}
	defer dir.Close()
	var st unix.Stat_t
	for {
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			if alg.Validate(name) != nil || unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
				continue // nothing of ours, or gone meanwhile
			}
			do(alg, name, &st)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Walk implements [chain.Walker].
func (k *Cache) Walk(do func(oci.Digest)) error {
	return k.each(func(alg digest.Algorithm, name string, _ *unix.Stat_t) { do(digest.NewDigestFromEncoded(alg, name)) })
}

// Close writes what is not written yet and gives the directory free.
func (k *Cache) Close() error {
	close(k.stop)
	<-k.done
	return errors.Join(k.writeIndex(), k.lock.Close())
}

// keep is the goroutine that writes the index and evicts, one request for many.
func (k *Cache) keep() {
	defer close(k.done)
	hourly := time.NewTicker(time.Hour)
	defer hourly.Stop()
	sweep := func() {
		if err := k.sweepPartials(partialLife); err != nil {
			k.c.Log.Error("partial files not swept", "err", err)
		}
	}
	for {
		select {
		case <-k.stop:
			return
		case <-hourly.C:
			sweep()
		case <-k.swept:
			sweep()
		case <-k.write:
			if err := k.writeIndex(); err != nil {
				k.c.Log.Error("cache index not written; after a restart new tags are unknown offline", "err", err)
			}
		case <-k.full:
			if err := k.evict(); err != nil {
				k.c.Log.Error("cache eviction stopped", "err", err)
			}
		}
	}
}

func (k *Cache) checkFull() {
	if k.c.MaxBytes > 0 && k.bytes.Load() > max(k.c.MaxBytes, k.stays.Load()) {
		select {
		case k.full <- struct{}{}:
		default:
		}
	}
}

// Resolve implements [oci.Source].
func (k *Cache) Resolve(_ context.Context, ref oci.Reference) (oci.Descriptor, error) {
	if ref.Digest == "" {
		e, ok := k.named(ref)
		if !ok {
			return oci.Descriptor{}, fmt.Errorf("cache: %s: %w", ref, oci.ErrNotFound)
		}
		ref.Digest = e.Digest
	}
	if err := k.visible(ref.Digest); err != nil {
		return oci.Descriptor{}, err
	}
	desc, kept, err := k.files.Stat(k.c.Dir, ref)
	if err == nil {
		k.touch(ref.Digest, kept)
	}
	return desc, err
}

// Open implements [oci.Source].
func (k *Cache) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	if err := k.visible(ref.Digest); err != nil {
		return nil, oci.Descriptor{}, err
	}
	rc, desc, kept, err := k.files.Open(k.c.Dir, ref, offset, length)
	if err == nil && !oci.IsInspection(ctx) {
		k.touch(ref.Digest, kept)
	}
	return rc, desc, err
}

// remember adds to one of the maps that only save work, and forgets anything else where it is full.
func remember[K comparable, V any](m map[K]V, key K, value V) {
	if len(m) >= maxRemembered {
		for victim := range m {
			delete(m, victim)
			break
		}
	}
	m[key] = value
}

// Delete implements [oci.Store]. Names of a deleted manifest go with it.
func (k *Cache) Delete(_ context.Context, dgst oci.Digest) error {
	k.settle.RLock()
	defer k.settle.RUnlock()
	return k.drop(dgst)
}

func (k *Cache) drop(dgst oci.Digest) error { return k.dropFile(dgst, nil) }

// dropFile drops content if it is in that file; nil: in whatever file.
func (k *Cache) dropFile(dgst oci.Digest, file fs.FileInfo) error {
	path := k.blobPath(dgst)
	k.mu.Lock() // another file takes its place with mu held
	info, err := os.Lstat(path)
	if err == nil && file != nil && !os.SameFile(info, file) {
		err = fs.ErrNotExist
	}
	if err == nil {
		err = os.Remove(path)
	}
	k.mu.Unlock()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	k.bytes.Add(-info.Size())
	k.blobs.Add(-1)
	k.forget(dgst)
	_ = os.Remove(k.usedPath(dgst)) // one that stays, or that there never was, is in nobody's way
	return nil
}

// Blame implements [oci.Blamer]: content of ours that is wrong, or cannot be read, is deleted, so that it is fetched again. It
// is looked at once more before: whoever complains may hold a copy that was replaced since.
func (k *Cache) Blame(ref oci.Reference, origin string) {
	if origin != "cache" {
		return
	}
	wrong, err := k.wrong(ref.Digest)
	if err != nil {
		k.c.Log.Error("content that somebody found damaged cannot be read now, and stays", "file", k.blobPath(ref.Digest), "err", err)
	}
	if wrong == nil {
		return
	}
	k.settle.RLock()
	defer k.settle.RUnlock()
	if err := k.dropFile(ref.Digest, wrong); err != nil {
		k.c.Log.Error("damaged content not deleted, and not offered any more; delete the file by hand", "file", k.blobPath(ref.Digest), "err", err)
		k.mu.Lock()
		defer k.mu.Unlock()
		remember(k.hidden, ref.Digest, struct{}{})
		k.altered = time.Now()
	}
}

// visible returns an error wrapping [oci.ErrNotFound] for content that is damaged and could not be deleted.
func (k *Cache) visible(dgst oci.Digest) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, hidden := k.hidden[dgst]; hidden {
		return fmt.Errorf("cache: %s is damaged: %w", dgst, oci.ErrNotFound)
	}
	return nil
}

// wrong returns the file of content that is not what its name says, or that the disk cannot read; nil if it is right, or gone. A fault that
// says nothing about the file, such as that too many are open, is an error.
func (k *Cache) wrong(dgst oci.Digest) (fs.FileInfo, error) {
	path := k.blobPath(dgst)
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return info, nil
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe that took its place would hang
	if err != nil && !errors.Is(err, unix.EIO) {
		return nil, err
	}
	if err == nil {
		defer f.Close()
		if info, err = f.Stat(); err != nil {
			return nil, err
		}
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // what is in memory may be right, and the disk wrong
		h := dgst.Algorithm().Hash()
		if _, err = io.Copy(h, f); err == nil && chain.Matches(h, dgst) {
			return nil, nil
		}
	}
	if err != nil && !errors.Is(err, unix.EIO) {
		return nil, err
	}
	return info, nil
}

// Size returns how many bytes of content are kept, and in how many blobs.
func (k *Cache) Size() (bytes, blobs int64) { return k.bytes.Load(), k.blobs.Load() }
