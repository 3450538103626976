package containerd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"pier/internal/oci"
)

const (
	dialTimeout = 5 * time.Second

	// maxMessage is the largest message taken from containerd, in bytes. Its own limit for what it sends is 16 MiB
	// unless configured otherwise.
	maxMessage = 64 << 20

	framePrefix = 5 // bytes before a message: compression flag, then length, big endian ("gRPC over HTTP2")
)

// A client speaks gRPC to one containerd. It is for the time of one connection: close ends it and all calls on it.
type client struct {
	transport *http.Transport

	mu    sync.Mutex // guards conns
	conns []net.Conn // all ever dialled
}

// newClient returns a client that dials socket when it is first called.
func newClient(socket string) *client {
	c := &client{transport: &http.Transport{
		Protocols:           new(http.Protocols),
		DisableCompression:  true,
		MaxIdleConnsPerHost: 1,
	}}
	c.transport.Protocols.SetUnencryptedHTTP2(true)
	c.transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", socket)
		if err == nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.conns = append(c.conns, conn)
		}
		return conn, err
	}
	return c
}

// close closes the connection, also one that a call just given up may still hold busy.
func (c *client) close() {
	c.transport.CloseIdleConnections()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		_ = conn.Close() // it may be closed already; nothing is lost
	}
}

// A call is one request to containerd.
type call struct {
	method    string    // "/package.Service/Method"
	namespace string    // of containerd; empty for none
	lease     string    // that what is put belongs to; empty for none
	body      io.Reader // many messages, each with its prefix, in place of request; nil: request
	request   []byte    // the message
	sent      func()    // called once the request is on the wire; may be nil
}

// unary does cl and hands its one response message to each.
func (c *client) unary(ctx context.Context, cl call, each func(*message) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	n := 0
	err := c.stream(ctx, cl, func(m *message) error {
		n++
		return each(m)
	})
	if err == nil && n != 1 {
		err = fmt.Errorf("containerd: %s: %d messages in place of one", cl.method, n)
	}
	return err
}

// stream does cl and hands every response message to each, until containerd or each ends it. A message is valid until
// each returns. Where containerd cannot be reached the error wraps [oci.ErrUnavailable]; where it says no, a *statusError.
func (c *client) stream(ctx context.Context, cl call, each func(*message) error) error {
	resp, err := c.send(ctx, cl)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	r := bufio.NewReaderSize(resp.Body, 16<<10)
	for {
		m, err := nextMessage(r)
		if err == io.EOF {
			break
		}
		if err == nil {
			err = each(m)
		}
		if err == nil {
			err = m.skip()
		}
		if err != nil {
			return fmt.Errorf("containerd: %s: %w", cl.method, err)
		}
	}
	header := resp.Trailer
	if len(header["Grpc-Status"]) == 0 {
		header = resp.Header // an answer without a message has its status there
	}
	return statusOf(cl.method, header)
}

func (c *client) send(ctx context.Context, cl call) (*http.Response, error) {
	if cl.sent != nil {
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
			WroteRequest: func(httptrace.WroteRequestInfo) { cl.sent() },
		})
	}
	body := cl.body
	if body == nil {
		message := make([]byte, framePrefix, framePrefix+len(cl.request))
		binary.BigEndian.PutUint32(message[1:], uint32(len(cl.request)))
		body = bytes.NewReader(append(message, cl.request...))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://localhost"+cl.method, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	if cl.namespace != "" {
		req.Header.Set("Containerd-Namespace", cl.namespace)
	}
	if cl.lease != "" {
		req.Header.Set("Containerd-Lease", cl.lease)
	}
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("containerd: %s: %w: %w", cl.method, oci.ErrUnavailable, err)
	}
	if ct := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || !strings.HasPrefix(ct, "application/grpc") {
		resp.Body.Close()
		return nil, fmt.Errorf("containerd: %s: answered %s with content type %.80q: this is no containerd", cl.method, resp.Status, ct)
	}
	return resp, nil
}

// A statusError is how containerd says no.
type statusError struct {
	method  string
	code    int // of gRPC
	message string
}

// The codes of gRPC that mean something to us.
const (
	codeOK            = 0
	codeNotFound      = 5
	codeAlreadyExists = 6
	codeUnimplemented = 12
	codeUnavailable   = 14
)

func (e *statusError) Error() string {
	return fmt.Sprintf("containerd: %s: code %d: %s", e.method, e.code, e.message)
}

func (e *statusError) Unwrap() error {
	switch e.code {
	case codeNotFound:
		return oci.ErrNotFound
	case codeUnimplemented:
		return oci.ErrUnsupported
	case codeUnavailable:
		return oci.ErrUnavailable
	}
	return nil
}

func statusOf(method string, header http.Header) error {
	code, err := strconv.Atoi(header.Get("Grpc-Status"))
	if err != nil {
		return fmt.Errorf("containerd: %s: answer ended without a status: %w", method, io.ErrUnexpectedEOF)
	}
	if code == codeOK {
		return nil
	}
	text := header.Get("Grpc-Message")
	if plain, err := url.PathUnescape(text); err == nil {
		text = plain
	}
	return &statusError{method, code, text}
}

// A message is one message on its way in. It is read from the connection as it is decoded, so that a listing of thousands
// of images is never in memory whole.
type message struct {
	r    *bufio.Reader
	left int64 // bytes of the message not read yet
}

// nextMessage reads the prefix of the next message, or returns io.EOF where the stream ends between messages.
func nextMessage(r *bufio.Reader) (*message, error) {
	var prefix [framePrefix]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		return nil, err
	}
	if prefix[0] != 0 {
		return nil, errors.New("compressed message that was not asked for")
	}
	n := binary.BigEndian.Uint32(prefix[1:])
	if n > maxMessage {
		return nil, fmt.Errorf("message of %d bytes: %w", n, oci.ErrTooLarge)
	}
	return &message{r, int64(n)}, nil
}

// Read implements io.Reader: it ends with the message.
func (m *message) Read(p []byte) (int, error) {
	if m.left == 0 {
		return 0, io.EOF
	}
	n, err := m.r.Read(p[:min(int64(len(p)), m.left)])
	m.left -= int64(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// ReadByte implements io.ByteReader.
func (m *message) ReadByte() (byte, error) {
	if m.left == 0 {
		return 0, io.EOF
	}
	b, err := m.r.ReadByte()
	if err == io.EOF {
		return 0, io.ErrUnexpectedEOF
	}
	m.left--
	return b, err
}

// skip reads what nobody wanted of the message.
func (m *message) skip() error {
	n, err := io.CopyN(io.Discard, m.r, m.left)
	m.left -= n
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
