package chain

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

var quiet = slog.New(slog.DiscardHandler)

// faulty is a Source that a test can break.
type faulty struct {
	*ocitest.Memory
	err     error                             // of every call
	wrap    func(io.ReadCloser) io.ReadCloser // readers pass through it
	calls   atomic.Int64
	blamed  atomic.Int64
	resolve func(ctx context.Context) error
}

func (f *faulty) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	f.calls.Add(1)
	if f.resolve != nil {
		if err := f.resolve(ctx); err != nil {
			return oci.Descriptor{}, err
		}
	}
	if f.err != nil {
		return oci.Descriptor{}, f.err
	}
	return f.Memory.Resolve(ctx, ref)
}

func (f *faulty) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	f.calls.Add(1)
	if f.err != nil {
		return nil, oci.Descriptor{}, f.err
	}
	rc, desc, err := f.Memory.Open(ctx, ref, offset, length)
	if err == nil && f.wrap != nil {
		rc = f.wrap(rc)
	}
	return rc, desc, err
}

func (f *faulty) Tags(ctx context.Context, registry, repository string) ([]string, error) {
	if f.err != nil {
		return nil, f.err
	}
	return f.Memory.Tags(ctx, registry, repository)
}

func (f *faulty) Blame(oci.Reference, string) { f.blamed.Add(1) }

func newFaulty() *faulty { return &faulty{Memory: &ocitest.Memory{}} }

var app = oci.Reference{Registry: "registry.test", Repository: "app", Tag: "v1"}

func blobOf(m *ocitest.Memory, b []byte) oci.Reference {
	ref := app
	ref.Kind, ref.Tag, ref.Digest = oci.Blob, "", m.Add("application/octet-stream", b).Digest
	return ref
}

func TestConformance(t *testing.T) {
	for name, wrap := range map[string]func(oci.Source) oci.Source{
		"first":    func(s oci.Source) oci.Source { return First(quiet, &ocitest.Memory{}, s) },
		"once":     func(s oci.Source) oci.Source { return Once(quiet, "memory", s) },
		"resume":   func(s oci.Source) oci.Source { return Resume(quiet, s, First(quiet)) },
		"verified": Verified,
		"fresh": func(s oci.Source) oci.Source {
			return Fresh(FreshConfig{Content: s, Local: &ocitest.Memory{}, Authority: s, TTL: time.Minute, Log: quiet})
		},
	} {
		t.Run(name, func(t *testing.T) {
			ocitest.TestSource(t, func(_ *testing.T, content *ocitest.Memory, _ oci.Reference) oci.Source { return wrap(content) })
		})
	}
}

func TestFirst(t *testing.T) {
	b := ocitest.Bytes(1, 100)
	sick, miss, has := newFaulty(), newFaulty(), newFaulty()
	sick.err = fs.ErrPermission
	ref := blobOf(has.Memory, b)
	src := First(quiet, sick, miss, has)
	if got, _, err := ocitest.ReadAll(t.Context(), src, ref); err != nil || !bytes.Equal(got, b) {
		t.Errorf("behind a fault and a miss: got %d bytes, error %v", len(got), err)
	}
	if _, err := src.Resolve(t.Context(), ref); err != nil {
		t.Errorf("Resolve behind a fault and a miss: %v", err)
	}

	last := newFaulty()
	last.err = oci.ErrRateLimited
	if _, _, err := First(quiet, sick, last).Open(t.Context(), ref, 0, -1); !errors.Is(err, oci.ErrRateLimited) {
		t.Errorf("got error %v, want that of the last source", err)
	}
	if _, _, err := First(quiet).Open(t.Context(), ref, 0, -1); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("without sources: got error %v, want ErrNotFound", err)
	}
	has.calls.Store(0)
	if _, _, err := First(quiet, has, last).Open(t.Context(), ref, 101, -1); !errors.Is(err, oci.ErrRange) {
		t.Errorf("past the end of the first source's content: got error %v, want ErrRange", err)
	}
}

