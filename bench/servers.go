package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/e2e/faultproxy"
	"pier/internal/authority"
)

// upstreamRate is what upstream sends, in bytes per second: on one connection, and on all together.
const upstreamRate = 50 * mb

// countsPath is where upstream tells, and forgets, how often what was asked for: a JSON object from "METHOD path" to count.
const countsPath = "/bench/counts"

// servers are what this command runs itself as.
func servers() map[string]func(context.Context, []string) error {
	return map[string]func(context.Context, []string) error{
		"upstream": runUpstream, "files": runFiles, "bare": runBare, "compress": runCompress, "encode": runEncode, "blake3": runBlake3,
	}
}

// startUpstream makes images of layers of these sizes, and starts the registry that has them. The caller stops b.upstream.
func (b *bench) startUpstream(ctx context.Context, sizes ...[]int64) (images []image, err error) {
	if images, err = b.makeImages(sizes...); err != nil {
		return nil, err
	}
	b.upstream, err = b.startSelf(ctx, "upstream", b.root())
	return images, err
}

// root is the directory of the images that upstream has.
func (b *bench) root() string { return filepath.Join(b.dir, "upstream") }

// makeImages makes images of layers of these sizes.
func (b *bench) makeImages(sizes ...[]int64) (images []image, err error) {
	if err := os.RemoveAll(b.root()); err != nil {
		return nil, err
	}
	b.say("making images of %d MB", sum(slices.Concat(sizes...))/mb)
	for i, layers := range sizes {
		image, err := makeImage(b.root(), fmt.Sprintf("team/app%d", i+1), layers...)
		if err != nil {
			return nil, err
		}
		images = append(images, image)
	}
	return images, nil
}

// startSelf runs one of this command's servers.
func (b *bench) startSelf(ctx context.Context, name string, args ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	return b.start(ctx, name, addr, nil, self, append([]string{name, addr}, args...)...)
}

// counts returns how often what was asked of upstream since the last call.
func (b *bench) counts(ctx context.Context) (map[string]int, error) {
	resp, err := httpGet(ctx, http.DefaultClient, "http://"+b.upstream.addr+countsPath)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var counts map[string]int
	return counts, json.NewDecoder(resp.Body).Decode(&counts)
}

// runUpstream serves the images under a directory: args are the address and the directory, and where to serve them with TLS
// too, another address and the directory of the certificate authority.
func runUpstream(ctx context.Context, args []string) error {
	if len(args) != 2 && len(args) != 4 {
		return errors.New("usage: bench upstream ADDR DIR [TLSADDR AUTHORITY]")
	}
	proxy := faultproxy.New(faultproxy.Config{Handler: files(args[1])})
	defer proxy.Close()
	proxy.LimitRate(upstreamRate, upstreamRate)
	return serveBoth(ctx, args, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != countsPath {
			proxy.ServeHTTP(w, r)
			return
		}
		counts := make(map[string]int)
		for _, r := range proxy.Requests() {
			counts[r.Method+" "+r.Path]++
		}
		proxy.Reset()
		_ = json.NewEncoder(w).Encode(counts) // whoever asks sees that it ends early
	}))
}

// runFiles serves the images under a directory as fast as it can: args are those of runUpstream.
func runFiles(ctx context.Context, args []string) error {
	if len(args) != 2 && len(args) != 4 {
		return errors.New("usage: bench files ADDR DIR [TLSADDR AUTHORITY]")
	}
	return serveBoth(ctx, args, files(args[1]))
}

// files is the pull half of a registry over the files that makeImage wrote.
func files(root string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !fs.ValidPath(strings.TrimPrefix(r.URL.Path, "/")) { // /v2/ too: it is there
			w.WriteHeader(http.StatusOK)
			return
		}
		f, err := os.Open(filepath.Join(root, filepath.FromSlash(r.URL.Path)))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		defer f.Close()
		contentType, dgst := "application/octet-stream", filepath.Base(r.URL.Path)
		if faultproxy.KindOf(r.URL.Path) == faultproxy.Manifest {
			d, err := digest.FromReader(f)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			contentType, dgst = v1.MediaTypeImageManifest, d.String()
		}
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Docker-Content-Digest", dgst)
		http.ServeContent(w, r, "", time.Time{}, f)
	})
}

// runBare answers every request with the header and bytes that a URL had when it started: args are the address and the URL.
// It is what net/http costs by itself.
func runBare(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("usage: bench bare ADDR URL")
	}
	resp, err := httpGet(ctx, http.DefaultClient, args[1])
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	header := resp.Header.Clone()
	header.Del("Date") // the server's own
	header.Set("Content-Length", strconv.Itoa(len(body)))
	return serve(ctx, args[0], http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for k, v := range header {
			w.Header()[k] = v
		}
		_, _ = w.Write(body) // the client counts what it gets
	}))
}

// serveBoth serves until ctx ends, at args[0], and before that with TLS at args[2], if it is there, with a certificate of the
// authority in the directory args[3].
func serveBoth(ctx context.Context, args []string, h http.Handler) error {
	if len(args) < 4 {
		return serve(ctx, args[0], h)
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", args[2])
	if err != nil {
		return err
	}
	defer listener.Close()
	host, _, err := net.SplitHostPort(args[2])
	if err != nil {
		return err
	}
	a, err := authority.Load(authority.Config{Dir: args[3]})
	if err != nil {
		return err
	}
	cert, err := a.Certificate(host)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{*cert}, MinVersion: tls.VersionTLS12},
	}
	secure := make(chan error, 1)
	go func() { secure <- server.ServeTLS(listener, "", "") }()
	err = errors.Join(serve(ctx, args[0], h), server.Close())
	if serr := <-secure; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}

// serve serves until ctx ends.
func serve(ctx context.Context, addr string, h http.Handler) error {
	server := &http.Server{Addr: addr, Handler: h, ReadHeaderTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// httpGet expects status 200. The caller closes the body.
func httpGet(ctx context.Context, client *http.Client, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	return do(client, req)
}

// do expects status 200. The caller closes the body.
func do(client *http.Client, req *http.Request) (*http.Response, error) {
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("%s: %s", req.URL, resp.Status)
	}
	return resp, nil
}
