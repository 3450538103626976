package snapshot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"sort"
	"strings"
	"sync"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/chain"
	"pier/internal/oci"
)

// A Library is the images in a store as an [oci.Source] and an [oci.Lister]: all snapshots that are OCI image layouts, or one of them. An image
// has the name that its layout gives it in whole, as layouts have that came from a registry; or that of its snapshot, or of the directory that
// was pushed, with the tag of the layout. What it gives is unproven.
type Library struct {
	Store *Store
	Only  Digest // the one snapshot; empty: all

	mu     sync.Mutex // guards all below
	looked time.Time  // when the store was last asked
	seen   map[Digest]bool
	blobs  map[oci.Digest]object
	names  map[string]v1.Descriptor // by what nameOf returns
}

var (
	_ oci.Source = (*Library)(nil)
	_ oci.Lister = (*Library)(nil)
)

// fresh is how long the store is not asked again for what snapshots there are.
const fresh = 10 * time.Second

const defaultRegistry = "docker.io"

// Refresh asks the store what snapshots there are, unless it was asked just before.
func (l *Library) Refresh(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.looked.IsZero() {
		l.seen, l.blobs, l.names = make(map[Digest]bool), make(map[oci.Digest]object), make(map[string]v1.Descriptor)
	} else if time.Since(l.looked) < fresh {
		return nil
	}
	items := []Item{{ID: l.Only}}
	if l.Only == "" {
		var err error
		if items, err = l.Store.Snapshots(ctx); err != nil {
			return err
		}
		sort.Slice(items, func(i, j int) bool { return items[i].Modified.Before(items[j].Modified) }) // a later one may take a name
	}
	var titles map[Digest]string
	for _, item := range items {
		if l.seen[item.ID] {
			continue
		}
		if titles == nil {
			var err error
			if titles, err = l.Store.titles(ctx); err != nil {
				return err
			}
		}
		if err := l.add(ctx, item.ID, titles[item.ID]); err != nil {
			return err
		}
	}
	l.looked = time.Now()
	return nil
}

// titles returns what snapshots are called: the name, or the last part of the path.
func (s *Store) titles(ctx context.Context) (map[Digest]string, error) {
	revisions, err := s.Revisions(ctx, "", "")
	titles := make(map[Digest]string)
	for _, r := range revisions {
		if titles[r.ID] = r.Name; r.Name == "" {
			titles[r.ID] = strings.ToLower(path.Base(r.From))
		}
	}
	return titles, err
}

// add adds the images of a snapshot. One that is no layout has none.
func (l *Library) add(ctx context.Context, id Digest, title string) error {
	m, err := l.Store.Manifest(ctx, id)
	if err != nil {
		return err
	}
	var index object
	for _, e := range m {
		algorithm, digits, ok := strings.Cut(strings.TrimPrefix(e.Path, "./"+v1.ImageBlobsDir+"/"), "/")
		if d, err := oci.ParseDigest(algorithm + ":" + digits); ok && err == nil {
			l.blobs[d] = object{e.Digest, e.Size}
		}
		if e.Path == "./"+v1.ImageIndexFile {
			index = object{e.Digest, e.Size}
		}
	}
	l.seen[id] = true
	if index.digest == "" || index.size > oci.MaxManifest {
		return nil
	}
	text, err := l.text(ctx, index)
	if err != nil {
		return err
	}
	var list v1.Index
	if json.Unmarshal(text, &list) != nil {
		list.Manifests = nil // it is some other file of that name
	}
	for _, d := range list.Manifests {
		if _, err := oci.ParseDigest(d.Digest.String()); err != nil {
			continue
		}
		if tag := d.Annotations[v1.AnnotationRefName]; strings.HasPrefix(tag, "sha256-") || strings.HasPrefix(tag, "sha512-") {
			l.names[tag] = d // what refers to an image
		} else if ref, ok := imageName(d, title); ok {
			l.names[nameOf(ref)] = d
		}
	}
	return nil
}

// imageName returns the name of an image of a layout.
func imageName(d v1.Descriptor, title string) (oci.Reference, bool) {
	tag := d.Annotations[v1.AnnotationRefName]
	for _, whole := range []string{d.Annotations[annotationName], tag} {
		if strings.Contains(whole, "/") {
			if ref, err := oci.ParseReference(whole, defaultRegistry); err == nil {
				return ref, true
			}
		}
	}
	if title == "" {
		return oci.Reference{}, false
	}
	if tag == "" {
		tag = "latest"
	}
	if whole, err := oci.ParseReference(title, defaultRegistry); err == nil && strings.Contains(path.Base(title), ":") {
		return whole, true // the title has a tag
	}
	ref, err := oci.ParseReference(title+":"+tag, defaultRegistry)
	return ref, err == nil
}

func nameOf(ref oci.Reference) string { return ref.Name() + ":" + ref.Tag }

