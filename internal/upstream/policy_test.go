package upstream

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"pier/internal/oci"
)

// Nothing that a request merely names is dialled, or even resolved, unless it is a public name.
func TestNamesRefused(t *testing.T) {
	for _, name := range []string{
		"localhost", "localhost:5000", "LOCALHOST", "localhost.", "a.localhost", "registry", "registry:5000", "db.local", "x.internal",
		"metadata.google.internal", "router.home.arpa", "127.0.0.1", "127.0.0.1:5000", "127.1", "0x7f.1", "0x7f.0.0.1", "0177.0.0.1", "2130706433",
		"127.0.0.1.", "10.0.0.1", "192.168.1.1:443", "169.254.169.254", "100.64.0.1", "[::1]", "[::1]:5000", "[fe80::1]", "[::ffff:127.0.0.1]",
		"[fd00:ec2::254]", "8.8.8.8", "[2606:4700::1]", "0", "0.0.0.0", "example.0x7f",
	} {
		for _, allow := range [][]string{nil, {"*"}} {
			r := newRegistries(t, Config{Allow: allow})
			_, err := r.Resolve(t.Context(), oci.Reference{Registry: name, Repository: "a", Tag: "b"})
			wantErr(t, name, err, oci.ErrNotAllowed)
		}
	}
	for _, name := range []string{"docker.io", "ghcr.io", "quay.io:443", "registry.example.com:5000", "1.2.3.example"} {
		if !publicName(name) {
			t.Errorf("%s is refused", name)
		}
	}
}

func TestAllow(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"docker.io", "docker.io", true}, {"docker.io", "docker.io:443", true}, {"docker.io", "docker.io:5000", false},
		{"docker.io", "registry-1.docker.io", true}, {"docker.io", "notdocker.io", false}, {"docker.io", "x.docker.io", false},
		{"*.example.com", "a.example.com", true}, {"*.example.com", "a.b.example.com", true}, {"*.example.com", "example.com", false},
		{"*.example.com", "badexample.com", false}, {"*.example.com", "a.example.com:5000", false}, {"*.example.com:*", "a.example.com:5000", true},
		{"reg:5000", "reg:5000", true}, {"reg:5000", "reg:5001", false}, {"reg:5000", "reg", false}, {"reg:*", "reg:5001", true}, {"reg:*", "reg", true},
		{"localhost:*", "localhost:5000", true}, {"[::1]:*", "[::1]:5000", true}, {"Example.COM", "example.com", true},
		{"*", "quay.io", true}, {"*", "10.0.0.1", false},
	} {
		r := newRegistries(t, Config{Allow: []string{c.pattern}})
		_, err := r.current.Load().endpoint(c.name)
		if c.want && err != nil {
			t.Errorf("pattern %s, name %s: %v", c.pattern, c.name, err)
		}
		if !c.want {
			wantErr(t, "pattern "+c.pattern+", name "+c.name, err, oci.ErrNotAllowed)
		}
	}
	for _, s := range []string{"", "*.", "**", "a.*", "a b", "a:x", "http://a", "*.*", "a:"} {
		if _, err := New(Config{Allow: []string{s}}); err == nil {
			t.Errorf("pattern %q was taken", s)
		}
	}
}

