package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
)

type httpTransport = http.Transport

// pipes is a network of doors in memory.
type pipes struct {
	mu        sync.Mutex // guards all below
	listeners map[string]*pipeListener
	next      int
}

// A pipeListener is a door's end of the network.
type pipeListener struct {
	addr  pipeAddr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

type pipeAddr string

func (a pipeAddr) Network() string { return "pipe" }
func (a pipeAddr) String() string  { return string(a) }

var errRefused = errors.New("connection refused")

func (p *pipes) listen() net.Listener {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next++
	l := &pipeListener{addr: pipeAddr(fmt.Sprintf("door-%d:80", p.next)), conns: make(chan net.Conn), done: make(chan struct{})}
	p.listeners[l.addr.String()] = l
	return l
}

// swallow makes a door a black hole.
func (p *pipes) swallow(addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.listeners, addr)
}

// dial is what a Source's client dials with. As of the real one, its time is bounded.
func (p *pipes) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	p.mu.Lock()
	l := p.listeners[addr]
	p.mu.Unlock()
	if l == nil { // a black hole
		<-ctx.Done()
		return nil, ctx.Err()
	}
	here, there := net.Pipe()
	select {
	case l.conns <- there:
		return here, nil
	case <-l.done:
		return nil, errRefused
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return l.addr }
