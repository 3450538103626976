package docker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"pier/internal/gzexact"
	"pier/internal/oci"
	"pier/internal/overlay2"
)

// MadeSpool returns what lends files to layers that are being made, and keeps spare ones where the quota is for more than those that
// nothing makes.
func (s *Store) MadeSpool() oci.Spool { return madeSpool{s} }

type madeSpool struct{ s *Store }

func (m madeSpool) Begin(ref oci.Reference) (oci.Partial, error) {
	inner, err := m.s.c.Files.Begin(ref)
	if err != nil {
		return nil, err
	}
	return madePartial{inner, m.s}, nil
}

type madePartial struct {
	oci.Partial
	s *Store
}

// Commit implements [oci.Partial].
func (p madePartial) Commit(ref oci.Reference, desc oci.Descriptor) error {
	if _, err := p.s.kept.putLayer(ref.Digest, desc.Size, io.NewSectionReader(p.File(), 0, desc.Size), true); err != nil {
		p.s.log.Warn("layer that was made is not kept", "digest", ref.Digest, "err", err)
	}
	return p.Partial.Commit(ref, desc)
}

// Rebuilt returns a Source of the layers that Docker has and that are made again when they are read: it is slow, and opening
// at an offset makes what comes before, too, but for layers that [Store.Seeks]. Bytes are not verified, but how they are made was
// once. What turns out to be made wrong is not made again ([oci.Blamer]).
func (s *Store) Rebuilt() oci.Source { return rebuilt{s} }

type rebuilt struct{ s *Store }

// Resolve implements [oci.Source].
func (r rebuilt) Resolve(_ context.Context, ref oci.Reference) (oci.Descriptor, error) {
	_, desc, err := r.find(ref)
	return desc, err
}

// job is a layer to be made.
type job struct {
	recipe
	layer overlay2.Layer
	index gzexact.Index // with it:
	from  gzexact.Point // where to begin; the zero Point is the start
}

// Seeks reports whether a layer can be begun near an offset, without making what comes before.
func (s *Store) Seeks(ref oci.Reference, offset int64) bool {
	job, _, err := rebuilt{s}.find(ref)
	return err == nil && s.seek(&job, ref.Digest, offset) > 0
}

// seek has a job begin as near before an offset as it can, and returns where that is.
func (s *Store) seek(j *job, d oci.Digest, offset int64) int64 {
	if j.how == gzexact.Identity() {
		j.from = gzexact.Point{Content: offset, Stream: offset}
		return offset
	}
	if _, ok := j.how.Before(); !ok || offset == 0 {
		return 0
	}
	index, ok := s.index(d, j.size)
	if !ok {
		return 0
	}
	j.index = index
	j.from, _ = start(index, offset)
	return j.from.Stream
}

func (r rebuilt) find(ref oci.Reference) (job, oci.Descriptor, error) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	how, known := r.s.recipes.get(ref.Digest)
	layer := r.s.view.layers[how.diffID]
	if !known || !r.s.makes(how) || ref.Kind != oci.Blob {
		return job{}, oci.Descriptor{}, fmt.Errorf("docker: no layer %s: %w", ref.Digest, oci.ErrNotFound)
	}
	return job{recipe: how, layer: layer}, describe(ref.Digest, how.size), nil
}

// Open implements [oci.Source].
func (r rebuilt) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	job, desc, err := r.find(ref)
	if err != nil {
		return nil, desc, err
	}
	if offset < 0 || offset > desc.Size {
		return nil, desc, fmt.Errorf("docker: offset %d of %d bytes: %w", offset, desc.Size, oci.ErrRange)
	}
	left := desc.Size - offset
	if length >= 0 {
		left = min(left, length)
	}
	begin := r.s.seek(&job, ref.Digest, offset)
	ctx, cancel := context.WithCancel(ctx)
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := r.s.rebuild(ctx, job, pw)
		switch {
		case err == nil || ctx.Err() != nil:
		case errors.Is(err, oci.ErrDigestMismatch): // the record of the layer has checksums of its files
			r.Blame(ref, source)
		default:
			r.s.rebuiltFails.Inc()
		}
		_ = pw.CloseWithError(err) // it never fails
	}()
	desc.Missing = desc.Size // nothing of it is here yet, which is why the first byte may take a while
	m := &making{s: r.s, pipe: pr, cancel: cancel, done: done, skip: offset - begin, left: left, desc: desc}
	return m, desc, nil
}

