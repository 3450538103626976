package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"pier/internal/directory"
	"pier/internal/oci"
)

const (
	// What nobody gives yet, though somebody fetches it, is asked for again after firstPause, and then less and less often.
	firstPause = 20 * time.Millisecond
	maxPause   = 250 * time.Millisecond

	// maxWait is how long a transfer without a byte of its own waits for another's before it goes to the registry by itself:
	// longer than a lease can last without progress.
	maxWait = 8 * time.Second

	// lingerFor is how long a finished transfer is still told of as one: until its content is known to be held here.
	lingerFor = 5 * time.Second

	// For settle a transfer that has nothing yet waits for the neighbour it was sent to: that one begins at this moment, too,
	// and everybody turning to who is first would have to share its uplink.
	settle = 400 * time.Millisecond

	// busyWait is how long a free slot is waited for before the registry is asked instead: longer than for anything else, since
	// the content is there.
	busyWait = 5 * time.Second
)

// A relay reads content from neighbours and the registry, in whatever order gets it there.
type relay struct {
	s      *Source
	ctx    context.Context // of the transfer this reader belongs to
	cancel context.CancelFunc
	ref    oci.Reference
	key    directory.Key
	scope  directory.Scope

	at, end int64 // next byte to give, and where to stop; negative: at the end
	length  int64 // asked for
	desc    oci.Descriptor
	track   *directory.Track

	stream  io.ReadCloser  // what is read now
	from    candidate      // whose it is; none if it is the registry's
	fetches bool           // stream is the registry's
	tailed  bool           // bytes came from a neighbour
	busy    bool           // a neighbour that has the content has no slot free
	again   int64          // offset at which those given up were asked once more; negative: none yet
	teller  directory.ID   // neighbour that told the size first; 0: the registry did
	beyond  bool           // a neighbour says that the content ends before the offset
	failed  []directory.ID // did not deliver: the directory is told
	left    []directory.ID // of no use to this reader
	avoided []directory.ID // others are better
	watch   *watch

	read  int       // bytes of the registry since
	noted time.Time // its pace was noted last

	mu        sync.Mutex         // guards all below, and writing failed
	ignored   []directory.ID     // fetch the same, and give this node nothing
	lost      directory.ID       // who fetches the same and has more; 0: nobody
	interrupt context.CancelFunc // ends the stream of the registry; nil: there is none
}

// relay opens ref at a neighbour, or at the registry.
func (s *Source) relay(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	r := &relay{
		s: s, ref: ref, key: directory.KeyOf(ref), scope: directory.ScopeOf(ref),
		at: offset, end: -1, length: length, again: -1, desc: oci.Descriptor{Size: -1},
	}
	r.ctx, r.cancel = context.WithCancel(ctx)
	if offset == 0 && length < 0 {
		s.trust.forget(r.key)
	}
	if err := r.next(); err != nil {
		r.finish()
		if r.beyond && errors.Is(err, oci.ErrNotFound) {
			err = fmt.Errorf("%s: offset %d: %w", r.ref, r.at, oci.ErrRange)
		}
		return nil, r.desc, err
	}
	return r, r.desc, nil
}

// next opens the best source at the offset reached. If the registry does not give the content, neighbours that had been
// given up are asked once more.
func (r *relay) next() error {
	err := r.find()
	if err == nil || r.ctx.Err() != nil || errors.Is(err, errLeft) || r.at == r.again {
		return err
	}
	r.mu.Lock()
	r.failed = nil
	r.mu.Unlock()
	r.left, r.avoided, r.again = nil, nil, r.at
	a, lerr := r.ask(false)
	if lerr != nil {
		return errors.Join(err, lerr)
	}
	if ok, jerr := r.join(r.s.choose(r.key, a.Sources, nil, true)); ok || jerr != nil {
		return jerr
	}
	return err
}

func (r *relay) find() error {
	begun := time.Now()
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		a, err := r.ask(true)
		if err != nil {
			return err
		}
		list := r.better(a.Sources)
		if r.s.c.Upstream != nil { // else trouble is better than nothing
			list = r.s.fit(r.ctx, list)
		}
		waited := time.Since(begun)
		if len(list) > 0 && !list[0].Whole() && waited < settle {
			list = list[:1]
		}
		ok, err := r.join(list)
		if ok || err != nil {
			return err
		}
		patience := busyWait
		if r.s.c.Upstream == nil {
			patience = maxLonely
		}
		switch {
		case r.busy && waited < patience:
		case len(list) > 0 && len(r.avoided) > 0 && waited < settle: // then back to those who were left for these
		case r.busy && r.s.c.Upstream == nil:
			return fmt.Errorf("%s: whoever has it has no slot free: %w", r.ref, oci.ErrUnavailable)
		case a.Granted, a.Alone, r.length >= 0, waited > maxWait, len(list) == 0 && a.Fetcher == 0 && r.s.c.Doorless,
			len(list) == 0 && a.Fetcher != 0 && !r.askable(a.Fetcher):
			r.ignore(a.Fetcher)
			return r.fetch()
		case r.s.c.Upstream == nil && a.Fetcher == 0 && len(list) == 0:
			return fmt.Errorf("%s: %w", r.ref, errAirGapped)
		}
		select {
		case <-time.After(pause):
		case <-r.ctx.Done():
			return r.ctx.Err()
		}
	}
}

