package registry

import (
	"math"
	"net/http"
	"strings"

	"pier/internal/oci"
)

// byteRange is one range of bytes as a client asks for it.
type byteRange struct {
	first, last int64 // inclusive; last is [math.MaxInt64] for "to the end"
	suffix      bool  // the last bytes are asked for, as many as first says
}

// parseRange reads a Range header (RFC 9110, section 14.2). ok is false for what a server may ignore and Pier does: no
// header, other units, several ranges, and what is malformed.
func parseRange(header string) (_ byteRange, ok bool) {
	unit, spec, _ := strings.Cut(header, "=")
	if !strings.EqualFold(unit, "bytes") {
		return byteRange{}, false
	}
	a, b, ok := strings.Cut(strings.Trim(spec, " \t"), "-")
	if !ok {
		return byteRange{}, false
	}
	if a == "" {
		n, ok := parseDigits(b)
		return byteRange{first: n, last: math.MaxInt64, suffix: true}, ok
	}
	r := byteRange{last: math.MaxInt64}
	if r.first, ok = parseDigits(a); ok && b != "" {
		r.last, ok = parseDigits(b)
	}
	if !ok || r.last < r.first {
		return byteRange{}, false
	}
	return r, true
}

// parseDigits reads a decimal number. One too large for an int64 is as good as the largest: past every end.
func parseDigits(s string) (n int64, ok bool) {
	for i := range len(s) {
		d := int64(s[i]) - '0'
		if d < 0 || d > 9 {
			return 0, false
		}
		if n > (math.MaxInt64-d)/10 {
			n = math.MaxInt64
			continue
		}
		n = n*10 + d
	}
	return n, s != ""
}

// length is how many bytes r asks for, -1 for "to the end". r is no suffix.
func (r byteRange) length() int64 {
	if r.last == math.MaxInt64 {
		return -1
	}
	return r.last - r.first + 1
}

// of returns r for content of size bytes, cut at its end. ok is false if nothing of it is there.
func (r byteRange) of(size int64) (_ byteRange, ok bool) {
	if r.suffix {
		ok := r.first > 0 && size > 0
		return byteRange{first: max(0, size-r.first), last: size - 1}, ok
	}
	return byteRange{first: r.first, last: min(r.last, size-1)}, r.first < size
}

// isPart reports whether a request asks for some bytes of a blob, and not for all of them up to its end.
func isPart(r *http.Request, rt route) bool {
	want, ok := parseRange(r.Header.Get("Range"))
	return ok && rt.endpoint == endpointBlob && (want.first > 0 || want.last != math.MaxInt64)
}

// etag is the entity tag of content: its digest, which says it all.
func etag(d oci.Digest) string { return `"` + string(d) + `"` }

// notModified reports whether the client has the content already, by its If-None-Match.
func notModified(header http.Header, d oci.Digest) bool {
	for _, list := range header["If-None-Match"] {
		for list != "" {
			var element string
			element, list = cutElement(list)
			if element == "*" || strings.TrimPrefix(element, "W/") == etag(d) {
				return true
			}
		}
	}
	return false
}

// rangeApplies reports whether If-Range lets the Range header count. A date never does: content has none here.
func rangeApplies(header http.Header, d oci.Digest) bool {
	condition := header.Get("If-Range")
	return condition == "" || condition == etag(d)
}
