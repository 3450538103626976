package gzexact

import (
	"io"
	"slices"

	k120 "github.com/klauspost/compress/flate"
	k117 "pier.invalid/klauspost117/flate"

	"pier/internal/gzexact/goflate"
	"pier/internal/gzexact/zlib"
)

// A codec is one encoder.
type codec struct {
	name   string // in the text of recipes: never changed
	levels []int8 // most common first

	// zstd says that a stream is a frame of zstd (RFC 8878), all of which is the encoder's. Else the encoder makes deflate streams (RFC
	// 1951), which stand between a gzip header, known to the recipe, and a trailer (RFC 1952).
	zstd bool

	// block is how much content is compressed for itself, in bytes; 0 if a stream is one piece.
	block int
	// before is how much of the content before it a block depends on, in bytes.
	before int
	// emptyLast says that content which ends with a whole block has an empty one after it.
	emptyLast bool

	// stream returns an encoder to w.
	stream func(w io.Writer, level int) (io.WriteCloser, error)
	// blocks returns an encoder of single blocks; nil if block is 0.
	blocks func(level int) (blockEncoder, error)
}

// A blockEncoder appends the block of content, after before, to dst.
type blockEncoder func(dst, before, content []byte, last bool) ([]byte, error)

func (c *codec) has(level int8) bool { return slices.Contains(c.levels, level) }

// codecs returns the encoders, most common first. The output of klauspost/compress changes now and then. Of its deflate, 1.20.3 stands
// for 1.18.2 to itself, and for Go 1.27, which took its encoder over; 1.17.11 for 1.15.11 to 1.18.0, but for levels 7 to 9 before 1.15.13
// and level 4 of 1.18.0. Of its zstd, 1.20.0 stands for 1.16.5 to 1.20.2 (but at level 3, which is zstd's from 6 on, only from 1.17.5), and
// 1.20.3 for itself and 1.20.4. Older ones, back to 1.14.4, differ from 1.16.5 at levels 1 and 2 only where content is odd.
func codecs() []codec {
	var (
		goLevels    = []int8{6, 1, 9, 5, 4, 3, 2, 7, 8, 0, -2}
		pgzipLevels = []int8{5, 1, 9, 6, 4, 3, 2, 7, 8}
		zlibLevels  = []int8{6, 9, 1, 5, 4, 3, 2, 7, 8}
		zstdLevels  = []int8{zstdDefault, zstdFastest, zstdBetter}
	)
	return []codec{
		{name: "go1", levels: goLevels, stream: func(w io.Writer, level int) (io.WriteCloser, error) { return goflate.NewWriter(w, level) }},
		{name: "go2", levels: goLevels, stream: func(w io.Writer, level int) (io.WriteCloser, error) { return k120.NewWriter(w, level) }},
		pgzip("pgzip117-1m", 1<<20, pgzipLevels, newKlauspost117),
		pgzip("pgzip117-256k", 256<<10, pgzipLevels, newKlauspost117),
		pgzip("pgzip120-1m", 1<<20, pgzipLevels, newKlauspost120),
		pgzip("pgzip120-256k", 256<<10, pgzipLevels, newKlauspost120),
		{name: "gnu", levels: zlibLevels, stream: zlibStream(zlib.GNU)},
		{name: "zlib", levels: zlibLevels, stream: zlibStream(zlib.Zlib)},
		{name: "pigz", levels: zlibLevels, stream: zlibStream(zlib.Pigz), block: zlib.PigzBlock, before: pigzBefore, blocks: pigzBlocks},
		{name: "pigz1", levels: zlibLevels, stream: zlibStream(zlib.PigzSingle)},
		{name: "klauspost117", levels: pgzipLevels, stream: func(w io.Writer, level int) (io.WriteCloser, error) { return k117.NewWriter(w, level) }},
		{name: "klauspost120", zstd: true, levels: zstdLevels, stream: newZstd120},
		{name: "klauspost1203", zstd: true, levels: zstdLevels, stream: newZstd1203},
	}
}

func zlibStream(variant zlib.Variant) func(io.Writer, int) (io.WriteCloser, error) {
	return func(w io.Writer, level int) (io.WriteCloser, error) {
		return zlib.NewWriter(w, zlib.Config{Variant: variant, Level: level})
	}
}

// pigzBefore is how much content a block of pigz depends on, in bytes: all that the format reaches back.
const pigzBefore = 32 << 10

func pigzBlocks(level int) (blockEncoder, error) {
	e, err := zlib.NewBlockEncoder(level)
	if err != nil {
		return nil, err
	}
	return func(dst, before, content []byte, last bool) ([]byte, error) {
		return e.Encode(dst, before, content, last), nil
	}, nil
}