// A client that left is no fault: the next source must not be troubled for it.
func TestFirstStopsForAClientThatLeft(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	one, two := newFaulty(), newFaulty()
	one.err = ctx.Err()
	if _, _, err := First(quiet, one, two).Open(ctx, app.WithDigest(ocitest.Absent), 0, -1); !errors.Is(err, context.Canceled) || two.calls.Load() != 0 {
		t.Errorf("got error %v, %d calls of the next source", err, two.calls.Load())
	}
}

func TestFirstJoinsLists(t *testing.T) {
	var one, two ocitest.Memory
	one.Image(app)
	other := app
	other.Tag = "V1"
	two.Image(app)
	two.Image(other)
	tags, err := First(quiet, &one, &two).Tags(t.Context(), app.Registry, app.Repository)
	if err != nil || !slices.Equal(tags, []string{"V1", "v1"}) {
		t.Errorf("got %v, %v", tags, err)
	}
	if _, err := First(quiet, &one).Tags(t.Context(), "registry.test", "none"); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("unknown repository: got error %v, want ErrNotFound", err)
	}
}

func TestVerify(t *testing.T) {
	for _, size := range []int{0, 1, HoldBack - 1, HoldBack, HoldBack + 1, 3*HoldBack + 5} {
		right := ocitest.Bytes(1, size)
		desc := oci.Descriptor{Digest: ocitest.Digest(right), Size: int64(size)}
		flipped := bytes.Clone(right)
		cases := map[string][]byte{"long": append(bytes.Clone(right), 0)}
		if size > 0 {
			flipped[0] ^= 1
			cases["flipped"], cases["short"] = flipped, right[:size-1]
		}
		got, err := io.ReadAll(Verify(io.NopCloser(iotest.HalfReader(bytes.NewReader(right))), desc))
		if err != nil || !bytes.Equal(got, right) {
			t.Errorf("%d right bytes: got %d, error %v", size, len(got), err)
		}
		for name, wrong := range cases {
			got, err := io.ReadAll(Verify(io.NopCloser(bytes.NewReader(wrong)), desc))
			if !errors.Is(err, oci.ErrDigestMismatch) {
				t.Errorf("%d bytes, %s: got error %v, want ErrDigestMismatch", size, name, err)
			}
			if held := min(size, HoldBack); len(got) > size-held {
				t.Errorf("%d bytes, %s: %d bytes got out before the proof", size, name, len(got))
			}
		}
	}
}

func TestVerifyPassesFaultsOn(t *testing.T) {
	for _, at := range []int64{0, 10, HoldBack + 100} {
		b := ocitest.Bytes(1, 2*HoldBack)
		r := io.NopCloser(io.MultiReader(bytes.NewReader(b[:at]), iotest.ErrReader(oci.ErrUnavailable)))
		_, err := io.ReadAll(Verify(r, oci.Descriptor{Digest: ocitest.Digest(b), Size: int64(len(b))}))
		if !errors.Is(err, oci.ErrUnavailable) || errors.Is(err, oci.ErrDigestMismatch) {
			t.Errorf("broken after %d bytes: got error %v, want ErrUnavailable alone", at, err)
		}
	}
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(size, offset, length int64) (string, error) {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		rc, err := File(f, size, offset, length)
		if err != nil {
			return "", err
		}
		defer rc.Close()
		var b strings.Builder
		_, err = io.Copy(&b, rc)
		return b.String(), err
	}
	if got, err := open(10, 2, 3); got != "234" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := open(10, 11, -1); !errors.Is(err, oci.ErrRange) {
		t.Errorf("past the end: got error %v, want ErrRange", err)
	}
	// Truncated while it is served: never a clean end.
	if got, err := open(20, 5, -1); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("file shorter than it was: got %q, error %v, want ErrUnexpectedEOF", got, err)
	}
}

