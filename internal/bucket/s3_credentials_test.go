package bucket

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pier/internal/oci"
)

func TestIdentity(t *testing.T) {
	alone(t)
	file := filepath.Join(t.TempDir(), "credentials")
	text := "[default]\naws_access_key_id=D\naws_secret_access_key=SECRET1\n[other]\naws_access_key_id=O\naws_secret_access_key=SECRET2\n[half]\nx=y\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, profile, env, want string
		refused                  bool
	}{
		{name: "nothing"},
		{name: "environment", env: "AWS_ACCESS_KEY_ID=E AWS_SECRET_ACCESS_KEY=S AWS_SHARED_CREDENTIALS_FILE=" + file, want: "E"},
		{name: "half of it", env: "AWS_ACCESS_KEY_ID=E", refused: true},
		{name: "file", env: "AWS_SHARED_CREDENTIALS_FILE=" + file, want: "D"},
		{name: "AWS_PROFILE", env: "AWS_PROFILE=other AWS_SHARED_CREDENTIALS_FILE=" + file, want: "O"},
		{name: "option", profile: "other", env: "AWS_ACCESS_KEY_ID=E AWS_SECRET_ACCESS_KEY=S AWS_SHARED_CREDENTIALS_FILE=" + file, want: "O"},
		{name: "no such profile", profile: "none", env: "AWS_SHARED_CREDENTIALS_FILE=" + file, refused: true},
		{name: "nothing in it", profile: "half", env: "AWS_SHARED_CREDENTIALS_FILE=" + file, refused: true},
		{name: "no file", env: "AWS_PROFILE=other", refused: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			for setting := range strings.FieldsSeq(test.env) {
				name, value, _ := strings.Cut(setting, "=")
				t.Setenv(name, value)
			}
			v, err := newIdentity(test.profile).get(t.Context())
			if v.AccessKeyID != test.want && !test.refused || (err != nil) != test.refused || err != nil && !errors.Is(err, oci.ErrUnauthorized) {
				t.Errorf("got %q, %v, want %q", v.AccessKeyID, err, test.want)
			}
			if err != nil && (strings.Contains(err.Error(), "SECRET1") || strings.Contains(err.Error(), "SECRET2")) {
				t.Error(err)
			}
		})
	}
}

// TestIdentityNoMetadata has nobody tell what role this machine has: a service that is not there, and one that says nothing.
func TestIdentityNoMetadata(t *testing.T) {
	alone(t)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "")
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, l := range []net.Listener{closed, silent} {
		t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://"+l.Addr().String())
		id, start := newIdentity(""), time.Now()
		for range 2 { // the second time nobody is asked
			if v, err := id.get(t.Context()); v.AccessKeyID != "" || err != nil {
				t.Errorf("got %q, %v, want nothing", v.AccessKeyID, err)
			}
		}
		if took := time.Since(start); took > 2*metadataWait+time.Second {
			t.Errorf("it took %v", took)
		}
	}
}

// TestIdentityRole has a role's credentials expire, by the clock and by what S3 says.
func TestIdentityRole(t *testing.T) {
	alone(t)
	t.Setenv("AWS_CA_BUNDLE", "")
	asked, lasts := 0, time.Hour
	role := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked++; asked == 4 {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		fmt.Fprintf(w, `{"AccessKeyId":"K%d","SecretAccessKey":"SECRET","Token":"T%d","Expiration":%q}`, asked, asked,
			time.Now().Add(lasts).UTC().Format(time.RFC3339Nano))
	}))
	defer role.Close()
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", role.URL)
	var tokens []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := r.Header.Get("X-Amz-Security-Token")
		tokens = append(tokens, token)
		if token == "T1" {
			refuse(w, http.StatusBadRequest, "ExpiredToken", "")
		}
	}))
	defer server.Close()
	b := openS3Test(t, "s3://bucket?endpoint="+server.URL)
	for range 2 {
		if err := b.Delete(t.Context(), "key"); err != nil {
			t.Error(err)
		}
	}
	if got := strings.Join(tokens, " "); got != "T1 T2 T2" {
		t.Errorf("requests were signed with %s", got)
	}
	lasts = 100 * time.Millisecond
	b.identity.expire()
	first, err := b.identity.get(t.Context())
	if err != nil || first.AccessKeyID != "K3" {
		t.Fatal(first.AccessKeyID, err)
	}
	b.identity.until = time.Now() // the time to renew; the service fails, and what there is is good for now
	if v, err := b.identity.get(t.Context()); err != nil && time.Now().Before(first.Expiration) || err == nil && v.AccessKeyID != "K3" {
		t.Errorf("got %q, %v, want those that are good", v.AccessKeyID, err)
	}
	b.identity.until = time.Now()
	if v, err := b.identity.get(t.Context()); err != nil || v.AccessKeyID != "K5" {
		t.Errorf("got %q, %v, want new ones", v.AccessKeyID, err)
	}
}
