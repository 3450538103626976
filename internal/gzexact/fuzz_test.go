package gzexact

import (
	"errors"
	"slices"
	"testing"
)

// FuzzDetect feeds bytes of strangers. A recipe for a whole stream must make it.
func FuzzDetect(f *testing.F) {
	for _, r := range append(Candidates()[:5], Candidates()[len(Candidates())-1]) {
		f.Add(encode(f, Encoder{Recipe: r}, content(300)), true)
		f.Add(encode(f, Encoder{Recipe: r}, content(9000))[:2000], false)
	}
	f.Add([]byte("\x1f\x8b\x08\x1e\x00\x00\x00\x00\x00\xff\x02\x00abname\x00comment\x00\x12\x34\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00"), true)
	f.Fuzz(func(t *testing.T, b []byte, whole bool) {
		got, err := Detect(b, whole)
		if err != nil && !errors.Is(err, ErrUnknown) || (err == nil) != (len(got) > 0) {
			t.Fatalf("%v, error %v", got, err)
		}
		for _, r := range got {
			if parsed, err := ParseRecipe(r.String()); err != nil || parsed != r {
				t.Errorf("%q parses as %q, error %v", r, parsed, err)
			}
		}
		content, err := decompress(b)
		if err != nil {
			return // a header with a wrong checksum, or several things in one
		}
		learned, _, err := learn(b, content)
		switch {
		case err != nil && !errors.Is(err, ErrUnknown):
			t.Error(err)
		case err == nil && !slices.Contains(got, learned):
			t.Errorf("detected %v, learned %s", got, learned)
		case err != nil && whole && len(got) > 0 && got[0].Compression() == "gzip":
			t.Errorf("detected %v, learned nothing", got)
		}
	})
}

func FuzzParseRecipe(f *testing.F) {
	for _, r := range append(Candidates(), Identity()) {
		f.Add(r.String())
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRecipe(s)
		if err == nil && r.String() != s {
			t.Errorf("%q parses as %q", s, r)
		}
	})
}