// breaking returns a Source whose readers break after n bytes, and one that goes on.
func breaking(b []byte, n int64, err error) (src, next *faulty, ref oci.Reference) {
	src, next = newFaulty(), newFaulty()
	ref = blobOf(src.Memory, b)
	blobOf(next.Memory, b)
	src.wrap = func(rc io.ReadCloser) io.ReadCloser {
		return broken{io.MultiReader(io.LimitReader(rc, n), iotest.ErrReader(err)), rc}
	}
	return src, next, ref
}

type broken struct {
	io.Reader
	io.Closer
}

func TestResume(t *testing.T) {
	b := ocitest.Bytes(1, 3*HoldBack)
	for _, at := range []int64{0, 1, HoldBack + 1, 3*HoldBack - 1} {
		for _, err := range []error{oci.ErrUnavailable, &fs.PathError{Op: "read", Err: errors.New("input/output error")}} {
			src, next, ref := breaking(b, at, err)
			rc, _, err := Resume(quiet, Verified(src), next).Open(t.Context(), ref, 0, -1)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if _, err := io.Copy(&got, rc); err != nil || !bytes.Equal(got.Bytes(), b) {
				t.Errorf("broken after %d bytes: got %d, error %v, want all", at, got.Len(), err)
			}
			rc.Close()
			if at > 3*HoldBack-2 && next.calls.Load() != 1 {
				t.Errorf("next was opened %d times", next.calls.Load())
			}
		}
	}
}

// A head that was never proven must not end cleanly with another's tail: an aborted download whose bytes were wrong.
func TestResumeProvesTheWhole(t *testing.T) {
	b := ocitest.Bytes(1, 3*HoldBack)
	src, next, ref := breaking(b, 2*HoldBack, oci.ErrUnavailable)
	wrong := bytes.Clone(b)
	wrong[5] ^= 1
	src.AddAs(ref.Digest, "", wrong)
	if got, _, err := ocitest.ReadAll(t.Context(), Resume(quiet, Verified(src), next), ref); !errors.Is(err, oci.ErrDigestMismatch) {
		t.Errorf("got %d bytes, error %v, want ErrDigestMismatch", len(got), err)
	}
	// Without a running digest there is nothing to prove it by. That a download was aborted says nothing against its source.
	if got, _, err := ocitest.ReadAll(t.Context(), Resume(quiet, src, next), ref); !errors.Is(err, oci.ErrUnavailable) || src.blamed.Load() != 0 {
		t.Errorf("got %d bytes, error %v, blamed %d times; want ErrUnavailable and no blame", len(got), err, src.blamed.Load())
	}
}

// Content found wrong before any of it was given out is had from the next source, unseen; after that it is an error.
func TestResumeAfterWrongContent(t *testing.T) {
	small := ocitest.Bytes(1, 1000)
	src, next := newFaulty(), newFaulty()
	ref := blobOf(next.Memory, small)
	src.AddAs(ref.Digest, "", ocitest.Bytes(2, 1000))
	if got, _, err := ocitest.ReadAll(t.Context(), Resume(quiet, Once(quiet, "memory", src), next), ref); err != nil || !bytes.Equal(got, small) {
		t.Errorf("small: got %d bytes, error %v", len(got), err)
	}
	large := ocitest.Bytes(1, 3*HoldBack)
	ref = blobOf(next.Memory, large)
	src.AddAs(ref.Digest, "", ocitest.Bytes(2, 3*HoldBack))
	if got, _, err := ocitest.ReadAll(t.Context(), Resume(quiet, Once(quiet, "memory", src), next), ref); !errors.Is(err, oci.ErrDigestMismatch) {
		t.Errorf("large: got %d bytes, error %v, want ErrDigestMismatch", len(got), err)
	}
}

