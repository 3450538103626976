//go:build e2e

package e2e

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pier/e2e/netns"
)

// A tokenServer gives bearer tokens to a registry's clients by the distribution project's token protocol: to anybody
// for pulling outside private/, to user and password for everything. Tokens are RS256, with the signing certificate in
// their x5c header.
type tokenServer struct {
	realm  string // URL that registries name in WWW-Authenticate
	addr   string
	bundle string // file with the signing certificate, for the registry
	tokens atomic.Int64

	certificate []byte // DER
	key         *rsa.PrivateKey
}

const (
	tokenIssuer  = "pier-e2e"
	tokenService = "registry.test"
	user         = "alice"
	password     = "correct-horse-battery"
)

// startTokenServer serves tokens over TLS with a certificate of ca, at a place of a site or, if that is nil, on loopback.
func startTokenServer(t *testing.T, ca *authority, at *netns.Place) *tokenServer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: tokenIssuer}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	s := &tokenServer{key: key, certificate: sign(t, template, template, key.Public(), key)}
	s.bundle = writePEM(t, filepath.Join(t.TempDir(), "token.crt"), "CERTIFICATE", s.certificate)

	pair := ca.issue(t, "token.test")
	certificate, err := tls.LoadX509KeyPair(pair.cert, pair.key)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(s)
	if at != nil {
		server.Listener.Close()
		server.Listener, err = at.Listen(t.Context(), "tcp", at.HostPort(443)) // the proxy opens no other port for it
		must(t, err)
	}
	server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	server.StartTLS()
	t.Cleanup(server.Close)
	s.addr = server.Listener.Addr().String()
	s.realm = "https://" + s.addr + "/token"
	return s
}

// ServeHTTP answers GET with Basic credentials or none, and the OAuth2 password grant that some clients POST instead.
func (s *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	name, pass, known := r.BasicAuth()
	if r.Method == http.MethodPost {
		name, pass, known = r.Form.Get("username"), r.Form.Get("password"), r.Form.Has("username")
	}
	if known && (name != user || pass != password) {
		http.Error(w, `{"details":"incorrect username or password"}`, http.StatusUnauthorized)
		return
	}
	token, err := s.sign(name, r.Form.Get("service"), granted(r.Form["scope"], known))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	s.tokens.Add(1)
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"token":%q,"access_token":%q,"expires_in":300,"issued_at":%q}`,
		token, token, time.Now().UTC().Format(time.RFC3339))
}

type access struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// granted returns what of the scopes (kind:name:action,action …) the client may do.
func granted(scopes []string, known bool) []access {
	list := []access{}
	for _, scope := range strings.Fields(strings.Join(scopes, " ")) {
		part := strings.Split(scope, ":")
		if len(part) != 3 {
			continue
		}
		a := access{Type: part[0], Name: part[1]}
		for _, action := range strings.Split(part[2], ",") {
			if known || action == "pull" && !strings.HasPrefix(a.Name, "private/") {
				a.Actions = append(a.Actions, action)
			}
		}
		if a.Actions != nil {
			list = append(list, a)
		}
	}
	return list
}

func (s *tokenServer) sign(subject, audience string, grants []access) (string, error) {
	header, err := json.Marshal(map[string]any{"typ": "JWT", "alg": "RS256", "x5c": [][]byte{s.certificate}})
	if err != nil {
		return "", err
	}
	now := time.Now().Unix()
	claims, err := json.Marshal(map[string]any{
		"iss": tokenIssuer, "sub": subject, "aud": audience, "access": grants, "jti": rand.Text(),
		"exp": now + 300, "nbf": now - 10, "iat": now,
	})
	if err != nil {
		return "", err
	}
	encode := base64.RawURLEncoding.EncodeToString
	signed := encode(header) + "." + encode(claims)
	sum := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(rand.Reader, s.key, crypto.SHA256, sum[:])
	return signed + "." + encode(signature), err
}
