package zlib

import "fmt"

// A Variant is whose output is made.
type Variant uint8

const (
	// Zlib is the library from 1.2.11 on, with a window of 32 KiB and all input as one stream, as Python, Java and many others use it.
	Zlib Variant = iota

	// Pigz is the program with two processors or more, whatever their number: blocks of [PigzBlock] are made for themselves, each after
	// the last 32 KiB before it, and end on a byte.
	Pigz

	// PigzSingle is pigz -p 1, or pigz on a machine with one processor: its blocks go on where the one before ended. It is
	// the same as Pigz at levels 4 to 9, but for a rare match, and different at levels 1 to 3.
	PigzSingle

	// GNU is GNU gzip.
	GNU
)

// PigzBlock is how much content pigz puts into a block, in bytes, unless told otherwise (its -b).
const PigzBlock = 128 << 10

// defaultMemLevel is what zlib takes where it is not told, and pigz always.
const defaultMemLevel = 8

// Config says what an encoder makes.
type Config struct {
	Variant  Variant
	Level    int // 1 to 9
	MemLevel int // of Zlib: 1 to 9; 0 means zlib's default, 8
}

// limits say how hard a level looks for matches.
type limits struct {
	good  int  // a match of so many bytes is reason to follow only a quarter of the chain from the next one
	lazy  int  // a shorter match, in bytes, may be given up for one at the next byte; a fast level hashes the inside of matches up to this
	nice  int  // a match of so many bytes ends the search
	chain int  // candidates to look at
	fast  bool // takes the first match
}

// levelLimits are those of levels 1 to 9 in all variants: the numbers are known from zlib's documentation and its deflateTune, where they
// have these names.
var levelLimits = [...]limits{
	{4, 4, 8, 4, true},
	{4, 5, 16, 8, true},
	{4, 6, 32, 32, true},
	{4, 4, 16, 16, false},
	{8, 16, 32, 32, false},
	{8, 16, 128, 128, false},
	{8, 32, 128, 256, false},
	{32, 128, 258, 1024, false},
	{32, 258, 258, 4096, false},
}

// settings are what stays the same over an encoder's life.
type settings struct {
	limits
	hashBits    uint
	blockTokens int // a block has at most so many
	firstStop   int // after so many tokens enough is asked

	// gnu: the end of the input is found by reading on, once, and what is left is encoded where it is. See encoder.finish.
	gnu bool
}

// gnuStop is after how many tokens GNU gzip, from level 3 on, looks whether the block should end: found in its output, in which
// all blocks but the longest have a multiple of it.
const gnuStop = 4096

func (c Config) settings() (settings, error) {
	if c.Level < 1 || c.Level > len(levelLimits) {
		return settings{}, fmt.Errorf("zlib: level %d is not one of 1 to 9", c.Level)
	}
	if c.MemLevel < 0 || c.MemLevel > 9 || c.MemLevel != 0 && c.Variant != Zlib {
		return settings{}, fmt.Errorf("zlib: no memory level %d", c.MemLevel)
	}
	s := settings{limits: levelLimits[c.Level-1]}
	switch c.Variant {
	case Zlib, Pigz, PigzSingle:
		mem := c.MemLevel
		if mem == 0 {
			mem = defaultMemLevel
		}
		s.hashBits = uint(mem) + 7
		s.blockTokens = 1<<(mem+6) - 1
		s.firstStop = s.blockTokens
	case GNU:
		s.gnu = true
		s.hashBits = 15
		s.blockTokens = maxTokens - 1
		s.firstStop = s.blockTokens
		if c.Level >= 3 {
			s.firstStop = gnuStop
		}
	default:
		return settings{}, fmt.Errorf("zlib: no variant %d", c.Variant)
	}
	return s, nil
}
