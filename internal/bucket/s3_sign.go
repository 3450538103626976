package bucket

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// sign signs a request by Signature Version 4, with all its headers, of which X-Amz-Content-Sha256 must be set. Path and query must be escaped as
// [escape] does it. https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
func sign(req *http.Request, v keys, region string, now time.Time) {
	const layout = "20060102T150405Z"
	date := now.UTC().Format(layout)
	req.Header.Set("X-Amz-Date", date)
	if v.SessionToken != "" {
		req.Header.Set("X-Amz-Security-Token", v.SessionToken)
	}
	lines := []string{"host:" + req.URL.Host}
	names := []string{"host"}
	for name, values := range req.Header {
		name = strings.ToLower(name)
		names = append(names, name)
		lines = append(lines, name+":"+strings.Join(strings.Fields(strings.Join(values, ",")), " "))
	}
	slices.Sort(names)
	slices.SortFunc(lines, func(a, b string) int { // by name: "-" comes before ":"
		x, _, _ := strings.Cut(a, ":")
		y, _, _ := strings.Cut(b, ":")
		return strings.Compare(x, y)
	})
	signed := strings.Join(names, ";")
	path := req.URL.EscapedPath()
	if path == "" {
		path = "/"
	}
	canonical := strings.Join([]string{
		req.Method, path, canonicalQuery(req.URL.RawQuery), strings.Join(lines, "\n"), "", signed, req.Header.Get("X-Amz-Content-Sha256"),
	}, "\n")
	scope := date[:8] + "/" + region + "/s3/aws4_request"
	sum := sha256.Sum256([]byte(canonical))
	text := "AWS4-HMAC-SHA256\n" + date + "\n" + scope + "\n" + hex.EncodeToString(sum[:])
	key := []byte("AWS4" + v.SecretAccessKey)
	for _, part := range append(strings.Split(scope, "/"), text) {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(part)) // never fails
		key = mac.Sum(nil)
	}
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential="+v.AccessKeyID+"/"+scope+", SignedHeaders="+signed+", Signature="+hex.EncodeToString(key))
}

// canonicalQuery returns a query with its parameters sorted, each with a value, all escaped anew.
func canonicalQuery(raw string) string {
	var list []string
	for part := range strings.SplitSeq(raw, "&") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		list = append(list, requote(name)+"="+requote(value))
	}
	slices.Sort(list)
	return strings.Join(list, "&")
}

func requote(s string) string {
	plain, err := url.QueryUnescape(s)
	if err != nil {
		return s
	}
	return strings.ReplaceAll(escape(plain), "/", "%2F")
}
