package proxy

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

// What a pull costs through the proxy, without TLS and with it ended here.
func BenchmarkPull(b *testing.B) {
	const size = 64 << 20
	file := filepath.Join(b.TempDir(), "blob")
	if err := os.WriteFile(file, make([]byte, size), 0o600); err != nil {
		b.Fatal(err)
	}
	for _, name := range []string{"http", "https", "h2"} {
		b.Run(name, func(b *testing.B) {
			s := newSite(b, func(c *Config) {
				c.Registry = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) })
			})
			client := s.client(b, func(tr *http.Transport) { tr.ForceAttemptHTTP2 = name == "h2" })
			base := map[string]string{"http": "http://registry.test"}[name]
			if base == "" {
				base = "https://registry.test"
			}
			b.SetBytes(size)
			for b.Loop() {
				resp, err := client.Get(base + "/v2/a/blobs/" + someDigest)
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != size {
					b.Fatal(n, err)
				}
				resp.Body.Close()
			}
		})
	}
}
