package overlay2

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"hash/crc64"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"

	"pier/internal/oci"
)

// HoldBack is how many of a tar's last bytes are kept back until its digest is known, as chain.HoldBack.
const HoldBack = 64 << 10

// Tar returns the uncompressed tar of a layer that [Store.Layers] returned, from offset on. To skip reads no file, only the
// layer's record. The caller closes the reader, which reads one file at a time and fails when ctx ends.
//
// From offset 0 the tar is proven: its last [HoldBack] bytes come out only once the whole is seen to match l.DiffID; an error
// wrapping [oci.ErrDigestMismatch] says that it does not. From any offset, files are checked, as far as they are read from
// their beginning, against the sum that the record has of each (64 bits, no proof against malice), before their last bytes
// come out.
//
// It returns an error wrapping [oci.ErrNotFound] if the layer is gone, [oci.ErrRange] if offset is past its end, and
// [oci.ErrUnsupported] if it cannot be rebuilt. If it goes while it is read, the error of Read wraps [oci.ErrNotFound] before
// the first byte, and [oci.ErrUnavailable] after it: no tar ends before its end with [io.EOF].
func (s *Store) Tar(ctx context.Context, l Layer, offset int64) (io.ReadCloser, error) {
	r, err := s.assemble(ctx, l)
	switch {
	case err != nil:
	case l.Unsupported != "":
		err = fmt.Errorf("%s: %w", l.Unsupported, oci.ErrUnsupported)
	case offset < 0 || offset > l.Size:
		err = fmt.Errorf("offset %d of %d: %w", offset, l.Size, oci.ErrRange)
	case offset > 0:
		err = r.discard(offset)
	default:
		r.proof = sha256.New()
	}
	if err != nil {
		if r != nil {
			r.Close()
		}
		return nil, fault(l, false, err)
	}
	return r, nil
}

// assemble returns a reader at the beginning of a tar.
func (s *Store) assemble(ctx context.Context, l Layer) (*assembly, error) {
	f, err := os.Open(filepath.Join(s.layer(l.ChainID), recordName))
	if err != nil {
		return nil, err
	}
	entries, err := newRecords(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	root, err := os.OpenRoot(s.diff(l.CacheID))
	if err != nil {
		f.Close()
		return nil, err
	}
	return &assembly{
		ctx: ctx, layer: l, record: f, entries: entries, crc: crc64.New(crc64.MakeTable(crc64.ISO)),
		files: files{root: root, lowers: sync.OnceValue(func() []string { return s.lowers(l.ChainID) })},
	}, nil
}

// fault classifies an error about a layer. Torn says that bytes were given out.
func fault(l Layer, torn bool, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		class := oci.ErrNotFound
		if torn {
			class = oci.ErrUnavailable
		}
		err = fmt.Errorf("gone, or a part of it: %w: %w", class, err)
	}
	return fmt.Errorf("docker: layer %s: %w", l.ChainID, advise(err))
}

// An assembly is a tar being put together. It has at most four files open: the record, the layer's directory, one below that,
// and one file in it or a directory of a layer below.
type assembly struct {
	ctx     context.Context // of the one request that reads
	layer   Layer
	record  *os.File
	entries *records
	files   files

	segment []byte      // what is left of the current one
	file    *os.File    // current one, or nil
	left    int64       // bytes of file to be read
	crc     hash.Hash64 // of the bytes of file; the polynomial is tar-split's (storage.CRCTable)
	sum     uint64      // what crc must be at the end of file
	partial bool        // file is not read from its beginning: crc tells nothing

	at    int64     // bytes put together or skipped
	proof hash.Hash // of all bytes; nil where not all are read
	held  []byte    // the last bytes, proven
	given bool      // bytes were
	err   error     // final
}

// Close closes all files.
func (a *assembly) Close() error {
	if a.file != nil {
		a.file.Close()
	}
	a.files.close()
	return a.record.Close()
}

// Read implements io.Reader. It fills p as far as it can: headers are small, and files may be.
func (a *assembly) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if a.err == nil && len(a.held) == 0 {
		n := int64(len(p))
		if a.proof != nil {
			n = min(n, a.layer.Size-HoldBack-a.at)
		}
		if n > 0 {
			return a.give(a.fill(p[:n]))
		}
		a.held, a.err = a.tail()
	}
	if len(a.held) == 0 {
		return 0, a.err
	}
	n := copy(p, a.held)
	a.held = a.held[n:]
	return a.give(n, nil)
}

