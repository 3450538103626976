package chain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/oci"
)

// ImageOptions say what of an image is taken.
type ImageOptions struct {
	Platforms []string // such as linux/arm64/v8, or without the variant; none: all there are
	Referrers bool     // signatures, and what else refers to it, too
	Sparse    bool     // what an index names and src does not have is left out
}

// An Image is all that belongs to one reference, but for the content of blobs.
type Image struct {
	Root      v1.Descriptor
	Source    string                         // what supplied it, see [oci.Descriptor]
	Manifests []Manifest                     // each after those that it names
	Blobs     []v1.Descriptor                // each once, by digest
	Tags      map[string]v1.Descriptor       // manifests that refer to others by a tag made of a digest, as cosign names signatures
	Referrers map[oci.Digest][]v1.Descriptor // of manifests of the image, by digest; they are among Manifests
}

// A Manifest is one and its text.
type Manifest struct {
	v1.Descriptor
	Text []byte
}

// What is said of an image is bounded: it comes from strangers.
const (
	maxDepth = 8        // of indexes in indexes, and of referrers of referrers
	maxTexts = 32 << 20 // bytes of all manifests of an image
)

// ReadImage finds out what belongs to an image. What src gives must be proven, see [Verified].
func ReadImage(ctx context.Context, src oci.Source, ref oci.Reference, opt ImageOptions) (*Image, error) {
	r := reading{src: src, ref: ref, opt: opt, seen: make(map[oci.Digest]bool), blobs: make(map[oci.Digest]v1.Descriptor)}
	r.Tags, r.Referrers = make(map[string]v1.Descriptor), make(map[oci.Digest][]v1.Descriptor)
	root, err := src.Resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	r.Source = root.Source
	r.Root = v1.Descriptor{MediaType: root.MediaType, Digest: root.Digest, Size: root.Size}
	chosen, err := r.manifest(ctx, r.Root, 0)
	if err != nil {
		return nil, err
	}
	if len(opt.Platforms) > 0 && chosen == 0 {
		return nil, fmt.Errorf("%s: none of its manifests is for %s", ref, strings.Join(opt.Platforms, ", "))
	}
	for _, b := range r.blobs {
		r.Blobs = append(r.Blobs, b)
	}
	sort.Slice(r.Blobs, func(i, j int) bool { return r.Blobs[i].Digest < r.Blobs[j].Digest })
	return &r.Image, nil
}

// reading is a ReadImage under way.
type reading struct {
	Image
	src   oci.Source
	ref   oci.Reference
	opt   ImageOptions
	seen  map[oci.Digest]bool
	blobs map[oci.Digest]v1.Descriptor
	size  int // bytes of manifests
}

// manifest takes a manifest, and all that belongs to it. It returns how many images of the platforms there were.
func (r *reading) manifest(ctx context.Context, desc v1.Descriptor, depth int) (chosen int, err error) {
	if _, err := oci.ParseDigest(desc.Digest.String()); err != nil {
		return 0, fmt.Errorf("%s: %w", r.ref, err)
	}
	if r.seen[desc.Digest] {
		return 0, nil
	}
	r.seen[desc.Digest] = true
	if depth > maxDepth {
		return 0, fmt.Errorf("%s: its manifests are nested more than %d deep: %w", r.ref, maxDepth, oci.ErrTooLarge)
	}
	text, err := r.read(ctx, desc.Digest)
	if err != nil {
		return 0, err
	}
	info, err := oci.ParseManifest(text)
	if err != nil {
		return 0, fmt.Errorf("%s: %s: %w", r.ref, desc.Digest, err)
	}
	for _, b := range info.Blobs {
		if _, err := oci.ParseDigest(b.Digest.String()); err != nil || b.Size < 0 {
			return 0, fmt.Errorf("%s: %s: blob %.100q of %d bytes: %w", r.ref, desc.Digest, b.Digest, b.Size, oci.ErrDigestInvalid)
		}
		r.blobs[b.Digest] = b
	}
	for _, m := range info.Manifests {
		if m.Platform != nil && !r.opt.wants(m.Platform) {
			continue
		}
		n, err := r.manifest(ctx, m, depth+1)
		if r.opt.Sparse && errors.Is(err, oci.ErrNotFound) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if chosen += n; m.Platform != nil {
			chosen++
		}
	}
	if len(info.Manifests) == 0 && depth == 0 {
		if err := r.fits(ctx, info); err != nil {
			return 0, err
		}
		chosen++ // there is no choice
	}
	desc = v1.Descriptor{MediaType: info.MediaType, Digest: desc.Digest, Size: int64(len(text))}
	r.Manifests = append(r.Manifests, Manifest{desc, text})
	return chosen, r.referrers(ctx, desc.Digest, depth)
}

