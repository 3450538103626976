// Package sockaddr stands in for the package of that path, of which memberlist asks which of its addresses others may reach.
package sockaddr

import (
	"fmt"
	"net"
	"net/netip"
)

// An IPAddr is an address.
type IPAddr struct{ netip.Addr }

// SockAddr is what an IPAddr is.
type SockAddr interface{ String() string }

// IfAddr is an address of an interface.
type IfAddr struct {
	SockAddr
	net.Interface
}

// IfAddrs are addresses of interfaces.
type IfAddrs []IfAddr

// NewIPAddr reads an address.
func NewIPAddr(text string) (IPAddr, error) {
	addr, err := netip.ParseAddr(text)
	return IPAddr{addr}, err
}

// IfByRFC parts addresses into those that RFC 6890 keeps from the Internet, and the others.
func IfByRFC(rfc string, all IfAddrs) (special, others IfAddrs, err error) {
	if rfc != "6890" {
		return nil, nil, fmt.Errorf("sockaddr: RFC %s is not known", rfc)
	}
	for _, a := range all {
		if ip, ok := a.SockAddr.(IPAddr); ok && public(ip.Addr) {
			others = append(others, a)
		} else {
			special = append(special, a)
		}
	}
	return special, others, nil
}

// public reports whether an address is one of the Internet.
func public(a netip.Addr) bool { return a.IsGlobalUnicast() && !a.IsPrivate() }

// GetPrivateIP returns the first private address of IPv4 that this machine has; empty: it has none.
func GetPrivateIP() (string, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && p.Addr().IsPrivate() {
			return p.Addr().String(), nil
		}
	}
	return "", nil
}
