package bucket

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// An s3 is a bucket of S3, or of a service that speaks like it.
type s3 struct {
	place
	client   *client
	identity *identity
	pool     *pool
	endpoint *url.URL // of the URL or the environment; nil: that of AWS in the region
	bypath   bool     // the name of the bucket is in the path, not in the host

	region        atomic.Pointer[string] // that of the bucket, as far as is known
	unchecked     atomic.Bool            // the service does not know the headers of checksums
	unconditional atomic.Bool            // the service does not know If-None-Match of what is put

	// What one request copies, and each of several of a larger object, in bytes.
	copyMax, copyPart int64

	mu     sync.Mutex
	active map[string]bool // guarded by mu: the IDs of uploads that Puts and Copies of this process are at
}

// By https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html. Parts but the last have 5 MiB at least; [partSize] is more.
const (
	maxParts    = 10_000
	fewParts    = 690      // of which all services remember what each is: one that keeps that in attributes of a file has 4 KiB for it
	maxPartSize = 32 << 20 // not of S3, which takes 5 GiB, but for what memory there is
	copyMax     = 5 << 30  // bytes that CopyObject takes
	copyPart    = 1 << 30  // bytes of a part that UploadPartCopy copies: in less time than connections are given up after

	// maxAnswer is up to how many bytes of an answer in XML are read. A page of a thousand keys of 1,024 bytes each, all of them
	// escaped, has some 3.5 MB.
	maxAnswer = 16 << 20

	unsigned = "UNSIGNED-PAYLOAD"
)

var (
	regionName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	castagnoli = crc32.MakeTable(crc32.Castagnoli)

	// errChanged is the error of a read of a version that is there no more.
	errChanged = errors.New("it changed while it was read")
)

func openS3(cfg Config, p place, query url.Values) (Bucket, error) {
	if err := onlyKeys(query, "endpoint", "region", "profile", "path-style"); err != nil {
		return nil, p.fault("", err)
	}
	b := &s3{
		place: p, client: newClient(cfg), identity: newIdentity(query.Get("profile")), active: map[string]bool{},
		copyMax: copyMax, copyPart: copyPart,
	}
	b.pool = &pool{budget: b.client.buffers}
	region := firstOf(query.Get("region"), os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION"), "us-east-1")
	if !regionName.MatchString(region) {
		return nil, p.fault("", fmt.Errorf("the region %.100q: want a name such as eu-central-1", region))
	}
	b.region.Store(&region)
	if s := firstOf(query.Get("endpoint"), os.Getenv("AWS_ENDPOINT_URL_S3"), os.Getenv("AWS_ENDPOINT_URL")); s != "" {
		u, err := endpointOf(s)
		if err != nil {
			return nil, p.fault("", err)
		}
		b.endpoint = u
	}
	// The certificate of AWS is one of names without dots.
	b.bypath = b.endpoint != nil || strings.Contains(p.name, ".")
	if s := query.Get("path-style"); s != "" {
		var err error
		if b.bypath, err = strconv.ParseBool(s); err != nil {
			return nil, p.fault("", fmt.Errorf("path-style is %.100q: want true or false", s))
		}
	}
	if file := os.Getenv("AWS_CA_BUNDLE"); file != "" {
		if err := b.client.trust(file); err != nil {
			return nil, p.fault("", fmt.Errorf("AWS_CA_BUNDLE: %w", err))
		}
	}
	return b, nil
}

func firstOf(values ...string) string {
	for _, s := range values {
		if s != "" {
			return s
		}
	}
	return ""
}

// endpointOf returns the URL of a service, without a slash at its end.
func endpointOf(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, errors.New("the endpoint is no URL")
	case u.User != nil:
		return nil, errors.New("the endpoint has credentials in it: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "", u.RawQuery != "", u.Fragment != "":
		return nil, fmt.Errorf("the endpoint is %.200q: want https://host or http://host:port", s)
	}
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), ""
	return u, nil
}

// trust has connections trust the authorities of a file, and no others.
func (c *client) trust(file string) error {
	pem, err := os.ReadFile(file) //nolint:gosec // the environment says which, and is trusted
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("there are no certificates in %s", file)
	}
	if t, ok := c.http.Transport.(*http.Transport); ok {
		t.TLSClientConfig.RootCAs = roots
	}
	return nil
}

// An operation is a request of S3, before it is known where it goes and who signs it.
type operation struct {
	method string
	key    string // of an object, without the prefix of the place
	bucket bool   // it is about the bucket, and not about an object
	query  url.Values
	header http.Header
	body   []byte
	sum    string // a checksum of the body, as crc returns it; empty: the service is to verify its SHA-256
	ok     []int
	whole  int64           // up to how many bytes of an answer are read at once; 0: the caller reads it
	sent   *sync.WaitGroup // see [request]
	slow   bool            // see [request]
}

// do sends an operation. The error does not name the object.
func (b *s3) do(ctx context.Context, op operation) (*http.Response, error) {
	for tries := 0; ; tries++ {
		region := *b.region.Load()
		r, err := b.request(op, region)
		if err != nil {
			return nil, err
		}
		resp, err := b.client.do(ctx, r)
		if err == nil || tries == 2 || !b.adapt(ctx, err, region) {
			return resp, err
		}
	}
}

