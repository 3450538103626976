package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"pier/internal/chain"
	"pier/internal/config"
)

// A stop takes at most drainFor for what is being served and releaseFor for transfers: under ten seconds together, which
// is what init systems and orchestrators give at least.
const (
	drainFor   = 7 * time.Second
	releaseFor = 2 * time.Second
)

// scrubPause is how long after all of the cache was read it is read again.
const scrubPause = time.Hour

// A door is a listener and what answers there.
type door struct {
	name    string
	addr    string
	tls     *tls.Config // nil: plain
	handler http.Handler
	drain   func(context.Context) // ends what the handler took over from the server; nil: nothing

	listener net.Listener
	server   *http.Server
}

func (d *door) open(ctx context.Context, log *slog.Logger) error {
	l, err := listen(ctx, d.addr)
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("%s door: %s is in use; stop what listens there or set %s%w", d.name, d.addr, d.flag(), quiet{err})
		}
		return fmt.Errorf("%s door: %w", d.name, err)
	}
	d.listener = l
	d.server = &http.Server{
		Handler:           d.handler,
		TLSConfig:         d.tls,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       time.Minute, // bodies are not read
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return nil
}

// listen listens on host:port, or a Unix socket that only this user may open, where none is that answers.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	var conf net.ListenConfig
	path, ok := strings.CutPrefix(addr, config.UnixPrefix)
	if !ok {
		return conf.Listen(ctx, "tcp", addr)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	short := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)) // the address of a socket has 107 bytes at most
	conf.Control = func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), 0o600) }) // it is made with these permissions
		return errors.Join(err, failed)
	}
	l, err := conf.Listen(ctx, "unix", short)
	if errors.Is(err, syscall.EADDRINUSE) {
		c, dialled := new(net.Dialer).DialContext(ctx, "unix", short)
		if dialled == nil {
			c.Close()
		}
		info, stat := os.Lstat(path)
		if stat != nil || info.Mode().Type() != os.ModeSocket || !errors.Is(dialled, syscall.ECONNREFUSED) {
			return nil, err // somebody has it, or it is no socket, and nothing of ours
		}
		if err = os.Remove(path); err == nil { // whoever had it is gone
			l, err = conf.Listen(ctx, "unix", short)
		}
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // by the short name it cannot be
		return socket{u, path}, nil
	}
	return nil, err
}

// A socket is a listener that takes its name away when it is closed.
type socket struct {
	*net.UnixListener
	path string
}

// Close implements [net.Listener].
func (s socket) Close() error {
	err := s.UnixListener.Close()
	if err == nil { // the first time: another may have the name by then
		err = os.Remove(s.path)
	}
	return err
}

// Addr implements [net.Listener].
func (s socket) Addr() net.Addr { return &net.UnixAddr{Name: s.path, Net: "unix"} }

// quiet is an error that has been said in other words.
type quiet struct{ error }

func (quiet) Error() string   { return "" }
func (q quiet) Unwrap() error { return q.error }

func (d *door) flag() string {
	if d.name == "node" {
		return "--listen"
	}
	return "--" + d.name + "-listen"
}

func (d *door) serve(context.Context) error {
	var err error
	if d.tls != nil {
		err = d.server.ServeTLS(d.listener, "", "")
	} else {
		err = d.server.Serve(d.listener)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("%s door: %w", d.name, err)
}

// close drains the door until ctx ends, then cuts what is left.
func (d *door) close(ctx context.Context) {
	_ = d.listener.Close() // in case it never served; else Shutdown does it again
	var rest sync.WaitGroup
	if d.drain != nil {
		rest.Go(func() { d.drain(ctx) })
	}
	if d.server.Shutdown(ctx) != nil {
		_ = d.server.Close() // of connections that are to be cut
	}
	rest.Wait()
}

// Run serves until ctx ends, and then drains and releases everything. SIGHUP reads the files of the configuration again
// that may change while it runs, see watch.
func (n *Node) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := n.listen(ctx)
	if err == nil {
		err = n.join()
	}
	if err != nil {
		return errors.Join(err, n.stop(&sync.WaitGroup{}))
	}
	var wg sync.WaitGroup
	work := func(do func(context.Context) error) {
		wg.Go(func() {
			if err := do(ctx); err != nil && ctx.Err() == nil {
				cancel(err) // one part that cannot go on ends the whole
			}
		})
	}
	for _, d := range n.doors {
		if d.listener != nil {
			work(d.serve)
		}
	}
	for _, store := range n.stores.containerds {
		work(store.Run)
	}
	if n.stores.docker != nil {
		work(n.stores.docker.Run)
	}
	if n.peers.group != nil {
		work(n.peers.group.Run)
		work(n.announce)
	}
	if n.cache != nil && n.cfg.ScrubRate > 0 {
		scrubbed := n.metrics.NewCounter("pier_scrubbed_bytes_total")
		work(chain.Scrubber{Source: n.disk, Rate: n.cfg.ScrubRate, Pause: scrubPause, Log: n.log, Read: func(bytes int) { scrubbed.Add(bytes) }}.Run)
	}
	if len(n.cfg.Preload) > 0 {
		work(n.preload)
	}
	if n.cfg.Refresh > 0 {
		work(n.refresh)
	}
	work(n.reload)
	n.ready(ctx)
	<-ctx.Done()
	err = context.Cause(ctx)
	if errors.Is(err, context.Canceled) {
		err = nil // asked to stop
	}
	return errors.Join(err, n.stop(&wg))
}

