package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"pier/internal/oci"
)

// A fault is what went wrong with one request. Its text holds no query strings, for redirects to CDNs carry signatures
// there; the errors it wraps may, and are for errors.Is alone.
type fault struct {
	text   string
	status int   // the registry's, or 0
	size   int64 // of the content, where a refusal of a range says it; else -1
	moved  bool  // the status is not the registry's, but that of a store it redirected to
	wraps  []error
}

func (f *fault) Error() string   { return f.text }
func (f *fault) Unwrap() []error { return f.wraps }

// statusOf returns the status of the answer that err stands for, or 0.
func statusOf(err error) int {
	if f, ok := errors.AsType[*fault](err); ok {
		return f.status
	}
	return 0
}

// fault returns an error of a class: who was asked for what, what happened, and what that means.
func (t target) fault(what, happened string, class error, causes ...error) *fault {
	text := fmt.Sprintf("upstream %s: %s: %s", t.name, what, happened)
	if !strings.HasSuffix(text, class.Error()) {
		text += ": " + class.Error()
	}
	return &fault{text: text, size: -1, wraps: append([]error{class}, causes...)}
}

// refused returns the error for an answer that is no success, and is done with it.
func (t target) refused(what string, resp *http.Response) error {
	// A short body read to its end leaves the connection usable.
	_, _ = io.CopyN(io.Discard, resp.Body, 16<<10)
	_ = resp.Body.Close()
	class, happened := t.class(resp.StatusCode), fmt.Sprintf("status %d", resp.StatusCode)
	moved := t.moved(resp)
	if moved { // an address that has run out, or is meant for another method, says nothing of the content
		class, happened = oci.ErrUnavailable, happened+" of "+resp.Request.URL.Host
	}
	f := t.fault(what, happened, class)
	f.status, f.moved = resp.StatusCode, moved
	if size, ok := strings.CutPrefix(resp.Header.Get("Content-Range"), "bytes */"); ok && f.status == http.StatusRequestedRangeNotSatisfiable {
		if n, err := strconv.ParseUint(size, 10, 63); err == nil {
			f.size = int64(n)
		}
	}
	return f
}

// moved reports whether an answer is that of a store that the registry redirected to, and not of another registry that
// answers in its place.
func (t target) moved(resp *http.Response) bool {
	u := resp.Request.URL
	return u.Host != t.host && !strings.HasPrefix(u.Path, "/v2/")
}

// class returns what a status means. [oci.ErrUnavailable] says that nothing was learned, and lets others answer in the
// registry's place: no request that a client can think of may lead there while the registry is well. So what is
// refused for the request's sake is an answer, and one about the credentials if the client brought its own.
func (t target) class(status int) error {
	switch status {
	case http.StatusNotFound, http.StatusGone:
		return oci.ErrNotFound
	case http.StatusUnauthorized:
		return oci.ErrUnauthorized
	case http.StatusForbidden, http.StatusUnavailableForLegalReasons:
		return oci.ErrDenied
	case http.StatusTooManyRequests:
		return oci.ErrRateLimited
	case http.StatusRequestTimeout:
		return oci.ErrUnavailable
	case http.StatusRequestedRangeNotSatisfiable:
		return oci.ErrUnavailable // clients' ranges are not passed on; what it says about ours, open finds out
	}
	switch {
	case status < 400 || status >= 500:
		return oci.ErrUnavailable
	case t.account.key != "":
		return oci.ErrUnauthorized
	}
	return oci.ErrUnsupported
}

// broken returns the error for a request or a body that got no answer, or broke off. Where the caller left, it is the
// context's error; where the caller's time was up, it says so and is [oci.ErrUnavailable] too.
func (t target) broken(w *watch, what string, err error) error {
	switch {
	case errors.Is(w.parent.Err(), context.Canceled):
		return fmt.Errorf("upstream %s: %s: %w", t.name, what, context.Canceled)
	case w.parent.Err() != nil:
		return t.fault(what, "out of time", oci.ErrUnavailable, w.parent.Err())
	case errors.Is(context.Cause(w.ctx), errStalled):
		return t.fault(what, fmt.Sprintf("no progress for %v", w.timeout), oci.ErrUnavailable, errStalled)
	case errors.Is(err, oci.ErrNotAllowed):
		return t.fault(what, plain(err), oci.ErrNotAllowed)
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		return t.fault(what, "no credentials", oci.ErrUnauthorized)
	}
	if code := tokenStatus(err); code != 0 {
		return t.fault(what, fmt.Sprintf("token server: status %d", code), t.tokenClass(code))
	}
	if t.account.key != "" && errors.Is(err, errNoToken) {
		return t.fault(what, "token server: "+plain(err), oci.ErrUnauthorized)
	}
	return t.fault(what, plain(err), oci.ErrUnavailable, err)
}

// tokenStatus returns the status with which a token server refused, or 0.
func tokenStatus(err error) int {
	if e, ok := errors.AsType[*errcode.ErrorResponse](err); ok {
		return e.StatusCode
	}
	return 0
}

// tokenClass returns what the status of a token server means for the content asked for. That a realm does not exist
// says nothing about the content; a request that it does not like is one for credentials that it does not like, "400
// invalid_grant" of RFC 6749 among them.
func (t target) tokenClass(status int) error {
	c := t.class(status)
	switch {
	case errors.Is(c, oci.ErrNotFound) && t.account.key == "":
		return oci.ErrUnavailable
	case errors.Is(c, oci.ErrNotFound), errors.Is(c, oci.ErrUnsupported):
		return oci.ErrUnauthorized
	}
	return c
}

// plain returns the text of err without the URLs that net/http and the token client put around causes, and at most 200
// bytes of it.
func plain(err error) string {
	for {
		u, ok := errors.AsType[*url.Error](err)
		if !ok {
			break
		}
		err = u.Err
	}
	// What is left may still name a URL; whatever follows its path stays out of logs.
	text, _, _ := strings.Cut(err.Error(), "?")
	if before, after, ok := strings.Cut(text, "://"); ok {
		if i := strings.LastIndexByte(after, '@'); i >= 0 {
			text = before + "://" + after[i+1:]
		}
	}
	return text[:min(len(text), 200)]
}

// reasonOf names the class of err for metrics.
func reasonOf(err error) string {
	for _, c := range []struct {
		class  error
		reason string
	}{
		{context.Canceled, "canceled"}, {oci.ErrNotFound, "not_found"}, {oci.ErrUnauthorized, "unauthorized"},
		{oci.ErrDenied, "denied"}, {oci.ErrNotAllowed, "not_allowed"}, {oci.ErrRateLimited, "rate_limited"}, {oci.ErrUnsupported, "unsupported"}, {errStalled, "stalled"},
		{context.DeadlineExceeded, "timeout"}, {io.ErrUnexpectedEOF, "cut"},
	} {
		if errors.Is(err, c.class) {
			return c.reason
		}
	}
	return "unavailable"
}
