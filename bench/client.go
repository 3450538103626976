package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// accept is what runtimes send with a request for a manifest.
const accept = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, " +
	"application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*"

// A server is something an image can be pulled from.
type server struct {
	addr  string
	query string      // after every path: "", or which upstream is meant
	tls   *tls.Config // nil: no TLS
}

// A conn is one kept-alive connection to a server. It costs as little as can be, so that the server is what is measured: the
// kernel throws bodies away without copying them (tcp(7), MSG_TRUNC). With TLS they are decrypted and thrown away.
type conn struct {
	server
	net.Conn
	in   *bufio.Reader
	raw  syscall.RawConn // of the TCP connection; nil with TLS
	stop func() bool     // lets go of the context
}

// drained is how much is thrown away at once, in bytes.
const drained = 1 << 20

// dial connects. All reads and writes end with ctx.
func dial(ctx context.Context, s server) (*conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("%s: no TCP connection", s.addr)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		c.Close()
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { tcp.Close() })
	if s.tls == nil {
		return &conn{server: s, Conn: tcp, in: bufio.NewReader(tcp), raw: raw, stop: stop}, nil
	}
	secure := tls.Client(tcp, s.tls)
	if err := secure.HandshakeContext(ctx); err != nil {
		stop()
		tcp.Close()
		return nil, fmt.Errorf("%s: %w", s.addr, err)
	}
	return &conn{server: s, Conn: secure, in: bufio.NewReaderSize(secure, 64<<10), stop: stop}, nil
}

// Close implements io.Closer.
func (c *conn) Close() error {
	c.stop()
	return c.Conn.Close()
}

func (c *conn) request(path string) string {
	return fmt.Sprintf("GET %s%s HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench\r\nAccept: %s\r\n\r\n", path, c.query, c.addr, accept)
}

// get reads all of path. It returns when the first byte of the body came and when the last one did, counted from the request,
// and the size of the body.
func (c *conn) get(path string) (first, last time.Duration, size int64, err error) {
	start := time.Now()
	if _, err := io.WriteString(c, c.request(path)); err != nil {
		return 0, 0, 0, err
	}
	if size, err = c.head(); err != nil {
		return 0, 0, 0, fmt.Errorf("%s%s%s: %w", c.addr, path, c.query, err)
	}
	if _, err := c.in.Peek(1); err != nil {
		return 0, 0, 0, err
	}
	first = time.Since(start)
	err = c.drain(size)
	return first, time.Since(start), size, err
}

// repeat gets path n times, one after the other.
func (c *conn) repeat(path string, n int) error {
	request := c.request(path)
	for range n {
		if _, err := io.WriteString(c, request); err != nil {
			return err
		}
		size, err := c.head()
		if err == nil {
			err = c.drain(size)
		}
		if err != nil {
			return fmt.Errorf("%s%s%s: %w", c.addr, path, c.query, err)
		}
	}
	return nil
}

// head reads the header of an answer, which must have status 200 and a Content-Length, and returns that.
func (c *conn) head() (length int64, err error) {
	status := ""
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		text := strings.TrimSpace(string(line))
		switch value, ok := strings.CutPrefix(text, "Content-Length: "); {
		case status == "":
			if status = text; status != "HTTP/1.1 200 OK" {
				return 0, fmt.Errorf("answered %q", status)
			}
		case ok:
			if length, err = strconv.ParseInt(value, 10, 64); err != nil {
				return 0, err
			}
		case text == "" && length < 1:
			return 0, errors.New("an answer without content")
		case text == "":
			return length, nil
		}
	}
}

// drain throws n bytes away.
func (c *conn) drain(n int64) error {
	if c.raw == nil {
		_, err := io.CopyN(io.Discard, c.in, n)
		return err
	}
	buffered, err := c.in.Discard(int(min(n, int64(c.in.Buffered()))))
	if err != nil {
		return err
	}
	n -= int64(buffered)
	if n == 0 {
		return nil
	}
	sink := make([]byte, min(n, drained)) // never written
	for n > 0 {
		var got int
		var rerr error
		err := c.raw.Read(func(fd uintptr) bool {
			got, _, rerr = unix.Recvfrom(int(fd), sink[:min(n, int64(len(sink)))], unix.MSG_TRUNC)
			return !errors.Is(rerr, unix.EAGAIN)
		})
		if err = errors.Join(err, rerr); err != nil {
			return err
		}
		if got == 0 {
			return fmt.Errorf("%d bytes early: %w", n, io.ErrUnexpectedEOF)
		}
		n -= int64(got)
	}
	return nil
}

// A pull says when what had come, after it was asked for.
type pull struct {
	first time.Duration // first byte of the layer
	layer time.Duration // last byte of the layer
	all   time.Duration // manifest, config and layer, and connecting
}

// pullImage pulls an image: manifest by tag, config, layer.
func pullImage(ctx context.Context, s server, i image) (p pull, err error) {
	start := time.Now()
	c, err := dial(ctx, s)
	if err != nil {
		return p, err
	}
	defer c.Close()
	if _, _, _, err := c.get(i.path("manifests", tag)); err != nil {
		return p, err
	}
	if _, _, _, err := c.get(i.path("blobs", i.config.Digest.String())); err != nil {
		return p, err
	}
	var size int64
	p.first, p.layer, size, err = c.get(i.path("blobs", i.layers[0].Digest.String()))
	if err == nil && size != i.layers[0].Size {
		err = fmt.Errorf("layer from %s has %d bytes, want %d", s.addr, size, i.layers[0].Size)
	}
	p.all = time.Since(start)
	return p, err
}

// pullAll has n clients pull an image at once, and returns when the last one is done.
func pullAll(ctx context.Context, n int, s server, i image) error {
	return atOnce(n, func() error {
		_, err := pullImage(ctx, s, i)
		return err
	})
}

// atOnce runs f n times at once.
func atOnce(n int, f func() error) error {
	return each(make([]struct{}, n), func(int, struct{}) error { return f() })
}

// each runs f for all of a list at once.
func each[T any](all []T, f func(int, T) error) error {
	var wg sync.WaitGroup
	errs := make([]error, len(all))
	for k, one := range all {
		wg.Go(func() { errs[k] = f(k, one) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
