package proxy

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Either side may end its half first, and the other goes on.
func TestHalfClose(t *testing.T) {
	s := newSite(t)
	l := s.raw(t, "files.test:443")
	for _, first := range []string{"client", "server"} {
		client := s.connect(t, "files.test:443")
		server := accept(t, l).(*net.TCPConn)
		one, other := net.Conn(client), net.Conn(server)
		if first == "server" {
			one, other = other, one
		}
		for _, side := range []net.Conn{one, other} {
			to := map[net.Conn]net.Conn{one: other, other: one}[side]
			if _, err := side.Write([]byte("all I have to say")); err != nil {
				t.Fatal(err)
			}
			if err := side.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(to); err != nil || string(b) != "all I have to say" {
				t.Errorf("%s first: got %q, %v", first, b, err)
			}
		}
	}
}

// What a client sends with its CONNECT is not lost, and what a server says first comes through.
func TestEarlyBytes(t *testing.T) {
	s := newSite(t)
	l := s.raw(t, "files.test:443")
	for _, host := range []string{"files.test", "registry.test"} {
		s.at("registry.test:443", l.Addr().String())
		c := s.connection(t)
		c.send("CONNECT %s:443 HTTP/1.1\r\nHost: x\r\n\r\nearly", host)
		server := accept(t, l)
		if _, err := server.Write([]byte("welcome")); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 5)
		if _, err := io.ReadFull(server, b); err != nil || string(b) != "early" {
			t.Errorf("%s: the server got %q, %v", host, b, err)
		}
		if c.status() != 200 {
			t.Fatal("no tunnel")
		}
		b = make([]byte, 7)
		if _, err := io.ReadFull(c.in, b); err != nil || string(b) != "welcome" {
			t.Errorf("%s: the client got %q, %v", host, b, err)
		}
	}
}

func TestTunnelBytes(t *testing.T) {
	s := newSite(t)
	l := s.raw(t, "files.test:443")
	client := s.connect(t, "files.test:443")
	server := accept(t, l)
	const size = 64 << 20
	stream := func(seed byte) io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{seed}), size) }
	sums := make(chan string, 4)
	digest := func(r io.Reader) {
		h := sha256.New()
		n, err := io.Copy(h, r)
		sums <- fmt.Sprintf("%d %v %x", n, err, h.Sum(nil))
	}
	send := func(c net.Conn, seed byte) {
		_, _ = io.Copy(c, stream(seed))
		_ = c.(interface{ CloseWrite() error }).CloseWrite()
	}
	start := time.Now()
	go send(client.TCPConn, 1)
	go send(server, 1)
	go digest(client.TCPConn)
	go digest(server)
	one, two := <-sums, <-sums
	digest(stream(1))
	if want := <-sums; one != want || two != want {
		t.Errorf("got %s and %s, want %s", one, two, want)
	}
	t.Logf("%d MiB both ways in %v", size>>20, time.Since(start))
}

// A tunnel in which nothing moves ends, and one in which something does now and then does not.
func TestTunnelIdle(t *testing.T) {
	s := newSite(t)
	s.idle = 400 * time.Millisecond
	l := s.raw(t, "files.test:443")
	client := s.connect(t, "files.test:443")
	server := accept(t, l)
	one := make([]byte, 1)
	for range 8 { // longer together than what is too long, and one way only
		<-time.After(100 * time.Millisecond)
		if _, err := server.Write(one); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(client.in, one); err != nil {
			t.Fatal(err)
		}
	}
	start := time.Now()
	for _, c := range []net.Conn{server, client} {
		if n, err := c.Read(one); n > 0 || err == nil {
			t.Errorf("read %d bytes, %v", n, err)
		}
	}
	if d := time.Since(start); d < 300*time.Millisecond || d > 5*time.Second {
		t.Errorf("it ended after %v, want about %v", d, s.idle)
	}
	s.Shutdown(t.Context())
	if !strings.Contains(s.log.text(), errIdle.Error()) {
		t.Errorf("the log does not say why:\n%s", s.log.text())
	}
}

// A side that is gone takes the other with it.
func TestTunnelReset(t *testing.T) {
	s := newSite(t)
	l := s.raw(t, "files.test:443")
	for _, gone := range []string{"client", "server"} {
		client := s.connect(t, "files.test:443")
		server := accept(t, l)
		one, other := net.Conn(client.TCPConn), server
		if gone == "server" {
			one, other = other, one
		}
		_ = one.(*net.TCPConn).SetLinger(0)
		one.Close()
		if _, err := other.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s gone: got error %v", gone, err)
		}
	}
	s.Shutdown(t.Context())
}

// A stop lets tunnels go on in which something moves, as long as there is time, and ends others soon.
func TestTunnelDrain(t *testing.T) {
	s := newSite(t)
	l := s.raw(t, "files.test:443")
	resting := s.connect(t, "files.test:443")
	restingEnd := accept(t, l)
	busy := s.connect(t, "files.test:443")
	busyEnd := accept(t, l)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Shutdown(t.Context())
	}()
	one := make([]byte, 1)
	for range 25 { // 2.5 s: more than a tunnel may rest
		if _, err := busyEnd.Write(one); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(busy.in, one); err != nil {
			t.Fatal(err)
		}
		<-time.After(100 * time.Millisecond)
	}
	for _, c := range []net.Conn{resting, restingEnd} {
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := c.Read(one); !errors.Is(err, io.EOF) {
			t.Errorf("the resting tunnel: got error %v, want EOF", err)
		}
	}
	c := s.connection(t)
	c.send("CONNECT files.test:443 HTTP/1.1\r\nHost: x\r\n\r\n")
	if got := c.status(); got != 503 {
		t.Errorf("a new one while draining: status %d, want 503", got)
	}
	<-done
	if _, err := busy.Read(one); !errors.Is(err, io.EOF) {
		t.Errorf("the busy tunnel: got error %v, want EOF", err)
	}
}

// What is left when time is up is cut off: tunnels in use, requests, intercepted connections, and clients that never began.
func TestShutdownCuts(t *testing.T) {
	s := newSite(t)
	l := s.raw(t, "files.test:443")
	busy := s.connect(t, "files.test:443")
	busyEnd := accept(t, l)
	go func() {
		for {
			if _, err := busyEnd.Write(make([]byte, 1000)); err != nil {
				return
			}
		}
	}()
	silent := s.connect(t, "registry.test:443")
	stuck := s.connection(t)
	silentServer := s.raw(t, "files.test:80")
	stuck.send("GET http://files.test/ HTTP/1.1\r\nHost: files.test\r\n\r\n")
	accept(t, silentServer)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	s.Shutdown(ctx)
	for name, c := range map[string]*conn{"busy": busy, "silent": silent} {
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, context.DeadlineExceeded) || err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: got error %v", name, err)
		}
	}
}
