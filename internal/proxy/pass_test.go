package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"runtime"
	"strings"
	"testing"
	"time"
)

// both runs a test without TLS, in intercepted HTTP/1.1 and in intercepted HTTP/2.
func both(t *testing.T, test func(t *testing.T, s *site, c *http.Client, base string)) {
	t.Helper()
	for name, base := range map[string]string{"http": "http://registry.test", "https": "https://registry.test", "h2": "https://registry.test"} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			test(t, s, s.client(t, func(tr *http.Transport) { tr.ForceAttemptHTTP2 = name == "h2" }), base)
		})
	}
}

func TestHeaders(t *testing.T) {
	both(t, func(t *testing.T, s *site, c *http.Client, base string) {
		var got http.Header
		s.origin(t, "registry.test", func(w http.ResponseWriter, r *http.Request) {
			got = r.Header
			w.Header().Set("Connection", "X-Hop")
			w.Header().Set("X-Hop", "1")
			w.Header().Set("Keep-Alive", "timeout=5")
			w.Header().Set("Proxy-Authenticate", "Basic")
			w.Header().Set("Content-Encoding", "gzip")
			w.Header().Add("Set-Cookie", "a=1")
			w.Header().Add("Set-Cookie", "b=2")
			w.WriteHeader(418)
			fmt.Fprint(w, "not gzip at all")
		})
		r := request(t, "PUT", base+"/x?a=%zz;b", "body", "X-Forwarded-For", "1.2.3.4", "Forwarded", "for=x", "Proxy-Authorization", "Basic x",
			"Proxy-Connection", "keep-alive", "Authorization", "Basic y", "Te", "trailers", "Accept-Encoding", "br", "X-Custom", "c", "X-Custom", "d")
		r.Header["User-Agent"] = nil
		answer := do(t, c, r)
		for name, want := range map[string]string{
			"X-Forwarded-For": "1.2.3.4", "Forwarded": "for=x", "Authorization": "Basic y", "Accept-Encoding": "br", "X-Custom": "c,d", "Te": "trailers",
			"Proxy-Authorization": "", "Proxy-Connection": "", "Keep-Alive": "", "User-Agent": "", "Via": "", "Connection": "",
		} {
			if v := strings.Join(got.Values(name), ","); v != want {
				t.Errorf("%s reached the origin as %q, want %q", name, v, want)
			}
		}
		if answer.StatusCode != 418 || answer.body != "not gzip at all" || answer.Header.Get("Content-Encoding") != "gzip" || len(answer.Header.Values("Set-Cookie")) != 2 {
			t.Errorf("the client got %d %v %q", answer.StatusCode, answer.Header, answer.body)
		}
		for _, name := range []string{"X-Hop", "Keep-Alive", "Proxy-Authenticate", "Via", "X-From"} {
			if strings.HasPrefix(base, "https") && name == "X-Hop" {
				continue // the origin speaks HTTP/2, which has no Connection
			}
			if v := answer.Header.Get(name); v != "" {
				t.Errorf("%s: %s reached the client", name, v)
			}
		}
	})
}

// What Connection names is for the proxy alone.
func TestConnectionHeader(t *testing.T) {
	s := newSite(t)
	var got http.Header
	s.origin(t, "files.test", func(_ http.ResponseWriter, r *http.Request) { got = r.Header })
	c := s.connection(t)
	c.send("GET http://files.test/ HTTP/1.1\r\nHost: files.test\r\nConnection: X-Secret, keep-alive\r\nX-Secret: 1\r\nX-Other: 2\r\nTE: gzip\r\n\r\n")
	if status := c.status(); status != 200 || got.Get("X-Secret") != "" || got.Get("X-Other") != "2" || got.Get("Te") != "" {
		t.Errorf("got %d; the origin saw %v", status, got)
	}
}

