package bucket

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"pier/internal/oci"
)

// A gcsStub is as much of Google Cloud Storage as uploads of large objects take. Nothing of a session is finished by asking about it.
type gcsStub struct {
	*httptest.Server

	mu       sync.Mutex // guards all below
	objects  map[string][]byte
	sessions map[string]*gcsStubSession
	received int64                                             // bytes of parts that were kept
	begun    int                                               // sessions
	tokens   map[string]int                                    // of requests
	fault    func(w http.ResponseWriter, r *http.Request) bool // reports whether it answered
	keep     func(n int64) int64                               // of a part of n bytes that is not the last, how many are kept; nil: all
	location string                                            // host of sessions; empty: this
	lie      bool                                              // says that it stored something else
}

type gcsStubSession struct {
	name string
	data []byte
	only bool // there must be no such object
}

func newGCSStub(t *testing.T) *gcsStub {
	t.Helper()
	s := &gcsStub{objects: make(map[string][]byte), sessions: make(map[string]*gcsStubSession), tokens: make(map[string]int)}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *gcsStub) open(t *testing.T, state string) Bucket {
	t.Helper()
	b := openTest(t, Config{URL: "gs://bucket/prefix?endpoint=" + s.URL, Retries: 3, StateDir: state})
	b.(*gcs).client.backoff = time.Millisecond
	return b
}

func (s *gcsStub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[r.Header.Get("Authorization")]++
	if s.fault != nil && s.fault(w, r) {
		return
	}
	switch {
	case r.URL.Path == "/session":
		s.session(w, r)
	case r.Method == http.MethodPost && strings.HasPrefix(r.URL.Path, "/upload/"):
		var said metadata
		if json.NewDecoder(r.Body).Decode(&said) != nil {
			http.Error(w, "no JSON", http.StatusBadRequest)
			return
		}
		s.begun++
		id := strconv.Itoa(s.begun)
		s.sessions[id] = &gcsStubSession{name: said.Name, only: r.URL.Query().Get("ifGenerationMatch") == "0"}
		w.Header().Set("Location", firstOf(s.location, s.URL)+"/session?id="+id)
	case r.Method == http.MethodGet:
		name := strings.TrimPrefix(r.URL.Path, "/storage/v1/b/bucket/o/")
		b, ok := s.objects[name]
		if !ok {
			http.Error(w, `{"error":{"message":"No such object","errors":[{"reason":"notFound"}]}}`, http.StatusNotFound)
			return
		}
		if r.URL.Query().Get("alt") == "media" {
			w.Header().Set("X-Goog-Generation", "1")
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
			return
		}
		s.describe(w, name, b)
	case r.Method == http.MethodDelete:
		delete(s.objects, strings.TrimPrefix(r.URL.Path, "/storage/v1/b/bucket/o/"))
		w.WriteHeader(http.StatusNoContent)
	default:
		http.Error(w, "what is that", http.StatusTeapot)
	}
}

func (s *gcsStub) describe(w http.ResponseWriter, name string, b []byte) {
	sum := crc32.Checksum(b, castagnoli)
	if s.lie {
		sum++
	}
	fmt.Fprintf(w, `{"name":%q,"size":"%d","updated":%q,"generation":"1","crc32c":%q}`, name, len(b), time.Now().UTC().Format(time.RFC3339), gcsSum(sum))
}

// session answers to a part of an upload, or to a question about it.
func (s *gcsStub) session(w http.ResponseWriter, r *http.Request) {
	up := s.sessions[r.URL.Query().Get("id")]
	if up == nil {
		w.WriteHeader(http.StatusGone)
		return
	}
	if r.Method == http.MethodDelete {
		delete(s.sessions, r.URL.Query().Get("id"))
		w.WriteHeader(499)
		return
	}
	var first, last, size int64
	ranged := r.Header.Get("Content-Range")
	if n, _ := fmt.Sscanf(ranged, "bytes %d-%d/%d", &first, &last, &size); n == 3 {
		b, err := io.ReadAll(r.Body)
		if first != int64(len(up.data)) {
			http.Error(w, "not where it was", http.StatusBadRequest)
			return
		}
		if err != nil { // cut: what came is kept, in whole units
			b = b[:len(b)/gcsUnit*gcsUnit]
		} else if s.keep != nil && last+1 < size {
			b = b[:s.keep(int64(len(b)))]
		}
		up.data = append(up.data, b...)
		s.received += int64(len(b))
		if int64(len(up.data)) == size {
			if _, ok := s.objects[up.name]; ok && up.only {
				w.WriteHeader(http.StatusPreconditionFailed)
				return
			}
			s.objects[up.name] = up.data
			delete(s.sessions, r.URL.Query().Get("id"))
			s.describe(w, up.name, up.data)
			return
		}
	}
	if len(up.data) > 0 {
		w.Header().Set("Range", fmt.Sprintf("bytes=0-%d", len(up.data)-1))
	}
	w.WriteHeader(http.StatusPermanentRedirect)
}

