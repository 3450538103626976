package zlib

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A kind is a configuration but for the level, and how to have the original compress the same.
type kind struct {
	name   string
	config Config
	argv   []string // of a program that is given a level and makes a gzip stream; none: Python's zlib
	few    bool     // a kind that is rare, and slow: contents of at most fewBytes will do
}

const fewBytes = 40_000

func kinds() []kind {
	return []kind{
		{"zlib", Config{Variant: Zlib}, nil, false},
		{"zlib-mem1", Config{Variant: Zlib, MemLevel: 1}, nil, true},
		{"zlib-mem9", Config{Variant: Zlib, MemLevel: 9}, nil, true},
		{"pigz", Config{Variant: Pigz}, []string{"pigz", "-n", "-p", "2"}, false},
		{"pigz-p1", Config{Variant: PigzSingle}, []string{"pigz", "-n", "-p", "1"}, false},
		{"gzip", Config{Variant: GNU}, []string{"gzip", "-n"}, false},
	}
}

// python compresses what it is told to on its standard input, for starting it takes longer than that. Every stream comes after its
// length and the nanoseconds of processor time that it took.
const python = `
import struct, sys, time, zlib
i, o = sys.stdin.buffer, sys.stdout.buffer
while head := i.read(12):
    size, level, mem = struct.unpack("<III", head)
    c = zlib.compressobj(level, zlib.DEFLATED, -15, mem)
    content, start = i.read(size), time.process_time_ns()
    out = c.compress(content) + c.flush()
    o.write(struct.pack("<IQ", len(out), time.process_time_ns() - start) + out)
    o.flush()
`

// originals are the programs whose output is made.
type originals struct {
	pigz, gzip string // paths; empty if not there
	python     string
	in         io.Writer // of a running python
	out        io.Reader
}

// findOriginals looks on the path and among the programs of e2e/tools.sh. What it starts ends with the test.
func findOriginals(t *testing.T) *originals {
	t.Helper()
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	tools := cmp.Or(os.Getenv("PIER_TOOLS"), filepath.Join(home, ".cache", "pier", "tools"))
	find := func(name string) string {
		if p, err := exec.LookPath(name); err == nil {
			return p
		}
		if p, err := exec.LookPath(filepath.Join(tools, "bin", name)); err == nil {
			return p
		}
		return ""
	}
	o := &originals{pigz: find("pigz"), gzip: find("gzip"), python: find("python3")}
	if o.python == "" {
		return o
	}
	c := exec.Command(o.python, "-c", python)
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close() // which ends it
		if err := c.Wait(); err != nil {
			t.Error(err)
		}
	})
	o.in, o.out = in, out
	return o
}

func (o *originals) path(k kind) string {
	switch {
	case k.argv == nil:
		return o.python
	case k.argv[0] == "pigz":
		return o.pigz
	}
	return o.gzip
}

// compress returns the raw deflate stream of the original.
func (o *originals) compress(t *testing.T, k kind, level int, content []byte) []byte {
	t.Helper()
	if k.argv == nil {
		out, _ := o.zlib(t, level, cmp.Or(k.config.MemLevel, defaultMemLevel), content)
		return out
	}
	c := exec.Command(o.path(k), append(k.argv[1:], fmt.Sprintf("-%d", level))...)
	c.Stdin = bytes.NewReader(content)
	c.Stderr = os.Stderr
	out, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out[10 : len(out)-8] // header and trailer of RFC 1952
}

// zlib returns what Python's zlib makes, and in what processor time.
func (o *originals) zlib(t *testing.T, level, memLevel int, content []byte) ([]byte, time.Duration) {
	t.Helper()
	var head [12]byte
	binary.LittleEndian.PutUint32(head[0:], uint32(len(content)))
	binary.LittleEndian.PutUint32(head[4:], uint32(level))
	binary.LittleEndian.PutUint32(head[8:], uint32(memLevel))
	if _, err := o.in.Write(append(head[:], content...)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(o.out, head[:]); err != nil {
		t.Fatal(err)
	}
	out := make([]byte, binary.LittleEndian.Uint32(head[:4]))
	if _, err := io.ReadFull(o.out, out); err != nil {
		t.Fatal(err)
	}
	return out, time.Duration(binary.LittleEndian.Uint64(head[4:]))
}

// versions tells what programs these are, or what is missing.
func (o *originals) versions(t *testing.T) string {
	t.Helper()
	var all []string
	for _, argv := range [][]string{
		{o.python, "-c", "import zlib; print('zlib', zlib.ZLIB_RUNTIME_VERSION)"}, {o.pigz, "--version"}, {o.gzip, "--version"},
	} {
		if argv[0] == "" {
			all = append(all, "missing")
			continue
		}
		out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
		if err != nil {
			t.Fatal(err)
		}
		line, _, _ := strings.Cut(string(out), "\n")
		all = append(all, line)
	}
	return strings.Join(all, ", ")
}
