package authority

import (
	"crypto/x509"
	"net"
	"net/netip"
	"strings"
)

// nowhere is a domain that no host is in (RFC 6761): permitting nothing else excludes all names, and every verifier knows
// how to read it.
const nowhere = "nothing.invalid"

// constrain writes into an authority's template that it may sign for these hosts only (RFC 5280, section 4.2.1.10): a
// name permits its subdomains too, which no verifier can be told otherwise. Of names and addresses, what none is
// permitted of is excluded altogether: a kind that is not mentioned would be without constraints.
func constrain(template *x509.Certificate, names []string) {
	if names == nil {
		return
	}
	template.PermittedDNSDomainsCritical = true
	for _, name := range names {
		if addr, err := netip.ParseAddr(name); err == nil {
			ip := addr.Unmap().AsSlice()
			template.PermittedIPRanges = append(template.PermittedIPRanges, &net.IPNet{IP: ip, Mask: net.CIDRMask(8*len(ip), 8*len(ip))})
			continue
		}
		template.PermittedDNSDomains = append(template.PermittedDNSDomains, strings.TrimPrefix(name, "*."))
	}
	if template.PermittedDNSDomains == nil {
		template.PermittedDNSDomains = []string{nowhere}
	}
	if template.PermittedIPRanges == nil {
		template.ExcludedIPRanges = []*net.IPNet{
			{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
			{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
		}
	}
}

// allows reports whether a verifier would accept a certificate for this host from an authority. Only permitted domains
// and ranges, and excluded ranges, are read: this package writes no others, and it is verifiers who have the last word.
func allows(authority *x509.Certificate, host string) bool {
	if addr, err := netip.ParseAddr(host); err == nil {
		ip := net.IP(addr.Unmap().AsSlice())
		inside := func(ranges []*net.IPNet) bool {
			for _, r := range ranges {
				if r.Contains(ip) {
					return true
				}
			}
			return false
		}
		return !inside(authority.ExcludedIPRanges) && (len(authority.PermittedIPRanges) == 0 || inside(authority.PermittedIPRanges))
	}
	for _, d := range authority.PermittedDNSDomains {
		if host == d || strings.HasSuffix(host, "."+strings.TrimPrefix(d, ".")) {
			return true
		}
	}
	return len(authority.PermittedDNSDomains) == 0
}

// Names returns the domains and addresses that clients accept the authority's certificates for, as it is written in its
// own: a domain stands for its subdomains too. Nil is all hosts.
func (a *Authority) Names() []string {
	var names []string
	for _, d := range a.certs[0].PermittedDNSDomains {
		if d != nowhere {
			names = append(names, d)
		}
	}
	for _, r := range a.certs[0].PermittedIPRanges {
		if ones, bits := r.Mask.Size(); ones == bits {
			names = append(names, r.IP.String())
		} else {
			names = append(names, r.String())
		}
	}
	return names
}
