package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"github.com/VictoriaMetrics/metrics"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// content is what the servers of these tests hold: docker.io/library/app with an image "v1" of one layer, an index
// "Multi" of an image for this platform and one for another, and an artifact that refers to the image.
type content struct {
	ocitest.Memory
	layer                     []byte
	blob                      oci.Digest
	image, index, here, there oci.Descriptor
	artifact                  oci.Descriptor
}

var app = oci.Reference{Registry: "docker.io", Repository: "library/app"}

func newContent() *content {
	c := &content{layer: ocitest.Bytes(1, 300_000)}
	c.blob = ocitest.Digest(c.layer)
	tagged := func(tag string) oci.Reference {
		ref := app
		ref.Tag = tag
		return ref
	}
	c.image = c.Image(tagged("v1"), c.layer)
	c.here = c.Image(app, []byte("here"))
	c.there = c.Image(app, []byte("there"))
	child := func(d oci.Descriptor, arch string) v1.Descriptor {
		return v1.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Platform: &v1.Platform{OS: "linux", Architecture: arch}}
	}
	c.index = c.Manifest(tagged("Multi"), v1.MediaTypeImageIndex, v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageIndex,
		Manifests: []v1.Descriptor{child(c.there, "elsewhere"), child(c.here, runtime.GOARCH)},
	})
	c.Manifest(tagged("foreign"), v1.MediaTypeImageIndex, v1.Index{
		MediaType: v1.MediaTypeImageIndex,
		Manifests: []v1.Descriptor{child(c.there, "elsewhere")},
	})
	c.artifact = c.Manifest(app, v1.MediaTypeImageManifest, v1.Manifest{
		MediaType: v1.MediaTypeImageManifest, ArtifactType: "application/vnd.test.signature",
		Config:  v1.DescriptorEmptyJSON,
		Subject: &v1.Descriptor{MediaType: c.image.MediaType, Digest: c.image.Digest, Size: c.image.Size},
	})
	return c
}

// serve starts a server and returns its URL.
func serve(t testing.TB, h http.Handler) string {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.Start()
	t.Cleanup(srv.Close)
	return srv.URL
}

// reply is an answer, read to its end.
type reply struct {
	*http.Response
	body []byte
	err  error // of reading the body
}

// ask sends a request; headers are names and values in turn.
func ask(t testing.TB, method, url string, headers ...string) reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req) // follows no redirect
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return reply{resp, b, err}
}

// code returns the code of an OCI error document.
func (r reply) code(t testing.TB) string {
	t.Helper()
	var doc struct {
		Errors []struct{ Code, Message, Detail string }
	}
	if err := json.Unmarshal(r.body, &doc); err != nil || len(doc.Errors) != 1 || doc.Errors[0].Message == "" {
		t.Fatalf("no error document: %q, %v", r.body, err)
	}
	if got := r.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("error document of type %q", got)
	}
	return doc.Errors[0].Code
}

func TestBase(t *testing.T) {
	url := serve(t, New(Config{Source: newContent()}))
	for _, path := range []string{"/v2/", "/v2"} {
		for _, method := range []string{"GET", "HEAD"} {
			r := ask(t, method, url+path)
			if r.StatusCode != 200 || r.Header.Get("Docker-Distribution-Api-Version") != "registry/2.0" {
				t.Errorf("%s %s: %d, %v", method, path, r.StatusCode, r.Header)
			}
			if want := "{}"; method == "GET" && string(r.body) != want {
				t.Errorf("%s: body %q, want %q", path, r.body, want)
			}
		}
	}
}

func TestMethods(t *testing.T) {
	url := serve(t, New(Config{Source: newContent()}))
	for _, path := range []string{"/v2/", "/v2/app/blobs/uploads/", "/v2/app/manifests/v1", "/other"} {
		for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WHATEVER"} {
			r := ask(t, method, url+path)
			if r.StatusCode != 405 || r.Header.Get("Allow") != "GET, HEAD" || r.code(t) != "UNSUPPORTED" {
				t.Errorf("%s %s: %d, Allow %q, %s", method, path, r.StatusCode, r.Header.Get("Allow"), r.body)
			}
		}
	}
}

// recorder is a Source that notes what it is asked for, and has nothing.
type recorder struct {
	ref           oci.Reference
	authorization string
}

func (s *recorder) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	s.ref, s.authorization = ref, oci.Authorization(ctx)
	return oci.Descriptor{}, oci.ErrNotFound
}

func (s *recorder) Open(ctx context.Context, ref oci.Reference, _, _ int64) (io.ReadCloser, oci.Descriptor, error) {
	_, err := s.Resolve(ctx, ref)
	return nil, oci.Descriptor{}, err
}

