package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"pier/internal/cache"
	"pier/internal/chain"
	"pier/internal/config"
	"pier/internal/oci"
	"pier/internal/registry"
)

// ControlSocket returns where a node that keeps images in a directory is told what to do with them. Who may open it may do that: it is for the user
// whom the directory belongs to, and for root.
func ControlSocket(cacheDir string) string { return filepath.Join(cacheDir, "pier", "control") }

// LoadRequest is the body of POST /load on the control socket.
type LoadRequest struct {
	Ref       string   `json:"ref"`
	Platforms []string `json:"platforms,omitempty"`
	Referrers bool     `json:"referrers,omitempty"`
	Jobs      int      `json:"jobs,omitempty"`
}

// LoadEvent is one of the lines that it is answered with. The last has Digest or Error.
type LoadEvent struct {
	Done   int64      `json:"done"`  // bytes
	Total  int64      `json:"total"` // bytes; 0: not known yet
	Digest oci.Digest `json:"digest,omitempty"`
	Error  string     `json:"error,omitempty"`
}

const (
	maxControl = 1 << 20 // bytes of a request
	loadEvery  = 200 * time.Millisecond
	loadJobs   = 4 // blobs at once, where nobody says
)

// controlHandler is what answers on the control socket.
func (n *Node) controlHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /images", func(w http.ResponseWriter, r *http.Request) {
		defer n.reserveInventory()()
		list, err := n.cache.Images(r.Context(), r.URL.Query()["pattern"])
		tell(w, list, err)
	})
	mux.HandleFunc("POST /prune", func(w http.ResponseWriter, r *http.Request) {
		var p cache.Prune
		if hear(w, r, &p) {
			defer n.reserveInventory()()
			done, err := n.cache.Prune(r.Context(), p)
			if err == nil && !p.DryRun {
				n.log.InfoContext(r.Context(), "images removed on request", "images", len(done.Images), "bytes", done.Bytes, "left", done.Left)
			}
			tell(w, done, err)
		}
	})
	mux.HandleFunc("POST /load", func(w http.ResponseWriter, r *http.Request) {
		var l LoadRequest
		if hear(w, r, &l) {
			n.tellLoad(w, r, l)
		}
	})
	mux.Handle("/v2/", registry.New(registry.Config{ // archives, as a command reads them
		Source: n.whole, Push: n.cache, PushSource: cache.SourceArchive, PushSparse: true, Door: "control", Log: n.log, Metrics: n.metrics,
	}))
	return mux
}

// reserveInventory lets the collector leave room for what is told of all that the cache has, until the function it returns is called.
func (n *Node) reserveInventory() (release func()) {
	const each = 128 // bytes
	_, blobs := n.cache.Size()
	n.memory.reserve(blobs * each)
	return func() { n.memory.reserve(-blobs * each) }
}

// acceptPush has the node door keep what clients push, if that is wanted.
func (n *Node) acceptPush(door *registry.Config) (err error) {
	if !n.cfg.AcceptPush {
		return nil
	}
	if n.cache == nil {
		return errors.New("accept-push: there is no cache to keep it in: give cache-dir")
	}
	door.Push = n.cache
	if n.cfg.PushHtpasswd == "" {
		return nil // whoever is there showed a certificate
	}
	if door.Pushers, err = registry.NewPushers(n.cfg.PushHtpasswd); err != nil {
		return err
	}
	pushers := door.Pushers
	n.watch("push-htpasswd", func() []string { return []string{n.cfg.PushHtpasswd} }, func() error { return pushers.Reload(n.cfg.PushHtpasswd) })
	return nil
}

// hear reads a request. What it asks for may take its time.
func hear(w http.ResponseWriter, r *http.Request, v any) bool {
	err := json.NewDecoder(io.LimitReader(r.Body, maxControl)).Decode(v)
	if err == nil {
		err = http.NewResponseController(w).SetReadDeadline(time.Time{})
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
	return err == nil
}

func tell(w http.ResponseWriter, v any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // or nobody is there
}

// tellLoad loads an image, and says how far that is.
func (n *Node) tellLoad(w http.ResponseWriter, r *http.Request, l LoadRequest) {
	ref, err := oci.ParseReference(l.Ref, n.cfg.DefaultRegistry)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	lines := json.NewEncoder(w)
	flush := http.NewResponseController(w)
	var mu sync.Mutex // guards what follows
	var now LoadEvent
	opt := chain.CopyOptions{
		ImageOptions: chain.ImageOptions{Platforms: l.Platforms, Referrers: l.Referrers}, Jobs: l.Jobs,
		Total: func(size int64) { mu.Lock(); defer mu.Unlock(); now.Total = size },
		Done:  func(size int64) { mu.Lock(); defer mu.Unlock(); now.Done += size },
	}
	done := make(chan LoadEvent, 1)
	go func() {
		img, err := n.load(r.Context(), ref, opt)
		if err != nil {
			done <- LoadEvent{Error: err.Error()}
			return
		}
		done <- LoadEvent{Digest: img.Root.Digest}
	}()
	tick := time.NewTicker(loadEvery)
	defer tick.Stop()
	for {
		select {
		case last := <-done:
			last.Done, last.Total = now.Done, now.Total
			_ = lines.Encode(last) // or nobody is there
			return
		case <-tick.C:
			mu.Lock()
			event := now
			mu.Unlock()
			if lines.Encode(event) != nil || flush.Flush() != nil {
				tick.Stop() // nobody is there: the context ends
			}
		}
	}
}

// load has an image be on this node, with all that belongs to it.
func (n *Node) load(ctx context.Context, ref oci.Reference, opt chain.CopyOptions) (*chain.Image, error) {
	if opt.Jobs < 1 {
		opt.Jobs = loadJobs
	}
	img, err := chain.Fetch(ctx, n.full, n.whole, ref, opt)
	if errors.Is(err, oci.ErrNotFound) && n.upstreams == nil {
		err = fmt.Errorf("%w: this node is air-gapped: load an archive, or load where there is a network", err)
	}
	return img, err
}

// openControl adds the door of the cache.
func (n *Node) openControl() {
	if n.cache != nil {
		n.doors = append(n.doors, &door{name: "control", addr: config.UnixPrefix + ControlSocket(n.cfg.CacheDir), handler: n.counted(n.controlHandler())})
	}
}
