package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pier/internal/chain"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

const blobPath = "/v2/app/blobs/" + string(ocitest.Absent)

var errSick = errors.New("the disk is sick")

// protocols runs test over HTTP/1.1 and HTTP/2 against what the handler of src serves.
func protocols(t *testing.T, h http.Handler, test func(t *testing.T, client *http.Client, url string)) {
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("http2=%t", h2), func(t *testing.T) {
			srv := httptest.NewUnstartedServer(h)
			srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
			if h2 {
				srv.EnableHTTP2 = true
				srv.StartTLS()
			} else {
				srv.Start()
			}
			defer srv.Close()
			test(t, srv.Client(), srv.URL+blobPath)
		})
	}
}

func get(t *testing.T, client *http.Client, url string) reply {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return reply{resp, b, err}
}

// A client must never take part of a blob for all of it.
func TestBrokenContentNeverEndsCleanly(t *testing.T) {
	b := ocitest.Bytes(3, 200_000)
	broken := func(n int, err error) func() io.Reader {
		return func() io.Reader { return io.MultiReader(bytes.NewReader(b[:n]), errReader{err}) }
	}
	for _, tc := range []struct {
		name string
		size int64
		body func() io.Reader
	}{
		{"fault", 200_000, broken(100_000, errSick)},
		{"fault, size unknown", -1, broken(100_000, errSick)},
		{"wrong digest at the last byte", 200_000, broken(199_999, oci.ErrDigestMismatch)},
		{"short", 200_000, func() io.Reader { return bytes.NewReader(b[:100_000]) }},
		{"short, not io.WriterTo", 200_000, func() io.Reader { return io.LimitReader(bytes.NewReader(b), 100_000) }},
		{"long", 100_000, func() io.Reader { return onlyReader{bytes.NewReader(b)} }},
		{"another's cancel", 200_000, broken(100_000, context.Canceled)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			src := &fixed{desc: oci.Descriptor{Size: tc.size}, body: tc.body}
			protocols(t, New(Config{Source: src}), func(t *testing.T, client *http.Client, url string) {
				r := get(t, client, url)
				if r.StatusCode != 200 || r.err == nil {
					t.Errorf("got %d and a clean end after %d bytes", r.StatusCode, len(r.body))
				}
				if !bytes.HasPrefix(b, r.body) {
					t.Error("got wrong bytes before the break")
				}
			})
		})
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

type onlyReader struct{ io.Reader }

// Where no byte of content is out yet, the client deserves an error it can read.
func TestFirstReadFails(t *testing.T) {
	for _, tc := range []struct {
		name   string
		body   func() io.Reader
		status int
	}{
		{"fault", func() io.Reader { return errReader{errSick} }, 502},
		{"nothing", func() io.Reader { return strings.NewReader("") }, 502},
		{"gone meanwhile", func() io.Reader { return errReader{oci.ErrNotFound} }, 404},
		{"longer than promised, all at once", func() io.Reader { return bytes.NewReader(make([]byte, 101)) }, 502},
	} {
		src := &fixed{desc: oci.Descriptor{Size: 100, Source: "cache"}, body: tc.body}
		protocols(t, New(Config{Source: src}), func(t *testing.T, client *http.Client, url string) {
			r := get(t, client, url)
			if r.StatusCode != tc.status || r.err != nil {
				t.Errorf("%s: got %d, %v, want %d", tc.name, r.StatusCode, r.err, tc.status)
			}
			r.code(t)
			if r.Header.Get("Etag") != "" || r.Header.Get("Cache-Control") != "" {
				t.Errorf("%s: the error is described as content: %v", tc.name, r.Header)
			}
		})
	}
}

// Content in flight: the header does not wait for the first byte, nor a byte for the next.
func TestInFlight(t *testing.T) {
	var feed *io.PipeWriter
	var content *io.PipeReader
	src := &fixed{desc: oci.Descriptor{Size: 6, Missing: 6}, body: func() io.Reader { return content }}
	protocols(t, New(Config{Source: src}), func(t *testing.T, client *http.Client, url string) {
		content, feed = io.Pipe()
		resp, err := client.Get(url) // returns with the header
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		for _, piece := range []string{"a", "bc", "def"} {
			if _, err := io.WriteString(feed, piece); err != nil {
				t.Fatal(err)
			}
			if piece == "def" { // the last bytes may wait for the Source's word that they are the last
				feed.Close()
			}
			got := make([]byte, len(piece))
			if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != piece {
				t.Fatalf("got %q, %v, want %q", got, err, piece)
			}
		}
		if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
			t.Errorf("at the end: %q, %v", rest, err)
		}
	})
}

