package load

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"sort"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/oci"
)

// ErrArchive is the error for a file that is no archive of images, or that says of itself what is not so.
var ErrArchive = errors.New("not an archive of images")

// An Archive is a file that docker save, skopeo, or another tool made of images: an OCI image layout, or Docker's format before that. As an
// [oci.Source] it has content by digest, unproven, and the images by their names.
type Archive struct {
	f     *os.File // not compressed
	size  int64
	files map[string]span
	blobs map[oci.Digest]span
	texts map[oci.Digest][]byte // manifests that are made here
	names map[string]v1.Descriptor
	sums  map[span]digest.Digest // of compressed layers, which several images may have
}

// A span is where a file is in an archive.
type span struct{ offset, size int64 }

const (
	maxFiles = 200_000 // in an archive
	maxHops  = 8       // of links to links in it
	maxName  = 4096    // bytes of a name, as of a path in Linux
)

// Open opens an archive, which may be compressed by gzip: it is then unpacked into a temporary file. unnamed is what an image is called that
// has no name; empty: it cannot be loaded.
func Open(ctx context.Context, name string, unnamed oci.Reference) (*Archive, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	a := &Archive{f: f, files: make(map[string]span), blobs: make(map[oci.Digest]span), texts: make(map[oci.Digest][]byte), names: make(map[string]v1.Descriptor), sums: make(map[span]digest.Digest)}
	if err = a.plain(ctx); err == nil {
		err = a.scan(ctx)
	}
	if err == nil {
		err = a.read(ctx, unnamed)
	}
	if err != nil {
		a.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return a, nil
}

// Close closes the file.
func (a *Archive) Close() error { return a.f.Close() }

// plain has a.f be a file that is not compressed.
func (a *Archive) plain(ctx context.Context) error {
	info, err := a.f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: it is no file: %s", ErrArchive, info.Mode().Type())
	}
	a.size = info.Size()
	var magic [6]byte
	n, err := a.f.ReadAt(magic[:], 0)
	switch head := string(magic[:n]); {
	case err != nil && !errors.Is(err, io.EOF):
		return err
	case strings.HasPrefix(head, "\x28\xb5\x2f\xfd"), strings.HasPrefix(head, "\xfd7zXZ"), strings.HasPrefix(head, "BZh"):
		return fmt.Errorf("%w: it is compressed, and not by gzip: decompress it first", ErrArchive)
	case !strings.HasPrefix(head, "\x1f\x8b"):
		return nil
	}
	packed := a.f
	defer packed.Close()
	r, err := gzip.NewReader(packed)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrArchive, err)
	}
	if a.f, err = os.CreateTemp(oci.TempDir(), "pier-archive-"); err != nil {
		a.f = packed // for Close
		return err
	}
	if err := os.Remove(a.f.Name()); err != nil {
		return err
	}
	if a.size, err = io.Copy(a.f, &stoppable{ctx, r}); err != nil {
		return fmt.Errorf("decompressing it: %w", err)
	}
	return nil
}

type stoppable struct {
	ctx context.Context //nolint:containedctx // of whoever reads
	r   io.Reader
}

func (s *stoppable) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	return s.r.Read(p)
}

// scan finds out where the files are.
func (a *Archive) scan(ctx context.Context) error {
	if _, err := a.f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	links := make(map[string]string)
	entries := tar.NewReader(a.f)
	for n := 0; ; n++ {
		h, err := entries.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrArchive, err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if n == maxFiles {
			return fmt.Errorf("%w: it has more than %d files", ErrArchive, maxFiles)
		}
		if len(h.Name) > maxName || len(h.Linkname) > maxName {
			return fmt.Errorf("%w: a name in it has more than %d bytes", ErrArchive, maxName)
		}
		name, err := inside(h.Name)
		if err != nil {
			return err
		}
		switch h.Typeflag {
		case tar.TypeReg:
			at, err := a.f.Seek(0, io.SeekCurrent)
			if err != nil {
				return err
			}
			if h.Size < 0 || h.Size > a.size-at {
				return fmt.Errorf("%w: it ends within %s", ErrArchive, h.Name)
			}
			if _, twice := a.files[name]; twice {
				return fmt.Errorf("%w: %s is there twice", ErrArchive, h.Name)
			}
			a.files[name] = span{at, h.Size}
		case tar.TypeSymlink, tar.TypeLink: // the same layer of several images
			to := h.Linkname
			if h.Typeflag == tar.TypeSymlink {
				to = path.Join(path.Dir(name), to) //nolint:gosec // it names a file of the archive, and nothing is written
			}
			if links[name], err = inside(to); err != nil {
				return err
			}
		case tar.TypeGNUSparse:
			return fmt.Errorf("%w: %s is a sparse file", ErrArchive, h.Name)
		}
	}
	for name := range links {
		to := name
		for range maxHops {
			if next, ok := links[to]; ok {
				to = next
			}
		}
		if at, ok := a.files[to]; ok {
			a.files[name] = at
		}
	}
	return nil
}

