package upstream

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/e2e/faultproxy"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// A registry serves a Memory by the distribution API, whatever registry name its content was stored under.
type registry struct {
	*ocitest.Memory
	name         string // under which the Memory has it
	noReferrers  bool   // as registries older than the API
	rawChallenge string // instead of one made from the below
	realm        string // of the token server; "": anybody may pull
	user, secret string // for basic authentication, if not empty
}

func (s *registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if challenge := s.challenge(r); challenge != "" {
		w.Header().Set("Www-Authenticate", challenge)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	path := strings.TrimPrefix(r.URL.Path, "/v2/")
	for _, part := range []string{"/manifests/", "/blobs/", "/referrers/", "/tags/"} {
		if repository, name, ok := strings.Cut(path, part); ok {
			s.serve(w, r, part, repository, name)
			return
		}
	}
	w.WriteHeader(http.StatusNotFound)
}

// challenge returns what is to be asked of the client, or "".
func (s *registry) challenge(r *http.Request) string {
	user, secret, _ := r.BasicAuth()
	switch {
	case s.rawChallenge != "":
		return s.rawChallenge
	case s.realm != "" && r.Header.Get("Authorization") != "Bearer good":
		return fmt.Sprintf(`Bearer realm=%q,service="test",scope="repository:team/app:pull"`, s.realm)
	case s.realm == "" && s.user != "" && (user != s.user || secret != s.secret):
		return `Basic realm="test"`
	}
	return ""
}

func (s *registry) serve(w http.ResponseWriter, r *http.Request, part, repository, name string) {
	ref := oci.Reference{Registry: s.name, Repository: repository, Digest: oci.Digest(name)}
	switch part {
	case "/tags/":
		s.tags(w, r, repository)
		return
	case "/referrers/":
		if s.noReferrers {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		s.referrers(w, r, ref)
		return
	case "/manifests/":
		if !strings.Contains(name, ":") {
			ref.Tag, ref.Digest = name, ""
		}
	}
	desc, err := s.Resolve(r.Context(), ref)
	if err != nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	b, _, err := ocitest.ReadAll(r.Context(), s.Memory, ref.WithDigest(desc.Digest))
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", desc.MediaType+"; charset=utf-8")
	w.Header().Set("Docker-Content-Digest", desc.Digest.String())
	if part == "/blobs/" {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	_, _ = w.Write(b)
}

// tags answers at most three at once.
func (s *registry) tags(w http.ResponseWriter, r *http.Request, repository string) {
	tags, err := s.Tags(r.Context(), s.name, repository)
	if err != nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	i, _ := slices.BinarySearch(tags, r.URL.Query().Get("last")+"\x00")
	tags = tags[i:]
	if len(tags) > 3 {
		tags = tags[:3]
		w.Header().Set("Link", fmt.Sprintf(`<%s?n=3&last=%s>; rel="next"`, r.URL.Path, tags[2]))
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"name": repository, "tags": tags})
}

func (s *registry) referrers(w http.ResponseWriter, r *http.Request, ref oci.Reference) {
	list, err := s.Referrers(r.Context(), ref)
	if err != nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	index := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: list}
	index.SchemaVersion = 2
	if page := r.URL.Query().Get("page"); page == "" && len(list) > 1 {
		index.Manifests = list[:1]
		w.Header().Set("Link", fmt.Sprintf(`<%s?page=2>; rel=next`, r.URL.Path))
	} else if page != "" {
		index.Manifests = list[1:]
	}
	w.Header().Set("Content-Type", v1.MediaTypeImageIndex)
	_ = json.NewEncoder(w).Encode(index)
}

// A site is a registry behind a fault proxy, with one image in it.
type site struct {
	*faultproxy.Proxy
	registry *registry
	tag      oci.Reference // of the image
	manifest oci.Reference // of the same, by digest
	blob     oci.Reference // of its layer
	layer    []byte
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{registry: &registry{Memory: &ocitest.Memory{}}, layer: ocitest.Bytes(7, 200_000)}
	s.Proxy = faultproxy.New(faultproxy.Config{Handler: s.registry}).Start(t)
	s.as(s.Host())
	return s
}

// as has the site known by another name.
func (s *site) as(name string) *site {
	s.registry.name = name
	s.tag = oci.Reference{Registry: name, Repository: "team/app", Tag: "V1"}
	desc := s.registry.Image(s.tag, s.layer)
	s.manifest = s.tag.WithDigest(desc.Digest)
	s.manifest.Tag = ""
	s.blob = oci.Reference{Registry: name, Repository: "team/app", Kind: oci.Blob, Digest: ocitest.Digest(s.layer)}
	return s
}

// entry lists the site without TLS.
func (s *site) entry() Upstream { return Upstream{Name: s.Host(), Scheme: "http"} }

// newRegistries returns Registries that retry at once.
func newRegistries(t *testing.T, cfg Config) *Registries {
	t.Helper()
	t.Setenv("DOCKER_CONFIG", t.TempDir()) // not that of whoever runs the tests
	return mustNew(t, cfg)
}

func mustNew(t *testing.T, cfg Config) *Registries {
	t.Helper()
	cfg.backoff = time.Millisecond
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.current.Load().closeIdle() })
	return r
}

