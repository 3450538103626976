package bucket

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"pier/internal/oci"
)

// Stat implements [Bucket].
func (b *s3) Stat(ctx context.Context, key string) (Object, error) {
	o, err := b.stat(ctx, key)
	if err != nil {
		return Object{}, b.fault(key, err)
	}
	return o, nil
}

func (b *s3) stat(ctx context.Context, key string) (Object, error) {
	resp, err := b.do(ctx, operation{method: http.MethodHead, key: key, ok: []int{http.StatusOK}})
	if err != nil {
		return Object{}, err
	}
	resp.Body.Close()
	if resp.ContentLength < 0 {
		return Object{}, errors.New("the answer does not say how large it is")
	}
	modified, _ := http.ParseTime(resp.Header.Get("Last-Modified"))
	return Object{Key: key, Size: resp.ContentLength, Modified: modified, Version: resp.Header.Get("Etag")}, nil
}

// Open implements [Bucket].
func (b *s3) Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	r, err := b.open(ctx, key, offset, length)
	if err != nil {
		return nil, b.fault(key, err)
	}
	return named{r, func(err error) error { return b.fault(key, err) }}, nil
}

// named is a reader whose errors say what was read.
type named struct {
	io.ReadCloser
	fault func(error) error
}

func (n named) Read(p []byte) (int, error) {
	m, err := n.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = n.fault(err)
	}
	return m, err
}

func (b *s3) open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if length == 0 {
		return b.nothing(ctx, key, offset)
	}
	body, left, version, err := b.get(ctx, key, offset, length, "")
	if errors.Is(err, oci.ErrRange) { // there is no range at the end, either
		return b.nothing(ctx, key, offset)
	}
	if err != nil {
		return nil, err
	}
	again := func(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
		body, left, _, err := b.get(ctx, key, offset, length, version)
		if err == nil && left != length {
			body.Close()
			err = errChanged
		}
		return body, err
	}
	return &resumed{ctx: ctx, client: b.client, open: again, from: body, offset: offset, left: left}, nil
}

// nothing returns no bytes from an offset that must not be past the end.
func (b *s3) nothing(ctx context.Context, key string, offset int64) (io.ReadCloser, error) {
	o, err := b.stat(ctx, key)
	switch {
	case err != nil:
		return nil, err
	case offset > o.Size:
		return nil, oci.ErrRange
	}
	return http.NoBody, nil
}

// get asks for bytes of an object, in a version if that is not empty, and returns how many there will be, and in which version.
func (b *s3) get(ctx context.Context, key string, offset, length int64, version string) (io.ReadCloser, int64, string, error) {
	op := operation{method: http.MethodGet, key: key, header: http.Header{}, ok: []int{http.StatusOK}}
	end := int64(math.MaxInt64) // exclusive
	if length >= 0 && length < end-offset {
		end = offset + length
	}
	if offset > 0 || length >= 0 {
		op.ok = append(op.ok, http.StatusPartialContent)
		op.header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
		if end < math.MaxInt64 {
			op.header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, end-1))
		}
	}
	if version != "" && !strings.HasPrefix(version, "W/") {
		op.header.Set("If-Match", version)
	}
	resp, err := b.do(ctx, op)
	if hasStatus(err, http.StatusPreconditionFailed) {
		err = errChanged
	}
	if err != nil {
		return nil, 0, "", err
	}
	left, err := extent(resp, offset, end)
	if err == nil && resp.StatusCode == http.StatusOK && offset > 0 { // a service that knows no ranges
		_, err = io.CopyN(io.Discard, resp.Body, offset)
		if err != nil {
			err = unreachable(err)
		}
	}
	if err != nil {
		resp.Body.Close()
		return nil, 0, "", err
	}
	return resp.Body, left, resp.Header.Get("Etag"), nil
}

