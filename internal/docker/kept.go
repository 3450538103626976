package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"pier/internal/chain"
	"pier/internal/oci"
)

// kept is what Docker does not keep, in files named as in an OCI image layout: manifests, as long as Docker has their images, and
// layers up to a quota, those used last: such as nothing makes again, and where the quota is large, spare ones, which spare the time
// to make them once more.
type kept struct {
	root  string
	quota int64 // bytes of layers
	spare int64 // of them for spare ones
	log   *slog.Logger
	blobs chain.Blobs

	mu        sync.Mutex // guards all below
	manifests map[oci.Digest]manifest
	content   map[oci.Digest]layer
	bytes     int64               // of content
	spares    int64               // bytes of spare ones
	written   int64               // bytes of manifests
	named     map[oci.Digest]bool // manifests that Docker knows images by, as of the last drop
	altered   time.Time
}

type manifest struct {
	came     time.Time
	size     int64
	children []oci.Digest // manifests that it names, if it is an index
}

type layer struct {
	size  int64
	used  time.Time
	spare bool
}

// unnamed is how long a manifest is kept that Docker does not know an image by: it may not have got there yet, since Docker names an
// image once all of its layers are there.
const unnamed = 24 * time.Hour

// Bounds of the manifests kept. Where there are more, those go first that Docker does not know an image by.
const (
	maxManifests     = 1 << 14   // 3 MB of memory
	maxManifestBytes = 256 << 20 // of disk: they have some kilobytes each
)

// needed is how much of the quota, in bytes, is for layers that nothing makes again; only what exceeds it is for spare ones.
const needed = 1 << 30

// openKept opens what is kept under dir. isSpare says which layers can be made again.
func openKept(dir string, quota int64, isSpare func(oci.Digest) bool, log *slog.Logger) (*kept, error) {
	k := &kept{
		root: dir, quota: quota, spare: max(0, quota-needed), log: log, blobs: chain.Blobs{Source: source},
		manifests: make(map[oci.Digest]manifest), content: make(map[oci.Digest]layer),
	}
	for _, name := range []string{"blobs/sha256", "blobs/sha512", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			return nil, fmt.Errorf("docker: %w", err)
		}
	}
	list, err := k.blobs.List(dir)
	if err != nil {
		return nil, err
	}
	for _, d := range list {
		ref := oci.Reference{Kind: oci.Manifest, Digest: d}
		if desc, at, err := k.blobs.Stat(dir, ref); err == nil {
			k.manifests[d] = manifest{came: at, size: desc.Size, children: k.children(desc.Digest)}
			k.written += desc.Size
			continue
		}
		ref.Kind = oci.Blob
		if desc, at, err := k.blobs.Stat(dir, ref); err == nil {
			k.add(d, layer{desc.Size, at, isSpare(d)})
		}
	}
	leftover, err := filepath.Glob(filepath.Join(dir, "tmp", "*"))
	for _, path := range leftover {
		os.Remove(path)
	}
	k.evict()
	return k, err
}

func (k *kept) children(d oci.Digest) (list []oci.Digest) {
	info, _, err := k.blobs.Manifest(k.root, d)
	if err != nil {
		return nil
	}
	for _, m := range info.Manifests {
		list = append(list, m.Digest)
	}
	return list
}

// manifest returns when a manifest came, if it is here.
func (k *kept) manifest(d oci.Digest) (came time.Time, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	m, ok := k.manifests[d]
	return m.came, ok
}

// has reports whether a layer is here.
func (k *kept) has(d oci.Digest) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ok := k.content[d]
	return ok
}

// layers returns how many layers are here, and their bytes.
func (k *kept) layers() (count int, bytes int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.content), k.bytes
}

// putManifest keeps a manifest. One that cannot be parsed is refused.
func (k *kept) putManifest(d oci.Digest, content []byte) error {
	if _, ok := k.manifest(d); ok {
		return nil
	}
	info, err := oci.ParseManifest(content)
	if err != nil {
		return fmt.Errorf("docker: manifest %s: %w", d, err)
	}
	if err := k.write(d, bytes.NewReader(content)); err != nil {
		return err
	}
	m := manifest{came: time.Now(), size: int64(len(content))}
	for _, child := range info.Manifests {
		m.children = append(m.children, child.Digest)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.manifests[d], k.altered = m, time.Now()
	k.written += m.size
	for len(k.manifests) > maxManifests || k.written > maxManifestBytes {
		k.remove(k.leastManifest(d))
	}
	return nil
}

// leastManifest returns the manifest that is missed least, but for one: of those that Docker does not know an image by, or else of
// all, the one that came first. The caller holds mu.
func (k *kept) leastManifest(but oci.Digest) (least oci.Digest) {
	for d, m := range k.manifests {
		switch l := k.manifests[least]; {
		case d == but:
		case least == "", k.named[least] && !k.named[d], k.named[least] == k.named[d] && m.came.Before(l.came):
			least = d
		}
	}
	return least
}

// putLayer keeps a layer, which was proven, if the quota has room for it when others go. It reports whether it did.
func (k *kept) putLayer(d oci.Digest, size int64, r io.Reader, spare bool) (bool, error) {
	if size > k.quota || spare && size > k.spare || k.has(d) {
		return k.has(d), nil
	}
	if err := k.write(d, r); err != nil {
		return false, err
	}
	k.mu.Lock()
	k.add(d, layer{size, time.Now(), spare})
	k.mu.Unlock()
	k.evict()
	return true, nil
}

// add notes a layer. The caller holds mu, or is alone.
func (k *kept) add(d oci.Digest, l layer) {
	if _, again := k.content[d]; again {
		return
	}
	k.content[d], k.altered = l, time.Now()
	k.bytes += l.size
	if l.spare {
		k.spares += l.size
	}
}

// write puts content under its name once all of it is on the disk, and proven.
func (k *kept) write(d oci.Digest, r io.Reader) error {
	f, err := os.CreateTemp(filepath.Join(k.root, "tmp"), "new-*")
	if err != nil {
		return fmt.Errorf("docker: %w", err)
	}
	defer os.Remove(f.Name()) // does nothing once it has its name
	digester := d.Algorithm().Hash()
	if _, err = io.Copy(io.MultiWriter(f, digester), r); err == nil && !chain.Matches(digester, d) {
		err = fmt.Errorf("%s: %w", d, oci.ErrDigestMismatch)
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), chain.BlobPath(k.root, d))
	}
	if err != nil {
		return fmt.Errorf("docker: %w", err)
	}
	return nil
}