// A Source may take its time, also longer than a client may.
func TestSlowSourceIsNotASlowClient(t *testing.T) {
	src := &fixed{desc: oci.Descriptor{Size: 3}, body: func() io.Reader {
		return io.MultiReader(strings.NewReader("a"), pause(300*time.Millisecond), strings.NewReader("b"), pause(300*time.Millisecond), strings.NewReader("c"))
	}}
	h := newHandler(Config{Source: src})
	h.stall = 100 * time.Millisecond
	protocols(t, h, func(t *testing.T, client *http.Client, url string) {
		for range 2 { // the second request finds the connection as the first left it
			if r := get(t, client, url); r.err != nil || string(r.body) != "abc" {
				t.Errorf("got %q, %v", r.body, r.err)
			}
		}
	})
}

// pause is an empty reader that takes its time.
type pause time.Duration

func (p pause) Read([]byte) (int, error) {
	time.Sleep(time.Duration(p))
	return 0, io.EOF
}

// fileSource serves a file as the stores on disk do.
type fileSource struct {
	fixed
	name string
}

func (s *fileSource) Open(_ context.Context, _ oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	f, err := os.Open(s.name)
	if err != nil {
		return nil, oci.Descriptor{}, err
	}
	rc, err := chain.File(f, s.desc.Size, offset, length)
	return rc, s.desc, err
}

func newFileSource(t testing.TB, b []byte) *fileSource {
	name := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return &fileSource{fixed{desc: oci.Descriptor{Size: int64(len(b))}}, name}
}

func TestFile(t *testing.T) {
	b := ocitest.Bytes(4, 3*pieceSize+12345)
	src := newFileSource(t, b)
	protocols(t, New(Config{Source: src}), func(t *testing.T, client *http.Client, url string) {
		if r := get(t, client, url); r.err != nil || !bytes.Equal(r.body, b) {
			t.Errorf("got %d bytes, %v, want %d", len(r.body), r.err, len(b))
		}
		req, _ := http.NewRequestWithContext(t.Context(), "GET", url, nil)
		req.Header.Set("Range", "bytes=70000-2200000")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, b[70000:2200001]) {
			t.Errorf("range: got %d bytes, %v", len(got), err)
		}
	})
	if err := os.Truncate(src.name, 2*pieceSize); err != nil {
		t.Fatal(err)
	}
	protocols(t, New(Config{Source: src}), func(t *testing.T, client *http.Client, url string) {
		if r := get(t, client, url); r.err == nil {
			t.Errorf("a file that lost its end: a clean end after %d bytes", len(r.body))
		}
	})
}

// Above the first buffer, a file must reach the connection's own ReadFrom: there the kernel copies it.
func TestFileReachesTheConnection(t *testing.T) {
	b := ocitest.Bytes(5, 2*pieceSize)
	h := New(Config{Source: newFileSource(t, b)})
	rec := &readFromRecorder{ResponseRecorder: httptest.NewRecorder()}
	h.ServeHTTP(rec, httptest.NewRequest("GET", blobPath, nil))
	if !bytes.Equal(rec.Body.Bytes(), b) {
		t.Fatalf("got %d bytes", rec.Body.Len())
	}
	if want := int64(len(b) - bufferSize); rec.file != want {
		t.Errorf("%d bytes came as a file, want %d", rec.file, want)
	}
}

