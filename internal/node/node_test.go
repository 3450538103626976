package node

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"pier/internal/config"
)

// A file that is wrong is reported, and the old content stays in force until it is right again.
func TestWatched(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("1")
	reads, fail := 0, false
	n := &Node{}
	n.watch("test", func() []string { return []string{path, path + ".absent"} }, func() error {
		if fail {
			return errors.New("bad")
		}
		reads++
		return nil
	})
	w := &n.watched[0]
	log := slog.New(slog.DiscardHandler)
	look := func(asked bool, want int) {
		t.Helper()
		w.look(log, asked)
		if reads != want {
			t.Errorf("read %d times, want %d", reads, want)
		}
	}
	look(false, 0)
	look(true, 1) // SIGHUP
	write("22")
	look(false, 2)
	look(false, 2)
	fail = true
	write("333")
	look(false, 2)
	fail = false
	look(false, 2) // nothing changed since
	write("4444")
	look(false, 3)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	look(false, 4)
}

// keyPair writes a self-signed certificate for 127.0.0.1.
func keyPair(t *testing.T, dir, name string) (cert, key string) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, priv.Public(), priv)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// startNode runs a node without a runtime, with doors where cfg says, and returns what stops it before the test ends.
func startNode(t *testing.T, cfg config.Config, log *slog.Logger) (n *Node, stop func()) {
	t.Helper()
	if cfg.Listen == nil {
		cfg.Listen = []string{"127.0.0.1:0"}
	}
	cfg.Stores, cfg.CacheDir = []string{config.StoreNone}, cmp.Or(cfg.CacheDir, t.TempDir())
	cfg.DefaultRegistry, cfg.PullTimeout, cfg.TagTTL = "docker.io", time.Minute, time.Minute
	cfg.PeerSlots, cfg.Fetchers = cmp.Or(cfg.PeerSlots, 16), cmp.Or(cfg.Fetchers, 1)
	n, err := New(t.Context(), cfg, "test", log)
	if err != nil {
		t.Fatal(err)
	}
	notified := filepath.Join(t.TempDir(), "s")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notified, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", notified)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	b := make([]byte, 100)
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	size, err := conn.Read(b)
	if err != nil || string(b[:size]) != "READY=1" {
		t.Fatalf("notified with %q, %v, want READY=1", b[:size], err)
	}
	return n, stop
}

// A renewed certificate serves the connections that follow, and the client's is asked for where an authority is set.
func TestNodeDoorTLS(t *testing.T) {
	dir, clientDir := t.TempDir(), t.TempDir()
	var cfg config.Config
	cfg.TLSCert, cfg.TLSKey = keyPair(t, dir, "first")
	clientCert, clientKey := keyPair(t, clientDir, "client")
	cfg.TLSClientCA = clientCert
	n, _ := startNode(t, cfg, slog.New(slog.NewTextHandler(t.Output(), nil)))
	pair, err := tls.LoadX509KeyPair(clientCert, clientKey)
	if err != nil {
		t.Fatal(err)
	}
	get := func(certs ...tls.Certificate) (string, int, error) {
		c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
			DisableKeepAlives: true, ForceAttemptHTTP2: true,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: certs},
		}}
		resp, err := c.Get("https://" + n.doors[0].listener.Addr().String() + "/v2/")
		if err != nil {
			return "", 0, err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return resp.TLS.PeerCertificates[0].Subject.CommonName, resp.ProtoMajor, err
	}
	if name, proto, err := get(pair); err != nil || name != "first" || proto != 2 {
		t.Errorf("got certificate %q over HTTP/%d, %v", name, proto, err)
	}
	if _, _, err := get(); err == nil {
		t.Error("a client without a certificate was let in")
	}
	keyPair(t, dir, "second")
	n.watched[len(n.watched)-1].look(n.log, true)
	if name, _, err := get(pair); err != nil || name != "second" {
		t.Errorf("after renewal: got certificate %q, %v", name, err)
	}
}

func TestNewReportsAllFaults(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("- nam: x"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := New(t.Context(), config.Config{
		Listen: []string{"127.0.0.1:0"}, Stores: []string{config.StoreNone}, CacheDir: file, Upstreams: file,
	}, "test", slog.New(slog.DiscardHandler))
	if err == nil {
		t.Fatal("a file as cache directory and a wrong upstream file were accepted")
	}
	t.Log(err)
}

// The node door is where it is wanted, on a socket that only its user may open, too, whatever was left there by one that was killed.
func TestNodeDoorsAreSeveral(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("deep/", 20), "pier.sock") // longer than an address
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	for range 2 {
		n, stop := startNode(t, config.Config{Listen: []string{"127.0.0.1:0", "unix:" + path, "[::1]:0"}}, slog.New(slog.DiscardHandler))
		for _, d := range n.doors[:3] {
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				addr := d.listener.Addr()
				if addr.Network() != "unix" {
					return new(net.Dialer).DialContext(ctx, "tcp", addr.String())
				}
				dir, err := os.Open(filepath.Dir(path))
				must(t, err)
				defer dir.Close()
				return new(net.Dialer).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/pier.sock", dir.Fd()))
			}}}
			resp, err := client.Get("http://node/v2/")
			must(t, err)
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("%s: %s", d.addr, resp.Status)
			}
		}
		info, err := os.Stat(path)
		must(t, err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("the socket has permissions %o", info.Mode().Perm())
		}
		if _, err := listen(t.Context(), "unix:"+path); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("a second listener: %v", err)
		}
		stop()
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("the socket is left: %v", err)
		}
		left, err := listen(t.Context(), "unix:"+path)
		must(t, err)
		must(t, left.(socket).UnixListener.Close()) // as of one that was killed
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
