package authority

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// open returns the authority in a directory of its own.
func open(t *testing.T, names ...string) *Authority {
	t.Helper()
	a, err := Open(Config{Dir: filepath.Join(t.TempDir(), "data"), Names: names})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func roots(t *testing.T, a *Authority) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(a.PEM()) {
		t.Fatal("PEM has no certificate")
	}
	return pool
}

// verify does what a client does at a time.
func verify(t *testing.T, a *Authority, cert *tls.Certificate, host string, at time.Time) error {
	t.Helper()
	c, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Verify(x509.VerifyOptions{Roots: roots(t, a), DNSName: host, CurrentTime: at})
	return err
}

func TestFirstUse(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	a, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{"": fs.ModeDir | 0o700, certFile: 0o644, keyFile: 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", name, info.Mode(), want)
		}
	}
	c := a.certs[0]
	if !c.IsCA || c.MaxPathLen != 0 || !c.MaxPathLenZero {
		t.Errorf("basic constraints: CA %v, path length %d", c.IsCA, c.MaxPathLen)
	}
	if years := time.Until(a.NotAfter()).Hours() / 24 / 365; years < 9.9 || years > 10.1 {
		t.Errorf("valid for %.1f years, want 10", years)
	}
	again, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if a.Fingerprint() != again.Fingerprint() || len(a.Fingerprint()) != 64 {
		t.Errorf("opened twice: fingerprints %s and %s", a.Fingerprint(), again.Fingerprint())
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*.new-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestCertificates(t *testing.T) {
	a := open(t)
	now := time.Now()
	for _, host := range []string{"registry.test", "REGISTRY.test", "registry.test.", "127.0.0.1", "::1", "[::1]", "a_b.example"} {
		cert, err := a.Certificate(host)
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		if len(cert.Leaf.SerialNumber.Bytes()) < 8 {
			t.Errorf("%s: serial number %v", host, cert.Leaf.SerialNumber)
		}
		for what, at := range map[string]time.Time{"now": now, "an hour ago": now.Add(-time.Hour), "in an hour": now.Add(time.Hour)} {
			if err := verify(t, a, cert, plain(host), at); err != nil {
				t.Errorf("%s, %s: %v", host, what, err)
			}
		}
	}
	one, _ := a.Certificate("registry.test")
	two, _ := a.Certificate("registry.test")
	if one != two {
		t.Error("the same host was signed for twice")
	}
	for _, host := range []string{"", ".", "a b", "a..b", "*.registry.test", "registry.test:443", "fe80::1%eth0", "ä.test", strings.Repeat("a", 64) + ".test"} {
		if _, err := a.Certificate(host); !errors.Is(err, ErrNotPermitted) {
			t.Errorf("%q: got error %v, want ErrNotPermitted", host, err)
		}
	}
}

// The certificate of a long-lived process is replaced before clients refuse it, and after this machine's clock was set.
func TestRenewal(t *testing.T) {
	start := time.Now()
	now := start
	a, err := Open(Config{Dir: t.TempDir(), Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	var last *tls.Certificate
	for _, step := range []struct {
		at   time.Duration
		same bool
	}{
		{0, false}, {4 * 24 * time.Hour, true}, {5 * 24 * time.Hour, false}, {30 * 24 * time.Hour, false}, {29 * 24 * time.Hour, false}, {365 * 24 * time.Hour, false},
	} {
		now = start.Add(step.at)
		cert, err := a.Certificate("registry.test")
		if err != nil {
			t.Fatal(err)
		}
		if (cert == last) != step.same {
			t.Errorf("after %v: the same certificate as before: %v, want %v", step.at, cert == last, step.same)
		}
		last = cert
		for _, at := range []time.Time{now.Add(-time.Hour), now.Add(24 * time.Hour)} {
			if err := verify(t, a, cert, "registry.test", at); err != nil {
				t.Errorf("after %v: %v", step.at, err)
			}
		}
	}
	now = a.NotAfter().Add(-time.Hour)
	cert, err := a.Certificate("registry.test")
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(t, a, cert, "registry.test", now); err != nil {
		t.Errorf("in the last hour: %v", err)
	}
	now = a.NotAfter().Add(time.Hour)
	if _, err := a.Certificate("registry.test"); !errors.Is(err, ErrUnusable) || !strings.Contains(err.Error(), "pier ca init --force") {
		t.Errorf("expired: got error %v", err)
	}
}

func TestBounded(t *testing.T) {
	a := open(t)
	first, err := a.Certificate("host-0.test")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 * maxLeaves {
		if _, err := a.Certificate(fmt.Sprintf("host-%d.test", i)); err != nil {
			t.Fatal(err)
		}
		if i < maxLeaves {
			if again, _ := a.Certificate("host-0.test"); again != first {
				t.Fatal("what is used most was dropped")
			}
		}
	}
	if len(a.leaves) != maxLeaves {
		t.Errorf("%d certificates in memory, want %d", len(a.leaves), maxLeaves)
	}
}

var constraintCases = []struct {
	names       []string
	good, wrong []string
}{
	{[]string{"registry.test"}, []string{"registry.test"}, []string{"other.test", "notregistry.test", "test", "127.0.0.1", "::1"}},
	{[]string{"*.registry.test"}, []string{"a.registry.test", "a.b.registry.test"}, []string{"other.test", "aregistry.test", "10.0.0.1"}},
	{[]string{"registry.test", "10.0.0.1"}, []string{"registry.test", "10.0.0.1"}, []string{"10.0.0.2", "::1", "other.test"}},
	{[]string{"10.0.0.1", "fd00::1"}, []string{"10.0.0.1", "fd00::1"}, []string{"registry.test", "10.0.0.2", "fd00::2"}},
	{[]string{"registry.test", "*"}, []string{"registry.test", "other.test", "10.0.0.1"}, nil},
}

// An authority signs for its own hosts, and what somebody else signs with its key for others, clients refuse.
func TestConstraints(t *testing.T) {
	for _, c := range constraintCases {
		a := open(t, c.names...)
		for _, host := range c.good {
			cert, err := a.Certificate(host)
			if err != nil {
				t.Errorf("%v: %s: %v", c.names, host, err)
				continue
			}
			if err := verify(t, a, cert, host, time.Now()); err != nil {
				t.Errorf("%v: %s: %v", c.names, host, err)
			}
		}
		for _, host := range c.wrong {
			if a.Permits(host) {
				t.Errorf("%v: %s is permitted", c.names, host)
			}
			if _, err := a.Certificate(host); !errors.Is(err, ErrNotPermitted) {
				t.Errorf("%v: %s: got error %v, want ErrNotPermitted", c.names, host, err)
			}
			stolen, err := a.sign(host)
			if err != nil {
				t.Fatal(err)
			}
			var invalid x509.CertificateInvalidError
			if err := verify(t, a, stolen, host, time.Now()); !errors.As(err, &invalid) || invalid.Reason != x509.CANotAuthorizedForThisName {
				t.Errorf("%v: certificate for %s: a client says %v, want a violation of constraints", c.names, host, err)
			}
		}
	}
	// A name permits its subdomains: X.509 knows no other way.
	if !open(t, "registry.test").Permits("sub.registry.test") {
		t.Error("sub.registry.test is not permitted")
	}
	if got := fmt.Sprint(open(t, "registry.test", "10.0.0.1").Names(), open(t).Names()); got != "[registry.test 10.0.0.1] []" {
		t.Errorf("names are %s", got)
	}
}

func TestOpenSSL(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("NOT TESTED against OpenSSL: install openssl")
	}
	for _, c := range constraintCases {
		dir := t.TempDir()
		a, err := Open(Config{Dir: dir, Names: c.names})
		if err != nil {
			t.Fatal(err)
		}
		check := func(host string) (string, error) {
			cert, err := a.sign(host)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(dir, "leaf.crt")
			if err := os.WriteFile(file, encode("CERTIFICATE", cert.Certificate[0]), 0o600); err != nil {
				t.Fatal(err)
			}
			args := []string{"verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", filepath.Join(dir, certFile)}
			if net.ParseIP(host) != nil {
				args = append(args, "-verify_ip", host)
			} else {
				args = append(args, "-verify_hostname", host)
			}
			out, err := exec.Command("openssl", append(args, file)...).CombinedOutput()
			return string(out), err
		}
		for _, host := range c.good {
			if out, err := check(host); err != nil {
				t.Errorf("%v: %s: %v\n%s", c.names, host, err, out)
			}
		}
		for _, host := range c.wrong {
			if out, err := check(host); err == nil || !strings.Contains(out, "subtree violation") {
				t.Errorf("%v: %s: got error %v, want a violation of constraints\n%s", c.names, host, err, out)
			}
		}
	}
}

func TestHandshake(t *testing.T) {
	a := open(t, "registry.test")
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		server, client := net.Pipe()
		done := make(chan error, 1)
		go func() {
			s := tls.Server(server, &tls.Config{GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { return a.Certificate(h.ServerName) }})
			done <- s.HandshakeContext(t.Context())
		}()
		c := tls.Client(client, &tls.Config{RootCAs: roots(t, a), ServerName: "registry.test", MinVersion: version, MaxVersion: version})
		if err := errors.Join(c.HandshakeContext(t.Context()), <-done); err != nil {
			t.Errorf("version %x: %v", version, err)
		}
		server.Close()
		client.Close()
	}
}

func BenchmarkSign(b *testing.B) {
	a, err := Open(Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := a.sign("registry.test"); err != nil {
			b.Fatal(err)
		}
	}
}

// Certificates are asked for by many connections at once.
func TestConcurrent(t *testing.T) {
	a := open(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				if _, err := a.Certificate(fmt.Sprintf("h%d.test", (i+j)%10)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
