//go:build e2e

package gzexact

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd/era120/zstd"
)

const coverageFile = "../../docs/recompression.md"

var writeCoverage = flag.Bool("write", false, "write the table of "+coverageFile)

// A made stream is one that a real program made of the content, at a level if it was told one.
type made struct {
	by, level string
	stream    []byte
	own       time.Duration // processor time the program took for nothing but compressing; 0 if that is not known
	old       bool          // it is of a version whose streams cannot all be made again
}

// TestCoverage learns streams of the real programs and makes them again. With -args -write
// it writes the table in docs/recompression.md.
func TestCoverage(t *testing.T) {
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	tools := filepath.Join(cmp.Or(os.Getenv("PIER_TOOLS"), filepath.Join(home, ".cache", "pier", "tools")), "bin")
	t.Setenv("PATH", tools+string(os.PathListSeparator)+os.Getenv("PATH"))
	layer := filepath.Join(t.TempDir(), "layer.tar")
	writeLayer(t, layer)

	var table strings.Builder
	table.WriteString("| made by | level | encoder | exact | rebuilt, MB/s | its own speed |\n|---|---|---|---|---|---|\n")
	for _, program := range []struct {
		name string
		make func(*testing.T, string) []made
	}{
		{"Go", makeGo}, {"gzip", makeGzip}, {"pigz", makePigz}, {"python3", makePython}, {"crane", makeCrane},
		{"umoci", makeUmoci}, {"buildah", makeBuildah}, {"skopeo", makeSkopeo}, {"Go", makeZstd}, {"regctl", makeRegctl}, {"skopeo", makeSkopeoZstd},
	} {
		t.Run(program.name, func(t *testing.T) {
			if _, err := exec.LookPath(program.name); err != nil && program.name != "Go" {
				t.Skipf("NOT TESTED: no %s here; e2e/tools.sh e2e unpacks it: %v", program.name, err)
			}
			streams := program.make(t, layer)
			if len(streams) == 0 {
				t.Error("it made no stream")
			}
			for _, m := range streams {
				table.WriteString(cover(t, m))
			}
		})
	}
	if *writeCoverage && !t.Failed() {
		replaceTable(t, table.String())
	}
}

// cover learns the recipe of a stream, makes the stream by it, and returns a row of the table.
func cover(t *testing.T, m made) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	content, err := decompress(m.stream)
	if err != nil {
		t.Fatal(err)
	}
	r, _, err := learn(m.stream, content)
	if err != nil {
		if !m.old {
			t.Errorf("%s, level %s: %v", m.by, m.level, err)
		}
		return fmt.Sprintf("| %s | %s | | no | | |\n", m.by, m.level)
	}
	var b bytes.Buffer
	took := fastest(func() time.Duration {
		b.Reset()
		start := processor()
		if err := r.Encode(ctx, &b, bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
		return processor() - start
	})
	if !bytes.Equal(b.Bytes(), m.stream) {
		t.Errorf("%s, level %s: %s made another stream than it was learned from", m.by, m.level, r)
	}
	t.Logf("%s, level %s, %d bytes: %s", m.by, m.level, len(m.stream), r)
	own := ""
	if m.own > 0 {
		own = fmt.Sprintf("%.0f", float64(len(content))/1e6/m.own.Seconds())
	}
	return fmt.Sprintf("| %s | %s | %s %d | yes | %.0f | %s |\n", m.by, m.level, r.codec, r.level, float64(len(content))/1e6/took.Seconds(), own)
}

// processor returns the processor time spent by this process.
func processor() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// fastest calls measure three times if speeds are to be written, and once otherwise.
func fastest(measure func() time.Duration) time.Duration {
	least := measure()
	for range 2 {
		if *writeCoverage {
			least = min(least, measure())
		}
	}
	return least
}

// writeLayer writes a layer of what this machine has: Go's sources and programs, and a file that does not compress.
func writeLayer(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	add := func(name string, b []byte) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(b)), ModTime: time.Unix(1e9, 0)}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	out, _ := run(t, "", "go", "env", "GOROOT")
	root := strings.TrimSpace(string(out))
	left := 7_000_000
	err = filepath.WalkDir(filepath.Join(root, "src", "net"), func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || left < 0 {
			return err
		}
		b, err := os.ReadFile(p)
		add(strings.TrimPrefix(p, root+"/"), b)
		left -= len(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(filepath.Join(root, "bin", "gofmt"))
	if err != nil {
		t.Fatal(err)
	}
	add("bin/gofmt", program)
	add("opt/content", content(5_000_000))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// run runs a program, and returns what it wrote and the processor time it took.
func run(t *testing.T, stdin string, args ...string) ([]byte, time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if stdin != "" {
		f, err := os.Open(stdin)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.Stdin = f
	}
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, errs.Bytes())
	}
	return out.Bytes(), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
}

