// Package transfer brings content that this node lacks: one download per content and node, however many ask for it.
//
// Everybody who asks for content in flight reads the one file it is spooled into, from the first byte and as it grows. The
// download resumes where it broke, also after the process died, and is proven against its digest before the last bytes
// are given to anybody or anything is kept. Where content comes from is left to a Source, where it stays to an [oci.Spool].
package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"pier/internal/chain"
	"pier/internal/oci"
)

// A Store is a Spool that also serves what it kept, and proves what it serves.
type Store interface {
	oci.Spool
	oci.Source
}

// Config configures an [Engine]. Source and Log are needed.
type Config struct {
	Source oci.Source // where missing content comes from
	Store  Store      // keeps what arrives; nil: nothing is kept, and transfers end when nobody reads them any more
	Spool  oci.Spool  // without a Store: lends the files, and is shown what was proven; nil: unlinked files in Dir
	Max    int64      // bytes of the largest content that is spooled, 0: any; larger goes through unshared
	Dir    string     // for the unlinked files of transfers without a Store; the system's temporary directory if empty

	// Linger, for a Source that has to make what it gives, is how long a transfer without a Store goes on that nobody reads; and
	// there is one then for who asks for a part, too, which is otherwise left to the Source.
	Linger time.Duration

	Timeout time.Duration // a transfer without progress for so long fails; 0: 60 s

	Log     *slog.Logger
	Metrics *metrics.Set // nil: a set of its own
}

// An Engine is a Source of content that has to be fetched first.
type Engine struct {
	c     Config
	spool oci.Spool

	ctx  context.Context // ends all transfers
	stop context.CancelFunc
	wg   sync.WaitGroup // transfers running

	started, joined, failed, mismatched, diskFaults, resumedBytes *metrics.Counter

	mu        sync.Mutex // guards flights, and origins, next and readers of every flight
	flights   map[key]*flight
	diskFault bool // the disk fault that holds was logged
}

// maxFlights is how many downloads there are at once, beside as many that are ending. Those beyond go through unshared, so that strangers who ask for a
// thousand things and leave cost neither memory nor others their pulls.
const maxFlights = 128

// A key names a flight. The registry is part of it: what one registry supplies, or holds up, is no matter to those who
// ask another.
type key struct {
	registry string
	digest   oci.Digest
	kind     oci.Kind
}

func keyOf(ref oci.Reference) key { return key{ref.Registry, ref.Digest, ref.Kind} }

// New returns an Engine. Close ends it.
func New(c Config) *Engine {
	if c.Timeout == 0 {
		c.Timeout = time.Minute
	}
	if c.Metrics == nil {
		c.Metrics = metrics.NewSet()
	}
	e := &Engine{
		c: c, spool: c.Store, flights: make(map[key]*flight),
		started:      c.Metrics.NewCounter("pier_transfers_total"),
		joined:       c.Metrics.NewCounter("pier_transfers_joined_total"),
		failed:       c.Metrics.NewCounter("pier_transfers_failed_total"),
		mismatched:   c.Metrics.NewCounter("pier_digest_mismatches_total"),
		diskFaults:   c.Metrics.NewCounter("pier_disk_faults_total"),
		resumedBytes: c.Metrics.NewCounter("pier_transfers_resumed_bytes_total"),
	}
	c.Metrics.NewGauge("pier_transfers_in_flight", func() float64 {
		e.mu.Lock()
		defer e.mu.Unlock()
		return float64(len(e.flights))
	})
	if c.Store == nil {
		e.spool = Temporary(c.Dir)
	}
	if c.Store == nil && c.Spool != nil {
		e.spool = c.Spool
	}
	e.ctx, e.stop = context.WithCancel(context.Background())
	return e
}

// Close ends all transfers, leaving what they have to the Store, and waits for them, at most until ctx ends.
func (e *Engine) Close(ctx context.Context) error {
	e.mu.Lock()
	e.stop() // under the lock, so that no flight begins after it
	e.mu.Unlock()
	done := make(chan struct{})
	go func() { e.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("transfers still running: %w", ctx.Err())
	}
}

