package chain

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"pier/internal/oci"
)

func freshWithOthers(authority oci.Source, local, others *faulty) oci.Source {
	return Fresh(FreshConfig{Content: local, Local: local, Authority: authority, Others: others, TTL: 30 * time.Second, Log: quiet})
}

func TestFreshAsksOthersOnlyIfTheRegistryCannotBeAsked(t *testing.T) {
	for _, c := range []struct {
		err   error
		asked bool
	}{
		{oci.ErrUnavailable, true}, {oci.ErrRateLimited, true}, {nil, false},
		{oci.ErrNotFound, false}, {oci.ErrUnauthorized, false}, {oci.ErrDenied, false}, {oci.ErrNotAllowed, false},
	} {
		up, local, others := newFaulty(), newFaulty(), newFaulty()
		up.Image(app, []byte("new"))
		known := others.Image(app, []byte("known"))
		up.err = c.err
		desc, err := freshWithOthers(up, local, others).Resolve(t.Context(), app)
		if c.asked && (err != nil || desc.Digest != known.Digest || !desc.Stale) {
			t.Errorf("%v: got %+v, %v; want what others know, stale", c.err, desc, err)
		}
		if !c.asked && (others.calls.Load() != 0 || !errors.Is(err, c.err)) {
			t.Errorf("%v: others asked %d times, error %v", c.err, others.calls.Load(), err)
		}
	}
}

func TestFreshPrefersWhatThisNodeKnows(t *testing.T) {
	for _, air := range []bool{false, true} {
		up, local, others := newFaulty(), newFaulty(), newFaulty()
		known := local.Image(app, []byte("known"))
		others.Image(app, []byte("other"))
		up.err = oci.ErrUnavailable
		var authority oci.Source = up
		if air {
			authority = nil
		}
		desc, err := freshWithOthers(authority, local, others).Resolve(t.Context(), app)
		if err != nil || desc.Digest != known.Digest || others.calls.Load() != 0 {
			t.Errorf("air-gapped %v: got %+v, %v, others asked %d times", air, desc, err, others.calls.Load())
		}
	}
}

func TestFreshWithoutAuthorityAsksOthers(t *testing.T) {
	local, others := newFaulty(), newFaulty()
	f := freshWithOthers(nil, local, others)
	if _, err := f.Resolve(t.Context(), app); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("nobody knows: got error %v, want ErrNotFound", err)
	}
	known := others.Image(app, []byte("known"))
	if desc, err := f.Resolve(t.Context(), app); err != nil || desc.Digest != known.Digest {
		t.Errorf("others know: got %+v, %v", desc, err)
	}
	others.err = oci.ErrUnavailable
	if _, err := f.Resolve(t.Context(), app); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("others are away: got error %v, want ErrNotFound", err)
	}
}

// A registry behind a dead link answered for others' clients only after half a minute, though other nodes knew the tag.
func TestFreshAsksOthersWhileTheRegistryIsSilent(t *testing.T) {
	silent := func(d time.Duration) func(context.Context) error {
		return func(ctx context.Context) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(d):
				return nil
			}
		}
	}
	for name, c := range map[string]struct {
		up, others time.Duration // until they answer
		known      bool          // by others
		want       time.Duration
		stale      bool
	}{
		"registry in time":                      {4 * time.Second, 0, true, 4 * time.Second, false},
		"others know":                           {time.Hour, time.Second, true, 6 * time.Second, true},
		"registry faster than others":           {6 * time.Second, 3 * time.Second, true, 6 * time.Second, false},
		"others do not know, registry answers":  {20 * time.Second, time.Second, false, 20 * time.Second, false},
		"others are silent, registry answers":   {20 * time.Second, time.Hour, true, 20 * time.Second, false},
		"others know, but only in half an hour": {time.Hour, 30 * time.Minute, true, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				up, local, others := newFaulty(), newFaulty(), newFaulty()
				up.Image(app, []byte("new"))
				if c.known {
					others.Image(app, []byte("known"))
				}
				up.resolve, others.resolve = silent(c.up), silent(c.others)
				start := time.Now()
				desc, err := freshWithOthers(up, local, others).Resolve(t.Context(), app)
				d := time.Since(start)
				if c.want == 0 {
					if err == nil || d > graceTimeout+5*time.Second {
						t.Errorf("nobody answers: got %+v after %s", desc, d)
					}
					return
				}
				if err != nil || d != c.want || desc.Stale != c.stale {
					t.Errorf("got %+v, %v after %s; want stale %v after %s", desc, err, d, c.stale, c.want)
				}
			})
		})
	}
}

// Other nodes' tags may come from anybody's credentials: a client with its own, which it can make fail, must not learn them.
func TestFreshTellsAClientWithCredentialsNothingOfOthers(t *testing.T) {
	up, local, others := newFaulty(), newFaulty(), newFaulty()
	others.Image(app, []byte("private"))
	up.err = oci.ErrUnavailable
	mallory := oci.WithAuthorization(t.Context(), "Basic Og==")
	for _, authority := range []oci.Source{up, nil} {
		if desc, err := freshWithOthers(authority, local, others).Resolve(mallory, app); err == nil || others.calls.Load() != 0 {
			t.Errorf("got %+v, %v; others asked %d times", desc, err, others.calls.Load())
		}
	}
}