func TestUpstreamIsNamed(t *testing.T) {
	src := &recorder{}
	h := New(Config{Source: src, DefaultRegistry: "default.test"})
	for _, c := range []struct{ path, header, want string }{
		{"/v2/app/manifests/v1", "", "default.test/app:v1"},
		{"/v2/a/b/c/d/manifests/V1", "", "default.test/a/b/c/d:V1"},
		{"/v2/registry.test/app/manifests/v1", "", "registry.test/app:v1"},
		{"/v2/registry.test:5000/a/b/manifests/v1", "", "registry.test:5000/a/b:v1"},
		{"/v2/localhost/app/manifests/v1", "", "localhost/app:v1"},
		{"/v2/localhost/manifests/v1", "", "default.test/localhost:v1"},
		{"/v2/app/manifests/v1?ns=docker.io", "", "docker.io/library/app:v1"},
		{"/v2/app/manifests/v1?ns=Index.Docker.IO", "", "docker.io/library/app:v1"},
		{"/v2/library/app/manifests/v1?ns=docker.io", "", "docker.io/library/app:v1"},
		{"/v2/some.dir/app/manifests/v1?ns=registry.test", "", "registry.test/some.dir/app:v1"},
		{"/v2/app/manifests/v1", "header.test", "header.test/app:v1"},
		{"/v2/app/manifests/v1?ns=", "header.test", "header.test/app:v1"},
		{"/v2/app/manifests/v1?ns=query.test", "header.test", "query.test/app:v1"},
		{"/v2/manifests/blobs/tags/manifests/list", "", "default.test/manifests/blobs/tags:list"},
		{"/v2/blobs/blobs/blobs/" + string(ocitest.Absent), "", "default.test/blobs/blobs@" + string(ocitest.Absent)},
		{"/v2/app/blobs/" + strings.Replace(string(ocitest.Absent), ":", "%3A", 1), "", "default.test/app@" + string(ocitest.Absent)},
	} {
		src.ref = oci.Reference{}
		r := httptest.NewRequest("GET", c.path, nil)
		r.Header.Set("X-Registry", c.header)
		h.ServeHTTP(httptest.NewRecorder(), r)
		if got := src.ref.String(); got != c.want {
			t.Errorf("%s, X-Registry %q: asked for %s, want %s", c.path, c.header, got, c.want)
		}
	}
}

func TestBadNames(t *testing.T) {
	url := serve(t, New(Config{Source: newContent()}))
	absent := string(ocitest.Absent)
	for _, c := range []struct {
		path   string
		status int
		code   string
	}{
		{"/v2//app/manifests/v1", 400, "NAME_INVALID"},
		{"/v2/a//b/manifests/v1", 400, "NAME_INVALID"},
		{"/v2//manifests/v1", 400, "NAME_INVALID"},
		{"/v2/manifests/v1", 400, "NAME_INVALID"},
		{"/v2/../app/manifests/v1", 400, "NAME_INVALID"},
		{"/v2/a/../../app/manifests/v1", 400, "NAME_INVALID"},
		{"/v2/./manifests/v1", 400, "NAME_INVALID"},
		{"/v2/App/manifests/v1", 400, "NAME_INVALID"},
		{"/v2/a%2Fb/manifests/v1", 400, "NAME_INVALID"},
		{"/v2/app/manifests%2fv1", 400, "NAME_INVALID"},
		{"/v2/a%00b/manifests/v1", 400, "NAME_INVALID"},
		{"/v2/a%0d%0aX-Evil:%201/manifests/v1", 400, "NAME_INVALID"},
		{"/v2/" + strings.Repeat("a", 256) + "/manifests/v1", 400, "NAME_INVALID"},
		{"/v2/" + strings.Repeat("a/", 20_000) + "manifests/v1", 400, "NAME_INVALID"},
		{"/v2/app/manifests/v1?ns=http://x", 400, "NAME_INVALID"},
		{"/v2/app/manifests/v1?ns=a%0d%0ab", 400, "NAME_INVALID"},
		{"/v2/app/tags/list?ns=-", 400, "NAME_INVALID"},
		{"/v2/app/manifests/.INVALID_MANIFEST_NAME", 404, "MANIFEST_UNKNOWN"},
		{"/v2/app/manifests/" + strings.Repeat("v", 129), 404, "MANIFEST_UNKNOWN"},
		{"/v2/app/manifests/", 404, "MANIFEST_UNKNOWN"},
		{"/v2/app/manifests/sha256:123", 400, "DIGEST_INVALID"},
		{"/v2/app/manifests/md5:d41d8cd98f00b204e9800998ecf8427e", 400, "DIGEST_INVALID"},
		{"/v2/app/blobs/latest", 400, "DIGEST_INVALID"},
		{"/v2/app/blobs/", 400, "DIGEST_INVALID"},
		{"/v2/app/blobs/" + strings.ToUpper(absent), 400, "DIGEST_INVALID"},
		{"/v2/app/referrers/x", 400, "DIGEST_INVALID"},
		{"/v2/app/manifests/nothing", 404, "MANIFEST_UNKNOWN"},
		{"/v2/app/manifests/" + absent, 404, "MANIFEST_UNKNOWN"},
		{"/v2/app/blobs/" + absent, 404, "BLOB_UNKNOWN"},
		{"/v2/nobody/tags/list", 404, "NAME_UNKNOWN"},
		{"/v2/app/tags/other", 404, "UNSUPPORTED"},
		{"/v2/_catalog", 404, "UNSUPPORTED"},
		{"/v2/app", 404, "UNSUPPORTED"},
		{"/", 404, "UNSUPPORTED"},
		{"/v1/x", 404, "UNSUPPORTED"},
		{"/api/v1/", 404, "UNSUPPORTED"},
		{"/api/v1/node", 404, "UNSUPPORTED"},
		{"/api/v1/digests/x", 400, "DIGEST_INVALID"},
		{"/api/v1/digests/" + absent, 404, "BLOB_UNKNOWN"},
	} {
		r := ask(t, "GET", url+c.path)
		if code := r.code(t); r.StatusCode != c.status || code != c.code {
			t.Errorf("GET %.60s: %d %s, want %d %s", c.path, r.StatusCode, code, c.status, c.code)
		}
		if r := ask(t, "HEAD", url+c.path); r.StatusCode != c.status || len(r.body) != 0 {
			t.Errorf("HEAD %.60s: %d with %d bytes, want %d", c.path, r.StatusCode, len(r.body), c.status)
		}
	}
}

