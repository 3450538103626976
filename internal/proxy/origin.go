package proxy

import (
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// An origin is where a request is to go.
type origin struct {
	scheme string // "http", or "https" for all that came by CONNECT
	host   string // a name in lower case without a dot at its end, or an address without brackets
	port   uint16
}

var errAuthority = errors.New("not a host and a port")

// parseAuthority reads host[:port]. Without a default port, which is 0, there must be one. A user, a zone, a scheme and
// spaces are errors, as is whatever no certificate could name.
func parseAuthority(s, scheme string, defaultPort uint16) (origin, error) {
	host, port := s, ""
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		host, port = s[:i], s[i+1:]
		if port == "" {
			return origin{}, errAuthority
		}
	}
	o := origin{scheme: scheme, port: defaultPort}
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return origin{}, errAuthority
		}
		o.port = uint16(n)
	}
	inner, bracketed := strings.CutPrefix(host, "[")
	if bracketed {
		var ok bool
		if inner, ok = strings.CutSuffix(inner, "]"); !ok {
			return origin{}, errAuthority
		}
	}
	addr, err := netip.ParseAddr(inner)
	switch {
	case o.port == 0, bracketed != (err == nil && addr.Is6()), addr.Zone() != "":
		return origin{}, errAuthority
	case err == nil:
		o.host = addr.String()
		return o, nil
	}
	o.host = strings.ToLower(strings.TrimSuffix(host, "."))
	if !validName(o.host) {
		return origin{}, errAuthority
	}
	return o, nil
}

// validName reports whether s is a name of letters, digits, hyphens, underscores and dots, of the lengths that RFC 1035
// allows.
func validName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}

// address returns host:port, as it is dialled.
func (o origin) address() string { return net.JoinHostPort(o.host, strconv.Itoa(int(o.port))) }

// name returns the origin as registries are named: with a port only if it is not the scheme's own.
func (o origin) name() string {
	if o.port == 443 && o.scheme == "https" || o.port == 80 && o.scheme == "http" {
		return strings.TrimSuffix(o.address(), ":"+strconv.Itoa(int(o.port)))
	}
	return o.address()
}