// extent returns how many of the bytes from offset to end are in an answer, which must be all that there are.
func extent(resp *http.Response, offset, end int64) (int64, error) {
	if resp.StatusCode == http.StatusOK {
		switch size := resp.ContentLength; {
		case size < 0:
			return 0, errors.New("the answer does not say how large it is")
		case offset > size:
			return 0, oci.ErrRange
		default:
			return min(size, end) - offset, nil
		}
	}
	first, last, size, ok := contentRange(resp.Header.Get("Content-Range"))
	switch {
	case !ok, first != offset, last != min(end, size)-1, resp.ContentLength >= 0 && resp.ContentLength != last-first+1:
		return 0, fmt.Errorf("asked for bytes from %d, the service sent %d bytes, %.100q of it", offset, resp.ContentLength,
			resp.Header.Get("Content-Range"))
	}
	return last - first + 1, nil
}

// contentRange parses bytes first-last/size.
func contentRange(s string) (first, last, size int64, ok bool) {
	s, unit := strings.CutPrefix(s, "bytes ")
	span, all, a := strings.Cut(s, "/")
	from, to, b := strings.Cut(span, "-")
	var errs [3]error
	first, errs[0] = strconv.ParseInt(from, 10, 64)
	last, errs[1] = strconv.ParseInt(to, 10, 64)
	size, errs[2] = strconv.ParseInt(all, 10, 64)
	return first, last, size, unit && a && b && errors.Join(errs[:]...) == nil && 0 <= first && first <= last && last < size
}

// An s3Page is an answer of ListObjectsV2.
type s3Page struct {
	XMLName               xml.Name `xml:"ListBucketResult"`
	EncodingType          string
	IsTruncated           bool
	NextContinuationToken string
	Contents              []struct {
		Key          string
		LastModified time.Time
		ETag         string
		Size         int64
	}
}

// emptyPages is how many pages without an object may follow one another.
const emptyPages = 100

// List implements [Bucket].
func (b *s3) List(ctx context.Context, prefix string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		last, token, empty := "", "", 0
		for {
			var page s3Page
			query := url.Values{"list-type": {"2"}, "encoding-type": {"url"}, "max-keys": {strconv.Itoa(b.Page())}, "prefix": {b.prefix + prefix}}
			if token != "" {
				query.Set("continuation-token", token)
			}
			if err := b.ask(ctx, operation{method: http.MethodGet, bucket: true, query: query}, &page); err != nil {
				yield(Object{}, b.fault("", fmt.Errorf("list: %w", err)))
				return
			}
			for _, o := range page.Contents {
				key, err := listed(o.Key, page.EncodingType, b.prefix+prefix, last)
				if err == nil && o.Size < 0 {
					err = fmt.Errorf("the key %.200q has %d bytes", key, o.Size)
				}
				if err != nil {
					yield(Object{}, b.fault("", fmt.Errorf("list: %w", err)))
					return
				}
				last = key
				if key == b.prefix {
					continue // what some tools make so that there is a directory
				}
				if !yield(Object{Key: key[len(b.prefix):], Size: o.Size, Modified: o.LastModified, Version: o.ETag}, nil) {
					return
				}
			}
			if empty++; len(page.Contents) > 0 {
				empty = 0
			}
			if !page.IsTruncated {
				return
			}
			if page.NextContinuationToken == "" || page.NextContinuationToken == token || empty > emptyPages {
				yield(Object{}, b.fault("", errors.New("list: the service says that there is more, and does not give it")))
				return
			}
			token = page.NextContinuationToken
		}
	}
}

// listed returns a key of a listing, which must have the prefix and come after the one before.
func listed(key, encoding, prefix, before string) (string, error) {
	if encoding == "url" {
		var err error
		if key, err = url.QueryUnescape(key); err != nil {
			return "", errors.New("a key is not encoded as it is said to be")
		}
	}
	switch {
	case !strings.HasPrefix(key, prefix):
		return "", fmt.Errorf("the key %.200q does not begin with %.200q", key, prefix)
	case before != "" && key <= before:
		return "", fmt.Errorf("the key %.200q follows %.200q", key, before)
	}
	return key, nil
}

// ask sends an operation and decodes the XML of its answer.
func (b *s3) ask(ctx context.Context, op operation, answer any) error {
	op.ok, op.whole = []int{http.StatusOK}, maxAnswer
	resp, err := b.do(ctx, op)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := xml.NewDecoder(resp.Body).Decode(answer); err != nil {
		return fmt.Errorf("the answer is no such XML: %w", err)
	}
	return nil
}