// adapt learns from an error how the service wants to be asked, and reports whether asking again helps.
func (b *s3) adapt(ctx context.Context, err error, region string) bool {
	var failed *statusError
	if !errors.As(err, &failed) {
		return false
	}
	switch failed.status {
	case http.StatusMovedPermanently, http.StatusBadRequest, http.StatusForbidden:
		right := firstOf(failed.header.Get("X-Amz-Bucket-Region"), failed.region)
		if right != "" && right != region && regionName.MatchString(right) {
			b.client.log.DebugContext(ctx, "the bucket is in another region", "bucket", b.String(), "region", right)
			b.region.Store(&right)
			return true
		}
	}
	return is(err, "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired") && b.identity.expire()
}

const checksumHeader = "X-Amz-Checksum-Crc32c"

// checks reports whether bytes of objects are sent with a checksum of its own.
//
// The service verifies what it gets in either case. By https nobody can change it on its way, so that a CRC-32C is enough, which
// costs a processor a tenth of a SHA-256 or less. By http the signature must be over the content, whose SHA-256 is the checksum
// then. All services know that, and so it is what is sent to those that refuse the header of the other.
func (b *s3) checks() bool {
	return (b.endpoint == nil || b.endpoint.Scheme == "https") && !b.unchecked.Load()
}

// send sends bytes of an object, with a checksum of its own if that is asked for and the service takes it, and returns the ETag.
// Nobody reads the bytes after that.
func (b *s3) send(ctx context.Context, op operation, checked bool) (string, error) {
	op.method, op.ok, op.whole = http.MethodPut, []int{http.StatusOK, http.StatusCreated}, maxAnswer
	op.sent = new(sync.WaitGroup)
	defer op.sent.Wait()
	if checked {
		op.sum = crc(op.body)
	}
	resp, err := b.do(ctx, op)
	if checked && refusesHeader(err) {
		op.sum = ""
		refused := err
		if resp, err = b.do(ctx, op); err == nil {
			b.client.log.DebugContext(ctx, "sent without the header of a checksum", "bucket", b.String(), "error", refused)
			b.unchecked.Store(true)
		}
	}
	if err != nil {
		return "", err
	}
	resp.Body.Close()
	return resp.Header.Get("Etag"), nil
}

// refusesHeader reports whether an error may be about a header that the service does not know.
func refusesHeader(err error) bool {
	return is(err, "NotImplemented", "InvalidArgument", "InvalidRequest")
}

// request returns what sends an operation.
func (b *s3) request(op operation, region string) (request, error) {
	target, err := b.url(op, region)
	if err != nil {
		return request{}, err
	}
	header := http.Header{}
	for name, values := range op.header {
		header[name] = values
	}
	if op.sum != "" {
		header.Set("X-Amz-Content-Sha256", unsigned)
		header.Set(checksumHeader, op.sum)
	} else {
		sum := sha256.Sum256(op.body)
		header.Set("X-Amz-Content-Sha256", hex.EncodeToString(sum[:]))
	}
	return request{
		method: op.method, url: target, header: header, body: op.body, ok: op.ok, whole: op.whole, sent: op.sent, slow: op.slow, parse: parseS3Error,
		sign: func(req *http.Request) error {
			v, err := b.identity.get(req.Context())
			if err != nil || v.AccessKeyID == "" {
				return err
			}
			sign(req, v, region, time.Now())
			return nil
		},
	}, nil
}

// crc returns a checksum as headers and documents have it.
func crc(body []byte) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc32.Checksum(body, castagnoli)))
}

// url returns where an operation goes.
func (b *s3) url(op operation, region string) (string, error) {
	u := url.URL{Scheme: "https", Host: "s3." + region + ".amazonaws.com"}
	if strings.HasPrefix(region, "cn-") {
		u.Host += ".cn"
	}
	if b.endpoint != nil {
		u = *b.endpoint
	}
	path := escape(u.Path)
	if b.bypath {
		path += "/" + escape(b.name)
	} else {
		u.Host = b.name + "." + u.Host
	}
	switch {
	case !op.bucket:
		if !utf8.ValidString(b.prefix + op.key) {
			return "", errors.New("keys of S3 are UTF-8, and this is none")
		}
		path += "/" + escape(b.prefix+op.key)
	case !b.bypath:
		path += "/"
	}
	s := u.Scheme + "://" + u.Host + path
	if len(op.query) > 0 {
		s += "?" + strings.ReplaceAll(op.query.Encode(), "+", "%20")
	}
	return s, nil
}

// escape returns a key as the canonical request of a signature has it: all but unreserved characters and slashes are escaped.
// https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
func escape(key string) string {
	const hexes = "0123456789ABCDEF"
	var s strings.Builder
	for i := range len(key) {
		c := key[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._~/", c) >= 0:
			s.WriteByte(c)
		default:
			s.Write([]byte{'%', hexes[c>>4], hexes[c&15]})
		}
	}
	return s.String()
}

// Page implements [Bucket].
func (b *s3) Page() int { return 1000 }

// Delete implements [Bucket].
func (b *s3) Delete(ctx context.Context, key string) error {
	resp, err := b.do(ctx, operation{method: http.MethodDelete, key: key, ok: []int{http.StatusOK, http.StatusNoContent}})
	if is(err, "NoSuchKey") {
		return nil
	}
	if err != nil {
		return b.fault(key, err)
	}
	resp.Body.Close()
	return nil
}

// Sync implements [Bucket]: S3 answers when what it got is safe.
func (b *s3) Sync(context.Context) error { return nil }

// detached returns a context for what must be done after ctx has ended.
func detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
}
