//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// requestTimeout bounds every request of the tests' own client, reading the body included.
const requestTimeout = 90 * time.Second

var manifestTypes = strings.Join([]string{
	v1.MediaTypeImageIndex, v1.MediaTypeImageManifest,
	"application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json",
}, ", ")

// An answer is a whole response.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// A client asks one door for one registry's content, as containerd does: with ?ns=.
type client struct {
	door     string // base URL
	registry string // ?ns=
	header   http.Header
	http     *http.Client
}

func newClient(door, registry string) *client {
	return &client{door: door, registry: registry, header: http.Header{}, http: &http.Client{
		Transport: &http.Transport{DisableCompression: true},
	}}
}

// open sends a request for a path below /v2/ and returns the response, whose body the caller closes. Further headers
// are given as name and value in turn.
func (c *client) open(ctx context.Context, method, path string, header ...string) (*http.Response, error) {
	sep := "?"
	if strings.Contains(path, "?") {
		sep = "&"
	}
	req, err := http.NewRequestWithContext(ctx, method, c.door+"/v2/"+path+sep+"ns="+c.registry, nil)
	if err != nil {
		return nil, err
	}
	req.Header = c.header.Clone()
	if strings.Contains(path, "/manifests/") {
		req.Header.Set("Accept", manifestTypes)
	}
	for pair := range slices.Chunk(header, 2) {
		req.Header.Set(pair[0], pair[1])
	}
	return c.http.Do(req)
}

// do is open for answers that fit in memory. A body that ends early is an error.
func (c *client) do(ctx context.Context, method, path string, header ...string) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := c.open(ctx, method, path, header...)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, body}, err
}

// fetch gets a URL that is no part of the distribution API.
func fetch(t *testing.T, target string) answer {
	t.Helper()
	return fetchBy(t, http.DefaultClient, target)
}

// fetchBy is fetch by a client that reaches what is not on loopback.
func fetchBy(t *testing.T, client *http.Client, target string) answer {
	t.Helper()
	resp, err := client.Get(target)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, body}
}

// get is do for a GET that must be answered, if only with an error status.
func (c *client) get(t *testing.T, path string, header ...string) answer {
	t.Helper()
	a, err := c.do(t.Context(), http.MethodGet, path, header...)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// head is get for HEAD.
func (c *client) head(t *testing.T, path string, header ...string) answer {
	t.Helper()
	a, err := c.do(t.Context(), http.MethodHead, path, header...)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// pull gets every manifest and every blob of an image and compares them with what was pushed. The reference is a tag,
// or a digest.
func (c *client) pull(ctx context.Context, repository, reference string, want *image) error {
	top, err := c.do(ctx, http.MethodGet, repository+"/manifests/"+reference)
	if err != nil {
		return err
	}
	if err := top.matches(want.root()); err != nil {
		return fmt.Errorf("manifest %s: %w", reference, err)
	}
	for _, m := range want.manifests {
		a, err := c.do(ctx, http.MethodGet, repository+"/manifests/"+m.Digest.String())
		if err == nil {
			err = a.matches(m)
		}
		if err != nil {
			return fmt.Errorf("manifest %s: %w", m.Digest, err)
		}
	}
	for _, b := range want.blobs {
		a, err := c.do(ctx, http.MethodGet, repository+"/blobs/"+b.Digest.String())
		if err == nil {
			err = a.matches(b)
		}
		if err != nil {
			return fmt.Errorf("blob %s: %w", b.Digest, err)
		}
	}
	return nil
}

// mustPull is pull that must succeed.
func (c *client) mustPull(t *testing.T, repository, reference string, want *image) {
	t.Helper()
	if err := c.pull(t.Context(), repository, reference, want); err != nil {
		t.Fatalf("pull %s/%s:%s from %s: %v", c.registry, repository, reference, c.door, err)
	}
}

// matches returns an error unless the answer is all of b.
func (a answer) matches(b blob) error {
	if a.status != http.StatusOK {
		return fmt.Errorf("status %d: %.300s", a.status, a.body)
	}
	if got := digest.FromBytes(a.body); got != b.Digest {
		return fmt.Errorf("%d bytes of digest %s, want %d of %s", len(a.body), got, b.Size, b.Digest)
	}
	return nil
}

// wantStatus fails the test unless the answer has one of the given statuses.
func (a answer) wantStatus(t *testing.T, what string, statuses ...int) {
	t.Helper()
	if !slices.Contains(statuses, a.status) {
		t.Errorf("%s: status %d, want %v: %.300s", what, a.status, statuses, a.body)
	}
}

// decode reads a JSON body that a 200 must have.
func (a answer) decode(t *testing.T, into any) {
	t.Helper()
	if a.status != http.StatusOK {
		t.Fatalf("status %d: %.300s", a.status, a.body)
	}
	if err := json.Unmarshal(a.body, into); err != nil {
		t.Fatalf("%v: %.300s", err, a.body)
	}
}
