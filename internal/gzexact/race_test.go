//go:build race

package gzexact

// The race detector makes an encoder ten times slower, and finds nothing where there are no goroutines: what is long is left to the
// tests without it.
const raced = true

// shorter is how many bytes are compressed where n would be.
func shorter(n int) int { return n / 10 }
