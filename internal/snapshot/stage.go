package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/zeebo/blake3"

	"pier/internal/bucket"
	"pier/internal/chain"
	"pier/internal/oci"
)

const (
	// incomingPrefix is where a blob is while nobody knows its BLAKE3, as registries know it by another digest.
	incomingPrefix = ".pier/incoming/"

	small = 1 << 20 // bytes of a blob that is rather held in memory until its digest is known
)

// ImageOptions say what of an image a push takes.
type ImageOptions struct {
	chain.ImageOptions
	Learned string // a directory where the digests of blobs are remembered; empty: none are
}

// PushImage brings an image into the store as an OCI image layout, straight from a registry. What src gives must be proven: a reader ends with an
// error where the content is not what its digest says.
func (s *Store) PushImage(ctx context.Context, src oci.Source, ref oci.Reference, img ImageOptions, opt Options) (Summary, error) {
	s.Meter.Begin("asking for manifests", 0)
	found, err := chain.ReadImage(ctx, src, ref, img.ImageOptions)
	if err != nil {
		return Summary{}, err
	}
	l, err := newLayout(src, ref, found)
	if err != nil {
		return Summary{}, err
	}
	l.learned = img.Learned
	known := make(map[oci.Digest]object)
	var unknown []v1.Descriptor
	for _, b := range l.Blobs {
		if o, ok := learned(img.Learned, b); ok {
			known[b.Digest] = o
		} else {
			unknown = append(unknown, b)
		}
	}
	if opt.DryRun && len(unknown) > 0 {
		return l.unknown(unknown), nil
	}
	if len(unknown) > 0 {
		h, err := s.hold(ctx) // what is staged must stay until it is named
		if err != nil {
			return Summary{}, err
		}
		defer h.release()
		ctx = h.ctx
		if err := s.stageAll(ctx, l, unknown, known); err != nil {
			return Summary{}, err
		}
	}
	m, from := l.tree(known)
	sum, err := s.send(ctx, m, from, opt, nil)
	for _, b := range unknown { // they were sent before, and found there then
		sum.Sent++
		sum.SentSize += b.Size
		sum.Skipped--
	}
	sum.Saved = sum.Bytes - sum.SentSize
	return sum, err
}

// unknown is the summary of what would have to be fetched to be known.
func (l *layout) unknown(blobs []v1.Descriptor) Summary {
	sum := Summary{DryRun: true, Files: len(l.files) + len(l.Blobs), Sent: len(l.files) + len(blobs), Skipped: len(l.Blobs) - len(blobs)}
	for _, text := range l.files {
		sum.SentSize += int64(len(text))
	}
	sum.Bytes = sum.SentSize
	for _, b := range blobs {
		sum.SentSize += b.Size
	}
	for _, b := range l.Blobs {
		sum.Bytes += b.Size
	}
	sum.Saved = sum.Bytes - sum.SentSize
	return sum
}

// stageAll brings blobs into the store, and adds to known what objects they are.
func (s *Store) stageAll(ctx context.Context, l *layout, blobs []v1.Descriptor, known map[oci.Digest]object) error {
	total := int64(0)
	for _, b := range blobs {
		total += b.Size
	}
	s.Meter.Begin("sending", total)
	var mu sync.Mutex // guards known
	return each(ctx, s.Jobs, blobs, func(ctx context.Context, b v1.Descriptor) error {
		o, err := s.stage(ctx, l, b)
		if err != nil {
			return fmt.Errorf("%s: blob %s: %w", l.ref, b.Digest, err)
		}
		learn(l.learned, b.Digest, o)
		mu.Lock()
		defer mu.Unlock()
		known[b.Digest] = o
		return nil
	})
}

// stage brings a blob into the store: in whole it is first under the digest that the registry has for it, and then where it belongs.
func (s *Store) stage(ctx context.Context, l *layout, b v1.Descriptor) (object, error) {
	r, err := l.open(ctx, b.Digest)
	if err != nil {
		return object{}, err
	}
	defer r.Close()
	metered := s.Meter.reader(r)
	if b.Size <= small {
		text, err := io.ReadAll(io.LimitReader(metered, b.Size+1))
		if err != nil {
			return object{}, err
		}
		if int64(len(text)) != b.Size {
			return object{}, fmt.Errorf("there are not the %d bytes that its manifest says: %w", b.Size, oci.ErrDigestMismatch)
		}
		o := object{digestOf(text), b.Size}
		err = s.Bucket.Put(ctx, o.key(), o.size, bytes.NewReader(text), false)
		if errors.Is(err, bucket.ErrExists) {
			err = nil
		}
		return o, err
	}
	h := blake3.New()
	incoming := incomingPrefix + b.Digest.Encoded()
	if err := s.Bucket.Put(ctx, incoming, b.Size, io.TeeReader(metered, h), true); err != nil {
		return object{}, err
	}
	o := object{sumOf(h), b.Size}
	there, err := s.Bucket.Stat(ctx, o.key())
	if errors.Is(err, oci.ErrNotFound) || err == nil && there.Size != o.size {
		err = s.move(ctx, incoming, o)
	}
	if err != nil {
		// Somebody else who brings the same may have moved it, and removed it here.
		if there, failed := s.Bucket.Stat(ctx, o.key()); failed != nil || there.Size != o.size {
			return object{}, err
		}
	}
	return o, s.Bucket.Delete(ctx, incoming)
}

// move puts what came under another key where it belongs.
func (s *Store) move(ctx context.Context, from string, o object) error {
	came, err := s.Bucket.Stat(ctx, from)
	if err != nil {
		return err
	}
	err = s.Bucket.Copy(ctx, s.Bucket, came, o.key())
	if !errors.Is(err, oci.ErrUnsupported) {
		return err
	}
	r, err := s.Bucket.Open(ctx, from, 0, -1)
	if err != nil {
		return err
	}
	defer r.Close()
	return s.put(ctx, o, r, true)
}

// learned returns which object a blob is, if that was seen before on this machine.
func learned(dir string, b v1.Descriptor) (object, bool) {
	if dir == "" {
		return object{}, false
	}
	text, err := os.ReadFile(learnedPath(dir, b.Digest))
	if err != nil {
		return object{}, false
	}
	d, err := ParseDigest(string(text))
	return object{d, b.Size}, err == nil
}

// learn remembers which object a blob is. If that cannot be, it is fetched again the next time.
func learn(dir string, b oci.Digest, o object) {
	if dir != "" {
		_ = replaceFile(learnedPath(dir, b), []byte(o.digest))
	}
}

func forget(dir string, b oci.Digest) {
	if dir != "" {
		_ = os.Remove(learnedPath(dir, b)) // if that cannot be, it is not there
	}
}

func learnedPath(dir string, b oci.Digest) string {
	return filepath.Join(dir, b.Algorithm().String()+"-"+b.Encoded())
}