// compress is run for a program that does nothing else, measured as [fastest] does.
func compress(t *testing.T, stdin string, args ...string) (out []byte, took time.Duration) {
	t.Helper()
	took = fastest(func() (d time.Duration) {
		out, d = run(t, stdin, args...)
		return d
	})
	return out, took
}

// version returns the first version in what a program says of itself.
func version(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return regexp.MustCompile(`[0-9]+(\.[0-9]+)+`).FindString(string(out))
}

func makeGo(t *testing.T, layer string) (all []made) {
	content, err := os.ReadFile(layer)
	if err != nil {
		t.Fatal(err)
	}
	for level := range 10 {
		var b bytes.Buffer
		took := fastest(func() time.Duration {
			b.Reset()
			start := processor()
			z, err := gzip.NewWriterLevel(&b, level)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := z.Write(content); err != nil {
				t.Fatal(err)
			}
			if err := z.Close(); err != nil {
				t.Fatal(err)
			}
			return processor() - start
		})
		all = append(all, made{by: "Go " + strings.TrimPrefix(runtime.Version(), "go"), level: fmt.Sprint(level), stream: b.Bytes(), own: took})
	}
	return all
}

func makeGzip(t *testing.T, layer string) (all []made) {
	name := "GNU gzip " + version(t, "gzip", "--version")
	for level := 1; level <= 9; level++ {
		out, took := compress(t, "", "gzip", "-c", fmt.Sprintf("-%d", level), layer)
		all = append(all, made{by: name, level: fmt.Sprint(level), stream: out, own: took})
	}
	return all
}

func makePigz(t *testing.T, layer string) (all []made) {
	name := "pigz " + version(t, "pigz", "--version")
	for level := 1; level <= 9; level++ {
		out, took := compress(t, layer, "pigz", "-c", "-p2", fmt.Sprintf("-%d", level))
		all = append(all, made{by: name, level: fmt.Sprint(level), stream: out, own: took})
	}
	out, took := compress(t, layer, "pigz", "-c", "-nT", "-p1")
	return append(all, made{by: name + " -p1", level: "6", stream: out, own: took})
}

func makePython(t *testing.T, layer string) (all []made) {
	out, _ := run(t, "", "python3", "-c", "import zlib, platform; print(platform.python_version(), zlib.ZLIB_RUNTIME_VERSION)")
	versions := strings.Fields(string(out))
	if len(versions) != 2 {
		t.Fatalf("python3 says %q", out)
	}
	name := fmt.Sprintf("Python %s, zlib %s", versions[0], versions[1])
	const program = "import sys, gzip; sys.stdout.buffer.write(gzip.compress(sys.stdin.buffer.read(), %d))"
	_, idle := compress(t, "", "python3", "-c", "import gzip")
	for level := 1; level <= 9; level++ {
		out, took := compress(t, layer, "python3", "-c", fmt.Sprintf(program, level))
		all = append(all, made{by: name, level: fmt.Sprint(level), stream: out, own: took - idle})
	}
	return all
}

func makeCrane(t *testing.T, layer string) []made {
	out := filepath.Join(t.TempDir(), "image.tar")
	run(t, "", "crane", "append", "-f", layer, "-t", "registry.test/image:v1", "-o", out)
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err != nil {
			t.Fatalf("no layer in what crane wrote: %v", err)
		}
		if strings.HasSuffix(h.Name, ".tar.gz") {
			b, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			return []made{{by: "crane " + version(t, "crane", "version"), level: "its own", stream: b}}
		}
	}
}

func makeUmoci(t *testing.T, layer string) []made {
	layout := filepath.Join(t.TempDir(), "layout")
	umociImage(t, layout, layer)
	return layers(t, "umoci "+version(t, "umoci", "--version"), layout)
}

func umociImage(t *testing.T, layout, layer string) {
	run(t, "", "umoci", "init", "--layout", layout)
	run(t, "", "umoci", "new", "--image", layout+":v1")
	run(t, "", "umoci", "insert", "--image", layout+":v1", layer, "/layer.tar")
}

