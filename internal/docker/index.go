package docker

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"

	"pier/internal/gzexact"
	"pier/internal/oci"
)

// The index of a layer tells where it can be begun in its middle, for the encoders that allow it: it makes a part of a layer cost
// what the part costs. It is a file beside the recipes:
//
//	content, stream (8 bytes each), crc (4 bytes), then content and stream (8 bytes each) of every point, all big-endian

const (
	indexHead  = 8 + 8 + 4
	indexPoint = 8 + 8
	maxIndex   = 4 << 20 // bytes of a file, for a layer of a terabyte
)

func (s *Store) indexPath(d oci.Digest) string {
	return filepath.Join(s.c.Dir, "index", d.Algorithm().String()+"-"+d.Encoded())
}

// putIndex writes the index of a layer, if it has one. Without it the layer can still be made, from its start.
func (s *Store) putIndex(ctx context.Context, d oci.Digest, index gzexact.Index) {
	if len(index.Points) == 0 {
		return
	}
	if err := s.writeIndex(d, index); err != nil {
		s.log.WarnContext(ctx, "index of a layer not written", "digest", d, "err", err)
	}
}

func (s *Store) writeIndex(d oci.Digest, index gzexact.Index) error {
	b := binary.BigEndian.AppendUint64(nil, uint64(index.Content))
	b = binary.BigEndian.AppendUint64(b, uint64(index.Stream))
	b = binary.BigEndian.AppendUint32(b, index.CRC)
	for _, p := range index.Points {
		b = binary.BigEndian.AppendUint64(b, uint64(p.Content))
		b = binary.BigEndian.AppendUint64(b, uint64(p.Stream))
	}
	path := s.indexPath(d)
	err := os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		err = os.WriteFile(path+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return fmt.Errorf("docker: %w", err)
	}
	return nil
}

// index reads the index of a layer whose size is known. That there is none is no error, and neither is one that makes no sense: the
// layer is then made from its start.
func (s *Store) index(d oci.Digest, size int64) (index gzexact.Index, ok bool) {
	f, err := os.Open(s.indexPath(d))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.log.Debug("index of a layer cannot be read", "digest", d, "err", err)
		}
		return gzexact.Index{}, false
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxIndex+1))
	if err != nil || len(b) < indexHead || len(b) > maxIndex || (len(b)-indexHead)%indexPoint != 0 {
		return gzexact.Index{}, false
	}
	number := func() int64 {
		n := binary.BigEndian.Uint64(b)
		b = b[8:]
		return int64(n)
	}
	index.Content, index.Stream = number(), number()
	index.CRC, b = binary.BigEndian.Uint32(b), b[4:]
	last := gzexact.Point{}
	for len(b) > 0 {
		p := gzexact.Point{Content: number(), Stream: number()}
		if p.Content <= last.Content || p.Stream <= last.Stream || p.Content > index.Content || p.Stream > size {
			return gzexact.Index{}, false
		}
		index.Points, last = append(index.Points, p), p
	}
	return index, index.Stream == size
}

// start returns the last point of an index at or before an offset of the stream.
func start(index gzexact.Index, offset int64) (gzexact.Point, bool) {
	i := sort.Search(len(index.Points), func(i int) bool { return index.Points[i].Stream > offset })
	if i == 0 {
		return gzexact.Point{}, false
	}
	return index.Points[i-1], true
}