func TestAuthorizationIsPassedOnlyWhereAsked(t *testing.T) {
	for _, pass := range []bool{true, false} {
		src := &recorder{}
		url := serve(t, New(Config{Source: src, PassAuthorization: pass}))
		for _, path := range []string{"/v2/app/manifests/v1", "/v2/app/blobs/" + string(ocitest.Absent)} {
			ask(t, "GET", url+path, "Authorization", "Basic c2VjcmV0")
			if got := src.authorization != ""; got != pass {
				t.Errorf("PassAuthorization %t, %s: passed %t", pass, path, got)
			}
		}
	}
}

func TestAPI(t *testing.T) {
	c := newContent()
	local := &ocitest.Memory{}
	local.Add("", []byte("only here"))
	url := serve(t, New(Config{Source: c, Local: local, API: map[string]func(context.Context, string) (any, error){
		"node": func(context.Context, string) (any, error) { return map[string]int{"answer": 42}, nil },
		"echo": func(_ context.Context, arg string) (any, error) { return arg, nil },
		"none": func(context.Context, string) (any, error) { return nil, oci.ErrNotFound },
	}}))

	dgst := string(ocitest.Digest([]byte("only here")))
	r := ask(t, "GET", url+"/api/v1/digests/"+dgst)
	if want := `{"digest":"` + dgst + `","size":9,"complete":true,"available":9}`; string(r.body) != want {
		t.Errorf("digests: got %s, want %s", r.body, want)
	}
	if r := ask(t, "GET", url+"/api/v1/digests/"+string(c.blob)); r.StatusCode != 404 {
		t.Errorf("what only Source has: %d, want 404", r.StatusCode)
	}
	if r := ask(t, "GET", url+"/api/v1/node"); string(r.body) != `{"answer":42}` {
		t.Errorf("node: got %s", r.body)
	}
	for _, path := range []string{"/registry.test:5000%2Fa%2Fb:v1", "/registry.test:5000/a/b:v1", "/registry.test:5000/a/b:v%31?x=y"} {
		if r := ask(t, "GET", url+"/api/v1/echo"+path); string(r.body) != `"registry.test:5000/a/b:v1"` {
			t.Errorf("echo %s: got %s", path, r.body)
		}
	}
	if r := ask(t, "GET", url+"/api/v1/none"); r.StatusCode != 404 || r.code(t) != "NAME_UNKNOWN" {
		t.Errorf("none: got %d %s", r.StatusCode, r.body)
	}
	if r := ask(t, "GET", url+"/api/v1/other"); r.StatusCode != 404 || r.code(t) != "UNSUPPORTED" {
		t.Errorf("other: got %d %s", r.StatusCode, r.body)
	}

	url = serve(t, New(Config{Source: &fixed{desc: oci.Descriptor{Size: 100, Missing: 70}}}))
	r = ask(t, "GET", url+"/api/v1/digests/"+dgst)
	if want := `{"digest":"` + dgst + `","size":100,"complete":false,"available":30}`; string(r.body) != want {
		t.Errorf("digests in flight: got %s, want %s", r.body, want)
	}
}

