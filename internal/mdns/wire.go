package mdns

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sort"
	"sync"
)

// maxLinks is how many interfaces are used. A node with more has them for containers.
const maxLinks = 16

// A wire is all sockets, and who reads from them. All but the readers belongs to one goroutine.
type wire struct {
	log     *slog.Logger
	packets chan packet
	sockets map[place]*socket
	silent  bool // that none can be opened has been said
	readers sync.WaitGroup
}

// A place is where a socket is: an interface, and a family of addresses.
type place struct {
	index int
	ip4   bool
}

// links returns the interfaces to be used, and opens sockets for all of their addresses, to be read until ctx ends. Those
// of interfaces and addresses that are gone are closed.
func (w *wire) links(ctx context.Context) []link {
	links, err := interfaces()
	faults := []error{err}
	wanted := make(map[place]bool)
	for _, l := range links {
		for _, a := range l.addrs {
			at := place{l.index, a.Is4()}
			if wanted[at] = true; w.sockets[at] != nil {
				continue
			}
			s, err := open(at)
			if err != nil {
				faults = append(faults, err)
				w.log.DebugContext(ctx, "mdns not possible on an interface", "interface", l.name, "err", err)
				continue
			}
			w.sockets[at] = s
			w.readers.Go(func() { s.receive(ctx, w.packets) })
		}
	}
	for at, s := range w.sockets {
		if !wanted[at] {
			w.drop(s)
		}
	}
	fault := errors.Join(faults...)
	if fault != nil && len(w.sockets) == 0 && !w.silent {
		w.log.WarnContext(ctx, "mdns is not possible; it is tried again every minute", "err", fault)
	}
	w.silent = fault != nil && len(w.sockets) == 0
	return links
}

// send sends b on l: to one, or in every family to the group.
func (w *wire) send(l *link, to netip.AddrPort, b []byte) error {
	var faults []error
	for _, ip4 := range []bool{true, false} {
		s := w.sockets[place{l.index, ip4}]
		switch {
		case s == nil:
		case !to.IsValid():
			faults = append(faults, s.send(b, s.group))
		case to.Addr().Is4() == ip4:
			faults = append(faults, s.send(b, to))
		}
	}
	return errors.Join(faults...)
}

// drop closes a socket. If it is wanted, the next call of links opens another.
func (w *wire) drop(s *socket) {
	s.conn.Close()
	if w.sockets[s.place] == s {
		delete(w.sockets, s.place)
	}
}

// close waits for the readers, whose context has ended.
func (w *wire) close() {
	for _, s := range w.sockets {
		s.conn.Close()
	}
	w.readers.Wait()
}

// network returns the network that an interface's address is in. DHCP for IPv6 gives addresses alone (/128), in a network of 64 bits.
func network(p netip.Prefix) netip.Prefix {
	if p.Addr().Is6() {
		p = netip.PrefixFrom(p.Addr(), min(p.Bits(), 64))
	}
	return p.Masked()
}

// interfaces returns the interfaces that are up and connected to a link with others. Those of containers mostly have nothing but a
// link-local address of IPv6: they are returned only if all are so.
func interfaces() ([]link, error) {
	const need, never = net.FlagUp | net.FlagRunning | net.FlagMulticast, net.FlagLoopback | net.FlagPointToPoint
	all, err := net.Interfaces()
	var links, bare []link
	for _, i := range all {
		if i.Flags&need != need || i.Flags&never != 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it is gone
		}
		l, named := link{index: i.Index, name: i.Name}, false
		var found []netip.Prefix
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				found = append(found, p)
				named = named || p.Addr().Is4() || p.Addr().IsGlobalUnicast()
			}
		}
		sort.Slice(found, func(i, j int) bool { return found[i].Addr().Less(found[j].Addr()) })
		for _, p := range found[:min(len(found), maxAddrs)] {
			l.addrs = append(l.addrs, p.Addr())
			l.nets = append(l.nets, network(p))
		}
		switch {
		case named:
			links = append(links, l)
		case len(l.addrs) > 0:
			bare = append(bare, l)
		}
	}
	if len(links) == 0 {
		links = bare
	}
	return links[:min(len(links), maxLinks)], err
}