// fits returns an error if an image that is no index is for another platform than those asked for. What has no platform, such as a chart, is for any.
func (r *reading) fits(ctx context.Context, info oci.ManifestInfo) error {
	if len(r.opt.Platforms) == 0 || len(info.Blobs) == 0 || info.Blobs[0].Size > oci.MaxManifest {
		return nil
	}
	rc, _, err := r.src.Open(ctx, r.named(oci.Blob, info.Blobs[0].Digest), 0, -1)
	if err != nil {
		return err
	}
	defer rc.Close()
	text, err := io.ReadAll(io.LimitReader(rc, oci.MaxManifest))
	if err != nil {
		return err
	}
	var p v1.Platform
	if json.Unmarshal(text, &p) != nil || p.OS == "" || p.Architecture == "" || r.opt.wants(&p) {
		return nil
	}
	return fmt.Errorf("%s: it is for %s/%s, not for %s", r.ref, p.OS, p.Architecture, strings.Join(r.opt.Platforms, ", "))
}

// wants reports whether a platform was asked for.
func (o ImageOptions) wants(p *v1.Platform) bool {
	name := p.OS + "/" + p.Architecture
	return len(o.Platforms) == 0 || slices.Contains(o.Platforms, name) || slices.Contains(o.Platforms, name+"/"+p.Variant)
}

// referrers takes what refers to a manifest: by the API of registries, or by tags.
func (r *reading) referrers(ctx context.Context, subject oci.Digest, depth int) error {
	if !r.opt.Referrers {
		return nil
	}
	if lister, ok := r.src.(oci.Lister); ok {
		found, err := lister.Referrers(ctx, r.named(oci.Manifest, subject))
		if err != nil && !errors.Is(err, oci.ErrNotFound) && !errors.Is(err, oci.ErrUnsupported) {
			return err
		}
		sort.Slice(found, func(i, j int) bool { return found[i].Digest < found[j].Digest })
		for _, d := range found {
			if _, err := r.manifest(ctx, d, depth+1); err != nil {
				return err
			}
		}
		if len(found) > 0 {
			r.Referrers[subject] = found
		}
	}
	for _, kind := range []string{".sig", ".att", ".sbom"} {
		tag := ReferrersTag(subject) + kind
		d, err := r.src.Resolve(ctx, oci.Reference{Registry: r.ref.Registry, Repository: r.ref.Repository, Kind: oci.Manifest, Tag: tag})
		if errors.Is(err, oci.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		r.Tags[tag] = v1.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
		if _, err := r.manifest(ctx, r.Tags[tag], depth+1); err != nil {
			return err
		}
	}
	return nil
}

// ReferrersTag is the tag of the list of what refers to a manifest, by the distribution specification, "Referrers Tag Schema".
func ReferrersTag(subject oci.Digest) string { return strings.Replace(subject.String(), ":", "-", 1) }

// named returns the reference of content in the repository of the image.
func (r *reading) named(kind oci.Kind, dgst oci.Digest) oci.Reference {
	return oci.Reference{Registry: r.ref.Registry, Repository: r.ref.Repository, Kind: kind, Digest: dgst}
}

// read returns a manifest.
func (r *reading) read(ctx context.Context, dgst oci.Digest) ([]byte, error) {
	rc, _, err := r.src.Open(ctx, r.named(oci.Manifest, dgst), 0, -1)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	text, err := io.ReadAll(io.LimitReader(rc, oci.MaxManifest+1))
	if err != nil {
		return nil, err
	}
	if r.size += len(text); len(text) > oci.MaxManifest || r.size > maxTexts {
		return nil, fmt.Errorf("%s: manifests of more than %d bytes: %w", r.ref, maxTexts, oci.ErrTooLarge)
	}
	return text, nil
}
