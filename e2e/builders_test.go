//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// A builder makes an image of the guest's layers in its own way and pushes it to reference. Layer 0 is the program itself.
type builder func(t *testing.T, g guest, reference string)

// builders are the ways that images come into the world, each with its own tar writer, compressor and manifest.
var builders = map[string]builder{
	"docker":   buildByDocker(classic, "0"),
	"buildkit": buildByDocker(modern, "1"),
	"buildah":  buildByBuildah(),
	"umoci":    buildByUmoci,
	"crane":    buildByCrane(),
	"gzip":     buildByCrane("gzip"),
	"pigz":     buildByCrane("pigz"),
	"python":   buildByCrane("python3", "-c", pythonGzip),

	"buildkit, zstd": buildZstdByBuildKit,
	"buildah, zstd":  buildByBuildah("--compression-format", "zstd"),
}

// zstd says which builders make layers of zstd, which Docker reads since 23.
func zstd(builder string) bool { return strings.HasSuffix(builder, ", zstd") }

// builderNames returns the keys of builders whose layers every Docker reads, in the order of the alphabet.
func builderNames() []string { return slices.DeleteFunc(slices.Sorted(maps.Keys(builders)), zstd) }

// A guest is the program testdata/guest, and the seed of what it makes.
type guest struct{ program, seed string }

// guestLayers is how many layers the program makes, besides the one that it is.
const guestLayers = 3

// buildGuest returns the program in images: static, so that it needs nothing else there.
var buildGuest = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "pier-e2e-guest-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "guest")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", file, "./testdata/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("guest: %w\n%s", err, out)
	}
	return os.ReadFile(file)
})

// layer makes layer n, counted from 0, in the tree at root.
func (g guest) layer(t *testing.T, n int, root string) {
	t.Helper()
	if n == 0 {
		must(t, copyFile(filepath.Join(root, "guest"), g.program))
		must(t, os.Chmod(filepath.Join(root, "guest"), 0o755))
		return
	}
	run(t, g.program, "layer", fmt.Sprint(n), g.seed, root)
}

// A builtImage is one that a builder has made: four layers of text, random bytes, a hard link, long names and a whiteout.
type builtImage struct {
	*image
	says string // what docker run prints, if its files are what they should be
}

// makeImage makes a new image by one of builders, which shares no layer with any other. It is not the same when the test runs
// again, as its files have other times.
func makeImage(t *testing.T, builder string) *builtImage {
	t.Helper()
	program, err := buildGuest()
	must(t, err)
	var seed [8]byte
	_, _ = newRandom(t).Read(seed[:]) // never fails
	g := guest{filepath.Join(t.TempDir(), "guest"), fmt.Sprintf("%s-%x", builder, seed)}
	must(t, os.WriteFile(g.program, program, 0o755))
	r := startRegistry(t, registryConfig{})
	builders[builder](t, g, r.push+"/app:v1")
	i := fetchImage(t, "http://"+r.push, "app", "v1")
	if got := len(i.blobs) - 1; got != 1+guestLayers {
		t.Fatalf("%s made %d layers, want %d", builder, got, 1+guestLayers)
	}
	return &builtImage{i, "guest " + g.seed}
}

// imagesMade holds what sharedImage has made so far.
var imagesMade sync.Map // of *madeImage by builder

type madeImage struct {
	sync.Mutex // guards the image, and is held while it is made
	*builtImage
}

// sharedImage returns an image that one of builders made for the first test that asked. It is for tests that do not mind
// who else has it.
func sharedImage(t *testing.T, builder string) *builtImage {
	t.Helper()
	entry, _ := imagesMade.LoadOrStore(builder, new(madeImage))
	made := entry.(*madeImage)
	made.Lock()
	defer made.Unlock()
	if made.builtImage == nil {
		made.builtImage = makeImage(t, builder)
	}
	return made.builtImage
}

// fetchImage reads a single-platform image from the registry at base.
func fetchImage(t *testing.T, base, repository, reference string) *image {
	t.Helper()
	c := newClient(base, "")
	a := c.get(t, repository+"/manifests/"+reference, "Accept", manifestTypes)
	a.wantStatus(t, reference, http.StatusOK)
	var m v1.Manifest
	a.decode(t, &m)
	i := &image{manifests: []blob{newBlob(a.header.Get("Content-Type"), a.body)}}
	for _, desc := range slices.Concat([]v1.Descriptor{m.Config}, m.Layers) {
		a := c.get(t, repository+"/blobs/"+desc.Digest.String())
		a.wantStatus(t, desc.Digest.String(), http.StatusOK)
		if digest.FromBytes(a.body) != desc.Digest {
			t.Fatalf("blob %s: %d bytes of another digest", desc.Digest, len(a.body))
		}
		i.blobs = append(i.blobs, blob{desc, a.body})
	}
	return i
}

// buildByDocker has a Docker of its own build and push, by its classic builder or, if kit is "1", by its BuildKit.
func buildByDocker(version, kit string) builder {
	return func(t *testing.T, g guest, reference string) {
		d := startDocker(t, version, dockerConfig{})
		defer d.stop(t)
		d.build(t, kit, g.context(t), "--tag", reference)
		d.push(t, reference)
	}
}

