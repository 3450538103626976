//go:build e2e

package bucket

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/md5"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"pier/internal/oci"
)

// gateway starts a server that speaks S3, and returns its endpoint.
func gateway(t *testing.T, secure bool) string {
	t.Helper()
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(cmp.Or(os.Getenv("PIER_TOOLS"), filepath.Join(home, ".cache", "pier", "tools")), "bin", "versitygw")
	if _, err := os.Stat(bin); err != nil {
		t.Skipf("NOT TESTED against a real S3 server: it needs the programs of e2e/tools.sh (%v)", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	args, scheme := []string{"--port", address, "--quiet", "--keep-alive"}, "http"
	if secure {
		cert, key := certificate(t, dir)
		args, scheme = append(args, "--cert", cert, "--key", key), "https"
		t.Setenv("AWS_CA_BUNDLE", cert)
	} else {
		t.Setenv("AWS_CA_BUNDLE", "")
	}
	cmd := exec.Command(bin, append(args, "posix", root)...)
	cmd.Env = []string{"ROOT_ACCESS_KEY=test", "ROOT_SECRET_KEY=testsecret", "HOME=" + dir}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it would wait for connections that nobody uses
		_ = cmd.Wait()
	})
	alone(t)
	t.Setenv("AWS_ACCESS_KEY_ID", "test")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "testsecret")
	for deadline := time.Now().Add(10 * time.Second); ; {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
			return scheme + "://" + address
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// certificate makes one for 127.0.0.1, which is its own authority.
func certificate(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// fresh returns a bucket that it makes.
func fresh(t *testing.T, endpoint, name string) *s3 {
	t.Helper()
	b, ok := openTest(t, Config{URL: "s3://" + name + "/some/prefix?endpoint=" + url.QueryEscape(endpoint), Retries: 3}).(*s3)
	if !ok {
		t.Fatal("this is no s3")
	}
	resp, err := b.do(t.Context(), operation{method: http.MethodPut, bucket: true, ok: []int{http.StatusOK}})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return b
}

func TestS3(t *testing.T) {
	for scheme, secure := range map[string]bool{"http": false, "https": true} {
		t.Run(scheme, func(t *testing.T) {
			endpoint, made := gateway(t, secure), 0
			testBucket(t, func(t *testing.T) Bucket {
				t.Helper()
				made++
				return fresh(t, endpoint, fmt.Sprintf("bucket%d", made))
			})
			t.Run("resume", func(t *testing.T) { testResumeS3(t, fresh(t, endpoint, "resume")) })
			t.Run("copy", func(t *testing.T) { testCopyS3(t, fresh(t, endpoint, "copy-from"), fresh(t, endpoint, "copy-to")) })
			t.Run("clean", func(t *testing.T) { testCleanS3(t, fresh(t, endpoint, "clean")) })
			t.Run("refused", func(t *testing.T) {
				b := openTest(t, Config{URL: "s3://none?endpoint=" + url.QueryEscape(endpoint)})
				err := b.Put(t.Context(), "key", 1, bytes.NewReader([]byte("x")), false)
				if !errors.Is(err, oci.ErrNotFound) {
					t.Errorf("Put into no bucket = %v, want ErrNotFound", err)
				}
				t.Setenv("AWS_SECRET_ACCESS_KEY", "other")
				b = openTest(t, Config{URL: "s3://clean?endpoint=" + url.QueryEscape(endpoint)})
				for _, err := range b.List(t.Context(), "") {
					if !errors.Is(err, oci.ErrUnauthorized) {
						t.Errorf("List with a wrong secret = %v, want ErrUnauthorized", err)
					}
				}
			})
		})
	}
}

// testResumeS3 has a Put go on with what another left, whose bytes are not sent again.
func testResumeS3(t *testing.T, b *s3) {
	data := content(5, 4*partSize+7)
	cut := errors.New("cut")
	if err := b.Put(t.Context(), "key", int64(len(data)), failing(data[:3*partSize+1], cut), false); !errors.Is(err, cut) {
		t.Fatalf("Put = %v, want the error of the reader", err)
	}
	u, err := b.begin(t.Context(), "key", nil)
	if err != nil || len(u.old) != 3 {
		t.Fatalf("an upload with %d parts was left, %v, want 3", len(u.old), err)
	}
	for n := range 3 {
		if !u.has(n+1, data[n*partSize:(n+1)*partSize]) || u.has(n+1, data[n*partSize+1:(n+1)*partSize+1]) {
			t.Errorf("part %d is not what was sent, or others are", n+1)
		}
	}
	if secure := b.endpoint.Scheme == "https"; u.checked.Load() != secure {
		t.Errorf("the parts have checksums of their own: %v, want %v", !secure, secure)
	}
	b.release(u.id)
	other := content(6, len(data))
	copy(other, data[:partSize]) // one part of three is as before
	put(t, b, "key", other)
	if !bytes.Equal(get(t, b, "key", 0, -1), other) {
		t.Error("others came back")
	}
	now := &upload{key: "key", parts: map[int]s3Part{}}
	for n := range 5 {
		sum := md5.Sum(other[n*partSize : min((n+1)*partSize, len(other))])
		now.parts[n+1] = s3Part{ETag: hex.EncodeToString(sum[:])}
	}
	if !b.landed(t.Context(), now) || b.landed(t.Context(), u) {
		t.Error("the ETag of an object does not tell what was completed to it")
	}
}

func testCopyS3(t *testing.T, from, to *s3) {
	to.copyMax, to.copyPart = 12<<20, 6<<20
	for _, key := range []string{"small", "a large & strange+one%/ü"} {
		data := content(7, 20)
		if key != "small" {
			data = content(8, 20<<20)
		}
		put(t, from, key, data)
		o, err := from.Stat(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		if err := to.Copy(t.Context(), from, o, key); err != nil || !bytes.Equal(get(t, to, key, 0, -1), data) {
			t.Errorf("Copy of %q = %v, or others came back", key, err)
		}
		o.Version = `"00000000000000000000000000000000"`
		if err := to.Copy(t.Context(), from, o, key); !errors.Is(err, errChanged) {
			t.Errorf("Copy of a version that is not there = %v, want that it changed", err)
		}
	}
	if err := to.Copy(t.Context(), from, Object{Key: "none", Size: 1}, "key"); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("Copy of nothing = %v, want ErrNotFound", err)
	}
	if n, err := to.Clean(t.Context(), time.Now().Add(time.Hour)); n != 0 || err != nil {
		t.Errorf("Copy left %d uploads, %v", n, err)
	}
}

func testCleanS3(t *testing.T, b *s3) {
	for _, key := range []string{"a", "a/b", "z z?&%+ü"} {
		if err := b.Put(t.Context(), key, 2*partSize, failing(content(1, partSize), errors.New("cut")), false); err == nil {
			t.Fatal("Put succeeded")
		}
	}
	if n, err := b.Clean(t.Context(), time.Now().Add(-time.Hour)); n != 0 || err != nil {
		t.Errorf("Clean of what is an hour old = %d, %v, want none", n, err)
	}
	u, err := b.create(context.WithoutCancel(t.Context()), "busy", false)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := b.Clean(t.Context(), time.Now().Add(time.Hour)); n != 3 || err != nil {
		t.Errorf("Clean = %d, %v, want 3: one is at work", n, err)
	}
	b.release(u.id)
	if n, err := b.Clean(t.Context(), time.Now().Add(time.Hour)); n != 1 || err != nil {
		t.Errorf("Clean = %d, %v, want 1", n, err)
	}
}
