package cache

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
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
	return digestName(ref, ref.Digest)
}

// namesFile is where the index is kept for Pier itself: what index.json has, and the SHA-256 of that in a last line. A byte that changes in
// either costs nothing: the other says what was there.
func (k *Cache) namesFile() string { return k.path("pier", "names.json") }

// loadIndex reads the names.
func (k *Cache) loadIndex() error {
	k.index = make(map[string]entry)
	names, err := k.readNames()
	if err != nil {
		return err
	}
	for _, d := range names.Manifests {
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

// readNames returns what one of the two files has, and what another tool added to index.json.
func (k *Cache) readNames() (v1.Index, error) {
	path := k.path(v1.ImageIndexFile)
	names, sum, err := readSummed(k.namesFile())
	if err != nil {
		return k.readOnlyIndex(err)
	}
	got, err := sumOf(path)
	if got == sum {
		return names, nil
	}
	k.dirty = true
	k.c.Log.Warn("index.json of the cache is not what was written to it, and is written again", "file", path, "err", err)
	if others, err := readIndex(path); err == nil {
		names.Manifests = append(names.Manifests, added(names, others)...)
	}
	return names, nil
}

// readOnlyIndex returns what index.json has, where the other file cannot be read. If neither can, that costs the names, not the content:
// index.json is put aside.
func (k *Cache) readOnlyIndex(why error) (v1.Index, error) {
	path := k.path(v1.ImageIndexFile)
	k.dirty = true
	isNew := errors.Is(why, fs.ErrNotExist)
	if !isNew {
		k.c.Log.Warn("names of images are read from index.json, since the file of their own is damaged", "file", k.namesFile(), "err", why)
	}
	names, err := readIndex(path)
	if err == nil || isNew && errors.Is(err, fs.ErrNotExist) {
		return names, nil
	}
	k.c.Log.Error("cache index is damaged and put aside; tags are unknown offline until they are asked for again, and what was pushed has no name",
		"file", path+".damaged", "err", err)
	k.stays.Store(math.MaxInt64) // evict nothing, until somebody prunes: what may not go is not known
	if err = os.Rename(path, path+".damaged"); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return v1.Index{}, err
}

// added returns what another tool added to index.json: names of content that has none.
func added(names, others v1.Index) (list []v1.Descriptor) {
	known := make(map[string]bool)
	for _, d := range names.Manifests {
		known[d.Digest.String()], known[d.Annotations[v1.AnnotationRefName]] = true, true
	}
	for _, d := range others.Manifests {
		if !known[d.Digest.String()] && !known[d.Annotations[v1.AnnotationRefName]] {
			list = append(list, d)
		}
	}
	return list
}

func readIndex(path string) (index v1.Index, err error) {
	f, err := os.Open(path)
	if err != nil {
		return index, err
	}
	defer f.Close()
	if err = json.NewDecoder(bufio.NewReader(f)).Decode(&index); err == nil && index.SchemaVersion != 2 {
		err = errors.New("it is no image index")
	}
	return index, err
}

// readSummed reads a file as writeIndex writes it, and returns the sum in it, which is right.
func readSummed(path string) (index v1.Index, sum string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return index, "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return index, "", err
	}
	const last = 2*sha256.Size + 1 // hexadecimal, and a line feed
	h := sha256.New()
	content := io.NewSectionReader(f, 0, max(info.Size()-last, 0))
	if _, err := io.Copy(h, content); err != nil {
		return index, "", err
	}
	sum = hex.EncodeToString(h.Sum(nil))
	said := make([]byte, last)
	if _, err := io.ReadFull(io.NewSectionReader(f, content.Size(), last), said); err != nil || string(said) != sum+"\n" {
		return index, "", errors.Join(errors.New("its sum does not match"), err)
	}
	_, _ = content.Seek(0, io.SeekStart) // never fails
	return index, sum, json.NewDecoder(bufio.NewReader(content)).Decode(&index)
}

// sumOf returns the SHA-256 of a file.
func sumOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), err
}

