package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"pier/internal/chain"
	"pier/internal/oci"
)

// containerd receives content in ingest/<id>/data under its content directory, next to files that say what it is:
//
//	ref    <namespace>/<number>/<prefix>-[<name>@]<digest>, for content that is pulled
//	total  its size in bytes, in decimal digits; absent where that is not known
//
// The id is the sha256 of ref's text, in hex. A commit renames data to blobs/<algorithm>/<hex>; an abort removes the
// directory; a pull that starts over truncates data. ref and total are complete before data exists.

const (
	// fresh is how lately an ingest must have grown for somebody to follow it.
	fresh = 2 * time.Second

	// commitTimeout is how long all bytes may lie there before the commit: it syncs them to disk first.
	commitTimeout = 30 * time.Second
)

// refPrefixes begin the refs of content on its way from a registry ("MakeRefKey"). Others that end in a digest name
// what content is made from, such as a conversion's, not what it is.
var refPrefixes = []string{"layer", "config", "manifest", "index", "attestation", "unknown"}

// Ingest returns a Source over the blobs that containerd is receiving at this time: its readers follow the file that
// containerd writes. It has no tags and no manifests, whose media type only the last byte tells.
//
// A reader ends in an error wrapping [oci.ErrUnavailable] when the pull it follows is aborted, starts over, or rests for
// five seconds; the caller goes on elsewhere from there. The last byte is held back until containerd, which verifies
// what it commits, committed the content.
//
// The writer of an ingest may be waiting for the very reader that is asked for: a runtime pulls through Pier, and its
// ingest is there before it asks. So content is found only where there are bytes past the offset asked for, and
// all of it is there or some came within two seconds. A writer asks from the end of what it has: it never gets its own file.
func (s *Store) Ingest() oci.Source { return ingest{s} }

type ingest struct{ store *Store }

// Resolve implements [oci.Source].
func (i ingest) Resolve(_ context.Context, ref oci.Reference) (oci.Descriptor, error) {
	a, err := i.find(ref, 0)
	if err != nil {
		return oci.Descriptor{}, err
	}
	return a.descriptor(ref.Digest), nil
}

// Open implements [oci.Source].
func (i ingest) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	a, err := i.find(ref, offset)
	if err != nil {
		return nil, oci.Descriptor{}, err
	}
	f, err := os.Open(a.path)
	if errors.Is(err, fs.ErrNotExist) { // committed or aborted just now
		return nil, oci.Descriptor{}, fmt.Errorf("containerd: ingest of %s: %w", ref.Digest, oci.ErrNotFound)
	}
	if err != nil {
		return nil, oci.Descriptor{}, fmt.Errorf("containerd: %w", err)
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		f.Close()
		return nil, oci.Descriptor{}, fmt.Errorf("containerd: %w", err)
	}
	end := a.total
	if length >= 0 && length < a.total-offset {
		end = offset + length
	}
	return &tail{
		ctx: ctx, file: f, dgst: ref.Digest, blob: chain.BlobPath(i.store.root(), ref.Digest),
		pos: offset, end: end, total: a.total, changed: time.Now(),
	}, a.descriptor(ref.Digest), nil
}

// arriving is an ingest as it was seen last.
type arriving struct {
	path        string // of its data
	size, total int64  // bytes there and bytes to come to, in all
}

func (a arriving) descriptor(dgst oci.Digest) oci.Descriptor {
	return oci.Descriptor{
		MediaType: "application/octet-stream", Digest: dgst, Size: a.total, Missing: a.total - a.size, Source: source,
	}
}

// find returns the ingest of ref's content that is furthest, of those that may be read from offset (see Ingest).
func (i ingest) find(ref oci.Reference, offset int64) (arriving, error) {
	if ref.Kind != oci.Blob {
		return arriving{}, fmt.Errorf("containerd: ingest of %s: not of blobs: %w", ref, oci.ErrNotFound)
	}
	dgst, err := oci.ParseDigest(ref.Digest.String()) // it becomes part of a path
	if err != nil {
		return arriving{}, err
	}
	dir := filepath.Join(i.store.root(), "ingest")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return arriving{}, fmt.Errorf("containerd: %w", err)
	}
	var best arriving
	for _, e := range entries {
		a, ok := look(dir, e.Name(), dgst)
		if !ok || a.size < best.size {
			continue
		}
		best = a
	}
	switch {
	case best.total == 0:
		return arriving{}, fmt.Errorf("containerd: ingest of %s: %w", dgst, oci.ErrNotFound)
	case offset < 0 || offset > best.total:
		return arriving{}, fmt.Errorf("containerd: ingest of %s: offset %d of %d bytes: %w", dgst, offset, best.total, oci.ErrRange)
	case best.size <= offset:
		return arriving{}, fmt.Errorf("containerd: ingest of %s: nothing yet past %d: %w", dgst, offset, oci.ErrNotFound)
	}
	return best, nil
}

// look returns the ingest called id if it is of dgst, its size is known, and it has grown lately. Whatever is missing or
// makes no sense is no ingest: its writer may be beginning, or ending.
func look(dir, id string, dgst oci.Digest) (arriving, bool) {
	a := arriving{path: filepath.Join(dir, id, "data")}
	fi, err := os.Stat(a.path)
	if err != nil || time.Since(fi.ModTime()) > commitTimeout {
		return arriving{}, false
	}
	a.size = fi.Size()
	ref, err := os.ReadFile(filepath.Join(dir, id, "ref"))
	if err != nil || digest.FromBytes(ref).Encoded() != id || refDigest(string(ref)) != dgst {
		return arriving{}, false
	}
	total, err := os.ReadFile(filepath.Join(dir, id, "total"))
	if err != nil {
		return arriving{}, false
	}
	if a.total, err = strconv.ParseInt(string(total), 10, 64); err != nil || a.total <= 0 || a.size > a.total {
		return arriving{}, false
	}
	if a.size < a.total && time.Since(fi.ModTime()) > fresh {
		return arriving{}, false
	}
	return a, true
}

// refDigest returns the digest of the content that a ref names, or "".
func refDigest(ref string) oci.Digest {
	_, ref, _ = strings.Cut(ref, "/") // namespace
	_, ref, _ = strings.Cut(ref, "/") // number
	prefix, key, _ := strings.Cut(ref, "-")
	if i := strings.LastIndexByte(key, '@'); i >= 0 {
		key = key[i+1:]
	}
	dgst, err := oci.ParseDigest(key)
	if err != nil || !slices.Contains(refPrefixes, prefix) {
		return ""
	}
	return dgst
}
