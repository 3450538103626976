package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/crypto/bcrypt"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// memoryReceiver keeps pushes in memory.
type memoryReceiver struct {
	*ocitest.Memory
	mu      sync.Mutex // guards all below
	uploads map[string][]byte
	last    int
	sources map[string]string // of tags
}

func (*memoryReceiver) Expect(oci.Digest) {}

func newReceiver() *memoryReceiver {
	return &memoryReceiver{Memory: &ocitest.Memory{}, uploads: make(map[string][]byte), sources: make(map[string]string)}
}

func (m *memoryReceiver) StartUpload() (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last++
	id := strconv.Itoa(m.last)
	m.uploads[id] = nil
	return id, nil
}

func (m *memoryReceiver) get(id string) ([]byte, error) {
	b, ok := m.uploads[id]
	if !ok {
		return nil, oci.ErrNotFound
	}
	return b, nil
}

func (m *memoryReceiver) Uploaded(id string) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, err := m.get(id)
	return int64(len(b)), err
}

func (m *memoryReceiver) AppendUpload(id string, offset int64, r io.Reader) (int64, error) {
	more, readErr := io.ReadAll(r)
	m.mu.Lock()
	defer m.mu.Unlock()
	b, err := m.get(id)
	if err != nil {
		return 0, err
	}
	if offset >= 0 && offset != int64(len(b)) {
		return int64(len(b)), oci.ErrRange
	}
	m.uploads[id] = append(b, more...)
	return int64(len(m.uploads[id])), readErr
}

func (m *memoryReceiver) FinishUpload(id string, dgst oci.Digest) error {
	m.mu.Lock()
	b, err := m.get(id)
	delete(m.uploads, id)
	m.mu.Unlock()
	if err != nil {
		return err
	}
	return m.Put(context.Background(), oci.Descriptor{Digest: dgst}, bytes.NewReader(b))
}

func (m *memoryReceiver) CancelUpload(id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, err := m.get(id)
	delete(m.uploads, id)
	return err
}

func (m *memoryReceiver) Tag(ctx context.Context, ref oci.Reference, desc oci.Descriptor) error {
	m.mu.Lock()
	m.sources[ref.String()] = desc.Source
	m.mu.Unlock()
	return m.Memory.Tag(ctx, ref, desc)
}

// A pusher sends requests to a handler.
type pusher struct {
	t testing.TB
	h http.Handler
}

