package oci

import "context"

type inspection struct{}

// WithInspection marks what is asked of a Source as being no use of the content: it is looked at, so that it is known whether it is right.
func WithInspection(ctx context.Context) context.Context {
	return context.WithValue(ctx, inspection{}, true)
}

// IsInspection reports whether WithInspection was called.
func IsInspection(ctx context.Context) bool { return ctx.Value(inspection{}) != nil }