func TestLogAndMetrics(t *testing.T) {
	var out bytes.Buffer
	set := metrics.NewSet()
	c := newContent()
	c.Name = "cache"
	h := New(Config{Source: c, Door: "node", Metrics: set, Log: slog.New(slog.NewJSONHandler(&out, nil))})

	r := httptest.NewRequest("GET", "/v2/app/blobs/"+string(c.blob)+"?ns=docker.io&token=secret", nil)
	r.Header.Set("Authorization", "Basic c2VjcmV0")
	h.ServeHTTP(httptest.NewRecorder(), r)
	r = httptest.NewRequest("GET", "/v2/app/manifests/x", nil)
	r.URL.Path = "/v2/app\nlevel=ERROR/manifests/" + strings.Repeat("x", 5000)
	h.ServeHTTP(httptest.NewRecorder(), r)
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("BREW", "/v2/", nil))

	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 {
		t.Fatalf("got %d log lines for 3 requests:\n%s", len(lines), out.String())
	}
	var line struct {
		Door, Method, Path, Registry, Source, Remote string
		Status, Bytes                                int
		Dur                                          int64
		Err                                          *string
	}
	if err := json.Unmarshal([]byte(lines[0]), &line); err != nil {
		t.Fatal(err)
	}
	if line.Door != "node" || line.Path != "/v2/app/blobs/"+string(c.blob) || line.Registry != "docker.io" || line.Source != "cache" ||
		line.Status != 200 || line.Bytes != len(c.layer) || line.Dur <= 0 || line.Remote == "" || line.Err != nil {
		t.Errorf("log line %s", lines[0])
	}
	for _, secret := range []string{"secret", "c2VjcmV0"} {
		if strings.Contains(out.String(), secret) {
			t.Errorf("the log says %q:\n%s", secret, out.String())
		}
	}
	if len(lines[1]) > 2000 || !strings.Contains(lines[1], `"err":`) {
		t.Errorf("line of %d bytes for a bad path: %s", len(lines[1]), lines[1])
	}

	out.Reset()
	set.WritePrometheus(&out)
	for _, want := range []string{
		`pier_requests_total{door="node",kind="blob",method="GET",code="200"} 1`,
		`pier_requests_total{door="node",kind="other",method="GET",code="400"} 1`,
		`pier_requests_total{door="node",kind="other",method="other",code="405"} 1`,
		`pier_served_bytes_total{door="node",source="cache"} 300000`,
		`pier_served_bytes_total{door="node",source="upstream"} 0`,
		`pier_content_total{door="node",result="hit"} 1`,
		`pier_content_total{door="node",result="miss"} 0`,
		`pier_request_seconds_count{door="node",kind="blob"} 1`,
		`pier_request_seconds_bucket{door="node",kind="blob",le="+Inf"} 1`,
		`pier_requests_in_flight{door="node"} 0`,
	} {
		if !strings.Contains(out.String(), want+"\n") {
			t.Errorf("metrics have no line %s:\n%s", want, out.String())
		}
	}
}

// A query that is half understood must not have the default registry asked.
func TestMalformedQuery(t *testing.T) {
	var content ocitest.Memory
	content.Image(oci.Reference{Registry: "docker.io", Repository: "library/app", Tag: "v1"})
	h := New(Config{Source: &content})
	for _, query := range []string{"ns=registry.test;x", "ns=%zz", "a;b"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/v2/app/manifests/v1?"+query, nil))
		if w.Code != http.StatusBadRequest {
			t.Errorf("?%s: status %d, want 400", query, w.Code)
		}
	}
}

// Two nodes that name each other as mirrors must not wait for each other.
func TestRequestThatCameThroughThisNode(t *testing.T) {
	var content ocitest.Memory
	ref := oci.Reference{Registry: "registry.test", Repository: "app", Tag: "v1"}
	content.Image(ref)
	var seen string
	h := New(Config{Source: viaSource{&content, &seen}, Name: "pier-1234"})
	for via, want := range map[string]int{
		"": 200, "1.1 pier-5678": 200, "1.1 pier-5678, 1.1 pier-1234": 404, "1.1 pier-1234": 404, strings.Repeat("1.1 pier-5678, ", 100): 404,
	} {
		r := httptest.NewRequest("GET", "/v2/app/manifests/v1?ns=registry.test", nil)
		if via != "" {
			r.Header.Set("Via", via)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("Via %.40q: status %d, want %d", via, w.Code, want)
		}
		if want == 200 && seen != via {
			t.Errorf("the source saw Via %q, want %q", seen, via)
		}
	}
}

type viaSource struct {
	oci.Source
	seen *string
}

func (v viaSource) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	*v.seen = oci.Via(ctx)
	return v.Source.Resolve(ctx, ref)
}
