package overlay2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"

	"pier/internal/oci"
)

// A Layer is one layer that Docker holds.
type Layer struct {
	ChainID oci.Digest // of the layer and all below it: what Docker calls it
	DiffID  oci.Digest // of its tar. Several layers have the same one if they stand on different ones
	Parent  oci.Digest // chain ID of the layer below, or empty
	Size    int64      // of its tar, bytes
	CacheID string     // name of the directory that has its files

	// Unsupported says why the tar cannot be rebuilt, as far as its record tells; else it is empty.
	Unsupported string
}

// maxLayers is how far a chain of layers is followed: Docker's own bound is 125, overlay2's 128.
const maxLayers = 128

// measurement is what was found in the record of a layer. Records never change, but the layer may be pulled again.
type measurement struct {
	record      stamp
	size        int64
	unsupported string
	err         error
}

// Layers returns all layers that are whole. An entry that cannot be read costs that entry only: the error, which joins those
// of all entries, comes with the others. The first time it reads the record of every layer, 5 to 10 µs for each
// file in it: ctx bounds that.
func (s *Store) Layers(ctx context.Context) ([]Layer, error) {
	dirs, err := os.ReadDir(s.layers())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("docker: %w", advise(err))
	}
	var layers []Layer
	var errs []error
	there := make(map[oci.Digest]bool, len(dirs))
	for _, dir := range dirs {
		chain, err := oci.ParseDigest("sha256:" + dir.Name())
		if err != nil {
			continue // on its way out, named ID-RANDOM-removing
		}
		there[chain] = true
		l, err := s.entry(ctx, chain)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err == nil:
			layers = append(layers, l)
		case errors.Is(err, fs.ErrNotExist) && stampOf(s.layer(chain)) == stamp{}:
			// Removed while it was read.
		default:
			errs = append(errs, fmt.Errorf("docker: layer %s: %w", chain, advise(err)))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.measured, func(chain oci.Digest, _ measurement) bool { return !there[chain] })
	return layers, errors.Join(errs...)
}

func (s *Store) layer(chain oci.Digest) string { return filepath.Join(s.layers(), chain.Encoded()) }

func (s *Store) diff(cacheID string) string { return filepath.Join(s.files, cacheID, "diff") }

// entry returns one layer, if all of it is there.
func (s *Store) entry(ctx context.Context, chain oci.Digest) (Layer, error) {
	dir := s.layer(chain)
	l := Layer{ChainID: chain}
	var err error
	if l.DiffID, err = readDigest(filepath.Join(dir, "diff")); err != nil {
		return l, err
	}
	if l.Parent, err = readDigest(filepath.Join(dir, "parent")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return l, err
	}
	if l.CacheID, err = readCacheID(filepath.Join(dir, "cache-id")); err != nil {
		return l, err
	}
	if want := chainID(l.Parent, l.DiffID); want != chain {
		return l, fmt.Errorf("its diff ID and parent make chain ID %s", want)
	}
	info, err := os.Stat(s.diff(l.CacheID))
	if err != nil {
		return l, err
	}
	if !info.IsDir() {
		return l, fmt.Errorf("%s is no directory", s.diff(l.CacheID))
	}
	m, err := s.measure(ctx, chain)
	l.Size, l.Unsupported = m.size, m.unsupported
	return l, err
}

// chainID is ChainID of the OCI image specification (config.md, "Layer ChainID").
func chainID(parent, diff oci.Digest) oci.Digest {
	if parent == "" {
		return diff
	}
	return digest.FromString(parent.String() + " " + diff.String())
}

// measure reads the record of a layer, or remembers what it read.
func (s *Store) measure(ctx context.Context, chain oci.Digest) (measurement, error) {
	name := filepath.Join(s.layer(chain), recordName)
	m := measurement{record: stampOf(name)}
	s.mu.Lock()
	known, ok := s.measured[chain]
	s.mu.Unlock()
	if ok && known.record == m.record {
		return known, known.err
	}
	f, err := os.Open(name)
	if err != nil {
		return m, err
	}
	defer f.Close()
	if m.size, m.unsupported, m.err = measure(ctx, f); ctx.Err() != nil {
		return m, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.measured[chain] = m
	return m, m.err
}

// lowers returns the directories of the layers below the one with that chain ID, from the top: as many as there are.
func (s *Store) lowers(chain oci.Digest) []string {
	var dirs []string
	for range maxLayers {
		parent, err := readDigest(filepath.Join(s.layer(chain), "parent"))
		if err != nil {
			break
		}
		cacheID, err := readCacheID(filepath.Join(s.layer(parent), "cache-id"))
		if err != nil {
			break
		}
		dirs = append(dirs, s.diff(cacheID))
		chain = parent
	}
	return dirs
}

// readDigest returns the digest that a file holds. Docker writes no other than sha256 here.
func readDigest(name string) (oci.Digest, error) {
	b, err := readSmall(name, 256)
	if err != nil {
		return "", err
	}
	d, err := oci.ParseDigest(string(b))
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return d, nil
}

// readCacheID returns the name of a directory that a file holds. Docker makes 64 hexadecimal digits, BuildKit 25 of base 36.
func readCacheID(name string) (string, error) {
	b, err := readSmall(name, 256)
	if err != nil {
		return "", err
	}
	id := string(b)
	if id == "" || strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyz") != "" {
		return "", fmt.Errorf("%s: %.80q is no name of a directory", name, id)
	}
	return id, nil
}

// readSmall returns what a file holds, and an error wrapping [oci.ErrTooLarge] if that is more than limit bytes.
func readSmall(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s: over %d bytes: %w", name, limit, oci.ErrTooLarge)
	}
	return b, nil
}
