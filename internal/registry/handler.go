// Package registry answers the pull half of the OCI Distribution API over an [oci.Source], and, where it is given a [Receiver], the push half. It knows HTTP: routes, media
// types, ranges, conditions, errors, and how to keep a connection moving. What there is, where it comes from and whether
// its bytes are right, it leaves to the Source.
//
// One request runs through ServeHTTP (handler.go), parseRoute (route.go), one of manifest, blob, tags, referrers, digests
// and api, and then response (response.go) or, if that returned an error, fail (error.go).
package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"pier/internal/oci"
)

// A Config says what a handler serves. Only Source is needed.
type Config struct {
	Source oci.Source // answers pulls; asked for tags and referrers too if it is an [oci.Lister]
	Local  oci.Source // what this node has, for /api/v1/digests; nil: Source

	DefaultRegistry string // for paths that name none; "docker.io" if empty

	// PassAuthorization hands a client's own Authorization on to the upstream it named, see [oci.WithAuthorization], and
	// tells Source of the clients that can go there themselves, see [oci.WithFallback]. Never set it where other nodes ask:
	// their clients' credentials are not for them to send.
	PassAuthorization bool

	// ByHost says that the host of a request is the registry that is meant, as for a client that asked that registry, and whose
	// request a proxy took.
	ByHost bool

	// Push keeps what clients push; nil: they cannot. Pushers may; nil: whoever reaches the handler.
	Push       Receiver
	Pushers    *Pushers
	PushSource string // what Push is told as the Source of what is pushed; "push" if empty
	PushSparse bool   // an index may be pushed without some of its manifests

	// Slots is how many requests for content, GET of manifests and blobs, are served at once; those beyond are answered 503
	// at once, so that whoever asks finds another node. 0: any number.
	Slots int

	// Missing is said to clients beside that something is not there, and why that may be. Empty: nothing.
	Missing string

	// Name is what this node calls itself in the Via header of its own requests. A request that came through this node
	// already is answered 404: whoever sent it is waited for. Empty: no request is known to have.
	Name string

	// API answers GET /api/v1/<name> and /api/v1/<name>/<arg> beside digests, by name: what a function returns is sent as
	// JSON, its errors are answered as those of Source. Arg is decoded, may hold slashes, and comes from a stranger.
	API map[string]func(ctx context.Context, arg string) (any, error)

	Door string       // "node" or "peer": label of log lines and metrics
	Log  *slog.Logger // nil: nothing is logged

	Metrics *metrics.Set // where the handler registers its metrics; nil: a set of its own
}

type handler struct {
	Config
	lister  oci.Lister // nil if Source is none
	stall   time.Duration
	slots   chan struct{} // one element for each request that holds a slot; nil: any number
	texts   chan struct{} // one element for each manifest that is being received
	metrics *meter
}

// stall is how long a client may take no byte before its connection is cut. It is as long as the time for which clients
// wait without progress themselves, so that nobody who is still there is cut off first.
const stall = time.Minute

// New returns a handler for /v2/ and /api/v1/. It must be reached without an [http.ServeMux] that cleans paths: a name
// with "//" or ".." is an error, not a redirect. It moves the write deadline of its connections as bytes flow, so
// the server needs no WriteTimeout.
func New(c Config) http.Handler { return newHandler(c) }

func newHandler(c Config) *handler {
	if c.Local == nil {
		c.Local = c.Source
	}
	if c.DefaultRegistry == "" {
		c.DefaultRegistry = oci.DockerHub
	}
	if c.PushSource == "" {
		c.PushSource = "push"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = metrics.NewSet()
	}
	h := &handler{Config: c, stall: stall, metrics: newMeter(c.Metrics, c.Door), texts: make(chan struct{}, maxTexts)}
	if c.Slots > 0 {
		h.slots = make(chan struct{}, c.Slots)
	}
	h.lister, _ = c.Source.(oci.Lister)
	return h
}