func TestTrailersAndInformation(t *testing.T) {
	both(t, func(t *testing.T, s *site, c *http.Client, base string) {
		s.origin(t, "registry.test", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</x>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
			b, _ := io.ReadAll(r.Body)
			w.Header().Set("Trailer", "X-Announced")
			fmt.Fprintf(w, "%s %s", b, r.Trailer.Get("X-Sum"))
			w.Header().Set("X-Announced", "1")
			w.Header().Set(http.TrailerPrefix+"X-Late", "2")
		})
		r := request(t, "POST", base+"/x", "")
		r.Body, r.ContentLength, r.Trailer = io.NopCloser(strings.NewReader("body")), -1, http.Header{"X-Sum": {"sum"}}
		hints := 0
		r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error {
			if code == http.StatusEarlyHints {
				hints++
			}
			return nil
		}}))
		got := do(t, c, r)
		if got.body != "body sum" || got.Trailer.Get("X-Announced") != "1" || got.Trailer.Get("X-Late") != "2" || hints != 1 {
			t.Errorf("got %q, %v, trailers %v, %d hints", got.body, got, got.Trailer, hints)
		}
	})
}

// A body is sent when the server wants it, and not before.
func TestExpectContinue(t *testing.T) {
	both(t, func(t *testing.T, s *site, c *http.Client, base string) {
		want := make(chan bool, 1)
		s.origin(t, "registry.test", func(w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor == 1 && r.Header.Get("Expect") != "100-continue" { // net/http hides it in HTTP/2
				t.Errorf("Expect is %q", r.Header.Get("Expect"))
			}
			if !<-want {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			_, _ = io.Copy(w, r.Body)
		})
		c.Transport.(*http.Transport).ExpectContinueTimeout = 20 * time.Second
		for _, wanted := range []bool{true, false} {
			want <- wanted
			body := &counting{Reader: strings.NewReader("body")}
			r := request(t, "PUT", base+"/x", "", "Expect", "100-continue")
			r.Body, r.ContentLength = io.NopCloser(body), 4
			got := do(t, c, r)
			if wanted && (got.StatusCode != 200 || got.body != "body") {
				t.Errorf("wanted: got %d %q", got.StatusCode, got.body)
			}
			// With HTTP/2 net/http hides from the proxy that the client waits.
			if !wanted && (got.StatusCode != 401 || body.n > 0 && got.ProtoMajor == 1) {
				t.Errorf("not wanted: got %d, and %d bytes were sent", got.StatusCode, body.n)
			}
		}
	})
}

type counting struct {
	io.Reader
	n int
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += n
	return n, err
}

// Each byte goes on as it comes, both ways at once.
func TestStreaming(t *testing.T) {
	both(t, func(t *testing.T, s *site, c *http.Client, base string) {
		s.origin(t, "registry.test", func(w http.ResponseWriter, r *http.Request) {
			ctl := http.NewResponseController(w)
			_ = ctl.EnableFullDuplex()
			b := make([]byte, 1)
			for {
				if _, err := r.Body.Read(b); err != nil {
					return
				}
				_, _ = w.Write(bytes.ToUpper(b))
				_ = ctl.Flush()
			}
		})
		in, out := io.Pipe()
		r := request(t, "POST", base+"/echo", "")
		r.Body, r.ContentLength = in, -1
		go func() { _, _ = out.Write([]byte("a")) }()
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b := make([]byte, 1)
		for _, want := range "ABCD" {
			if _, err := io.ReadFull(resp.Body, b); err != nil || rune(b[0]) != want {
				t.Fatalf("got %q, %v, want %q", b, err, want)
			}
			if want < 'D' {
				if _, err := out.Write([]byte{byte(want) + 1 + 'a' - 'A'}); err != nil {
					t.Fatal(err)
				}
			}
		}
		out.Close()
	})
}

// 64 MiB each way take no memory to speak of, and arrive as they were sent.
func TestLargeBodies(t *testing.T) {
	both(t, func(t *testing.T, s *site, c *http.Client, base string) {
		const size = 64 << 20
		stream := func() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{1}), size) }
		sum := sha256.New()
		_, _ = io.Copy(sum, stream())
		want := fmt.Sprintf("%x", sum.Sum(nil))
		s.origin(t, "registry.test", func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				_, _ = io.Copy(w, stream())
				return
			}
			got := sha256.New()
			_, _ = io.Copy(got, r.Body)
			fmt.Fprintf(w, "%x", got.Sum(nil))
		})
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		r := request(t, "PUT", base+"/x", "")
		r.Body, r.ContentLength = io.NopCloser(stream()), size
		if got := do(t, c, r); got.body != want {
			t.Errorf("up: digest %s, want %s", got.body, want)
		}
		resp, err := c.Do(request(t, "GET", base+"/x", ""))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		got := sha256.New()
		if _, err := io.Copy(got, resp.Body); err != nil || fmt.Sprintf("%x", got.Sum(nil)) != want {
			t.Errorf("down: another digest, %v", err)
		}
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 24<<20 {
			t.Errorf("the heap grew by %d MiB", grown>>20)
		}
	})
}