// give returns what Read does for n bytes put together before err, which may be nil.
func (a *assembly) give(n int, err error) (int, error) {
	if err != nil && err != io.EOF {
		if !a.given {
			n = 0 // so that it is a miss, and no torn tar
		}
		err = fault(a.layer, a.given, err)
	}
	a.err = err
	if n > 0 {
		a.given = true
		return n, nil
	}
	return 0, a.err
}

// tail returns the last bytes, with io.EOF, if they and all before are what they should be.
func (a *assembly) tail() ([]byte, error) {
	held := make([]byte, a.layer.Size-a.at+1)
	n, err := a.fill(held)
	if got := digest.NewDigest(digest.SHA256, a.proof); err == io.EOF && got != a.layer.DiffID {
		err = fmt.Errorf("its tar has digest %s, not %s: %w", got, a.layer.DiffID, oci.ErrDigestMismatch)
	}
	if err != io.EOF {
		return nil, fault(a.layer, a.given, err)
	}
	return held[:n], io.EOF
}

// fill puts together the next len(p) bytes. It returns fewer only with an error: io.EOF at the end, which is nowhere but where
// the layer's size says.
func (a *assembly) fill(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = a.step(p[n:])
		n += m
	}
	if a.proof != nil {
		a.proof.Write(p[:n])
	}
	a.at += int64(n)
	if a.at > a.layer.Size || err == io.EOF && a.at < a.layer.Size {
		err = fmt.Errorf("its tar is not of %d bytes: %w", a.layer.Size, oci.ErrDigestMismatch)
	}
	return n, err
}

// step puts together some bytes, or begins the next entry.
func (a *assembly) step(p []byte) (int, error) {
	if err := a.ctx.Err(); err != nil {
		return 0, err
	}
	switch {
	case len(a.segment) > 0:
		n := copy(p, a.segment)
		a.segment = a.segment[n:]
		return n, nil
	case a.file != nil:
		return a.content(p)
	}
	e, err := a.entries.next()
	if err == nil {
		err = a.begin(e, 0)
	}
	return 0, err
}

// content reads from the file. Its last bytes come out only if the whole has the sum that it had when it was extracted.
func (a *assembly) content(p []byte) (int, error) {
	n, err := a.file.Read(p[:min(int64(len(p)), a.left)])
	if err == io.EOF {
		err = fmt.Errorf("%s: %d bytes are missing at its end: %w", a.file.Name(), a.left, oci.ErrDigestMismatch)
	}
	if err != nil {
		return 0, err
	}
	a.crc.Write(p[:n])
	if a.left -= int64(n); a.left > 0 {
		return n, nil
	}
	name := a.file.Name()
	a.file.Close()
	a.file = nil
	if !a.partial && a.crc.Sum64() != a.sum {
		return 0, fmt.Errorf("%s is not what was extracted: %w", name, oci.ErrDigestMismatch)
	}
	return n, nil
}

// begin makes e, from its byte skip on, what comes next.
func (a *assembly) begin(e entry, skip int64) error {
	if e.size == 0 {
		a.segment = e.segment[skip:]
		return nil
	}
	f, err := a.files.open(e.name, e.size)
	if err != nil {
		return err
	}
	a.file, a.left, a.sum, a.partial = f, e.size-skip, e.crc, skip > 0
	a.crc.Reset()
	if skip > 0 {
		_, err = f.Seek(skip, io.SeekStart)
	}
	return err
}

// discard skips n bytes. It opens no file but the one that it ends in.
func (a *assembly) discard(n int64) error {
	for n > 0 {
		if err := a.ctx.Err(); err != nil {
			return err
		}
		e, err := a.entries.next()
		if err == io.EOF {
			return fmt.Errorf("its tar is not of %d bytes: %w", a.layer.Size, oci.ErrDigestMismatch)
		}
		if err != nil {
			return err
		}
		size := int64(len(e.segment)) + e.size
		if size > n {
			a.at += n
			return a.begin(e, n)
		}
		n -= size
		a.at += size
	}
	return nil
}
