package chain

import (
	"context"
	"errors"
	"fmt"
	"io"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"pier/internal/oci"
)

// A Target is where images are copied to.
type Target interface {
	oci.Store
	oci.Tagger
}

// CopyOptions say how an image is copied.
type CopyOptions struct {
	ImageOptions
	Jobs int           // blobs that are copied at once; 0: 1
	Done func(int64)   // told of bytes that were copied; nil: nobody is
	As   oci.Reference // what it is called there; zero: as it is here
}

// Copy copies an image to a store: blobs that are not there, then manifests, each after what it names, then the name. What src gives must be
// proven, see [Verified].
func Copy(ctx context.Context, to Target, src oci.Source, ref oci.Reference, opt CopyOptions) (*Image, error) {
	img, err := ReadImage(ctx, src, ref, opt.ImageOptions)
	if err != nil {
		return nil, err
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(max(opt.Jobs, 1))
	for _, b := range img.Blobs {
		group.Go(func() error { return copyContent(gctx, to, src, ref, oci.Blob, b, opt.Done) })
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for _, m := range img.Manifests {
		if err := copyContent(ctx, to, src, ref, oci.Manifest, m.Descriptor, opt.Done); err != nil {
			return nil, err
		}
	}
	as := opt.As
	if as == (oci.Reference{}) {
		as = ref
	}
	name := func(tag string, d v1.Descriptor) error {
		named := oci.Reference{Registry: as.Registry, Repository: as.Repository, Kind: oci.Manifest, Tag: tag}
		return to.Tag(ctx, named, oci.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size})
	}
	for tag, d := range img.Tags {
		if err := name(tag, d); err != nil {
			return nil, err
		}
	}
	if as.Tag == "" {
		return img, nil
	}
	return img, name(as.Tag, img.Root)
}

func copyContent(ctx context.Context, to Target, src oci.Source, ref oci.Reference, kind oci.Kind, d v1.Descriptor, done func(int64)) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	named := oci.Reference{Registry: ref.Registry, Repository: ref.Repository, Kind: kind, Digest: d.Digest}
	_, err := to.Resolve(ctx, named)
	if err == nil {
		if done != nil {
			done(d.Size)
		}
		return nil
	}
	if !errors.Is(err, oci.ErrNotFound) {
		return err
	}
	rc, desc, err := src.Open(ctx, named, 0, -1)
	if err != nil {
		return err
	}
	defer rc.Close()
	if desc.Size != d.Size {
		return fmt.Errorf("%s: %d bytes where its manifest says %d: %w", named, desc.Size, d.Size, oci.ErrDigestMismatch)
	}
	return to.Put(ctx, oci.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}, &counted{rc, done})
}

// counted tells of what is read.
type counted struct {
	r    io.Reader
	done func(int64)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.done != nil {
		c.done(int64(n))
	}
	return n, err
}