const gcsTestSize = 3*partSize + 12345

// A service that is cut, full of faults, or keeps less than it was sent still gets all.
func TestGCSUploadThroughFaults(t *testing.T) {
	data := content(1, gcsTestSize)
	for name, prepare := range map[string]func(s *gcsStub){
		"none": func(*gcsStub) {},
		"keeps less": func(s *gcsStub) {
			s.keep = func(n int64) int64 { return max(n/3/gcsUnit, 1) * gcsUnit }
		},
		"503 each third time": func(s *gcsStub) {
			n := 0
			s.fault = func(w http.ResponseWriter, r *http.Request) bool {
				if n++; r.Method == http.MethodPut && n%3 == 0 {
					w.WriteHeader(http.StatusServiceUnavailable)
					return true
				}
				return false
			}
		},
		"429 at first": func(s *gcsStub) {
			n := 0
			s.fault = func(w http.ResponseWriter, _ *http.Request) bool {
				if n++; n < 3 {
					w.WriteHeader(http.StatusTooManyRequests)
				}
				return n < 3
			}
		},
		"cut": func(s *gcsStub) {
			n := 0
			s.fault = func(_ http.ResponseWriter, r *http.Request) bool {
				if n++; n == 4 {
					r.Body = io.NopCloser(io.MultiReader(io.LimitReader(r.Body, 2*gcsUnit+100), errorReader{io.ErrUnexpectedEOF}))
				}
				return false
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newGCSStub(t)
			prepare(s)
			state := t.TempDir()
			put(t, s.open(t, state), "key", data)
			if !bytes.Equal(s.objects["prefix/key"], data) {
				t.Error("something else was stored")
			}
			if left, err := os.ReadDir(state); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

// Another process goes on with an upload that was cut, if the content is the same.
func TestGCSUploadGoesOn(t *testing.T) {
	data := content(1, gcsTestSize)
	cut := errors.New("cut")
	for _, c := range []struct {
		name   string
		second []byte
		again  int64 // bytes of the second attempt, at most
		fails  bool
	}{
		{"same", data, gcsTestSize - 2*partSize, false}, {"another", content(2, gcsTestSize), gcsTestSize, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newGCSStub(t)
			state := t.TempDir()
			if err := s.open(t, state).Put(t.Context(), "key", gcsTestSize, failing(data[:2*partSize+10], cut), false); !errors.Is(err, cut) {
				t.Fatal(err)
			}
			info, err := os.ReadDir(state)
			if err != nil || len(info) != 1 {
				t.Fatalf("remembered: %v, %v", info, err)
			}
			if i, err := info[0].Info(); err != nil || i.Mode().Perm() != 0o600 {
				t.Errorf("others may read it: %v, %v", i.Mode(), err)
			}
			before := s.received
			err = s.open(t, state).Put(t.Context(), "key", gcsTestSize, bytes.NewReader(c.second), false)
			if (err != nil) != c.fails {
				t.Fatalf("then: %v", err)
			}
			if err != nil { // it was too late to begin anew
				put(t, s.open(t, state), "key", c.second)
			}
			if got := s.received - before; got > c.again {
				t.Errorf("%d bytes were sent again, want %d at most", got, c.again)
			}
			if !bytes.Equal(s.objects["prefix/key"], c.second) {
				t.Error("something else was stored")
			}
		})
	}
	t.Run("forgotten by the service", func(t *testing.T) {
		s := newGCSStub(t)
		state := t.TempDir()
		_ = s.open(t, state).Put(t.Context(), "key", gcsTestSize, failing(data[:2*partSize], cut), false)
		s.sessions = make(map[string]*gcsStubSession)
		put(t, s.open(t, state), "key", data)
	})
	t.Run("damaged", func(t *testing.T) {
		s := newGCSStub(t)
		state := t.TempDir()
		_ = s.open(t, state).Put(t.Context(), "key", gcsTestSize, failing(data[:2*partSize], cut), false)
		files, err := os.ReadDir(state)
		if err != nil || len(files) != 1 {
			t.Fatal(files, err)
		}
		if err := os.WriteFile(filepath.Join(state, files[0].Name()), []byte("garbage"), 0o600); err != nil {
			t.Fatal(err)
		}
		put(t, s.open(t, state), "key", data)
	})
	t.Run("wrong content", func(t *testing.T) {
		s := newGCSStub(t)
		state := t.TempDir()
		if err := s.open(t, state).Put(t.Context(), "key", gcsTestSize, failing(data, oci.ErrDigestMismatch), false); !errors.Is(err, oci.ErrDigestMismatch) {
			t.Error(err)
		}
		left, err := os.ReadDir(state)
		if err != nil || len(left)+len(s.sessions)+len(s.objects) > 0 {
			t.Errorf("left: %v, %d sessions, %d objects", left, len(s.sessions), len(s.objects))
		}
	})
}

// Two processes at once do not harm each other.
func TestGCSTwoUploads(t *testing.T) {
	s := newGCSStub(t)
	state, data := t.TempDir(), content(1, gcsTestSize)
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() {
			err := s.open(t, state).Put(context.WithoutCancel(t.Context()), "key", gcsTestSize, bytes.NewReader(data), false)
			if err != nil && !errors.Is(err, ErrExists) {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if !bytes.Equal(s.objects["prefix/key"], data) {
		t.Error("something else was stored")
	}
}

// What a service says is not believed where that matters.
func TestGCSServiceThatLies(t *testing.T) {
	data := content(1, gcsTestSize)
	s := newGCSStub(t)
	s.lie = true
	b := s.open(t, "")
	if err := b.Put(t.Context(), "key", gcsTestSize, bytes.NewReader(data), false); !errors.Is(err, oci.ErrUnavailable) || len(s.objects) > 0 {
		t.Errorf("stored something else: %v, %d objects", err, len(s.objects))
	}
	s.lie, s.location = false, "http://elsewhere.test"
	if err := b.Put(t.Context(), "key", gcsTestSize, bytes.NewReader(data), false); err == nil || !strings.Contains(err.Error(), "another host") {
		t.Errorf("uploads go elsewhere: %v", err)
	}
	s.location = ""
	s.keep = func(int64) int64 { return 0 }
	if err := b.Put(t.Context(), "key", gcsTestSize, bytes.NewReader(data), false); !errors.Is(err, oci.ErrUnavailable) {
		t.Errorf("takes nothing: %v", err)
	}
	s.fault = func(w http.ResponseWriter, _ *http.Request) bool {
		fmt.Fprint(w, `{"items":[{"name":"prefix/b","size":"1"},{"name":"prefix/a","size":"1"}]}`)
		return true
	}
	var last error
	for _, err := range b.List(t.Context(), "") {
		last = err
	}
	if last == nil {
		t.Error("a listing that goes backwards: no error")
	}
}

// A token is asked for once for all, renewed, and goes to nobody else.
func TestGCSCredentials(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		parts := strings.Split(r.FormValue("assertion"), ".")
		if len(parts) != 3 {
			http.Error(w, "no assertion", http.StatusBadRequest)
			return
		}
		signature, err := base64.RawURLEncoding.DecodeString(parts[2])
		sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
		if err != nil || rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, sum[:], signature) != nil {
			http.Error(w, "not signed by that key", http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"access_token":"TOKEN","token_type":"Bearer","expires_in":3600}`)
	}))
	defer tokens.Close()
	file := filepath.Join(t.TempDir(), "credentials.json")
	text, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "me@project.test", "private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		"token_uri": tokens.URL,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", file)
	t.Setenv("STORAGE_EMULATOR_HOST", "")
	s := newGCSStub(t)
	s.objects["prefix/key"] = []byte("x")
	b := s.open(t, "")
	if got := get(t, b, "key", 0, -1); string(got) != "x" || s.tokens[""] == 0 || asked > 0 {
		t.Errorf("without TLS: %q, tokens %v, asked %d times", got, s.tokens, asked)
	}
	b.(*gcs).tokens = sync.OnceValues(googleTokens) // as with TLS
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			if _, err := b.Stat(context.WithoutCancel(t.Context()), "key"); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if s.tokens["Bearer TOKEN"] != 20 || asked != 1 {
		t.Errorf("tokens %v, asked %d times", s.tokens, asked)
	}
	for name, bad := range map[string]string{"no file": "", "garbage": "{SECRET", "no key": `{"type":"service_account","private_key":"SECRET"}`} {
		path := filepath.Join(t.TempDir(), "bad.json")
		if bad != "" {
			if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", path)
		b := s.open(t, "")
		b.(*gcs).tokens = sync.OnceValues(googleTokens)
		if _, err := b.Stat(t.Context(), "key"); !errors.Is(err, oci.ErrUnauthorized) || strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestGCSOptions(t *testing.T) {
	for _, url := range []string{"gs://b?x=y", "gs://b?endpoint=ftp://x", "gs://b?endpoint=http://a:b@c", "gs://b?endpoint=x&endpoint=y"} {
		if b, err := Open(Config{URL: url}); err == nil {
			t.Errorf("%s: got %v", url, b)
		}
	}
	t.Setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:9")
	b := openTest(t, Config{URL: "gs://bucket"})
	if got := b.(*gcs).endpoint; got != "http://127.0.0.1:9" {
		t.Errorf("the endpoint is %s", got)
	}
	if _, err := b.Stat(t.Context(), "key"); !errors.Is(err, oci.ErrUnavailable) || !strings.Contains(err.Error(), "gs://bucket/key") {
		t.Errorf("nobody there: %v", err)
	}
}
