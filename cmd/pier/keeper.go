package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pier/internal/cache"
	"pier/internal/chain"
	"pier/internal/node"
	"pier/internal/oci"
)

// cacheVariable names the environment variable for --cache-dir, which is that of the node.
const cacheVariable = "PIER_CACHE_DIR"

// A keeper is where a command finds the images of a cache: in its directory, or with the node that runs on it.
type keeper struct {
	dir string

	cache  *cache.Cache // nil: a node has it
	client *http.Client // of the node
}

func (k *keeper) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&k.dir, "cache-dir", "", "`DIRECTORY` of the cache, of a node that runs or none (environment "+cacheVariable+"; default "+defaultCacheDir()+")")
}

// defaultCacheDir is where a node without settings keeps images.
func defaultCacheDir() string { return node.OwnCacheDir() }

// open opens the cache. make says whether it is made if there is none.
func (k *keeper) open(create bool) error {
	k.dir = cmp.Or(k.dir, os.Getenv(cacheVariable), defaultCacheDir())
	dir, err := filepath.Abs(k.dir)
	if err != nil {
		return err
	}
	k.dir = dir
	if _, err := os.Stat(filepath.Join(dir, "pier")); errors.Is(err, os.ErrNotExist) && !create {
		return fmt.Errorf("there is no cache in %s: say where it is by --cache-dir or %s", dir, cacheVariable)
	}
	for end := time.Now().Add(lockedFor); ; time.Sleep(100 * time.Millisecond) {
		k.cache, err = cache.Open(cache.Config{Dir: dir, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))})
		if !errors.Is(err, cache.ErrLocked) {
			return err
		}
		conn, dialled := dialUnix(context.Background(), node.ControlSocket(dir))
		if dialled == nil {
			conn.Close()
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s: %w that is no node, such as pier load: try again when that is over", dir, cache.ErrLocked)
		}
	}
	k.cache, k.client = nil, &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialUnix(ctx, node.ControlSocket(dir))
	}}}
	return nil
}

// lockedFor is how long a cache is waited for that another command has, or a node that starts or ends.
const lockedFor = 5 * time.Second

// dialUnix connects to a socket whose name may be longer than an address.
func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var d net.Dialer
	return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)))
}

func (k *keeper) close() error {
	if k.cache == nil {
		return nil
	}
	return k.cache.Close()
}

// ask asks the node that has the directory.
func (k *keeper) ask(ctx context.Context, method, path string, body any) (*http.Response, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://node/"+path, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	resp, err := k.client.Do(req)
	if err != nil {
		var inner *url.Error
		if errors.As(err, &inner) {
			err = inner.Err
		}
		return nil, fmt.Errorf("the node that uses %s does not answer: %w", k.dir, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // the status is enough
	return nil, fmt.Errorf("the node that uses %s: %s", k.dir, printable(strings.TrimSpace(cmp.Or(string(said), resp.Status))))
}

// answer asks the node and decodes what it says.
func (k *keeper) answer(ctx context.Context, method, path string, body, v any) error {
	resp, err := k.ask(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		return fmt.Errorf("the answer of the node that uses %s: %w", k.dir, err)
	}
	return nil
}

func (k *keeper) images(ctx context.Context, patterns []string) (list []cache.Image, err error) {
	if k.cache != nil {
		return k.cache.Images(ctx, patterns)
	}
	err = k.answer(ctx, http.MethodGet, "images?"+url.Values{"pattern": patterns}.Encode(), nil, &list)
	return list, err
}

func (k *keeper) prune(ctx context.Context, p cache.Prune) (done cache.Pruned, err error) {
	if k.cache != nil {
		return k.cache.Prune(ctx, p)
	}
	err = k.answer(ctx, http.MethodPost, "prune", p, &done)
	return done, err
}

// pull has the node load an image.
func (k *keeper) pull(ctx context.Context, ref oci.Reference, opt chain.CopyOptions) (oci.Digest, error) {
	resp, err := k.ask(ctx, http.MethodPost, "load", node.LoadRequest{
		Ref: ref.String(), Platforms: opt.Platforms, Referrers: opt.Referrers, Jobs: opt.Jobs,
	})
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	lines := json.NewDecoder(resp.Body)
	var before node.LoadEvent
	for {
		var e node.LoadEvent
		if err := lines.Decode(&e); err != nil {
			return "", fmt.Errorf("the node that uses %s left off: %w: see its log", k.dir, err)
		}
		if e.Total != before.Total {
			opt.Total(e.Total)
		}
		opt.Done(e.Done - before.Done)
		switch before = e; {
		case e.Error != "":
			return "", errors.New(printable(e.Error))
		case e.Digest != "":
			return e.Digest, nil
		}
	}
}
