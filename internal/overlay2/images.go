package overlay2

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/oci"
)

// An Image is one image that Docker holds.
type Image struct {
	ID       oci.Digest      // digest of its configuration
	Names    []oci.Reference // with a tag, or with the digest of the manifest or index it was pulled or pushed as; sorted
	DiffIDs  []oci.Digest    // of its layers, from the lowest
	Platform v1.Platform     // operating system, architecture, variant
}

// ChainIDs returns the chain IDs of the image's layers, from the lowest: what [Layer] has as ChainID.
func (i Image) ChainIDs() []oci.Digest {
	chain := make([]oci.Digest, len(i.DiffIDs))
	var parent oci.Digest
	for n, d := range i.DiffIDs {
		parent = chainID(parent, d)
		chain[n] = parent
	}
	return chain
}

// Bounds of what is read at once.
const (
	maxNames  = 64 << 20        // bytes of repositories.json: 300,000 names
	maxConfig = oci.MaxManifest // bytes of a configuration: registries and clients take no more either
	maxHints  = 1 << 20         // bytes; Docker keeps 50 digests for a layer
)

// Images returns all images. One whose configuration cannot be read costs that one only: the error, which joins those of
// all, comes with the others.
func (s *Store) Images() ([]Image, error) {
	names, err := s.readNames()
	if err != nil {
		return nil, err
	}
	files, err := os.ReadDir(s.configs())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("docker: %w", advise(err))
	}
	var images []Image
	var errs []error
	for _, file := range files {
		id, err := oci.ParseDigest("sha256:" + file.Name())
		if err != nil {
			continue // being written
		}
		image, err := s.image(id)
		switch {
		case err == nil:
			image.Names = names[id]
			images = append(images, image)
		case errors.Is(err, oci.ErrNotFound):
			// Removed while it was read.
		default:
			errs = append(errs, err)
		}
	}
	return images, errors.Join(errs...)
}

func (s *Store) image(id oci.Digest) (Image, error) {
	b, err := s.Config(id)
	if err != nil {
		return Image{}, err
	}
	var config struct {
		v1.Platform
		RootFS struct {
			DiffIDs []oci.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(b, &config); err != nil {
		return Image{}, fmt.Errorf("docker: image %s: %w", id, err)
	}
	if n := len(config.RootFS.DiffIDs); n > maxLayers {
		return Image{}, fmt.Errorf("docker: image %s: %d layers: %w", id, n, oci.ErrTooLarge)
	}
	for _, d := range config.RootFS.DiffIDs {
		if _, err := oci.ParseDigest(d.String()); err != nil {
			return Image{}, fmt.Errorf("docker: image %s: %w", id, err)
		}
	}
	return Image{ID: id, DiffIDs: config.RootFS.DiffIDs, Platform: config.Platform}, nil
}

// Config returns the configuration of an image, proven: the bytes that id is the digest of. It returns an error wrapping
// [oci.ErrNotFound] if there is none, or [oci.ErrDigestMismatch].
func (s *Store) Config(id oci.Digest) ([]byte, error) {
	d, err := oci.ParseDigest(id.String()) // it becomes a path
	if err != nil {
		return nil, fmt.Errorf("docker: %w", err)
	}
	b, err := readSmall(filepath.Join(s.configs(), d.Encoded()), maxConfig)
	if errors.Is(err, fs.ErrNotExist) || err == nil && d.Algorithm() != "sha256" {
		return nil, fmt.Errorf("docker: image %s: %w", id, oci.ErrNotFound)
	}
	if err == nil && d.Algorithm().FromBytes(b) != d {
		err = oci.ErrDigestMismatch
	}
	if err != nil {
		return nil, fmt.Errorf("docker: image %s: %w", id, advise(err))
	}
	return b, nil
}

// readNames returns the names of every image. Docker writes them as people do: "alpine:3.20", "registry.test/app@sha256:…".
func (s *Store) readNames() (map[oci.Digest][]oci.Reference, error) {
	b, err := readSmall(s.names(), maxNames)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("docker: %w", advise(err))
	}
	var file struct {
		Repositories map[string]map[string]oci.Digest
	}
	if err := json.Unmarshal(b, &file); err != nil {
		return nil, fmt.Errorf("docker: %s: %w", s.names(), err)
	}
	names := make(map[oci.Digest][]oci.Reference)
	for _, repository := range file.Repositories {
		for name, id := range repository {
			// Names of old that are none by today's rules can be asked for by nobody.
			if ref, err := oci.ParseReference(name, oci.DockerHub); err == nil {
				names[id] = append(names[id], ref)
			}
		}
	}
	for _, refs := range names {
		sort.Slice(refs, func(i, j int) bool { return refs[i].String() < refs[j].String() })
	}
	return names, nil
}

// A Hint is a digest that Docker saw a layer under, compressed in some way, and where.
type Hint struct {
	Digest     oci.Digest
	Repository string // with its registry, for example "docker.io/library/alpine"
}

// Hints returns all that Docker remembers for a diff ID, oldest first; none is no error. They are only hints: Docker lists
// whatever was pulled or pushed in any repository, at most 50, and proves none again.
func (s *Store) Hints(diffID oci.Digest) ([]Hint, error) {
	d, err := oci.ParseDigest(diffID.String()) // it becomes a path
	if err != nil {
		return nil, fmt.Errorf("docker: %w", err)
	}
	name := filepath.Join(s.images, "distribution", "v2metadata-by-diffid", d.Algorithm().String(), d.Encoded())
	b, err := readSmall(name, maxHints)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("docker: %w", advise(err))
	}
	var list []struct {
		Digest           oci.Digest
		SourceRepository string
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("docker: %s: %w", name, err)
	}
	var hints []Hint
	for _, h := range list {
		hint := Hint{h.Digest, h.SourceRepository}
		// What was pushed and pulled is listed twice, for a third field differs.
		if _, err := oci.ParseDigest(h.Digest.String()); err == nil && !slices.Contains(hints, hint) {
			hints = append(hints, hint)
		}
	}
	return hints, nil
}
