package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// A client that discards in the kernel must still count: content that is cut is an error, and what follows on the same
// connection is found.
func TestClient(t *testing.T) {
	const size = 3 << 20
	content := make([]byte, size)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "3145728")
		switch r.URL.Path {
		case "/cut":
			_, _ = w.Write(content[:size/2])
			panic(http.ErrAbortHandler)
		case "/missing":
			w.WriteHeader(http.StatusNotFound)
		default:
			_, _ = w.Write(content)
		}
	}))
	defer s.Close()
	c, err := dial(t.Context(), server{addr: strings.TrimPrefix(s.URL, "http://")})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 3 {
		first, last, n, err := c.get("/")
		if err != nil || n != size || first <= 0 || last < first {
			t.Fatalf("got %d bytes, the first after %s, the last after %s, error %v", n, first, last, err)
		}
	}
	if err := c.repeat("/", 3); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := c.get("/cut"); err == nil {
		t.Error("content that was cut: no error")
	}
	if c, err = dial(t.Context(), c.server); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, _, _, err := c.get("/missing"); err == nil {
		t.Error("status 404: no error")
	}
}

func TestBounds(t *testing.T) {
	s := series{3, 1, 2, 10}
	if got := s.median(); got != 2.5 {
		t.Errorf("median %v, want 2.5", got)
	}
	for _, c := range []struct {
		bound bound
		want  bool
	}{
		{atMost(2.5), true}, {atMost(2.4), false}, {atLeast(2.5), true}, {atLeast(2.6), false},
		{never(10), true}, {never(9), false}, {exactly(2), false},
	} {
		if got := c.bound.kept(s); got != c.want {
			t.Errorf("%s: kept %t, want %t", c.bound.text, got, c.want)
		}
	}
	if !exactly(1).kept(series{1, 1}) {
		t.Error("exactly 1, twice: missed")
	}
}

func TestReport(t *testing.T) {
	var r report
	r.section("Section")
	r.check("good", ratio, atMost(1), series{1})
	r.check("bad", megabytes, never(1), series{1, 2})
	r.note("other", "text")
	var b bytes.Buffer
	r.print(&b)
	if n := r.missed(); n != 1 || strings.Count(b.String(), "MISSED\n") != 1 || strings.Count(b.String(), "ok\n") != 1 {
		t.Errorf("%d missed, of\n%s", n, b.String())
	}
}

// Each command has its own part of the document: it replaces that, keeps those of the others, and drops what nobody writes.
func TestDocument(t *testing.T) {
	all := []suite{{title: "One"}, {title: "Two"}, {title: "Three"}}
	doc := splice("# Old\n\ntext\n", "Two", "## Two\n\nsecond\n", all)
	doc = splice(doc, "One", "## One\n\n### Table\n\nfirst\n", all)
	if want := preface + "\n## One\n\n### Table\n\nfirst\n\n## Two\n\nsecond\n"; doc != want {
		t.Errorf("two parts:\n%s", doc)
	}
	doc = splice(doc+"\n## Gone\n\ntext\n", "Two", "## Two\n\nagain\n", all)
	if want := preface + "\n## One\n\n### Table\n\nfirst\n\n## Two\n\nagain\n"; doc != want {
		t.Errorf("a part again:\n%s", doc)
	}
}

func TestRolloutBounds(t *testing.T) {
	// The image takes 10 s through the WAN, 4 s through the LAN.
	r := rollout{set: rolloutSettings{nodes: 10, wan: 200, lan: 500, spread: 9 * time.Second},
		image: image{size: 250 * segment / frame}} // about 250 bytes on the link
	near := func(what string, got, want time.Duration) {
		t.Helper()
		if got < want*98/100 || got > want*102/100 {
			t.Errorf("%s: %s, want about %s", what, got, want)
		}
	}
	near("all at once", r.bound(), 10*time.Second)
	starts := r.starts(true)
	near("the first by itself", r.own(starts[0]), 10*time.Second)
	near("one in between", r.own(starts[3]), 7*time.Second)
	near("the last", r.own(starts[9]), 4*time.Second)
	r.set.wan, r.set.lan = 1000, 200
	near("a fast WAN", r.bound(), 10*time.Second)
	r.set.nodes, r.set.wan, r.set.lan = 1, 200, 1000
	near("one node", r.bound(), 10*time.Second)
}

func TestInTurn(t *testing.T) {
	var b strings.Builder
	say := func(s string) func() error {
		return func() error { _, err := io.WriteString(&b, s); return err }
	}
	for i := range 3 {
		if err := inTurn(i, say("a"), say("b")); err != nil {
			t.Fatal(err)
		}
	}
	if b.String() != "abbaab" {
		t.Errorf("took turns as %s", b.String())
	}
}
