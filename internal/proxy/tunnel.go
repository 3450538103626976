package proxy

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// period is how often a tunnel that copies without a pause looks up, so that what it moves is counted.
	period = 30 * time.Second

	drainTime = time.Second // without a byte either way, after which a tunnel of a proxy that stops is over
)

// tunnel copies both ways between a client and its target until both have said all, or nothing moves any more. Then it has
// left.
func (p *Proxy) tunnel(g *guest) {
	p.meter.tunnel.Inc()
	defer p.leave(g.remote, g)
	defer g.Close()
	var wg sync.WaitGroup
	var up, down error
	wg.Go(func() { up = g.carry(g.target, g.Conn, &g.rcvd) })
	down = g.carry(g.Conn, g.target, &g.sent)
	wg.Wait()
	p.meter.fromClients.AddInt64(g.rcvd.Load())
	p.meter.toClient.AddInt64(g.sent.Load())
	attrs := []slog.Attr{
		slog.String("kind", "tunnel"), slog.String("host", g.origin.address()), slog.Int64("received", g.rcvd.Load()),
		slog.Int64("sent", g.sent.Load()), slog.Duration("dur", time.Since(g.start)), slog.String("remote", g.remote),
	}
	if up == nil || errors.Is(up, net.ErrClosed) { // which is what one way's end does to the other
		up = down
	}
	if up != nil {
		attrs = append(attrs, slog.String("err", line(up)))
	}
	p.log.LogAttrs(context.Background(), slog.LevelInfo, "proxied", attrs...)
}

// carry copies one way until the source has said all, and hands that on. On any other end both ways are over.
//
// The copy is the kernel's where both ends are TCP, which tells nothing before it is over: so it is given a deadline
// again and again, and goes on. A read that ends by its deadline has lost nothing, but a write has: writes get so
// much longer that only one of a peer which took nothing for as long as tunnels may rest ends by it.
func (g *guest) carry(dst, src net.Conn, bytes *atomic.Int64) error {
	err := g.first(dst, src, bytes)
	for err == nil {
		draining := g.draining.Load()
		limit, pause := g.p.idle, min(period, g.p.idle/4)
		if draining {
			limit, pause = drainTime, drainTime/4
		}
		now := time.Now()
		writeBy := now.Add(pause + limit)
		_ = src.SetReadDeadline(now.Add(pause)) // they fail only with the connection
		_ = dst.SetWriteDeadline(writeBy)
		if draining != g.draining.Load() {
			continue // the deadlines undid those of drain
		}
		var n int64
		n, err = io.Copy(dst, src)
		g.moved(bytes, n)
		switch {
		case err == nil:
			if err = closeWrite(dst); err == nil {
				return nil
			}
		case errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(writeBy):
			if err = nil; time.Since(g.start)-time.Duration(g.last.Load()) >= limit {
				err = errIdle
			}
		}
	}
	g.Close()
	return err
}

// first carries what was read ahead.
func (g *guest) first(dst, src net.Conn, bytes *atomic.Int64) error {
	if src != g.Conn || len(g.ahead) == 0 {
		return nil
	}
	_ = dst.SetWriteDeadline(time.Now().Add(headerTime))
	n, err := dst.Write(g.ahead)
	g.moved(bytes, int64(n))
	return err
}

func (g *guest) moved(bytes *atomic.Int64, n int64) {
	if n > 0 {
		bytes.Add(n)
		g.last.Store(int64(time.Since(g.start)))
	}
}

// drain makes a tunnel end as soon as nothing moves in it. Other guests are the inner server's to drain.
func (g *guest) drain() {
	ends := g.ends()
	if g.draining.Swap(true) || len(ends) < 2 {
		return
	}
	for _, c := range ends {
		_ = c.SetReadDeadline(time.Now())
		_ = c.SetWriteDeadline(time.Now().Add(drainTime))
	}
}

// closeWrite says that nothing more comes. To whom has left, nothing need be said.
func closeWrite(c net.Conn) error {
	half, ok := c.(interface{ CloseWrite() error })
	if !ok {
		return c.Close()
	}
	if err := half.CloseWrite(); !errors.Is(err, syscall.ENOTCONN) {
		return err
	}
	return nil
}