func (p pusher) do(method, target, body string, header ...string) *http.Response {
	p.t.Helper()
	req := httptest.NewRequest(method, target, strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	p.h.ServeHTTP(w, req)
	return w.Result()
}

// want sends a request that must be answered with a status, and returns the answer.
func (p pusher) want(status int, method, target, body string, header ...string) *http.Response {
	p.t.Helper()
	resp := p.do(method, target, body, header...)
	if resp.StatusCode != status {
		text, _ := io.ReadAll(resp.Body)
		p.t.Errorf("%s %s: %s, want %d: %s", method, target, resp.Status, status, text)
	}
	return resp
}

func TestPush(t *testing.T) {
	store := newReceiver()
	elsewhere := &ocitest.Memory{}
	h := New(Config{Source: elsewhere, Push: store, DefaultRegistry: "site.test"})
	p := pusher{t, h}
	layer, config := string(ocitest.Bytes(1, 1000)), `{"os":"linux"}`
	digestOf := func(s string) string { return ocitest.Digest([]byte(s)).String() }

	at := p.want(202, "POST", "/v2/team/app/blobs/uploads/", "").Header.Get("Location")
	if !strings.HasPrefix(at, "/v2/team/app/blobs/uploads/") {
		t.Fatalf("Location %q", at)
	}
	if got := p.want(202, "PATCH", at, layer[:400], "Content-Range", "0-399").Header.Get("Range"); got != "0-399" {
		t.Errorf("Range %q", got)
	}
	if got := p.want(416, "PATCH", at, layer[:400], "Content-Range", "0-399").Header.Get("Range"); got != "0-399" {
		t.Errorf("Range %q after a piece that is here already", got)
	}
	p.want(400, "PATCH", at, "x", "Content-Range", "4-2")
	p.want(400, "PATCH", at, "x", "Content-Range", "many")
	if got := p.want(204, "GET", at, "").Header.Get("Range"); got != "0-399" {
		t.Errorf("Range %q", got)
	}
	p.want(400, "PUT", at, layer[400:], "Content-Range", "400-999") // without a digest
	p.want(400, "PUT", at+"?digest=sha256:xyz", "")
	if got := p.want(201, "PUT", at+"?digest="+digestOf(layer), layer[400:], "Content-Range", "400-999").Header; got.Get("Docker-Content-Digest") != digestOf(layer) || got.Get("Location") != "/v2/team/app/blobs/"+digestOf(layer) {
		t.Errorf("header %v", got)
	}
	p.want(404, "PATCH", at, "x")
	p.want(404, "GET", at, "")
	p.want(404, "DELETE", at, "")
	p.want(201, "POST", "/v2/team/app/blobs/uploads/?digest="+digestOf(config), config)
	p.want(400, "POST", "/v2/team/app/blobs/uploads/?digest="+digestOf(config), "something else")
	cancelled := p.want(202, "POST", "/v2/team/app/blobs/uploads/", "").Header.Get("Location")
	p.want(204, "DELETE", cancelled, "")
	p.want(404, "DELETE", cancelled, "")

	// Mounted: what is here, and what this node can get.
	p.want(201, "POST", "/v2/other/blobs/uploads/?mount="+digestOf(config)+"&from=team/app", "")
	base := ocitest.Bytes(7, 100)
	elsewhere.Add("", base)
	p.want(201, "POST", "/v2/other/blobs/uploads/?mount="+digestOf(string(base))+"&from=any", "")
	p.want(202, "POST", "/v2/other/blobs/uploads/?mount="+ocitest.Absent.String()+"&from=any", "")

	manifest := func(subject *v1.Descriptor, layers ...string) string {
		m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Subject: subject, Config: v1.Descriptor{Digest: ocitest.Digest([]byte(config)), Size: int64(len(config))}}
		for _, l := range layers {
			m.Layers = append(m.Layers, v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: ocitest.Digest([]byte(l)), Size: int64(len(l))})
		}
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	good := manifest(nil, layer, string(base))
	p.want(400, "PUT", "/v2/team/app/manifests/v1", manifest(nil, "not pushed"), "Content-Type", v1.MediaTypeImageManifest)
	p.want(400, "PUT", "/v2/team/app/manifests/v1", "{", "Content-Type", v1.MediaTypeImageManifest)
	p.want(400, "PUT", "/v2/team/app/manifests/v1", good, "Content-Type", "application/json")
	p.want(400, "PUT", "/v2/team/app/manifests/"+ocitest.Absent.String(), good, "Content-Type", v1.MediaTypeImageManifest)
	p.want(413, "PUT", "/v2/team/app/manifests/v1", `{"x":"`+strings.Repeat("x", oci.MaxManifest)+`"}`, "Content-Type", v1.MediaTypeImageManifest)
	if got := p.want(201, "PUT", "/v2/team/app/manifests/v1", good, "Content-Type", v1.MediaTypeImageManifest).Header.Get("Docker-Content-Digest"); got != digestOf(good) {
		t.Errorf("digest %q", got)
	}
	if got := store.sources["site.test/team/app:v1"]; got != "push" {
		t.Errorf("tagged as of %q", got)
	}
	subject := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: ocitest.Digest([]byte(good)), Size: int64(len(good))}
	sbom := manifest(&subject, layer)
	if got := p.want(201, "PUT", "/v2/team/app/manifests/"+digestOf(sbom), sbom, "Content-Type", v1.MediaTypeImageManifest).Header.Get("Oci-Subject"); got != subject.Digest.String() {
		t.Errorf("OCI-Subject %q", got)
	}
	for _, method := range []string{"DELETE", "PATCH", "POST"} {
		if got := p.want(405, method, "/v2/team/app/manifests/v1", "").Header.Get("Allow"); !strings.Contains(got, "PUT") {
			t.Errorf("Allow %q", got)
		}
	}
	p.want(400, "POST", "/v2/Team/blobs/uploads/", "")
	p.want(400, "PUT", "/v2/team/app%2Fx/manifests/v1", good)
	p.want(400, "PUT", "/v2/team/app/manifests/.v1", good)
	if resp := (pusher{t, New(Config{Source: elsewhere})}).want(405, "POST", "/v2/team/app/blobs/uploads/", ""); resp.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("Allow %q where nothing can be pushed", resp.Header.Get("Allow"))
	}
}

