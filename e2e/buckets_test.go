//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"pier/e2e/faultproxy"
)

// A store is a place for snapshots: a directory, or a bucket of a real server that only this store is in. What the tests
// do there themselves passes by pier and the front.
type store struct {
	kind  string // file, s3 or gs
	url   string // for pier; of a bucket, through front
	env   []string
	front *faultproxy.Proxy // counts, and misbehaves when asked to; nil for a directory

	server *process // of a bucket
	addr   string   // of the server
	dir    string   // where the objects are, as files; empty for gs
}

// The credentials of the gateway, and the name of every bucket.
const accessKey, secretKey, bucketName = "test", "testsecret", "pier-e2e"

var storeKinds = []string{"file", "s3", "gs"}

// eachStore runs a test for every kind of store, at once.
func eachStore(t *testing.T, test func(t *testing.T, s *store)) {
	t.Helper()
	for _, kind := range storeKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			test(t, startStore(t, kind))
		})
	}
}

// startStore starts what a kind of store needs. There is nothing in it.
func startStore(t *testing.T, kind string) *store {
	t.Helper()
	switch kind {
	case "s3":
		return startGateway(t)
	case "gs":
		return startFakeGCS(t)
	}
	dir := filepath.Join(t.TempDir(), "store")
	return &store{kind: "file", url: "file://" + dir, dir: dir}
}

// startGateway starts versitygw, which keeps objects as files.
func startGateway(t *testing.T) *store {
	t.Helper()
	root, addr := t.TempDir(), freeAddr(t)
	cmd := exec.Command(tool("bin/versitygw"), "--port", addr, "--quiet", "--keep-alive", "posix", root)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+accessKey, "ROOT_SECRET_KEY="+secretKey)
	s := &store{
		kind: "s3", addr: addr, server: startProcess(t, "versitygw", cmd), dir: filepath.Join(root, bucketName, "some", "prefix"),
		env: []string{"AWS_ACCESS_KEY_ID=" + accessKey, "AWS_SECRET_ACCESS_KEY=" + secretKey},
	}
	awaitListener(t, s.server, addr)
	s.signed(t, http.MethodPut, "/"+bucketName, nil)
	s.front = startFront(t, addr, 0)
	s.url = "s3://" + bucketName + "/some/prefix?endpoint=" + s.front.URL
	return s
}

// startFakeGCS starts fake-gcs-server behind something that makes its resumable uploads those of the real service.
func startFakeGCS(t *testing.T) *store {
	t.Helper()
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	s := &store{kind: "gs", addr: addr, server: startProcess(t, "fake-gcs-server", exec.Command(tool("bin/fake-gcs-server"),
		"-scheme", "http", "-host", "127.0.0.1", "-port", port, "-backend", "filesystem", "-filesystem-root", t.TempDir(), "-public-host", "127.0.0.1", "-log-level", "error"))}
	awaitListener(t, s.server, addr)
	resp, body := s.ask(t, http.MethodPost, "/storage/v1/b", []byte(`{"name":"`+bucketName+`"}`))
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("make a bucket: %s\n%s", resp.Status, body)
	}
	s.front = faultproxy.New(faultproxy.Config{
		Target: &url.URL{Scheme: "http", Host: addr}, Transport: &resumable{kept: make(map[string]int64)},
	}).Start(t)
	s.url = "gs://" + bucketName + "/some/prefix?endpoint=" + s.front.URL
	return s
}

// resumable reaches fake-gcs-server, which takes a question how far an upload is for its end, and appends whatever comes
// as a part. So it answers such questions itself, and sends whole parts alone, whose answer it waits for whoever has left.
type resumable struct {
	mu   sync.Mutex // guards kept
	kept map[string]int64
}