// ServeHTTP implements [http.Handler].
func (h *handler) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	start := time.Now()
	h.metrics.inFlight.Inc()
	defer h.metrics.inFlight.Dec()

	w := newResponse(rw, r, h.stall)
	rw.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	rt, target, pushes, err := h.parsePush(r)
	if !pushes {
		rt, err = h.route(r)
	}
	switch {
	case err != nil:
	case pushes:
		err = h.push(r.Context(), w, r, rt, target)
	default:
		err = h.serve(w, r, rt)
	}
	if err == nil {
		err = w.finish()
	}
	status, abort := w.status, false
	if err != nil {
		status, abort = h.fail(w, r, rt, err)
	}
	dur := time.Since(start)
	h.metrics.observe(rt.endpoint, r.Method, status, w, dur)
	h.logRequest(r, rt, status, w, dur, err)
	if abort {
		panic(http.ErrAbortHandler) // the only way to end a connection so that the client sees that bytes are missing
	}
}

func (h *handler) route(r *http.Request) (route, error) {
	if h.ByHost {
		return parseRouteOf(r, r.Host)
	}
	return parseRoute(r, h.DefaultRegistry)
}

// maxVia bounds the nodes that a request comes through, in bytes of their names: longer chains are mistakes.
const maxVia = 512

var errLoop = fmt.Errorf("the request came through this node already: nodes name each other as mirrors: %w", oci.ErrNotFound)

// enter takes a slot, if the request needs one, for as long as until leave is called. Without an error leave is never nil.
func (h *handler) enter(w *response, rt route) (leave func(), err error) {
	if h.slots == nil || w.head || rt.endpoint != endpointBlob && rt.endpoint != endpointManifest {
		return func() {}, nil
	}
	select {
	case h.slots <- struct{}{}:
		return func() { <-h.slots }, nil
	default:
		h.metrics.refused.Inc()
		return nil, errBusy
	}
}

func (h *handler) serve(w *response, r *http.Request, rt route) error {
	leave, err := h.enter(w, rt)
	if err != nil {
		return err
	}
	defer leave()
	ctx := r.Context()
	if h.PassAuthorization {
		ctx = oci.WithAuthorization(ctx, h.authorization(r))
		if rt.mirror {
			ctx = oci.WithFallback(ctx)
		}
	}
	via := strings.Join(r.Header.Values("Via"), ", ")
	if h.Name != "" && strings.Contains(via, h.Name) || len(via) > maxVia {
		return errLoop
	}
	ctx = oci.WithVia(ctx, via)
	switch rt.endpoint {
	case endpointBase:
		return h.base(w, r)
	case endpointToken:
		return h.tokens(w, r)
	case endpointManifest:
		return h.manifest(ctx, w, r, rt)
	case endpointBlob:
		return h.blob(ctx, w, r, rt)
	case endpointTags:
		return h.tags(ctx, w, rt)
	case endpointReferrers:
		return h.referrers(ctx, w, rt)
	case endpointDigests:
		return h.digests(ctx, w, rt)
	case endpointNode, endpointAPI:
		return h.api(ctx, w, rt)
	default:
		return errNoEndpoint
	}
}

// authorization returns the client's credentials, unless they are meant for this node.
func (h *handler) authorization(r *http.Request) string {
	header := r.Header.Get("Authorization")
	if h.Pushers != nil && header != "" {
		if _, ours, _ := h.Pushers.who(r); ours {
			return ""
		}
	}
	return header
}

// logRequest writes the one line of a request. Status is what became of it, see fail; the query is left out: it may be signed.
func (h *handler) logRequest(r *http.Request, rt route, status int, w *response, dur time.Duration, err error) {
	ctx, level := context.WithoutCancel(r.Context()), slog.LevelInfo
	api := rt.endpoint == endpointNode || rt.endpoint == endpointAPI
	if errors.Is(err, errBusy) || (isPart(r, rt) || api) && status < http.StatusInternalServerError {
		level = slog.LevelDebug // there may be thousands for one pull, or one a second of whoever watches
	}
	if !h.Log.Enabled(ctx, level) {
		return
	}
	attrs := [...]slog.Attr{
		slog.String("door", h.Door),
		slog.String("method", clip(r.Method)),
		slog.String("path", clip(r.URL.Path)),
		slog.String("registry", clip(rt.ref.Registry)),
		slog.Int("status", status),
		slog.Int64("bytes", w.bytes),
		slog.Duration("dur", dur),
		slog.String("source", w.source),
		slog.String("remote", r.RemoteAddr),
		slog.Any("err", err),
	}
	n := len(attrs)
	if err == nil {
		n--
	}
	h.Log.LogAttrs(ctx, level, "served", attrs[:n]...)
}
