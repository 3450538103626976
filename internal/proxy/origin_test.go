package proxy

import (
	"net"
	"net/url"
	"strings"
	"testing"
)

func TestParseAuthority(t *testing.T) {
	for s, want := range map[string]string{
		"registry.test:443": "registry.test:443 registry.test", "Registry.TEST.:5000": "registry.test:5000 registry.test:5000", "10.0.0.1:443": "10.0.0.1:443 10.0.0.1",
		"[::1]:443": "[::1]:443 [::1]", "[2001:DB8::1]:5000": "[2001:db8::1]:5000 [2001:db8::1]:5000", "a_b-c.test:1": "a_b-c.test:1 a_b-c.test:1",
		"[::ffff:10.0.0.1]:443": "[::ffff:10.0.0.1]:443 [::ffff:10.0.0.1]",
	} {
		o, err := parseAuthority(s, "https", 0)
		if got := o.address() + " " + o.name(); err != nil || got != want {
			t.Errorf("%s: got %s, %v, want %s", s, got, err, want)
		}
	}
	for _, s := range []string{
		"", ":443", "registry.test", "registry.test:", "registry.test:0", "registry.test:65536", "registry.test:-1", "registry.test:+1", "registry.test:443 ", " registry.test:443",
		"user@registry.test:443", "http://registry.test:443", "registry.test:443/", "::1:443", "[::1]", "[::1%lo]:443", "[10.0.0.1]:443", "[registry.test]:443", "[::1:443",
		"a..b:443", ".:443", "a b:443", "a\x00b:443", "é.test:443", "registry.test:443:443", strings.Repeat("a", 64) + ":443", strings.Repeat("a.", 130) + "a:443", "*.test:443",
	} {
		if o, err := parseAuthority(s, "https", 0); err == nil {
			t.Errorf("%q was taken as %v", s, o)
		}
	}
	if o, err := parseAuthority("registry.test", "http", 80); err != nil || o.name() != "registry.test" || o.address() != "registry.test:80" {
		t.Errorf("with a default: got %v, %v", o, err)
	}
}

// Whatever a client asks for, what is taken of it reads the same for everybody who sees it later.
func FuzzParseAuthority(f *testing.F) {
	for _, s := range []string{"registry.test:443", "[::1]:443", "10.0.0.1:5000", "A.:1", "user@x:443", "[::1%25lo]:443", "x:443:443", "[x]:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		o, err := parseAuthority(s, "https", 0)
		if err != nil {
			return
		}
		again, err := parseAuthority(o.address(), "https", 0)
		if err != nil || again != o {
			t.Errorf("%q is %v, which reads as %v, %v", s, o, again, err)
		}
		if host, _, err := net.SplitHostPort(o.address()); err != nil || host != o.host {
			t.Errorf("%q: %s splits into %s, %v", s, o.address(), host, err)
		}
		u, err := url.Parse("https://" + o.name() + "/")
		if err != nil || u.Hostname() != o.host || u.User != nil || u.Path != "/" {
			t.Errorf("%q: as a URL it is %v, %v", s, u, err)
		}
	})
}
