package bucket

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/semaphore"

	"pier/internal/oci"
)

// A multi is a server of one object, that is sent in parts.
type multi struct {
	before func(w http.ResponseWriter, r *http.Request) bool // answers instead, if it likes to

	mu       sync.Mutex
	uploads  map[string]map[int][]byte // guarded by mu, as all that follows
	object   []byte
	tag      string
	received int // bytes of parts
	begun    int
	wrong    string // what the parts' ETags are instead
}

func (m *multi) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if m.before != nil && m.before(w, r) {
		return
	}
	body, _ := io.ReadAll(r.Body)
	m.mu.Lock()
	defer m.mu.Unlock()
	query := r.URL.Query()
	id := query.Get("uploadId")
	parts := m.uploads[id]
	switch {
	case query.Has("uploads") && r.Method == http.MethodPost:
		m.begun++
		m.uploads[strconv.Itoa(m.begun)] = map[int][]byte{}
		fmt.Fprintf(w, "<InitiateMultipartUploadResult><UploadId>%d</UploadId></InitiateMultipartUploadResult>", m.begun)
	case query.Has("uploads"):
		fmt.Fprint(w, "<ListMultipartUploadsResult>")
		for id := range m.uploads {
			fmt.Fprintf(w, "<Upload><Key>pre/key</Key><UploadId>%s</UploadId><Initiated>2026-01-02T03:04:05Z</Initiated></Upload>", id)
		}
		fmt.Fprint(w, "</ListMultipartUploadsResult>")
	case id != "" && parts == nil:
		refuse(w, http.StatusNotFound, "NoSuchUpload", "")
	case r.Method == http.MethodGet && id != "":
		fmt.Fprint(w, "<ListPartsResult>")
		for n, part := range parts {
			fmt.Fprintf(w, "<Part><PartNumber>%d</PartNumber><Size>%d</Size><ETag>&#34;%s&#34;</ETag></Part>", n, len(part), m.etag(part))
		}
		fmt.Fprint(w, "</ListPartsResult>")
	case r.Method == http.MethodPut && id != "":
		n, _ := strconv.Atoi(query.Get("partNumber"))
		parts[n] = body
		m.received += len(body)
		w.Header().Set("Etag", `"`+m.etag(body)+`"`)
	case r.Method == http.MethodPost:
		m.complete(parts)
		delete(m.uploads, id)
		fmt.Fprint(w, "  <CompleteMultipartUploadResult/>")
	case r.Method == http.MethodDelete:
		delete(m.uploads, id)
		w.WriteHeader(http.StatusNoContent)
	case m.object == nil:
		w.WriteHeader(http.StatusNotFound)
	default:
		w.Header().Set("Etag", m.tag)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(m.object))
	}
}

func (m *multi) etag(part []byte) string {
	sum := md5.Sum(part)
	return m.wrong + hex.EncodeToString(sum[:])
}

func (m *multi) complete(parts map[int][]byte) {
	var sums []byte
	m.object = []byte{}
	for n := range len(parts) {
		sum := md5.Sum(parts[n+1])
		sums = append(sums, sum[:]...)
		m.object = append(m.object, parts[n+1]...)
	}
	sum := md5.Sum(sums)
	m.tag = fmt.Sprintf(`"%s-%d"`, hex.EncodeToString(sum[:]), len(parts))
}

func servedParts(t *testing.T) (*s3, *multi) {
	t.Helper()
	m := &multi{uploads: map[string]map[int][]byte{}}
	b, _ := served(t, m.ServeHTTP)
	return b, m
}

// TestS3Resume counts the bytes that are sent.
func TestS3Resume(t *testing.T) {
	data := content(1, 4*partSize+9)
	for _, wrong := range []string{"", "kms-"} {
		b, m := servedParts(t)
		m.wrong = wrong
		cut := errors.New("cut")
		if err := b.Put(t.Context(), "key", int64(len(data)), failing(data[:3*partSize], cut), false); !errors.Is(err, cut) {
			t.Fatalf("Put = %v", err)
		}
		before := m.received
		put(t, b, "key", data)
		want := partSize + 9
		if wrong != "" { // tags that do not say what is in the parts
			want = len(data)
		}
		if before != 3*partSize || m.received-before != want || m.begun != 1 || !bytes.Equal(m.object, data) {
			t.Errorf("%d bytes were sent, then %d, in %d uploads", before, m.received-before, m.begun)
		}
	}
	b, m := servedParts(t) // what is wrong is not kept
	for _, r := range []io.Reader{failing(data, oci.ErrDigestMismatch), bytes.NewReader(data[1:]), bytes.NewReader(append(data, 1))} {
		if err := b.Put(t.Context(), "key", int64(len(data)), r, false); err == nil || len(m.uploads) != 0 || m.object != nil {
			t.Errorf("Put = %v, and left %d uploads", err, len(m.uploads))
		}
	}
}