// inside returns the name of a file of the archive, which must not lead out of it.
func inside(name string) (string, error) {
	clean := path.Clean(name)
	if path.IsAbs(clean) || clean == ".." || strings.HasPrefix(clean, "../") {
		return "", fmt.Errorf("%w: %.200q leads out of it", ErrArchive, name)
	}
	return clean, nil
}

// text returns a small file.
func (a *Archive) text(name string) ([]byte, error) {
	name, err := inside(name)
	if err != nil {
		return nil, err
	}
	at, ok := a.files[name]
	if !ok {
		return nil, fmt.Errorf("%w: there is no %s in it", ErrArchive, name)
	}
	return a.content(at, name)
}

func (a *Archive) content(at span, name string) ([]byte, error) {
	if at.size > oci.MaxManifest {
		return nil, fmt.Errorf("%w: %s has more than %d bytes: %w", ErrArchive, name, oci.MaxManifest, oci.ErrTooLarge)
	}
	b := make([]byte, at.size)
	_, err := a.f.ReadAt(b, at.offset)
	return b, err
}

// Names returns the images, sorted.
func (a *Archive) Names() (list []oci.Reference) {
	for name := range a.names {
		if ref, err := oci.ParseReference(name, oci.DockerHub); err == nil {
			list = append(list, ref)
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].String() < list[j].String() })
	return list
}

// Resolve implements [oci.Source].
func (a *Archive) Resolve(_ context.Context, ref oci.Reference) (oci.Descriptor, error) {
	if ref.Digest == "" {
		d, ok := a.names[ref.String()]
		if !ok {
			return oci.Descriptor{}, fmt.Errorf("archive: %s: %w", ref, oci.ErrNotFound)
		}
		ref.Digest = d.Digest
	}
	return a.describe(ref)
}

func (a *Archive) describe(ref oci.Reference) (oci.Descriptor, error) {
	desc := oci.Descriptor{MediaType: "application/octet-stream", Digest: ref.Digest, Source: "archive"}
	text, made := a.texts[ref.Digest]
	at, here := a.blobs[ref.Digest]
	switch {
	case made:
		desc.Size = int64(len(text))
	case here:
		desc.Size = at.size
	default:
		return desc, fmt.Errorf("archive: %s: %w", ref.Digest, oci.ErrNotFound)
	}
	if ref.Kind != oci.Manifest {
		return desc, nil
	}
	if !made {
		var err error
		if text, err = a.content(at, ref.Digest.String()); err != nil {
			return desc, err
		}
	}
	info, err := oci.ParseManifest(text)
	desc.MediaType = info.MediaType
	return desc, err
}

// Open implements [oci.Source].
func (a *Archive) Open(_ context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	desc, err := a.describe(ref)
	if err != nil {
		return nil, desc, err
	}
	if offset > desc.Size {
		return nil, desc, fmt.Errorf("archive: %s has %d bytes: %w", ref.Digest, desc.Size, oci.ErrRange)
	}
	if length < 0 || length > desc.Size-offset {
		length = desc.Size - offset
	}
	if text, made := a.texts[ref.Digest]; made {
		return io.NopCloser(bytes.NewReader(text[offset:][:length])), desc, nil
	}
	return io.NopCloser(io.NewSectionReader(a.f, a.blobs[ref.Digest].offset+offset, length)), desc, nil
}
