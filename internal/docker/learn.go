package docker

import (
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

// What became of a layer that passed through.
const (
	learnedExact = "exact" // it can be made again
	learnedKept  = "kept"  // it cannot, and is kept
	learnedLost  = "lost"  // nor is it kept
)

// maxFaults is how often a layer is tried to be learned from that cannot be read. Then it is kept as it came.
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
	how, err := s.recipeOf(ctx, p, file)
	if err == nil {
		s.learned[learnedExact].Inc()
		return s.know(p.digest, how)
	}
	if ctx.Err() != nil || !errors.Is(err, gzexact.ErrUnknown) && !s.lastFault(p) {
		return err
	}
	kept, err := s.kept.putLayer(p.digest, p.size, &stoppable{ctx, io.NewSectionReader(file, 0, p.size)}, false)
	if err != nil && !s.lastFault(p) {
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
	return err
}

// lastFault notes that a layer could not be learned from, or kept, and reports whether that is not tried again.
func (s *Store) lastFault(p pair) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.faults++
	return p.faults >= maxFaults
}

// recipeOf finds the recipe by which a layer is made of what Docker has, which is proven to be what the layer contains. It returns
// [gzexact.ErrUnknown] if there is none.
func (s *Store) recipeOf(ctx context.Context, p pair, file io.ReaderAt) (recipe, error) {
	ctx, cancel := context.WithTimeout(ctx, maxStudy) // what it contains may be a thousand times as large
	defer cancel()
	switch {
	case p.layer.Unsupported != "":
		return recipe{}, gzexact.ErrUnknown
	case p.digest == p.layer.DiffID:
		tar, err := s.disk.Tar(ctx, p.layer, 0)
		if err == nil {
			defer tar.Close()
			_, err = io.Copy(io.Discard, tar)
		}
		return recipe{p.layer.DiffID, p.size, gzexact.Identity()}, unknown(err)
	}
	turn, err := s.take(ctx)
	if err != nil {
		return recipe{}, err
	}
	defer turn.end()
	how, index, err := gzexact.Learn(ctx, turnReader{turn, file}, p.size, func(how gzexact.Recipe) (io.ReadCloser, error) {
		done := func() {}
		err := turn.aside(func() (err error) {
			done, err = s.backPlace(ctx, how.Memory())
			return err
		})
		var tar io.ReadCloser
		if err == nil {
			tar, err = s.disk.Tar(ctx, p.layer, 0)
		}
		if err != nil {
			done()
			return nil, err
		}
		return placed{tar, done}, nil
	})
	if err != nil {
		return recipe{}, unknown(err)
	}
	s.putIndex(ctx, p.digest, index)
	return recipe{p.layer.DiffID, p.size, how}, nil
}

// placed is content of a layer, which gives back its place when it is closed.
type placed struct {
	io.ReadCloser
	done func()
}

func (p placed) Close() error {
	defer p.done()
	return p.ReadCloser.Close()
}

// unknown returns the error of reading what Docker has of a layer. If Docker cannot give it back as it was, the layer has no recipe: so
// where a tar has a name twice, for one.
func unknown(err error) error {
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