// joins reports whether this node counts among those who receive the content.
func (r *relay) joins() bool { return r.length < 0 && !r.s.c.Doorless }

// askable reports whether a neighbour can be read from here at all: what one fetches that cannot be is not waited for.
func (r *relay) askable(id directory.ID) bool {
	list := r.s.candidates(r.key, []directory.Source{{ID: id}}, r.failed)
	return len(r.s.fit(r.ctx, list)) > 0
}

// better returns the candidates that were not left, or else of those who were left for others the ones that have all of the
// content: they are better than the registry.
func (r *relay) better(sources []directory.Source) []candidate {
	useless := slices.Concat(r.failed, r.left)
	list := r.s.candidates(r.key, sources, slices.Concat(useless, r.avoided))
	if len(list) > 0 || len(r.avoided) == 0 {
		return list
	}
	r.avoided = nil
	return slices.DeleteFunc(r.s.candidates(r.key, sources, useless), func(c candidate) bool { return !c.Whole() })
}

// ask asks the directory. From then on this node counts among those who receive the content, if it is to receive it to the
// end: parts are offered to nobody.
func (r *relay) ask(fetch bool) (directory.Answer, error) {
	joins := r.joins()
	a, err := r.s.c.Directory.Lookup(r.ctx, directory.Want{
		Key: r.key, Scope: r.scope, Offset: r.at, Join: joins, Fetch: joins && fetch && r.s.c.Upstream != nil, Failed: r.failed,
	})
	if err == nil && joins && r.track == nil {
		r.track = r.s.c.Directory.Track(r.key, r.scope, r.lose)
		r.track.Report(r.at, false)
	}
	return a, err
}

// join opens one of the candidates, or several. It reports false if none of them gives anything now.
func (r *relay) join(list []candidate) (bool, error) {
	r.busy = false
	if len(list) == 0 {
		return false, nil
	}
	out := r.s.openAny(r.ctx, list, r.ref, r.at, r.rest(), r.desc.Size)
	r.fail(out.failed...)
	r.busy, r.beyond = out.busy, r.beyond || out.beyond
	if out.reply == nil {
		return false, r.ctx.Err()
	}
	reply := out.reply
	if r.desc.Size < 0 {
		r.teller = reply.ID
	}
	if err := r.describe(reply.desc); err != nil {
		reply.body.Close()
		return false, err
	}
	if r.at == r.desc.Size { // there is nothing to read: that is all its word
		r.s.trust.supplies(reply.ID, r.key)
	}
	r.from, r.fetches = reply.candidate, false
	if st := r.stripe(reply, list); st != nil {
		r.stream, r.watch = st, nil // its lanes are watched one by one
	} else {
		r.stream, r.watch = r.s.counted(reply, r.key), r.newWatch(reply)
	}
	if r.track != nil {
		r.track.Reads(r.from.ID)
	}
	r.report(r.fetches)
	return true, nil
}

// rest is the length that is still to be asked for; negative: to the end.
func (r *relay) rest() int64 {
	switch {
	case r.length < 0:
		return -1
	case r.end < 0:
		return r.length
	}
	return r.end - r.at
}

// describe notes what a source says of the content, the first time, and compares the next.
func (r *relay) describe(desc oci.Descriptor) error {
	if r.desc.Size >= 0 {
		if desc.Size >= 0 && desc.Size != r.desc.Size {
			return fmt.Errorf("%s: %d bytes, were %d: %w", r.ref, desc.Size, r.desc.Size, oci.ErrDigestMismatch)
		}
		return nil
	}
	r.desc = desc
	r.end = desc.Size
	if r.length >= 0 && desc.Size >= 0 {
		r.end = min(r.at+r.length, desc.Size)
	}
	return nil
}

