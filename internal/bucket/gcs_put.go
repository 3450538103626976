package bucket

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"pier/internal/oci"
)

const (
	// gcsUnit is what the service keeps of an upload that is not finished a multiple of, in bytes:
	// https://cloud.google.com/storage/docs/performing-resumable-uploads#chunked-upload
	gcsUnit = 256 << 10

	// gcsSmall is up to how many bytes an object is sent with one request, together with what is said of it.
	gcsSmall    = partSize - gcsOverhead
	gcsOverhead = 4 << 10 // keys are up to 1 KiB, and three bytes for one in a URL or JSON
	gcsBoundary = "pier-part-boundary-5f1c"
)

// metadata is what is said of an object that is put.
type metadata struct {
	Name   string `json:"name"`
	CRC32C string `json:"crc32c,omitempty"` // the service refuses content that has another
}

func (b *gcs) uploadPath() string { return "/upload" + b.bucketPath() + "/o" }

// uploadQuery is that of an upload.
func uploadQuery(kind string, replace bool) url.Values {
	query := url.Values{"uploadType": {kind}, "fields": {gcsFields}}
	if !replace {
		query.Set("ifGenerationMatch", "0") // there is no such object
	}
	return query
}

// Put implements [Bucket]. A large object is sent in a session that goes on where it was, also in another process.
func (b *gcs) Put(ctx context.Context, key string, size int64, r io.Reader, replace bool) error {
	put := b.putSmall
	if size > gcsSmall {
		put = b.putLarge
	}
	err := put(ctx, key, size, &sized{r, size}, replace)
	if hasStatus(err, http.StatusPreconditionFailed) {
		err = ErrExists
	}
	if err != nil {
		return b.fault(key, err)
	}
	return nil
}

func (b *gcs) putSmall(ctx context.Context, key string, size int64, r *sized, replace bool) error {
	buf, err := b.pool.get(ctx, int(size)+gcsOverhead)
	if err != nil {
		return err
	}
	defer b.pool.put(buf)
	content := buf[gcsOverhead/2:][:size]
	if err := r.fill(content); err != nil {
		return err
	}
	said, err := json.Marshal(metadata{b.prefix + key, gcsSum(crc32.Checksum(content, castagnoli))})
	if err != nil {
		return err
	}
	head := fmt.Sprintf("--%s\r\nContent-Type: application/json; charset=utf-8\r\n\r\n%s\r\n--%[1]s\r\nContent-Type: application/octet-stream\r\n\r\n", gcsBoundary, said)
	tail := "\r\n--" + gcsBoundary + "--\r\n"
	if len(head) > gcsOverhead/2 {
		return fmt.Errorf("the key has %d bytes, which is too long", len(key))
	}
	begin := gcsOverhead/2 - len(head) // the content stays where it is
	copy(buf[begin:], head)
	end := gcsOverhead/2 + int(size) + copy(buf[gcsOverhead/2+int(size):], tail)
	sent := new(sync.WaitGroup)
	defer sent.Wait()
	req := request{header: http.Header{"Content-Type": {"multipart/related; boundary=" + gcsBoundary}}, body: buf[begin:end], sent: sent}
	var stored gcsObject
	return noBucket(b.ask(ctx, http.MethodPost, b.uploadPath(), uploadQuery("multipart", replace), req, &stored))
}

// noBucket says what it is that was not found, where something new was to be put.
func noBucket(err error) error {
	var failed *statusError
	if errors.As(err, &failed) && failed.status == http.StatusNotFound {
		failed.text = noSuchBucket
	}
	return err
}

// vacant returns [ErrExists] if there is an object.
func (b *gcs) vacant(ctx context.Context, key string) error {
	switch _, err := b.stat(ctx, key); {
	case err == nil:
		return ErrExists
	case errors.Is(err, oci.ErrNotFound):
		return nil
	default:
		return err
	}
}

func (b *gcs) putLarge(ctx context.Context, key string, size int64, r *sized, replace bool) error {
	if !replace {
		if err := b.vacant(ctx, key); err != nil {
			return err
		}
	}
	s := openSession(b.stateDir, b.String(), key, size)
	defer s.close()
	u := gcsUpload{b: b, key: key, size: size, r: r, session: s}
	if err := u.begin(ctx, replace); err != nil {
		return err
	}
	err := u.send(ctx)
	if err == nil || wrong(err) || hasStatus(err, http.StatusPreconditionFailed) || errors.Is(err, errAnother) {
		s.forget()
	}
	if wrong(err) {
		u.cancel(ctx)
	}
	return err
}

