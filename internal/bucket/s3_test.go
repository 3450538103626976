package bucket

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pier/internal/oci"
)

// alone has nothing of the environment say how to reach S3, and nobody asked for credentials.
func alone(t *testing.T) {
	t.Helper()
	for _, name := range []string{
		"AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION",
		"AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE",
		"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_EC2_METADATA_SERVICE_ENDPOINT",
	} {
		t.Setenv(name, "")
	}
	none := t.TempDir() + "/none"
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", none)
	t.Setenv("AWS_CONFIG_FILE", none)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
}

// served returns a bucket of a server with a handler, and what it logs.
func served(t *testing.T, handler http.HandlerFunc) (*s3, *strings.Builder) {
	t.Helper()
	alone(t)
	t.Setenv("AWS_CA_BUNDLE", "")
	t.Setenv("AWS_ACCESS_KEY_ID", "AKID")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "SECRET")
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	log := &strings.Builder{}
	b := openS3Test(t, "s3://bucket/pre?endpoint="+server.URL)
	b.client.log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	return b, log
}

func openS3Test(t *testing.T, url string) *s3 {
	t.Helper()
	b, ok := openTest(t, Config{URL: url, Retries: 3}).(*s3)
	if !ok {
		t.Fatal("this is no s3")
	}
	b.client.backoff = time.Millisecond
	return b
}

