package chain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"pier/internal/oci"
)

// A Target is where images are copied to.
type Target interface {
	oci.Store
	oci.Tagger
}

// An Expecter is a Target that removes what it has no use for, as caches do. Content that is expected stays until the manifest that needs it has come.
type Expecter interface {
	Expect(dgst oci.Digest)
}

// CopyOptions say how an image is copied.
type CopyOptions struct {
	ImageOptions
	Jobs  int           // blobs that are copied at once; 0: 1
	Total func(int64)   // told of the bytes of all blobs before the first is copied; nil: nobody is
	Done  func(int64)   // told of bytes that were copied; nil: nobody is
	As    oci.Reference // what it is called there; zero: as it is here
}

// Copy copies an image to a store: blobs that are not there, then manifests, each after what it names, then the name. What src gives must be
// proven, see [Verified].
func Copy(ctx context.Context, to Target, src oci.Source, ref oci.Reference, opt CopyOptions) (*Image, error) {
	img, err := each(ctx, src, ref, opt, func(ctx context.Context, b v1.Descriptor) error {
		return copyContent(ctx, to, src, ref, oci.Blob, b, opt.Done)
	})
	if err != nil {
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
		return to.Tag(ctx, named, oci.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Source: img.Source})
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

// Fetch reads an image and all that belongs to it from src, so that here has it from then on, where src keeps what it fetches. What here has is not
// read. What is not kept, because the disk is full, say, is an error.
func Fetch(ctx context.Context, src, here oci.Source, ref oci.Reference, opt CopyOptions) (*Image, error) {
	img, err := each(ctx, src, ref, opt, func(ctx context.Context, b v1.Descriptor) error {
		named := oci.Reference{Registry: ref.Registry, Repository: ref.Repository, Kind: oci.Blob, Digest: b.Digest}
		if desc, err := here.Resolve(ctx, named); err == nil && desc.Missing == 0 {
			if opt.Done != nil {
				opt.Done(b.Size)
			}
			return nil
		}
		rc, _, err := src.Open(ctx, named, 0, -1)
		if err != nil {
			return err
		}
		defer rc.Close()
		if err := drain(ctx, &counted{rc, opt.Done}); err != nil {
			return err
		}
		return awaitKept(ctx, here, named)
	})
	if err != nil {
		return nil, err
	}
	for _, m := range img.Manifests {
		if err := awaitKept(ctx, here, oci.Reference{Registry: ref.Registry, Repository: ref.Repository, Kind: oci.Manifest, Digest: m.Digest}); err != nil {
			return nil, err
		}
	}
	return img, nil
}

// keptFor is how long after its last byte content is waited for to be kept.
const keptFor = 10 * time.Second

// awaitKept waits until here has content that was read to its end.
func awaitKept(ctx context.Context, here oci.Source, ref oci.Reference) error {
	for end := time.Now().Add(keptFor); ; {
		desc, err := here.Resolve(ctx, ref)
		if err == nil && desc.Missing == 0 {
			return nil
		}
		if err == nil {
			err = oci.ErrUnavailable
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s came and was not kept; the node's log says why: a full disk, or a limit that is smaller than it: %w", ref, err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// each reads an image, and calls do for its blobs.
func each(ctx context.Context, src oci.Source, ref oci.Reference, opt CopyOptions, do func(context.Context, v1.Descriptor) error) (*Image, error) {
	img, err := ReadImage(ctx, src, ref, opt.ImageOptions)
	if err != nil {
		return nil, err
	}
	if opt.Total != nil {
		total := int64(0)
		for _, b := range img.Blobs {
			total += b.Size
		}
		opt.Total(total)
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(max(opt.Jobs, 1))
	for _, b := range img.Blobs {
		group.Go(func() error { return do(gctx, b) })
	}
	return img, group.Wait()
}

func copyContent(ctx context.Context, to Target, src oci.Source, ref oci.Reference, kind oci.Kind, d v1.Descriptor, done func(int64)) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	named := oci.Reference{Registry: ref.Registry, Repository: ref.Repository, Kind: kind, Digest: d.Digest}
	if e, ok := to.(Expecter); ok {
		e.Expect(d.Digest)
	}
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
