//go:build race

package zlib

// The race detector makes an encoder ten times slower, and this package has no goroutines: a few contents will do.
const goldenMax = 40_000