// text returns a small object, proven.
func (l *Library) text(ctx context.Context, o object) ([]byte, error) {
	r, err := l.Store.read(ctx, o, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var b bytes.Buffer
	err = copyProven(&b, o.prove(r))
	return b.Bytes(), err
}

// Names returns the images that have a name, sorted.
func (l *Library) Names(ctx context.Context) ([]oci.Reference, error) {
	if err := l.Refresh(ctx); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []oci.Reference
	for name := range l.names {
		if ref, err := oci.ParseReference(name, defaultRegistry); err == nil && strings.Contains(name, "/") {
			names = append(names, ref)
		}
	}
	sort.Slice(names, func(i, j int) bool { return names[i].String() < names[j].String() })
	return names, nil
}

// find returns the object that a digest stands for.
func (l *Library) find(ctx context.Context, dgst oci.Digest) (object, error) {
	for range 2 {
		l.mu.Lock()
		o, ok := l.blobs[dgst]
		l.mu.Unlock()
		if ok {
			return o, nil
		}
		if err := l.Refresh(ctx); err != nil {
			return object{}, err
		}
	}
	return object{}, fmt.Errorf("snapshots: %s: %w", dgst, oci.ErrNotFound)
}

// Resolve implements [oci.Source].
func (l *Library) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	if ref.Digest == "" {
		if err := l.Refresh(ctx); err != nil {
			return oci.Descriptor{}, err
		}
		l.mu.Lock()
		d, ok := l.names[nameOf(ref)]
		if !ok {
			d, ok = l.names[ref.Tag] // of referrers
		}
		l.mu.Unlock()
		if !ok {
			return oci.Descriptor{}, fmt.Errorf("snapshots: %s: %w", ref, oci.ErrNotFound)
		}
		ref.Digest = d.Digest
	}
	o, err := l.find(ctx, ref.Digest)
	if err != nil {
		return oci.Descriptor{}, err
	}
	return l.describe(ctx, ref, o)
}

// describe returns the descriptor of an object. What kind of manifest it is, is found in it.
func (l *Library) describe(ctx context.Context, ref oci.Reference, o object) (oci.Descriptor, error) {
	desc := oci.Descriptor{MediaType: "application/octet-stream", Digest: ref.Digest, Size: o.size, Source: "snapshot"}
	if ref.Kind != oci.Manifest {
		return desc, nil
	}
	if o.size > oci.MaxManifest {
		return desc, fmt.Errorf("snapshots: %s is no manifest: %w", ref.Digest, oci.ErrNotFound)
	}
	text, err := l.text(ctx, o)
	if err != nil {
		return desc, err
	}
	info, err := oci.ParseManifest(text)
	if err != nil {
		return desc, fmt.Errorf("snapshots: %s is no manifest: %w", ref.Digest, oci.ErrNotFound)
	}
	desc.MediaType = info.MediaType
	return desc, nil
}

// Open implements [oci.Source].
func (l *Library) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	o, err := l.find(ctx, ref.Digest)
	if err != nil {
		return nil, oci.Descriptor{}, err
	}
	desc, err := l.describe(ctx, ref, o)
	if err != nil {
		return nil, desc, err
	}
	if offset > o.size {
		return nil, desc, fmt.Errorf("snapshots: %s has %d bytes: %w", ref.Digest, o.size, oci.ErrRange)
	}
	if length < 0 || length >= o.size-offset {
		rc, err := l.Store.read(ctx, o, offset)
		return rc, desc, err
	}
	rc, err := l.Store.Bucket.Open(ctx, o.key(), offset, length)
	return rc, desc, err
}

// Tags implements [oci.Lister].
func (l *Library) Tags(ctx context.Context, registry, repository string) ([]string, error) {
	names, err := l.Names(ctx)
	if err != nil {
		return nil, err
	}
	var tags []string
	for _, ref := range names {
		if ref.Registry == registry && ref.Repository == repository {
			tags = append(tags, ref.Tag)
		}
	}
	if tags == nil {
		return nil, fmt.Errorf("snapshots: %s/%s: %w", registry, repository, oci.ErrNotFound)
	}
	return tags, nil
}

// Referrers implements [oci.Lister]: layouts have them as an index by a tag.
func (l *Library) Referrers(ctx context.Context, ref oci.Reference) ([]v1.Descriptor, error) {
	if _, err := l.find(ctx, ref.Digest); err != nil {
		return nil, err
	}
	l.mu.Lock()
	d, ok := l.names[chain.ReferrersTag(ref.Digest)]
	l.mu.Unlock()
	if !ok {
		return nil, nil
	}
	o, err := l.find(ctx, d.Digest)
	if errors.Is(err, oci.ErrNotFound) || o.size > oci.MaxManifest {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	text, err := l.text(ctx, o)
	if err != nil {
		return nil, err
	}
	var list v1.Index
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("snapshots: list of referrers %s: %w", d.Digest, err)
	}
	return list.Manifests, nil
}
