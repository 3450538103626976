package node

import (
	"bufio"
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
// is needed again is mapped again, from the page cache.
func unmapProgram() error {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	if movable, err := isPIE(self); err != nil || movable {
		return err // what was written at the start of such a program, though it is not writable now, exists nowhere else
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer maps.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		line := lines.Text()
		var begin, end uintptr
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &begin, &end, &mode); err != nil {
			return err
		}
		if !strings.HasSuffix(line, self) || strings.Contains(mode, "w") {
			continue // what was written to exists nowhere else
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, begin, end-begin, unix.MADV_DONTNEED); errno != 0 {
			return errno
		}
	}
	return nil
}

// isPIE reports whether a program was made to run at any address (e_type is ET_DYN, by the ELF specification).
func isPIE(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var kind [2]byte
	if _, err := f.ReadAt(kind[:], 16); err != nil {
		return false, err
	}
	const dynamic = 3
	return binary.NativeEndian.Uint16(kind[:]) == dynamic, nil
}
