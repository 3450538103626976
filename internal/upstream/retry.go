package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"

	"pier/internal/oci"
)

const (
	maxRetries    = 3 // beside the first attempt
	retryBase     = 200 * time.Millisecond
	retryCap      = 5 * time.Second
	maxObeyed     = 10 * time.Second // the longest Retry-After that a request waits for
	maxRemembered = 15 * time.Minute // the longest that a registry is left alone for a Retry-After
)

// A query is one request of the distribution API, without its registry.
type query struct {
	method string
	path   string // below /v2/<repository>/
	values string // query string
	accept string
	ranged string // Range header
	what   string // for errors: what is asked for
}

// kind returns what registries count together: Docker Hub, for one, limits manifests and not blobs.
func (q query) kind() string {
	kind, _, _ := strings.Cut(q.path, "/")
	return kind
}

// patience returns how long a registry may take to answer. A mirror gets less, and of a caller's time at most half: there
// is somebody else to ask.
func (t target) patience(ctx context.Context) time.Duration {
	if t.ns == "" {
		return t.cfg.Timeout
	}
	d := min(t.cfg.Timeout, mirrorTimeout)
	if deadline, ok := ctx.Deadline(); ok {
		d = min(d, time.Until(deadline)/2)
	}
	return d
}

// call sends q, again where that helps, until a registry answers with success; every other answer is an error. All of it
// ends when t's patience does, and w watches over the response's body from then on. The caller stops w and closes the
// body.
func (t target) call(ctx context.Context, q query) (*http.Response, *watch, error) {
	w := newWatch(ctx, t.patience(ctx))
	resp, err := t.send(w, q)
	if err != nil {
		w.stop()
		t.metrics.failed(t.name, reasonOf(err))
		return nil, nil, err
	}
	w.pause()
	w.timeout = bodyTimeout(t.cfg.Timeout)
	return resp, w, nil
}

func (t target) send(w *watch, q query) (*http.Response, error) {
	key := t.name + " " + q.kind() + " " + t.account.key
	for attempt := 0; ; attempt++ {
		if until := t.limited.until(key); time.Now().Before(until) {
			t.metrics.rateLimited.Inc()
			return nil, t.fault(q.what, fmt.Sprintf("left alone for %v as it asked", time.Until(until).Round(time.Second)), oci.ErrRateLimited)
		}
		resp, err := t.once(w.ctx, q)
		var again bool
		wait := rand.N(backoff(t.cfg.backoff, attempt))
		switch {
		case err != nil:
			again = temporary(err)
			err = t.broken(w, q.what, err)
		case resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent:
			t.met.set(t.name, time.Now().Add(metFor))
			return resp, nil
		default:
			err = t.refused(q.what, resp)
			moved := t.moved(resp)
			again = temporaryStatus(resp.StatusCode) || moved && resp.StatusCode != http.StatusRequestedRangeNotSatisfiable
			if after, ok := retryAfter(resp.Header.Get("Retry-After"), time.Now()); ok && again && (!moved || after <= maxObeyed) {
				if after > maxObeyed {
					t.limited.set(key, time.Now().Add(min(after, maxRemembered)))
					return nil, t.fault(q.what, fmt.Sprintf("status %d, to come back in %v", resp.StatusCode, after), oci.ErrRateLimited)
				}
				wait = after
			}
		}
		if !again || attempt >= t.retries || !w.sleep(wait) {
			if w.parent.Err() != nil {
				err = t.broken(w, q.what, err)
			}
			return nil, err
		}
	}
}

