package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"pier/internal/oci"
)

// What can be wrong with a request besides the classes of package oci.
var (
	errMethod     = errors.New("method not allowed")
	errNoEndpoint = errors.New("no such endpoint")
	errAccept     = errors.New("malformed Accept header")
	errPage       = errors.New("malformed page size")
	errBusy       = errors.New("every slot is taken")
)

// statusClientGone is what log and metrics say of requests whose client left, in the way of other servers. It is never sent.
const statusClientGone = 499

// An answer is how an error looks to a client.
type answer struct {
	status  int
	code    string // of the distribution specification where it has one
	message string // constant: what an error says beyond its class may name what is only for the log
}

// fault answers for errors of no class: nothing was learned about the content.
var fault = answer{http.StatusBadGateway, "UNAVAILABLE", "the content could not be had at this time"}

// classes maps errors to answers. The first that fits counts.
var classes = []struct {
	class error
	answer
}{
	{errPusher, answer{http.StatusUnauthorized, "UNAUTHORIZED", "whoever pushes needs credentials of this node"}},
	{errUpload, answer{http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "no such upload"}},
	{errTaken, answer{http.StatusServiceUnavailable, "UNAVAILABLE", "another request is at that upload: wait for it, or until it is given up, a minute at most"}},
	{errTag, answer{http.StatusBadRequest, "TAG_INVALID", "invalid tag"}},
	{errPiece, answer{http.StatusBadRequest, "BLOB_UPLOAD_INVALID", "malformed Content-Range"}},
	{errContent, answer{http.StatusBadRequest, "DIGEST_INVALID", "the content is not what its digest says"}},
	{errManifest, answer{http.StatusBadRequest, "MANIFEST_INVALID", "this is no manifest of the type that it is sent as"}},
	{errParts, answer{http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN", "a blob or manifest that it names was not pushed, and cannot be had here"}},
	{errLarge, answer{http.StatusRequestEntityTooLarge, "MANIFEST_INVALID", "the manifest is larger than 4 MiB"}},
	{errFull, answer{http.StatusInsufficientStorage, "UNAVAILABLE", "this node has no room for it: its disk is full, or what was pushed takes all that its cache may (pier prune)"}},
	{errKept, answer{http.StatusInternalServerError, "UNAVAILABLE", "the content could not be kept; this node's log says why"}},
	{errMethod, answer{http.StatusMethodNotAllowed, "UNSUPPORTED", "that method is not served here"}},
	{errNoEndpoint, answer{http.StatusNotFound, "UNSUPPORTED", "no such endpoint"}},
	{errAccept, answer{http.StatusBadRequest, "UNSUPPORTED", "malformed Accept header"}},
	{errPage, answer{http.StatusBadRequest, "PAGINATION_NUMBER_INVALID", "n is not a number of tags"}},
	{errBusy, answer{http.StatusServiceUnavailable, "UNAVAILABLE", "this node serves as many requests as it may: ask another one, or again in a second"}},
	{oci.ErrNotAllowed, answer{http.StatusForbidden, "DENIED", "this node's rules do not allow to ask that registry: list it in --upstreams, or in --allow-upstream"}},
	{oci.ErrNameInvalid, answer{http.StatusBadRequest, "NAME_INVALID", "invalid repository or registry name"}},
	{oci.ErrTagInvalid, answer{http.StatusNotFound, "MANIFEST_UNKNOWN", "invalid tag, so no such manifest"}},
	{oci.ErrDigestInvalid, answer{http.StatusBadRequest, "DIGEST_INVALID", "invalid digest"}},
	{oci.ErrRange, answer{http.StatusRequestedRangeNotSatisfiable, "BLOB_UNKNOWN", "no such range in the content"}},
	{oci.ErrUnauthorized, answer{http.StatusUnauthorized, "UNAUTHORIZED", "the registry wants credentials"}},
	{oci.ErrDenied, answer{http.StatusForbidden, "DENIED", "the registry denies access"}},
	{oci.ErrRateLimited, answer{http.StatusTooManyRequests, "TOOMANYREQUESTS", "the registry limits the rate of requests"}},
	{oci.ErrNotFound, answer{status: http.StatusNotFound}}, // see unknown
	{oci.ErrUnsupported, answer{http.StatusBadRequest, "UNSUPPORTED", "not supported by what supplies this content"}},
	{oci.ErrTooLarge, answer{http.StatusBadGateway, "MANIFEST_INVALID", "the manifest is too large"}},
	{oci.ErrUnavailable, fault},
	{context.DeadlineExceeded, answer{http.StatusGatewayTimeout, "UNAVAILABLE", "the content did not come in time"}},
}

// answerTo returns the answer to err on the route it arose from. Passed says that the client's own credentials were tried.
func answerTo(err error, rt route, passed bool) answer {
	a, refused := fault, false
	for _, c := range classes {
		if errors.Is(err, c.class) {
			a, refused = c.answer, errors.Is(c.class, oci.ErrUnauthorized) || errors.Is(c.class, oci.ErrDenied)
			break
		}
	}
	// A container runtime that comes with ?ns= has its own way upstream, and perhaps credentials that this node lacks:
	// at 404 it goes there. A rule of this node is for it as for everybody.
	if a.code == "" || (refused && rt.mirror && !passed) {
		return unknown(rt.endpoint)
	}
	return a
}

// unknown returns the answer for content that is not there.
func unknown(e endpoint) answer {
	switch e {
	case endpointBlob, endpointDigests:
		return answer{http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown"}
	case endpointTags, endpointReferrers:
		return answer{http.StatusNotFound, "NAME_UNKNOWN", "repository unknown"}
	case endpointNode, endpointAPI:
		return answer{http.StatusNotFound, "NAME_UNKNOWN", "nothing is known of it"}
	default:
		return answer{http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown"}
	}
}

// fail answers a request that ended with err, if that can still be done: nothing can be said behind the first byte of
// content, and nothing to a client that left. Then the connection is to be aborted. Status is for log and metrics.
func (h *handler) fail(w *response, r *http.Request, rt route, err error) (status int, abort bool) {
	if w.err != nil || errors.Is(r.Context().Err(), context.Canceled) {
		return statusClientGone, true
	}
	a := answerTo(err, rt, h.PassAuthorization && r.Header.Get("Authorization") != "")
	if w.started {
		return a.status, true
	}
	if a.status == http.StatusMethodNotAllowed && h.Push == nil && pushing(r) {
		a.message = "this node takes no pushes: see --accept-push"
	}
	if h.Missing != "" && errors.Is(err, oci.ErrNotFound) {
		a.message += ": " + h.Missing
	}
	w.source = ""
	header := w.rw.Header()
	for _, name := range []string{"Accept-Ranges", "Cache-Control", "Content-Range", "Docker-Content-Digest", "Etag", "Link", missingHeader, "Vary", "Warning"} {
		header.Del(name) // they describe content
	}
	var outside *rangeError
	switch {
	case a.status == http.StatusMethodNotAllowed:
		header.Set("Allow", h.allowed())
	case a.status == http.StatusServiceUnavailable:
		header.Set("Retry-After", "1")
	case errors.Is(err, errPusher):
		header.Set("Www-Authenticate", h.challenge(r, rt))
	case a.status == http.StatusUnauthorized:
		header.Set("Www-Authenticate", fmt.Sprintf("Basic realm=%q", rt.ref.Registry))
	case errors.As(err, &outside):
		header.Set("Content-Range", fmt.Sprintf("bytes */%d", outside.size))
	}
	_ = w.sendBytes(a.status, "application/json", a.body(rt)) // if it fails, finish says so
	if w.finish() != nil {
		return statusClientGone, true
	}
	return a.status, false
}

// pushing reports whether a request is one of a push.
func pushing(r *http.Request) bool {
	return r.Method == http.MethodPost || r.Method == http.MethodPut || r.Method == http.MethodPatch
}

// allowed are the methods that are served, of something at least.
func (h *handler) allowed() string {
	if h.Push == nil {
		return "GET, HEAD"
	}
	return "GET, HEAD, POST, PATCH, PUT, DELETE"
}

// body returns the error document of the distribution specification. Its detail is what the client asked for.
func (a answer) body(rt route) []byte {
	type detail struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Detail  string `json:"detail,omitempty"`
	}
	d := detail{Code: a.code, Message: a.message}
	switch {
	case rt.ref.Registry != "":
		d.Detail = clip(rt.ref.String())
	case rt.ref.Digest != "":
		d.Detail = clip(rt.ref.Digest.String())
	}
	b, err := json.Marshal(struct {
		Errors []detail `json:"errors"`
	}{[]detail{d}})
	if err != nil {
		panic(err) // strings always marshal
	}
	return b
}

// clip bounds what a client sent where it is repeated.
func clip(s string) string {
	if len(s) > maxPath {
		return s[:maxPath]
	}
	return s
}
