package main

import (
	"context"
	"fmt"
	"os/exec"
	"time"
)

// fetch has curl get a URL into a file, and returns how long that took by curl's own clock, which does not count its start.
// The answer must have status 200, or 206 if args ask for a part, and that size in bytes.
func fetch(ctx context.Context, curl, url, file string, size int64, args ...string) (time.Duration, error) {
	args = append(args, "-q", "-s", "-S", "-f", "--noproxy", "*", "--max-time", "120", "-o", file, "-w", "%{time_total} %{size_download}", url)
	out, err := exec.CommandContext(ctx, curl, args...).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("curl %s: %w: %s", url, err, out)
	}
	var took float64
	var got int64
	if _, err := fmt.Sscanf(string(out), "%f %d", &took, &got); err != nil {
		return 0, fmt.Errorf("curl %s: %w: %q", url, err, out)
	}
	if got != size {
		return 0, fmt.Errorf("curl %s: %d bytes, want %d", url, got, size)
	}
	return time.Duration(took * float64(time.Second)), nil
}