func TestWhoMayPush(t *testing.T) {
	hash, err := bcrypt.GenerateFromPassword([]byte("engine"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "htpasswd")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("ada:" + string(hash) + "\n# comment\n\n")
	pushers, err := NewPushers(file)
	if err != nil {
		t.Fatal(err)
	}
	source := &seeing{Memory: &ocitest.Memory{}}
	p := pusher{t, New(Config{Source: source, Push: newReceiver(), Pushers: pushers, PassAuthorization: true})}
	const start = "/v2/app/blobs/uploads/"
	token := func(status int, user, password string) string {
		t.Helper()
		req := httptest.NewRequest("GET", "/v2/token?service=pier&scope=x", nil)
		if user != "" {
			req.SetBasicAuth(user, password)
		}
		w := httptest.NewRecorder()
		p.h.ServeHTTP(w, req)
		if w.Code != status {
			t.Errorf("a token for %q: %d, want %d", user, w.Code, status)
		}
		var answer struct{ Token string }
		_ = json.Unmarshal(w.Body.Bytes(), &answer)
		return "Bearer " + answer.Token
	}
	challenge := p.want(401, "GET", "/v2/", "").Header.Get("Www-Authenticate")
	if challenge != `Bearer realm="http://example.com/v2/token",service="pier"` {
		t.Errorf("challenge %q", challenge)
	}
	if got := p.want(401, "POST", start, "").Header.Get("Www-Authenticate"); !strings.HasSuffix(got, `,scope="repository:app:pull,push"`) {
		t.Errorf("challenge %q", got)
	}
	ada, anybody := token(200, "ada", "engine"), token(200, "", "")
	token(401, "ada", "wrong")
	token(401, "eve", "engine")
	p.want(200, "GET", "/v2/", "", "Authorization", ada)
	p.want(200, "GET", "/v2/", "", "Authorization", anybody)
	p.want(202, "POST", start, "", "Authorization", ada)
	p.want(202, "POST", start, "", "Authorization", "Basic YWRhOmVuZ2luZQ==")
	for _, bad := range []string{"", anybody, ada + "x", ada[:len(ada)-2], "Basic YWRhOndyb25n", "Bearer other", "Bearer pier1.", "Bearer pier1.YQ.YQ"} {
		p.want(401, "POST", start, "", "Authorization", bad)
	}
	// What is meant for this node goes nowhere else; what is not goes where the client wants.
	for header, want := range map[string]string{ada: "", anybody: "", "Basic YWRhOmVuZ2luZQ==": "", "Basic YWRhOndyb25n": "", "Bearer other": "Bearer other", "Basic ZXZlOng=": "Basic ZXZlOng="} {
		source.auth = "none"
		p.do("GET", "/v2/app/manifests/v1", "", "Authorization", header)
		if source.auth != want {
			t.Errorf("%s is passed on as %q, want %q", header, source.auth, want)
		}
	}
	// Who is struck off cannot push, not even with a token.
	write("bob:" + string(hash))
	if err := pushers.Reload(file); err != nil {
		t.Fatal(err)
	}
	p.want(401, "POST", start, "", "Authorization", ada)
	for _, bad := range []string{"", "ada", "ada:plain", "ada:$apr1$x$y", ":" + string(hash)} {
		write(bad)
		if err := pushers.Reload(file); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	token(200, "bob", "engine") // all stays as it was
}

// seeing notes which credentials it is asked with.
type seeing struct {
	*ocitest.Memory
	auth string
}

func (s *seeing) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	s.auth = oci.Authorization(ctx)
	return s.Memory.Resolve(ctx, ref)
}

// FuzzPush sends any request: no panic, an error of the specification or success, and nothing under a digest that is not its own.
func FuzzPush(f *testing.F) {
	for _, seed := range [][4]string{
		{"POST", "/v2/app/blobs/uploads/", "", ""}, {"PATCH", "/v2/app/blobs/uploads/1", "0-2", "abc"}, {"PUT", "/v2/app/blobs/uploads/1?digest=sha256:x", "", "abc"},
		{"POST", "/v2/app/blobs/uploads/?mount=" + ocitest.Absent.String(), "", ""}, {"PUT", "/v2/app/manifests/v1", "", `{"schemaVersion":2,"config":{}}`},
		{"PUT", "/v2/app/manifests/" + ocitest.Absent.String(), "bytes 0-1/2", "{}"}, {"DELETE", "/v2/a/b/c/blobs/uploads/1?ns=x:5", "", ""}, {"GET", "/v2/blobs/uploads/blobs/uploads/", "", ""},
	} {
		f.Add(seed[0], seed[1], seed[2], seed[3])
	}
	f.Fuzz(func(t *testing.T, method, target, contentRange, body string) {
		req, err := http.NewRequest(method, "http://node"+target, strings.NewReader(body))
		if err != nil || len(body) > 1<<16 {
			return
		}
		req.Header.Set("Content-Range", contentRange)
		req.Header.Set("Content-Type", v1.MediaTypeImageManifest)
		store := newReceiver()
		_, _ = store.StartUpload()
		w := httptest.NewRecorder()
		New(Config{Source: &ocitest.Memory{}, Push: store}).ServeHTTP(w, req)
		if w.Code >= 500 {
			t.Errorf("%s %s: %d: %s", method, target, w.Code, w.Body)
		}
		if w.Code == http.StatusCreated {
			d, err := oci.ParseDigest(w.Header().Get("Docker-Content-Digest"))
			if err != nil || ocitest.Digest([]byte(body)) != d && d != ocitest.Digest(nil) {
				t.Errorf("%s %s: %q was kept as %s, %v", method, target, body, d, err)
			}
		}
		_ = fmt.Sprint(w.Header())
	})
}

// FuzzPushers reads files of passwords, and credentials that strangers send: none of them is somebody's.
func FuzzPushers(f *testing.F) {
	hash, err := bcrypt.GenerateFromPassword([]byte("engine"), bcrypt.MinCost)
	if err != nil {
		f.Fatal(err)
	}
	known := &Pushers{turn: make(chan struct{}, 1), queue: make(chan struct{}, 1), users: map[string][]byte{"ada": hash}, waiting: make(map[string]int)}
	other := &Pushers{key: [32]byte{1}}
	for _, seed := range []string{"", "ada", "ada:", "ada:$2y$05$", "# ada", "Bearer pier1.", "Bearer " + other.token("ada", time.Now()), "Basic YWRhOng="} {
		f.Add([]byte(seed), seed)
	}
	f.Fuzz(func(t *testing.T, file []byte, authorization string) {
		name := filepath.Join(t.TempDir(), "htpasswd")
		if err := os.WriteFile(name, file, 0o600); err != nil {
			t.Fatal(err)
		}
		if p, err := NewPushers(name); err == nil && len(p.users) == 0 {
			t.Errorf("nobody is in %q, and that is fine", file)
		}
		r := httptest.NewRequest(http.MethodGet, "/v2/", nil)
		r.Header.Set("Authorization", authorization)
		if who, _, err := known.who(r); err == nil && who != "" {
			t.Errorf("%q is %s", authorization, who)
		}
	})
}

// A body that does not come, and one that nobody reads, end as any other wait does.
func TestPushesThatStallEnd(t *testing.T) {
	store := newReceiver()
	h := newHandler(Config{Source: store, Push: store})
	h.stall = 200 * time.Millisecond
	server := httptest.NewServer(h)
	defer server.Close()
	id, err := store.StartUpload()
	if err != nil {
		t.Fatal(err)
	}
	for _, request := range []string{
		"POST /v2/app/blobs/uploads/", "PATCH /v2/app/blobs/uploads/" + id, "PATCH /v2/app/blobs/uploads/none",
		"PUT /v2/app/blobs/uploads/none?digest=none", "PUT /v2/app/manifests/v1",
	} {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: pier\r\nContent-Length: 1000\r\n\r\nabc", request)
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection stays", request)
		}
		conn.Close()
	}
}

