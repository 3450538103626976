package peer

import (
	"context"
	"errors"
	"math/bits"
	"slices"
	"time"

	"pier/internal/directory"
	"pier/internal/oci"
)

// hedge is how long one neighbour is waited for alone before the next is asked, too.
const hedge = 200 * time.Millisecond

// candidates returns the neighbours among sources that may be asked for key, best first: the order of the directory spreads
// the load, and so it stays, but that of two who have all of the content the nearer comes first, by zone and then by
// round trip, and that those who have to make it first come last, but for those in trouble.
func (s *Source) candidates(key directory.Key, sources []directory.Source, avoid []directory.ID) []candidate {
	return s.choose(key, sources, avoid, s.c.Upstream == nil)
}

// maxWrong is how many wrong copies a node meets before it gets the content from nowhere but the registry for a while: who
// waits for what is proven first (see the engine) tries a few times, not once for every copy.
const maxWrong = 2

// choose is candidates. If there is nothing else, those of several who supplied wrong content together may be asked, too.
func (s *Source) choose(key directory.Key, sources []directory.Source, avoid []directory.ID, nothingElse bool) []candidate {
	doubts := s.trust.doubts(key)
	if len(doubts) >= maxWrong && !nothingElse {
		return nil
	}
	var list []candidate
	for _, src := range sources {
		p, ok := s.c.Find(src.ID)
		if !ok || p.Door == "" || p.TLS != (s.c.TLS != nil) || slices.Contains(avoid, src.ID) {
			continue
		}
		if d, doubted := doubts[src.ID]; doubted && (!d.shared || !nothingElse) {
			continue
		}
		list = append(list, candidate{p, src})
	}
	whole := 0
	for whole < len(list) && list[whole].Whole() {
		whole++
	}
	slices.SortStableFunc(list[:whole], func(a, b candidate) int { return s.distance(a) - s.distance(b) })
	last := func(c candidate) int { return 2*number(s.trust.troubled(c.ID)) + number(c.Late()) }
	slices.SortStableFunc(list, func(a, b candidate) int { return last(a) - last(b) })
	return list
}

// fit leaves out who is in trouble: who failed once is asked whether it is there at all, who failed again is not.
func (s *Source) fit(ctx context.Context, list []candidate) []candidate {
	return slices.DeleteFunc(list, func(c candidate) bool {
		switch {
		case !s.trust.troubled(c.ID):
			return false
		case s.trust.again(c.ID):
			return true
		case s.c.Directory.Alive(ctx, c.ID):
			return false
		}
		s.trust.failed(c.ID)
		return true
	})
}

// distance is a measure of how far a neighbour is. Round trips within a factor of two are the same: what is measured on a LAN
// is mostly noise, and not everybody should turn to the same node.
func (s *Source) distance(c candidate) int {
	const farthest = 63
	d := farthest
	if rtt, ok := s.c.Directory.RoundTrip(c.ID); ok {
		d = bits.Len64(uint64(rtt / (500 * time.Microsecond)))
	}
	return d + (farthest+1)*number(c.Zone != s.c.Zone)
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// An outcome is what came of asking several neighbours.
type outcome struct {
	reply  *reply
	failed []directory.ID // did not deliver what they should have
	busy   bool           // one has no slot free
	beyond bool           // one says that the content ends before the offset
}

// openAny opens ref at the first of several neighbours that answers, asked one after the other, a hedge apart. It ends
// within the budget. What the reply reads ends with ctx.
func (s *Source) openAny(ctx context.Context, list []candidate, ref oci.Reference, offset, length, size int64) (out outcome) {
	type answer struct {
		from  int // index in list
		reply *reply
		err   error
	}
	answers := make(chan answer, len(list))
	var asked []request // of the first of list
	waiting := 0
	ask := func() {
		from := len(asked)
		if from == len(list) {
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		asked = append(asked, request{cancel, time.Now()})
		waiting++
		go func() {
			r, err := s.open(ctx, list[from], ref, offset, length)
			if err == nil {
				r.body = &cancelling{r.body, cancel}
			} else {
				cancel()
			}
			answers <- answer{from, r, err}
		}()
	}
	end := time.NewTimer(budget)
	defer end.Stop()
	next := time.NewTicker(hedge)
	defer next.Stop()
	over := false
	for ask(); waiting > 0 && out.reply == nil && !over; {
		select {
		case a := <-answers:
			waiting--
			asked[a.from].cancel = nil
			if s.judge(list[a.from], a.reply, a.err, offset, size, &out) != nil {
				ask()
				continue
			}
			out.reply = a.reply
			for i, r := range asked[:a.from] {
				if r.cancel != nil {
					s.trust.late(list[i].ID)
				}
			}
		case <-next.C:
			ask()
		case <-end.C:
			over = true
			for i, r := range asked {
				if r.cancel != nil && time.Since(r.begun) >= hedge {
					out.failed = append(out.failed, list[i].ID)
					s.leave(list[i].ID, leftHung)
				}
			}
		case <-ctx.Done():
			over = true
		}
	}
	for _, r := range asked {
		if r.cancel != nil {
			r.cancel()
		}
	}
	if waiting > 0 { // those that come too late are let go of
		go func() {
			for range waiting {
				if a := <-answers; a.reply != nil {
					a.reply.body.Close()
				}
			}
		}()
	}
	return out
}

// A request is one that openAny waits for.
type request struct {
	cancel context.CancelFunc // nil: it was answered
	begun  time.Time
}

var errUnfit = errors.New("of another size")

// judge notes what an answer, or none, says of a neighbour.
func (s *Source) judge(c candidate, r *reply, err error, offset, size int64, out *outcome) error {
	switch {
	case err == nil && size >= 0 && r.desc.Size != size:
		r.body.Close()
		s.leave(c.ID, leftWrong)
		out.failed = append(out.failed, c.ID)
		return errUnfit
	case err == nil: // that it works, its first byte shows
	case errors.Is(err, errBusy):
		out.busy = true
		s.leave(c.ID, leftBusy)
	case errors.Is(err, errMiss):
		if c.Whole() || c.Offset > offset { // else: not yet
			out.failed = append(out.failed, c.ID)
			s.leave(c.ID, leftEmpty)
		}
	case errors.Is(err, oci.ErrRange):
		out.beyond = true
		out.failed = append(out.failed, c.ID)
		s.leave(c.ID, leftWrong)
	case errors.Is(err, context.Canceled):
	default:
		s.c.Log.Debug("neighbour cannot be asked", "peer", c.Name, "err", err)
		out.failed = append(out.failed, c.ID)
		s.leave(c.ID, leftGone)
	}
	return err
}

// leave counts why a neighbour was left.
func (s *Source) leave(id directory.ID, reason string) {
	s.meter.left[reason].Inc()
	if reason == leftGone || reason == leftHung {
		s.trust.failed(id)
	}
}
