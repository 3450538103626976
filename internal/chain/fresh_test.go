package chain

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

func freshOf(authority, local oci.Source) oci.Source {
	return Fresh(FreshConfig{Content: local, Local: local, Authority: authority, TTL: 30 * time.Second, Log: quiet})
}

func TestFreshAsksOncePerTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up, local := newFaulty(), newFaulty()
		old := up.Image(app, []byte("old"))
		f := freshOf(up, local)
		for range 3 {
			if desc, err := f.Resolve(t.Context(), app); err != nil || desc.Digest != old.Digest || desc.Stale {
				t.Fatalf("got %+v, %v", desc, err)
			}
		}
		if n := up.calls.Load(); n != 1 {
			t.Errorf("registry asked %d times within the TTL, want once", n)
		}
		next := up.Image(app, []byte("new"))
		time.Sleep(31 * time.Second)
		if desc, err := f.Resolve(t.Context(), app); err != nil || desc.Digest != next.Digest {
			t.Errorf("after the TTL: got %+v, %v; want %s", desc, err, next.Digest)
		}
	})
}

func TestFreshFallsBackOnlyIfTheRegistryCannotBeAsked(t *testing.T) {
	for _, c := range []struct {
		err   error
		stale bool
	}{
		{oci.ErrUnavailable, true}, {oci.ErrRateLimited, true}, {io.ErrUnexpectedEOF, true},
		{oci.ErrNotFound, false}, {oci.ErrUnauthorized, false}, {oci.ErrDenied, false}, {oci.ErrNotAllowed, false},
	} {
		up, local := newFaulty(), newFaulty()
		known := local.Image(app, []byte("known"))
		up.err = c.err
		desc, err := freshOf(up, local).Resolve(t.Context(), app)
		if c.stale && (err != nil || desc.Digest != known.Digest || !desc.Stale) {
			t.Errorf("%v: got %+v, %v; want the last known digest, stale", c.err, desc, err)
		}
		if !c.stale && !errors.Is(err, c.err) {
			t.Errorf("%v: got %+v, %v; want the error", c.err, desc, err)
		}
	}
}

func TestFreshDoesNotWaitLongWhereSomethingIsKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up, local := newFaulty(), newFaulty()
		up.resolve = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		local.Image(app, []byte("known"))
		start := time.Now()
		if desc, err := freshOf(up, local).Resolve(t.Context(), app); err != nil || !desc.Stale {
			t.Errorf("got %+v, %v", desc, err)
		}
		if d := time.Since(start); d != 5*time.Second {
			t.Errorf("answered after %s, want 5s", d)
		}
	})
}

func TestFreshWithoutAuthority(t *testing.T) {
	local := newFaulty()
	local.Image(app, []byte("known"))
	if desc, err := freshOf(nil, local).Resolve(t.Context(), app); err != nil || desc.Stale {
		t.Errorf("air-gapped: got %+v, %v", desc, err)
	}
}

// A client can bring about that a registry cannot be asked for it, by credentials that nobody can use. It must not learn
// from that what others may see; what its own credentials showed before, it may see again.
func TestFreshTellsAClientOnlyWhatItsCredentialsShowed(t *testing.T) {
	up, local := newFaulty(), newFaulty()
	local.Image(app, []byte("private")) // pulled by the runtime, with its own credentials
	secret := up.Image(app, []byte("secret"))
	f := Fresh(FreshConfig{Content: local, Local: local, Authority: up, TTL: time.Nanosecond, Log: quiet})
	alice := oci.WithAuthorization(t.Context(), "Basic YWxpY2U6eA==")
	if _, err := f.Resolve(alice, app); err != nil {
		t.Fatal(err)
	}
	up.err = oci.ErrUnavailable
	mallory := oci.WithAuthorization(t.Context(), "Basic Og==")
	if desc, err := f.Resolve(mallory, app); !errors.Is(err, oci.ErrUnavailable) {
		t.Errorf("mallory: got %+v, %v, want ErrUnavailable", desc, err)
	}
	if desc, err := f.Resolve(alice, app); err != nil || desc.Digest != secret.Digest || !desc.Stale {
		t.Errorf("alice: got %+v, %v; want what she saw before, stale", desc, err)
	}
	if _, err := f.(oci.Lister).Tags(mallory, app.Registry, app.Repository); err == nil {
		t.Error("mallory was told the tags")
	}
}

// One client's credentials open nothing for another.
func TestFreshKeepsCredentialsApart(t *testing.T) {
	up, local := newFaulty(), newFaulty()
	up.Image(app, []byte("secret"))
	up.resolve = func(ctx context.Context) error {
		if oci.Authorization(ctx) == "" {
			return oci.ErrUnauthorized
		}
		return nil
	}
	f := freshOf(up, local)
	alice := oci.WithAuthorization(t.Context(), "Basic YWxpY2U6eA==")
	if _, err := f.Resolve(alice, app); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Resolve(t.Context(), app); !errors.Is(err, oci.ErrUnauthorized) {
		t.Errorf("without credentials: got error %v, want ErrUnauthorized", err)
	}
}

func TestFreshOneQuestionForMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up, local := newFaulty(), newFaulty()
		up.Image(app, []byte("x"))
		up.resolve = func(context.Context) error { time.Sleep(time.Second); return nil }
		f := freshOf(up, local)
		ctx, leave := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := f.Resolve(ctx, app); !errors.Is(err, context.Canceled) {
				t.Errorf("who left: got error %v, want context.Canceled", err)
			}
		})
		synctest.Wait()
		for range 19 {
			wg.Go(func() {
				if _, err := f.Resolve(t.Context(), app); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		leave() // the question goes on for the others
		wg.Wait()
		if n := up.calls.Load(); n != 1 {
			t.Errorf("registry asked %d times, want once", n)
		}
	})
}

func TestFreshRecordsWhatTheRegistrySaid(t *testing.T) {
	up, local := newFaulty(), newFaulty()
	desc := up.Image(app, []byte("x"))
	local.AddAs(desc.Digest, desc.MediaType, []byte("x"))
	f := Fresh(FreshConfig{Content: local, Local: local, Authority: up, Record: local, TTL: time.Minute, Log: quiet})
	if _, err := f.Resolve(t.Context(), app); err != nil {
		t.Fatal(err)
	}
	if got, err := local.Memory.Resolve(t.Context(), app); err != nil || got.Digest != desc.Digest {
		t.Errorf("recorded: got %+v, %v", got, err)
	}
}

func TestFreshBoundsWhatItRemembers(t *testing.T) {
	up, local := newFaulty(), newFaulty()
	f := Fresh(FreshConfig{Content: local, Local: local, Authority: up, TTL: time.Hour, Log: quiet}).(*fresh)
	for i := range maxAnswers + 100 {
		f.remember(tagKey{name: string(rune(i))}, oci.Descriptor{}, time.Hour)
	}
	if len(f.known) > maxAnswers {
		t.Errorf("%d answers remembered, want at most %d", len(f.known), maxAnswers)
	}
}

func TestFreshLists(t *testing.T) {
	up, local := &ocitest.Memory{}, &ocitest.Memory{}
	local.Image(app)
	f := freshOf(up, local).(oci.Lister)
	if _, err := f.Tags(t.Context(), app.Registry, app.Repository); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("the registry says it has none: got error %v, want ErrNotFound", err)
	}
	f = freshOf(nil, local).(oci.Lister)
	if tags, err := f.Tags(t.Context(), app.Registry, app.Repository); err != nil || len(tags) != 1 {
		t.Errorf("air-gapped: got %v, %v", tags, err)
	}
}

// What a tag names for a client with credentials of its own is not recorded for everybody.
func TestFreshDoesNotRecordWhatCredentialsShowed(t *testing.T) {
	up, local := newFaulty(), newFaulty()
	desc := up.Image(app, []byte("secret"))
	local.AddAs(desc.Digest, desc.MediaType, []byte("secret")) // the content is here
	f := Fresh(FreshConfig{Content: local, Local: local, Authority: up, Record: local, TTL: time.Minute, Log: quiet})
	if _, err := f.Resolve(oci.WithAuthorization(t.Context(), "Basic YWxpY2U6eA=="), app); err != nil {
		t.Fatal(err)
	}
	if got, err := local.Memory.Resolve(t.Context(), app); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("recorded: got %+v, %v", got, err)
	}
}

// A node that asks on behalf of its own clients must not wait for a question that waits for that node.
func TestFreshAnotherNodeDoesNotWaitForAQuestionThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up, local := newFaulty(), newFaulty()
		up.Image(app, []byte("x"))
		up.resolve = func(ctx context.Context) error {
			if oci.Via(ctx) == "" {
				time.Sleep(10 * time.Second) // asks the other node, which waits for us
			}
			return nil
		}
		f := freshOf(up, local)
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = f.Resolve(t.Context(), app)
		}()
		synctest.Wait()
		start := time.Now()
		if _, err := f.Resolve(oci.WithVia(t.Context(), "1.1 pier-2"), app); err != nil || time.Since(start) > time.Second {
			t.Errorf("the other node was answered after %s, error %v", time.Since(start), err)
		}
		<-done
	})
}

// A tag that was pushed through this node names what was pushed, at once, and for everybody.
func TestFreshForgets(t *testing.T) {
	up, local := newFaulty(), newFaulty()
	up.Image(app, []byte("old"))
	f := freshOf(up, local)
	alice := oci.WithAuthorization(t.Context(), "Basic YTpi")
	for _, ctx := range []context.Context{t.Context(), alice} {
		if _, err := f.Resolve(ctx, app); err != nil {
			t.Fatal(err)
		}
	}
	next := up.Image(app, []byte("new"))
	f.(Forgetter).Forget(app)
	for _, ctx := range []context.Context{t.Context(), alice} {
		if desc, err := f.Resolve(ctx, app); err != nil || desc.Digest != next.Digest {
			t.Errorf("got %+v, %v; want %s", desc, err, next.Digest)
		}
	}
}
