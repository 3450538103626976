package gzexact

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
)

const goldenFile = "testdata/golden.txt"

// With -args -golden TestGolden writes its file anew, after the encoders were compared with the programs
// that they stand for (TestCoverage).
var writeGolden = flag.Bool("golden", false, "write "+goldenFile)

// skipRaced leaves a long test to make unit and make e2e, which run it without the race detector: encoders have no goroutines.
func skipRaced(t *testing.T) {
	t.Helper()
	if raced {
		t.Skip("run without the race detector by make unit and make e2e")
	}
}

// The output of every encoder is the same for ever, on every machine and with every toolchain: recipes are kept for years.
func TestGolden(t *testing.T) {
	skipRaced(t)
	var b strings.Builder
	b.WriteString("# encoder level, then the start of the SHA-256 of its stream for 0, 1, 100000 and 3145728 bytes of content(), of zstd for 20971520, too: more than twice a window\n")
	all := content(20 << 20)
	for _, r := range recipes() {
		fmt.Fprintf(&b, "%s %d", r.codec, r.level)
		for _, n := range []int{0, 1, 100_000, 3 << 20, len(all)} {
			if n == len(all) && r.Compression() != "zstd" {
				continue
			}
			sum := sha256.Sum256(encode(t, Encoder{Recipe: r}, all[:n]))
			fmt.Fprintf(&b, " %x", sum[:8])
		}
		b.WriteString("\n")
	}
	if *writeGolden {
		if err := os.WriteFile(goldenFile, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	wants := strings.Split(string(want), "\n")
	for i, line := range strings.Split(b.String(), "\n") {
		if i >= len(wants) || wants[i] != line {
			t.Errorf("got  %s\nwant %s", line, wants[min(i, len(wants)-1)])
		}
	}
}

// The standard library of this toolchain is one of the two eras.
func TestStandardLibrary(t *testing.T) {
	skipRaced(t)
	var minor int
	if _, err := fmt.Sscanf(runtime.Version(), "go1.%d", &minor); err != nil {
		t.Skipf("NOT COMPARED with the standard library: %q is no release", runtime.Version())
	}
	codec := "go1"
	if minor >= 27 {
		codec = "go2"
	}
	all := content(2_000_000)
	for _, n := range []int{0, 1, 15, 16, 17, 31, 127, 128, 65534, 65535, 65536, 65535 + 14, 65535 + 128, 131072, len(all)} {
		for _, level := range (Recipe{codec: codec}).find().levels {
			var b bytes.Buffer
			z, err := flate.NewWriter(&b, int(level))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := z.Write(all[:n]); err != nil {
				t.Fatal(err)
			}
			if err := z.Close(); err != nil {
				t.Fatal(err)
			}
			stream := encode(t, Encoder{Recipe: Recipe{codec: codec, level: level, header: plainHeader}}, all[:n])
			if got := stream[headerBytes : len(stream)-trailerBytes]; !bytes.Equal(got, b.Bytes()) {
				t.Errorf("%s level %d, %d bytes: other stream than %s", codec, level, n, runtime.Version())
			}
		}
	}
}
