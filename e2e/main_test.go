//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// pierBinary is the program under test: $PIER_BINARY, or built by TestMain as releases are. toolsDir is where tools.sh
// installs.
var pierBinary, toolsDir string

// What the tests run, below toolsDir.
var neededTools = []string{
	"bin/docker-registry", "bin/referrers-registry", "bin/skopeo", "bin/crane", "bin/regctl",
	"bin/avahi-daemon", "bin/avahi-browse", "bin/dbus-daemon", "bin/buildah", "bin/umoci", "bin/pigz",
	"bin/versitygw", "bin/fake-gcs-server",
	"containerd1/containerd", "containerd1/ctr", "containerd2/containerd", "containerd2/ctr",
	"docker20/dockerd", "docker20/docker", "docker29/dockerd", "docker29/docker",
}

func TestMain(m *testing.M) {
	code, err := prepareAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func prepareAndRun(m *testing.M) (int, error) {
	if os.Geteuid() != 0 {
		return 0, fmt.Errorf("these tests start containerd and mount a tmpfs: run them as root")
	}
	if err := findTools(); err != nil {
		return 0, err
	}
	if err := os.Setenv("PATH", os.Getenv("PATH")+":"+filepath.Join(toolsDir, "bin")); err != nil { // for what a machine may lack
		return 0, err
	}
	if pierBinary = os.Getenv("PIER_BINARY"); pierBinary != "" {
		return m.Run(), nil
	}
	dir, err := os.MkdirTemp("", "pier-e2e-bin-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	pierBinary = filepath.Join(dir, "pier")
	build := exec.Command("make", "-C", "..", "build", "BIN="+pierBinary, "VERSION=e2e")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%s: %w\n%s", strings.Join(build.Args, " "), err, out)
	}
	return m.Run(), nil
}

// findTools sets toolsDir, and returns an error that names every missing program.
func findTools() error {
	toolsDir = os.Getenv("PIER_TOOLS")
	if toolsDir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return err
		}
		toolsDir = filepath.Join(home, ".cache", "pier", "tools")
	}
	var missing []string
	for _, tool := range neededTools {
		if _, err := os.Stat(filepath.Join(toolsDir, tool)); err != nil {
			missing = append(missing, tool)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("not in %s: %s (run make test, or e2e/tools.sh e2e)", toolsDir, strings.Join(missing, ", "))
	}
	return nil
}

// tool returns the path of one of neededTools.
func tool(name string) string { return filepath.Join(toolsDir, name) }
