//go:build e2e

package e2e

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pier/e2e/netns"
)

// newKeyFile has pier write a fresh cluster key.
func newKeyFile(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "cluster.key")
	writeFile(t, file, run(t, pierBinary, "key", "new")+"\n")
	return file
}

func TestPeersWithAKeyServeNoStranger(t *testing.T) {
	t.Parallel()
	key, other := newKeyFile(t), newKeyFile(t)
	cfg := siteConfig{
		stores: []string{"cache", "cache", "cache", "cache"}, unjoined: true,
		nodeArgs: func(k int) []string {
			args := []string{"--peers", "10.77.0.1", "--peers", "10.77.0.2"}
			switch k {
			case 1, 2:
				return append(args, "--cluster-key-file", key)
			case 3:
				args = append(args, "--cluster-key-file", other)
			}
			return append(args, "--air-gapped") // what strangers get, they get from peers
		},
	}
	s := startSite(t, cfg)
	one, two, strangers := s.node(1), s.node(2), s.nodes[2:]
	want := newImage(t, 2*mib)
	s.registry.put(t, "app", "v1", want)
	s.awaitPeers(t, one, two)
	s.awaitPeers(t, two, one)
	one.pull(t, "v1", want)
	two.awaitHolder(t, one, want)
	s.cutWAN(t)
	two.pull(t, "v1", want)

	for _, n := range strangers {
		if err := n.client().pull(t.Context(), "app", want.root().Digest.String(), want); err == nil {
			t.Errorf("node %d got the image without the key", n.number)
		}
	}
	knock(t, strangers[0].place, one.place.HostPort(5000), want)
	for _, n := range []*siteNode{one, two} {
		if _, names := n.peers(t); len(names) != 1 {
			t.Errorf("node %d has the peers %q, want the one with the same key", n.number, names)
		}
	}
	for _, n := range strangers {
		if _, names := n.peers(t); len(names) > 0 {
			t.Errorf("node %d, which lacks the key, has the peers %q", n.number, names)
		}
	}
	if !strings.Contains(strangers[1].log.String(), "cluster-key-file") {
		t.Error("the node without a key does not say at its start that it trusts the network")
	}
}

// knock tries to get something from a peer door without the key, in every way a stranger has.
func knock(t *testing.T, from *netns.Place, door string, want *image) {
	t.Helper()
	transport := from.Transport()
	defer transport.CloseIdleConnections()
	self := newAuthority(t).issue(t, "pier")
	certificate, err := tls.LoadX509KeyPair(self.cert, self.key)
	must(t, err)
	for name, c := range map[string]struct {
		scheme string
		config *tls.Config
	}{
		"plain HTTP":             {"http", nil},
		"TLS, no certificate":    {"https", &tls.Config{InsecureSkipVerify: true}},
		"TLS, a certificate":     {"https", &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{certificate}}},
		"TLS 1.2, a certificate": {"https", &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{certificate}, MaxVersion: tls.VersionTLS12}},
	} {
		transport := transport.Clone()
		if transport.TLSClientConfig = c.config; c.config != nil && c.config.Certificates != nil {
			// Shown whoever the server says it trusts.
			c.config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil }
		}
		stranger := newClient(c.scheme+"://"+door, "registry.test")
		stranger.http = &http.Client{Transport: transport, Timeout: siteWait}
		for _, path := range []string{
			"app/manifests/v1", "app/manifests/" + want.root().Digest.String(), "app/blobs/" + want.layer(0).Digest.String(),
		} {
			a, err := stranger.do(t.Context(), http.MethodGet, path)
			if err == nil && a.status != http.StatusBadRequest {
				t.Errorf("%s: %s: status %d: %.100q, want no answer, or a 400", name, path, a.status, a.body)
			}
		}
		transport.CloseIdleConnections()
	}
	if _, err := exec.LookPath("curl"); err != nil {
		t.Logf("NOT RUN, the requests above stand for it: %v", err)
		return
	}
	line := from.Line("curl", "--silent", "--show-error", "--insecure", "--max-time", "20", "https://"+door+"/api/v1/node")
	if out, err := tryRun(t, nil, line[0], line[1:]...); err == nil {
		t.Errorf("curl was answered: %.300s", out)
	}
}