// buildZstdByBuildKit has BuildKit compress by zstd.
func buildZstdByBuildKit(t *testing.T, g guest, reference string) {
	d := startDocker(t, modern, dockerConfig{})
	defer d.stop(t)
	d.build(t, "1", g.context(t), "--output", "type=image,name="+reference+",compression=zstd,force-compression=true")
	d.push(t, reference)
}

// context returns a directory with a Dockerfile.
func (g guest) context(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	g.layer(t, 0, dir)
	dockerfile := "FROM scratch\nCOPY guest /guest\n"
	for n := range guestLayers {
		line, err := json.Marshal([]string{"/guest", "layer", fmt.Sprint(n + 1), g.seed})
		must(t, err)
		dockerfile += "RUN " + string(line) + "\n"
	}
	writeFile(t, filepath.Join(dir, "Dockerfile"), dockerfile+"ENTRYPOINT [\"/guest\"]\n")
	return dir
}

// buildByBuildah commits layer by layer, with a store and a configuration that are the test's own, and pushes with further flags.
func buildByBuildah(flags ...string) builder {
	return func(t *testing.T, g guest, reference string) { buildahBuild(t, g, reference, flags) }
}

func buildahBuild(t *testing.T, g guest, reference string, flags []string) {
	t.Helper()
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, ".config/containers/policy.json"), `{"default":[{"type":"insecureAcceptAnything"}]}`)
	writeFile(t, filepath.Join(dir, "registries.conf"), "")
	buildah := func(args ...string) string {
		t.Helper()
		// What it remembers of blobs, it puts in /var/lib.
		line := slices.Concat([]string{
			"env", "HOME=" + dir, "CONTAINERS_REGISTRIES_CONF=" + filepath.Join(dir, "registries.conf"),
			"unshare", "--mount", "sh", "-c", `mount -t tmpfs tmpfs /var/lib && exec "$@"`, "sh",
			tool("bin/buildah"), "--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"),
			"--storage-driver", "vfs",
		}, args)
		return run(t, line[0], line[1:]...)
	}
	from := "scratch"
	for n := range 1 + guestLayers {
		container := buildah("from", "--pull-never", from)
		g.layer(t, n, buildah("mount", container))
		from = fmt.Sprint("localhost/layer", n)
		buildah("config", "--entrypoint", `["/guest"]`, container)
		buildah("commit", "--quiet", container, from)
	}
	buildah(slices.Concat([]string{"push", "--quiet", "--tls-verify=false"}, flags, []string{from, "docker://" + reference})...)
}

// buildByUmoci adds to an OCI layout layer by layer, which skopeo copies.
func buildByUmoci(t *testing.T, g guest, reference string) {
	layout := filepath.Join(t.TempDir(), "layout")
	at, bundle := layout+":v1", filepath.Join(t.TempDir(), "bundle")
	umoci := tool("bin/umoci")
	run(t, umoci, "init", "--layout", layout)
	run(t, umoci, "new", "--image", at)
	run(t, umoci, "unpack", "--image", at, bundle)
	for n := range 1 + guestLayers {
		g.layer(t, n, filepath.Join(bundle, "rootfs"))
		run(t, umoci, "repack", "--refresh-bundle", "--image", at, bundle)
	}
	run(t, umoci, "config", "--image", at, "--config.entrypoint", "/guest", "--os", "linux", "--architecture", "amd64")
	run(t, tool("bin/skopeo"), "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", "oci:"+at, "docker://"+reference)
}

// pythonGzip compresses the file that is its argument, as gzip does.
const pythonGzip = `
import gzip, shutil, sys
with open(sys.argv[1], "rb") as plain, gzip.open(sys.argv[1] + ".gz", "wb") as zipped:
    shutil.copyfileobj(plain, zipped)
`

// buildByCrane has GNU tar write the layers, compress make a .gz of each, and crane an image of them. Without compress,
// that is left to crane.
func buildByCrane(compress ...string) builder {
	return func(t *testing.T, g guest, reference string) {
		args := []string{"append", "--new_tag", reference}
		for n := range 1 + guestLayers {
			root, archive := t.TempDir(), filepath.Join(t.TempDir(), fmt.Sprintf("layer%d.tar", n))
			g.layer(t, n, root)
			run(t, "tar", "--sort=name", "--create", "--file", archive, "--directory", root, ".")
			if len(compress) > 0 {
				program := compress[0]
				if program == "pigz" {
					program = tool("bin/pigz")
				} else if _, err := exec.LookPath(program); err != nil {
					t.Skipf("SKIPPED, the machine has no %s: %v", program, err)
				}
				run(t, program, append(slices.Clone(compress[1:]), archive)...)
				archive += ".gz"
			}
			args = append(args, "--new_layer", archive)
		}
		run(t, tool("bin/crane"), args...)
		run(t, tool("bin/crane"), "mutate", "--entrypoint", "/guest", "--tag", reference, reference)
	}
}
