package member

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"time"
)

// maxAddrs bounds the addresses of one name that are tried.
const maxAddrs = 8

// maxAnswer is the bytes taken of a door's answer, and of its header.
const maxAnswer = 64 << 10

var (
	errHere = errors.New("this node itself")
	errFull = errors.New("too many members")
	// Where an address means another machine to everybody, such as this one's own services or its cloud's, a member could have all nodes ask there.
	errElsewhere = errors.New("an address that means another machine here")
)

// rejoin starts the tries that are due, as many as may run at once. It waits for none.
func (g *Group) rejoin(ctx context.Context, work func(func())) {
	if g.list.Load() == nil {
		return // nobody could answer
	}
	here := func(at netip.AddrPort) bool { return g.view.present(at) || g.isHere(at) }
	for _, t := range g.targets.due(cap(g.tries)-len(g.tries), here) {
		g.tries <- struct{}{}
		work(func() {
			defer func() { <-g.tries; signal(g.kick) }()
			g.try(ctx, t)
		})
	}
}

// greet joins a member again, unless enough others are being joined: it will be probed again.
func (g *Group) greet(at netip.AddrPort) {
	select {
	case g.tries <- struct{}{}:
	default:
		return
	}
	go func() { // ends within twice pace.exchange, or with the transport
		defer func() { <-g.tries; signal(g.kick) }()
		if err := g.join(at); err != nil {
			g.log.Debug("member that was restarted not joined", "at", at, "err", err)
		}
	}()
}

// try finds t and joins it.
func (g *Group) try(ctx context.Context, t *target) {
	ips, err := g.resolve(ctx, t.host)
	g.targets.learned(t, ips, netip.AddrPort{})
	if t.kind == removed {
		g.targets.tried(t, err == nil)
		return
	}
	for _, ip := range ips {
		var at netip.AddrPort
		if at, err = g.reach(ctx, t, ip); at.IsValid() {
			g.targets.learned(t, nil, at)
		}
		if err == nil || errors.Is(err, errHere) || ctx.Err() != nil {
			break
		}
	}
	ok := err == nil || errors.Is(err, errHere)
	switch worth := g.targets.tried(t, ok); {
	case ctx.Err() != nil:
	case ok:
		g.log.DebugContext(ctx, "joined", "node", t.place.String(), "err", err)
		if worth {
			g.log.InfoContext(ctx, "a node that could not be reached is", "node", t.place.String())
		}
	case worth:
		g.log.WarnContext(ctx, "node cannot be reached; it is tried again and again", "node", t.place.String(), "err", err)
	default:
		g.log.DebugContext(ctx, "not joined", "node", t.place.String(), "err", err)
	}
}

// reach joins the node at ip, whose gossip or another door is at t's port. It returns where the gossip is, if that was found.
func (g *Group) reach(ctx context.Context, t *target, ip netip.Addr) (netip.AddrPort, error) {
	gossip, door := t.port, t.port
	if t.port == 0 {
		gossip, door = defaultGossip, defaultDoor
	}
	at := netip.AddrPortFrom(ip, gossip)
	if g.isHere(at) {
		return at, errHere
	}
	direct := make(chan error, 1)
	go func() { direct <- g.join(at) }() // ends within twice pace.exchange, or with the transport
	var err error
	if t.kind == configured || t.kind == filed || t.kind == named {
		// Doors that wait for the rest of a request would hold up the joining for all of its time.
		select {
		case err = <-direct:
			if err == nil {
				return at, nil
			}
			direct <- err
		case <-time.After(g.c.pace.ask):
		case <-ctx.Done():
		}
		asked, askErr := g.ask(ctx, netip.AddrPortFrom(ip, door))
		if askErr == nil && asked != at {
			if g.isHere(asked) {
				return asked, errHere
			}
			return asked, g.join(asked)
		}
		err = askErr
	}
	if joinErr := <-direct; joinErr != nil {
		return netip.AddrPort{}, errors.Join(joinErr, err)
	}
	return at, nil
}

// ask asks the door at a node for its gossip. Only the port of the answer counts.
func (g *Group) ask(ctx context.Context, door netip.AddrPort) (netip.AddrPort, error) {
	ctx, cancel := context.WithTimeout(ctx, g.c.pace.exchange)
	defer cancel()
	port, err := g.c.HTTP(ctx, door.String())
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("asked as a door: %w", err)
	}
	if port == 0 {
		return netip.AddrPort{}, fmt.Errorf("asked as a door: %s has no gossip", door)
	}
	return netip.AddrPortFrom(door.Addr(), port), nil
}

// join exchanges all that is known of the cluster with the node whose gossip is at at.
func (g *Group) join(at netip.AddrPort) error {
	list := g.list.Load()
	if list == nil {
		return errors.New("no address of its own yet")
	}
	_, err := list.Join([]string{at.String()})
	if many, ok := err.(interface{ WrappedErrors() []error }); ok { // of one address, in many lines
		err = errors.Join(many.WrappedErrors()...)
	}
	return err
}

// isHere reports whether the gossip at that address is this node's.
func (g *Group) isHere(at netip.AddrPort) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if at == netip.AddrPortFrom(g.self.Addr, g.self.Gossip) {
		return true
	}
	if g.socket == nil || at.Port() != g.socket.port {
		return false
	}
	if !g.listen.every() {
		return at.Addr() == g.listen.ip
	}
	return at.Addr().IsLoopback() || g.here.has(at.Addr())
}

// resolve returns the addresses of host, which may be one.
func (g *Group) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	ips, err := g.c.resolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	ips = ips[:min(len(ips), maxAddrs)]
	for i, ip := range ips {
		ips[i] = ip.Unmap().WithZone("")
	}
	return ips, nil
}

// An asker is [Config.HTTP] where nothing else is set.
type asker struct{ tls *tls.Config }

func (d asker) ask(ctx context.Context, hostport string) (uint16, error) {
	//nolint:gosec // The answer is a hint about whom to join. Whether the cluster trusts that node, its key decides.
	open := &tls.Config{InsecureSkipVerify: true}
	tries := []struct {
		scheme string
		tls    *tls.Config
	}{{"http", nil}, {"https", open}}
	if d.tls != nil {
		tries = append(tries, tries[1])
		tries[1].tls = d.tls
	}
	var errs []error
	for _, t := range tries {
		client := http.Client{
			Transport:     &http.Transport{DisableKeepAlives: true, TLSClientConfig: t.tls, MaxResponseHeaderBytes: maxAnswer},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
		port, err := askOver(ctx, &client, t.scheme+"://"+hostport+"/api/v1/node")
		if err == nil {
			return port, nil
		}
		errs = append(errs, err)
	}
	return 0, errors.Join(errs...)
}

func askOver(ctx context.Context, client *http.Client, url string) (uint16, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s: status %s", url, strconv.Itoa(resp.StatusCode))
	}
	var answer struct {
		Port uint16 `json:"gossip_port"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&answer); err != nil {
		return 0, fmt.Errorf("%s: %w", url, err)
	}
	return answer.Port, nil
}