// errAnother is the error for a session that cannot be gone on with, once that is found too late to begin anew.
var errAnother = errors.New("what was sent before is not the beginning of it: run this again, it begins anew")

// A gcsUpload is a resumable upload under way.
type gcsUpload struct {
	b       *gcs
	key     string
	size    int64
	r       *sized
	session *session
	kept    int64  // bytes that the service has
	sum     uint32 // CRC-32C of what was read
}

// begin finds the session that was left, or begins one.
func (u *gcsUpload) begin(ctx context.Context, replace bool) error {
	if u.session.url != "" && u.b.isOurs(u.session.url) {
		kept, done, err := u.status(ctx)
		if err == nil && !done && kept > 0 && u.session.has(kept) {
			u.kept = kept
			return nil
		}
		if err != nil && !sessionGone(err) {
			return err
		}
	}
	req, err := jsonBody(metadata{Name: u.b.prefix + u.key})
	if err != nil {
		return err
	}
	req.header.Set("X-Upload-Content-Type", "application/octet-stream")
	req.header.Set("X-Upload-Content-Length", strconv.FormatInt(u.size, 10))
	resp, err := u.b.do(ctx, http.MethodPost, u.b.uploadPath(), uploadQuery("resumable", replace), req)
	if err != nil {
		return noBucket(err)
	}
	resp.Body.Close()
	location := resp.Header.Get("Location")
	if !u.b.isOurs(location) {
		return errors.New("the service has uploads go to another host, which is not trusted")
	}
	u.session.begin(location)
	return nil
}

// isOurs reports whether the URL of a session is one of the service: whoever has it can write, and it gets the content.
func (b *gcs) isOurs(location string) bool {
	u, err := url.Parse(location)
	if err != nil {
		return false
	}
	own, err := url.Parse(b.endpoint)
	if err != nil || u.Scheme != own.Scheme {
		return false
	}
	return u.Host == own.Host || b.endpoint == gcsEndpoint && strings.HasSuffix(u.Host, ".googleapis.com")
}

// sessionGone reports whether an error says that there is no such session.
func sessionGone(err error) bool {
	return hasStatus(err, http.StatusNotFound) || hasStatus(err, http.StatusGone)
}

// statusResume is the answer to a part of what is to come.
const statusResume = http.StatusPermanentRedirect

// status asks how much the service has, and whether it has all.
func (u *gcsUpload) status(ctx context.Context) (kept int64, done bool, err error) {
	resp, err := u.b.client.do(ctx, request{
		method: http.MethodPut, url: u.session.url, header: http.Header{"Content-Range": {fmt.Sprintf("bytes */%d", u.size)}},
		ok: []int{statusResume, http.StatusOK, http.StatusCreated}, parse: parseGCSError, whole: maxAnswer,
	})
	if err != nil {
		return 0, false, err
	}
	resp.Body.Close()
	if resp.StatusCode != statusResume {
		return u.size, true, nil
	}
	kept, err = keptOf(resp)
	return kept, false, err
}

// keptOf returns how many bytes the service has, by an answer.
func keptOf(resp *http.Response) (int64, error) {
	s := resp.Header.Get("Range")
	if s == "" {
		return 0, nil
	}
	last, err := strconv.ParseInt(strings.TrimPrefix(s, "bytes=0-"), 10, 64)
	if err != nil || last < 0 {
		return 0, fmt.Errorf("the service says that it has %.40q of the upload", s)
	}
	return last + 1, nil
}

// send sends what the service does not have.
func (u *gcsUpload) send(ctx context.Context) error {
	if err := u.skip(); err != nil {
		return err
	}
	buf, err := u.b.pool.get(ctx, int(min(partSize, u.size-u.kept)))
	if err != nil {
		return err
	}
	defer u.b.pool.put(buf)
	for {
		part := buf[:min(int64(len(buf)), u.size-u.kept)]
		if err := u.r.fill(part); err != nil {
			return err
		}
		for at := 0; at < len(part); at += gcsUnit {
			u.sum = crc32.Update(u.sum, castagnoli, part[at:min(at+gcsUnit, len(part))])
			u.session.add(u.sum)
		}
		stored, err := u.part(ctx, u.kept, part)
		if err != nil {
			return err
		}
		if u.kept += int64(len(part)); u.kept == u.size {
			return u.check(ctx, stored)
		}
	}
}

// skip reads what the service has, and sees that it is that.
func (u *gcsUpload) skip() error {
	if u.kept == 0 {
		return nil
	}
	sum := crc32.New(castagnoli)
	if _, err := io.CopyN(sum, u.r, u.kept); err != nil {
		return err
	}
	u.sum = sum.Sum32()
	if !u.session.cut(u.kept, u.sum) {
		return errAnother
	}
	return nil
}