// once sends q a single time, credentials and redirects included.
func (t target) once(ctx context.Context, q query) (*http.Response, error) {
	u := t.scheme + "://" + t.host + "/v2/" + t.repository + "/" + q.path
	if values := join(q.values, t.ns); values != "" {
		u += "?" + values
	}
	ctx = auth.AppendScopesForHost(ctx, t.host, auth.ScopeRepository(t.repository, auth.ActionPull))
	req, err := http.NewRequestWithContext(ctx, q.method, u, nil)
	if err != nil {
		return nil, err
	}
	for k, v := range map[string]string{
		"Accept": q.accept, "Accept-Encoding": "identity", "Range": q.ranged, "Authorization": t.account.header, "Via": t.via(ctx),
	} {
		if v != "" {
			req.Header.Set(k, v)
		}
	}
	client := auth.Client{
		Client: t.client, Credential: t.account.credential, Cache: t.account.tokens, ClientID: t.cfg.UserAgent,
		Header: http.Header{"User-Agent": {t.cfg.UserAgent}}, // token requests have it too
	}
	resp, err := client.Do(req)
	if err != nil {
		t.metrics.answered(t.name, "error")
		return nil, err
	}
	t.metrics.answered(t.name, statusLabel(resp.StatusCode))
	if resp.StatusCode == http.StatusTooManyRequests {
		t.metrics.rateLimited.Inc()
	}
	t.metrics.remaining(t.name, resp.Header.Get("RateLimit-Remaining"))
	return resp, nil
}

// via returns the Via header for a mirror, which may be a node like this one: so that a request does not go round.
func (t target) via(ctx context.Context) string {
	if t.ns == "" || t.cfg.Name == "" {
		return ""
	}
	own := via(t.cfg.Name)
	if before := oci.Via(ctx); before != "" {
		return before + ", " + own
	}
	return own
}

func join(values, ns string) string {
	if ns == "" {
		return values
	}
	if values != "" {
		values += "&"
	}
	return values + "ns=" + ns
}

// backoff returns the longest wait before the retry after an attempt. Waits are drawn evenly from zero to it, so that
// many who failed together do not come back together.
func backoff(base time.Duration, attempt int) time.Duration {
	return min(base<<attempt, retryCap)
}

// temporaryStatus reports whether the same request may succeed a moment later.
func temporaryStatus(code int) bool {
	return code == http.StatusTooManyRequests || code == http.StatusRequestTimeout ||
		code >= 500 && code != http.StatusNotImplemented
}

// temporary reports whether a request that got no answer may get one a moment later. What the other side is, what we
// are allowed and who we are does not change in a moment.
func temporary(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, oci.ErrNotAllowed) || errors.Is(err, errRedirects) || errors.Is(err, errRealm) ||
		errors.Is(err, auth.ErrBasicCredentialNotFound) || errors.Is(err, http.ErrSchemeMismatch) {
		return false
	}
	if code := tokenStatus(err); code != 0 {
		return temporaryStatus(code)
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		return false
	}
	_, unverified := errors.AsType[*tls.CertificateVerificationError](err)
	_, alert := errors.AsType[tls.AlertError](err)
	_, noTLS := errors.AsType[tls.RecordHeaderError](err)
	return !unverified && !alert && !noTLS
}

// retryAfter parses a Retry-After header: seconds, or a date (RFC 9110, section 10.2.3).
func retryAfter(s string, now time.Time) (time.Duration, bool) {
	s = strings.TrimSpace(s)
	if n, err := strconv.ParseUint(s, 10, 63); err == nil {
		return time.Duration(min(n, uint64(24*time.Hour/time.Second))) * time.Second, true
	}
	if at, err := http.ParseTime(s); err == nil {
		return min(max(at.Sub(now), 0), 24*time.Hour), true
	}
	return 0, false
}

// deadlines remembers for names the moment up to which something holds. It is bounded.
type deadlines struct {
	max int

	mu     sync.Mutex
	byName map[string]time.Time // guarded by mu
}

func newDeadlines(limit int) *deadlines {
	return &deadlines{max: limit, byName: make(map[string]time.Time)}
}

// set remembers a deadline. Where there are too many, those over are forgotten, and if there are none, any one.
func (d *deadlines) set(name string, until time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.byName) >= d.max {
		now := time.Now()
		for k, v := range d.byName {
			if v.Before(now) {
				delete(d.byName, k)
			}
		}
		for k := range d.byName {
			if len(d.byName) < d.max {
				break
			}
			delete(d.byName, k)
		}
	}
	d.byName[name] = until
}

// until returns the deadline of name, or the zero time.
func (d *deadlines) until(name string) time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.byName[name]
}

// has reports whether the deadline of name is still to come.
func (d *deadlines) has(name string) bool { return time.Now().Before(d.until(name)) }
