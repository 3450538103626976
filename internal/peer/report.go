package peer

import (
	"context"
	"slices"
	"time"

	"pier/internal/directory"
)

// lose notes that another node fetches the same and has more of it. It is called by the directory. The stream of the registry
// may be one that hangs, so it is ended at once; unless the other cannot be read.
func (r *relay) lose(fetcher directory.ID) {
	readable := len(r.s.candidates(r.key, []directory.Source{{ID: fetcher}}, nil)) > 0
	r.mu.Lock()
	defer r.mu.Unlock()
	if !readable || slices.Contains(r.failed, fetcher) || slices.Contains(r.ignored, fetcher) || r.interrupt == nil {
		return
	}
	r.lost = fetcher
	r.interrupt()
}

// ignore notes that who fetches the same gives this node nothing: whatever it has, there is no going on from there.
func (r *relay) ignore(fetcher directory.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if fetcher != 0 && !slices.Contains(r.ignored, fetcher) {
		r.ignored = append(r.ignored, fetcher)
	}
}

// readmit has who has more asked again, though it had been left.
func (r *relay) readmit() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.left = slices.DeleteFunc(r.left, func(id directory.ID) bool { return id == r.lost })
}

// awaitProof asks a neighbour now and then whether it has proven what it has, while this node fetches that from the
// registry, and goes on from there once it has.
func (r *relay) awaitProof(c candidate) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-r.ctx.Done():
			return
		}
		ctx, cancel := context.WithTimeout(r.ctx, budget)
		proven := r.s.proven(ctx, c, r.ref)
		cancel()
		if proven {
			r.lose(c.ID)
			return
		}
	}
}

// loser returns who has more of what this node fetches, if that is somebody who can be read.
func (r *relay) loser() directory.ID {
	if !r.fetches {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lost
}

// report tells the directory how far the transfer is, and whether this node fetches it.
func (r *relay) report(fetches bool) {
	if r.track == nil {
		return
	}
	r.track.Report(r.at, fetches)
}

// finish ends what the relay does beside reading.
func (r *relay) finish() {
	r.cancel()
	r.untrack(false)
}

// untrack ends the reporting. Refused says that the registry did not supply the content.
func (r *relay) untrack(refused bool) {
	if r.track == nil {
		return
	}
	track := r.track
	r.track = nil
	if refused || r.end < 0 || r.at < r.end {
		track.End(refused)
		return
	}
	track.Report(r.at, false)
	time.AfterFunc(lingerFor, func() { track.End(false) })
}

// pace notes how fast the registry is.
func (r *relay) pace(n int) {
	if !r.fetches {
		return
	}
	r.read += n
	if took := time.Since(r.noted); took >= paceOver {
		r.s.trust.fetched(int(float64(r.read) / took.Seconds()))
		r.read, r.noted = 0, time.Now()
	}
}
