package faultproxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"
)

var content = bytes.Repeat([]byte("0123456789abcdef"), 4096) // 64 KiB

// origin answers everything with content, ranges included.
func origin() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Docker-Content-Digest", "sha256:x")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	})
}

// each runs a test in front of a handler, of a server, and with TLS and HTTP/2.
func each(t *testing.T, test func(t *testing.T, p *Proxy)) {
	t.Run("handler", func(t *testing.T) { test(t, New(Config{Handler: origin()}).Start(t)) })
	server := httptest.NewServer(origin())
	defer server.Close()
	target, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("server", func(t *testing.T) { test(t, Start(t, target)) })
	t.Run("http2", func(t *testing.T) { test(t, StartTLS(t, target)) })
}

func get(t *testing.T, p *Proxy, path, byteRange string) (*http.Response, []byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if byteRange != "" {
		req.Header.Set("Range", byteRange)
	}
	resp, err := p.Server.Client().Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, b, err
}

const (
	blob     = "/v2/team/app/blobs/sha256:x"
	manifest = "/v2/team/app/manifests/v1"
)

func TestPass(t *testing.T) {
	each(t, func(t *testing.T, p *Proxy) {
		resp, b, err := get(t, p, blob+"?ns=a", "bytes=16-31")
		if err != nil || resp.StatusCode != http.StatusPartialContent || string(b) != "0123456789abcdef" {
			t.Fatalf("range: got %v, %q, error %v", resp, b, err)
		}
		if _, b, err := get(t, p, manifest, ""); err != nil || !bytes.Equal(b, content) {
			t.Fatalf("whole: got %d bytes, error %v", len(b), err)
		}
		if p.Count("GET", Blob) != 1 || p.Count("", "") != 2 || p.SentOf(Blob) != 16 || p.Sent() != 16+int64(len(content)) {
			t.Errorf("counted %d and %d requests, %d and %d bytes", p.Count("GET", Blob), p.Count("", ""), p.SentOf(Blob), p.Sent())
		}
		r := p.Requests()[0]
		if r.Path != blob || r.Query.Get("ns") != "a" || r.Header.Get("Range") != "bytes=16-31" || r.Kind != Blob {
			t.Errorf("recorded %+v", r)
		}
	})
}

func TestFaults(t *testing.T) {
	each(t, func(t *testing.T, p *Proxy) {
		for _, c := range []struct {
			name  string
			fault Fault
			rng   string
			check func(resp *http.Response, b []byte, err error) bool
		}{
			{"cut", CutAfter(1000), "", func(_ *http.Response, b []byte, err error) bool { return len(b) == 1000 && err != nil }},
			{"cut at once", CutAfter(0), "", func(r *http.Response, b []byte, err error) bool { return r != nil && len(b) == 0 && err != nil }},
			{"drop", Drop(), "", func(r *http.Response, _ []byte, err error) bool { return r == nil && err != nil }},
			{"flip", Flip(20), "", func(_ *http.Response, b []byte, err error) bool {
				return err == nil && b[20] == ^content[20] && bytes.Equal(b[21:], content[21:])
			}},
			{"flip in a range", Flip(20), "bytes=16-31", func(_ *http.Response, b []byte, err error) bool {
				return err == nil && len(b) == 16 && b[4] == ^content[20] && b[3] == content[19]
			}},
			{"longer", Length(10), "", func(r *http.Response, b []byte, err error) bool {
				return r.ContentLength == int64(len(content))+10 && len(b) == len(content) && err != nil
			}},
			{"no length", NoLength(), "bytes=0-9", func(r *http.Response, b []byte, err error) bool {
				return r.ContentLength == -1 && len(b) == 10 && err == nil
			}},
			{"status", TooManyRequests(7), "", func(r *http.Response, _ []byte, _ error) bool {
				return r.StatusCode == 429 && r.Header.Get("Retry-After") == "7"
			}},
			{"unauthorized", Unauthorized(`Basic realm="x"`), "", func(r *http.Response, _ []byte, _ error) bool {
				return r.StatusCode == 401 && r.Header.Get("Www-Authenticate") == `Basic realm="x"`
			}},
			{"ignore range", IgnoreRange(), "bytes=16-31", func(r *http.Response, b []byte, _ error) bool {
				return r.StatusCode == 200 && bytes.Equal(b, content)
			}},
			{"refuse range", RefuseRange(7), "bytes=16-31", func(r *http.Response, b []byte, _ error) bool {
				return r.StatusCode == 416 && len(b) == 0 && r.Header.Get("Content-Range") == "bytes */7"
			}},
			{"refuse range, none asked for", RefuseRange(-1), "", func(r *http.Response, b []byte, _ error) bool {
				return r.StatusCode == 200 && bytes.Equal(b, content)
			}},
			{"header", Header("Warning", "110 x"), "", func(r *http.Response, b []byte, _ error) bool {
				return r.Header.Get("Warning") == "110 x" && bytes.Equal(b, content)
			}},
			{"no digest", NoDigest(), "", func(r *http.Response, _ []byte, _ error) bool {
				return r.Header.Get("Docker-Content-Digest") == ""
			}},
			{"drip", Drip(8, time.Millisecond), "bytes=0-31", func(_ *http.Response, b []byte, err error) bool {
				return err == nil && len(b) == 32
			}},
		} {
			t.Run(c.name, func(t *testing.T) {
				p.Set(Rule{Fault: c.fault, Path: Of(Blob)})
				if resp, b, err := get(t, p, blob, c.rng); !c.check(resp, b, err) {
					t.Errorf("got %+v, %d bytes, error %v", resp, len(b), err)
				}
				if _, b, err := get(t, p, manifest, ""); err != nil || !bytes.Equal(b, content) {
					t.Errorf("another path: got %d bytes, error %v", len(b), err)
				}
				p.Clear()
				if _, b, err := get(t, p, blob, ""); err != nil || !bytes.Equal(b, content) {
					t.Errorf("after Clear: got %d bytes, error %v", len(b), err)
				}
			})
		}
	})
}