// A body that breaks off does not end cleanly.
func TestBrokenBody(t *testing.T) {
	both(t, func(t *testing.T, s *site, c *http.Client, base string) {
		s.origin(t, "registry.test", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/length" {
				w.Header().Set("Content-Length", "100")
			}
			_, _ = w.Write([]byte("some"))
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		})
		for _, path := range []string{"/length", "/chunked"} {
			resp, err := c.Do(request(t, "GET", base+path, ""))
			if err != nil {
				continue // the header and the end came together
			}
			if b, err := io.ReadAll(resp.Body); err == nil {
				t.Errorf("%s: %q came to a clean end", path, b)
			}
			resp.Body.Close()
		}
	})
}

// When a client leaves, the origin learns of it.
func TestClientGone(t *testing.T) {
	both(t, func(t *testing.T, s *site, c *http.Client, base string) {
		here, gone := make(chan struct{}), make(chan struct{})
		s.origin(t, "registry.test", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/body" {
				_, _ = w.Write([]byte("x"))
				_ = http.NewResponseController(w).Flush()
			}
			here <- struct{}{}
			<-r.Context().Done()
			gone <- struct{}{}
		})
		for _, path := range []string{"/header", "/body"} {
			ctx, cancel := context.WithCancel(t.Context())
			go func() { <-here; cancel() }()
			resp, err := c.Do(request(t, "GET", base+path, "").WithContext(ctx))
			if err == nil {
				_, _ = io.ReadAll(resp.Body)
				resp.Body.Close()
			}
			select {
			case <-gone:
			case <-time.After(10 * time.Second):
				t.Fatalf("%s: the origin goes on", path)
			}
		}
	})
}

// upgrade speaks to an origin that switches to a protocol of its own: it echoes, and when the client has said all, says
// goodbye.
func upgrade(t *testing.T, s *site, conn net.Conn, absolute string) {
	t.Helper()
	s.origin(t, "registry.test", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Connection") != "Upgrade" {
			t.Errorf("the origin saw %v", r.Header)
		}
		c, both, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello ")
		_, _ = io.Copy(c, both)
		fmt.Fprint(c, " bye")
	})
	fmt.Fprintf(conn, "GET %s/x HTTP/1.1\r\nHost: registry.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", absolute)
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "websocket" {
		t.Fatalf("got %v, %v", resp, err)
	}
	fmt.Fprint(conn, "ping")
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok {
		t.Fatalf("%T cannot be closed by half", conn)
	}
	if err := half.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(in)
	if err != nil || string(b) != "hello ping bye" {
		t.Errorf("got %q, %v", b, err)
	}
}

func TestUpgrade(t *testing.T) {
	s := newSite(t)
	upgrade(t, s, s.connection(t).TCPConn, "http://registry.test")
	s = newSite(t)
	conn := tls.Client(s.connect(t, "registry.test:443"), &tls.Config{RootCAs: s.trust, ServerName: "registry.test"})
	// TLS sends that all is said as a message, of which the server's side makes the same end.
	upgrade(t, s, conn, "")
}

