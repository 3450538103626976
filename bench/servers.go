package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/e2e/faultproxy"
)

// upstreamRate is what upstream sends, in bytes per second: on one connection, and on all together.
const upstreamRate = 50 * mb

// countsPath is where upstream tells, and forgets, how often what was asked for: a JSON object from "METHOD path" to count.
const countsPath = "/bench/counts"

// servers are what this command runs itself as.
func servers() map[string]func(context.Context, []string) error {
	return map[string]func(context.Context, []string) error{"upstream": runUpstream, "files": runFiles, "bare": runBare}
}

// startUpstream makes images of layers of these sizes, and starts the registry that has them. The caller stops b.upstream.
func (b *bench) startUpstream(ctx context.Context, sizes ...[]int64) (images []image, err error) {
	root := filepath.Join(b.dir, "upstream")
	if err := os.RemoveAll(root); err != nil {
		return nil, err
	}
	for i, layers := range sizes {
		b.say("making an image of %d MB", sum(layers)/mb)
		image, err := makeImage(root, fmt.Sprintf("team/app%d", i+1), layers...)
		if err != nil {
			return nil, err
		}
		images = append(images, image)
	}
	b.upstream, err = b.startSelf(ctx, "upstream", root)
	return images, err
}

// startSelf runs one of this command's servers.
func (b *bench) startSelf(ctx context.Context, name, arg string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	return b.start(ctx, name, addr, nil, self, name, addr, arg)
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

// runUpstream serves the images under a directory: args are the address and the directory.
func runUpstream(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("usage: bench upstream ADDR DIR")
	}
	proxy := faultproxy.New(faultproxy.Config{Handler: files(args[1])})
	defer proxy.Close()
	proxy.LimitRate(upstreamRate, upstreamRate)
	return serve(ctx, args[0], http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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

// runFiles serves the images under a directory as fast as it can: args are the address and the directory.
func runFiles(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("usage: bench files ADDR DIR")
	}
	return serve(ctx, args[0], files(args[1]))
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