// writeIndex writes the index if it changed. Once it returns, what was named before it was called is on disk.
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
	err := writeFile(k.namesFile(), func(w io.Writer) error {
		h := sha256.New()
		buf := bufio.NewWriter(w)
		err := json.NewEncoder(io.MultiWriter(buf, h)).Encode(index)
		fmt.Fprintf(buf, "%x\n", h.Sum(nil))
		return errors.Join(err, buf.Flush())
	})
	if err == nil { // for other tools
		err = writeFile(k.path(v1.ImageIndexFile), func(w io.Writer) error {
			buf := bufio.NewWriter(w)
			return errors.Join(json.NewEncoder(buf).Encode(index), buf.Flush())
		})
	}
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
			parts = append(parts, digestName(ref, m.Digest))
		}
		if ref.Tag != "" {
			parts = append(parts, digestName(ref, desc.Digest))
		}
		k.unname(parts)
		k.mu.Lock()
		delete(k.expected, desc.Digest)
		for _, b := range slices.Concat(info.Blobs, info.Manifests) {
			delete(k.expected, b.Digest)
		}
		k.mu.Unlock()
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
	case errors.Is(err, oci.ErrNotFound) && precious(desc.Source):
		return err // it is to be here by now
	case errors.Is(err, oci.ErrNotFound):
		remember(k.pending, nameOf(ref), desc.Digest)
		return nil
	case err != nil:
		return err
	case k.index[nameOf(ref)].Source == SourcePush && !precious(desc.Source):
		return nil // a registry's answer, on its way since before the push
	}
	if e := k.index[digestName(ref, desc.Digest)]; e.Digest != "" && !precious(e.Source) {
		delete(k.index, digestName(ref, desc.Digest)) // the tag holds it
	}
	return k.name(nameOf(ref), entry{have.MediaType, have.Digest, have.Size, desc.Source})
}

// digestName is the name of a manifest that was asked for by digest alone.
func digestName(in oci.Reference, dgst oci.Digest) string { return in.Name() + "@" + dgst.String() }

// maxNames bounds the names in the index, about 5 MB of memory: a registry may name one manifest without end.
const maxNames = 20_000

// name enters a name into the index, and forgets any other where it is full, but none of what nobody else may have. The caller holds mu.
func (k *Cache) name(name string, e entry) error {
	if _, known := k.index[name]; !known && len(k.index) >= maxNames && !k.unnameAny() {
		return fmt.Errorf("cache: %d images that were pushed or came from archives are all that it can name: remove some with pier prune", maxNames)
	}
	k.index[name] = e
	k.changed()
	return nil
}

func (k *Cache) unnameAny() bool {
	for victim, e := range k.index {
		if !precious(e.Source) {
			delete(k.index, victim)
			return true
		}
	}
	return false
}

// arrived gives a manifest that was just kept its names, and notes what it says of others.
func (k *Cache) arrived(ref oci.Reference, desc oci.Descriptor, info oci.ManifestInfo) error {
	child := ref.Tag == "" && ref.Registry != "" && k.isChild(ref, desc.Digest)
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, child := range info.Manifests {
		if d, err := oci.ParseDigest(child.Digest.String()); err == nil {
			remember(k.children, d, struct{}{})
		}
	}
	e := entry{info.MediaType, desc.Digest, desc.Size, desc.Source}
	for name, dgst := range k.pending {
		if dgst != desc.Digest || k.index[name].Source == SourcePush {
			continue
		}
		if err := k.name(name, e); err != nil {
			return err
		}
		delete(k.pending, name)
		child = child || strings.HasPrefix(name, ref.Name()+":") // the tag holds it
	}
	_, named := k.index[nameOf(ref)] // what a tag names now, Tag was told: this may have been long on its way
	if ref.Registry != "" && !named && (ref.Tag != "" || !child) {
		if err := k.name(nameOf(ref), e); err != nil {
			return err
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

// isChild reports whether an index that is kept names a manifest: a recent one, or one of the same repository.
func (k *Cache) isChild(in oci.Reference, dgst oci.Digest) bool {
	k.mu.Lock()
	_, child := k.children[dgst]
	var indexes []oci.Digest
	for name, e := range k.index {
		if oci.IsIndex(e.MediaType) && !child && strings.HasPrefix(name, in.Name()) {
			indexes = append(indexes, e.Digest)
		}
	}
	k.mu.Unlock()
	for _, d := range indexes {
		info, _, err := k.files.Manifest(k.c.Dir, d)
		if err == nil && slices.ContainsFunc(info.Manifests, func(m v1.Descriptor) bool { return m.Digest == dgst }) {
			return true
		}
	}
	return child
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
		if !d.IsDir() {
			continue // none of ours
		}
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
