package docker

import (
	"bufio"
	"context"
	"io"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"pier/internal/gzexact"
	"pier/internal/oci"
	"pier/internal/overlay2"
)

// study finds out, by trial, how the layers are made again that were in Docker before Pier came, and puts their manifests
// together, until ctx ends. It rests for as long as it works, and gives way to all else that needs a processor.
func (s *Store) study(ctx context.Context) {
	st := student{s: s, failed: make(map[oci.Digest]bool)}
	for {
		select {
		case <-s.studying:
		case <-ctx.Done():
			return
		}
		for l, ok := st.next(); ok; l, ok = st.next() {
			if err := st.layer(ctx, l); err != nil && ctx.Err() == nil {
				s.log.WarnContext(ctx, "layer that was in Docker before cannot be studied", "diff_id", l.DiffID, "err", err)
				st.failed[l.DiffID] = true
			}
			if ctx.Err() != nil {
				return
			}
			st.images(ctx)
		}
		st.images(ctx)
		if now := s.Layers(); now != st.told {
			st.told = now
			s.log.InfoContext(ctx, "layers of Docker", "all", now.All, "rebuilt", now.Rebuilt, "kept", now.Kept, "kept_bytes", now.KeptBytes, "withheld", now.Withheld)
		}
	}
}

// maxStudy bounds the time that is spent on one layer.
const maxStudy = time.Hour

// A student is the state of study.
type student struct {
	s      *Store
	found  []gzexact.Recipe    // that made a layer of this Docker, the last first: an image's layers come from one builder
	failed map[oci.Digest]bool // layers that could not be read, and images that could not be put together: said once
	told   Layers              // in the log
}

// next returns a layer of which nothing is known but the digests that Docker saw it under.
func (st *student) next() (overlay2.Layer, bool) {
	s := st.s
	s.mu.Lock()
	defer s.mu.Unlock()
	offered := s.offered()
	for diffID, l := range s.view.layers {
		known := func(d oci.Digest) bool { return s.has(d) || s.arrived[d] != nil }
		digests := s.view.digests[diffID] // none: it was made here, and never pushed
		if len(digests) > 0 && l.Unsupported == "" && !offered[diffID] && !s.recipes.tried[diffID] && !st.failed[diffID] && !slices.ContainsFunc(digests, known) {
			return l, true
		}
	}
	return overlay2.Layer{}, false
}

// layer tries what makes a layer that Docker saw under some digests.
func (st *student) layer(ctx context.Context, l overlay2.Layer) error {
	s := st.s
	ctx, cancel := context.WithTimeout(ctx, maxStudy)
	defer cancel()
	s.mu.Lock()
	wanted := s.view.digests[l.DiffID]
	s.mu.Unlock()
	if slices.Contains(wanted, l.DiffID) {
		return s.know(l.DiffID, recipe{l.DiffID, l.Size, gzexact.Identity()}) // it never was compressed
	}
	others := slices.DeleteFunc(gzexact.Candidates(), func(r gzexact.Recipe) bool { return slices.Contains(st.found, r) })
	for _, how := range slices.Concat(st.found, others) {
		done, err := s.backPlace(ctx, how.Memory())
		if err != nil {
			return err
		}
		began := time.Now()
		made, err := st.try(ctx, l, how)
		done()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return err
		}
		if slices.Contains(wanted, made.digest) {
			s.learned[learnedExact].Inc()
			st.found = append([]gzexact.Recipe{how}, slices.DeleteFunc(st.found, func(r gzexact.Recipe) bool { return r == how })...)
			s.log.InfoContext(ctx, "layer that was in Docker before can be made again", "digest", made.digest, "recipe", how.String())
			s.putIndex(ctx, made.digest, made.index)
			return s.know(made.digest, recipe{l.DiffID, made.size, how})
		}
		select {
		case <-time.After(time.Since(began)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.learned[learnedLost].Inc()
	s.log.InfoContext(ctx, "layer that was in Docker before is not offered: nothing makes it again as it was; pull its image once more through this node, and it is",
		"digest", wanted[len(wanted)-1], "diff_id", l.DiffID)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.recipes.giveUp(l.DiffID)
}

// made is a layer that was made on trial.
type made struct {
	digest oci.Digest
	size   int64
	index  gzexact.Index // if it has one
}

// try makes a layer.
func (st *student) try(ctx context.Context, l overlay2.Layer, how gzexact.Recipe) (m made, err error) {
	turn, err := st.s.take(ctx)
	if err != nil {
		return m, err
	}
	defer turn.end()
	tar, err := st.s.disk.Tar(ctx, l, 0)
	if err != nil {
		return m, err
	}
	defer tar.Close()
	var out counter
	digester := digest.SHA256.Digester()
	w := bufio.NewWriterSize(turnWriter{turn, io.MultiWriter(digester.Hash(), &out)}, turnBytes)
	if _, ok := how.Before(); ok {
		m.index, err = gzexact.Encoder{Recipe: how}.Index(ctx, w, tar)
	} else {
		err = how.Encode(ctx, w, tar)
	}
	if err == nil {
		err = w.Flush()
	}
	m.digest, m.size = digester.Digest(), int64(out)
	return m, err
}

// A counter counts bytes.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
