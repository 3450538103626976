package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"pier/internal/chain"
	"pier/internal/oci"
)

// partialLife is how long the bytes of an interrupted transfer wait for the next.
const partialLife = 24 * time.Hour

// Begin implements [oci.Spool].
func (k *Cache) Begin(dgst oci.Digest) (oci.Partial, error) {
	path := k.path("pier", "partial", dgst.Algorithm().String()+"-"+dgst.Encoded())
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	return &partial{k, f}, nil
}

type partial struct {
	k *Cache
	f *os.File
}

func (p *partial) File() *os.File { return p.f }
func (p *partial) Suspend() error { return nil }
func (p *partial) Discard() error { return os.Remove(p.f.Name()) }

// Commit implements [oci.Partial]: sync, rename, sync the directory; then the names.
func (p *partial) Commit(ref oci.Reference, desc oci.Descriptor) error {
	if err := p.commit(ref, desc); err != nil {
		return errors.Join(fmt.Errorf("cache: %w", err), p.Discard())
	}
	p.k.checkFull()
	return nil
}

func (p *partial) commit(ref oci.Reference, desc oci.Descriptor) error {
	p.k.settle.RLock()
	defer p.k.settle.RUnlock()
	var info oci.ManifestInfo
	if ref.Kind == oci.Manifest {
		var err error
		if info, err = chain.ReadManifest(p.f, desc); err != nil {
			return err
		}
	}
	if err := p.f.Sync(); err != nil {
		return err
	}
	path := p.k.blobPath(desc.Digest)
	_, had := os.Stat(path)
	if err := os.Rename(p.f.Name(), path); err != nil {
		return err
	}
	if had != nil {
		p.k.bytes.Add(desc.Size)
		p.k.blobs.Add(1)
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return err
	}
	if ref.Kind == oci.Manifest {
		return p.k.arrived(ref, desc, info)
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
	p := &partial{k, f}
	h := desc.Digest.Algorithm().Hash()
	n, err := io.Copy(io.MultiWriter(f, h), r)
	if err == nil && fmt.Sprintf("%x", h.Sum(nil)) != desc.Digest.Encoded() {
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

// dropOldPartials deletes what no transfer came back for.
func (k *Cache) dropOldPartials() error {
	dir := k.path("pier", "partial")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || time.Since(info.ModTime()) < partialLife {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
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
