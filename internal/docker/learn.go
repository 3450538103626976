package docker

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
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
		for _, d := range s.digests(l.DiffID) {
			if a := s.arrived[d]; a != nil && !a.settled {
				list = append(list, pair{a, l})
			}
		}
	}
	return list
}

// digests returns those that Docker saw a layer under: hints, which nobody proved.
func (s *Store) digests(diffID oci.Digest) (list []oci.Digest) {
	hints, err := s.disk.Hints(diffID)
	if err != nil {
		s.log.Debug("Docker's record of a layer cannot be read", "err", err)
	}
	for _, h := range hints {
		list = append(list, h.Digest)
	}
	return list
}

// hinted returns the digests that Docker saw any of its layers under, if there are layers kept for whom that matters.
func (s *Store) hinted(v view) map[oci.Digest]bool {
	if n, _ := s.kept.layers(); n == 0 {
		return nil
	}
	all := make(map[oci.Digest]bool)
	for diffID := range v.layers {
		for _, d := range s.digests(diffID) {
			all[d] = true
		}
	}
	return all
}

// learnFrom finds the recipe of a layer that arrived, or keeps the layer.
func (s *Store) learnFrom(ctx context.Context, p pair) error {
	file, err := reopen(p.file)
	if err != nil {
		return err
	}
	defer file.Close()
	ctx, cancel := context.WithTimeout(ctx, waitForDocker) // what it contains may be a thousand times as large
	defer cancel()
	turn, err := s.take(ctx)
	if err != nil {
		return err
	}
	defer turn.end()
	layer := turnReader{turn, file}
	how, err := gzexact.Learn(ctx, layer, p.size)
	if err == nil {
		err = s.settle(ctx, p, layer, how)
	}
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, gzexact.ErrUnknown):
		return err
	}
	kept, err := s.kept.putLayer(p.digest, p.size, io.NewSectionReader(file, 0, p.size), false)
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

// settle notes a recipe, once it is seen that what Docker has is what the layer contains. It returns [gzexact.ErrUnknown] where
// it is not.
func (s *Store) settle(ctx context.Context, p pair, file io.ReaderAt, how gzexact.Recipe) error {
	content, err := open(io.NewSectionReader(file, 0, p.size), how)
	if err != nil {
		return err
	}
	digester := p.layer.DiffID.Algorithm().Hash()
	content = io.TeeReader(&stoppable{ctx, content}, digester)
	if _, ok := how.Before(); ok {
		var index gzexact.Index
		if index, err = (gzexact.Encoder{Recipe: how}).Index(ctx, io.Discard, content); err == nil {
			err = s.putIndex(p.digest, index)
		}
	} else {
		_, err = io.Copy(io.Discard, content)
	}
	if err != nil {
		return fmt.Errorf("docker: %w", err)
	}
	if !chain.Matches(digester, p.layer.DiffID) {
		return fmt.Errorf("docker: %s is not %s compressed: %w", p.digest, p.layer.DiffID, gzexact.ErrUnknown)
	}
	s.learned[learnedExact].Inc()
	return s.know(p.digest, recipe{p.layer.DiffID, p.size, how})
}

// know notes a recipe, which was proven.
func (s *Store) know(d oci.Digest, r recipe) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.arrived[d]; a != nil {
		a.settled = true
	}
	s.altered = time.Now()
	return s.recipes.put(d, r)
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