// TestS3Complete has the service fail, and cut answers, when an upload is completed.
func TestS3Complete(t *testing.T) {
	data := content(1, partSize+9)
	completes := 0
	isComplete := func(r *http.Request) bool { return r.Method == http.MethodPost && r.URL.Query().Has("uploadId") }
	for name, before := range map[string]func(m *multi, w http.ResponseWriter, r *http.Request) bool{
		"error in a success": func(_ *multi, w http.ResponseWriter, _ *http.Request) bool {
			if completes == 1 {
				fmt.Fprint(w, "  \n<Error><Code>InternalError</Code></Error>") // after what keeps the connection open
			}
			return completes == 1
		},
		"answer cut": func(m *multi, w http.ResponseWriter, r *http.Request) bool {
			if completes == 1 {
				m.before = nil
				m.ServeHTTP(httptest.NewRecorder(), r)
				w.Header().Set("Content-Length", "1000")
				fmt.Fprint(w, "<Compl")
			}
			return completes == 1
		},
		"there already, by the attempt before": func(m *multi, w http.ResponseWriter, r *http.Request) bool {
			m.before = nil
			m.ServeHTTP(httptest.NewRecorder(), r)
			refuse(w, http.StatusPreconditionFailed, "PreconditionFailed", "")
			return true
		},
		"conditions are not known": func(_ *multi, w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("If-None-Match") != "" {
				refuse(w, http.StatusNotImplemented, "NotImplemented", "")
				return true
			}
			return false
		},
		"conflict": func(_ *multi, w http.ResponseWriter, _ *http.Request) bool {
			if completes < 3 {
				refuse(w, http.StatusConflict, "ConditionalRequestConflict", "")
			}
			return completes < 3
		},
		"aborted": func(m *multi, w http.ResponseWriter, _ *http.Request) bool {
			if completes < 3 {
				m.mu.Lock()
				clear(m.uploads)
				m.mu.Unlock()
			}
			return false
		},
	} {
		b, m := servedParts(t)
		completes = 0
		m.before = func(w http.ResponseWriter, r *http.Request) bool {
			if !isComplete(r) {
				return false
			}
			completes++
			return before(m, w, r)
		}
		err := b.Put(t.Context(), "key", int64(len(data)), bytes.NewReader(data), false)
		if err != nil || !bytes.Equal(m.object, data) || len(m.uploads) != 0 {
			t.Errorf("%s: Put = %v, %d bytes are there, %d uploads", name, err, len(m.object), len(m.uploads))
		}
	}
	for name, test := range map[string]struct {
		status int
		code   string
		want   error
	}{
		"exists":        {http.StatusPreconditionFailed, "PreconditionFailed", ErrExists},
		"exists in 200": {http.StatusOK, "PreconditionFailed", ErrExists},
		"denied":        {http.StatusOK, "AccessDenied", oci.ErrDenied},
		"gone":          {http.StatusNotFound, "NoSuchUpload", oci.ErrUnavailable},
		"mixed":         {http.StatusBadRequest, "InvalidPart", oci.ErrUnavailable},
	} {
		b, m := servedParts(t)
		m.before = func(w http.ResponseWriter, r *http.Request) bool {
			if isComplete(r) {
				refuse(w, test.status, test.code, "")
			}
			return isComplete(r)
		}
		err := b.Put(t.Context(), "key", int64(len(data)), struct{ io.Reader }{bytes.NewReader(data)}, false)
		if !errors.Is(err, test.want) || (len(m.uploads) == 0) != errors.Is(test.want, ErrExists) {
			t.Errorf("%s: Put = %v with %d uploads left, want %v", name, err, len(m.uploads), test.want)
		}
	}
}

// TestS3Conditions puts small objects to services that answer conditions in their own way.
func TestS3Conditions(t *testing.T) {
	var asked []string
	there := false
	handle := func(answer func(w http.ResponseWriter, n int) bool) http.HandlerFunc {
		asked, there = nil, false
		return func(w http.ResponseWriter, r *http.Request) {
			asked = append(asked, strings.TrimSpace(r.Method+" "+r.Header.Get("If-None-Match")))
			switch {
			case r.Header.Get("If-None-Match") != "" && answer(w, len(asked)):
			case r.Method == http.MethodHead && !there:
				w.WriteHeader(http.StatusNotFound)
			case r.Method == http.MethodHead:
				w.Header().Set("Content-Length", "1")
			default:
				there = true
			}
		}
	}
	b, _ := served(t, handle(func(w http.ResponseWriter, _ int) bool {
		refuse(w, http.StatusNotImplemented, "NotImplemented", "")
		return true
	}))
	put(t, b, "key", []byte("x"))
	if err := b.Put(t.Context(), "key", 1, strings.NewReader("x"), false); !errors.Is(err, ErrExists) {
		t.Errorf("second Put = %v, want ErrExists", err)
	}
	if want := []string{"PUT *", "HEAD", "PUT", "HEAD"}; !slices.Equal(asked, want) {
		t.Errorf("asked %q, want %q", asked, want)
	}
	b, _ = served(t, handle(func(w http.ResponseWriter, n int) bool {
		if n < 3 {
			refuse(w, http.StatusConflict, "ConditionalRequestConflict", "")
		}
		return n < 3
	}))
	put(t, b, "key", []byte("x"))
	b, _ = served(t, handle(func(w http.ResponseWriter, _ int) bool {
		refuse(w, http.StatusConflict, "ConditionalRequestConflict", "")
		there = true
		return true
	}))
	if err := b.Put(t.Context(), "key", 1, strings.NewReader("x"), false); !errors.Is(err, ErrExists) || len(asked) != 5 {
		t.Errorf("Put = %v after %q, want ErrExists", err, asked)
	}
}

