package registry

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
)

// BenchmarkManifest compares a warm manifest by tag with a handler that does nothing but write the same bytes, both over
// one TCP connection each.
func BenchmarkManifest(b *testing.B) {
	c := newContent()
	body := make([]byte, c.image.Size)
	rc, _, err := c.Open(b.Context(), app.WithDigest(c.image.Digest), 0, -1)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := io.ReadFull(rc, body); err != nil {
		b.Fatal(err)
	}
	bare := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", ociImage)
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body)
	})
	log, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	pier := New(Config{Source: c, Door: "node", Log: slog.New(slog.NewTextHandler(log, nil))})
	b.Run("bare", func(b *testing.B) { benchGet(b, bare, "/v2/library/app/manifests/v1?ns=docker.io") })
	b.Run("pier", func(b *testing.B) { benchGet(b, pier, "/v2/library/app/manifests/v1?ns=docker.io") })
}

func benchGet(b *testing.B, h http.Handler, path string) {
	url := serve(b, h)
	request := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: registry.test\r\nAccept: %s, %s, %s, %s, */*\r\n\r\n", path, dockerImage, dockerList, ociImage, ociIndex)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			b.Error(err)
			return
		}
		defer conn.Close()
		in := bufio.NewReader(conn)
		for pb.Next() {
			if _, err := io.WriteString(conn, request); err != nil {
				b.Error(err)
				return
			}
			if err := readReply(in); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// readReply reads one answer as cheaply as can be, so that the server is what is measured.
func readReply(in *bufio.Reader) error {
	length := -1
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) == 2 {
			break
		}
		if v, ok := strings.CutPrefix(string(line), "Content-Length: "); ok {
			if length, err = strconv.Atoi(strings.TrimSpace(v)); err != nil {
				return err
			}
		}
	}
	_, err := in.Discard(length)
	return err
}