func (n *Node) listen(ctx context.Context) error {
	var errs []error
	for _, d := range n.doors {
		err := d.open(ctx, n.log)
		if errors.Is(err, syscall.EADDRINUSE) && d.name == "proxy" && n.cfg.ProxyByDefault {
			n.log.WarnContext(ctx, "nobody asked for a proxy, and there is one already: this node is none; to have one, set --proxy-listen", "addr", d.addr)
			continue
		}
		if err != nil && d.name == "control" {
			n.log.WarnContext(ctx, "pier list, prune and load cannot ask this node, as long as it runs: file systems of sticks, say, have no sockets", "err", err)
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		n.log.InfoContext(ctx, "listening", "door", d.name, "addr", d.listener.Addr().String(), "tls", d.tls != nil)
	}
	return errors.Join(errs...)
}

// ready tells the world that the doors are open.
func (n *Node) ready(ctx context.Context) {
	open := slices.ContainsFunc(n.cfg.Listen, func(addr string) bool {
		host, _, err := net.SplitHostPort(addr)
		return err == nil && !isLoopback(host) && !strings.HasPrefix(addr, config.UnixPrefix)
	})
	if open && n.cfg.TLSClientCA == "" {
		n.log.WarnContext(ctx, "the node door is open to the network: whoever reaches it pulls through this node, with this node's credentials")
	}
	if len(n.cfg.ProxyAllow) > 0 {
		n.log.WarnContext(ctx, "the proxy is open to other machines: they pull through this node, those without credentials of their own with this node's", "networks", n.cfg.ProxyAllow)
	}
	if n.peers.group != nil && n.peers.server == nil {
		n.log.WarnContext(ctx, "no cluster key: whoever is on this network can read what this node has, and answer for other nodes; see --cluster-key-file")
	}
	n.log.InfoContext(ctx, "serving", "version", n.version, "cache", n.cfg.CacheDir, "runtime", n.runtimeNames(), "air_gapped", n.cfg.AirGapped)
	notify("READY=1")
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

// stop drains all doors at once and lets go of everything.
func (n *Node) stop(wg *sync.WaitGroup) error {
	notify("STOPPING=1")
	n.log.Info("stopping")
	ctx, cancel := context.WithTimeout(context.Background(), drainFor)
	defer cancel()
	var doors sync.WaitGroup
	for _, d := range n.doors {
		if d.listener != nil {
			doors.Go(func() { d.close(ctx) })
		}
	}
	doors.Wait()
	wg.Wait()
	ctx, cancel = context.WithTimeout(context.Background(), releaseFor)
	defer cancel()
	return n.release(ctx)
}

// notify tells systemd's notification socket, if there is one (sd_notify(3)).
func notify(state string) {
	addr := os.Getenv("NOTIFY_SOCKET")
	if addr == "" {
		return
	}
	if strings.HasPrefix(addr, "@") {
		addr = "\x00" + addr[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: addr, Net: "unixgram"})
	if err != nil {
		return // a supervisor that does not listen does not wait either
	}
	defer conn.Close()
	_, _ = conn.Write([]byte(state))
}

// reload reads files again when they changed, or on SIGHUP. What is wrong is logged, and the old stays in force.
func (n *Node) reload(ctx context.Context) error {
	defer signal.Stop(n.hangup)
	n.memory.look()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for round := 0; ; round++ {
		asked := false
		select {
		case <-ctx.Done():
			return nil
		case <-n.hangup:
			asked = true
		case <-tick.C:
		}
		for i := range n.watched {
			n.watched[i].look(n.log, asked)
		}
		n.memory.look()
		if round%2 == 0 {
			n.rest()
		}
	}
}
