package chain

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"pier/internal/oci"
)

// Blobs opens content in directories that keep it as blobs/<algorithm>/<value>: an OCI image layout, containerd's content
// store. A file there is whole. Manifests are asked for often: what they are is remembered, and small ones in full.
type Blobs struct {
	Source string // what Descriptor.Source says

	mu    sync.Mutex // guards all below
	known map[oci.Digest]known
	bytes int // in the contents of known
}

// known is what is remembered of a manifest.
type known struct {
	mediaType string
	content   []byte // matches its digest; nil where it is too large to be remembered
	file      stamp  // of the file it was read from: of another nothing is known
}

const (
	maxKnown     = 4096     // manifests of which the media type is remembered: about 1 MB
	maxContent   = 64 << 10 // bytes of a manifest that is remembered in full
	maxRemaining = 1 << 20  // bytes of all of them
)

// BlobPath returns the file for a valid digest under root.
func BlobPath(root string, d oci.Digest) string {
	return filepath.Join(root, "blobs", d.Algorithm().String(), d.Encoded())
}

// Stat describes what ref.Digest names under root, and tells when its file was modified. A file that is not there, or no
// manifest where ref asks for one, is [oci.ErrNotFound]; one that is there and cannot be read is a fault.
func (b *Blobs) Stat(root string, ref oci.Reference) (oci.Descriptor, time.Time, error) {
	desc, modified, _, err := b.stat(root, ref)
	return desc, modified, err
}

// Open opens a part of what [Blobs.Stat] describes.
func (b *Blobs) Open(root string, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, time.Time, error) {
	if ref.Kind == oci.Manifest {
		desc, modified, k, err := b.stat(root, ref)
		if err != nil || k.content == nil {
			return b.openFile(root, ref, desc.MediaType, err, offset, length)
		}
		rc, err := memory(k.content, offset, length)
		return rc, desc, modified, err
	}
	return b.openFile(root, ref, octetStream, nil, offset, length)
}

const octetStream = "application/octet-stream"

func (b *Blobs) openFile(root string, ref oci.Reference, mediaType string, err error, offset, length int64) (io.ReadCloser, oci.Descriptor, time.Time, error) {
	var none oci.Descriptor
	if err != nil {
		return nil, none, time.Time{}, err
	}
	f, err := b.file(root, ref.Digest)
	if err != nil {
		return nil, none, time.Time{}, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, none, time.Time{}, fmt.Errorf("%s: %w", b.Source, err)
	}
	desc, err := b.describe(ref.Digest, info)
	if err != nil {
		f.Close()
		return nil, none, time.Time{}, err
	}
	desc.MediaType = mediaType
	rc, err := File(f, desc.Size, offset, length)
	return rc, desc, info.ModTime(), err
}

func (b *Blobs) stat(root string, ref oci.Reference) (oci.Descriptor, time.Time, known, error) {
	dgst, err := oci.ParseDigest(ref.Digest.String()) // it becomes part of a path
	if err != nil {
		return oci.Descriptor{}, time.Time{}, known{}, err
	}
	info, err := os.Stat(BlobPath(root, dgst))
	if err != nil {
		return oci.Descriptor{}, time.Time{}, known{}, b.missing(dgst, err)
	}
	desc, err := b.describe(dgst, info)
	if err != nil || ref.Kind != oci.Manifest {
		return desc, info.ModTime(), known{}, err
	}
	k, err := b.manifest(root, desc, stampOf(info))
	desc.MediaType = k.mediaType
	return desc, info.ModTime(), k, err
}

// missing tells a miss from a fault.
func (b *Blobs) missing(dgst oci.Digest, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %s: %w", b.Source, dgst, oci.ErrNotFound)
	}
	return fmt.Errorf("%s: %w", b.Source, err)
}

func (b *Blobs) describe(dgst oci.Digest, info fs.FileInfo) (oci.Descriptor, error) {
	if !info.Mode().IsRegular() {
		return oci.Descriptor{}, fmt.Errorf("%s: %s is no regular file", b.Source, dgst)
	}
	return oci.Descriptor{MediaType: octetStream, Digest: dgst, Size: info.Size(), Source: b.Source}, nil
}

// file opens a blob. It does without os.Open, which tries to have the file polled; for regular files that is in vain, and a
// fifth of the cost of serving a manifest.
func (b *Blobs) file(root string, digest oci.Digest) (*os.File, error) {
	dgst, err := oci.ParseDigest(digest.String())
	if err != nil {
		return nil, err
	}
	path := BlobPath(root, dgst)
	var st unix.Stat_t // a pipe would hang
	if err := unix.Stat(path, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("%s: %s is no regular file", b.Source, dgst)
	}
	for {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), path), nil
		case !errors.Is(err, unix.EINTR):
			return nil, b.missing(dgst, &fs.PathError{Op: "open", Path: path, Err: err})
		}
	}
}

