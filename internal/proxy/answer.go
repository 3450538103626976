package proxy

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"pier/internal/oci"
)

const (
	// pingTime is how long a registry may take to answer a ping, and headTime a HEAD, before this node answers in its place.
	// A ping that comes to nothing costs every pull of a site that is cut off so much. A HEAD answered here wrongly costs a
	// push.
	pingTime = 3 * time.Second
	headTime = 10 * time.Second

	awayTime = 10 * time.Second // a registry that could not be asked is not asked again for so long
	warnTime = 24 * time.Hour   // what goes wrong for a host again and again is said so often
)

// A question is what a request to a registry asks for.
type question uint8

const (
	other    question = iota // tokens, uploads, and what this node does not know: the registry's alone
	ping                     // /v2/: how does one authenticate?
	presence                 // HEAD by digest
	content                  // all that this node answers
)

// classify returns what a request to a registry asks for.
//
// A HEAD by digest asks whether the registry has something: before a push, whether it must be sent. What this node has is
// no answer to that as long as the registry can give one.
func classify(r *http.Request) question {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return other
	}
	if r.URL.Path == "/v2/" || r.URL.Path == "/v2" {
		return ping
	}
	rest, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	if !ok || r.URL.RawPath != "" { // no name, tag or digest is written with escapes
		return other
	}
	rest, last := cutLast(rest)
	name, verb := cutLast(rest)
	ref := oci.Reference{Registry: "x", Repository: name}
	switch verb {
	case "manifests":
		if ref.Digest = oci.Digest(last); !strings.Contains(last, ":") {
			ref.Tag, ref.Digest = last, ""
		}
	case "blobs", "referrers":
		ref.Kind, ref.Digest = oci.Blob, oci.Digest(last)
	case "tags":
		if ref.Tag = last; last != "list" {
			return other
		}
	default:
		return other
	}
	asks := r.URL.RawQuery != "" && (verb == "manifests" || verb == "blobs") // the namespace of a mirror, or a registry's own
	switch {
	case ref.Validate() != nil || asks:
		return other
	case r.Method == http.MethodHead && ref.Digest != "":
		return presence
	}
	return content
}

// cutLast cuts s around its last slash. Without one, all of s is behind it.
func cutLast(s string) (before, after string) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 {
		return "", s
	}
	return s[:i], s[i+1:]
}

// answer answers a request that entered.
func (p *Proxy) answer(w http.ResponseWriter, r *http.Request, o origin, registry bool) {
	e := p.begin(w, r, o)
	defer e.end()
	asked := other
	if registry {
		asked = classify(r)
	}
	if registry && p.cfg.AirGapped {
		e.alone(asked)
		return
	}
	switch {
	case asked == ping && r.Header.Get("Authorization") != "": // whether credentials are good nobody else can tell
		e.pass(e.ctx)
	case asked == ping:
		e.ask(asked, pingTime, e.pong)
	case asked == presence:
		e.ask(asked, headTime, e.registry)
	case asked == content:
		e.registry()
	default:
		e.pass(e.ctx)
	}
}

// alone answers a request to a registry that is not asked.
func (e *exchange) alone(asked question) {
	switch asked {
	case ping:
		e.pong()
	case presence, content:
		e.registry()
	default:
		e.p.refuse(e.w, e.r, errAirGapped)
	}
}

// registry has the registry handler answer, or the registry itself where that finds that the client has to authenticate.
func (e *exchange) registry() {
	e.count = e.p.meter.registry
	r := e.r.WithContext(e.ctx)
	r.Host = e.origin.name()
	r.URL = &url.URL{Path: e.r.URL.Path, RawQuery: e.r.URL.RawQuery}
	r.RequestURI = r.URL.RequestURI()
	e.w.hold = true
	e.p.cfg.Registry.ServeHTTP(e.w, r)
	if e.w.release() && !e.p.cfg.AirGapped { // there nobody asks for credentials
		e.pass(e.ctx)
	}
}

// ask passes a request on. If the registry cannot be asked, because it did not answer within limit, or was found so a
// moment ago, or says that it cannot answer now, instead answers, and if that is so for everybody, also what comes next.
func (e *exchange) ask(asked question, limit time.Duration, instead func()) {
	if e.p.away.has(e.origin.name()) {
		instead()
		return
	}
	ctx, cancel := context.WithCancelCause(e.ctx)
	defer cancel(nil)
	e.patience = time.AfterFunc(limit, func() { cancel(errSlow) })
	e.pass(ctx)
	if e.patience.Stop(); e.failed == nil {
		e.p.away.forget(e.origin.name())
		return
	}
	said, name := e.p.away, e.origin.name()
	if !outOfReach(asked, e.failed) {
		said, name = e.p.warned, "busy "+name
	}
	if said.add(name) {
		e.p.log.WarnContext(e.ctx, "a registry cannot be asked: images of this site are served without it", "host", e.origin.name(), "err", e.failed)
	}
	e.patience, e.failed = nil, nil
	instead()
}

// outOfReach reports whether what came of a question goes for everybody who asks that registry. A status of the registry's
// does not, since it may be for this client, or this content: its rate limit, for instance. The exception is what gateways
// say of a server behind them, of a ping, which names nothing.
func outOfReach(asked question, err error) bool {
	status, ok := errors.AsType[cannotAnswer](err)
	return !ok || asked == ping && status >= http.StatusBadGateway && status <= http.StatusGatewayTimeout
}

// pong is what a registry answers a ping of a client that is welcome: what this site has is given without a token.
func (e *exchange) pong() {
	e.count = e.p.meter.registry
	h := e.w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Docker-Distribution-Api-Version", "registry/2.0")
	h.Set("Content-Length", "2")
	e.w.WriteHeader(http.StatusOK)
	if e.r.Method != http.MethodHead {
		_, _ = e.w.Write([]byte("{}")) // a client that is gone
	}
}
