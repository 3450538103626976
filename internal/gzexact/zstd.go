package gzexact

import (
	"fmt"
	"io"

	z1203 "github.com/klauspost/compress/zstd"
	z120 "github.com/klauspost/compress/zstd/era120/zstd"
)

// The levels of klauspost/compress, which builders choose by zstd's: from 1, 3 and 6 on. In recipes they are numbers. The fourth, from
// zstd's 10 on, is left out: it takes 43 MB.
const (
	zstdFastest = int8(z120.SpeedFastest)
	zstdDefault = int8(z120.SpeedDefault)
	zstdBetter  = int8(z120.SpeedBetterCompression)
)

// zstdMemory is what they take, in bytes: twice the window that matches are looked for in, and tables.
var zstdMemory = map[int8]int64{zstdFastest: 10 << 20, zstdDefault: 19 << 20, zstdBetter: 22 << 20}

// zstdBlock is how much content is in a block, but in the last one and in one that is flushed, in bytes.
const zstdBlock = 128 << 10

// newZstd120 returns the encoder of klauspost/compress as builders use it: with a checksum, and with no word of how much is to come. How
// many goroutines it has does not show in the stream; here it has none.
func newZstd120(w io.Writer, level int) (io.WriteCloser, error) {
	return z120.NewWriter(w, z120.WithEncoderLevel(z120.EncoderLevel(level)), z120.WithEncoderConcurrency(1))
}

// newZstd1203 is the same of another version.
func newZstd1203(w io.Writer, level int) (io.WriteCloser, error) {
	return z1203.NewWriter(w, z1203.WithEncoderLevel(z1203.EncoderLevel(level)), z1203.WithEncoderConcurrency(1))
}

// zstdCandidates returns the recipes that write the frame header (RFC 8878, 3.1.1.1) which prefix begins with, most likely first. It
// reports ErrUnknown if there are none: other encoders mostly have other windows, or leave the checksum out.
func zstdCandidates(prefix []byte) (all []Recipe, err error) {
	const (
		magic        = "\x28\xb5\x2f\xfd"
		flagChecksum = 1 << 2
		flagsShort   = 3<<6 | 1<<5 // the content's size follows, and there is no window byte

		// Windows: powers of two above 1 KiB, times eight. Content that fits in one block has its own.
		windowBlock, window4, window8 = 7 << 3, 12 << 3, 13 << 3 // 128 KiB, 4 and 8 MiB
	)
	if len(prefix) < len(magic)+2 || string(prefix[:len(magic)]) != magic {
		return nil, fmt.Errorf("not zstd: %w", ErrUnknown)
	}
	flags, window := prefix[len(magic)], prefix[len(magic)+1]
	var levels []int8
	switch {
	case flags&^flagsShort == flagChecksum && (flags != flagChecksum || window <= windowBlock):
		levels = []int8{zstdDefault, zstdFastest, zstdBetter}
	case flags == flagChecksum && window == window4:
		levels = []int8{zstdFastest}
	case flags == flagChecksum && window == window8:
		levels = []int8{zstdDefault, zstdBetter}
	default:
		return nil, fmt.Errorf("zstd with flags %#x and window %#x: %w", flags, window, ErrUnknown)
	}
	first := 0
	if flags == flagChecksum { // else the block comes later, and is the only one
		first = firstBlock(prefix[len(magic)+2:])
	}
	for _, level := range levels {
		for _, c := range codecs() {
			if c.zstd {
				all = append(all, Recipe{codec: c.name, level: level, first: first})
			}
		}
	}
	return all, nil
}

// firstBlock returns how much is in the block which b begins with, if that is neither the last, nor full, nor compressed. A program that
// reads the start of the content to see what it is, and then lets the encoder read the rest, flushes it: so do buildah, podman and
// skopeo, with 8 bytes.
func firstBlock(b []byte) int {
	const last, kind = 1, 3 << 1 // RFC 8878, 3.1.1.2; kind 0 is not compressed
	if len(b) < 3 {
		return 0
	}
	header := int(b[0]) | int(b[1])<<8 | int(b[2])<<16
	if size := header >> 3; header&(last|kind) == 0 && size < zstdBlock {
		return size
	}
	return 0
}