// A file that was proven and cannot be read any more fails one pull; the next one has it from elsewhere.
func TestOnceAfterAReadFault(t *testing.T) {
	b := ocitest.Bytes(1, 3*HoldBack)
	memory, next := &ocitest.Memory{}, &ocitest.Memory{}
	ref := blobOf(memory, b)
	blobOf(next, b)
	sick := &sickly{Memory: memory}
	src := First(quiet, Resume(quiet, Once(quiet, "memory", sick), next), next)
	if _, _, err := ocitest.ReadAll(t.Context(), src, ref); err != nil {
		t.Fatal(err)
	}
	sick.sick = true
	if _, _, err := ocitest.ReadAll(t.Context(), src, ref); err == nil {
		t.Error("a read fault in the middle of a file ended cleanly")
	}
	if got, _, err := ocitest.ReadAll(t.Context(), src, ref); err != nil || !bytes.Equal(got, b) {
		t.Errorf("after the fault: got %d bytes, error %v", len(got), err)
	}
}

// sickly is a Source, no Blamer, whose disk fails.
type sickly struct {
	*ocitest.Memory
	sick bool
}

func (s *sickly) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	rc, desc, err := s.Memory.Open(ctx, ref, offset, length)
	if err == nil && s.sick {
		rc = broken{io.MultiReader(io.LimitReader(rc, HoldBack), iotest.ErrReader(&fs.PathError{Op: "read", Err: errors.New("sick")})), rc}
	}
	return rc, desc, err
}

func TestOnceQuarantinesWrongContent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &ocitest.Memory{} // no Blamer, as a runtime's store
		b := ocitest.Bytes(1, 100_000)
		ref := blobOf(src, b)
		wrong := bytes.Clone(b)
		wrong[99_999] ^= 1
		src.AddAs(ref.Digest, "", wrong)
		o := Once(quiet, "memory", src)
		if got, _, err := ocitest.ReadAll(t.Context(), o, ref); !errors.Is(err, oci.ErrDigestMismatch) || len(got) == len(b) {
			t.Errorf("got %d bytes, error %v, want ErrDigestMismatch", len(got), err)
		}
		if _, _, err := o.Open(t.Context(), ref, 0, -1); !errors.Is(err, oci.ErrNotFound) {
			t.Errorf("quarantined: got error %v, want ErrNotFound", err)
		}
		if _, err := o.Resolve(t.Context(), ref); !errors.Is(err, oci.ErrNotFound) {
			t.Errorf("quarantined: got error %v, want ErrNotFound", err)
		}
		src.AddAs(ref.Digest, "", b) // the runtime pulled it again
		time.Sleep(quarantine + time.Second)
		if got, _, err := ocitest.ReadAll(t.Context(), o, ref); err != nil || !bytes.Equal(got, b) {
			t.Errorf("after the quarantine: got %d bytes, error %v", len(got), err)
		}
	})
}

func TestOnceBlamesASourceThatMinds(t *testing.T) {
	src := newFaulty()
	b := ocitest.Bytes(1, 1000)
	ref := blobOf(src.Memory, b)
	src.AddAs(ref.Digest, "", b[1:])
	o := Once(quiet, "memory", src)
	if _, _, err := ocitest.ReadAll(t.Context(), o, ref); !errors.Is(err, oci.ErrDigestMismatch) || src.blamed.Load() != 1 {
		t.Errorf("got error %v, blamed %d times", err, src.blamed.Load())
	}
	src.AddAs(ref.Digest, "", b)
	if got, _, err := ocitest.ReadAll(t.Context(), o, ref); err != nil || !bytes.Equal(got, b) {
		t.Errorf("fetched again: got %d bytes, error %v", len(got), err)
	}
}

// A part says nothing of the whole: it is served, and the whole is judged behind it.
func TestOnceJudgesTheWholeBehindAPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &ocitest.Memory{}
		b := ocitest.Bytes(1, 1000)
		ref := blobOf(src, b)
		wrong := bytes.Clone(b)
		wrong[999] ^= 1
		src.AddAs(ref.Digest, "", wrong)
		o := Once(quiet, "memory", src)
		rc, _, err := o.Open(t.Context(), ref, 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		rc.Close()
		synctest.Wait()
		if _, _, err := o.Open(t.Context(), ref, 0, 10); !errors.Is(err, oci.ErrNotFound) {
			t.Errorf("got error %v, want ErrNotFound", err)
		}
	})
}