// manifest returns what is known of a manifest, from its file, which has stamp s, if need be.
func (b *Blobs) manifest(root string, desc oci.Descriptor, s stamp) (known, error) {
	b.mu.Lock()
	k, ok := b.known[desc.Digest]
	b.mu.Unlock()
	if ok && k.file == s {
		return k, nil
	}
	f, err := b.file(root, desc.Digest)
	if err != nil {
		return known{}, err
	}
	defer f.Close()
	content, info, err := readManifest(f, desc)
	if err != nil {
		return known{}, fmt.Errorf("%s: %w", b.Source, err)
	}
	k = known{mediaType: info.MediaType, file: s}
	if desc.Digest.Algorithm().FromBytes(content) != desc.Digest {
		return k, nil // damaged: whoever reads it finds out, and nothing of it is remembered
	}
	if len(content) <= maxContent {
		k.content = content
	}
	b.remember(desc.Digest, k)
	return k, nil
}

// remember makes room for k by forgetting any others: they cost one more read when they are asked for again.
func (b *Blobs) remember(dgst oci.Digest, k known) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.known == nil {
		b.known = make(map[oci.Digest]known)
	}
	b.bytes += len(k.content) - len(b.known[dgst].content)
	b.known[dgst] = k
	for victim, v := range b.known {
		if len(b.known) <= maxKnown && b.bytes <= maxRemaining {
			break
		}
		if victim != dgst {
			delete(b.known, victim)
			b.bytes -= len(v.content)
		}
	}
}

// algorithms are those of the digests that Pier speaks, by the names of their directories.
func algorithms() []string { return []string{"sha256", "sha512"} }

// Each calls do for every file of content under root. Whatever else lies there is passed over. An error comes after what could be
// read all the same; that there is no directory is none.
func (b *Blobs) Each(root string, do func(oci.Digest, fs.DirEntry)) error {
	var errs []error
	for _, alg := range algorithms() {
		err := ReadDir(filepath.Join(root, "blobs", alg), func(e fs.DirEntry) {
			if d, err := oci.ParseDigest(alg + ":" + e.Name()); err == nil && e.Type().IsRegular() {
				do(d, e)
			}
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("%s: %w", b.Source, err))
		}
	}
	return errors.Join(errs...)
}

// ReadDir calls do for the entries of a directory, as they come: there may be very many.
func ReadDir(path string, do func(fs.DirEntry)) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	for {
		entries, err := dir.ReadDir(1024)
		for _, e := range entries {
			do(e)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// List returns the digests of the content under root, as [Blobs.Each] finds it.
func (b *Blobs) List(root string) ([]oci.Digest, error) {
	var list []oci.Digest
	err := b.Each(root, func(d oci.Digest, _ fs.DirEntry) { list = append(list, d) })
	return list, err
}

// Changed returns when a file under root last came or went: what [Blobs.List] returns changed then.
func (b *Blobs) Changed(root string) (latest time.Time) {
	for _, alg := range algorithms() {
		if info, err := os.Stat(filepath.Join(root, "blobs", alg)); err == nil {
			latest = later(latest, info.ModTime())
		}
	}
	return latest
}

// Manifest parses a manifest under root.
func (b *Blobs) Manifest(root string, dgst oci.Digest) (oci.ManifestInfo, oci.Descriptor, error) {
	desc, _, k, err := b.stat(root, oci.Reference{Kind: oci.Manifest, Digest: dgst})
	if err != nil {
		return oci.ManifestInfo{}, desc, err
	}
	if k.content != nil {
		info, err := oci.ParseManifest(k.content)
		return info, desc, err
	}
	f, err := b.file(root, dgst)
	if err != nil {
		return oci.ManifestInfo{}, desc, err
	}
	defer f.Close()
	info, err := ReadManifest(f, desc)
	return info, desc, err
}

// ReadManifest parses the manifest in f, wherever f's offset is. Content that is none is [oci.ErrNotFound]: nobody can have
// asked for it as one.
func ReadManifest(f *os.File, desc oci.Descriptor) (oci.ManifestInfo, error) {
	_, info, err := readManifest(f, desc)
	return info, err
}

func readManifest(f *os.File, desc oci.Descriptor) ([]byte, oci.ManifestInfo, error) {
	if desc.Size > oci.MaxManifest {
		return nil, oci.ManifestInfo{}, fmt.Errorf("%s: %d bytes are no manifest: %w", desc.Digest, desc.Size, oci.ErrNotFound)
	}
	b := make([]byte, desc.Size)
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, desc.Size), b); err != nil {
		return nil, oci.ManifestInfo{}, fmt.Errorf("%s: %w", desc.Digest, err)
	}
	info, err := oci.ParseManifest(b)
	if err != nil {
		return nil, oci.ManifestInfo{}, fmt.Errorf("%s: %w: %s", desc.Digest, oci.ErrNotFound, err.Error()) // one class only
	}
	return b, info, nil
}

// memory returns a reader of part of b.
func memory(b []byte, offset, length int64) (io.ReadCloser, error) {
	if offset < 0 || offset > int64(len(b)) {
		return nil, fmt.Errorf("offset %d of %d bytes: %w", offset, len(b), oci.ErrRange)
	}
	b = b[offset:]
	if length >= 0 && length < int64(len(b)) {
		b = b[:length]
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}
