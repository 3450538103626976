package bucket

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"

	"pier/internal/oci"
)

// gcs is a bucket of Google Cloud Storage, by its JSON API: https://cloud.google.com/storage/docs/json_api/v1
type gcs struct {
	place
	client   *client
	pool     *pool
	endpoint string // without a slash at its end
	stateDir string // see [Config]

	tokens func() (oauth2.TokenSource, error) // nil source: requests are anonymous
}

const (
	gcsEndpoint = "https://storage.googleapis.com"
	gcsScope    = "https://www.googleapis.com/auth/devstorage.read_write"
	gcsFields   = "name,size,updated,generation,crc32c"

	// tokenWait bounds the wait for an access token.
	tokenWait = 30 * time.Second
)

func openGCS(cfg Config, p place, query url.Values) (Bucket, error) {
	if err := onlyKeys(query, "endpoint"); err != nil {
		return nil, p.fault("", err)
	}
	b := &gcs{place: p, client: newClient(cfg), endpoint: gcsEndpoint, stateDir: cfg.StateDir}
	b.pool = &pool{budget: b.client.buffers}
	emulator := os.Getenv("STORAGE_EMULATOR_HOST") // a host with a port, or a URL
	if emulator != "" && !strings.Contains(emulator, "://") {
		emulator = "http://" + emulator
	}
	if s := firstOf(query.Get("endpoint"), emulator); s != "" {
		u, err := endpointOf(s)
		if err != nil {
			return nil, p.fault("", err)
		}
		b.endpoint = u.String()
	}
	b.tokens = sync.OnceValues(googleTokens)
	if !strings.HasPrefix(b.endpoint, "https:") { // a token is not for all to read
		b.tokens = func() (oauth2.TokenSource, error) { return nil, nil }
	}
	return b, nil
}

// googleTokens returns who gives tokens by the application default credentials, or nil if there are none.
func googleTokens() (oauth2.TokenSource, error) {
	ctx := context.WithValue(context.Background(), oauth2.HTTPClient, &http.Client{Timeout: tokenWait})
	found, err := google.FindDefaultCredentials(ctx, gcsScope)
	if err == nil {
		return found.TokenSource, nil
	}
	named := os.Getenv("GOOGLE_APPLICATION_CREDENTIALS")
	if home, err := os.UserHomeDir(); named == "" && err == nil {
		named = filepath.Join(home, ".config", "gcloud", "application_default_credentials.json")
	}
	if _, missing := os.Stat(named); named == "" || missing != nil && os.Getenv("GOOGLE_APPLICATION_CREDENTIALS") == "" { //nolint:gosec // the environment says which, and is trusted
		return nil, nil // there are none: what is public may be read
	}
	return nil, fmt.Errorf("%w: %s: %w", oci.ErrUnauthorized, named, err)
}

// authorize adds a token to a request.
func (b *gcs) authorize(req *http.Request) error {
	source, err := b.tokens()
	if err != nil || source == nil {
		return err
	}
	token, err := source.Token()
	if err != nil {
		var network *url.Error
		if errors.As(err, &network) {
			return unreachable(fmt.Errorf("access token: %w", network.Err))
		}
		return fmt.Errorf("%w: access token: %w", oci.ErrUnauthorized, err)
	}
	token.SetAuthHeader(req)
	return nil
}

// A gcsError is an answer that is no success.
type gcsError struct {
	Error struct {
		Message string
		Errors  []struct{ Reason string }
	}
}

func parseGCSError(status int, body []byte) *statusError {
	if status < http.StatusBadRequest {
		return nil
	}
	e := &statusError{status: status, class: classOf(status)}
	var answer gcsError
	if json.Unmarshal(body, &answer) == nil {
		e.text = clean(answer.Error.Message)
		if len(answer.Error.Errors) > 0 {
			e.code = clean(answer.Error.Errors[0].Reason)
		}
	}
	switch {
	case e.code == "rateLimitExceeded", e.code == "userRateLimitExceeded":
		e.class, e.again = oci.ErrRateLimited, true
	case status == http.StatusNotFound && strings.Contains(e.text, "bucket"):
		e.text = noSuchBucket
	}
	return e
}