// Proven once, a file goes to the socket as it is.
func TestOnceHandsProvenContentThrough(t *testing.T) {
	src := newFaulty()
	ref := blobOf(src.Memory, ocitest.Bytes(1, 1000))
	src.wrap = func(rc io.ReadCloser) io.ReadCloser { return direct{rc} }
	o := Once(quiet, "memory", src)
	if _, _, err := ocitest.ReadAll(t.Context(), o, ref); err != nil {
		t.Fatal(err)
	}
	rc, _, err := o.Open(t.Context(), ref, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if _, ok := rc.(direct); !ok {
		t.Errorf("the reader of proven content is a %T, want the source's own", rc)
	}
}

type direct struct{ io.ReadCloser }

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

func TestBlobs(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "blobs", "sha256"), 0o700); err != nil {
		t.Fatal(err)
	}
	keep := func(s string) oci.Reference {
		dgst := ocitest.Digest([]byte(s))
		if err := os.WriteFile(BlobPath(root, dgst), []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		return app.WithDigest(dgst)
	}
	index := keep(`{"schemaVersion":2,"manifests":[]}`)
	b := &Blobs{Source: "test"}
	for range 2 { // from the file, and remembered
		rc, desc, _, err := b.Open(root, index, 2, 6)
		if err != nil || desc.MediaType != "application/vnd.oci.image.index.v1+json" || desc.Source != "test" {
			t.Fatalf("index: got %+v, %v", desc, err)
		}
		if got, err := io.ReadAll(rc); err != nil || string(got) != "schema" {
			t.Errorf("part of an index: got %q, %v", got, err)
		}
		rc.Close()
		if _, _, _, err := b.Open(root, index, desc.Size+1, -1); !errors.Is(err, oci.ErrRange) {
			t.Errorf("past the end: got error %v, want ErrRange", err)
		}
	}
	for what, ref := range map[string]oci.Reference{
		"no manifest": keep("a layer"), "too large": keep(strings.Repeat(" ", oci.MaxManifest) + "{}"), "absent": app.WithDigest(ocitest.Absent),
	} {
		if _, _, _, err := b.Open(root, ref, 0, -1); !errors.Is(err, oci.ErrNotFound) || errors.Is(err, oci.ErrUnsupported) {
			t.Errorf("%s: got error %v, want ErrNotFound alone", what, err)
		}
	}
	if _, _, err := b.Stat(root, app.WithDigest("sha256:../../etc/passwd")); !errors.Is(err, oci.ErrDigestInvalid) {
		t.Errorf("got error %v, want ErrDigestInvalid", err)
	}
	if err := os.Mkdir(BlobPath(root, ocitest.Absent), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Stat(root, app.WithDigest(ocitest.Absent)); err == nil || errors.Is(err, oci.ErrNotFound) {
		t.Errorf("a directory where a file should be: got error %v, want a fault", err)
	}
	// What is remembered does not outlive the file, and wrong bytes are not remembered.
	if err := os.WriteFile(BlobPath(root, index.Digest), []byte(`{"schemaVersion":3,"manifests":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	fresh := &Blobs{}
	if _, _, err := fresh.Stat(root, index); err != nil || len(fresh.known) != 0 {
		t.Errorf("wrong bytes: error %v, remembered %+v", err, fresh.known)
	}
	if err := os.Remove(BlobPath(root, index.Digest)); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := b.Open(root, index, 0, -1); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("file that went: got error %v, want ErrNotFound", err)
	}
	for i := range maxKnown + 10 {
		b.remember(ocitest.Digest([]byte{byte(i), byte(i >> 8)}), known{content: make([]byte, i%maxContent)})
	}
	if len(b.known) > maxKnown || b.bytes > maxRemaining {
		t.Errorf("%d manifests of %d bytes remembered, want at most %d of %d", len(b.known), b.bytes, maxKnown, maxRemaining)
	}
}
