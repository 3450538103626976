package cache

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/oci"
)

// entry is a manifest with a name in the index. The name is registry/repository:tag, or registry/repository@digest for
// a manifest that was asked for by digest alone.
type entry struct {
	MediaType string
	Digest    oci.Digest
	Size      int64
	Source    string // what supplied it
}

// sourceAnnotation is where the index says what supplied a manifest.
const sourceAnnotation = "io.pier.source"

func nameOf(ref oci.Reference) string {
	if ref.Tag != "" {
		return ref.Name() + ":" + ref.Tag
	}
	return ref.Name() + "@" + ref.Digest.String()
}

// loadIndex reads index.json. One that cannot be read costs the names, not the content: it is put aside.
func (k *Cache) loadIndex() error {
	k.index = make(map[string]entry)
	path := k.path(v1.ImageIndexFile)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		k.dirty = true
		return k.writeIndex()
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var index v1.Index
	if err := json.NewDecoder(bufio.NewReader(f)).Decode(&index); err != nil {
		k.c.Log.Error("cache index is damaged and put aside; tags are unknown offline until they are asked for again",
			"file", path+".damaged", "err", err)
		k.dirty = true
		return errors.Join(os.Rename(path, path+".damaged"), k.writeIndex())
	}
	for _, d := range index.Manifests {
		name := d.Annotations[v1.AnnotationRefName]
		if _, err := oci.ParseDigest(d.Digest.String()); err != nil || name == "" {
			continue
		}
		if _, err := os.Stat(k.blobPath(d.Digest)); err != nil {
			k.dirty = true // a crash came between the file's end and the name's
			continue
		}
		k.index[name] = entry{d.MediaType, d.Digest, d.Size, d.Annotations[sourceAnnotation]}
	}
	return k.writeIndex()
}

// writeIndex writes index.json if it changed. Once it returns, what was named before it was called is on disk.
func (k *Cache) writeIndex() error {
	k.writing.Lock()
	defer k.writing.Unlock()
	k.mu.Lock()
	if !k.dirty {
		k.mu.Unlock()
		return nil
	}
	k.dirty = false
	entries := maps.Clone(k.index)
	k.mu.Unlock()
	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: make([]v1.Descriptor, 0, len(entries))}
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		e := entries[name]
		d := v1.Descriptor{MediaType: e.MediaType, Digest: e.Digest, Size: e.Size, Annotations: map[string]string{v1.AnnotationRefName: name}}
		if e.Source != "" {
			d.Annotations[sourceAnnotation] = e.Source
		}
		index.Manifests = append(index.Manifests, d)
	}
	err := writeFile(k.path(v1.ImageIndexFile), func(w io.Writer) error {
		buf := bufio.NewWriter(w)
		return errors.Join(json.NewEncoder(buf).Encode(index), buf.Flush())
	})
	if err != nil {
		k.mu.Lock()
		k.dirty = true
		k.mu.Unlock()
	}
	return err
}

// changed notes, with mu held, that the index is to be written.
func (k *Cache) changed() {
	k.dirty, k.altered = true, time.Now()
	select {
	case k.write <- struct{}{}:
	default:
	}
}

func (k *Cache) named(ref oci.Reference) (entry, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e, ok := k.index[nameOf(ref)]
	return e, ok
}

// names reports whether ref names desc already, and nothing else is to come.
func (k *Cache) names(ref oci.Reference, desc oci.Descriptor) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	name := nameOf(ref)
	_, waits := k.pending[name]
	e := k.index[name]
	return e.Digest == desc.Digest && !waits && (e.Source == desc.Source || !precious(desc.Source))
}

// Tag implements [oci.Tagger]. A tag of a manifest that is not here takes effect when the manifest comes. What nobody else may
// have is on disk when it returns; other names are asked for again after a crash.
func (k *Cache) Tag(ctx context.Context, ref oci.Reference, desc oci.Descriptor) error {
	err := k.tag(ctx, ref, desc)
	if err != nil || !precious(desc.Source) {
		return err
	}
	if info, _, err := k.files.Manifest(k.c.Dir, desc.Digest); err == nil {
		var parts []string // they were pushed by digest, and are part of it now
		for _, m := range info.Manifests {
			parts = append(parts, ref.Name()+"@"+m.Digest.String())
		}
		if ref.Tag != "" {
			parts = append(parts, ref.Name()+"@"+desc.Digest.String())
		}
		k.unname(parts)
	}
	return k.writeIndex()
}

func (k *Cache) tag(ctx context.Context, ref oci.Reference, desc oci.Descriptor) error {
	if k.names(ref, desc) {
		return nil
	}
	have, err := k.Resolve(ctx, ref.WithDigest(desc.Digest))
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.pending, nameOf(ref)) // what it was to name once, it does not any more
	switch {
	case errors.Is(err, oci.ErrNotFound):
		remember(k.pending, nameOf(ref), desc.Digest)
		return nil
	case err != nil:
		return err
	}
	k.name(nameOf(ref), entry{have.MediaType, have.Digest, have.Size, desc.Source})
	return nil
}