// do sends a request about objects. The error does not name one.
func (b *gcs) do(ctx context.Context, method, path string, query url.Values, r request) (*http.Response, error) {
	r.method = method
	r.url = b.endpoint + path
	if len(query) > 0 {
		r.url += "?" + query.Encode()
	}
	r.sign, r.parse = b.authorize, parseGCSError
	if r.ok == nil {
		r.ok = []int{http.StatusOK}
	}
	return b.client.do(ctx, r)
}

// ask is do with an answer that is JSON.
func (b *gcs) ask(ctx context.Context, method, path string, query url.Values, r request, answer any) error {
	r.whole = maxAnswer
	resp, err := b.do(ctx, method, path, query, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
		return fmt.Errorf("the answer is not what the JSON API says: %w", err)
	}
	return nil
}

// bucketPath is that of the bucket, objectPath that of an object: its name is one segment.
func (b *gcs) bucketPath() string { return "/storage/v1/b/" + url.PathEscape(b.name) }

func (b *gcs) objectPath(key string) string {
	return b.bucketPath() + "/o/" + url.PathEscape(b.prefix+key)
}

// A gcsObject is what the service knows of one.
type gcsObject struct {
	Name       string
	Size       string // decimal, as all numbers of 64 bits
	Updated    time.Time
	Generation string
	CRC32C     string
}

func (b *gcs) object(o gcsObject) (Object, error) {
	size, err := strconv.ParseInt(o.Size, 10, 64)
	if err != nil || size < 0 {
		return Object{}, fmt.Errorf("the service says that it has %.40q bytes", o.Size)
	}
	return Object{Key: strings.TrimPrefix(o.Name, b.prefix), Size: size, Modified: o.Updated, Version: o.Generation}, nil
}

// Stat implements [Bucket].
func (b *gcs) Stat(ctx context.Context, key string) (Object, error) {
	o, err := b.stat(ctx, key)
	if err != nil {
		return Object{}, b.fault(key, err)
	}
	return o, nil
}

func (b *gcs) stat(ctx context.Context, key string) (Object, error) {
	var answer gcsObject
	if err := b.ask(ctx, http.MethodGet, b.objectPath(key), url.Values{"fields": {gcsFields}}, request{}, &answer); err != nil {
		return Object{}, err
	}
	o, err := b.object(answer)
	o.Key = key
	return o, err
}

// Open implements [Bucket].
func (b *gcs) Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	r, err := b.open(ctx, key, offset, length)
	if err != nil {
		return nil, b.fault(key, err)
	}
	return named{r, func(err error) error { return b.fault(key, err) }}, nil
}

func (b *gcs) open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	body, left, generation, err := http.NoBody, int64(0), "", oci.ErrRange
	var rc io.ReadCloser = body
	if length != 0 {
		rc, left, generation, err = b.get(ctx, key, offset, length, "")
	}
	if errors.Is(err, oci.ErrRange) { // there is no range at the end, either
		o, err := b.stat(ctx, key)
		if err == nil && offset > o.Size {
			err = oci.ErrRange
		}
		return http.NoBody, err
	}
	if err != nil {
		return nil, err
	}
	again := func(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
		rc, left, _, err := b.get(ctx, key, offset, length, generation)
		if err == nil && left != length {
			rc.Close()
			err = errChanged
		}
		return rc, err
	}
	return &resumed{ctx: ctx, client: b.client, open: again, from: rc, offset: offset, left: left}, nil
}

// get asks for bytes of an object, in a generation if that is not empty, and returns how many there will be, and in which.
func (b *gcs) get(ctx context.Context, key string, offset, length int64, generation string) (io.ReadCloser, int64, string, error) {
	query := url.Values{"alt": {"media"}}
	if generation != "" {
		query.Set("generation", generation)
	}
	r := request{header: http.Header{}, ok: []int{http.StatusOK, http.StatusPartialContent}}
	end := int64(math.MaxInt64) // exclusive
	if length >= 0 && length < end-offset {
		end = offset + length
		r.header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, end-1))
	} else if offset > 0 {
		r.header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	resp, err := b.do(ctx, http.MethodGet, b.objectPath(key), query, r)
	if generation != "" && errors.Is(err, oci.ErrNotFound) {
		err = errChanged
	}
	if err != nil {
		return nil, 0, "", err
	}
	left, err := extent(resp, offset, end)
	if err == nil && resp.StatusCode == http.StatusOK && offset > 0 { // a service that knows no ranges
		if _, err = io.CopyN(io.Discard, resp.Body, offset); err != nil {
			err = unreachable(err)
		}
	}
	if err != nil {
		resp.Body.Close()
		return nil, 0, "", err
	}
	return resp.Body, left, resp.Header.Get("X-Goog-Generation"), nil
}

