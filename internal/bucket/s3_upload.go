package bucket

import (
	"context"
	"crypto/md5" //nolint:gosec // what S3 calls an ETag
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"pier/internal/oci"
)

// errGone is the error of an upload that somebody else completed or aborted, or sent other parts in.
var errGone = fmt.Errorf("%w: somebody else ended the upload of it: run this again", oci.ErrUnavailable)

// gone returns an error with [errGone] instead of what the service says of such an upload.
func gone(err error) error {
	if is(err, "NoSuchUpload", "InvalidPart", "InvalidPartOrder") {
		return errGone
	}
	return err
}

// An upload is a multipart upload of S3.
type upload struct {
	id, key string
	checked atomic.Bool    // its parts have a CRC-32C each
	old     map[int]s3Part // what there was of it before

	mu    sync.Mutex
	parts map[int]s3Part // guarded by mu: what the object is made of
}

type s3Part struct {
	PartNumber     int
	ETag           string
	ChecksumCRC32C string `xml:",omitempty"`
	Size           int64  `xml:",omitempty"`
}

type s3Copied struct{ ETag string }

type s3Upload struct {
	Key       string
	UploadID  string `xml:"UploadId"`
	Initiated time.Time
}

// has reports whether a part was there before, and notes it if so.
func (u *upload) has(n int, data []byte) bool {
	old, ok := u.old[n]
	if !ok || old.Size != int64(len(data)) {
		return false
	}
	sum := md5.Sum(data) //nolint:gosec // to know what was sent; who could make up another has the credentials
	if bare(old.ETag) != hex.EncodeToString(sum[:]) {
		return false
	}
	u.add(n, old.ETag, data)
	return true
}

// add notes a part.
func (u *upload) add(n int, tag string, data []byte) {
	p := s3Part{PartNumber: n, ETag: tag, Size: int64(len(data))}
	if u.checked.Load() {
		p.ChecksumCRC32C = crc(data)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.parts[n] = p
}

// bare returns an ETag without its quotes.
func bare(tag string) string { return strings.Trim(tag, `"`) }

// etag returns that of the object, which is the MD5 of those of its parts, and their number. It is another one where the service
// encrypts with a key of the customer.
func (u *upload) etag() string {
	sum := md5.New() //nolint:gosec // what S3 calls an ETag
	for _, n := range slices.Sorted(maps.Keys(u.parts)) {
		part, _ := hex.DecodeString(bare(u.parts[n].ETag))
		_, _ = sum.Write(part)
	}
	return hex.EncodeToString(sum.Sum(nil)) + "-" + strconv.Itoa(len(u.parts))
}

// landed reports whether the object that is there is what the upload was completed to.
func (b *s3) landed(ctx context.Context, u *upload) bool {
	o, err := b.stat(ctx, u.key)
	return err == nil && bare(o.Version) == u.etag()
}

// begin returns an upload of an object for this Put alone, as far as this process goes: the last that was left, or a new one.
func (b *s3) begin(ctx context.Context, key string, tried map[string]bool) (*upload, error) {
	var left []s3Upload
	for found, err := range b.uploads(ctx, key) {
		if errors.Is(err, oci.ErrDenied) || errors.Is(err, oci.ErrUnsupported) {
			b.client.log.DebugContext(ctx, "uploads that were left are not looked for", "bucket", b.String(), "error", err)
			break
		}
		if err != nil {
			return nil, err
		}
		if found.Key != key {
			break // one that begins like that
		}
		left = append(left, found)
	}
	slices.SortStableFunc(left, func(a, b s3Upload) int { return b.Initiated.Compare(a.Initiated) })
	for _, found := range left {
		if tried[found.UploadID] || !b.claim(found.UploadID) {
			continue
		}
		u := &upload{id: found.UploadID, key: key, parts: map[int]s3Part{}}
		err := b.oldParts(ctx, u)
		if err == nil {
			return u, nil
		}
		b.release(u.id)
		if !errors.Is(err, oci.ErrNotFound) && !errors.Is(err, oci.ErrDenied) && !errors.Is(err, oci.ErrUnsupported) {
			return nil, err
		}
	}
	return b.create(ctx, key, b.checks())
}

// claim reports whether nobody else in this process is at an upload, which is the caller's until it is released.
func (b *s3) claim(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.active[id] {
		return false
	}
	b.active[id] = true
	return true
}

func (b *s3) release(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.active, id)
}

// create begins an upload, which is the caller's until it is released.
func (b *s3) create(ctx context.Context, key string, checked bool) (*upload, error) {
	var answer struct {
		XMLName  xml.Name `xml:"InitiateMultipartUploadResult"`
		UploadID string   `xml:"UploadId"`
	}
	op := operation{method: http.MethodPost, key: key, query: url.Values{"uploads": {""}}, header: http.Header{}}
	if checked {
		op.header.Set("X-Amz-Checksum-Algorithm", "CRC32C")
	}
	err := b.ask(ctx, op, &answer)
	if checked && refusesHeader(err) {
		checked = false
		op.header.Del("X-Amz-Checksum-Algorithm")
		err = b.ask(ctx, op, &answer)
	}
	if err == nil && answer.UploadID == "" {
		err = errors.New("the service began an upload without an ID")
	}
	if err != nil {
		return nil, err
	}
	b.claim(answer.UploadID)
	u := &upload{id: answer.UploadID, key: key, parts: map[int]s3Part{}}
	u.checked.Store(checked)
	return u, nil
}