func TestRepositoriesAreLimited(t *testing.T) {
	r := newRegistries(t, Config{
		Allow:     []string{"docker.io/library/*", "docker.io/team/app", "quay.io", "quay.io/team/*", "*.example.com/a/*"},
		Upstreams: []Upstream{{Name: "reg.test", Repositories: []string{"team/*", "tools-?"}}, {Name: "all.test"}},
	})
	for name, want := range map[string]bool{
		"docker.io/library/alpine": true, "docker.io/library/a/b": true, "docker.io/team/app": true, "docker.io/team/app2": false, "docker.io/other/x": false,
		"quay.io/any/thing": true, "x.example.com/a/b": true, "x.example.com/b/a": false, "ghcr.io/library/alpine": false,
		"reg.test/team/deep/er": true, "reg.test/tools-1": true, "reg.test/tools-12": false, "reg.test/other": false, "all.test/any": true,
	} {
		d := r.current.Load()
		ref, err := oci.ParseReference(name, oci.DockerHub)
		if err != nil {
			t.Fatal(err)
		}
		e, err := d.endpoint(ref.Registry)
		if err == nil {
			err = d.permits(e, ref.Repository)
		}
		if want && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !want {
			wantErr(t, name, err, oci.ErrNotAllowed)
		}
	}
	if _, err := r.Resolve(t.Context(), oci.Reference{Registry: "reg.test", Repository: "other", Kind: oci.Manifest, Tag: "v1"}); !errors.Is(err, oci.ErrNotAllowed) {
		t.Errorf("asked for what is not allowed: %v", err)
	}
	for _, s := range []string{"docker.io/", "docker.io/[a", "/a"} {
		if _, err := New(Config{Allow: []string{s}}); err == nil {
			t.Errorf("pattern %q was taken", s)
		}
	}
	if _, err := ParsePatterns([]string{"docker.io/library/*"}); err == nil {
		t.Error("a pattern of repositories was taken for one of registries")
	}
	if _, err := New(Config{Upstreams: []Upstream{{Name: "reg.test", Repositories: []string{"[a"}}}}); err == nil {
		t.Error("a pattern without an end was taken")
	}
}

func TestAddresses(t *testing.T) {
	for s, want := range map[string]bool{
		"8.8.8.8": true, "2606:4700::1": true, "::ffff:8.8.8.8": true, "64:ff9b::808:808": true, "2002:808:808::1": true,
		"127.0.0.1": false, "127.8.8.8": false, "0.0.0.0": false, "0.1.2.3": false, "10.1.2.3": false, "172.16.0.1": false, "172.32.0.1": true,
		"192.168.0.1": false, "169.254.169.254": false, "100.64.0.1": false, "100.127.255.255": false, "100.128.0.1": true,
		"192.0.0.8": false, "192.0.2.1": false, "198.18.0.1": false, "198.19.255.255": false, "198.51.100.1": false, "203.0.113.1": false,
		"224.0.0.1": false, "240.0.0.1": false, "255.255.255.255": false,
		"::": false, "::1": false, "::7f00:1": false, "::ffff:127.0.0.1": false, "::ffff:10.0.0.1": false, "fe80::1": false, "fe80::1%eth0": false,
		"fc00::1": false, "fd00:ec2::254": false, "fec0::1": false, "ff02::1": false, "64:ff9b::7f00:1": false, "64:ff9b::a9fe:a9fe": false,
		"64:ff9b:1::1": false, "2002:7f00:1::1": false, "2002:a00:1::1": false, "2001::1": false, "2001:db8::1": false, "3fff::1": false, "100::1": false,
	} {
		err := rules{}.permitAddr(netip.MustParseAddr(s))
		if want && err != nil {
			t.Errorf("%s is refused", s)
		}
		if !want {
			wantErr(t, s, err, oci.ErrNotAllowed)
		}
	}
	listed := rules{listed: true, own: literal("169.254.1.1:5000")}
	for s, want := range map[string]bool{
		"127.0.0.1": true, "10.0.0.1": true, "fd00::1": true, "::1": true, "8.8.8.8": true, "169.254.1.1": true, "::ffff:169.254.1.1": true,
		"169.254.169.254": false, "::ffff:169.254.169.254": false, "fe80::1": false, "64:ff9b::a9fe:a9fe": false, "224.0.0.1": false,
	} {
		if err := listed.permitAddr(netip.MustParseAddr(s)); (err == nil) != want {
			t.Errorf("listed, %s: got error %v", s, err)
		}
	}
}

