package overlay2

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"

	"pier/internal/oci"
)

const recordName = "tar-split.json.gz"

// Docker writes records itself, but their content comes from images, hence from strangers.
const (
	// maxLine bounds one line: 3 MiB of a tar. The largest honest ones are extended headers, at most 1 MiB each (archive/tar),
	// and the padding at a tar's end.
	maxLine = 4 << 20

	// maxRecord bounds a record, uncompressed: 700,000 files, at 1.5 KB each. A record that is longer is reported as unsupported: a few KB of
	// image, of nothing but padding, can make gigabytes of it.
	maxRecord = 1 << 30
)

var errLong = errors.New("record of a size that no honest layer has")

// paxSparse begins every extended header that makes a file sparse (GNU tar's manual, "Storing Sparse Files"). The older way,
// member type S, Docker refuses to extract.
const paxSparse = " GNU.sparse."

// An entry is one piece of a tar: bytes as they are, or the content of a file.
type entry struct {
	segment []byte // bytes as they are, until the next entry is read; nil for a file
	name    string // of the file, as in the tar
	size    int64  // bytes of the file that are in the tar
	crc     uint64 // of those
}

// records reads a record: gzip of a JSON object a line, as github.com/vbatts/tar-split/tar/storage writes it. That package's
// own reader remembers all names and takes lines of any length.
type records struct {
	lines *bufio.Reader
	long  []byte // a line that is longer than the buffer of lines
	data  []byte // of the last segment
	read  int64  // bytes
	max   int64  // bytes to be read
}

func newRecords(r io.Reader) (*records, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", recordName, err)
	}
	return &records{lines: bufio.NewReaderSize(z, 64<<10), max: maxRecord}, nil
}

// next returns the next entry, or io.EOF after the last.
func (r *records) next() (entry, error) {
	line, err := r.line()
	if err == io.EOF && len(line) == 0 {
		return entry{}, io.EOF
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	var e entry
	if err == nil {
		e, err = r.parse(line)
	}
	if err != nil {
		return entry{}, fmt.Errorf("%s, at byte %d: %w", recordName, r.read, err)
	}
	return e, nil
}

func (r *records) line() ([]byte, error) {
	r.long = r.long[:0]
	for {
		part, err := r.lines.ReadSlice('\n')
		r.read += int64(len(part))
		if len(r.long)+len(part) > maxLine || r.read > r.max {
			return nil, errLong
		}
		if err == nil && len(r.long) == 0 {
			return part, nil
		}
		r.long = append(r.long, part...)
		if err != bufio.ErrBufferFull { //nolint:errorlint // as bufio documents it
			return r.long, err
		}
	}
}

// What every segment's line is made of: most lines are, and encoding/json takes ten times as long for them.
const segmentBegin = `{"type":2,"payload":"`

func (r *records) parse(line []byte) (entry, error) {
	if rest, ok := bytes.CutPrefix(line, []byte(segmentBegin)); ok {
		if payload, rest, ok := bytes.Cut(rest, []byte(`","position":`)); ok && isNumber(rest) {
			return r.segment(payload)
		}
	}
	var e struct {
		Type    int    `json:"type"` // 1: file, 2: segment
		Name    string `json:"name"`
		NameRaw []byte `json:"name_raw"` // instead of Name, if that is not UTF-8
		Size    int64  `json:"size"`
		Payload []byte `json:"payload"` // of a file its CRC-64, if it has content
	}
	if err := json.Unmarshal(line, &e); err != nil {
		return entry{}, err
	}
	switch {
	case e.Type == 2:
		return entry{segment: e.Payload}, nil
	case e.Type != 1:
		return entry{}, fmt.Errorf("entry of type %d: %w", e.Type, oci.ErrUnsupported)
	case e.Size < 0 || e.Size > 0 && len(e.Payload) != 8:
		return entry{}, fmt.Errorf("file of %d bytes with a checksum of %d", e.Size, len(e.Payload))
	}
	f := entry{name: e.Name, size: e.Size}
	if len(e.NameRaw) > 0 {
		f.name = string(e.NameRaw)
	}
	if f.size > 0 {
		f.crc = binary.BigEndian.Uint64(e.Payload)
	}
	if f.crc == 0 {
		f.size = 0 // the sum of no bytes: links and directories may state a size, and have no content all the same
	}
	return f, nil
}

// isNumber reports whether b is what ends a segment's line.
func isNumber(b []byte) bool {
	digits, ok := bytes.CutSuffix(b, []byte("}\n"))
	return ok && len(digits) > 0 && len(bytes.Trim(digits, "0123456789")) == 0
}

func (r *records) segment(payload []byte) (entry, error) {
	if n := base64.StdEncoding.DecodedLen(len(payload)); n > len(r.data) {
		r.data = make([]byte, n)
	}
	n, err := base64.StdEncoding.Decode(r.data, payload)
	return entry{segment: r.data[:n]}, err
}

// measure reads a record and returns how long the tar is, in bytes, and why it cannot be rebuilt, or "".
func measure(ctx context.Context, f io.Reader) (size int64, unsupported string, err error) {
	r, err := newRecords(f)
	if err != nil {
		return 0, "", err
	}
	for i := 0; ; i++ {
		if i%1024 == 0 && ctx.Err() != nil {
			return 0, "", ctx.Err()
		}
		e, err := r.next()
		switch {
		case err == io.EOF:
			return size, unsupported, nil
		case errors.Is(err, errLong):
			return size, errLong.Error(), nil
		case err != nil:
			return 0, "", err
		case e.size > math.MaxInt64-size-maxLine:
			return 0, "", fmt.Errorf("%s: over %d bytes of tar: %w", recordName, int64(math.MaxInt64), oci.ErrTooLarge)
		}
		if bytes.Contains(e.segment, []byte(paxSparse)) {
			unsupported = "sparse files in the tar" // the record has their content with its holes, and not the map of them
		}
		if e.size > 0 && strings.HasPrefix(path.Base(e.name), ".wh.") {
			unsupported = "content in a whiteout, which Docker drops" // on disk it is a device, or an attribute of its directory
		}
		size += int64(len(e.segment)) + e.size
	}
}
