package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

func TestTags(t *testing.T) {
	c := &ocitest.Memory{}
	for _, tag := range []string{"a", "b", "B", "c", "d"} {
		c.Image(oci.Reference{Registry: "registry.test", Repository: "team/app", Tag: tag})
	}
	host := serve(t, New(Config{Source: c}))
	for _, tc := range []struct {
		path, want, link string
	}{
		{"/v2/team/app/tags/list?ns=registry.test", `["B","a","b","c","d"]`, ""},
		{"/v2/registry.test/team/app/tags/list", `["B","a","b","c","d"]`, ""},
		{"/v2/registry.test/team/app/tags/list?n=5", `["B","a","b","c","d"]`, ""},
		{"/v2/registry.test/team/app/tags/list?n=2147483647", `["B","a","b","c","d"]`, ""},
		{"/v2/registry.test/team/app/tags/list?n=0", `[]`, ""},
		{"/v2/registry.test/team/app/tags/list?last=a", `["b","c","d"]`, ""},
		{"/v2/registry.test/team/app/tags/list?last=bb", `["c","d"]`, ""},
		{"/v2/registry.test/team/app/tags/list?last=z", `[]`, ""},
		{"/v2/registry.test/team/app/tags/list?n=2", `["B","a"]`, `</v2/registry.test/team/app/tags/list?last=a&n=2>; rel="next"`},
		{"/v2/team/app/tags/list?n=2&last=a&ns=registry.test", `["b","c"]`, `</v2/team/app/tags/list?last=c&n=2&ns=registry.test>; rel="next"`},
		{"/v2/team/app/tags/list?n=2&last=b&ns=registry.test", `["c","d"]`, ""},
	} {
		r := ask(t, "GET", host+tc.path)
		var doc struct {
			Name string
			Tags json.RawMessage
		}
		if err := json.Unmarshal(r.body, &doc); err != nil || r.StatusCode != 200 {
			t.Fatalf("%s: %d %s", tc.path, r.StatusCode, r.body)
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(tc.path, "/v2/"), "/tags/")
		if string(doc.Tags) != tc.want || r.Header.Get("Link") != tc.link || doc.Name != name {
			t.Errorf("%s: %s %s, Link %s; want %s, Link %s", tc.path, doc.Name, doc.Tags, r.Header.Get("Link"), tc.want, tc.link)
		}
	}
	for _, n := range []string{"-1", "x", "1.5", "99999999999999999999", "%2B1", "1%00"} {
		r := ask(t, "GET", host+"/v2/registry.test/team/app/tags/list?n="+n)
		if r.StatusCode != 400 || r.code(t) != "PAGINATION_NUMBER_INVALID" {
			t.Errorf("n=%s: %d %s", n, r.StatusCode, r.body)
		}
	}
	host = serve(t, New(Config{Source: &recorder{}}))
	if r := ask(t, "GET", host+"/v2/app/tags/list"); r.StatusCode != 404 || r.code(t) != "NAME_UNKNOWN" {
		t.Errorf("a Source that lists nothing: %d %s", r.StatusCode, r.body)
	}
}

// lister is a Source whose lists end with err.
type lister struct {
	recorder
	err error
}

func (l *lister) Tags(context.Context, string, string) ([]string, error) { return nil, l.err }
func (l *lister) Referrers(context.Context, oci.Reference) ([]v1.Descriptor, error) {
	return nil, l.err
}

func TestListErrors(t *testing.T) {
	for _, tc := range []struct {
		err             error
		tags, referrers int
	}{
		{oci.ErrNotFound, 404, 200},
		{oci.ErrUnsupported, 404, 200},
		{oci.ErrUnavailable, 502, 502},
		{oci.ErrUnauthorized, 401, 401},
	} {
		host := serve(t, New(Config{Source: &lister{err: fmt.Errorf("test: %w", tc.err)}}))
		if r := ask(t, "GET", host+"/v2/app/tags/list"); r.StatusCode != tc.tags {
			t.Errorf("tags, %v: %d, want %d", tc.err, r.StatusCode, tc.tags)
		}
		if r := ask(t, "GET", host+"/v2/app/referrers/"+string(ocitest.Absent)); r.StatusCode != tc.referrers {
			t.Errorf("referrers, %v: %d, want %d", tc.err, r.StatusCode, tc.referrers)
		}
	}
}

func TestReferrers(t *testing.T) {
	c := newContent()
	for _, tc := range []struct {
		src     oci.Source
		query   string
		subject oci.Digest
		want    []oci.Digest
	}{
		{c, "", c.image.Digest, []oci.Digest{c.artifact.Digest}},
		{c, "?artifactType=application/vnd.test.signature", c.image.Digest, []oci.Digest{c.artifact.Digest}},
		{c, "?artifactType=other", c.image.Digest, nil},
		{c, "", c.index.Digest, nil},
		{c, "", ocitest.Absent, nil},
		{&recorder{}, "", c.image.Digest, nil},
	} {
		r := ask(t, "GET", serve(t, New(Config{Source: tc.src}))+"/v2/app/referrers/"+string(tc.subject)+tc.query)
		var index v1.Index
		if err := json.Unmarshal(r.body, &index); err != nil || r.StatusCode != 200 || r.Header.Get("Content-Type") != ociIndex {
			t.Fatalf("%s%s: %d %s", tc.subject, tc.query, r.StatusCode, r.body)
		}
		var got []oci.Digest
		for _, m := range index.Manifests {
			got = append(got, m.Digest)
		}
		if index.SchemaVersion != 2 || index.MediaType != ociIndex || index.Manifests == nil || !slices.Equal(got, tc.want) {
			t.Errorf("%s%s: got %s, want %s", tc.subject, tc.query, r.body, tc.want)
		}
		if applied := r.Header.Get("OCI-Filters-Applied") == "artifactType"; applied != (tc.query != "") {
			t.Errorf("%s%s: OCI-Filters-Applied %q", tc.subject, tc.query, r.Header.Get("OCI-Filters-Applied"))
		}
	}
}
