package upstream

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"

	"pier/internal/oci"
)

// A pattern allows registries by name.
type pattern struct {
	any  bool
	sub  bool   // subdomains of host, not host itself
	host string // lower case
	port string // "" means none (or 443), "*" any

	repositories string // a pattern of them; "": all
}

// parsePattern reads an element of [Config.Allow].
func parsePattern(s string) (pattern, error) {
	var p pattern
	name, repositories, ok := strings.Cut(s, "/")
	if p.repositories = repositories; ok && (repositories == "" || !validGlob(repositories)) {
		return pattern{}, fmt.Errorf("pattern %.80q: after the slash want repositories, in which * is any text, ? one character, [a-z] one of several", s)
	}
	if name == "*" {
		p.any = true
		return p, nil
	}
	rest, sub := strings.CutPrefix(name, "*.")
	p.sub = sub
	if cut, ok := strings.CutSuffix(rest, ":*"); ok {
		p.host, p.port = cut, "*"
	} else {
		p.host, p.port = splitPort(rest)
	}
	p.host, _ = oci.Canonical(p.host, "")
	if strings.HasSuffix(rest, ":") || !validName(p.host) || p.port != "" && p.port != "*" && !validName("x:"+p.port) {
		return pattern{}, fmt.Errorf("pattern %.80q of registries is not a name, *.name, name:port, name:* or *", s)
	}
	return p, nil
}

func (p pattern) match(name string) bool {
	host, port := splitPort(name)
	if p.port != "*" && port != p.port && (p.port != "" || port != "443") {
		return false
	}
	if p.sub {
		return strings.HasSuffix(host, "."+p.host)
	}
	return host == p.host
}

func validGlob(s string) bool {
	_, err := path.Match(s, "")
	return err == nil
}

// glob is path.Match in which * crosses slashes: repositories are as deep as their owners like.
func glob(pattern, repository string) bool {
	ok, _ := path.Match(strings.ReplaceAll(pattern, "/", "\x00"), strings.ReplaceAll(repository, "/", "\x00"))
	return ok
}

// permits returns an error wrapping [oci.ErrNotAllowed] for a repository of a registry that may be asked for others only.
func (d *directory) permits(e *endpoint, repository string) error {
	limits := e.repositories
	if d.listed[e.name] == nil {
		for _, p := range d.allow {
			if !p.any && !p.match(e.name) {
				continue
			}
			if p.repositories == "" {
				return nil
			}
			limits = append(limits, p.repositories)
		}
	}
	if len(limits) == 0 || slices.ContainsFunc(limits, func(p string) bool { return glob(p, repository) }) {
		return nil
	}
	return fmt.Errorf("repository %.300s of %s is not among those allowed: %w", repository, e.name, oci.ErrNotAllowed)
}

// Patterns are patterns of registries, each as in [Config.Allow].
type Patterns []pattern

// ParsePatterns parses patterns. The error joins all faults.
func ParsePatterns(list []string) (Patterns, error) {
	var all Patterns
	var faults []error
	for _, s := range list {
		p, err := parsePattern(s)
		if err == nil && p.repositories != "" {
			err = fmt.Errorf("pattern %.80q names repositories: here want registries alone", s)
		}
		faults = append(faults, err)
		all = append(all, p)
	}
	return all, errors.Join(faults...)
}

// Match reports whether one of the patterns takes in a registry, by its canonical name.
func (p Patterns) Match(name string) bool {
	return slices.ContainsFunc(p, func(p pattern) bool { return p.any || p.match(name) })
}

// splitPort splits host[:port]. An IPv6 address keeps its brackets.
func splitPort(name string) (host, port string) {
	i := strings.LastIndexByte(name, ':')
	if i < 0 || strings.HasSuffix(name, "]") {
		return name, ""
	}
	return name[:i], name[i+1:]
}

// literal returns the address that a registry's name is, or the zero Addr.
func literal(name string) netip.Addr {
	host, _ := splitPort(name)
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	if err != nil {
		return netip.Addr{}
	}
	return addr.Unmap()
}

// specialNames are domains that never name a public host: RFC 6761, RFC 6762 (local), RFC 7686 (onion), RFC 8375
// (home.arpa), and internal, which ICANN reserved for private use in 2024.
var specialNames = []string{"localhost", "local", "internal", "home.arpa", "invalid", "onion"}

