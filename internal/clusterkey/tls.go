package clusterkey

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// ErrStranger is in the error of a handshake with somebody who has not shown that it knows a key accepted here.
var ErrStranger = errors.New("the other side does not have this node's cluster key")

var errNoKey = errors.New("this node has no cluster key")

// nodeName is the name in the certificate of every node: the key makes a node, not its address.
const nodeName = "pier"

// Certificates are valid at any time: clocks of machines at the edge are wrong. What ends a certificate is that its key
// is dropped, or that the process which made it ends.
var (
	notBefore = time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC)
	anyTime   = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // at which certificates are verified
	notAfter  = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
)

// TLS returns configurations for both sides of a connection between nodes: TLS 1.3 and HTTP/1.1 only, and both sides show
// a certificate made from a key that the other accepts. current is called, possibly by many goroutines at once, in every
// handshake: changed keys count from the next one. While it returns no key, no handshake succeeds.
//
// In TLS 1.3 the client is done before the server has judged it. A client that is refused learns so from its first read.
func TLS(current func() Keys) (server, client *tls.Config) {
	certificate := func() (*tls.Certificate, error) {
		if k := current(); !k.Empty() {
			return k.leaf, nil
		}
		return nil, errNoKey
	}
	common := tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"http/1.1"},
		// A resumed session would outlive the key it was made with.
		SessionTicketsDisabled: true,
	}

	inner := common.Clone()
	inner.ClientAuth = tls.RequireAnyClientCert // and VerifyConnection judges it
	inner.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate() }
	inner.VerifyConnection = func(cs tls.ConnectionState) error {
		return current().verify(cs, x509.ExtKeyUsageClientAuth)
	}
	// http.Server adds HTTP/2 to the protocols of the configuration it is given, but not to what that returns.
	server = inner.Clone()
	server.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return inner, nil }

	client = common.Clone()
	client.ServerName = nodeName
	client.InsecureSkipVerify = true // VerifyConnection verifies more, and does not look at the clock
	client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate() }
	client.VerifyConnection = func(cs tls.ConnectionState) error {
		return current().verify(cs, x509.ExtKeyUsageServerAuth)
	}
	return server, client
}

// verify returns an error wrapping [ErrStranger] unless the other side's certificate is from an authority of k.
func (k Keys) verify(cs tls.ConnectionState, usage x509.ExtKeyUsage) error {
	if k.Empty() {
		return errNoKey
	}
	if len(cs.PeerCertificates) == 0 {
		return fmt.Errorf("no certificate: %w", ErrStranger)
	}
	// Nodes have no intermediate authorities: only the first certificate counts.
	_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots: k.roots, DNSName: nodeName, CurrentTime: anyTime, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrStranger, err)
	}
	return nil
}

// An authority signs the certificates of nodes. It is the same on every node that has the key.
type authority struct {
	cert *x509.Certificate
	key  ed25519.PrivateKey
}

func newAuthority(seed []byte) (authority, error) {
	key := ed25519.NewKeyFromSeed(seed)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "pier cluster"},
		NotBefore: notBefore, NotAfter: notAfter,
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
	if err != nil {
		return authority{}, err
	}
	cert, err := x509.ParseCertificate(der)
	return authority{cert, key}, err
}

// issue returns a certificate for this node, with a fresh key: the cluster key signs nothing on the wire.
func (a authority) issue() (*tls.Certificate, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		Subject: pkix.Name{CommonName: nodeName}, DNSNames: []string{nodeName},
		NotBefore: notBefore, NotAfter: notAfter, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, public, a.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private, Leaf: leaf}, err
}