// A length that is smaller ends the body there; the rest must not reach the client by any way.
func TestLengthSmaller(t *testing.T) {
	p := New(Config{Handler: origin(), Rules: []Rule{{Fault: Length(-10)}}}).Start(t)
	resp, b, _ := get(t, p, blob, "")
	if resp.ContentLength != int64(len(content))-10 || int64(len(b)) != resp.ContentLength {
		t.Errorf("got %d bytes, Content-Length %d", len(b), resp.ContentLength)
	}
}

func TestTimes(t *testing.T) {
	p := New(Config{Handler: origin()}).Start(t)
	p.Set(Rule{Method: "GET", Times: 2, Fault: Status(503)})
	for i, want := range []int{503, 503, 200} {
		if resp, _, err := get(t, p, blob, ""); err != nil || resp.StatusCode != want {
			t.Errorf("request %d: got %v, error %v, want status %d", i, resp, err, want)
		}
	}
}

func TestHangEndsWithClient(t *testing.T) {
	each(t, func(t *testing.T, p *Proxy) {
		for name, fault := range map[string]Fault{"headers": Hang(), "body": HangAfter(100)} {
			t.Run(name, func(t *testing.T) {
				p.Set(Rule{Fault: fault})
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				defer cancel()
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL+blob, nil)
				if err != nil {
					t.Fatal(err)
				}
				resp, err := p.Server.Client().Do(req)
				if err == nil {
					defer resp.Body.Close()
					_, err = io.ReadAll(resp.Body)
				}
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got error %v, want the client's deadline", err)
				}
			})
		}
	})
}

func TestHangEndsWithProxy(t *testing.T) {
	p := New(Config{Handler: origin(), Rules: []Rule{{Fault: HangAfter(10)}}}).Start(t)
	resp, err := http.Get(p.URL + blob)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	p.Close()
	if b, err := io.ReadAll(resp.Body); err == nil || len(b) > 10 {
		t.Errorf("got %d bytes, error %v, want a cut after 10", len(b), err)
	}
}

func TestRates(t *testing.T) {
	p := New(Config{Handler: origin()}).Start(t)
	for name, limit := range map[string]func(){
		"shared":         func() { p.LimitRate(320<<10, 0) },
		"per connection": func() { p.LimitRate(0, 320<<10) },
	} {
		limit()
		start := time.Now()
		if _, b, err := get(t, p, blob, ""); err != nil || !bytes.Equal(b, content) {
			t.Fatalf("%s: got %d bytes, error %v", name, len(b), err)
		}
		// 64 KiB at 320 KiB/s last 200 ms, of which the first 50 ms may come at once
		if d := time.Since(start); d < 120*time.Millisecond {
			t.Errorf("%s: took %v, want at least 150 ms", name, d)
		}
	}
}

func TestLatency(t *testing.T) {
	p := New(Config{Handler: origin(), Rules: []Rule{{Fault: Latency(30 * time.Millisecond)}}}).Start(t)
	start := time.Now()
	if _, _, err := get(t, p, blob, ""); err != nil || time.Since(start) < 30*time.Millisecond {
		t.Errorf("took %v, error %v", time.Since(start), err)
	}
}
