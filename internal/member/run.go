package member

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Run joins the others, and stays with them until ctx ends. Then it takes its leave, which the others know within a second,
// and closes what New opened, in at most 2 s. It fails only if it cannot listen. It must be called once.
func (g *Group) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		g.leave()
		if socket := g.opened(); socket != nil {
			socket.close()
		}
		wg.Wait()
	}()
	wg.Go(func() { g.deliver(ctx) })
	wg.Go(func() { g.report(ctx) })
	wg.Go(func() { g.discover(ctx) })
	wg.Go(func() { g.lookUp(ctx) })

	tick := time.NewTicker(g.c.pace.tick)
	defer tick.Stop()
	var looked time.Time
	for ctx.Err() == nil {
		if g.list.Load() == nil || time.Since(looked) >= g.c.pace.follow {
			looked = time.Now()
			if err := g.settle(ctx); err != nil {
				return err
			}
		}
		g.view.prune()
		g.rejoin(ctx, wg.Go)
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-g.kick:
		}
	}
	return nil
}

// settle sees to it that this node listens, and gossips under an address it has.
func (g *Group) settle(ctx context.Context) error {
	if err := g.bind(); err != nil {
		return err
	}
	old := g.Self().gossipAddr()
	at, moved := g.locate(ctx)
	if !at.IsValid() || !moved && g.list.Load() != nil {
		return nil
	}
	if g.list.Load() != nil {
		g.log.InfoContext(ctx, "this node has another address", "name", at.String(), "old", old.String())
		g.leave()
		for _, m := range g.view.suspend() {
			g.targets.remember(lost, m.gossipAddr())
		}
	}
	if err := g.start(g.opened(), at); err != nil {
		return err
	}
	g.log.InfoContext(ctx, "gossiping", "name", at.String(), "cluster", g.c.Cluster, "encrypted", len(g.ring.GetKeys()) > 0)
	g.targets.hasten()
	return nil
}

// bind listens, unless this node does already, or its machine does not have the address yet.
func (g *Group) bind() error {
	if g.opened() != nil {
		return nil
	}
	socket, err := openSocket(g.listen, g.meter, g.view.count)
	switch {
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		if g.absent.ok() {
			g.log.Warn("this machine does not have the address to listen at for gossip; it is waited for", "addr", g.listen.String())
		}
		return nil
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("gossip: %s is in use; stop what listens there or set --gossip-listen", g.listen)
	case err != nil:
		return fmt.Errorf("gossip: --gossip-listen: %w", err)
	}
	g.mu.Lock()
	g.socket = socket
	g.mu.Unlock()
	return nil
}

func (g *Group) opened() *socket {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.socket
}

// locate finds the address others reach this node at, makes it Self's, and says whether it is another than before. Without
// any it is not valid; one that went while there is no other stays.
func (g *Group) locate(ctx context.Context) (at netip.AddrPort, moved bool) {
	here := g.c.machine()
	socket := g.opened()
	g.mu.Lock()
	g.here = here
	chosen, self := g.chosen, g.self
	g.mu.Unlock()
	if socket == nil {
		return at, false
	}
	switch {
	case g.advertise.host != "":
		chosen = g.resolveOwn(ctx, chosen)
	case !g.listen.every():
		chosen = choice{g.listen.ip, true}
	default:
		if c := here.choose(chosen, g.listen.ip.Is4()); c.ip.IsValid() {
			chosen = c
		}
	}
	if !chosen.ip.IsValid() {
		return at, false
	}
	port := socket.port
	if g.advertise.port != 0 {
		port = g.advertise.port
	}
	at = netip.AddrPortFrom(chosen.ip, port)
	if moved = at != self.gossipAddr(); moved {
		self.Name, self.Addr, self.Gossip = at.String(), at.Addr(), at.Port()
	}
	g.mu.Lock()
	g.chosen, g.self = chosen, self
	g.mu.Unlock()
	if moved {
		g.notify()
		signal(g.moved)
	}
	return at, moved
}

// resolveOwn returns the address of Config.Advertise: now if it is still one of them or they cannot be looked up.
func (g *Group) resolveOwn(ctx context.Context, now choice) choice {
	ips, err := g.resolve(ctx, g.advertise.host)
	if err != nil && g.nameless.ok() {
		g.log.WarnContext(ctx, "the name that others are to reach this node by cannot be looked up; it is tried again and again",
			"name", g.advertise.host, "alone", !now.ip.IsValid(), "err", err)
	}
	if err != nil || slices.Contains(ips, now.ip) {
		return now
	}
	if i := slices.IndexFunc(ips, netip.Addr.Is4); i >= 0 {
		return choice{ips[i], true}
	}
	return choice{ips[0], true}
}

// deliver hands on the messages of the others.
func (g *Group) deliver(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case msg := <-g.inbox:
			if g.c.Message != nil {
				g.c.Message(msg)
			}
		}
	}
}

// report calls Config.Change after changes, once for those that come together.
func (g *Group) report(ctx context.Context) {
	self, others := g.Self(), []Member(nil)
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.changed:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(g.c.pace.debounce):
		}
		nowSelf, now := g.Self(), g.Members()
		if nowSelf == self && slices.Equal(now, others) {
			continue
		}
		self, others = nowSelf, slices.Clone(now)
		if g.c.Change != nil {
			g.c.Change(now)
		}
	}
}
