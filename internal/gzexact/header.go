package gzexact

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// A header is the part of a gzip header (RFC 1952, 2.3) that tells of the encoder.
type header struct {
	size  int    // bytes
	mtime uint32 // seconds, as it is
	xfl   byte   // what the encoder says of its effort
	os    byte   // what the encoder says of its system
}

const (
	headerBytes  = 10 // of the fixed part
	trailerBytes = 8  // CRC-32 and length of the content

	flagCRC, flagExtra, flagName, flagComment, flagsReserved = 1 << 1, 1 << 2, 1 << 3, 1 << 4, 0xe0

	xflBest, xflFast = 2, 4 // level 9 and level 1; all encoders here say 0 for others
	osFAT            = 0    // and Java until 15
	osUnix           = 3
	osUnknown        = 255 // Go, Python, Java since 16

	// pgzipTime is Go's zero time in seconds since 1970, cut to 32 bits: pgzip writes it if it is told no time.
	pgzipTime = 0x886e0900
)

// parseHeader reads the header that b begins with. It reports ErrUnknown if that is none, is not all there, or is longer than a recipe
// takes.
func parseHeader(b []byte) (header, error) {
	b = b[:min(len(b), maxHeader)]
	if len(b) < headerBytes || b[0] != 0x1f || b[1] != 0x8b || b[2] != 8 || b[3]&flagsReserved != 0 {
		return header{}, fmt.Errorf("not gzip: %w", ErrUnknown)
	}
	flags := b[3]
	h := header{size: headerBytes, mtime: binary.LittleEndian.Uint32(b[4:]), xfl: b[8], os: b[9]}
	if flags&flagExtra != 0 && len(b) >= h.size+2 {
		h.size += int(binary.LittleEndian.Uint16(b[h.size:]))
		h.size += 2
	} else if flags&flagExtra != 0 {
		h.size = len(b) + 1
	}
	for _, flag := range []byte{flagName, flagComment} {
		if flags&flag == 0 || h.size > len(b) {
			continue
		}
		end := bytes.IndexByte(b[h.size:], 0)
		if end < 0 {
			end = len(b)
		}
		h.size += end + 1
	}
	if flags&flagCRC != 0 {
		h.size += 2
	}
	if h.size > len(b) {
		return header{}, fmt.Errorf("gzip header longer than %d bytes: %w", len(b), ErrUnknown)
	}
	return h, nil
}
