// Package zlib makes deflate streams (RFC 1951) that are, bit for bit, those of zlib, of pigz and of GNU gzip at the levels 1 to 9.
// What stands around a stream, such as gzip's header and trailer, is left to the caller.
//
// The three share their algorithm: chains of positions with the same hash of three bytes are searched for the longest match, which is
// taken at once (levels 1 to 3) or given up when the next byte has a longer one; blocks end after a number of tokens and take the
// smallest of the three forms of RFC 1951. They differ in when a block ends, and in what happens at the end of the input. All
// of it was written anew from that RFC, from general knowledge of the algorithm, and from what the programs put out; that it is
// exact was found, and is tested, by comparing with zlib 1.2.11 and 1.2.13 (in Python and pigz), pigz 2.6 and GNU gzip 1.12. Others that
// go by the name of zlib, such as zlib-ng, Intel's and Cloudflare's, put out something else and are not covered; nor are
// pigz -11, other strategies than the default, --rsyncable and level 0.
//
// How the input was cut when the original compressed it makes no difference, but for one case: zlib and GNU gzip may choose otherwise when
// they were given input up to 1 to 261 bytes before a multiple of 32 KiB, and no more for the time being. It takes a match from the
// farthest distance, or the end, at one certain byte; and it cannot happen where the pieces are multiples of 512 bytes, as those of
// tar are.
package zlib
