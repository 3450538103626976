package gzexact

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrUnknown is the error for a stream that no known encoder makes from its content.
var ErrUnknown = errors.New("no known encoder made this stream")

// A Recipe says how a compressed stream is made from its content. Recipes can be compared and stored: their text stays valid. The zero
// Recipe is none.
type Recipe struct {
	codec  string // name in codecs, or identity
	level  int8
	header string // of gzip, the bytes before the deflate stream, as they are: time, name and all
	first  int    // of zstd, bytes of content after which the encoder was flushed, if it was
}

const (
	identity = "identity"
	// maxHeader is the longest header that a recipe takes, in bytes. Ten are the rule, a file name more happens.
	maxHeader = 512
)

// Identity returns the recipe of a stream that is its content.
func Identity() Recipe { return Recipe{codec: identity} }

// IsZero reports whether r is no recipe.
func (r Recipe) IsZero() bool { return r == Recipe{} }

// String returns the text of r, such as "identity", "gzip go1 level=6 header=1f8b08000000000000ff" or "zstd klauspost120 level=2"; "" if r
// is none.
func (r Recipe) String() string {
	if r.IsZero() || r.codec == identity {
		return r.codec
	}
	switch {
	case r.first > 0:
		return fmt.Sprintf("zstd %s level=%d first=%d", r.codec, r.level, r.first)
	case r.header == "":
		return fmt.Sprintf("zstd %s level=%d", r.codec, r.level)
	}
	return fmt.Sprintf("gzip %s level=%d header=%x", r.codec, r.level, r.header)
}

// ParseRecipe returns the recipe whose text is s. A recipe for an encoder that this version does not have is an error.
func ParseRecipe(s string) (Recipe, error) {
	if s == identity {
		return Identity(), nil
	}
	fields := strings.Split(s, " ")
	if len(fields) < 3 {
		return Recipe{}, fmt.Errorf("recipe %.80q: want %q, \"gzip ENCODER level=LEVEL header=HEX\" or \"zstd ENCODER level=LEVEL [first=BYTES]\"", s, identity)
	}
	level, err := strconv.ParseInt(strings.TrimPrefix(fields[2], "level="), 10, 8)
	if err != nil {
		return Recipe{}, fmt.Errorf("recipe %.80q: level: %w", s, err)
	}
	r := Recipe{codec: fields[1], level: int8(level)}
	c := r.find()
	if c == nil || !c.has(r.level) {
		return Recipe{}, fmt.Errorf("recipe %.80q: no such encoder, or it has no such level", s)
	}
	switch last := fields[len(fields)-1]; {
	case c.zstd && len(fields) > 3:
		if r.first, err = strconv.Atoi(strings.TrimPrefix(last, "first=")); err != nil || r.first <= 0 || r.first >= zstdBlock {
			return Recipe{}, fmt.Errorf("recipe %.80q: first is not from 1 to %d", s, zstdBlock-1)
		}
	case !c.zstd:
		header, err := hex.DecodeString(strings.TrimPrefix(last, "header="))
		if err != nil {
			return Recipe{}, fmt.Errorf("recipe %.80q: header: %w", s, err)
		}
		if h, err := parseHeader(header); err != nil || h.size != len(header) {
			return Recipe{}, fmt.Errorf("recipe %.80q: its header is not one gzip header", s)
		}
		r.header = string(header)
	}
	if r.String() != s {
		return Recipe{}, fmt.Errorf("recipe %.80q: its canonical form is %.80q", s, r)
	}
	return r, nil
}

// MarshalText implements [encoding.TextMarshaler].
func (r Recipe) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler]. An empty text is no recipe.
func (r *Recipe) UnmarshalText(text []byte) (err error) {
	*r = Recipe{}
	if len(text) > 0 {
		*r, err = ParseRecipe(string(text))
	}
	return err
}

// Compression returns what streams of r are compressed with: "gzip" or "zstd", or "" if they are not.
func (r Recipe) Compression() string {
	compression, _, ok := strings.Cut(r.String(), " ")
	if !ok {
		return ""
	}
	return compression
}

// Memory returns about how many bytes the encoder of r takes, whatever the size of the content; of gzip in blocks, without these.
func (r Recipe) Memory() int64 {
	if c := r.find(); c != nil && c.zstd {
		return zstdMemory[r.level]
	}
	return 2 << 20
}

// find returns the encoder of r, or nil.
func (r Recipe) find() *codec {
	for _, c := range codecs() {
		if c.name == r.codec {
			return &c
		}
	}
	return nil
}
