package chain

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// Content that was overwritten after it had been proven once was served unproven from then on.
func TestOverwrittenAfterItWasProven(t *testing.T) {
	b := ocitest.Bytes(1, 3*HoldBack)
	wrong := bytes.Clone(b)
	wrong[5] ^= 1
	for name, overwrite := range map[string]func(path string) error{
		"in place": func(path string) error { return os.WriteFile(path, wrong, 0o600) },
		"in place, with its time put back": func(path string) error {
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			return errors.Join(os.WriteFile(path, wrong, 0o600), os.Chtimes(path, info.ModTime(), info.ModTime()))
		},
		"by another file": func(path string) error {
			return errors.Join(os.WriteFile(path+".new", wrong, 0o600), os.Rename(path+".new", path))
		},
	} {
		t.Run(name, func(t *testing.T) {
			src := newFiles(t)
			ref := src.add(t, ocitest.Digest(b), b, time.Now())
			o := Once(quiet, "files", src)
			for range 2 {
				if got, _, err := ocitest.ReadAll(t.Context(), o, ref); err != nil || !bytes.Equal(got, b) {
					t.Fatalf("before: got %d bytes, error %v", len(got), err)
				}
			}
			src.altered(t, ref.Digest, overwrite)
			if got, _, err := ocitest.ReadAll(t.Context(), o, ref); !errors.Is(err, oci.ErrDigestMismatch) {
				t.Errorf("overwritten: got %d bytes, error %v, want ErrDigestMismatch", len(got), err)
			}
			if _, _, err := o.Open(t.Context(), ref, 0, -1); !errors.Is(err, oci.ErrNotFound) {
				t.Errorf("found wrong: got error %v, want ErrNotFound", err)
			}
		})
	}
}

// A manifest that was overwritten was answered from memory, with the new file's size.
func TestManifestOverwrittenAfterItWasRemembered(t *testing.T) {
	src := newFiles(t)
	b := []byte(`{"schemaVersion":2,"manifests":[]}`)
	ref := src.add(t, ocitest.Digest(b), b, time.Now())
	ref.Kind = oci.Manifest
	o := Once(quiet, "files", src)
	if _, _, err := ocitest.ReadAll(t.Context(), o, ref); err != nil {
		t.Fatal(err)
	}
	src.altered(t, ref.Digest, func(path string) error { return os.WriteFile(path, append(b, '\n'), 0o600) })
	if got, _, err := ocitest.ReadAll(t.Context(), o, ref); !errors.Is(err, oci.ErrDigestMismatch) {
		t.Errorf("got %q, error %v, want ErrDigestMismatch", got, err)
	}
}

// What the runtime stored while Pier ran was proven by it, and is handed to the socket at once.
func TestContentThatCameSinceIsNotReadAgain(t *testing.T) {
	b := ocitest.Bytes(1, 1000)
	src := newFiles(t)
	o := Once(quiet, "files", src).(*once)
	o.era = era{start: time.Now().Add(-time.Hour)}
	ref := src.add(t, ocitest.Digest(b), b, time.Now().Add(-time.Minute))
	rc, _, err := o.Open(t.Context(), ref, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	rc.Close()
	if _, ok := rc.(*section); !ok {
		t.Errorf("the reader is a %T, want the file's", rc)
	}
	// Written to since: nobody vouches for that, whatever its age.
	src.altered(t, ref.Digest, func(path string) error { return os.WriteFile(path, b[1:], 0o600) })
	if _, _, err := ocitest.ReadAll(t.Context(), o, ref); !errors.Is(err, oci.ErrDigestMismatch) {
		t.Errorf("written to: got error %v, want ErrDigestMismatch", err)
	}
	delete(o.bad, ref.Digest) // the quarantine is over, and the file is still young
	src.add(t, ref.Digest, b[1:], time.Now().Add(-time.Minute))
	if _, _, err := ocitest.ReadAll(t.Context(), o, ref); !errors.Is(err, oci.ErrDigestMismatch) {
		t.Errorf("wrong once: got error %v, want ErrDigestMismatch", err)
	}
}

// Content overwritten in place before anybody asked for it is young as well, and must not pass for proven.
func TestWrittenInPlaceIsNotProven(t *testing.T) {
	b := ocitest.Bytes(1, 1000)
	src := newFiles(t)
	ref := src.add(t, ocitest.Digest(b), b, time.Now().Add(-time.Minute))
	o := Once(quiet, "files", src).(*once)
	src.altered(t, ref.Digest, func(path string) error { return os.WriteFile(path, b[1:], 0o600) })
	s := src.stamp(t, ref.Digest)
	later := time.Unix(0, s.mtime).Add(time.Hour)
	if (era{start: later.Add(-2 * time.Hour)}).saw(s, later, 2*time.Hour) {
		t.Errorf("a file written in place passes for proven: %+v", s)
	}
	if _, _, err := ocitest.ReadAll(t.Context(), o, ref); !errors.Is(err, oci.ErrDigestMismatch) {
		t.Errorf("got error %v, want ErrDigestMismatch", err)
	}
}

func TestEra(t *testing.T) {
	now := time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for name, c := range map[string]struct {
		start, newest, mtime, ctime time.Time
		up                          time.Duration
		want                        bool
	}{
		"came while we ran": {ago(time.Hour), ago(2 * time.Hour), ago(time.Minute), ago(time.Minute - time.Millisecond), time.Hour, true},
		"written in place":  {ago(time.Hour), ago(2 * time.Hour), ago(time.Minute), ago(time.Minute), time.Hour, false},
		"came before":       {ago(time.Hour), ago(2 * time.Hour), ago(90 * time.Minute), ago(89 * time.Minute), time.Hour, false},
		"old and renamed":   {ago(time.Hour), ago(2 * time.Hour), ago(90 * time.Minute), ago(time.Minute), time.Hour, false},
		"time set forward":  {ago(time.Hour), ago(2 * time.Hour), ago(time.Minute), ago(90 * time.Minute), time.Hour, false},
		"as we started":     {ago(time.Hour), ago(2 * time.Hour), ago(time.Hour - time.Second), ago(time.Minute), time.Hour, false},
		"in the future":     {ago(time.Hour), ago(2 * time.Hour), ago(-time.Minute), ago(-2 * time.Minute), time.Hour, false},
		"in no file":        {start: time.Unix(0, 0).Add(-time.Hour), mtime: time.Unix(0, 0), ctime: time.Unix(0, 0), up: time.Hour},
		// The clock began in 1970 and was set since: what came last month is not younger than a process that is a minute old.
		"clock set forward": {time.Unix(0, 0), ago(720 * time.Hour), ago(700 * time.Hour), ago(699 * time.Hour), time.Minute, false},
		// The clock began at what was saved last, half an hour before the content came, and nobody set it.
		"clock behind the content": {ago(time.Hour), ago(30 * time.Minute), ago(31 * time.Minute), ago(30 * time.Minute), time.Hour, false},
	} {
		s := stamp{mtime: c.mtime.UnixNano(), ctime: c.ctime.UnixNano()}
		if got := (era{c.start, c.newest}).saw(s, now, c.up); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}
