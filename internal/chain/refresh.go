package chain

import (
	"context"
	"time"

	"pier/internal/oci"
)

// A Refresher keeps tags from being asked for while a client waits, as what [Fresh] returns does.
type Refresher interface {
	// Ask returns what a tag's registry says of it now. Nothing is changed.
	Ask(ctx context.Context, ref oci.Reference) (oci.Descriptor, error)

	// Settle has a tag name what Ask returned, for everybody, and takes that for granted for so long. Wanted is when a client last asked for it, as far
	// as the caller knows.
	Settle(ctx context.Context, ref oci.Reference, desc oci.Descriptor, wanted time.Time, ttl time.Duration)

	// Wanted returns when a client last asked for a tag; zero if none did, or it was forgotten.
	Wanted(ref oci.Reference) time.Time
}

var _ Refresher = (*fresh)(nil)

// Ask implements [Refresher].
func (f *fresh) Ask(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	if f.c.Authority == nil {
		return oci.Descriptor{}, oci.ErrUnsupported
	}
	ctx, cancel := context.WithTimeout(ctx, graceTimeout)
	defer cancel()
	return f.c.Authority.Resolve(ctx, ref)
}

// Settle implements [Refresher].
func (f *fresh) Settle(ctx context.Context, ref oci.Reference, desc oci.Descriptor, wanted time.Time, ttl time.Duration) {
	f.want(ref, wanted)
	f.remember(tagKey{name: ref.String()}, desc, ttl)
	f.record(ctx, ref, desc)
}

// Wanted implements [Refresher].
func (f *fresh) Wanted(ref oci.Reference) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wanted[ref.String()]
}

// want notes that a client asked for a tag at a time.
func (f *fresh) want(ref oci.Reference, at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := ref.String()
	if _, known := f.wanted[name]; !known && len(f.wanted) >= maxAnswers {
		for victim := range f.wanted {
			delete(f.wanted, victim)
			break
		}
	}
	if at.After(f.wanted[name]) {
		f.wanted[name] = at
	}
}