// Resolve implements [oci.Source].
func (e *Engine) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	e.mu.Lock()
	f := e.flights[keyOf(ref)]
	e.mu.Unlock()
	if f != nil {
		if desc, err := f.describe(); err == nil {
			return desc, nil
		}
	}
	return e.c.Source.Resolve(ctx, ref)
}

// Open implements [oci.Source]. Content comes out proven, but for a part of content that nobody fetches whole: that goes
// through as the Source gives it.
func (e *Engine) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	f, rc, desc, err := e.board(ctx, ref, offset, length)
	if f == nil {
		return rc, desc, err
	}
	return e.reader(ctx, f, ref, offset, length)
}

// board finds or starts the flight of ref and counts the caller among its readers, unless the content is there by now, or
// is better read straight from the Source.
func (e *Engine) board(ctx context.Context, ref oci.Reference, offset, length int64) (*flight, io.ReadCloser, oci.Descriptor, error) {
	e.mu.Lock()
	f := e.flights[keyOf(ref)]
	// Another node that asks must not wait for a flight that may be waiting for that node.
	if f != nil && (oci.Via(ctx) == "" || f.isKnown()) && f.addOrigin(ctx, ref) {
		f.readers++
		e.mu.Unlock()
		e.joined.Inc()
		return f, nil, oci.Descriptor{}, nil
	}
	if f == nil && e.c.Store != nil {
		// Asked under the lock: a flight leaves the table only after its content is in the Store.
		if _, err := e.c.Store.Resolve(ctx, ref); err == nil {
			rc, desc, err := e.c.Store.Open(ctx, ref, offset, length)
			if err == nil || errors.Is(err, oci.ErrRange) {
				e.mu.Unlock()
				return nil, rc, desc, err
			} // else it is there and cannot be read: what is fetched now replaces it
		}
	}
	if f != nil || (len(e.flights) >= maxFlights && !e.makeRoom()) || (offset > 0 && e.c.Store == nil && e.c.Linger == 0) || e.ctx.Err() != nil {
		e.mu.Unlock()
		rc, desc, err := e.direct(ctx, ref, offset, length, nil)
		return nil, rc, desc, err
	}
	f = newFlight(e, ref)
	f.readers = 1
	f.addOrigin(ctx, ref)
	e.flights[f.key] = f
	e.wg.Add(1)
	e.mu.Unlock()
	e.started.Inc()
	go f.run()
	return f, nil, oci.Descriptor{}, nil
}

// makeRoom ends a flight that nobody reads: those who wait go before a cache that would be fuller. What it has is left for
// the next time. The caller holds mu.
func (e *Engine) makeRoom() bool {
	if len(e.flights) >= 2*maxFlights {
		return false // too many are still ending
	}
	for _, f := range e.flights {
		if f.readers == 0 && f.ctx.Err() == nil {
			f.cancel()
			return true
		}
	}
	return false
}

// leave counts a reader out. What nobody reads ends, if there is no Store to go on for, or no telling how long it is.
func (e *Engine) leave(f *flight) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f.readers--
	if f.readers > 0 || e.c.Store != nil && f.sized() {
		return
	}
	if e.c.Linger == 0 || !f.sized() {
		e.abandon(f)
		return
	}
	f.empty++
	visit := f.empty
	time.AfterFunc(e.c.Linger, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if f.readers == 0 && f.empty == visit {
			e.abandon(f)
		}
	})
}

// abandon ends a flight that nobody reads. The caller holds mu.
func (e *Engine) abandon(f *flight) {
	f.cancel()
	if e.c.Store == nil {
		e.land(f) // nothing of it is shared with the next flight
	}
}

// land takes f out of the table. The caller holds mu.
func (e *Engine) land(f *flight) {
	if e.flights[f.key] == f {
		delete(e.flights, f.key)
	}
}