// publicName reports whether a registry's name can be that of a public host: a name of several labels, not an address in
// any spelling that some resolver understands ("127.1", "0x7f.0.0.1", "2130706433"), not a name of private use.
func publicName(name string) bool {
	host, _ := splitPort(strings.ToLower(name))
	host = strings.TrimSuffix(host, ".")
	i := strings.LastIndexByte(host, '.')
	if i < 0 || strings.ContainsAny(host, "[:%") { // an IPv6 address, perhaps with a zone
		return false
	}
	// By the URL standard's rule, a host is an address if its last label is a number. No top-level domain starts with a digit.
	if last := host[i+1:]; last == "" || last[0] >= '0' && last[0] <= '9' {
		return false
	}
	for _, s := range specialNames {
		if host == s || strings.HasSuffix(host, "."+s) {
			return false
		}
	}
	return true
}

// rules say where all that is done on behalf of one upstream may go: its requests, redirects and token requests.
type rules struct {
	listed bool       // named by the operator: private and loopback addresses are fine, and plain HTTP unless
	tls    bool       // it was named by a pattern, which says nothing of HTTP
	own    netip.Addr // the upstream's name, if that is an address

	not func(netip.Addr) bool // public addresses that are not for others; nil: none. Only if not listed.
}

// permit checks a request before its host is resolved. It is all there is where an HTTP proxy resolves.
func (r rules) permit(u *url.URL) error {
	switch {
	case r.listed && r.tls && u.Scheme != "https":
		return fmt.Errorf("%s over plain %.10s, on behalf of a registry that only a pattern allows: %w", u.Hostname(), u.Scheme, oci.ErrNotAllowed)
	case r.listed:
		if addr := literal(u.Host); addr.IsValid() {
			return r.permitAddr(addr)
		}
		return nil
	case u.Scheme != "https":
		return fmt.Errorf("%s over plain %.10s, on behalf of a registry that is not listed: %w", u.Hostname(), u.Scheme, oci.ErrNotAllowed)
	case !publicName(u.Host):
		return fmt.Errorf("%s is not a public name: %w", u.Hostname(), oci.ErrNotAllowed)
	}
	return nil
}

// permitAddr checks an address about to be dialled, whatever name it came from.
func (r rules) permitAddr(addr netip.Addr) error {
	inner := embedded(addr)
	if r.listed {
		if (inner.IsLinkLocalUnicast() || inner.IsMulticast()) && inner != r.own {
			return fmt.Errorf("%s is a link-local or multicast address: %w", addr, oci.ErrNotAllowed)
		}
		return nil
	}
	if !public(inner) {
		return fmt.Errorf("%s is not a public address: %w", addr, oci.ErrNotAllowed)
	}
	if r.not != nil && r.not(inner) {
		return fmt.Errorf("%s is an address of this machine: %w", addr, oci.ErrNotAllowed)
	}
	return nil
}

var (
	nat64  = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052
	sixTo4 = netip.MustParsePrefix("2002::/16")    // RFC 3056
	global = netip.MustParsePrefix("2000::/3")     // all of IPv6 that IANA has given out as global unicast

	// notPublic are parts of the above, and of IPv4, that the IANA special-purpose address registries exclude, beyond
	// what netip.Addr tells itself.
	notPublic = []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"),
		netip.MustParsePrefix("100.64.0.0/10"), // carrier-grade NAT, RFC 6598
		netip.MustParsePrefix("192.0.0.0/24"),
		netip.MustParsePrefix("192.0.2.0/24"), // documentation, RFC 5737
		netip.MustParsePrefix("192.88.99.0/24"),
		netip.MustParsePrefix("198.18.0.0/15"),   // benchmarks, RFC 2544
		netip.MustParsePrefix("198.51.100.0/24"), // documentation
		netip.MustParsePrefix("203.0.113.0/24"),  // documentation
		netip.MustParsePrefix("240.0.0.0/4"),
		netip.MustParsePrefix("2001::/23"),     // IETF protocol assignments, Teredo among them
		netip.MustParsePrefix("2001:db8::/32"), // documentation, RFC 3849
		netip.MustParsePrefix("3fff::/20"),     // documentation, RFC 9637
	}
)

// embedded returns the IPv4 address that addr stands for, or addr.
func embedded(addr netip.Addr) netip.Addr {
	addr = addr.Unmap().WithZone("")
	b := addr.As16()
	switch {
	case nat64.Contains(addr):
		return netip.AddrFrom4([4]byte(b[12:]))
	case sixTo4.Contains(addr):
		return netip.AddrFrom4([4]byte(b[2:6]))
	}
	return addr
}

// public reports whether addr is a global unicast address that anybody could reach.
func public(addr netip.Addr) bool {
	if !addr.IsGlobalUnicast() || addr.IsPrivate() || addr.Is6() && !global.Contains(addr) {
		return false
	}
	for _, p := range notPublic {
		if p.Contains(addr) {
			return false
		}
	}
	return true
}