func makeBuildah(t *testing.T, layer string) []made {
	if os.Getuid() != 0 {
		t.Skip("NOT TESTED: buildah needs root here")
	}
	dir := t.TempDir()
	policy := filepath.Join(dir, "policy.json")
	if err := os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	buildah := []string{"buildah", "--root", dir + "/root", "--runroot", dir + "/run", "--storage-driver", "vfs"}
	out, _ := run(t, "", append(buildah, "from", "--signature-policy", policy, "scratch")...)
	name := strings.TrimSpace(string(out))
	run(t, "", append(buildah, "add", name, layer, "/files")...)
	run(t, "", append(buildah, "commit", "--disable-compression=false", "--signature-policy", policy, name, "oci:"+dir+"/layout:v1")...)
	return layers(t, "buildah "+version(t, "buildah", "--version"), dir+"/layout")
}

func makeSkopeo(t *testing.T, layer string) []made { return skopeoLayers(t, layer) }

// makeSkopeoZstd has a program compress by zstd as of 2022.
func makeSkopeoZstd(t *testing.T, layer string) []made {
	all := skopeoLayers(t, layer, "--dest-compress-format", "zstd")
	for i := range all {
		all[i].by += ", zstd as of 2022"
		all[i].old = true
	}
	return all
}

func skopeoLayers(t *testing.T, layer string, flags ...string) []made {
	dir := t.TempDir()
	if _, err := exec.LookPath("umoci"); err != nil {
		t.Skipf("NOT TESTED: skopeo needs an image of umoci: %v", err)
	}
	umociImage(t, dir+"/layout", layer)
	run(t, "", "skopeo", "copy", "--insecure-policy", "--dest-decompress", "oci:"+dir+"/layout:v1", "dir:"+dir+"/plain")
	run(t, "", slices.Concat([]string{"skopeo", "copy", "--insecure-policy", "--dest-compress"}, flags, []string{"dir:" + dir + "/plain", "dir:" + dir + "/compressed"})...)
	return layers(t, "skopeo "+version(t, "skopeo", "--version"), dir+"/compressed")
}

// makeZstd compresses as BuildKit, buildah and others do, each level whole and with the first bytes flushed.
func makeZstd(t *testing.T, layer string) (all []made) {
	content, err := os.ReadFile(layer)
	if err != nil {
		t.Fatal(err)
	}
	for level := zstd.SpeedFastest; level <= zstd.SpeedBetterCompression; level++ {
		for _, by := range []struct {
			name    string
			content func() io.Reader
		}{
			{"BuildKit's way", func() io.Reader { return bytes.NewReader(content) }},
			{"buildah's way", func() io.Reader {
				return io.MultiReader(bytes.NewReader(content[:8]), struct{ io.Reader }{bytes.NewReader(content[8:])})
			}},
		} {
			var b bytes.Buffer
			took := fastest(func() time.Duration {
				b.Reset()
				start := processor()
				z, err := zstd.NewWriter(&b, zstd.WithEncoderLevel(level))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(z, by.content()); err != nil {
					t.Fatal(err)
				}
				if err := z.Close(); err != nil {
					t.Fatal(err)
				}
				return processor() - start
			})
			all = append(all, made{by: "zstd of klauspost/compress 1.20.0, " + by.name, level: level.String(), stream: b.Bytes(), own: took})
		}
	}
	return all
}

// makeRegctl has a program compress by zstd that is built with a version of its own.
func makeRegctl(t *testing.T, layer string) []made {
	if _, err := exec.LookPath("umoci"); err != nil {
		t.Skipf("NOT TESTED: regctl needs an image of umoci: %v", err)
	}
	dir := t.TempDir()
	umociImage(t, dir+"/layout", layer)
	run(t, "", "regctl", "image", "mod", "ocidir://"+dir+"/layout:v1", "--layer-compress", "zstd", "--create", "ocidir://"+dir+"/zstd:v1")
	return layers(t, "regctl "+version(t, "regctl", "version", "--format", "{{.VCSTag}}"), dir+"/zstd")
}

// layers returns the gzip and zstd streams in a directory.
func layers(t *testing.T, by, dir string) (all []made) {
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		if bytes.HasPrefix(b, []byte("\x1f\x8b")) || bytes.HasPrefix(b, []byte("\x28\xb5\x2f\xfd")) {
			all = append(all, made{by: by, level: "its own", stream: b})
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// replaceTable puts the table in the place of the one that is there.
func replaceTable(t *testing.T, table string) {
	doc, err := os.ReadFile(coverageFile)
	if err != nil {
		t.Fatal(err)
	}
	old := regexp.MustCompile(`(?m)^\| made by(.*\n)(\|.*\n)*`)
	if !old.Match(doc) {
		t.Fatalf("no table in %s", coverageFile)
	}
	if err := os.WriteFile(coverageFile, old.ReplaceAllLiteral(doc, []byte(table)), 0o644); err != nil {
		t.Fatal(err)
	}
}
