package authority

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	certFile = "ca.crt"
	keyFile  = "ca.key"

	// maxFile bounds what is read of a file: a chain of certificates has a few KiB.
	maxFile = 64 << 10

	// lifetime of an authority. Whoever trusts it has to be told of the next one.
	lifetime = 10 // years
)

// earliest is before any machine that runs this could have been set up: a clock that says less has not been set yet, and
// what is made then would be expired as soon as it is.
var earliest = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

func subject(name string) pkix.Name { return pkix.Name{CommonName: name} }

// Load returns the authority in cfg.Dir, valid or not at this time. The error wraps [fs.ErrNotExist] if there is none, and
// [ErrUnusable] if the files are damaged or do not belong together. A key that others may read is taken from them.
func Load(cfg Config) (*Authority, error) {
	a := &Authority{cfg: cfg.withDefaults()}
	keyPEM, err := a.readKey()
	if err != nil {
		return nil, err
	}
	certPEM, err := read(filepath.Join(cfg.Dir, certFile))
	if err != nil {
		return nil, err
	}
	if a.certs, err = parseCertificates(certPEM); err != nil {
		return nil, fmt.Errorf("%s: %w: %w: %s", filepath.Join(cfg.Dir, certFile), ErrUnusable, err, hint)
	}
	if a.key, err = parseKey(keyPEM); err != nil {
		return nil, fmt.Errorf("%s: %w: %w: %s", filepath.Join(cfg.Dir, keyFile), ErrUnusable, err, hint)
	}
	// Every public key of the standard library has this method.
	public, ok := a.key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(a.certs[0].PublicKey) {
		return nil, fmt.Errorf("%s: %w: %s is not its key: %s", filepath.Join(cfg.Dir, certFile), ErrUnusable, keyFile, hint)
	}
	a.pem = encode("CERTIFICATE", a.certs[0].Raw)
	if a.leaf, err = newKey(); err != nil {
		return nil, err
	}
	for _, name := range a.cfg.Names {
		if host := strings.TrimPrefix(name, "*."); !allows(a.certs[0], host) {
			a.cfg.Log.Warn("the certificate authority was made for other hosts and cannot sign for this one: run 'pier ca init --force', and install it again", "host", host)
		}
	}
	return a, nil
}

// Create makes an authority in cfg.Dir. If there is one already, that is an error wrapping [fs.ErrExist], unless it is to
// be replaced. A key without a certificate is kept, and gets a new one: those who trusted it go on doing so.
func Create(cfg Config, replace bool) (*Authority, error) {
	cfg = cfg.withDefaults()
	if now := cfg.Now(); now.Before(earliest) {
		return nil, fmt.Errorf("no certificate authority made: this machine's clock says %s: set the clock", now.Format(time.DateOnly))
	}
	if err := checkNames(cfg.Names); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	unlock, err := lock(cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	_, certErr := os.Lstat(filepath.Join(cfg.Dir, certFile))
	_, keyErr := os.Lstat(filepath.Join(cfg.Dir, keyFile))
	haveCert, haveKey := !errors.Is(certErr, fs.ErrNotExist), !errors.Is(keyErr, fs.ErrNotExist)
	switch {
	case haveCert && haveKey && !replace:
		return nil, fmt.Errorf("%s: %w", filepath.Join(cfg.Dir, certFile), fs.ErrExist)
	case haveCert && !replace:
		return nil, fmt.Errorf("%s: %w: %s is missing: put it back, or %s", filepath.Join(cfg.Dir, certFile), ErrUnusable, keyFile, hint)
	}
	if err := write(cfg, haveKey && !replace); err != nil {
		return nil, err
	}
	return Load(cfg)
}

func checkNames(names []string) error {
	var faults []error
	for _, name := range names {
		if !validHost(strings.TrimPrefix(name, "*.")) {
			faults = append(faults, fmt.Errorf("%.80q is not a host name, *.name, or an address, in lower case and without a port", name))
		}
	}
	return errors.Join(faults...)
}

// keptKey returns the key in the directory.
func keptKey(cfg Config) (crypto.Signer, error) {
	text, err := (&Authority{cfg: cfg}).readKey()
	if err != nil {
		return nil, err
	}
	key, err := parseKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w: %s", filepath.Join(cfg.Dir, keyFile), ErrUnusable, err, hint)
	}
	return key, nil
}