// TestS3Early has the service answer before it has read what is sent. The memory must not be used again while it is being sent:
// the race detector sees to that.
func TestS3Early(t *testing.T) {
	b, _ := served(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("If-None-Match") != "" {
			refuse(w, http.StatusPreconditionFailed, "PreconditionFailed", "")
			return
		}
		body, err := io.ReadAll(r.Body)
		if err == nil && !bytes.Equal(body, content(2, len(body))) {
			t.Error("others came")
		}
	})
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for range 5 {
				if i%2 == 0 {
					if err := b.Put(t.Context(), "key", partSize, bytes.NewReader(content(1, partSize)), false); err == nil {
						t.Error("Put succeeded")
					}
				} else if err := b.Put(t.Context(), "key", partSize, bytes.NewReader(content(2, partSize)), true); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if b.pool.lent != 0 || b.pool.kept > memory {
		t.Errorf("%d bytes are lent, and %d kept", b.pool.lent, b.pool.kept)
	}
}

// TestS3Checksum has a service that knows the header of checksums, and one that does not.
func TestS3Checksum(t *testing.T) {
	for _, known := range []bool{true, false} {
		var sums []string
		m := &multi{uploads: map[string]map[int][]byte{}}
		m.before = func(w http.ResponseWriter, r *http.Request) bool {
			sum := r.Header.Get(checksumHeader) + r.Header.Get("X-Amz-Checksum-Algorithm")
			if !known && sum != "" {
				refuse(w, http.StatusBadRequest, "InvalidArgument", "")
				return true
			}
			if r.Method == http.MethodPut {
				m.mu.Lock()
				defer m.mu.Unlock()
				sums = append(sums, sum+" "+r.Header.Get("X-Amz-Content-Sha256")[:8])
			}
			return false
		}
		alone(t)
		server := httptest.NewTLSServer(m)
		defer server.Close()
		file := filepath.Join(t.TempDir(), "ca")
		cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
		if err := os.WriteFile(file, cert, 0o600); err != nil {
			t.Fatal(err)
		}
		t.Setenv("AWS_CA_BUNDLE", file)
		data := make([]byte, partSize+9)
		copy(data[partSize:], "123456789")
		put(t, openS3Test(t, "s3://bucket/pre?endpoint="+server.URL), "key", data)
		slices.Sort(sums)
		want := []string{"4waSgw== UNSIGNED", crc(data[:partSize]) + " UNSIGNED"} // the check value of CRC-32C, e3069283
		if !known {
			want = []string{" 15e2b0d3", " 2daeb1f3"}
		}
		for i := range want {
			want[i] = want[i][:strings.IndexByte(want[i], ' ')+9]
		}
		slices.Sort(want)
		if !slices.Equal(sums, want) || !bytes.Equal(m.object, data) {
			t.Errorf("checksums %q, want %q", sums, want)
		}
	}
}

func TestPartSizeOf(t *testing.T) {
	for size, want := range map[int64]int64{
		partSize + 1: partSize, partSize * fewParts: partSize, partSize*fewParts + 1: 9 << 20, 2 * partSize * fewParts: 2 * partSize, 2 * partSize * maxParts: 2 * partSize,
		2*partSize*maxParts + 1: 17 << 20, (32 << 20) * maxParts: 32 << 20, (32<<20)*maxParts + 1: 0,
	} {
		part, err := partSizeOf(size)
		if part != want || (err != nil) != (want == 0) || want > 0 && (size+part-1)/part > maxParts {
			t.Errorf("%d bytes have parts of %d, %v, want %d", size, part, err, want)
		}
	}
}

// TestPool counts what is lent and kept, and sees that it is used again.
func TestPool(t *testing.T) {
	p := &pool{budget: semaphore.NewWeighted(memory)}
	used := map[*byte]int{}
	for range 10 {
		var lent [][]byte
		for _, n := range []int{0, 1, smallest + 1, partSize, partSize/2 + 1} {
			b, err := p.get(t.Context(), n)
			if err != nil || len(b) != n {
				t.Fatal(len(b), err)
			}
			lent = append(lent, b)
			used[&b[:1][0]]++
		}
		for _, b := range lent {
			p.put(b)
		}
	}
	if len(used) != 5 {
		t.Errorf("%d buffers were made, want 5", len(used))
	}
	for range 2 {
		b, err := p.get(t.Context(), 32<<20) // more than there may be
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		if _, err := p.get(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("get = %v beside one that has it all", err)
		}
		cancel()
		p.put(b)
	}
	if p.lent != 0 || p.kept > 32<<20 {
		t.Errorf("%d bytes are lent, and %d kept", p.lent, p.kept)
	}
}
