//go:build !race

package gzexact

const raced = false

func shorter(n int) int { return n }
