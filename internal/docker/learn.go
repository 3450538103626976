package docker

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"pier/internal/chain"
	"pier/internal/gzexact"
	"pier/internal/oci"
	"pier/internal/overlay2"
)

// What became of a layer that passed through.
const (
	learnedExact = "exact" // it can be made again
	learnedKept  = "kept"  // it cannot, and is kept
	learnedLost  = "lost"  // nor is it kept
)

// maxFaults is how often a layer is tried to be learned from that cannot be read.
const maxFaults = 3

// learn finds out how layers that arrived are made again, once Docker has unpacked them, until ctx ends.
func (s *Store) learn(ctx context.Context) {
	for {
		select {
		case <-s.read:
		case <-ctx.Done():
			return
		}
		for _, p := range s.pairs() {
			if err := s.learnFrom(ctx, p); err != nil && ctx.Err() == nil {
				s.log.WarnContext(ctx, "layer not learned; it is not offered once Docker alone has it", "digest", p.digest, "err", err)
				s.mu.Lock()
				p.faults++
				p.settled = p.settled || p.faults >= maxFaults
				s.mu.Unlock()
			}
		}
		notify(s.studying)
	}
}

// A pair is a layer that arrived, and what Docker unpacked it into.
type pair struct {
	*arrival
	layer overlay2.Layer
}

// pairs returns the layers that arrived and that Docker has unpacked since: it notes the digest that it pulled them under.
func (s *Store) pairs() (list []pair) {
	s.mu.Lock()
	defer s.mu.Unlock()
	waiting := false
	for d, a := range s.arrived {
		if a.settled = a.settled || s.has(d); !a.settled {
			waiting = true
		}
	}
	if !waiting {
		return nil
	}
	for _, l := range s.view.layers {
		for _, d := range s.view.digests[l.DiffID] {
			if a := s.arrived[d]; a != nil && !a.settled {
				list = append(list, pair{a, l})
			}
		}
	}
	return list
}

// learnFrom finds the recipe of a layer that arrived, or keeps the layer.
func (s *Store) learnFrom(ctx context.Context, p pair) error {
	file, err := s.reopenArrival(p.arrival)
	if err != nil {
		return err
	}
	if file == nil {
		return nil // it was let go of
	}
	defer file.Close()
	ctx, cancel := context.WithTimeout(ctx, waitForDocker) // what it contains may be a thousand times as large
	defer cancel()
	how, err := s.recipeOf(ctx, p, file)
	switch {
	case err == nil:
		s.learned[learnedExact].Inc()
		return s.know(p.digest, how)
	case !errors.Is(err, gzexact.ErrUnknown):
		return err
	}
	kept, err := s.kept.putLayer(p.digest, p.size, &stoppable{ctx, io.NewSectionReader(file, 0, p.size)}, false)
	if err != nil {
		return err
	}
	outcome := learnedLost
	if kept {
		outcome = learnedKept
	}
	s.learned[outcome].Inc()
	s.log.InfoContext(ctx, "layer that nothing makes again", "digest", p.digest, "bytes", p.size, "kept", kept)
	s.mu.Lock()
	defer s.mu.Unlock()
	p.settled = true
	return nil
}

// recipeOf finds the recipe of a layer, and sees that what Docker has is what the layer contains. It returns [gzexact.ErrUnknown]
// if nothing makes the layer, or makes it from that.
func (s *Store) recipeOf(ctx context.Context, p pair, file io.ReaderAt) (recipe, error) {
	switch {
	case p.layer.Unsupported != "":
		return recipe{}, gzexact.ErrUnknown
	case p.digest == p.layer.DiffID:
		return recipe{p.layer.DiffID, p.size, gzexact.Identity()}, s.hasContent(ctx, p.layer)
	}
	turn, err := s.take(ctx)
	if err != nil {
		return recipe{}, err
	}
	defer turn.end()
	layer := turnReader{turn, file}
	how, err := gzexact.Learn(ctx, layer, p.size)
	if err != nil {
		return recipe{}, err
	}
	content, err := open(io.NewSectionReader(layer, 0, p.size), how)
	if err != nil {
		return recipe{}, err
	}
	digester := p.layer.DiffID.Algorithm().Hash()
	content = io.TeeReader(&stoppable{ctx, content}, digester)
	var index gzexact.Index
	if _, ok := how.Before(); ok {
		index, err = gzexact.Encoder{Recipe: how}.Index(ctx, io.Discard, content)
	} else {
		_, err = io.Copy(io.Discard, content)
	}
	if err != nil {
		return recipe{}, fmt.Errorf("docker: %w", err)
	}
	if !chain.Matches(digester, p.layer.DiffID) {
		return recipe{}, fmt.Errorf("docker: %s is not %s compressed: %w", p.digest, p.layer.DiffID, gzexact.ErrUnknown)
	}
	if err := s.hasContent(ctx, p.layer); err != nil {
		return recipe{}, err
	}
	s.putIndex(ctx, p.digest, index)
	return recipe{p.layer.DiffID, p.size, how}, nil
}

// hasContent reads all of a layer's content once: Docker may be unable to give it back, if a tar has a name twice, for one. Then
// the error is [gzexact.ErrUnknown].
func (s *Store) hasContent(ctx context.Context, l overlay2.Layer) error {
	tar, err := s.disk.Tar(ctx, l, 0)
	if err == nil {
		defer tar.Close()
		_, err = io.Copy(io.Discard, tar)
	}
	if errors.Is(err, oci.ErrDigestMismatch) || errors.Is(err, oci.ErrUnsupported) {
		return fmt.Errorf("%w: %w", gzexact.ErrUnknown, err)
	}
	return err
}

// know notes a recipe, which was proven.
func (s *Store) know(d oci.Digest, r recipe) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.arrived[d]; a != nil {
		a.settled = true
	}
	s.altered = time.Now()
	if s.recipes.full() {
		s.forgetRecipes()
	}
	return s.recipes.put(d, r)
}

// forgetRecipes makes room by forgetting how layers are made that Docker does not have. The caller holds mu.
func (s *Store) forgetRecipes() {
	for d, r := range s.recipes.byDigest {
		if _, here := s.view.layers[r.diffID]; !here {
			delete(s.recipes.byDigest, d)
			os.Remove(s.indexPath(d))
		}
	}
	for diffID := range s.recipes.tried {
		if _, here := s.view.layers[diffID]; !here {
			delete(s.recipes.tried, diffID)
		}
	}
	if err := s.recipes.renew(); err != nil {
		s.log.Warn("recipes are not forgotten on disk", "err", err)
	}
}

// open returns what a layer contains.
func open(r io.Reader, how gzexact.Recipe) (io.Reader, error) {
	if how == gzexact.Identity() {
		return r, nil
	}
	return gzip.NewReader(r)
}

// stoppable is a reader that ends with its context.
type stoppable struct {
	ctx context.Context
	r   io.Reader
}

func (s *stoppable) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.r.Read(p)
}