// A public name that resolves to this machine leads nowhere, at whatever moment it does: the address is checked when it
// is dialled.
func TestRebinding(t *testing.T) {
	s := newSite(t)
	ca := newAuthority(t)
	name := ca.serveTLS(t, "rebind.example.com", s.Proxy, nil)
	s.as(name)
	for _, allow := range [][]string{nil, {"*"}} {
		r := newRegistries(t, Config{Allow: allow, resolver: localNames(t)})
		_, err := r.Resolve(t.Context(), s.tag)
		wantErr(t, "not listed", err, oci.ErrNotAllowed)
		_, _, err = r.Open(t.Context(), s.blob, 0, -1)
		wantErr(t, "not listed", err, oci.ErrNotAllowed)
	}
	if n := s.Count("", ""); n != 0 {
		t.Errorf("it was asked %d times", n)
	}
	r := newRegistries(t, Config{Upstreams: []Upstream{{Name: name, TLS: TLS{CA: ca.file}}}, resolver: localNames(t)})
	if _, err := r.Resolve(t.Context(), s.tag); err != nil {
		t.Errorf("listed: %v", err)
	}
	// An explicit pattern allows private addresses too; then it is the certificate that this machine does not know.
	r = newRegistries(t, Config{Allow: []string{"*.example.com:*"}, resolver: localNames(t)})
	_, err := r.Resolve(t.Context(), s.tag)
	wantErr(t, "allowed by pattern", err, oci.ErrUnavailable)
}

// Redirects and token realms on behalf of a registry that is not listed obey the same rules, and those of a listed one
// never lead to link-local addresses, where clouds keep credentials.
func TestRulesBeyondRegistry(t *testing.T) {
	refused := func(u string, r rules) bool {
		parsed, err := url.Parse(u)
		if err != nil {
			t.Fatal(err)
		}
		return r.permit(parsed) != nil
	}
	for _, u := range []string{"http://cdn.example.com/x", "https://127.0.0.1/x", "https://localhost/x", "https://[::1]/x", "https://10.0.0.1:443/", "https://0x7f.1/"} {
		if !refused(u, rules{}) {
			t.Errorf("%s is permitted to a registry that is not listed", u)
		}
	}
	if refused("https://cdn.example.com/x", rules{}) || refused("http://10.0.0.1/x", rules{listed: true}) {
		t.Error("what is fine is refused")
	}
	metadata := "http://169.254.169.254/latest"
	if !refused(metadata, rules{listed: true}) {
		t.Error("a listed registry may lead to link-local addresses")
	}
	s := newSite(t)
	s.registry.realm = metadata
	r := newRegistries(t, Config{Upstreams: []Upstream{s.entry()}})
	_, err := r.Resolve(t.Context(), s.tag)
	wantErr(t, "realm", err, oci.ErrNotAllowed)
	front := httptest.NewServer(http.RedirectHandler(metadata, http.StatusFound))
	defer front.Close()
	ref := s.tag
	ref.Registry = hostOf(front.URL)
	if err := r.Reload([]Upstream{{Name: ref.Registry, Scheme: "http"}}); err != nil {
		t.Fatal(err)
	}
	_, err = r.Resolve(t.Context(), ref)
	wantErr(t, "redirect", err, oci.ErrNotAllowed)
}

// An HTTP proxy that the environment names may have a private address; what is asked of it obeys the rules for names.
func TestProxyExempt(t *testing.T) {
	var asked string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Host
		w.WriteHeader(http.StatusBadGateway)
	}))
	defer proxy.Close()
	r := newRegistries(t, Config{})
	d := r.current.Load()
	u, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	// net/http reads the environment once in a process, so the test says directly what it would.
	d.public.Transport.(*transport).base.Proxy = func(req *http.Request) (*url.URL, error) {
		d.proxies.remember(u)
		return u, nil
	}
	_, err = r.Resolve(t.Context(), oci.Reference{Registry: "registry.example.com", Repository: "a", Tag: "b"})
	wantErr(t, "proxy that refuses", err, oci.ErrUnavailable)
	if asked != "registry.example.com:443" {
		t.Errorf("the proxy was asked for %q", asked)
	}
}

func FuzzParsePattern(f *testing.F) {
	for _, s := range []string{"docker.io", "*.example.com", "a:5000", "a:*", "[::1]:*", "*"} {
		f.Add(s, "docker.io")
	}
	f.Fuzz(func(t *testing.T, s, name string) {
		p, err := parsePattern(s)
		if err == nil && p.match(name) && !strings.HasSuffix(strings.TrimSuffix(strings.TrimSuffix(name, ":"+p.port), ":443"), p.host) && p.port != "*" {
			t.Errorf("%q matches %q", s, name)
		}
		if publicName(name) && literal(name).IsValid() {
			t.Errorf("%q is an address", name)
		}
	})
}
