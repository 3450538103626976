package oci

import (
	"os"
	"syscall"
)

// TempDir is where large content is spooled that nobody keeps: the directory for large temporary files, since /tmp is often memory. An empty
// name means the system's choice.
func TempDir() string {
	const large, writable = "/var/tmp", 2 // W_OK of access(2)
	if os.Getenv("TMPDIR") != "" || syscall.Access(large, writable) != nil {
		return ""
	}
	return large
}
