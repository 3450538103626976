package peer

import (
	"context"
	"fmt"
	"time"

	"pier/internal/directory"
	"pier/internal/oci"
)

const (
	lookAtRuntime = 200 * time.Millisecond
	// awaitRuntime is how long the runtime may write nothing of content that is left to it, before others are told not to wait.
	awaitRuntime = 20 * time.Second
	maxAwaited   = 64 // contents left to the runtime at once
)

// errLeft is the answer to a client that goes to the registry itself.
var errLeft = fmt.Errorf("left to the runtime: %w", oci.ErrNotFound)

// A flightKey is a transfer of content from one registry.
type flightKey struct {
	key   directory.Key
	scope directory.Scope
}

func (r *relay) flightKey() flightKey { return flightKey{r.key, r.scope} }

// leave reports whether the content is left to the runtime to fetch, with its own credentials: its client asks the registry
// itself when it hears that this node does not have it. Nothing has been given to it yet. What the runtime then writes is
// reported as the progress of this node's lease, and read by others at its peer door.
func (r *relay) leave() bool {
	s := r.s
	if !oci.HasFallback(r.ctx) || r.desc.Size >= 0 || r.track == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return false
	}
	_, followed := s.awaiting[r.flightKey()]
	if !followed && len(s.awaiting) >= maxAwaited {
		return true // the end of this transfer tells others not to wait
	}
	// A runtime may ask again: then its new transfer is the one that is reported.
	s.awaiting[r.flightKey()] = r.track
	r.track.Report(r.at, true)
	r.track = nil
	if !followed {
		s.meter.fetched.Inc()
		s.wg.Go(func() { s.follow(r.flightKey(), r.ref) })
	}
	return true
}

// follow reports how far the runtime is with ref, until it has all of it, or gets no further.
func (s *Source) follow(key flightKey, ref oci.Reference) {
	ctx, cancel := context.WithTimeout(s.ctx, maxRuntime)
	defer cancel()
	track := func() *directory.Track {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.awaiting[key]
	}
	arrived := s.arrive(ctx, ref, func(offset int64, fetches bool) { track().Report(offset, fetches) })
	s.mu.Lock()
	last := s.awaiting[key]
	delete(s.awaiting, key)
	s.mu.Unlock()
	if arrived {
		time.AfterFunc(lingerFor, func() { last.End(false) })
		return
	}
	last.End(true)
}

// maxRuntime bounds how long one content of the runtime is followed.
const maxRuntime = 12 * time.Hour

// arrive reports how far the runtime is until it has all of the content, or gets no further.
func (s *Source) arrive(ctx context.Context, ref oci.Reference, report func(offset int64, fetches bool)) (arrived bool) {
	tick := time.NewTicker(lookAtRuntime)
	defer tick.Stop()
	var reached int64
	for last := time.Now(); time.Since(last) < awaitRuntime; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
		desc, err := s.c.Local.Resolve(ctx, ref)
		if err != nil {
			continue
		}
		if has := desc.Size - desc.Missing; has > reached {
			reached, last = has, time.Now()
		}
		report(reached, desc.Missing > 0)
		if desc.Missing == 0 {
			return true
		}
	}
	return false
}
