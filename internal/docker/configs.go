package docker

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"pier/internal/oci"
)

// Configs returns a Source of the configurations of Docker's images, which are files of Docker's. They are proven each time.
func (s *Store) Configs() oci.Source { return configs{s} }

type configs struct{ s *Store }

// Resolve implements [oci.Source].
func (c configs) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	rc, desc, err := c.Open(ctx, ref, 0, 0)
	if err != nil {
		return desc, err
	}
	return desc, rc.Close()
}

// Open implements [oci.Source].
func (c configs) Open(_ context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	c.s.mu.Lock()
	has := c.s.view.configs[ref.Digest]
	c.s.mu.Unlock()
	if !has || ref.Kind != oci.Blob {
		return nil, oci.Descriptor{}, fmt.Errorf("docker: no image %s: %w", ref.Digest, oci.ErrNotFound)
	}
	b, err := c.s.disk.Config(ref.Digest)
	if err != nil {
		return nil, oci.Descriptor{}, err
	}
	desc := describe(ref.Digest, int64(len(b)))
	if offset < 0 || offset > desc.Size {
		return nil, desc, fmt.Errorf("docker: offset %d of %d bytes: %w", offset, desc.Size, oci.ErrRange)
	}
	b = b[offset:]
	if length >= 0 && length < int64(len(b)) {
		b = b[:length]
	}
	return io.NopCloser(bytes.NewReader(b)), desc, nil
}

// Holdings implements [chain.Holder].
func (c configs) Holdings() ([]oci.Digest, error) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	list := make([]oci.Digest, 0, len(c.s.view.configs))
	for d := range c.s.view.configs {
		list = append(list, d)
	}
	return list, nil
}

// Names implements [chain.Holder].
func (configs) Names() []oci.Reference { return nil }

// Changed implements [chain.Holder].
func (c configs) Changed() time.Time {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return c.s.altered
}