// part sends a part of the content, again where that helps and from where the service has it. It returns the object after the last one.
func (u *gcsUpload) part(ctx context.Context, offset int64, part []byte) (stored gcsObject, err error) {
	last := offset+int64(len(part)) == u.size
	for attempt, at := 0, 0; ; attempt++ {
		done, kept, err := u.once(ctx, offset+int64(at), part[at:], &stored)
		if err != nil {
			if again, _ := temporary(err); !again || attempt >= u.b.client.retries {
				return stored, err
			}
			if err := sleep(ctx, rand.N(min(u.b.client.backoff<<min(attempt, 6), retryCap))+1); err != nil {
				return stored, err
			}
			if kept, done, err = u.status(ctx); err != nil {
				return stored, err
			}
			if done {
				stored, err = u.b.stored(ctx, u.key)
			}
		}
		if done {
			return stored, err
		}
		before := at
		if at, err = u.within(kept, offset, len(part)); err != nil {
			return stored, err
		}
		switch {
		case at == len(part) && !last:
			return stored, nil
		case at == len(part): // it has all, and did not say that this is all
			if kept, done, err = u.status(ctx); err != nil || !done {
				return stored, errors.Join(fmt.Errorf("the service has all %d bytes, and does not finish", kept), err)
			}
			return u.b.stored(ctx, u.key)
		case at > before:
			attempt = 0
		case attempt >= u.b.client.retries:
			return stored, fmt.Errorf("%w: the service takes nothing more than %d bytes", oci.ErrUnavailable, kept)
		}
	}
}

// within returns where in a part the service is.
func (u *gcsUpload) within(kept, offset int64, n int) (int, error) {
	if kept < offset || kept > offset+int64(n) {
		return 0, fmt.Errorf("the service has %d bytes, and was sent %d to %d last", kept, offset, offset+int64(n))
	}
	return int(kept - offset), nil
}

// once sends a part a single time. It reports whether the object is complete, or how much the service has.
func (u *gcsUpload) once(ctx context.Context, offset int64, part []byte, stored *gcsObject) (done bool, kept int64, err error) {
	sent := new(sync.WaitGroup)
	defer sent.Wait()
	resp, err := u.b.client.once(ctx, request{
		method: http.MethodPut, url: u.session.url, body: part, sent: sent,
		header: http.Header{"Content-Range": {fmt.Sprintf("bytes %d-%d/%d", offset, offset+int64(len(part))-1, u.size)}},
		ok:     []int{statusResume, http.StatusOK, http.StatusCreated}, parse: parseGCSError, whole: maxAnswer,
	})
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return false, 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != statusResume {
		if err := json.NewDecoder(resp.Body).Decode(stored); err != nil {
			*stored, err = u.b.stored(ctx, u.key)
			return err == nil, 0, err
		}
		return true, 0, nil
	}
	kept, err = keptOf(resp)
	return false, kept, err
}

// stored asks for an object.
func (b *gcs) stored(ctx context.Context, key string) (o gcsObject, err error) {
	err = b.ask(ctx, http.MethodGet, b.objectPath(key), url.Values{"fields": {gcsFields}}, request{}, &o)
	return o, err
}

// check sees that the service has stored what was read, and has it removed otherwise.
func (u *gcsUpload) check(ctx context.Context, stored gcsObject) error {
	if stored.Size == strconv.FormatInt(u.size, 10) && (stored.CRC32C == "" || stored.CRC32C == gcsSum(u.sum)) {
		return nil
	}
	query := url.Values{"ifGenerationMatch": {stored.Generation}}
	resp, err := u.b.do(ctx, http.MethodDelete, u.b.objectPath(u.key), query, request{ok: []int{http.StatusOK, http.StatusNoContent}})
	if err == nil {
		resp.Body.Close()
	}
	return errors.Join(fmt.Errorf("%w: the service stored something else than it was sent (%.20q bytes, CRC-32C %.20q), which was removed", oci.ErrUnavailable, stored.Size, stored.CRC32C), err)
}

// cancel ends the session at the service.
func (u *gcsUpload) cancel(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	const statusCancelled = 499 // what the service answers
	resp, err := u.b.client.once(ctx, request{method: http.MethodDelete, url: u.session.url, ok: []int{http.StatusNoContent, http.StatusOK, statusCancelled}})
	if err == nil {
		resp.Body.Close() // else it ends by itself in a week
	}
}
