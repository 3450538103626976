package member

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"
)

// lookupTimeout bounds a look-up in the DNS.
const lookupTimeout = 3 * time.Second

// discover runs Config.Discover, anew after it ended and when this node has another address.
func (g *Group) discover(ctx context.Context) {
	if g.c.Discover == nil {
		return
	}
	for ctx.Err() == nil {
		run, stop := context.WithCancel(ctx)
		ended := make(chan struct{})
		var err error // set when ended is closed
		go func() {
			defer close(ended)
			if self := g.Self(); self.Name != "" { // otherwise there is nothing to be found by, and nobody to be reached
				err = g.c.Discover(run, self, g.discovered)
			}
		}()
		var retry <-chan time.Time
		select {
		case <-ctx.Done():
		case <-g.moved:
		case <-ended:
			retry = time.After(g.c.pace.discovery)
		}
		stop()
		<-ended
		if retry == nil || ctx.Err() != nil {
			continue
		}
		if err != nil {
			g.log.WarnContext(ctx, "search for nodes on the link ended; it begins anew", "err", err, "in", g.c.pace.discovery)
		}
		select {
		case <-ctx.Done():
		case <-g.moved:
		case <-retry:
		}
	}
}

// discovered takes an address that Config.Discover saw.
func (g *Group) discovered(at netip.AddrPort) {
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	ip := at.Addr()
	if !ip.IsGlobalUnicast() && !ip.IsLoopback() || at.Port() == 0 || g.isHere(at) || g.view.present(at) {
		return // an address of the link alone is of no use to members beyond it
	}
	if g.targets.remember(found, at) {
		signal(g.kick)
	}
}

// lookUp looks Config.DNS up again and again. If it does not answer, its last answer holds.
func (g *Group) lookUp(ctx context.Context) {
	if g.c.DNS == "" {
		return
	}
	tick := time.NewTicker(g.c.pace.resolve)
	defer tick.Stop()
	for {
		places, err := g.lookupPlaces(ctx, g.c.DNS)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if g.nameless.ok() {
				g.log.WarnContext(ctx, "name of the nodes cannot be looked up; it is tried again and again", "name", g.c.DNS, "err", err)
			}
		default:
			g.targets.list(named, places)
			signal(g.kick)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// lookupPlaces returns the nodes that name stands for: the services of its SRV records if it is the name of a service (RFC 2782: it
// begins with an underscore) or has nothing else, otherwise its addresses, where gossip is at the port of this node's.
func (g *Group) lookupPlaces(ctx context.Context, name string) ([]place, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	port := uint16(defaultGossip)
	if socket := g.opened(); socket != nil {
		port = socket.port
	}
	var places []place
	var addrErr error
	if !strings.HasPrefix(name, "_") {
		var ips []netip.Addr
		ips, addrErr = g.c.resolver.LookupNetIP(ctx, "ip", name)
		for _, ip := range ips {
			places = append(places, place{ip.Unmap().WithZone("").String(), port})
		}
	}
	if len(places) == 0 {
		_, records, err := g.c.resolver.LookupSRV(ctx, "", "", name)
		if err != nil {
			return nil, errors.Join(addrErr, err)
		}
		for _, r := range records {
			places = append(places, place{r.Target, r.Port})
		}
	}
	rand.Shuffle(len(places), func(i, j int) { places[i], places[j] = places[j], places[i] })
	return places[:min(len(places), maxNamed)], nil
}
