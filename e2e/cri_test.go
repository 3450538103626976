//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// criPull has containerd's CRI service pull an image, as a kubelet does. It is one gRPC call, of one string.
func criPull(ctx context.Context, socket, image string) error {
	text := func(n protowire.Number, b []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), b)
	}
	message := text(1, text(1, []byte(image))) // PullImageRequest.image, ImageSpec.image
	frame := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: &protocols, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://containerd/runtime.v1.ImageService/PullImage", bytes.NewReader(frame))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("TE", "trailers")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	status := resp.Header // where there is no body, the trailers are headers
	if status.Get("Grpc-Status") == "" {
		status = resp.Trailer
	}
	if status.Get("Grpc-Status") != "0" {
		return fmt.Errorf("status %s: %s", status.Get("Grpc-Status"), status.Get("Grpc-Message"))
	}
	return nil
}

func TestKubeletsPullGoesThroughPier(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"containerd1", "containerd2"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			registry := startRegistry(t, registryConfig{})
			want := newImage(t, 1<<20, 100)
			registry.put(t, "team/app", "v1", want)
			node := freeAddr(t)
			hosts := t.TempDir()
			writeFile(t, filepath.Join(hosts, "_default", "hosts.toml"), fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", "http://"+node))
			c := startCRI(t, version, hosts)
			p := startPier(t, pierConfig{
				store: "containerd", upstreams: namedUpstream("registry.test", registry.addr), args: c.pierArgs("--listen", node),
			})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			// Nothing but pier knows where registry.test is.
			if err := criPull(ctx, c.socket, "registry.test/team/app:v1"); err != nil {
				t.Fatal(err)
			}
			peerDoor := newClient(p.peer, "registry.test")
			eventually(t, soon, func() error { return wantAt(peerDoor, "team/app/manifests/v1", http.StatusOK) })
			if err := criPull(ctx, c.socket, "registry.test/team/none:v1"); err == nil {
				t.Error("an image that does not exist was pulled")
			}
		})
	}
}