// Whoever guesses passwords does not keep others from being let in, nor learns from a token of before what holds now.
func TestGuessesAndChanges(t *testing.T) {
	hash := func(password string) []byte {
		b, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	p := &Pushers{turn: make(chan struct{}, 1), queue: make(chan struct{}, maxChecks), waiting: make(map[string]int), known: make(map[[32]byte]time.Time)}
	p.users = map[string][]byte{"ada": hash("engine"), "1": hash("1abcdefghijx")}
	p.turn <- struct{}{} // nobody gets on
	var guesses sync.WaitGroup
	for range maxChecks {
		guesses.Go(func() { _ = p.right("192.0.2.1:1234", "ada", "guess") })
	}
	for end := time.Now().Add(5 * time.Second); len(p.queue) < maxChecksFrom && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if err := p.right("192.0.2.1:1", "ada", "engine"); !errors.Is(err, errBusy) {
		t.Errorf("one more from there: %v", err)
	}
	let := make(chan error, 1)
	go func() { let <- p.right("192.0.2.2:1", "ada", "engine") }()
	<-p.turn
	if err := <-let; err != nil {
		t.Errorf("from elsewhere: %v", err)
	}
	guesses.Wait()
	if len(p.waiting) > 0 || len(p.queue) > 0 {
		t.Errorf("%d addresses and %d places are left", len(p.waiting), len(p.queue))
	}
	if err := p.right("192.0.2.2:1", "1", "1abcdefghijx"); err != nil {
		t.Error(err)
	}
	if err := p.right("192.0.2.2:1", "11abcdefghi", "jx"); !errors.Is(err, errPusher) {
		t.Errorf("another split of the same text: %v", err)
	}
	token := p.token("ada", time.Now())
	if name, ok := p.holder(token, time.Now()); !ok || name != "ada" {
		t.Errorf("%q, %v", name, ok)
	}
	p.users["ada"] = hash("other")
	if _, ok := p.holder(token, time.Now()); ok {
		t.Error("a token outlives the password")
	}
}

// Manifests that lie of their parts are refused, and an index without some only where that is meant.
func TestManifestsThatLie(t *testing.T) {
	store := newReceiver()
	b := ocitest.Bytes(1, 100)
	store.Add("", b)
	blob := func(size int64) string {
		return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"digest":%q,"size":%d},"layers":[]}`, v1.MediaTypeImageManifest, ocitest.Digest(b), size)
	}
	subject := strings.TrimSuffix(blob(100), "}") + `,"subject":{"digest":"../../x","size":1}}`
	index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":7}]}`, v1.MediaTypeImageIndex, v1.MediaTypeImageManifest, ocitest.Absent)
	whole, sparse := pusher{t, New(Config{Source: store, Push: store})}, pusher{t, New(Config{Source: store, Push: store, PushSparse: true})}
	for _, lie := range []string{blob(-1), blob(99), subject} {
		whole.want(400, "PUT", "/v2/app/manifests/v1", lie, "Content-Type", v1.MediaTypeImageManifest)
	}
	whole.want(201, "PUT", "/v2/app/manifests/v1", blob(100), "Content-Type", v1.MediaTypeImageManifest)
	whole.want(400, "PUT", "/v2/app/manifests/v1", index, "Content-Type", v1.MediaTypeImageIndex)
	sparse.want(201, "PUT", "/v2/app/manifests/v1", index, "Content-Type", v1.MediaTypeImageIndex)
	id, err := store.StartUpload()
	if err != nil {
		t.Fatal(err)
	}
	whole.want(400, "PATCH", "/v2/app/blobs/uploads/"+id, "abc", "Content-Range", "0-9")
	before := len(store.uploads)
	whole.want(400, "POST", "/v2/app/blobs/uploads/?digest="+ocitest.Absent.String(), "other")
	whole.want(400, "POST", "/v2/app/blobs/uploads/?digest=none", "other")
	if len(store.uploads) != before {
		t.Errorf("%d uploads are left of requests whose clients never knew of them", len(store.uploads)-before)
	}
}