// evict removes layers until the others are within the quota: spare ones first, and of each kind those used longest ago.
func (k *kept) evict() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for k.bytes > k.quota || k.spares > k.spare {
		var victim oci.Digest
		for d, l := range k.content {
			if v := k.content[victim]; l.spare == (k.spares > 0) && (victim == "" || l.used.Before(v.used)) {
				victim = d
			}
		}
		if k.content[victim].spare {
			k.remove(victim)
			continue
		}
		k.log.Info("layer that nothing makes again is let go, for others used since; raise --layer-keep to keep more", "digest", victim, "bytes", k.content[victim].size)
		k.remove(victim)
	}
}

// remove removes a file. The caller holds mu.
func (k *kept) remove(d oci.Digest) {
	if err := os.Remove(chain.BlobPath(k.root, d)); err != nil && !errors.Is(err, os.ErrNotExist) {
		k.log.Warn("file cannot be removed", "err", err)
	}
	k.bytes -= k.content[d].size
	if k.content[d].spare {
		k.spares -= k.content[d].size
	}
	k.written -= k.manifests[d].size
	delete(k.content, d)
	delete(k.manifests, d)
	k.altered = time.Now()
}

// drop removes the manifests of images, and the layers, that Docker does not have: named are the digests that it knows images by,
// digests those that it saw its layers under.
func (k *kept) drop(named map[oci.Digest]bool, digests map[oci.Digest][]oci.Digest) {
	content := make(map[oci.Digest]bool)
	for _, list := range digests {
		for _, d := range list {
			content[d] = true
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.named = named
	wanted := make(map[oci.Digest]bool)
	for d, m := range k.manifests {
		if named[d] || time.Since(m.came) < unnamed {
			wanted[d] = true
			for _, child := range m.children {
				wanted[child] = true
			}
		}
	}
	for d := range k.manifests {
		if !wanted[d] {
			k.remove(d)
		}
	}
	for d, l := range k.content {
		if !content[d] && time.Since(l.used) >= unnamed {
			k.remove(d)
		}
	}
}

// Kept returns a Source of what is kept in files of this package's own, with the tags that Docker knows. Bytes are not verified.
func (s *Store) Kept() oci.Source { return keptSource{s} }

type keptSource struct{ s *Store }

// Resolve implements [oci.Source].
func (r keptSource) Resolve(_ context.Context, ref oci.Reference) (oci.Descriptor, error) {
	if ref.Digest == "" {
		r.s.mu.Lock()
		ref.Digest = r.s.view.tags[ref.Name()][ref.Tag]
		r.s.mu.Unlock()
		if ref.Digest == "" {
			return oci.Descriptor{}, fmt.Errorf("docker: %s: %w", ref, oci.ErrNotFound)
		}
	}
	desc, _, err := r.s.kept.blobs.Stat(r.s.kept.root, ref)
	return desc, err
}

// Open implements [oci.Source].
func (r keptSource) Open(_ context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	k := r.s.kept
	rc, desc, _, err := k.blobs.Open(k.root, ref, offset, length)
	if err == nil {
		k.mu.Lock()
		if l, ok := k.content[ref.Digest]; ok {
			l.used = time.Now()
			k.content[ref.Digest] = l
		}
		k.mu.Unlock()
	}
	return rc, desc, err
}

// Blame implements [oci.Blamer]: what was found wrong is removed.
func (r keptSource) Blame(ref oci.Reference, _ string) {
	k := r.s.kept
	k.mu.Lock()
	defer k.mu.Unlock()
	k.remove(ref.Digest)
}

// Holdings implements [chain.Holder].
func (r keptSource) Holdings() ([]oci.Digest, error) {
	k := r.s.kept
	k.mu.Lock()
	defer k.mu.Unlock()
	list := make([]oci.Digest, 0, len(k.manifests)+len(k.content))
	for d := range k.manifests {
		list = append(list, d)
	}
	for d := range k.content {
		list = append(list, d)
	}
	return list, nil
}

// Names implements [chain.Holder].
func (r keptSource) Names() []oci.Reference {
	r.s.mu.Lock()
	tags := r.s.view.tags
	r.s.mu.Unlock()
	var list []oci.Reference
	for name, of := range tags {
		for tag, dgst := range of {
			if ref, err := oci.ParseReference(name+":"+tag, oci.DockerHub); err == nil {
				list = append(list, ref.WithDigest(dgst))
			}
		}
	}
	return chain.BoundNames(list)
}

// Changed implements [chain.Holder].
func (r keptSource) Changed() time.Time {
	r.s.mu.Lock()
	altered := r.s.altered
	r.s.mu.Unlock()
	r.s.kept.mu.Lock()
	defer r.s.kept.mu.Unlock()
	if r.s.kept.altered.After(altered) {
		return r.s.kept.altered
	}
	return altered
}