// direct opens the Source without a flight: what is left when the disk fails, or there are too many flights. Content read
// to the end is proven, from the start, or from p on, which is the digest's state at offset.
func (e *Engine) direct(ctx context.Context, ref oci.Reference, offset, length int64, p *proof) (io.ReadCloser, oci.Descriptor, error) {
	rc, desc, err := e.c.Source.Open(ctx, ref, offset, length)
	if err != nil {
		return nil, desc, err
	}
	desc.Digest = ref.Digest
	if length >= 0 && offset+length < desc.Size {
		return rc, desc, nil // a part
	}
	if offset == 0 {
		p = &proof{digest: ref.Digest}
	}
	if p == nil || p.at != offset {
		return rc, desc, nil // a part, too
	}
	if desc.Size < 0 {
		rc.Close()
		return nil, desc, fmt.Errorf("%s: the registry does not tell its size, and it cannot be spooled: %w", ref, oci.ErrUnavailable)
	}
	h, err := p.hash()
	if err != nil {
		rc.Close()
		return nil, desc, err
	}
	return &blaming{chain.VerifyFrom(rc, desc, h, offset), e, ref, desc.Source}, desc, nil
}

// blaming is a reader of proven content that tells the Source if it was wrong.
type blaming struct {
	io.ReadCloser
	e    *Engine
	ref  oci.Reference
	from string // "" when it is blamed
}

func (b *blaming) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, oci.ErrDigestMismatch) {
		b.e.blame(b.ref, b.from)
		b.from = ""
	}
	return n, err
}

// blame tells the Source that what it supplied was wrong.
func (e *Engine) blame(ref oci.Reference, from string) {
	if from == "" {
		return
	}
	e.mismatched.Inc()
	e.c.Log.Error("source supplied wrong content; nothing of it is kept", "ref", ref.String(), "source", from)
	if b, ok := e.c.Source.(oci.Blamer); ok {
		b.Blame(ref, from)
	}
}

// diskFailed counts a disk fault and logs it, once until the disk works again.
func (e *Engine) diskFailed(dgst oci.Digest, err error) {
	e.diskFaults.Inc()
	e.mu.Lock()
	again := e.diskFault
	e.diskFault = true
	e.mu.Unlock()
	if !again {
		e.c.Log.Error("the disk does not take what arrives: clients get their content, nothing of it is kept; free some space or mend the disk",
			"digest", dgst, "err", err)
	}
}

func (e *Engine) diskWorks() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.diskFault = false
}

// InFlight returns a Source of the content in flight alone. It never starts a transfer.
func (e *Engine) InFlight() oci.Source { return inFlight{e} }

type inFlight struct{ e *Engine }

// knownFor is how long a reader from outside waits for a flight that has just begun to know what it carries. It is there because
// everybody who follows a flight asks at the moment it begins; it ends because two nodes may wait for each other.
const knownFor = 500 * time.Millisecond

// find returns the flight of ref: from its registry, since what another supplies is not for those who ask this one. A reference
// without a registry is for whichever has come farthest. Of flights that do not know yet what they carry, any will do.
// The caller holds mu.
func (i inFlight) find(ref oci.Reference) (best *flight, desc oci.Descriptor, known bool) {
	for k, f := range i.e.flights {
		if k.digest != ref.Digest || k.kind != ref.Kind || ref.Registry != "" && ref.Registry != k.registry {
			continue
		}
		d, err := f.describe()
		if known && (err != nil || d.Missing >= desc.Missing) {
			continue
		}
		best, desc, known = f, d, err == nil
	}
	return best, desc, known
}

func (i inFlight) Resolve(_ context.Context, ref oci.Reference) (oci.Descriptor, error) {
	i.e.mu.Lock()
	defer i.e.mu.Unlock()
	_, desc, known := i.find(ref)
	if !known {
		return oci.Descriptor{}, fmt.Errorf("%s is not in flight: %w", ref.Digest, oci.ErrNotFound)
	}
	return desc, nil
}

func (i inFlight) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	i.e.mu.Lock()
	f, _, known := i.find(ref)
	if f != nil {
		f.readers++
	}
	i.e.mu.Unlock()
	if f != nil && (known || f.becomesKnown(ctx)) {
		return i.e.reader(ctx, f, oci.Reference{}, offset, length)
	}
	if f != nil {
		i.e.leave(f)
	}
	return nil, oci.Descriptor{}, fmt.Errorf("%s is not in flight: %w", ref.Digest, oci.ErrNotFound)
}
