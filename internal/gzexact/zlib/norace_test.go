//go:build !race

package zlib

// goldenMax is how many bytes contents have that TestGolden compresses.
const goldenMax = 5_000_000