// What nodes tell each other, and about whom, can be read on the wire without a key, and not with one.
func TestPeersWithAKeyCannotBeRead(t *testing.T) {
	t.Parallel()
	for _, keyed := range []bool{true, false} {
		t.Run(fmt.Sprintf("key %v", keyed), func(t *testing.T) {
			t.Parallel()
			var key []string
			if keyed {
				key = []string{"--cluster-key-file", newKeyFile(t)}
			}
			cfg := siteConfig{
				stores: []string{"cache", "cache"}, unjoined: true,
				nodeArgs: func(k int) []string {
					return append([]string{"--peers", "10.77.0.1", "--zone", fmt.Sprint("zone-of-node-", k)}, key...)
				},
			}
			s := startSite(t, cfg)
			want := newImage(t, mib)
			s.registry.put(t, "app", "v1", want)
			wire := listenOn(t, s.Switch(), "v2")
			for _, n := range s.nodes {
				s.awaitPeers(t, n)
			}
			s.node(1).pull(t, "v1", want)
			s.node(2).awaitHolder(t, s.node(1), want)
			s.cutWAN(t)
			s.node(2).client().mustPull(t, "app", want.root().Digest.String(), want)
			seen := wire.stop(t)
			if len(seen) < int(want.size()) {
				t.Fatalf("%d bytes were seen on the wire, though an image of %d passed", len(seen), want.size())
			}
			layer := want.layer(0)
			for what, secret := range map[string][]byte{
				"the name of a zone":       []byte("zone-of-node-1"),
				"the digest of a blob":     []byte(layer.Digest.Encoded()),
				"the name of a repository": []byte("/app/blobs/"),
				"a part of a blob":         layer.data[layer.Size/2:][:32],
			} {
				if found := bytes.Contains(seen, secret); found == keyed {
					t.Errorf("%s is on the wire: %v, with a key: %v", what, found, keyed)
				}
			}
		})
	}
}

// A wiretap collects every frame that passes an interface.
type wiretap struct {
	done chan struct{}
	end  sync.Once
	seen chan []byte
}

// maxSeen bounds what a wiretap keeps, in bytes.
const maxSeen = 64 << 20

func listenOn(t *testing.T, at *netns.Place, device string) *wiretap {
	t.Helper()
	var socket int
	must(t, at.Do(func() (err error) {
		i, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		every := uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8) // in the network's order of bytes
		if socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(every)); err != nil {
			return err
		}
		return unix.Bind(socket, &unix.SockaddrLinklayer{Protocol: every, Ifindex: i.Index})
	}))
	must(t, unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}))
	must(t, unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, maxSeen))
	w := &wiretap{done: make(chan struct{}), seen: make(chan []byte, 1)}
	go func() {
		defer unix.Close(socket)
		var seen []byte
		frame := make([]byte, 128<<10)
		for {
			n, _, err := unix.Recvfrom(socket, frame, 0)
			if err == nil && len(seen) < maxSeen {
				seen = append(seen, frame[:n]...)
			}
			select {
			case <-w.done:
				if err != nil || len(seen) >= maxSeen { // nothing was left
					w.seen <- seen
					return
				}
			default:
			}
		}
	}()
	t.Cleanup(func() { w.end.Do(func() { close(w.done) }) })
	return w
}

// stop returns what was seen.
func (w *wiretap) stop(t *testing.T) []byte {
	t.Helper()
	w.end.Do(func() { close(w.done) })
	select {
	case seen := <-w.seen:
		return slices.Clip(seen)
	case <-time.After(siteWait):
		t.Fatal("the wiretap does not end")
		return nil
	}
}
