//go:build e2e

package bucket

import (
	"bytes"
	"cmp"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestGCS runs what every bucket does against fake-gcs-server.
func TestGCS(t *testing.T) {
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(cmp.Or(os.Getenv("PIER_TOOLS"), filepath.Join(home, ".cache", "pier", "tools")), "bin", "fake-gcs-server")
	if _, err := os.Stat(program); err != nil {
		t.Skipf("NOT TESTED against a server: it needs the programs of e2e/tools.sh (%v)", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(addr)
	cmd := exec.Command(program, "-scheme", "http", "-host", "127.0.0.1", "-port", port, "-backend", "memory", "-public-host", addr)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	})
	for end := time.Now().Add(20 * time.Second); ; {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			break
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	var n atomic.Int64
	testBucket(t, func(t *testing.T) Bucket {
		t.Helper()
		name := fmt.Sprintf("bucket%d", n.Add(1))
		resp, err := http.Post("http://"+addr+"/storage/v1/b", "application/json", strings.NewReader(`{"name":"`+name+`"}`))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		b := openTest(t, Config{URL: "gs://" + name + "/a/prefix?endpoint=http://" + addr, Retries: 2}) // asked how far an upload is, it would finish it
		b.(*gcs).client.backoff = time.Millisecond
		return b
	})
	b := openTest(t, Config{URL: "gs://no-such-bucket?endpoint=http://" + addr})
	if err := b.Put(t.Context(), "key", 1, bytes.NewReader([]byte("x")), true); err == nil || !strings.Contains(err.Error(), "no-such-bucket") {
		t.Errorf("no such bucket: %v", err)
	}
}
