// Package ocitest holds what tests of Sources share: a Store in memory and the conformance suite that every Source runs.
package ocitest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/oci"
)

// Memory is a Store in memory, and a Lister. The zero value is empty and ready.
type Memory struct {
	Name string // what Descriptor.Source says; "memory" if empty

	mu      sync.Mutex // guards all below
	content map[oci.Digest]item
	tags    map[string]map[string]oci.Digest // name, then tag
}

type item struct {
	mediaType string
	bytes     []byte
}

var (
	_ oci.Store  = (*Memory)(nil)
	_ oci.Lister = (*Memory)(nil)
	_ oci.Tagger = (*Memory)(nil)
)

// Add stores b without further ado and returns its descriptor.
func (m *Memory) Add(mediaType string, b []byte) oci.Descriptor {
	dgst := Digest(b)
	m.AddAs(dgst, mediaType, b)
	return m.descriptor(dgst, item{mediaType, b})
}

// AddAs stores b under dgst, right or wrong: the source of wrong bytes in tests.
func (m *Memory) AddAs(dgst oci.Digest, mediaType string, b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.content == nil {
		m.content = make(map[oci.Digest]item)
	}
	m.content[dgst] = item{mediaType, b}
}

// Tag implements [oci.Tagger].
func (m *Memory) Tag(_ context.Context, ref oci.Reference, desc oci.Descriptor) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tags == nil {
		m.tags = make(map[string]map[string]oci.Digest)
	}
	if m.tags[ref.Name()] == nil {
		m.tags[ref.Name()] = make(map[string]oci.Digest)
	}
	m.tags[ref.Name()][ref.Tag] = desc.Digest
	return nil
}

func (m *Memory) descriptor(dgst oci.Digest, it item) oci.Descriptor {
	name := m.Name
	if name == "" {
		name = "memory"
	}
	return oci.Descriptor{MediaType: it.mediaType, Digest: dgst, Size: int64(len(it.bytes)), Source: name}
}

func (m *Memory) get(dgst oci.Digest) (item, oci.Descriptor, error) {
	it, ok := m.content[dgst]
	if !ok {
		return item{}, oci.Descriptor{}, fmt.Errorf("memory: %s: %w", dgst, oci.ErrNotFound)
	}
	return it, m.descriptor(dgst, it), nil
}

// Resolve implements [oci.Source].
func (m *Memory) Resolve(_ context.Context, ref oci.Reference) (oci.Descriptor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	dgst := ref.Digest
	if dgst == "" {
		var ok bool
		if dgst, ok = m.tags[ref.Name()][ref.Tag]; !ok {
			return oci.Descriptor{}, fmt.Errorf("memory: %s: %w", ref, oci.ErrNotFound)
		}
	}
	_, desc, err := m.get(dgst)
	return desc, err
}

// Open implements [oci.Source].
func (m *Memory) Open(_ context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	it, desc, err := m.get(ref.Digest)
	if err != nil {
		return nil, oci.Descriptor{}, err
	}
	if offset < 0 || offset > desc.Size {
		return nil, oci.Descriptor{}, fmt.Errorf("memory: offset %d of %d: %w", offset, desc.Size, oci.ErrRange)
	}
	b := it.bytes[offset:]
	if length >= 0 && length < int64(len(b)) {
		b = b[:length]
	}
	return io.NopCloser(bytes.NewReader(b)), desc, nil
}

// Put implements [oci.Store].
func (m *Memory) Put(_ context.Context, desc oci.Descriptor, r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if desc.Digest.Algorithm().FromBytes(b) != desc.Digest {
		return fmt.Errorf("memory: %s: %w", desc.Digest, oci.ErrDigestMismatch)
	}
	m.AddAs(desc.Digest, desc.MediaType, b)
	return nil
}

// Delete implements [oci.Store].
func (m *Memory) Delete(_ context.Context, dgst oci.Digest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.content, dgst)
	return nil
}

// Tags implements [oci.Lister].
func (m *Memory) Tags(_ context.Context, registry, repository string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	tags, ok := m.tags[registry+"/"+repository]
	if !ok {
		return nil, fmt.Errorf("memory: %s/%s: %w", registry, repository, oci.ErrNotFound)
	}
	var list []string
	for t := range tags {
		list = append(list, t)
	}
	slices.Sort(list)
	return list, nil
}

// Referrers implements [oci.Lister].
func (m *Memory) Referrers(_ context.Context, ref oci.Reference) ([]v1.Descriptor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []v1.Descriptor
	for dgst, it := range m.content {
		info, err := oci.ParseManifest(it.bytes)
		if err != nil || info.Subject == nil || info.Subject.Digest != ref.Digest {
			continue
		}
		list = append(list, v1.Descriptor{
			MediaType: it.mediaType, Digest: dgst, Size: int64(len(it.bytes)),
			ArtifactType: info.ArtifactType, Annotations: info.Annotations,
		})
	}
	slices.SortFunc(list, func(a, b v1.Descriptor) int { return bytes.Compare([]byte(a.Digest), []byte(b.Digest)) })
	return list, nil
}

// Image adds an image of one layer per element of layers under ref's name and tag, and returns the manifest's descriptor.
func (m *Memory) Image(ref oci.Reference, layers ...[]byte) oci.Descriptor {
	config := m.Add(v1.MediaTypeImageConfig, []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`))
	manifest := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: v1.Descriptor{MediaType: config.MediaType, Digest: config.Digest, Size: config.Size}}
	manifest.SchemaVersion = 2
	for _, layer := range layers {
		d := m.Add(v1.MediaTypeImageLayer, layer)
		manifest.Layers = append(manifest.Layers, v1.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size})
	}
	return m.Manifest(ref, v1.MediaTypeImageManifest, manifest)
}

// Manifest adds v as JSON of the given media type, tags it if ref has a tag, and returns its descriptor.
func (m *Memory) Manifest(ref oci.Reference, mediaType string, v any) oci.Descriptor {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // the caller's value is no JSON: a bug of the test
	}
	desc := m.Add(mediaType, b)
	if ref.Tag != "" {
		_ = m.Tag(context.Background(), ref, desc)
	}
	return desc
}
