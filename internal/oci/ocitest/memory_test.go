package ocitest

import (
	"testing"

	"pier/internal/oci"
)

func TestMemory(t *testing.T) {
	TestSource(t, func(_ *testing.T, content *Memory, _ oci.Reference) oci.Source { return content })
}
