package peer

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A door is the peer door of one node, which a test can make fail.
type door struct {
	t       *testing.T
	content http.Handler
	tls     *tls.Config
	addr    string
	server  *http.Server
	done    chan struct{}

	mu     sync.Mutex // guards all below
	fault  fault
	conns  map[net.Conn]http.ConnState
	asked  int           // requests for content
	frozen chan struct{} // not nil: nothing is written until it is closed
}

// A fault is how a door answers instead of next. Content goes through it, nothing else.
type fault func(w http.ResponseWriter, r *http.Request, next http.Handler)

func (d *door) open(s *site) {
	var l net.Listener
	if s.real {
		var err error
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			s.t.Fatal(err)
		}
	} else {
		l = s.pipes.listen()
	}
	d.addr = l.Addr().String()
	if d.tls != nil {
		l = tls.NewListener(l, d.tls)
	}
	d.conns = make(map[net.Conn]http.ConnState)
	d.done = make(chan struct{})
	d.server = &http.Server{
		Handler: d, ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: time.Minute,
		ConnState: func(c net.Conn, state http.ConnState) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.conns[c] = state
			if state == http.StateClosed {
				delete(d.conns, c)
			}
		},
	}
	go func() {
		defer close(d.done)
		_ = d.server.Serve(l) // ends with close
	}()
}

func (d *door) close() {
	_ = d.server.Close()
	<-d.done
}

// active returns how many connections have a request under way.
func (d *door) active() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, state := range d.conns {
		if state == http.StateActive {
			n++
		}
	}
	return n
}

// fails has the door answer with a fault from now on; nil: as it should.
func (d *door) fails(f fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = f
}

// freeze has the door write nothing from now on, also not of answers under way.
func (d *door) freeze() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.frozen = make(chan struct{})
}

// requests returns how many requests for content there were.
func (d *door) requests() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked
}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	d.asked++
	f := d.fault
	d.mu.Unlock()
	writer := &rigged{ResponseWriter: w}
	writer.write = func(p []byte) (int, error) {
		d.mu.Lock()
		frozen := d.frozen
		d.mu.Unlock()
		if frozen != nil {
			select {
			case <-frozen:
			case <-r.Context().Done():
			}
		}
		return w.Write(p)
	}
	if f == nil {
		f = sound
	}
	f(writer, r, d.content)
}

func sound(w http.ResponseWriter, r *http.Request, next http.Handler) { next.ServeHTTP(w, r) }

// rigged is a ResponseWriter whose body goes through a function.
type rigged struct {
	http.ResponseWriter
	write func([]byte) (int, error)
}

func (w *rigged) Write(p []byte) (int, error) { return w.write(p) }
func (w *rigged) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// answers is a door that answers everything with a status.
func answers(status int) fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		http.Error(w, http.StatusText(status), status)
	}
}

// hangs is a door that takes requests and never answers.
func hangs(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() }

// after is a door that serves n bytes of each answer, and then does something else.
func after(n int, then func(w http.ResponseWriter, r *http.Request)) fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		left := n
		next.ServeHTTP(&rigged{w, func(p []byte) (int, error) {
			if len(p) <= left {
				left -= len(p)
				return w.Write(p)
			}
			_, _ = w.Write(p[:left])
			_ = http.NewResponseController(w).Flush()
			then(w, r)
			panic(http.ErrAbortHandler)
		}}, r)
	}
}

// stops waits for the client to leave.
func stops(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// breaks cuts the connection.
func breaks(http.ResponseWriter, *http.Request) {}

// paced is a door that gives so many bytes a second on each connection, some 20 times a second.
func paced(rate int) fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(&rigged{w, func(p []byte) (int, error) {
			total := 0
			for len(p) > 0 {
				piece := p[:min(len(p), max(rate/20, 1))]
				select {
				case <-time.After(time.Second * time.Duration(len(piece)) / time.Duration(rate)):
				case <-r.Context().Done():
					return total, r.Context().Err()
				}
				n, err := w.Write(piece)
				total += n
				if err != nil {
					return total, err
				}
				_ = http.NewResponseController(w).Flush()
				p = p[n:]
			}
			return total, nil
		}}, r)
	}
}

// late is a door that takes its time before it answers.
func late(d time.Duration) fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		select {
		case <-time.After(d):
			next.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	}
}

// slowing is a door that gives n bytes of each answer at once and the rest at so many bytes a second.
func slowing(n, rate int) fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		paced(rate)(w, r, http.HandlerFunc(func(slow http.ResponseWriter, r *http.Request) {
			left := n
			next.ServeHTTP(&rigged{w, func(p []byte) (int, error) {
				if len(p) > left {
					return slow.Write(p)
				}
				left -= len(p)
				return w.Write(p)
			}}, r)
		}))
	}
}

// once is a door that fails one request for a GET, and no other.
func once(f fault) fault {
	var failed atomic.Bool
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method != http.MethodGet || failed.Swap(true) {
			next.ServeHTTP(w, r)
			return
		}
		f(w, r, next)
	}
}

// proving is a door that proves what it has before the first byte goes out.
func proving(d time.Duration) fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		begun := time.Now()
		w.Header().Set("Pier-Missing", "1")
		next.ServeHTTP(&rigged{w, func(p []byte) (int, error) {
			if left := d - time.Since(begun); left > 0 {
				_ = http.NewResponseController(w).Flush()
				if err := wait(r.Context(), left); err != nil {
					return 0, err
				}
			}
			return w.Write(p)
		}}, r)
	}
}
