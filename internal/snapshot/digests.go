package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"time"

	"github.com/zeebo/blake3"
)

// A digests is what is remembered of the files of one tree: the digest of a file whose inode, size, and times of change are what they
// were. It is a file of fixed records, ended by their BLAKE3; one that is not whole counts for nothing.
type digests struct {
	path string // empty: nothing is remembered
	old  map[inode]record
	used int // records that were asked for and right
}

// A record is a file's state, and the digest of its content then.
type record struct {
	state
	digest Digest
}

const (
	digestsMagic = "pier digests 1\n\x00"
	recordSize   = 5*8 + 32

	// settled is how long a file must not have changed before it is read for its digest to be remembered, as the clock that files are dated
	// with is a coarse one: a change just after may leave the times as they are. FAT counts in steps of two seconds.
	settled = 2 * time.Second
)

// openDigests returns what is remembered below dir of the tree at root.
func openDigests(dir, root string) *digests {
	if dir == "" {
		return &digests{}
	}
	sum := sha256.Sum256([]byte(root))
	d := &digests{path: filepath.Join(dir, hex.EncodeToString(sum[:16]))}
	b, err := os.ReadFile(d.path)
	if err != nil || len(b) < len(digestsMagic)+32 || string(b[:len(digestsMagic)]) != digestsMagic {
		return d
	}
	records := b[len(digestsMagic) : len(b)-32]
	if sum := blake3.Sum256(b[:len(b)-32]); len(records)%recordSize != 0 || !bytes.Equal(sum[:], b[len(b)-32:]) {
		return d
	}
	d.old = make(map[inode]record, len(records)/recordSize)
	for ; len(records) > 0; records = records[recordSize:] {
		var n [5]uint64
		for i := range n {
			n[i] = binary.LittleEndian.Uint64(records[8*i:])
		}
		d.old[inode{n[0], n[1]}] = record{
			state{device: n[0], inode: n[1], size: int64(n[2]), modified: int64(n[3]), changed: int64(n[4])},
			Digest(hex.EncodeToString(records[5*8 : recordSize])),
		}
	}
	return d
}

// of returns the digest that is remembered of a file in that state.
func (d *digests) of(s state) (Digest, bool) {
	r, ok := d.old[inode{s.device, s.inode}]
	if !ok || !r.same(s) {
		return "", false
	}
	d.used++
	return r.digest, true
}

// save remembers the files of a tree that was read.
func (d *digests) save(files []found) error {
	if d.path == "" {
		return nil
	}
	records := 0
	b := []byte(digestsMagic)
	for _, f := range files {
		if f.Dir() || time.Duration(f.read-max(f.modified, f.changed)) < settled {
			continue
		}
		for _, n := range []uint64{f.device, f.inode, uint64(f.size), uint64(f.modified), uint64(f.changed)} {
			b = binary.LittleEndian.AppendUint64(b, n)
		}
		b, _ = hex.AppendDecode(b, []byte(f.Digest))
		records++
	}
	if records == d.used && records == len(d.old) {
		return nil // all of it is written there
	}
	sum := blake3.Sum256(b)
	return replaceFile(d.path, append(b, sum[:]...))
}

// replaceFile writes a file that nobody else may read, whole or not at all.
func replaceFile(path string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // after the rename there is none
	_, err = f.Write(b)
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}
