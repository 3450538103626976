package upstream

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestReadFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "upstreams.yaml")
	if err := os.WriteFile(path, []byte(`
- name: docker.io
  description: Docker Hub
  auth: {user: alice, passwordFromEnv: HUB_PASSWORD}
  mirrors: [mirror.example.com, "10.0.0.1:5000"]
- name: "10.0.0.1:5000"
  scheme: http
- name: registry.example.com
  tls: {ca: /etc/ca.pem, cert: /etc/cert.pem, key: /etc/key.pem, insecure_skip_verify: false}
  auth: {user: bob, password: "1234"}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	want := []Upstream{
		{Name: "docker.io", Description: "Docker Hub", Auth: Auth{User: "alice", PasswordFromEnv: "HUB_PASSWORD"}, Mirrors: []string{"mirror.example.com", "10.0.0.1:5000"}},
		{Name: "10.0.0.1:5000", Scheme: "http"},
		{Name: "registry.example.com", TLS: TLS{CA: "/etc/ca.pem", Cert: "/etc/cert.pem", Key: "/etc/key.pem"}, Auth: Auth{User: "bob", Password: "1234"}},
	}
	got, err := ReadFile(path)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, error %v, want %+v", got, err, want)
	}
	if _, err := ReadFile(path + ".absent"); err == nil {
		t.Error("a file that is not there was read")
	}
	for _, text := range []string{"", "[]", "# nothing yet"} {
		if got, err := parse([]byte(text)); err != nil || len(got) != 0 {
			t.Errorf("%q: got %v, error %v", text, got, err)
		}
	}
}

// All faults are told at once, each with its entry and field, and no password with them.
func TestReadFileFaults(t *testing.T) {
	_, err := parse([]byte(`
- name: a.example.com
  tsl: {}
- description: no name
- name: https://b.example.com
- name: c.example.com
  scheme: ftp
  auth: {password: s3cret}
  tls: {cert: x}
- name: c.example.com
  auth: {user: u, password: s3cret, passwordFile: f}
  mirrors: ["bad host", c.example.com]
- name: d.example.com
  auth: s3cret
- name: e.example.com
  scheme: http
  tls: {insecure_skip_verify: true}
  auth: {user: u}
`))
	if err == nil {
		t.Fatal("it was taken")
	}
	for _, want := range []string{
		"entry 1 (a.example.com): field tsl not found", "entry 2: name: missing", "entry 3 (https://b.example.com): name: not host[:port]",
		"entry 4 (c.example.com): scheme:", "entry 4 (c.example.com): auth: user: missing", "entry 4 (c.example.com): tls: cert and key go together",
		"entry 5 (c.example.com): name: listed before", "entry 5 (c.example.com): auth: only one of", `entry 5 (c.example.com): mirrors: "bad host"`,
		"entry 5 (c.example.com): mirrors: the upstream itself", "entry 6 (d.example.com): cannot unmarshal", "entry 7 (e.example.com): tls: of no use",
		"entry 7 (e.example.com): auth: password: missing",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q", want)
		}
	}
	if strings.Contains(err.Error(), "s3cret") {
		t.Error("the error tells a password")
	}
	if t.Failed() {
		t.Log(err)
	}
	for _, text := range []string{"name: x", "- name: a.b\n---\n- name: c.d", "- [", "- 1", "-\n"} {
		if _, err := parse([]byte(text)); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

// Files and variables that an entry names are read when the configuration is, and all that lack are told.
func TestNewFaults(t *testing.T) {
	_, err := New(Config{Allow: []string{"a b"}, Upstreams: []Upstream{
		{Name: "a.test", TLS: TLS{CA: "/nonexistent/ca", Cert: "/nonexistent/cert", Key: "/nonexistent/key"}},
		{Name: "b.test", Auth: Auth{User: "u", PasswordFromEnv: "NOT_SET_ANYWHERE"}},
		{Name: "c.test", Auth: Auth{User: "u", PasswordFile: "/nonexistent/password"}},
	}})
	for _, want := range []string{`"a b"`, "(a.test): tls: ca:", "tls: cert:", "(b.test): auth: passwordFromEnv: NOT_SET_ANYWHERE", "(c.test): auth: passwordFile:"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got error %v, want %q in it", err, want)
		}
	}
}

func TestAuthPrintsNoPassword(t *testing.T) {
	if s := fmt.Sprintf("%v %+v", Upstream{Auth: Auth{User: "u", Password: "s3cret"}}, Auth{Password: "s3cret"}); strings.Contains(s, "s3cret") {
		t.Error(s)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("- name: a.test\n  auth: {user: u, password: p}\n  mirrors: [b.test]\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		upstreams, err := parse(b)
		if err == nil && len(validate(upstreams)) != 0 {
			t.Errorf("%q was taken", b)
		}
	})
}
