package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// pullVerified pulls an image as a runtime does, but for keeping it: the manifest by tag, then config and layers at once. It
// checks every digest, and that it is the image it should be.
func pullVerified(ctx context.Context, client *http.Client, s server, i image) error {
	defer client.CloseIdleConnections()
	text, err := get(ctx, client, s, i.path("manifests", tag))
	if err != nil {
		return err
	}
	var manifest v1.Manifest
	if err := json.Unmarshal(text, &manifest); err != nil {
		return fmt.Errorf("manifest from %s: %w", s.addr, err)
	}
	all := append([]v1.Descriptor{manifest.Config}, manifest.Layers...)
	if !slices.EqualFunc(all, append([]v1.Descriptor{i.config}, i.layers...), func(a, b v1.Descriptor) bool { return a.Digest == b.Digest }) {
		return fmt.Errorf("manifest from %s: it is another image's", s.addr)
	}
	return each(all, func(_ int, d v1.Descriptor) error { return pullBlob(ctx, client, s, i, d) })
}

// get returns what is at a path of a server. The accepted types are those that runtimes ask for.
func get(ctx context.Context, client *http.Client, s server, path string) ([]byte, error) {
	resp, err := s.open(ctx, client, path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	const most = 4 << 20 // bytes of a manifest
	return io.ReadAll(io.LimitReader(resp.Body, most))
}

func (s server) open(ctx context.Context, client *http.Client, path string) (*http.Response, error) {
	scheme := "http"
	if s.tls != nil {
		scheme = "https"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+s.addr+path+s.query, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", accept)
	return do(client, req)
}

// pullBlob reads a blob and checks its digest.
func pullBlob(ctx context.Context, client *http.Client, s server, i image, d v1.Descriptor) error {
	resp, err := s.open(ctx, client, i.path("blobs", d.Digest.String()))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	h := digest.SHA256.Digester()
	n, err := io.CopyBuffer(h.Hash(), resp.Body, make([]byte, 256<<10))
	if err != nil {
		return fmt.Errorf("%s from %s, after %d bytes: %w", d.Digest, s.addr, n, err)
	}
	if got := h.Digest(); got != d.Digest {
		return fmt.Errorf("%s from %s: %d bytes with digest %s", d.Digest, s.addr, n, got)
	}
	return nil
}
