package snapshot

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// An origin is who does something, and where.
type origin struct {
	User    string `json:"user"`
	Host    string `json:"host"`
	Process int    `json:"process"`
	Started string `json:"started"` // when the process did, in the system's ticks
	Space   string `json:"space"`   // where Process is unique: a boot of a machine, and a namespace
}

func newOrigin() origin {
	host, _ := os.Hostname() // unknown then, as the others
	o := origin{User: userName(), Host: host, Process: os.Getpid(), Space: space()}
	o.Started, _ = started(o.Process)
	return o
}

func (o origin) String() string {
	return fmt.Sprintf("%.100q of %.100q, process %d", o.User, o.Host, o.Process)
}

// gone reports whether the process is known to be gone: it was on this machine.
func (o origin) gone() bool {
	if o.Space == "" || o.Started == "" || o.Space != space() {
		return false
	}
	now, err := started(o.Process)
	return errors.Is(err, fs.ErrNotExist) || err == nil && now != o.Started
}

func space() string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	namespace, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(boot)) + " " + namespace
}

// started returns the 22nd field of /proc/PID/stat, proc(5). The second is a name in parentheses, which may have any character.
func started(process int) (string, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(process) + "/stat")
	if err != nil {
		return "", err
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 {
		return "", errors.New("not as proc(5) says")
	}
	return fields[22-3], nil
}

// userName returns who runs this process, as the system's other tools call him.
func userName() string {
	name := "uid " + strconv.Itoa(os.Getuid())
	if os.Getuid() == 0 {
		name = "root"
	}
	return cmp.Or(os.Getenv("SUDO_USER"), os.Getenv("USER"), os.Getenv("LOGNAME"), name)
}