// writeKey makes a key, and its file.
func writeKey(cfg Config) (crypto.Signer, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, replaceFile(cfg.Dir, keyFile, encode("PRIVATE KEY", der), 0o600)
}

// write makes the key, unless it is to be kept, and then the certificate.
func write(cfg Config, keep bool) error {
	source := writeKey
	if keep {
		source = keptKey
	}
	key, err := source(cfg)
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "this node" // only for people
	}
	now := cfg.Now()
	template := &x509.Certificate{
		Subject:   subject(fmt.Sprintf("Pier on %.40s", host)), // RFC 5280 gives a common name 64 bytes
		NotBefore: now.Add(-2 * early), NotAfter: now.AddDate(lifetime, 0, 0),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage:    x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	constrain(template, cfg.Names)
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	cert := encode("CERTIFICATE", der)
	if err := replaceFile(cfg.Dir, certFile, cert, 0o644); err != nil {
		return err
	}
	cfg.Log.Info("made a certificate authority of this node", "file", filepath.Join(cfg.Dir, certFile), "names", cfg.Names, "until", template.NotAfter)
	return nil
}

// lock keeps other processes from making an authority in the same directory until unlock is called. They hold it for as
// long as it takes to write two small files.
func lock(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { f.Close() }, nil // which unlocks
}

// replaceFile writes a file whole: after a crash there is the old one or the new.
func replaceFile(dir, name string, content []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(dir, name+".new-*") // with mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// readKey reads the key's file, and sees to it that nobody else can. In a directory of somebody else, for whom a node runs,
// that name may lead to any file of this machine: links are not followed, and only a file that could be the key is touched.
func (a *Authority) readKey() ([]byte, error) {
	path := filepath.Join(a.cfg.Dir, keyFile)
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%s: %w: it is a symbolic link: put the file itself there, or %s", path, ErrUnusable, hint)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := a.ownKey(info); err != nil {
		return nil, fmt.Errorf("%s: %w: %w: look who put it there, or %s", path, ErrUnusable, err, hint)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		if err := f.Chmod(mode & 0o700); err != nil {
			return nil, fmt.Errorf("others may read the key of the certificate authority: %w", err)
		}
		a.cfg.Log.WarnContext(context.Background(), "others could read the key of the certificate authority: its mode was corrected; if anybody did, run 'pier ca init --force'",
			"file", path, "mode", fmt.Sprintf("%04o", mode))
	}
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// ownKey returns an error unless a file is one that nothing but this name leads to, and is root's, this process's, or of who
// owns the directory: root installs the authority of a node that runs as another user.
func (a *Authority) ownKey(info fs.FileInfo) error {
	dir, err := os.Stat(a.cfg.Dir)
	if err != nil {
		return err
	}
	file, ok := info.Sys().(*syscall.Stat_t)
	owner, ok2 := dir.Sys().(*syscall.Stat_t)
	switch {
	case !ok || !ok2 || !info.Mode().IsRegular():
		return errors.New("it is no file")
	case file.Uid != 0 && int(file.Uid) != os.Geteuid() && file.Uid != owner.Uid:
		return fmt.Errorf("it belongs to user %d", file.Uid)
	case file.Nlink != 1:
		return errors.New("it has other names too, hard links")
	}
	return nil
}

// parseCertificates reads the authority's certificate, and those that follow it.
func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		text = rest
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	switch {
	case len(certs) == 0:
		return nil, errors.New("no certificate in it")
	case !certs[0].IsCA || certs[0].KeyUsage != 0 && certs[0].KeyUsage&x509.KeyUsageCertSign == 0:
		return nil, errors.New("the certificate in it is not that of an authority")
	}
	return certs, nil
}

func parseKey(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no key in it")
	}
	if block.Type == "EC PRIVATE KEY" {
		return x509.ParseECPrivateKey(block.Bytes)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("the key in it cannot sign")
	}
	return signer, nil
}