// maxNames bounds the names in the index, about 5 MB of memory: a registry may name one manifest without end.
const maxNames = 20_000

// name enters a name into the index, and forgets any other where it is full. The caller holds mu.
func (k *Cache) name(name string, e entry) {
	if _, known := k.index[name]; !known && len(k.index) >= maxNames {
		for victim := range k.index {
			delete(k.index, victim)
			break
		}
	}
	k.index[name] = e
	k.changed()
}

// arrived gives a manifest that was just kept its names, and notes what it says of others.
func (k *Cache) arrived(ref oci.Reference, desc oci.Descriptor, info oci.ManifestInfo) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, child := range info.Manifests {
		if d, err := oci.ParseDigest(child.Digest.String()); err == nil {
			remember(k.children, d, struct{}{})
		}
	}
	e := entry{info.MediaType, desc.Digest, desc.Size, desc.Source}
	_, child := k.children[desc.Digest]
	_, named := k.index[nameOf(ref)] // what a tag names now, Tag was told: this may have been long on its way
	if ref.Registry != "" && !named && (ref.Tag != "" || !child) {
		k.name(nameOf(ref), e)
	}
	for name, dgst := range k.pending {
		if dgst == desc.Digest {
			k.name(name, e)
			delete(k.pending, name)
		}
	}
	if info.Subject == nil {
		return nil
	}
	if _, err := oci.ParseDigest(info.Subject.Digest.String()); err != nil {
		return nil // refers to nothing that could be asked for
	}
	return k.markReferrer(info.Subject.Digest, desc.Digest)
}

// forget drops all names of a manifest.
func (k *Cache) forget(dgst oci.Digest) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, e := range k.index {
		if e.Digest == dgst {
			delete(k.index, name)
			k.changed()
		}
	}
}

// unname drops names.
func (k *Cache) unname(names []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, name := range names {
		if _, ok := k.index[name]; ok {
			delete(k.index, name)
			k.changed()
		}
	}
}

// Tags implements [oci.Lister].
func (k *Cache) Tags(_ context.Context, registry, repository string) ([]string, error) {
	prefix := registry + "/" + repository + ":"
	k.mu.Lock()
	defer k.mu.Unlock()
	var tags []string
	for name := range k.index {
		if tag, ok := strings.CutPrefix(name, prefix); ok && !strings.Contains(tag, "/") { // a port is no tag
			tags = append(tags, tag)
		}
	}
	if tags == nil {
		return nil, fmt.Errorf("cache: %s/%s: %w", registry, repository, oci.ErrNotFound)
	}
	slices.Sort(tags)
	return tags, nil
}

// markReferrer notes by an empty file that dgst refers to subject.
func (k *Cache) markReferrer(subject, dgst oci.Digest) error {
	dir := k.referrersDir(subject)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, dgst.Algorithm().String()+"-"+dgst.Encoded()), os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

func (k *Cache) referrersDir(subject oci.Digest) string {
	return k.path("pier", "referrers", subject.Algorithm().String()+"-"+subject.Encoded())
}

// Referrers implements [oci.Lister].
func (k *Cache) Referrers(_ context.Context, ref oci.Reference) ([]v1.Descriptor, error) {
	marks, err := os.ReadDir(k.referrersDir(ref.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cache: referrers of %s: %w", ref.Digest, oci.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	list := []v1.Descriptor{}
	for _, mark := range marks {
		dgst, err := oci.ParseDigest(strings.Replace(mark.Name(), "-", ":", 1))
		if err != nil {
			continue
		}
		d, err := k.describeReferrer(dgst)
		if errors.Is(err, oci.ErrNotFound) {
			continue // evicted; the mark goes with the next eviction, or lives again if it comes back
		}
		if err != nil {
			return nil, err
		}
		list = append(list, d)
	}
	return list, nil
}

// maxDescribed is the size up to which a referrer's annotations are repeated in the list: many referrers of the largest
// size must not make a list that nobody can hold.
const maxDescribed = 64 << 10

func (k *Cache) describeReferrer(dgst oci.Digest) (v1.Descriptor, error) {
	info, desc, err := k.files.Manifest(k.c.Dir, dgst)
	if desc.Size > maxDescribed {
		info.Annotations = nil
	}
	return v1.Descriptor{
		MediaType: info.MediaType, Digest: dgst, Size: desc.Size, ArtifactType: info.ArtifactType, Annotations: info.Annotations,
	}, err
}

// dropMarks deletes the marks of referrers that are not here any more.
func (k *Cache) dropMarks() error {
	dirs, err := os.ReadDir(k.path("pier", "referrers"))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		dir := k.path("pier", "referrers", d.Name())
		marks, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		left := len(marks)
		for _, mark := range marks {
			dgst, err := oci.ParseDigest(strings.Replace(mark.Name(), "-", ":", 1))
			if err == nil {
				if _, err = os.Stat(k.blobPath(dgst)); err == nil {
					continue
				}
			}
			if err := os.Remove(filepath.Join(dir, mark.Name())); err != nil {
				return err
			}
			left--
		}
		if left == 0 {
			if err := os.Remove(dir); err != nil {
				return err
			}
		}
	}
	return nil
}
