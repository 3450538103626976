//go:build e2e

package containerd

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/chain"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// real is a containerd of our own, in a directory of its own.
type real struct {
	bin, dir string
	cmd      *exec.Cmd
}

// eachReal runs test against every major version of containerd that e2e/tools.sh installs.
func eachReal(t *testing.T, test func(t *testing.T, c *real)) {
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	tools := cmp.Or(os.Getenv("PIER_TOOLS"), filepath.Join(home, ".cache", "pier", "tools"))
	for _, version := range []string{"containerd1", "containerd2"} {
		t.Run(version, func(t *testing.T) {
			bin := filepath.Join(tools, version)
			if _, err := os.Stat(filepath.Join(bin, "containerd")); err != nil || os.Getuid() != 0 {
				t.Skipf("NOT TESTED against a real %s: it needs root (uid is %d) and the programs of e2e/tools.sh (%v)", version, os.Getuid(), err)
			}
			dir, err := os.MkdirTemp("", "ctd")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			c := &real{bin: bin, dir: dir}
			c.start(t)
			t.Cleanup(func() { c.stop(t) })
			test(t, c)
		})
	}
}

func (c *real) socket() string { return filepath.Join(c.dir, "c.sock") }

func (c *real) start(t *testing.T) {
	t.Helper()
	config := filepath.Join(c.dir, "config.toml")
	text := fmt.Sprintf(`version = 2
root = "%[1]s/root"
state = "%[1]s/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri"]
[grpc]
  address = "%[1]s/c.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/opt"
`, c.dir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(c.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	c.cmd = exec.Command(filepath.Join(c.bin, "containerd"), "--config", config)
	c.cmd.Stdout, c.cmd.Stderr = log, log
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

func (c *real) stop(t *testing.T) {
	t.Helper()
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	timer := time.AfterFunc(20*time.Second, func() { _ = c.cmd.Process.Kill() })
	defer timer.Stop()
	_ = c.cmd.Wait() // how it ended is not our affair
	if t.Failed() {
		b, _ := os.ReadFile(filepath.Join(c.dir, "log"))
		t.Logf("containerd's log:\n%s", b[max(0, len(b)-5000):])
	}
}

// ctr runs containerd's command line.
func (c *real) ctr(t *testing.T, stdin io.Reader, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, "ctr"), append([]string{"-a", c.socket()}, args...)...)
	cmd.Stdin = stdin
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ctr %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// load imports an image as it is in src into a namespace.
func (c *real) load(t *testing.T, namespace string, src oci.Source, ref oci.Reference) {
	t.Helper()
	manifest, content := imageContent(t, src, ref)
	index := v1.Index{Manifests: []v1.Descriptor{{
		MediaType: v1.MediaTypeImageManifest, Digest: manifest, Size: int64(len(content[manifest])),
		Annotations: map[string]string{"io.containerd.image.name": ref.String()},
		Platform:    &v1.Platform{Architecture: "amd64", OS: "linux"},
	}}}
	index.SchemaVersion = 2
	b, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	add := func(name string, b []byte) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(b))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	add("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	add("index.json", b)
	for dgst, b := range content {
		add("blobs/sha256/"+dgst.Encoded(), b)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	c.ctr(t, &archive, "-n", namespace, "images", "import", "--no-unpack", "--all-platforms", "-")
}

// connect runs a Store until it is ready.
func (c *real) connect(t *testing.T) (*Store, <-chan struct{}) {
	t.Helper()
	s := open(t, Config{Socket: c.socket()})
	changed := run(t, s)
	until(t, changed, "containerd coming up", s.Ready)
	if want := filepath.Join(c.dir, "root", contentDir); s.root() != want {
		t.Fatalf("content directory %s, want %s", s.root(), want)
	}
	t.Logf("containerd %s", s.Version())
	return s, changed
}

func TestRealSource(t *testing.T) {
	eachReal(t, func(t *testing.T, c *real) {
		s, changed := c.connect(t)
		ocitest.TestSource(t, func(t *testing.T, content *ocitest.Memory, ref oci.Reference) oci.Source {
			c.load(t, "default", content, ref)
			until(t, changed, "the image imported", tagged(s, ref))
			return s
		})
	})
}

// What a real containerd stores while Pier runs passes for proven, by the times that its commit leaves on the file; what is
// written to its store otherwise does not.
func TestRealCommitIsNotProvenAgain(t *testing.T) {
	eachReal(t, func(t *testing.T, c *real) {
		s, changed := c.connect(t)
		log := slog.New(slog.DiscardHandler)
		door := chain.Proved(chain.Once(log, source, s))
		time.Sleep(2500 * time.Millisecond) // content must be that much younger than who judges it, by the clock of the filesystem
		var content ocitest.Memory
		ref := oci.Reference{Registry: "registry.test", Repository: "app", Tag: "v1"}
		layer := ocitest.Bytes(1, 100_000)
		content.Image(ref, layer)
		c.load(t, "default", &content, ref)
		until(t, changed, "the image imported", tagged(s, ref))
		blob := oci.Reference{Registry: ref.Registry, Repository: ref.Repository, Kind: oci.Blob, Digest: ocitest.Digest(layer)}
		if desc, err := door.Resolve(t.Context(), blob); err != nil || desc.Missing != 0 {
			t.Errorf("committed: got %+v, %v, want nothing missing", desc, err)
		}
		path := chain.BlobPath(s.root(), blob.Digest)
		if err := os.WriteFile(path, layer[1:], 0o600); err != nil {
			t.Fatal(err)
		}
		other := chain.Proved(chain.Once(log, source, s)) // knows nothing of it yet
		for name, door := range map[string]oci.Source{"known": door, "unknown": other} {
			if _, _, err := ocitest.ReadAll(t.Context(), door, blob); !errors.Is(err, oci.ErrDigestMismatch) {
				t.Errorf("%s and overwritten: got error %v, want ErrDigestMismatch", name, err)
			}
		}
	})
}

func TestRealEvents(t *testing.T) {
	eachReal(t, func(t *testing.T, c *real) {
		s, changed := c.connect(t)
		content := &ocitest.Memory{}
		ref := oci.Reference{Registry: "registry.test", Repository: "app", Tag: "v1"}
		content.Image(ref, ocitest.Bytes(1, 1000))

		c.load(t, "default", content, ref)
		until(t, changed, "the image imported", tagged(s, ref))
		renamed := ref
		renamed.Tag = "v2"
		c.ctr(t, nil, "-n", "default", "images", "tag", ref.String(), renamed.String())
		until(t, changed, "the tag added", tagged(s, renamed))
		c.load(t, "k8s.io", content, ref)
		c.ctr(t, nil, "-n", "default", "images", "rm", "--sync", renamed.String())
		until(t, changed, "the tag removed", untagged(s, renamed))
		if tags, err := s.Tags(t.Context(), ref.Registry, ref.Repository); err != nil || !slices.Equal(tags, []string{ref.Tag}) {
			t.Errorf("tags left: %q, %v, want %q", tags, err, ref.Tag)
		}
		c.ctr(t, nil, "-n", "k8s.io", "images", "rm", "--sync", ref.String())
		c.ctr(t, nil, "-n", "default", "images", "rm", "--sync", ref.String())
		until(t, changed, "the image removed", func() bool {
			_, err := s.Tags(t.Context(), ref.Registry, ref.Repository)
			return errors.Is(err, oci.ErrNotFound)
		})
	})
}

func TestRealRestart(t *testing.T) {
	eachReal(t, func(t *testing.T, c *real) {
		s, changed := c.connect(t)
		content := &ocitest.Memory{}
		ref := oci.Reference{Registry: "registry.test", Repository: "app", Tag: "v1"}
		content.Image(ref, ocitest.Bytes(1, 1000))
		c.load(t, "default", content, ref)
		until(t, changed, "the image imported", tagged(s, ref))

		c.stop(t)
		desc, err := s.Resolve(t.Context(), ref)
		if err != nil {
			t.Fatalf("the tag while containerd is down: %v", err)
		}
		if _, _, err := ocitest.ReadAll(t.Context(), s, ref.WithDigest(desc.Digest)); err != nil {
			t.Errorf("the manifest while containerd is down: %v", err)
		}
		c.start(t)
		next := ref
		next.Tag = "v2"
		content.Image(next, ocitest.Bytes(2, 1000))
		waitFor(t, c.socket())
		c.load(t, "default", content, next)
		until(t, changed, "an image imported after the restart", tagged(s, next))
	})
}

// waitFor waits for a containerd to answer.
func waitFor(t *testing.T, socket string) {
	t.Helper()
	c := newClient(socket)
	defer c.close()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if _, err := c.version(t.Context()); err == nil {
			return
		}
	}
	t.Fatal("containerd does not come up")
}

func TestRealIngest(t *testing.T) {
	eachReal(t, func(t *testing.T, c *real) {
		s, _ := c.connect(t)
		waitFor(t, c.socket())
		layer := ocitest.Bytes(3, 20<<20)
		ref := oci.Reference{Registry: "registry.test", Repository: "app", Kind: oci.Blob, Digest: ocitest.Digest(layer)}
		pr, pw := io.Pipe()
		ingested := make(chan struct{})
		go func() {
			defer close(ingested)
			c.ctr(t, pr, "content", "ingest", "--expected-size", fmt.Sprint(len(layer)),
				"--expected-digest", ref.Digest.String(), "layer-"+ref.Digest.String())
		}()
		if _, err := pw.Write(layer[:10<<20]); err != nil {
			t.Fatal(err)
		}
		src := s.Ingest()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			desc, err := src.Resolve(t.Context(), ref)
			if err == nil {
				t.Logf("%d of %d bytes missing", desc.Missing, desc.Size)
				break
			}
			if !errors.Is(err, oci.ErrNotFound) || time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
		f := follow(t, src, ref, 0, -1)
		if _, err := pw.Write(layer[10<<20:]); err != nil {
			t.Fatal(err)
		}
		pw.Close()
		<-f.end
		<-ingested
		if f.err != nil || !bytes.Equal(f.got.Bytes(), layer) {
			t.Errorf("followed %d of %d bytes, error %v", f.got.Len(), len(layer), f.err)
		}
		if _, err := src.Resolve(t.Context(), ref); !errors.Is(err, oci.ErrNotFound) {
			t.Errorf("after the commit: got error %v, want ErrNotFound", err)
		}
		if b, _, err := ocitest.ReadAll(t.Context(), s, ref); err != nil || !bytes.Equal(b, layer) {
			t.Errorf("the blob committed: got %d bytes, error %v", len(b), err)
		}
	})
}
