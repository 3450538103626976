package node

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// rest gives memory back to the system once after work, which the runtime of the language would do after minutes only.
func (n *Node) rest() {
	switch served := n.served.Load(); {
	case n.serving.Load() > 0:
	case served != n.worked:
		n.worked, n.rested = served, false
	case !n.rested:
		debug.FreeOSMemory()
		if err := unmapProgram(); err != nil {
			n.log.Debug("pages of the program not given back", "err", err)
		}
		n.rested = true
	}
}

// unmapProgram gives back the pages of the program itself: most of what is mapped after a start is code that runs only then. What
// is needed again is mapped again, from the page cache. Only a static program at a fixed address, as releases are, can do that:
// others have pages that were written to when they were loaded, and are read-only since.
func unmapProgram() error {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	var own []mapping
	for line := range strings.Lines(string(maps)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) < 6 || !strings.HasPrefix(fields[5], "/"):
		case fields[5] != self:
			return nil // a library, or the one that loads them
		case !strings.Contains(fields[1], "w"): // what was written to exists nowhere else
			var m mapping
			if _, err := fmt.Sscanf(fields[0], "%x-%x", &m.begin, &m.end); err != nil {
				return err
			}
			own = append(own, m)
		}
	}
	if fixed, err := atFixedAddress(); err != nil || !fixed {
		return err
	}
	for _, m := range own {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.begin, m.end-m.begin, unix.MADV_DONTNEED); errno != 0 {
			return errno
		}
	}
	return nil
}

// A mapping is a range of addresses.
type mapping struct{ begin, end uintptr }

// atFixedAddress reports whether this program was linked for one address (e_type is ET_EXEC, by the ELF specification).
func atFixedAddress() (bool, error) {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return false, err
	}
	defer f.Close()
	var kind [2]byte
	if _, err := f.ReadAt(kind[:], 16); err != nil {
		return false, err
	}
	const executable = 2
	return binary.NativeEndian.Uint16(kind[:]) == executable, nil
}