// refuse answers with an error as S3 does.
func refuse(w http.ResponseWriter, status int, code, more string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>said</Message>%s</Error>`, code, more)
}

func TestS3Options(t *testing.T) {
	alone(t)
	t.Setenv("AWS_CA_BUNDLE", "")
	for _, query := range []string{
		"endpoint=ftp://host", "endpoint=host", "endpoint=http://", "endpoint=http://a:b@host", "endpoint=http://host?x=y", "x=y",
		"region=a.b/c", "path-style=perhaps", "region=a&region=b",
	} {
		if b, err := Open(Config{URL: "s3://bucket/pre?" + strings.ReplaceAll(query, "?", "%3F")}); err == nil {
			t.Errorf("%s: opened %v", query, b)
		}
	}
	t.Setenv("AWS_CA_BUNDLE", t.TempDir())
	if _, err := Open(Config{URL: "s3://bucket"}); err == nil {
		t.Error("opened with authorities that are none")
	}
}

// TestS3Hosts sees where requests go, and that the path is escaped as the signature has it.
func TestS3Hosts(t *testing.T) {
	alone(t)
	t.Setenv("AWS_CA_BUNDLE", "")
	t.Setenv("AWS_ACCESS_KEY_ID", "AKID")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "SECRET")
	for _, test := range []struct{ url, object, bucket string }{
		{"s3://name", "https://name.s3.us-east-1.amazonaws.com/z%20z/%3F%26%25%2B%C3%BC~", "https://name.s3.us-east-1.amazonaws.com/?list-type=2"},
		{"s3://na.me?region=eu-west-1", "https://s3.eu-west-1.amazonaws.com/na.me/z%20z/%3F%26%25%2B%C3%BC~", "https://s3.eu-west-1.amazonaws.com/na.me?list-type=2"},
		{"s3://name/p?path-style=true&region=cn-north-1", "https://s3.cn-north-1.amazonaws.com.cn/name/p/z%20z/%3F%26%25%2B%C3%BC~", "https://s3.cn-north-1.amazonaws.com.cn/name?list-type=2"},
		{"s3://name?endpoint=http://127.0.0.1:1/a/", "http://127.0.0.1:1/a/name/z%20z/%3F%26%25%2B%C3%BC~", "http://127.0.0.1:1/a/name?list-type=2"},
		{"s3://name?endpoint=http://host:1&path-style=false", "http://name.host:1/z%20z/%3F%26%25%2B%C3%BC~", "http://name.host:1/?list-type=2"},
	} {
		b := openS3Test(t, test.url)
		var got []string
		b.client.http.Transport = transport(func(r *http.Request) (*http.Response, error) {
			if !strings.Contains(r.Header.Get("Authorization"), "/"+*b.region.Load()+"/s3/aws4_request, SignedHeaders=host;") {
				t.Errorf("%s: signed %s", test.url, r.Header.Get("Authorization"))
			}
			got = append(got, r.URL.String())
			return &http.Response{StatusCode: http.StatusNoContent, Body: http.NoBody}, nil
		})
		for _, op := range []operation{{key: "z z/?&%+ü~"}, {bucket: true, query: url.Values{"list-type": {"2"}}}} {
			op.method, op.ok = http.MethodGet, []int{http.StatusNoContent}
			if _, err := b.do(t.Context(), op); err != nil {
				t.Error(err)
			}
		}
		if want := []string{test.object, test.bucket}; !slices.Equal(got, want) {
			t.Errorf("%s: asked %q, want %q", test.url, got, want)
		}
		if _, err := b.Stat(t.Context(), "\xff"); err == nil || len(got) > 2 {
			t.Errorf("%s: a key that is no UTF-8: %v", test.url, err)
		}
	}
}

type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestS3Region has the service say that the bucket is elsewhere: in the body of an answer, and in a header where there is no body.
func TestS3Region(t *testing.T) {
	alone(t)
	t.Setenv("AWS_CA_BUNDLE", "")
	for _, right := range []string{"eu-central-1", "evil.example/"} {
		for _, header := range []bool{false, true} {
			b, asked := openS3Test(t, "s3://name"), 0
			b.client.http.Transport = transport(func(r *http.Request) (*http.Response, error) {
				asked++
				resp := &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Header: http.Header{}, ContentLength: 5}
				if r.URL.Host != "name.s3.eu-central-1.amazonaws.com" {
					resp.StatusCode = http.StatusMovedPermanently
					if header {
						resp.Header.Set("X-Amz-Bucket-Region", right)
					} else {
						resp.StatusCode = http.StatusBadRequest
						body := "<Error><Code>AuthorizationHeaderMalformed</Code><Region>" + right + "</Region></Error>"
						resp.Body = io.NopCloser(strings.NewReader(body))
					}
				}
				return resp, nil
			})
			o, err := b.Stat(t.Context(), "key")
			switch {
			case right == "eu-central-1" && (err != nil || o.Size != 5 || asked != 2):
				t.Errorf("Stat = %+v, %v, after %d requests", o, err, asked)
			case right != "eu-central-1" && (err == nil || asked != 1):
				t.Errorf("a region that is none was asked: %v, %d requests", err, asked)
			}
		}
	}
}

func TestS3Retry(t *testing.T) {
	var asked atomic.Int64
	b, _ := served(t, func(w http.ResponseWriter, r *http.Request) {
		switch asked.Add(1) {
		case 1:
			refuse(w, http.StatusServiceUnavailable, "SlowDown", "")
		case 2:
			refuse(w, http.StatusBadRequest, "RequestTimeout", "")
		default:
			fmt.Fprint(w, "hello")
		}
	})
	if got := string(get(t, b, "key", 0, -1)); got != "hello" || asked.Load() != 3 {
		t.Errorf("got %q after %d requests", got, asked.Load())
	}
	b, _ = served(t, func(w http.ResponseWriter, _ *http.Request) { refuse(w, http.StatusServiceUnavailable, "SlowDown", "") })
	if _, err := b.Open(t.Context(), "key", 0, -1); !errors.Is(err, oci.ErrRateLimited) {
		t.Errorf("Open = %v, want ErrRateLimited", err)
	}
}

func TestS3Errors(t *testing.T) {
	for code, want := range map[string]error{
		"NoSuchKey": oci.ErrNotFound, "NoSuchBucket": oci.ErrNotFound, "AccessDenied": oci.ErrDenied, "SignatureDoesNotMatch": oci.ErrUnauthorized,
		"RequestTimeTooSkewed": oci.ErrUnauthorized, "InvalidAccessKeyId": oci.ErrUnauthorized, "\x1b[31m": nil,
	} {
		b, log := served(t, func(w http.ResponseWriter, r *http.Request) {
			more := "<StringToSign>" + r.Header.Get("Authorization") + "</StringToSign><Message>" + strings.Repeat("x", 1000) + "</Message>"
			refuse(w, http.StatusTeapot, code, more)
		})
		err := b.Put(t.Context(), "key", 1, strings.NewReader("x"), true)
		if err == nil || want != nil && !errors.Is(err, want) || errors.Is(err, oci.ErrNotFound) != errors.Is(want, oci.ErrNotFound) {
			t.Errorf("%s: %v, want %v", code, err, want)
		}
		if s := err.Error(); len(s) > 500 || strings.ContainsAny(s, "\x1b\n") || !strings.HasPrefix(s, "s3://bucket/pre/key: ") {
			t.Errorf("%s: %q", code, s)
		}
		if all := err.Error() + log.String(); strings.Contains(all, "SECRET") || strings.Contains(all, "Signature=") {
			t.Errorf("%s: secrets are in %s", code, all)
		}
	}
}

// TestS3Cut has answers end too early, and the reader go on, in the same version.
func TestS3Cut(t *testing.T) {
	data := content(1, 100_000)
	for _, changed := range []bool{false, true} {
		var mu sync.Mutex
		var ranges []string
		b, _ := served(t, func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			ranges = append(ranges, r.Header.Get("Range")+" "+r.Header.Get("If-Match"))
			if changed && len(ranges) > 1 {
				refuse(w, http.StatusPreconditionFailed, "PreconditionFailed", "")
				return
			}
			w.Header().Set("Etag", `"v1"`)
			if len(ranges) < 3 {
				w = &cutter{w, 40_000}
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		})
		r, err := b.Open(t.Context(), "key", 10, -1)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		r.Close()
		if changed {
			if !errors.Is(err, errChanged) || errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "pre/key") {
				t.Errorf("read of what changed: %v", err)
			}
			continue
		}
		want := []string{"bytes=10- ", `bytes=40010-99999 "v1"`, `bytes=80010-99999 "v1"`}
		if err != nil || !bytes.Equal(got, data[10:]) || !slices.Equal(ranges, want) {
			t.Errorf("read %d bytes, %v, by %q", len(got), err, ranges)
		}
	}
}

// cutter ends an answer after some bytes.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	if len(p) <= c.left {
		c.left -= len(p)
		return c.ResponseWriter.Write(p)
	}
	_, _ = c.ResponseWriter.Write(p[:c.left])
	_ = http.NewResponseController(c.ResponseWriter).Flush()
	panic(http.ErrAbortHandler)
}

// TestS3Ranges has servers that know no ranges, and that send other ones.
func TestS3Ranges(t *testing.T) {
	b, _ := served(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "10")
		if r.Method == http.MethodGet {
			fmt.Fprint(w, "0123456789")
		}
	})
	for _, test := range []struct {
		offset, length int64
		want           string
	}{{0, 4, "0123"}, {3, 4, "3456"}, {8, -1, "89"}, {8, 9, "89"}, {10, 5, ""}, {10, -1, ""}, {10, 0, ""}} {
		if got := string(get(t, b, "key", test.offset, test.length)); got != test.want {
			t.Errorf("%d bytes from %d are %q, want %q", test.length, test.offset, got, test.want)
		}
	}
	for _, offset := range []int64{11, 1 << 62} {
		if _, err := b.Open(t.Context(), "key", offset, 1<<62); !errors.Is(err, oci.ErrRange) {
			t.Errorf("Open past the end = %v, want ErrRange", err)
		}
	}
	for _, answer := range []string{"bytes 0-3/10", "bytes 3-7/10", "bytes 3-6/5", "bytes 3-6/*", "", "3-6/10", "bytes 3-5/6", "bytes -1-6/10"} {
		b, _ := served(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", answer)
			w.WriteHeader(http.StatusPartialContent)
			fmt.Fprint(w, "3456")
		})
		if r, err := b.Open(t.Context(), "key", 3, 4); err == nil {
			r.Close()
			t.Errorf("Content-Range %q was believed", answer)
		}
	}
}

// TestS3Lists has listings that must not be believed, and one of two pages.
func TestS3Lists(t *testing.T) {
	page := func(more string, keys ...string) string {
		s := "<ListBucketResult><EncodingType>url</EncodingType>"
		for _, key := range keys {
			s += "<Contents><Key>" + url.QueryEscape(key) + "</Key><Size>3</Size><LastModified>2026-01-02T03:04:05.678Z</LastModified></Contents>"
		}
		return s + more + "</ListBucketResult>"
	}
	more := func(token string) string {
		return "<IsTruncated>true</IsTruncated><NextContinuationToken>" + token + "</NextContinuationToken>"
	}
	for name, test := range map[string]struct {
		pages map[string]string
		want  []string // nil: an error
	}{
		"two pages":     {map[string]string{"": page(more("x"), "pre/", "pre/a b", "pre/b+"), "x": page("", "pre/ü")}, []string{"a b", "b+", "ü"}},
		"empty page":    {map[string]string{"": page(more("x"), "pre/a"), "x": page(more("y")), "y": page("", "pre/b")}, []string{"a", "b"}},
		"loop":          {map[string]string{"": page(more("x"), "pre/a"), "x": page(more("y"), "pre/b"), "y": page(more("x"), "pre/c")}, nil},
		"empty loop":    {map[string]string{"": page(more("x")), "x": page(more("y")), "y": page(more("x"))}, nil},
		"same token":    {map[string]string{"": page(more("x")), "x": page(more("x"))}, nil},
		"no token":      {map[string]string{"": page("<IsTruncated>true</IsTruncated>", "pre/a")}, nil},
		"backwards":     {map[string]string{"": page("", "pre/b", "pre/a")}, nil},
		"twice":         {map[string]string{"": page("", "pre/a", "pre/a")}, nil},
		"other prefix":  {map[string]string{"": page("", "prefix/a")}, nil},
		"encoding":      {map[string]string{"": "<ListBucketResult><EncodingType>url</EncodingType><Contents><Key>pre/%zz</Key></Contents></ListBucketResult>"}, nil},
		"other XML":     {map[string]string{"": "<html></html>"}, nil},
		"no XML":        {map[string]string{"": "hello"}, nil},
		"error":         {map[string]string{"": "<Error><Code>AccessDenied</Code></Error>"}, nil},
		"too much":      {map[string]string{"": page(strings.Repeat(" ", maxAnswer))}, nil},
		"negative size": {map[string]string{"": "<ListBucketResult><Contents><Key>pre/a</Key><Size>-1</Size></Contents></ListBucketResult>"}, nil},
	} {
		b, _ := served(t, func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, test.pages[r.URL.Query().Get("continuation-token")])
		})
		var got []string
		var failed error
		for o, err := range b.List(t.Context(), "") {
			if failed = err; err == nil {
				got = append(got, o.Key)
			}
		}
		if (failed != nil) != (test.want == nil) || failed == nil && !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, %v, want %q", name, got, failed, test.want)
		}
	}
}

func FuzzS3(f *testing.F) {
	f.Add("<Error><Code>NoSuchKey</Code><Message>x</Message></Error>", "bytes 1-2/3", 404)
	f.Add("<ListBucketResult/>", "bytes 0-0/*", 200)
	f.Fuzz(func(t *testing.T, body, header string, status int) {
		if e := parseS3Error(status, []byte(body)); e != nil {
			if s := e.Error(); len([]rune(s)) > 2*maxText+200 || strings.ContainsAny(s, "\x1b\n\r\x00") {
				t.Errorf("%q", s)
			}
		} else if status >= 300 {
			t.Error("no error")
		}
		if first, last, size, ok := contentRange(header); ok && (first < 0 || last < first || size <= last) {
			t.Errorf("%q has bytes %d to %d of %d", header, first, last, size)
		}
	})
}
