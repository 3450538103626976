package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"pier/internal/chain"
	"pier/internal/oci"
)

// Files of interrupted transfers wait for the next one so long, and take at most so much of the cache's limit.
const (
	partialLife  = 24 * time.Hour
	partialShare = 10 // a tenth
)

// Begin implements [oci.Spool].
func (k *Cache) Begin(ref oci.Reference) (oci.Partial, error) {
	from := sha256.Sum256([]byte(ref.Registry + " " + ref.Kind.String()))
	name := fmt.Sprintf("%s-%s-%x", ref.Digest.Algorithm(), ref.Digest.Encoded(), from[:4])
	k.mu.Lock()
	k.active[name] = struct{}{}
	k.mu.Unlock()
	f, err := os.OpenFile(k.path("pier", "partial", name), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		k.settled(name)
		return nil, fmt.Errorf("cache: %w", err)
	}
	return &partial{k, f, name}, nil
}

type partial struct {
	k    *Cache
	f    *os.File
	name string
}

func (p *partial) File() *os.File { return p.f }

// Suspend implements [oci.Partial].
func (p *partial) Suspend() error {
	if info, err := p.f.Stat(); err == nil && info.Size() == 0 {
		return p.Discard()
	}
	p.wait()
	return nil
}

// wait leaves the file for whoever goes on with it, unless there is too much of that.
func (p *partial) wait() {
	p.k.settled(p.name)
	select {
	case p.k.swept <- struct{}{}:
	default:
	}
}

// Discard implements [oci.Partial].
func (p *partial) Discard() error {
	err := os.Remove(p.f.Name())
	p.k.settled(p.name)
	return err
}

// settled notes that no transfer writes the file any more.
func (k *Cache) settled(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.active, name)
}

// Commit implements [oci.Partial]: sync, rename, sync the directory; then the names.
func (p *partial) Commit(ref oci.Reference, desc oci.Descriptor) error {
	if err := p.commit(ref, desc); err != nil {
		return errors.Join(fmt.Errorf("cache: %w", err), p.Discard())
	}
	p.k.settled(p.name)
	p.k.checkFull()
	return nil
}

func (p *partial) commit(ref oci.Reference, desc oci.Descriptor) error {
	p.k.settle.RLock()
	defer p.k.settle.RUnlock()
	var info oci.ManifestInfo
	if ref.Kind == oci.Manifest {
		var err error
		if info, err = chain.ReadManifest(p.f, desc); errors.Is(err, oci.ErrNotFound) {
			return fmt.Errorf("%w: %s", oci.ErrUnsupported, err.Error())
		} else if err != nil {
			return err
		}
	}
	if err := p.f.Sync(); err != nil {
		return err
	}
	path := p.k.blobPath(desc.Digest)
	if err := p.k.place(p.f.Name(), desc.Digest, desc.Size); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return err
	}
	if ref.Kind == oci.Manifest {
		return p.k.arrived(ref, desc, info)
	}
	return nil
}

// place renames a proven file to where content is, and counts it if it is new there.
func (k *Cache) place(from string, dgst oci.Digest, size int64) error {
	to := k.blobPath(dgst)
	k.mu.Lock()
	defer k.mu.Unlock()
	_, absent := os.Stat(to)
	if err := os.Rename(from, to); err != nil {
		return err
	}
	delete(k.hidden, dgst) // and the rename shows in Changed
	if absent != nil {
		k.bytes.Add(size)
		k.blobs.Add(1)
	}
	return nil
}

// Put implements [oci.Store].
func (k *Cache) Put(_ context.Context, desc oci.Descriptor, r io.Reader) error {
	f, err := os.CreateTemp(k.path("pier", "partial"), "put-*")
	if err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	defer f.Close()
	p := &partial{k, f, filepath.Base(f.Name())}
	k.mu.Lock()
	k.active[p.name] = struct{}{}
	k.mu.Unlock()
	h := desc.Digest.Algorithm().Hash()
	n, err := io.Copy(io.MultiWriter(f, h), r)
	err = errors.Join(err, f.Chmod(0o644)) // others may copy it
	if err == nil && !chain.Matches(h, desc.Digest) {
		err = fmt.Errorf("%s: %w", desc.Digest, oci.ErrDigestMismatch)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("cache: %w", err), p.Discard())
	}
	desc.Size = n
	ref := oci.Reference{Kind: oci.Blob, Digest: desc.Digest}
	if oci.IsManifest(desc.MediaType) {
		ref.Kind = oci.Manifest
	}
	return p.Commit(ref, desc)
}

// sweepPartials deletes what no transfer came back for in so long, and the oldest of the rest where it is too much.
func (k *Cache) sweepPartials(life time.Duration) error {
	dir := k.path("pier", "partial")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var waiting []fs.FileInfo
	var bytes int64
	k.mu.Lock()
	for _, e := range entries {
		if _, runs := k.active[e.Name()]; runs {
			continue
		}
		if info, err := e.Info(); err == nil {
			waiting = append(waiting, info)
			bytes += info.Size()
		}
	}
	k.mu.Unlock()
	sort.Slice(waiting, func(i, j int) bool { return waiting[i].ModTime().Before(waiting[j].ModTime()) })
	for i, info := range waiting {
		// The newest stays whatever its size: a large layer is the one worth resuming.
		age := time.Since(info.ModTime())
		tooMuch := k.c.MaxBytes > 0 && bytes > k.c.MaxBytes/partialShare && i < len(waiting)-1
		if tooMuch && age < expectedFor && strings.HasPrefix(info.Name(), uploadPrefix) {
			continue // between two of its pieces
		}
		if !tooMuch && age < life {
			break // the rest is younger
		}
		if err := k.dropPartial(dir, info.Name()); err != nil {
			return err
		}
		bytes -= info.Size()
	}
	return nil
}

// dropPartial deletes a file unless a transfer began with it meanwhile.
func (k *Cache) dropPartial(dir, name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, runs := k.active[name]; runs {
		return nil
	}
	if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// writeFile replaces path by what write writes, so that after a crash it is the old or the new.
func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	err = errors.Join(write(f), f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes a rename in dir last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