// fetch opens the registry at the offset reached, or leaves that to the runtime.
func (r *relay) fetch() error {
	if r.s.c.Runtime && !r.s.c.Knows(r.ref.Registry) && r.leave() {
		return errLeft
	}
	if r.s.c.Upstream != nil {
		r.s.meter.fetched.Inc()
	}
	if r.tailed || r.desc.Size >= 0 {
		r.s.meter.tookOver.Inc()
		r.s.c.Log.Info("going on from the registry: no neighbour does", "ref", r.ref.String(), "offset", r.at)
	}
	r.report(true)
	ctx, cancel := context.WithCancel(r.ctx)
	r.mu.Lock()
	r.lost, r.interrupt = 0, cancel
	r.mu.Unlock()
	stream, desc, err := r.s.fetch(ctx, r.ref, r.at, r.rest())
	if err != nil {
		lost := ctx.Err() != nil && r.ctx.Err() == nil
		cancel()
		if lost { // to another, while the registry did not answer
			r.report(false)
			r.readmit()
			return r.find()
		}
		refused := errors.Is(err, oci.ErrUnauthorized) || errors.Is(err, oci.ErrDenied)
		if refused && r.s.c.Runtime && r.leave() {
			return errLeft
		}
		r.untrack(r.ctx.Err() == nil && !errors.Is(err, oci.ErrUnavailable))
		return err
	}
	stream = &cancelling{stream, cancel}
	if err := r.describe(desc); err != nil {
		stream.Close()
		if r.teller != 0 {
			r.s.quarantine(r.ref, false, r.teller)
		}
		return err
	}
	r.stream, r.from, r.fetches, r.watch = stream, candidate{}, true, nil
	r.read, r.noted = 0, time.Now()
	return nil
}

// Read implements io.Reader.
func (r *relay) Read(p []byte) (int, error) {
	for {
		if r.end >= 0 && r.at >= r.end {
			return 0, io.EOF
		}
		if r.end >= 0 && int64(len(p)) > r.end-r.at {
			p = p[:r.end-r.at]
		}
		begun := time.Now()
		r.watch.begin(begun)
		n, err := r.stream.Read(p)
		r.watch.end(n)
		r.pace(n)
		r.at += int64(n)
		r.tailed = r.tailed || n > 0 && !r.fetches
		if r.track != nil {
			r.track.At(r.at)
		}
		if n > 0 && r.loser() == 0 {
			return n, nil // an error comes again, or is not one: all bytes are there
		}
		if r.end < 0 && err == io.EOF {
			return n, err
		}
		if err := r.move(err); err != nil || n > 0 {
			return n, err
		}
	}
}

// move leaves a source that broke, hangs or is slow, or the registry where another node is ahead, and opens the next.
func (r *relay) move(err error) error {
	lost := r.loser()
	if r.fetches && lost == 0 {
		if err == io.EOF {
			err = fmt.Errorf("%s: %d of %d bytes: %w: %w", r.ref, r.at, r.end, io.ErrUnexpectedEOF, oci.ErrUnavailable)
		}
		return err // who reads this asks again
	}
	if r.ctx.Err() != nil {
		return r.ctx.Err()
	}
	reason := leftGone
	if r.watch != nil {
		if why := r.watch.stop(); why != "" {
			reason = why
		}
	}
	r.stream.Close()
	if r.fetches {
		r.s.c.Log.Info("another node has more: going on from there", "ref", r.ref.String(), "offset", r.at)
		r.report(false)
		r.readmit()
	} else {
		switch reason {
		case leftSlow, leftDrips:
			r.avoided = append(r.avoided, r.from.ID)
		case leftCrawls:
			r.left = append(r.left, r.from.ID)
		case leftProves:
			r.left = append(r.left, r.from.ID)
			go r.awaitProof(r.from)
		default:
			r.fail(r.from.ID)
		}
		r.s.leave(r.from.ID, reason)
		r.s.c.Log.Info("neighbour left", "reason", reason, "peer", r.from.Name, "ref", r.ref.String(), "offset", r.at, "err", err)
	}
	if reason == leftDrips {
		if r.fetch() == nil {
			return nil
		}
		r.avoided = nil // next to nothing is better than nothing
	}
	return r.next()
}

// fail notes neighbours that did not deliver.
func (r *relay) fail(ids ...directory.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range ids {
		if !slices.Contains(r.failed, id) {
			r.failed = append(r.failed, id)
		}
	}
}

// Close implements io.Closer.
func (r *relay) Close() error {
	if r.stream == nil {
		return nil
	}
	if r.watch != nil {
		r.watch.stop()
	}
	err := r.stream.Close()
	r.stream = nil
	r.finish()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