// oldParts asks for the parts of an upload.
func (b *s3) oldParts(ctx context.Context, u *upload) error {
	u.old = map[int]s3Part{}
	for marker := 0; ; {
		var page struct {
			XMLName              xml.Name `xml:"ListPartsResult"`
			ChecksumAlgorithm    string
			IsTruncated          bool
			NextPartNumberMarker int
			Part                 []s3Part
		}
		query := url.Values{"uploadId": {u.id}, "max-parts": {"1000"}}
		if marker > 0 {
			query.Set("part-number-marker", strconv.Itoa(marker))
		}
		if err := b.ask(ctx, operation{method: http.MethodGet, key: u.key, query: query}, &page); err != nil {
			return err
		}
		u.checked.Store(page.ChecksumAlgorithm == "CRC32C")
		for _, p := range page.Part {
			u.old[p.PartNumber] = p
		}
		if !page.IsTruncated {
			return nil
		}
		if page.NextPartNumberMarker <= marker || page.NextPartNumberMarker > maxParts {
			return errors.New("the service lists the parts of an upload without an end")
		}
		marker = page.NextPartNumberMarker
	}
}

// complete makes an upload an object. That it is one already is no error.
func (b *s3) complete(ctx context.Context, u *upload, header http.Header) error {
	type document struct {
		XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ CompleteMultipartUpload"`
		Part    []s3Part
	}
	var d document
	for _, n := range slices.Sorted(maps.Keys(u.parts)) {
		p := s3Part{PartNumber: n, ETag: u.parts[n].ETag}
		if u.checked.Load() {
			p.ChecksumCRC32C = u.parts[n].ChecksumCRC32C
		}
		d.Part = append(d.Part, p)
	}
	body, err := xml.Marshal(d)
	if err != nil {
		return err
	}
	op := operation{
		method: http.MethodPost, key: u.key, query: url.Values{"uploadId": {u.id}}, header: header, body: body,
		ok: []int{http.StatusOK}, whole: maxAnswer, slow: true,
	}
	resp, err := b.do(ctx, op)
	if is(err, "NoSuchUpload") && b.landed(ctx, u) { // the answer to an attempt before was cut
		return nil
	}
	if err != nil {
		return err
	}
	resp.Body.Close()
	return nil
}

// abandon removes an upload, if that is possible: Clean does otherwise.
func (b *s3) abandon(ctx context.Context, u *upload) {
	ctx, cancel := detached(ctx)
	defer cancel()
	if _, err := b.abort(ctx, u.key, u.id); err != nil {
		b.client.log.DebugContext(ctx, "an upload stays", "bucket", b.String(), "key", u.key, "error", err)
	}
}

// abort removes an upload, and reports whether there was one.
func (b *s3) abort(ctx context.Context, key, id string) (bool, error) {
	resp, err := b.do(ctx, operation{
		method: http.MethodDelete, key: key, query: url.Values{"uploadId": {id}}, ok: []int{http.StatusOK, http.StatusNoContent},
	})
	if is(err, "NoSuchUpload") {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	resp.Body.Close()
	return true, nil
}

// uploads returns the uploads of keys that begin with prefix, in the order of keys.
func (b *s3) uploads(ctx context.Context, prefix string) iter.Seq2[s3Upload, error] {
	return func(yield func(s3Upload, error) bool) {
		key, id := "", ""
		for {
			var page struct {
				XMLName            xml.Name `xml:"ListMultipartUploadsResult"`
				EncodingType       string
				IsTruncated        bool
				NextKeyMarker      string
				NextUploadIDMarker string `xml:"NextUploadIdMarker"`
				Upload             []s3Upload
			}
			query := url.Values{"uploads": {""}, "encoding-type": {"url"}, "max-uploads": {"1000"}, "prefix": {b.prefix + prefix}}
			if key != "" {
				query.Set("key-marker", key)
				query.Set("upload-id-marker", id)
			}
			err := b.ask(ctx, operation{method: http.MethodGet, bucket: true, query: query}, &page)
			if err != nil {
				yield(s3Upload{}, fmt.Errorf("list of uploads: %w", err))
				return
			}
			for _, u := range page.Upload {
				if u.Key, err = listed(u.Key, page.EncodingType, b.prefix+prefix, ""); err == nil {
					u.Key = u.Key[len(b.prefix):]
				}
				if !yield(u, err) || err != nil {
					return
				}
			}
			if !page.IsTruncated {
				return
			}
			next, err := listed(page.NextKeyMarker, page.EncodingType, "", "")
			if err != nil || next < key || next == key && page.NextUploadIDMarker == id {
				yield(s3Upload{}, errors.New("list of uploads: the service says that there is more, and does not give it"))
				return
			}
			key, id = next, page.NextUploadIDMarker
		}
	}
}

// Clean implements [Bucket]: it aborts uploads that began before the time given, but for those that this process is at.
func (b *s3) Clean(ctx context.Context, before time.Time) (n int, err error) {
	for u, err := range b.uploads(ctx, "") {
		if err != nil {
			return n, b.fault("", err)
		}
		if !u.Initiated.Before(before) || !b.claim(u.UploadID) {
			continue
		}
		removed, err := b.abort(ctx, u.Key, u.UploadID)
		b.release(u.UploadID)
		if err != nil {
			return n, b.fault(u.Key, err)
		}
		if removed {
			n++
		}
	}
	return n, nil
}
