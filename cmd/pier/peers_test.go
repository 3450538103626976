package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"pier/internal/node"
	"pier/internal/oci/ocitest"
	"pier/internal/registry"
)

// answers is what a fake node says, by name of the API.
type answers = map[string]func(context.Context, string) (any, error)

// startDoor starts a door that answers so, and returns its URL.
func startDoor(t *testing.T, api answers) string {
	t.Helper()
	srv := httptest.NewServer(registry.New(registry.Config{Source: &ocitest.Memory{}, API: api}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// pier runs the command line.
func pier(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, warn bytes.Buffer
	err = run(t.Context(), args, &out, &warn)
	return out.String(), warn.String(), err
}

// wantText compares what was printed with a text that begins in a line of its own.
func wantText(t *testing.T, got, want string) {
	t.Helper()
	if want = strings.TrimPrefix(want, "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func peerRef(host, addr, zone string) node.PeerRef {
	return node.PeerRef{Name: addr + ":7946", Host: host, Door: addr + ":5000", Zone: zone}
}

// site is a cluster of five as a node of it sees them.
func site() node.PeersInfo {
	return node.PeersInfo{
		Self: node.PeerInfo{PeerRef: peerRef("edge-01.berlin.example.com", "10.20.30.1", "rack-1"), Version: "v0.3.0", Blobs: 1204, State: node.StateUp},
		Peers: []node.PeerInfo{
			{PeerRef: peerRef("storage-04.berlin.example.com", "[2001:db8:40:1::1a2b]", "rack-12"), Version: "v0.3.1-rc.1", Blobs: 98, RTT: 1.24, State: node.StateUp},
			{PeerRef: peerRef("edge-02.berlin.example.com", "10.20.30.2", "rack-1"), Version: "v0.3.0", Blobs: 3, RTT: 0.04, State: node.StateUp},
			{PeerRef: peerRef("edge-03.berlin.example.com", "10.20.30.3", ""), Version: "v0.3.0", Blobs: -1, RTT: 0, State: node.StateUnreachable},
			{PeerRef: node.PeerRef{Name: "10.20.30.9:17946", Zone: "up\x1b[2J\tstairs"}, Version: "", Blobs: 0, RTT: 123.4, State: node.StateUp},
		},
		Faults: []string{`peers.txt:3: "http://x" is no node`},
	}
}

func TestPeers(t *testing.T) {
	url := startDoor(t, answers{"peers": func(context.Context, string) (any, error) { return site(), nil }})
	stdout, stderr, err := pier(t, "peers", "--node", url)
	if err != nil {
		t.Fatal(err)
	}
	wantText(t, stdout, `
NODE                           PEER DOOR                   ZONE           VERSION      BLOBS  ROUND TRIP  STATE
edge-01.berlin.example.com     10.20.30.1:5000             rack-1         v0.3.0        1204           -  this node
10.20.30.9:17946               -                           up�[2J�stairs  -                0      123 ms  up
edge-02.berlin.example.com     10.20.30.2:5000             rack-1         v0.3.0           3     <0.1 ms  up
edge-03.berlin.example.com     10.20.30.3:5000             -              v0.3.0           -           -  unreachable
storage-04.berlin.example.com  [2001:db8:40:1::1a2b]:5000  rack-12        v0.3.1-rc.1     98      1.2 ms  up
`)
	wantText(t, stderr, "pier: peers file: peers.txt:3: \"http://x\" is no node\n")

	stdout, stderr, err = pier(t, "peers", "--json", "--node", url)
	var got node.PeersInfo
	if err != nil || stderr != "" || json.Unmarshal([]byte(stdout), &got) != nil || len(got.Peers) != 4 || len(got.Faults) != 1 {
		t.Errorf("--json: %v, %s%s", err, stdout, stderr)
	}
}

// A node by itself is no error, but nothing that its owner wants to miss.
func TestNoPeers(t *testing.T) {
	alone := node.PeersInfo{Self: node.PeerInfo{PeerRef: node.PeerRef{Name: "10.0.0.1:7946", Host: "a"}}}
	url := startDoor(t, answers{"peers": func(context.Context, string) (any, error) { return alone, nil }})
	t.Setenv("PIER_NODE", strings.TrimPrefix(url, "http://")+"/")
	stdout, stderr, err := pier(t, "peers")
	if err != nil || strings.Count(stdout, "\n") != 2 {
		t.Errorf("got %v\n%s%s", err, stdout, stderr)
	}
	wantText(t, stderr, "pier: no peers: this node does not look for any; see --peers, --peers-file, --peers-dns and --mdns of 'pier serve'\n")

	alone.Ways = []string{"peers-file", "mdns"}
	if _, stderr, err = pier(t, "peers"); err != nil {
		t.Error(err)
	}
	wantText(t, stderr, "pier: no peers yet: this node looks for them with --peers-file, --mdns; its log says whom it found and could not join\n")
}

// TestNodeCannotBeAsked holds the end of every message about a node that does not answer as it should.
func TestNodeCannotBeAsked(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := "http://" + l.Addr().String()
	l.Close()
	handle := func(h http.HandlerFunc) string {
		srv := httptest.NewServer(h)
		t.Cleanup(srv.Close)
		return srv.URL
	}
	secret := httptest.NewUnstartedServer(registry.New(registry.Config{Source: &ocitest.Memory{}}))
	secret.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	secret.StartTLS()
	t.Cleanup(secret.Close)
	for _, tc := range []struct {
		name, url, want string
		status          int
	}{
		{"nobody there", closed, "connection refused; is 'pier serve' running? Say where with --node URL or PIER_NODE", 1},
		{"another server", handle(http.NotFound), "is no node: say where one is with --node URL or PIER_NODE", 1},
		{"a web page", handle(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }), "is no node: say where one is with --node URL or PIER_NODE", 1},
		{"a redirect", handle(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/x", http.StatusFound) }), "is no node: say where one is with --node URL or PIER_NODE", 1},
		{"the peer door", startDoor(t, nil), "does not answer peers there: ask its node or metrics door, or one that is not older than this program", 1},
		{"a fault", startDoor(t, answers{"peers": func(context.Context, string) (any, error) { return nil, errors.New("secret") }}), "502 Bad Gateway: the content could not be had at this time; its log says why", 1},
		{"an unknown certificate", secret.URL, "ask its metrics door instead, for example --node http://127.0.0.1:9090", 1},
		{"no URL", "http://", "is no URL of a node: write one like http://127.0.0.1:5001", 2},
		{"another scheme", "ftp://x", "is no URL of a node: write one like http://127.0.0.1:5001", 2},
	} {
		stdout, _, err := pier(t, "peers", "--node", tc.url)
		if err == nil || !strings.HasSuffix(err.Error(), tc.want) || exitStatus(err) != tc.status || stdout != "" {
			t.Errorf("%s: got %v with status %d, want …%s with %d", tc.name, err, exitStatus(err), tc.want, tc.status)
		}
	}
}

func TestSizeText(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 999_949: "999.9 kB", 999_950: "1.0 MB", 31_457_280: "31.5 MB", 5e9: "5.0 GB", 1<<63 - 1: "9223.4 PB",
	} {
		if got := sizeText(n); got != want {
			t.Errorf("%d: got %q, want %q", n, got, want)
		}
	}
}
