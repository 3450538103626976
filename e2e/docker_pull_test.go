//go:build e2e

package e2e

import (
	"path/filepath"
	"slices"
	"testing"
)

// These tests are about the tests' own tools: what every builder makes, pulled without pier, is what it should be.

func TestDockerClassicPullRuns(t *testing.T) {
	t.Parallel()
	d := startDocker(t, classic, dockerConfig{})
	pullsRun(t, d)
	if _, disk := onDisk(t, filepath.Join(d.root, "overlay2")); disk < 10<<20 {
		t.Errorf("the layers of all images take %d bytes", disk)
	}
}

func TestDockerModernPullRuns(t *testing.T) {
	t.Parallel()
	d := startDocker(t, modern, dockerConfig{apart: true})
	pullsRun(t, d)
	if _, disk := onDisk(t, filepath.Join(d.containerdRoot, "io.containerd.content.v1.content")); disk < 10<<20 {
		t.Errorf("the blobs of all images take %d bytes", disk)
	}
}

func TestDockerKeepsItsImagesAndSeesItsOwnFiles(t *testing.T) {
	t.Parallel()
	for _, version := range []string{classic, modern} {
		t.Run(version, func(t *testing.T) {
			d := startDocker(t, version, dockerConfig{apart: version == classic})
			registry := startRegistry(t, registryConfig{})
			i, reference := sharedImage(t, "crane"), registry.addr+"/app:v1"
			registry.put(t, "app", "v1", i.image)
			d.pull(t, reference)
			d.restart(t)
			if got := d.run(t, reference); got != i.says {
				t.Errorf("docker run after a restart printed %q, want %q", got, i.says)
			}

			file := filepath.Join(t.TempDir(), "app.tar")
			d.do(t, "save", "--output", file, reference)
			d.do(t, "rmi", reference)
			if got := d.images(t); len(got) > 0 {
				t.Errorf("docker images after docker rmi: %q", got)
			}
			d.load(t, file)
			if got := d.run(t, reference); got != i.says {
				t.Errorf("docker run after docker load printed %q, want %q", got, i.says)
			}

			// As after a crash.
			d.kill()
			d.start(t)
			writeFile(t, filepath.Join(d.etc, "certs.d/registry.test/ca.crt"), "seen")
			line := d.inside("cat", "/etc/docker/certs.d/registry.test/ca.crt")
			if got := run(t, line[0], line[1:]...); got != "seen" {
				t.Errorf("inside, the file reads %q", got)
			}
		})
	}
}

func pullsRun(t *testing.T, d *docker) {
	registry := startRegistry(t, registryConfig{})
	for _, builder := range builderNames() {
		t.Run(builder, func(t *testing.T) {
			i := sharedImage(t, builder)
			registry.put(t, builder, "v1", i.image)
			reference := registry.addr + "/" + builder
			d.pull(t, reference+":v1")
			if got, want := d.run(t, reference+":v1", "a", "b c"), i.says+" a b c"; got != want {
				t.Errorf("docker run printed %q, want %q", got, want)
			}
			if got, want := d.images(t), reference+":v1@"+i.root().Digest.String(); !slices.Contains(got, want) {
				t.Errorf("docker images: %q, want %s among them", got, want)
			}
			d.pull(t, reference+"@"+i.root().Digest.String())
		})
	}
}
