package node

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"pier/internal/upstream"
)

// watched are files that are read again when one of them changed. They are looked at, not watched by the kernel: there
// are few, and mounted configuration maps replace them in ways that no notification tells.
type watched struct {
	name  string
	files func() []string
	read  func() error
	seen  map[string]stamp
}

// A stamp changes when a file does.
type stamp struct {
	size int64
	time time.Time
}

func (n *Node) watch(name string, files func() []string, read func() error) {
	w := watched{name: name, files: files, read: read}
	w.seen = w.stamps()
	n.watched = append(n.watched, w)
}

func (w *watched) stamps() map[string]stamp {
	stamps := make(map[string]stamp)
	for _, f := range w.files() {
		if info, err := os.Stat(f); err == nil {
			stamps[f] = stamp{info.Size(), info.ModTime()}
		}
	}
	return stamps
}

// look reads the files again if one changed, or if it was asked to.
func (w *watched) look(log *slog.Logger, asked bool) {
	now := w.stamps()
	changed := len(now) != len(w.seen)
	for f, s := range now {
		old, ok := w.seen[f]
		changed = changed || !ok || !old.time.Equal(s.time) || old.size != s.size
	}
	if !changed && !asked {
		return
	}
	w.seen = now
	if err := w.read(); err != nil {
		log.Error("configuration not read again; what was read before stays in force", "what", w.name, "err", err)
		return
	}
	w.seen = w.stamps() // of what it names now
	log.Info("configuration read again", "what", w.name)
}

// upstreamFiles are the upstream file and the files it names.
func (n *Node) upstreamFiles() []string {
	files := []string{n.cfg.Upstreams}
	list, err := upstream.ReadFile(n.cfg.Upstreams)
	if err != nil {
		return files
	}
	for _, u := range list {
		for _, f := range []string{u.TLS.CA, u.TLS.Cert, u.TLS.Key, u.Auth.PasswordFile} {
			if f != "" {
				files = append(files, f)
			}
		}
	}
	return files
}

// nodeTLS returns the node door's TLS, or nil for none. Certificates read again serve the connections that follow.
func (n *Node) nodeTLS() (*tls.Config, error) {
	c := n.cfg
	if c.TLSCert == "" {
		return nil, nil
	}
	var current atomic.Pointer[tls.Config]
	read := func() error {
		cert, err := tls.LoadX509KeyPair(c.TLSCert, c.TLSKey)
		if err != nil {
			return fmt.Errorf("--tls-cert, --tls-key: %w", err)
		}
		conf := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}}
		if c.TLSClientCA != "" {
			pem, err := os.ReadFile(c.TLSClientCA)
			if err != nil {
				return fmt.Errorf("--tls-client-ca: %w", err)
			}
			conf.ClientCAs = x509.NewCertPool()
			if !conf.ClientCAs.AppendCertsFromPEM(pem) {
				return fmt.Errorf("--tls-client-ca: %s holds no certificate", c.TLSClientCA)
			}
			conf.ClientAuth = tls.RequireAndVerifyClientCert
		}
		current.Store(conf)
		return nil
	}
	if err := read(); err != nil {
		return nil, err
	}
	n.watch("certificates of the node door", func() []string {
		return []string{c.TLSCert, c.TLSKey, c.TLSClientCA}
	}, read)
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		NextProtos:         []string{"h2", "http/1.1"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return current.Load(), nil },
		// Never used, but net/http wants to see that there is one.
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &current.Load().Certificates[0], nil },
	}, nil
}
