// Package clusterkey turns the secret that the nodes of a cluster share into what they need of it: keys that encrypt
// gossip, and TLS by which two nodes prove to each other that they have the secret, and nothing else. Reading the file
// again when it changes, and what goes over the connections, is left to others.
package clusterkey

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

const (
	keySize = 32 // bytes of a key: what HKDF-SHA256 cannot make stronger, and AES-256 and Ed25519 need
	maxKeys = 3  // one in use, one coming, one going
	maxFile = 64 << 10
)

// New returns the text of a file with one fresh key: a comment and the key.
func New() string {
	var secret [keySize]byte
	_, _ = rand.Read(secret[:]) // never fails: the process ends if the system has no randomness
	return fmt.Sprintf("# The key of a Pier cluster. Who knows it can join: keep it secret.\n%x\n", secret)
}

// Keys is what the keys of one file amount to. It does not change, and the zero value has no key. It does not hold the
// keys themselves, and prints as their number.
type Keys struct {
	gossip [][]byte
	roots  *x509.CertPool   // certificate authorities, one of each key
	leaf   *tls.Certificate // of this node, from the authority of the first key
}

// Empty reports whether there is no key.
func (k Keys) Empty() bool { return len(k.gossip) == 0 }

// Gossip returns 32-byte AES keys, one of each key in the order of the file: the first is to encrypt, all are to decrypt.
// They belong to the caller.
func (k Keys) Gossip() [][]byte {
	var keys [][]byte
	for _, key := range k.gossip {
		keys = append(keys, bytes.Clone(key))
	}
	return keys
}

// Format implements [fmt.Formatter], so that no verb prints secrets.
func (k Keys) Format(w fmt.State, _ rune) { fmt.Fprintf(w, "%d cluster keys", len(k.gossip)) }

// Read reads a file with one to three keys, one a line, each 64 hexadecimal digits; blank lines and what follows a # do
// not count. The first key is used, all are accepted. The error names every line that is wrong, and what to do.
//
// To replace a key while the cluster runs, add the new one as the second everywhere, then make it the first everywhere,
// then delete the old one.
func Read(path string) (Keys, error) {
	// Who gives the key in place of the file must not find it in the log.
	if _, err := decode(path); err == nil {
		return Keys{}, errors.New("the cluster key file is given as a key: write the key into a file, and give its name")
	}
	f, err := os.Open(path)
	if err != nil {
		return Keys{}, fmt.Errorf("cluster key: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return Keys{}, fmt.Errorf("cluster key: %w", err)
	}
	if len(text) > maxFile {
		return Keys{}, fmt.Errorf("%s: larger than %d bytes: this is no key file; 'pier key new' prints one", path, maxFile)
	}
	secrets, err := parse(path, string(text))
	if err != nil {
		return Keys{}, err
	}
	return derive(secrets)
}

// parse returns the keys in the text of a file. Its errors never quote the text.
func parse(path, text string) ([][]byte, error) {
	var secrets [][]byte
	var faults []error
	line := 0
	first := make(map[string]int) // line of each key
	for l := range strings.Lines(text) {
		line++
		l, _, _ = strings.Cut(l, "#")
		l = strings.TrimSpace(l)
		if l == "" {
			continue
		}
		secret, err := decode(l)
		switch before := first[string(secret)]; {
		case err != nil:
			faults = append(faults, fmt.Errorf("%s:%d: %w", path, line, err))
			continue
		case before > 0:
			faults = append(faults, fmt.Errorf("%s:%d: the same key as in line %d: delete one of them", path, line, before))
			continue
		}
		first[string(secret)] = line
		secrets = append(secrets, secret)
		if len(secrets) == maxKeys+1 {
			faults = append(faults, fmt.Errorf("%s:%d: more than %d keys: delete those that no node uses any more", path, line, maxKeys))
		}
	}
	if len(secrets) == 0 && len(faults) == 0 {
		faults = append(faults, fmt.Errorf("%s:%d: no key: write one with 'pier key new' and copy it to every node", path, max(line, 1)))
	}
	return secrets, errors.Join(faults...)
}

func decode(digits string) ([]byte, error) {
	if len(digits) != 2*keySize {
		return nil, fmt.Errorf("a key has %d hexadecimal digits, this line %d characters: copy the whole line that 'pier key new' printed",
			2*keySize, len(digits))
	}
	secret, err := hex.DecodeString(digits)
	if err != nil { // err shows a character of the key
		return nil, errors.New("not only hexadecimal digits (0-9, a-f): copy the line that 'pier key new' printed as it is")
	}
	return secret, nil
}

// derive makes what nodes use from the keys. What is derived for one purpose tells nothing of the key, nor of what is
// derived for the other.
func derive(secrets [][]byte) (Keys, error) {
	k := Keys{roots: x509.NewCertPool()}
	for i, secret := range secrets {
		gossip, err := hkdf.Key(sha256.New, secret, nil, "pier gossip 1", keySize)
		if err != nil {
			return Keys{}, fmt.Errorf("cluster key: %w", err)
		}
		k.gossip = append(k.gossip, gossip)
		seed, err := hkdf.Key(sha256.New, secret, nil, "pier authority 1", keySize)
		if err != nil {
			return Keys{}, fmt.Errorf("cluster key: %w", err)
		}
		a, err := newAuthority(seed)
		if err != nil {
			return Keys{}, fmt.Errorf("cluster key: %w", err)
		}
		k.roots.AddCert(a.cert)
		if i > 0 {
			continue
		}
		if k.leaf, err = a.issue(); err != nil {
			return Keys{}, fmt.Errorf("cluster key: %w", err)
		}
	}
	return k, nil
}