// read opens and reads a part.
func read(ctx context.Context, r *Registries, ref oci.Reference, offset, length int64) ([]byte, oci.Descriptor, error) {
	rc, desc, err := r.Open(ctx, ref, offset, length)
	if err != nil {
		return nil, desc, err
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	return b, desc, err
}

// wantErr fails unless err is of class.
func wantErr(t *testing.T, what string, err, class error) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Errorf("%s: got error %v, want %v", what, err, class)
	}
}

// localNames returns a resolver for which every name is 127.0.0.1, asked of a real DNS server.
func localNames(t *testing.T) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if answer := answerDNS(buf[:n]); answer != nil {
				_, _ = conn.WriteTo(answer, from)
			}
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

// answerDNS answers a question for an IPv4 address with 127.0.0.1, and any other with nothing (RFC 1035, section 4).
func answerDNS(q []byte) []byte {
	end := 12
	for end < len(q) && q[end] != 0 {
		end += 1 + int(q[end])
	}
	end += 5
	if end > len(q) {
		return nil
	}
	a := slices.Clone(q[:end])
	binary.BigEndian.PutUint16(a[2:], 0x8180) // an answer, recursion desired and available
	isA := binary.BigEndian.Uint16(q[end-4:]) == 1
	binary.BigEndian.PutUint16(a[6:], 0)
	binary.BigEndian.PutUint32(a[8:], 0)
	if isA {
		a[7] = 1
		a = append(a, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1)
	}
	return a
}

// An authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string // its certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	a.cert, a.key, a.file, _ = a.issue(t, "ca")
	return a
}

// issue makes a certificate for a name and 127.0.0.1, self-signed for the authority itself.
func (a *authority) issue(t *testing.T, name string) (cert *x509.Certificate, key *ecdsa.PrivateKey, certFile, keyFile string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		KeyUsage:    x509.KeyUsageDigitalSignature,
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	must(err)
	cert, err = x509.ParseCertificate(der)
	must(err)
	keyDER, err := x509.MarshalECPrivateKey(key)
	must(err)
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	must(os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), 0o600))
	return cert, key, certFile, keyFile
}

// serveTLS serves h under a certificate for name, and returns name with the port.
func (a *authority) serveTLS(t *testing.T, name string, h http.Handler, clients *x509.CertPool) string {
	t.Helper()
	_, _, certFile, keyFile := a.issue(t, name)
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = true
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	if clients != nil {
		s.TLS.ClientAuth, s.TLS.ClientCAs = tls.RequireAndVerifyClientCert, clients
	}
	s.Config.ErrorLog = quiet()
	s.StartTLS()
	t.Cleanup(s.Close)
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	return name + ":" + port
}
