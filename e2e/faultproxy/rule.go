package faultproxy

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// A Kind says what a request of the distribution API asks for.
type Kind string

// The kinds of requests, by their path.
const (
	Manifest  Kind = "manifest"
	Blob      Kind = "blob"
	Tags      Kind = "tags"
	Referrers Kind = "referrers"
	Other     Kind = "other"
)

// KindOf returns the kind of a request with this path.
func KindOf(path string) Kind {
	switch {
	case !strings.HasPrefix(path, "/v2/"):
		return Other
	case strings.Contains(path, "/blobs/"):
		return Blob
	case strings.Contains(path, "/manifests/"):
		return Manifest
	case strings.Contains(path, "/referrers/"):
		return Referrers
	case strings.HasSuffix(path, "/tags/list"):
		return Tags
	}
	return Other
}

// A Request is what the proxy remembers of one.
type Request struct {
	Method string
	Path   string
	Query  url.Values
	Header http.Header
	Kind   Kind
}

// A Rule applies a fault to some requests. Where several rules match a request, all their faults apply.
type Rule struct {
	Method string                 // empty: any
	Path   func(path string) bool // nil: any; see [Of]
	Skip   int                    // not the first so many that match
	Times  int                    // only so many that match; 0: all
	Fault  Fault
}

func (r *Rule) matches(req *http.Request) bool {
	return (r.Method == "" || r.Method == req.Method) && (r.Path == nil || r.Path(req.URL.Path))
}

// Of returns a predicate that matches the paths of one kind.
func Of(kind Kind) func(path string) bool {
	return func(path string) bool { return KindOf(path) == kind }
}

// A Fault is one way to misbehave: the result of [Hang], [CutAfter], [FlipUpload] and the like.
type Fault func(*faults)

// faults is all that is to be done to one request.
type faults struct {
	latency       time.Duration
	hang          bool
	drop          bool
	status        int
	header        http.Header
	body          []byte // of an answer with status
	uselessTokens bool
	ignoreRange   bool
	refuseRange   bool
	set           http.Header // of the answer, over what it has
	noDigest      bool
	lengthDelta   int64
	noLength      bool
	flips         []int64 // offsets in the whole content
	cut           int64   // after so many bytes of the body; -1: not
	hangAt        int64   // after so many bytes of the body; -1: not
	dripBytes     int
	dripEvery     time.Duration
	uploadFlips   []int64
	uploadCut     *int64
	uploadRate    int64
}

// Hang never answers: no headers, until the client leaves or the proxy closes.
func Hang() Fault { return func(f *faults) { f.hang = true } }

// HangAfter sends headers and n bytes of the body, then nothing.
func HangAfter(n int64) Fault { return func(f *faults) { f.hangAt = n } }

// Drop closes the connection without an answer.
func Drop() Fault { return func(f *faults) { f.drop = true } }

// CutAfter closes the connection (HTTP/2: resets the stream) after n bytes of the body.
func CutAfter(n int64) Fault { return func(f *faults) { f.cut = n } }

// Flip inverts the bits of the byte at an offset of the whole content, also where a range is answered.
func Flip(offset int64) Fault { return func(f *faults) { f.flips = append(f.flips, offset) } }

// Length lies: Content-Length is delta more, or less, than the body has. Where it is less, the rest of the body is not
// sent; where it is more, the connection ends early.
func Length(delta int64) Fault { return func(f *faults) { f.lengthDelta = delta } }

// NoLength leaves Content-Length out, so that the body comes in chunks.
func NoLength() Fault { return func(f *faults) { f.noLength = true } }

// Status answers with a status and an empty body. Header is a list of names and values.
func Status(code int, header ...string) Fault {
	h := http.Header{}
	for i := 0; i+1 < len(header); i += 2 {
		h.Add(header[i], header[i+1])
	}
	return func(f *faults) { f.status, f.header = code, h }
}

// Answer is Status with a body.
func Answer(code int, contentType, body string) Fault {
	return func(f *faults) {
		f.status, f.header, f.body = code, http.Header{"Content-Type": {contentType}}, []byte(body)
	}
}

// TooManyRequests answers 429 with a Retry-After in seconds.
func TooManyRequests(seconds int) Fault {
	return Status(http.StatusTooManyRequests, "Retry-After", strconv.Itoa(seconds))
}

// Unauthorized answers 401 whatever credentials come, with the challenge given, for example `Basic realm="x"`.
func Unauthorized(challenge string) Fault {
	return Status(http.StatusUnauthorized, "Www-Authenticate", challenge)
}

// UselessTokens answers 401 with a challenge that leads to a token server, this proxy itself, the tokens of which are
// never good enough.
func UselessTokens() Fault { return func(f *faults) { f.uselessTokens = true } }

// IgnoreRange answers a request for a range with 200 and the whole.
func IgnoreRange() Fault { return func(f *faults) { f.ignoreRange = true } }

// RefuseRange answers a request for a range with 416, whatever the range, and says the size in Content-Range only where
// size is not negative.
func RefuseRange(size int64) Fault {
	h := http.Header{}
	if size >= 0 {
		h.Set("Content-Range", fmt.Sprintf("bytes */%d", size))
	}
	return func(f *faults) { f.refuseRange, f.header = true, h }
}

// Header sets a header of the answer.
func Header(name, value string) Fault {
	return func(f *faults) {
		if f.set == nil {
			f.set = http.Header{}
		}
		f.set.Set(name, value)
	}
}

// NoDigest drops the Docker-Content-Digest header.
func NoDigest() Fault { return func(f *faults) { f.noDigest = true } }

// Drip sends n bytes at a time with a pause before each.
func Drip(n int, every time.Duration) Fault {
	return func(f *faults) { f.dripBytes, f.dripEvery = max(n, 1), every }
}

// Latency waits before the first byte of the answer.
func Latency(d time.Duration) Fault { return func(f *faults) { f.latency += d } }
