package member

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// addresses are those of this machine.
type addresses struct {
	all   []netip.Addr // of interfaces that are up, loopback included
	route []netip.Addr // global ones that packets to far hosts go from: at most one IPv4 and one IPv6
}

func (a addresses) has(ip netip.Addr) bool { return slices.Contains(a.all, ip) }

// machine looks up the addresses of this machine.
func machine() addresses {
	var a addresses
	interfaces, err := net.Interfaces()
	if err != nil {
		return a
	}
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagRunning == 0 {
			continue // such as a bridge that nothing is connected to
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it went away in between
		}
		for _, addr := range addrs {
			if n, ok := addr.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(n.IP); ok {
					a.all = append(a.all, ip.Unmap())
				}
			}
		}
	}
	// The kernel names the address it would send from; connecting a UDP socket sends nothing. The targets are of the
	// ranges for documentation (RFC 5737, RFC 3849): no route but the default one leads there.
	for _, far := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} {
		conn, err := (&net.Dialer{}).DialContext(context.Background(), "udp", far)
		if err != nil {
			continue // there is no such route
		}
		if ap := conn.LocalAddr().(*net.UDPAddr).AddrPort(); ap.Addr().Unmap().IsGlobalUnicast() {
			a.route = append(a.route, ap.Addr().Unmap())
		}
		conn.Close()
	}
	return a
}

// A choice is an address to be reached at.
type choice struct {
	ip     netip.Addr
	routed bool // packets to far hosts go from it
}

// choose returns the address to be reached at, not valid if there is none. It stays with now as long as this machine has it,
// but for one that was chosen when there was no default route: what a machine has first is often the bridge of its containers.
func (a addresses) choose(now choice, v4only bool) choice {
	usable := func(ip netip.Addr) bool { return ip.Is4() || !v4only }
	i := slices.IndexFunc(a.route, usable)
	if a.has(now.ip) && (now.routed || i < 0) {
		return now
	}
	if i >= 0 {
		return choice{a.route[i], true}
	}
	for _, good := range []func(netip.Addr) bool{netip.Addr.IsPrivate, netip.Addr.IsGlobalUnicast} {
		for _, ip := range a.all {
			if good(ip) && usable(ip) {
				return choice{ip, false}
			}
		}
	}
	return choice{}
}

// A listenAddress is what Config.Listen says.
type listenAddress struct {
	ip   netip.Addr // not valid: every address
	port uint16
}

func (l listenAddress) every() bool { return !l.ip.IsValid() || l.ip.IsUnspecified() }

func (l listenAddress) String() string {
	host := ""
	if l.ip.IsValid() {
		host = l.ip.String()
	}
	return net.JoinHostPort(host, strconv.Itoa(int(l.port)))
}

func parseListen(s string) (listenAddress, error) {
	if s == "" {
		s = ":" + strconv.Itoa(defaultGossip)
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return listenAddress{}, fmt.Errorf("--gossip-listen: %q is no address: write host:port, for example :%d", s, defaultGossip)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return listenAddress{}, fmt.Errorf("--gossip-listen: %q is no port", port)
	}
	l := listenAddress{port: uint16(n)}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	if host != "" {
		if l.ip, err = netip.ParseAddr(host); err != nil || l.ip.Zone() != "" {
			return l, fmt.Errorf("--gossip-listen: %q is no IP address", host)
		}
		l.ip = l.ip.Unmap()
	}
	return l, nil
}

// An advertiseAddress is what Config.Advertise says: an address or a name, or nothing; and a port, or 0.
type advertiseAddress struct {
	host string
	port uint16
}

func parseAdvertise(s string) (advertiseAddress, error) {
	if s == "" {
		return advertiseAddress{}, nil
	}
	p, err := parsePlace(s)
	if err != nil {
		return advertiseAddress{}, fmt.Errorf("--advertise-addr: %w", err)
	}
	return advertiseAddress(p), nil
}

// The ports that a node written without one is looked for at.
const (
	defaultGossip = 7946
	defaultDoor   = 5000
)

// A place is where a node is to be found: the host (a name or an address), and the port of any of its doors, 0 if not said.
type place struct {
	host string
	port uint16
}

// parsePlace reads HOST, HOST:PORT, ADDRESS or [ADDRESS]:PORT.
func parsePlace(s string) (place, error) {
	if strings.Contains(s, "/") {
		return place{}, fmt.Errorf("%.80q: write host or host:port, without a scheme or a path", s)
	}
	host, port := s, ""
	if h, p, err := net.SplitHostPort(s); err == nil {
		host, port = h, p
		if port == "" {
			return place{}, fmt.Errorf("%.80q: the port is missing", s)
		}
	} else if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		host = s[1 : len(s)-1]
	}
	var p place
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return place{}, fmt.Errorf("%.80q: %.20q is no port", s, port)
		}
		p.port = uint16(n)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.Zone() != "" || ip.IsUnspecified() {
			return place{}, fmt.Errorf("%.80q: %s is no address that a node can be reached at from everywhere", s, host)
		}
		p.host = ip.Unmap().String()
		return p, nil
	}
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
	if host == "" || len(host) > 254 || strings.Trim(host, letters) != "" || strings.Trim(host, "0123456789.") == "" {
		return place{}, fmt.Errorf("%.80q is no node: write host or host:port, for example node2.lan or [fd00::2]:5000", s)
	}
	p.host = host
	return p, nil
}

func (p place) String() string {
	if p.port == 0 {
		return p.host
	}
	return net.JoinHostPort(p.host, strconv.Itoa(int(p.port)))
}