// RoundTrip implements http.RoundTripper.
func (r *resumable) RoundTrip(req *http.Request) (*http.Response, error) {
	id, span := req.URL.Query().Get("upload_id"), req.Header.Get("Content-Range")
	if req.Method != http.MethodPut || id == "" || span == "" {
		resp, err := plainTransport.RoundTrip(req)
		if err == nil && req.URL.Query().Get("uploadType") == "resumable" {
			if at, err := resp.Location(); err == nil {
				r.mu.Lock()
				defer r.mu.Unlock()
				r.kept[at.Query().Get("upload_id")] = 0
			}
		}
		return resp, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if strings.HasPrefix(span, "bytes */") {
		kept, ok := r.kept[id]
		if !ok {
			return plainTransport.RoundTrip(req) // it knows whether there is one
		}
		resp := &http.Response{StatusCode: http.StatusPermanentRedirect, ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Body: http.NoBody, Request: req}
		if kept > 0 {
			resp.Header.Set("Range", fmt.Sprintf("bytes=0-%d", kept-1))
		}
		return resp, nil
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	whole := req.Clone(context.WithoutCancel(req.Context()))
	whole.Body, whole.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	resp, err := plainTransport.RoundTrip(whole)
	if err == nil && resp.StatusCode == http.StatusPermanentRedirect {
		last, _ := strconv.ParseInt(strings.TrimPrefix(resp.Header.Get("Range"), "bytes=0-"), 10, 64)
		r.kept[id] = last + 1
	} else if err == nil {
		delete(r.kept, id)
	}
	return resp, err
}

var plainTransport = &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64, IdleConnTimeout: 5 * time.Second}

// stop ends the server of a bucket.
func (s *store) stop(t *testing.T) {
	t.Helper()
	s.server.kill()
}

// ask sends a request to the server of a bucket, and returns its answer and the body of that.
func (s *store) ask(t *testing.T, method, target string, body []byte, header ...string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.addr+target, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := plainTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, text
}

// signed sends a request to the gateway that must succeed, with a signature of version 4.
func (s *store) signed(t *testing.T, method, path string, body []byte) {
	t.Helper()
	sum := sha256.Sum256(body)
	at, hash := time.Now().UTC().Format("20060102T150405Z"), hex.EncodeToString(sum[:])
	canonical := fmt.Sprintf("%s\n%s\n\nhost:%s\nx-amz-content-sha256:%s\nx-amz-date:%s\n\nhost;x-amz-content-sha256;x-amz-date\n%s",
		method, path, s.addr, hash, at, hash)
	sum = sha256.Sum256([]byte(canonical))
	scope := at[:8] + "/us-east-1/s3/aws4_request"
	key := []byte("AWS4" + secretKey)
	for _, text := range append(strings.Split(scope, "/"), "AWS4-HMAC-SHA256\n"+at+"\n"+scope+"\n"+hex.EncodeToString(sum[:])) {
		mac := hmac.New(sha256.New, key)
		_, _ = mac.Write([]byte(text)) // never fails
		key = mac.Sum(nil)
	}
	resp, text := s.ask(t, method, path, body, "X-Amz-Date", at, "X-Amz-Content-Sha256", hash, "Authorization",
		"AWS4-HMAC-SHA256 Credential="+accessKey+"/"+scope+", SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature="+hex.EncodeToString(key))
	if resp.StatusCode/100 != 2 {
		t.Fatalf("%s %s: %s\n%s", method, path, resp.Status, text)
	}
}

// gsObject is the path of an object in the JSON API.
func gsObject(key string) string {
	return "/storage/v1/b/" + bucketName + "/o/" + url.PathEscape("some/prefix/"+key)
}

// get returns an object, and whether there is one.
func (s *store) get(t *testing.T, key string) ([]byte, bool) {
	t.Helper()
	if s.kind != "gs" {
		b, err := os.ReadFile(filepath.Join(s.dir, key))
		return b, err == nil
	}
	resp, b := s.ask(t, http.MethodGet, gsObject(key)+"?alt=media", nil)
	return b, resp.StatusCode == http.StatusOK
}

// put stores an object.
func (s *store) put(t *testing.T, key string, b []byte) {
	t.Helper()
	switch s.kind {
	case "file":
		name := filepath.Join(s.dir, key)
		if err := os.MkdirAll(filepath.Dir(name), 0o777); err != nil {
			t.Fatal(err)
		}
		writeFile(t, name, string(b))
	case "s3":
		s.signed(t, http.MethodPut, "/"+bucketName+"/some/prefix/"+key, b)
	case "gs":
		resp, text := s.ask(t, http.MethodPost, "/upload/storage/v1/b/"+bucketName+"/o?uploadType=media&name="+url.QueryEscape("some/prefix/"+key), b)
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s\n%s", key, resp.Status, text)
		}
	}
}

// remove removes an object.
func (s *store) remove(t *testing.T, key string) {
	t.Helper()
	if s.kind == "gs" {
		s.ask(t, http.MethodDelete, gsObject(key), nil)
		return
	}
	if err := os.Remove(filepath.Join(s.dir, key)); err != nil {
		t.Fatal(err)
	}
}

// list returns the sizes of all objects whose key begins with prefix.
func (s *store) list(t *testing.T, prefix string) map[string]int64 {
	t.Helper()
	found := make(map[string]int64)
	if s.kind != "gs" {
		err := filepath.WalkDir(s.dir, func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return nil //nolint:nilerr // there is none yet, or it was removed just now
			}
			info, err := d.Info()
			if key := strings.TrimPrefix(name, s.dir+"/"); err == nil && strings.HasPrefix(key, prefix) {
				found[key] = info.Size()
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	for token := ""; ; {
		query := url.Values{"prefix": {"some/prefix/" + prefix}, "pageToken": {token}}
		resp, text := s.ask(t, http.MethodGet, "/storage/v1/b/"+bucketName+"/o?"+query.Encode(), nil)
		var page struct {
			NextPageToken string
			Items         []struct {
				Name string
				Size int64 `json:",string"`
			}
		}
		if err := json.Unmarshal(text, &page); err != nil {
			t.Fatalf("list: %s: %v\n%s", resp.Status, err, text)
		}
		for _, item := range page.Items {
			found[strings.TrimPrefix(item.Name, "some/prefix/")] = item.Size
		}
		if token = page.NextPageToken; token == "" {
			return found
		}
	}
}
