// Package authority is a node's own certificate authority: it keeps a key and a certificate in a directory, and signs
// with them, for the hosts it was made for and no others, the certificates that this node shows where it answers in the
// place of a registry. Who trusts it, and where that is written down, it leaves to others.
package authority

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Errors of [Authority.Certificate], and of reading what is in the directory. All that wrap ErrUnusable end with what to
// run.
var (
	ErrNotPermitted = errors.New("not permitted by this node's certificate authority")
	ErrUnusable     = errors.New("unusable certificate authority")
)

// hint is what helps with every fault of the files.
const hint = "run 'pier ca init --force', and install it again"

// A Config says where an authority is kept, and what it is for. Only Dir is needed.
type Config struct {
	// Dir holds ca.crt (mode 0644) and ca.key (0600). It is made if need be, with mode 0700.
	Dir string

	// Names are the hosts that one that is made may sign for: "registry.test", "*.registry.test" (its subdomains), addresses without
	// brackets. Lower case, without ports. Nil, and any list with "*" in it, is all hosts.
	Names []string

	Log *slog.Logger     // nil: nothing is logged
	Now func() time.Time // nil: time.Now
}

func (c Config) withDefaults() Config {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if slices.Contains(c.Names, "*") {
		c.Names = nil
	}
	return c
}

// An Authority signs certificates. All its methods may be called at once.
type Authority struct {
	cfg   Config
	certs []*x509.Certificate // the authority's own first, then what its file has of those above it
	pem   []byte
	key   crypto.Signer
	leaf  *ecdsa.PrivateKey // of all certificates it signs; never stored

	mu     sync.Mutex // guards leaves
	leaves []*leaf    // the one used last at the end
}

// A leaf is a certificate for one host.
type leaf struct {
	host string
	cert *tls.Certificate
}

const (
	// A certificate is valid for so long, and is replaced when a third of it is left. The time before it was made lets
	// clients in whose clocks are late.
	validity = 7 * 24 * time.Hour
	early    = 24 * time.Hour

	// maxLeaves bounds the certificates in memory, of about 2 KiB each.
	maxLeaves = 256
)

// Open returns the authority in cfg.Dir, and makes it if there is none. Any number of processes may do so at once. One that is
// damaged is an error wrapping [ErrUnusable]; one that is not valid now is none, since the clock of a machine that just started may
// be wrong.
func Open(cfg Config) (*Authority, error) {
	a, err := Load(cfg)
	if errors.Is(err, fs.ErrNotExist) {
		a, err = Create(cfg, false)
		if errors.Is(err, fs.ErrExist) { // made by another process meanwhile
			a, err = Load(cfg)
		}
	}
	if err != nil {
		return nil, err
	}
	if err := a.usable(); err != nil {
		a.cfg.Log.Warn("certificate authority cannot be used now", "err", err)
	}
	return a, nil
}

// usable returns an error unless the authority is valid now.
func (a *Authority) usable() error {
	now, c := a.cfg.Now(), a.certs[0]
	switch {
	case now.After(c.NotAfter):
		return fmt.Errorf("%w: it expired on %s: %s", ErrUnusable, c.NotAfter.Format(time.DateOnly), hint)
	case now.Before(c.NotBefore):
		return fmt.Errorf("%w: it is not valid before %s, and this machine's clock says %s: set the clock, or %s", ErrUnusable,
			c.NotBefore.Format(time.DateOnly), now.Format(time.DateOnly), hint)
	}
	return nil
}

// Permits reports whether the authority may sign for a host, a name or an address with or without brackets: whether clients accept
// that from it.
func (a *Authority) Permits(host string) bool { return allows(a.certs[0], plain(host)) }

// plain returns a host in lower case, without brackets and a dot at its end.
func plain(host string) string {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if inner, ok := strings.CutPrefix(host, "["); ok {
		return strings.TrimSuffix(inner, "]")
	}
	return host
}

// Certificate returns a certificate for a host name or address, with the authority's own behind it. The error wraps
// [ErrNotPermitted] if the authority is not for this host, or [ErrUnusable] if it is not valid now. The caller changes
// nothing in it.
func (a *Authority) Certificate(host string) (*tls.Certificate, error) {
	host = plain(host)
	if !validHost(host) || !a.Permits(host) {
		return nil, fmt.Errorf("certificate for %.80q: %w", host, ErrNotPermitted)
	}
	if err := a.usable(); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	i := slices.IndexFunc(a.leaves, func(l *leaf) bool { return l.host == host })
	l := &leaf{host: host}
	if i >= 0 {
		l = a.leaves[i]
		a.leaves = slices.Delete(a.leaves, i, i+1)
	}
	if l.cert == nil || !a.fresh(l.cert.Leaf) {
		cert, err := a.sign(host)
		if err != nil {
			return nil, fmt.Errorf("certificate for %s: %w", host, err)
		}
		l.cert = cert
	}
	if len(a.leaves) >= maxLeaves {
		a.leaves = slices.Delete(a.leaves, 0, 1)
	}
	a.leaves = append(a.leaves, l)
	return l.cert, nil
}

// fresh reports whether a certificate may still be shown, also to a client whose clock is an hour off. The clock of this
// machine may have been set since it was made.
func (a *Authority) fresh(c *x509.Certificate) bool {
	now := a.cfg.Now()
	last := c.NotAfter.Equal(a.certs[0].NotAfter) // no later one is to be had
	return now.Add(-time.Hour).After(c.NotBefore) && (last || now.Add(validity/3).Before(c.NotAfter))
}

// sign makes a certificate for a host.
func (a *Authority) sign(host string) (*tls.Certificate, error) {
	now, own := a.cfg.Now(), a.certs[0]
	template := &x509.Certificate{
		Subject:     subject("pier"), // the host is in the alternative names, where alone clients look
		NotBefore:   later(now.Add(-early), own.NotBefore),
		NotAfter:    earlier(now.Add(validity), own.NotAfter),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		template.IPAddresses = append(template.IPAddresses, addr.Unmap().AsSlice())
	} else {
		template.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, own, a.leaf.Public(), a.key)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	cert := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: a.leaf, Leaf: parsed}
	for _, c := range a.certs {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert, nil
}

// validHost reports whether a certificate can name a host: an address without a zone, or a name of letters, digits,
// hyphens, underscores and dots.
func validHost(host string) bool {
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Zone() == ""
	}
	if host == "" || len(host) > 253 { // RFC 1035, section 2.3.4, without the last dot
		return false
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}

// PEM returns the authority's own certificate, for those who are to trust it.
func (a *Authority) PEM() []byte { return bytes.Clone(a.pem) }

// Fingerprint returns the SHA-256 of the authority's certificate, in lower-case hexadecimal.
func (a *Authority) Fingerprint() string {
	sum := sha256.Sum256(a.certs[0].Raw)
	return hex.EncodeToString(sum[:])
}

// Subject returns the name that the authority goes by in trust stores.
func (a *Authority) Subject() string { return a.certs[0].Subject.String() }

// NotBefore returns when the authority begins to be valid.
func (a *Authority) NotBefore() time.Time { return a.certs[0].NotBefore }

// NotAfter returns when the authority expires.
func (a *Authority) NotAfter() time.Time { return a.certs[0].NotAfter }

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