// What stands still for too long is over, whoever waits for whom.
func TestIdle(t *testing.T) {
	both(t, func(t *testing.T, s *site, c *http.Client, base string) {
		s.idle = 200 * time.Millisecond
		s.origin(t, "registry.test", func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/body":
				_, _ = w.Write([]byte("x"))
				_ = http.NewResponseController(w).Flush()
			case "/steady":
				for range 10 {
					_, _ = w.Write([]byte("x"))
					_ = http.NewResponseController(w).Flush()
					select {
					case <-time.After(50 * time.Millisecond):
					case <-r.Context().Done():
					}
				}
				return
			case "/upload":
				_, _ = io.Copy(io.Discard, r.Body)
			}
			<-r.Context().Done()
		})
		if got := do(t, c, request(t, "GET", base+"/steady", "")); got.body != "xxxxxxxxxx" {
			t.Errorf("steady: got %q", got.body)
		}
		if got := do(t, c, request(t, "GET", base+"/header", "")); got.StatusCode != http.StatusGatewayTimeout {
			t.Errorf("header: got %d %q", got.StatusCode, got.body)
		}
		resp, err := c.Do(request(t, "GET", base+"/body", ""))
		if err == nil {
			if _, err = io.ReadAll(resp.Body); err == nil {
				t.Error("body: it came to a clean end")
			}
			resp.Body.Close()
		}
		in, out := io.Pipe()
		defer out.Close()
		r := request(t, "PUT", base+"/upload", "")
		r.Body, r.ContentLength = in, 100
		if resp, err := c.Do(r); err == nil {
			resp.Body.Close()
			if resp.StatusCode < 500 {
				t.Errorf("upload: got %d", resp.StatusCode)
			}
		}
	})
}

// A client that reads nothing does not hold its place for ever.
func TestStuckClient(t *testing.T) {
	s := newSite(t)
	s.idle = 200 * time.Millisecond
	gone := make(chan struct{})
	s.origin(t, "files.test", func(w http.ResponseWriter, _ *http.Request) {
		defer close(gone)
		for {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	})
	s.connection(t).send("GET http://files.test/ HTTP/1.1\r\nHost: files.test\r\n\r\n")
	<-gone
	s.Shutdown(t.Context()) // ends only without it
}

// A body that nobody wants is waited for, but not for ever, and what comes of it later is no request.
func TestUnwantedBody(t *testing.T) {
	for _, host := range []string{"http://registry.test", ""} {
		for _, expect := range []string{"", "Expect: 100-continue\r\n"} {
			s := newSite(t)
			s.rest = 200 * time.Millisecond
			s.origin(t, "registry.test", func(w http.ResponseWriter, _ *http.Request) {
				_ = http.NewResponseController(w).EnableFullDuplex()
				w.WriteHeader(http.StatusUnauthorized)
			})
			var c net.Conn = s.connection(t).TCPConn
			if host == "" {
				c = tls.Client(s.connect(t, "registry.test:443"), &tls.Config{RootCAs: s.trust, ServerName: "registry.test"})
			}
			fmt.Fprintf(c, "POST %s/x HTTP/1.1\r\nHost: registry.test\r\n%sContent-Length: 1000\r\n\r\n", host, expect)
			in := bufio.NewReader(c)
			resp, err := http.ReadResponse(in, nil)
			if err != nil || resp.StatusCode != http.StatusUnauthorized {
				t.Errorf("%s%s: got %v, %v", host, expect, resp, err)
				continue
			}
			<-time.After(300 * time.Millisecond)
			fmt.Fprintf(c, "GET %s/smuggled HTTP/1.1\r\nHost: registry.test\r\n\r\n", host)
			if b, err := io.ReadAll(in); len(b) > 0 {
				t.Errorf("%s%s: then came %q, %v", host, expect, b, err)
			}
			if got := s.requests(); len(got) != 1 {
				t.Errorf("%s%s: origins saw %v", host, expect, got)
			}
		}
	}
}