type readFromRecorder struct {
	*httptest.ResponseRecorder
	file int64 // bytes that came as *io.LimitedReader over *os.File, which net takes for sendfile
}

func (r *readFromRecorder) ReadFrom(src io.Reader) (int64, error) {
	n, err := io.Copy(r.ResponseRecorder, src)
	if lr, ok := src.(*io.LimitedReader); ok {
		if _, ok := lr.R.(*os.File); ok {
			r.file += n
		}
	}
	return n, err
}

// A client that stops reading holds a connection, a goroutine and a file: not for ever.
func TestStalledClient(t *testing.T) {
	const size = 64 << 20 // more than any socket buffers
	name := filepath.Join(t.TempDir(), "blob")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	f.Close()
	endless := &fixed{desc: oci.Descriptor{Size: size}, body: func() io.Reader { return onlyReader{zeros{}} }}
	for kind, src := range map[string]oci.Source{
		"file": &fileSource{fixed{desc: oci.Descriptor{Size: size}}, name}, "stream": endless,
	} {
		t.Run(kind, func(t *testing.T) {
			lines := make(chan string, 1)
			h := newHandler(Config{Source: src, Log: slog.New(slog.NewTextHandler(chanWriter(lines), nil))})
			h.stall = 200 * time.Millisecond
			url := serve(t, h)
			conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", blobPath)
			select {
			case line := <-lines:
				if !strings.Contains(line, "status=499") {
					t.Errorf("log line %s", line)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("the request is still served")
			}
		})
	}
	t.Run("http2", func(t *testing.T) { testStalledHTTP2(t, endless) })
}

func testStalledHTTP2(t *testing.T, src oci.Source) {
	lines := make(chan string, 1)
	h := newHandler(Config{Source: src, Log: slog.New(slog.NewTextHandler(chanWriter(lines), nil))})
	h.stall = 200 * time.Millisecond
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	resp, err := srv.Client().Get(srv.URL + blobPath) // the body is not read: flow control stops the server
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	select {
	case line := <-lines:
		if !strings.Contains(line, "status=499") {
			t.Errorf("log line %s", line)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the request is still served")
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type chanWriter chan string

func (c chanWriter) Write(p []byte) (int, error) {
	c <- string(p)
	return len(p), nil
}

// waiting is a Source that answers only when its caller gives up.
type waiting struct{ asked chan struct{} }

func (s waiting) Resolve(ctx context.Context, _ oci.Reference) (oci.Descriptor, error) {
	close(s.asked)
	<-ctx.Done()
	return oci.Descriptor{}, ctx.Err()
}

func (s waiting) Open(ctx context.Context, ref oci.Reference, _, _ int64) (io.ReadCloser, oci.Descriptor, error) {
	_, err := s.Resolve(ctx, ref)
	return nil, oci.Descriptor{}, err
}

func TestClientLeaves(t *testing.T) {
	lines := make(chan string, 1)
	src := waiting{make(chan struct{})}
	url := serve(t, New(Config{Source: src, Log: slog.New(slog.NewTextHandler(chanWriter(lines), nil))}))
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "GET", url+blobPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-src.asked
		cancel()
	}()
	if resp, err := http.DefaultClient.Do(req); err == nil {
		resp.Body.Close()
		t.Fatalf("got %d", resp.StatusCode)
	}
	if line := <-lines; !strings.Contains(line, "status=499") {
		t.Errorf("log line %s", line)
	}
}

// Over TLS there is no sendfile, and files must get through all the same.
func TestFileOverTLS1(t *testing.T) {
	b := ocitest.Bytes(6, pieceSize+1)
	srv := httptest.NewTLSServer(New(Config{Source: newFileSource(t, b)}))
	defer srv.Close()
	client := srv.Client()
	client.Transport.(*http.Transport).TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{} // HTTP/1.1 only
	if r := get(t, client, srv.URL+blobPath); r.err != nil || !bytes.Equal(r.body, b) {
		t.Errorf("got %d bytes, %v", len(r.body), r.err)
	}
}