// Copy implements [Bucket].
func (b *gcs) Copy(ctx context.Context, from Bucket, object Object, key string) error {
	if !b.SameService(from) {
		return b.fault(key, oci.ErrUnsupported)
	}
	path := from.(*gcs).objectPath(object.Key) + "/rewriteTo" + strings.TrimPrefix(b.objectPath(key), "/storage/v1")
	query := url.Values{}
	if object.Version != "" {
		query.Set("ifSourceGenerationMatch", object.Version)
	}
	for {
		var answer struct {
			Done         bool
			RewriteToken string
		}
		err := b.ask(ctx, http.MethodPost, path, query, request{slow: true}, &answer)
		switch {
		case hasStatus(err, http.StatusPreconditionFailed):
			return b.fault(key, errChanged)
		case errors.Is(err, oci.ErrDenied), hasStatus(err, http.StatusNotImplemented):
			return b.fault(key, fmt.Errorf("%w: %w", oci.ErrUnsupported, err))
		case err != nil:
			return b.fault(key, err)
		case answer.Done || answer.RewriteToken == "":
			return nil
		}
		query.Set("rewriteToken", answer.RewriteToken)
	}
}

// SameService reports whether objects of another bucket can be copied to this one by [Bucket.Copy].
func (b *gcs) SameService(from Bucket) bool {
	other, ok := from.(*gcs)
	return ok && other.endpoint == b.endpoint
}

// List implements [Bucket].
func (b *gcs) List(ctx context.Context, prefix string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		query := url.Values{"prefix": {b.prefix + prefix}, "maxResults": {strconv.Itoa(b.Page())}, "fields": {"items(" + gcsFields + "),nextPageToken"}}
		last := ""
		for {
			var page struct {
				Items         []gcsObject
				NextPageToken string
			}
			if err := b.ask(ctx, http.MethodGet, b.bucketPath()+"/o", query, request{}, &page); err != nil {
				yield(Object{}, b.fault(prefix, err))
				return
			}
			for _, item := range page.Items {
				o, err := b.object(item)
				if err == nil && (!strings.HasPrefix(item.Name, b.prefix+prefix) || last != "" && item.Name <= last) {
					err = fmt.Errorf("the service lists %.200q where it should not", item.Name)
				}
				if last = item.Name; err != nil {
					yield(Object{}, b.fault(prefix, err))
					return
				}
				if !yield(o, nil) {
					return
				}
			}
			if page.NextPageToken == "" {
				return
			}
			if page.NextPageToken == query.Get("pageToken") {
				yield(Object{}, b.fault(prefix, errors.New("the service lists the same page without end")))
				return
			}
			query.Set("pageToken", page.NextPageToken)
		}
	}
}

// Page implements [Bucket].
func (b *gcs) Page() int { return 1000 }

// Delete implements [Bucket].
func (b *gcs) Delete(ctx context.Context, key string) error {
	resp, err := b.do(ctx, http.MethodDelete, b.objectPath(key), nil, request{ok: []int{http.StatusOK, http.StatusNoContent}})
	if hasStatus(err, http.StatusNotFound) {
		return nil
	}
	if err != nil {
		return b.fault(key, err)
	}
	resp.Body.Close()
	return nil
}

// Sync implements [Bucket]: the service answers when it has kept what it was sent.
func (b *gcs) Sync(context.Context) error { return nil }

// gcsSum returns a CRC-32C as the service has it.
func gcsSum(sum uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum))
}

// jsonBody returns a body and its header.
func jsonBody(v any) (request, error) {
	text, err := json.Marshal(v)
	return request{header: http.Header{"Content-Type": {"application/json; charset=utf-8"}}, body: bytes.TrimSpace(text)}, err
}
