//go:build e2e

package e2e

import (
	"slices"
	"strings"
	"testing"
)

// A private registry behind the proxy is what it is without: its own challenge, its own token server, the client's own
// credentials, also for pushes. What the site has of it is there when it is not.
func TestPrivateImagesGoThroughTheProxyWithTheClientsOwnCredentials(t *testing.T) {
	t.Parallel()
	for name, stores := range map[string][]string{"docker20 first": {classic, modern}, "docker29 first": {modern, classic}} {
		t.Run(name, func(t *testing.T) {
			cfg := sealed(t, siteConfig{stores: stores})
			cfg.registry.tokens, cfg.trusted = true, []string{cfg.registry.ca.file} // Docker speaks with the token server itself
			s := startSite(t, cfg)
			one, two := s.node(1), s.node(2)
			want := makeImage(t, "crane")
			s.registry.put(t, "private/app", "v1", want.image)
			private := one.from + "/private/app"

			_, err := one.docker.try(t, "pull", "--quiet", private+":v1")
			if err == nil || !slices.ContainsFunc([]string{"access denied", "denied", "authorization failed", "insufficient_scope", "unauthorized"},
				func(text string) bool { return strings.Contains(err.Error(), text) }) {
				t.Errorf("a pull without credentials: error %v, want Docker's own", err)
			}
			if _, err := one.docker.try(t, "login", "--username", user, "--password", "wrong", one.from); err == nil {
				t.Error("a wrong password was taken")
			}
			for _, n := range s.nodes {
				n.docker.do(t, "login", "--username", user, "--password", password, n.from)
			}
			one.docker.pull(t, private+":v1")
			if got := one.docker.run(t, private+":v1"); got != want.says {
				t.Errorf("docker run printed %q, want %q", got, want.says)
			}

			pushed := one.from + "/private/pushed"
			one.docker.do(t, "tag", private+":v1", pushed+":v1")
			one.docker.push(t, pushed+":v1")
			there := fetchImage(t, "http://"+s.registry.push, "private/pushed", "v1") // compares digests
			two.docker.pull(t, pushed+":v1")
			if got := two.docker.run(t, pushed+":v1"); got != want.says {
				t.Errorf("docker run of what was pushed printed %q, want %q", got, want.says)
			}
			two.docker.do(t, "rmi", pushed+":v1")
			if got := len(there.blobs); got != len(want.blobs) {
				t.Errorf("%d blobs were pushed, want %d", got, len(want.blobs))
			}

			two.awaitHolder(t, one, want.image)
			s.cutWAN(t)
			for _, reference := range []string{private + "@" + want.root().Digest.String(), private + ":v1"} {
				two.docker.pull(t, reference)
				if got := two.docker.run(t, reference); got != want.says {
					t.Errorf("docker run of %s printed %q, want %q", reference, got, want.says)
				}
			}
			for _, n := range s.nodes {
				if log := n.log.String(); strings.Contains(log, password) || strings.Contains(log, "Bearer ") || strings.Contains(log, "Basic ") {
					t.Errorf("the log of node %d holds credentials", n.number)
				}
			}
		})
	}
}