// rebuild writes a layer to w, from where j begins.
func (s *Store) rebuild(ctx context.Context, j job, w io.Writer) error {
	done, err := s.place(ctx, j.how.Memory(), j.from != gzexact.Point{})
	if err != nil {
		return err
	}
	defer done()
	offset := j.from.Content
	if before, ok := j.how.Before(); ok && offset > 0 {
		offset -= before
	}
	turn, err := s.take(ctx)
	if err != nil {
		return err
	}
	defer turn.end()
	tar, err := s.disk.Tar(ctx, j.layer, offset)
	if err != nil {
		return err
	}
	defer tar.Close()
	out := bufio.NewWriterSize(turnWriter{turn, w}, turnBytes)
	workers := 0
	if offset == 0 { // whoever reads a part may read it slowly
		var release func()
		workers, release = s.idle()
		defer release()
	}
	encoder := gzexact.Encoder{Recipe: j.how, Workers: 1 + workers}
	switch {
	case j.how == gzexact.Identity():
		_, err = io.Copy(out, tar)
	case offset > 0:
		err = encoder.EncodeFrom(ctx, out, tar, j.index, j.from)
	default:
		err = encoder.Encode(ctx, out, tar)
	}
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		return fmt.Errorf("docker: layer %s: %w", j.layer.DiffID, unavailable(err))
	}
	return nil
}

// unavailable classes an error of reading a layer that has none: the image may be gone.
func unavailable(err error) error {
	for _, class := range []error{oci.ErrNotFound, oci.ErrUnavailable, oci.ErrDigestMismatch, oci.ErrUnsupported, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, class) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", oci.ErrUnavailable, err)
}

// making reads a layer while it is made.
type making struct {
	s      *Store
	pipe   *io.PipeReader
	cancel context.CancelFunc
	done   chan struct{} // closed when nothing is made any more
	skip   int64         // bytes that nobody asked for
	left   int64         // bytes to give
	desc   oci.Descriptor
}

func (m *making) Read(p []byte) (int, error) {
	if m.skip > 0 {
		n, err := io.CopyN(io.Discard, m.pipe, m.skip)
		if m.skip -= n; err != nil {
			return 0, m.short(err)
		}
	}
	if m.left == 0 {
		return 0, io.EOF
	}
	n, err := m.pipe.Read(p[:min(int64(len(p)), m.left)])
	m.left -= int64(n)
	m.s.rebuiltBytes.Add(n)
	if err != nil && m.left > 0 {
		return n, m.short(err)
	}
	return n, nil
}

// short is the error of a layer that ended before it should have.
func (m *making) short(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("docker: layer %s came out too short: %w", m.desc.Digest, oci.ErrDigestMismatch)
	}
	return err
}

// Close ends the making.
func (m *making) Close() error {
	m.cancel()
	err := m.pipe.Close()
	<-m.done
	return err
}

// Blame implements [oci.Blamer].
func (r rebuilt) Blame(ref oci.Reference, origin string) {
	if origin != source {
		return
	}
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	how, ok := r.s.recipes.get(ref.Digest)
	if !ok {
		return
	}
	r.s.log.Error("layer was not made as it was; its files in Docker's store, or the record of them, have changed: it is not offered any more", "digest", ref.Digest)
	r.s.rebuiltFails.Inc()
	r.s.altered = time.Now()
	os.Remove(r.s.indexPath(ref.Digest))
	if err := errors.Join(r.s.recipes.drop(ref.Digest), r.s.recipes.giveUp(how.diffID)); err != nil {
		r.s.log.Warn("recipe not dropped on disk", "err", err)
	}
}

// rebuildable returns the digests of the layers that can be made.
func (s *Store) rebuildable() (list []oci.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for d, r := range s.recipes.byDigest {
		if s.makes(r) {
			list = append(list, d)
		}
	}
	return list
}

// Holdings implements [chain.Holder].
func (r rebuilt) Holdings() ([]oci.Digest, error) { return r.s.rebuildable(), nil }

// Names implements [chain.Holder].
func (rebuilt) Names() []oci.Reference { return nil }

// Changed implements [chain.Holder].
func (r rebuilt) Changed() time.Time {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	return r.s.altered
}
