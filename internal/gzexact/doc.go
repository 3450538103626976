// Package gzexact makes a compressed layer again from its content, bit for bit. A stream of gzip or zstd is settled by its content, its
// header, and the encoder and level that made it: these few bytes are the [Recipe]. [Learn] finds the recipe of a stream, once;
// [Recipe.Encode] makes the stream. Where the stream is gone and only its digest is known, [Candidates] are the recipes worth trying.
//
// The encoders are golden: none is the standard library's, which another toolchain would change. goflate is that of Go 1.9 to 1.26; zlib
// those of zlib, pigz and GNU gzip; klauspost/compress, in versions that are linked side by side, those of Go 1.27, of pgzip, and of zstd.
// What is covered is in docs/recompression.md, which a test of this package writes.
//
// That a recipe fits is proven by the digest of the whole alone, which is left to the caller: two encoders can agree for megabytes.
// Streams of several members (eStargz) or frames (zstd:chunked), and those of other encoders have no recipe here: [ErrUnknown].
package gzexact
