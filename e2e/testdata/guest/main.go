// Command guest is the program in the images that package e2e has made by the tools people use. It also makes what is in
// them, so that whoever builds an image, and however, it holds the same:
//
//	guest layer N SEED [ROOT]   makes layer N, 1 to 3, of the tree at ROOT, by default /
//	guest [ARG...]              checks the tree it runs in, and prints "guest", the seed and the arguments
//
// All content follows from the seed, but not the times of files.
package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 3 || args[0] != "layer" {
		seed, err := os.ReadFile("/etc/seed")
		if err != nil {
			return err
		}
		if err := (tree{"/", string(seed)}).check(); err != nil {
			return err
		}
		fmt.Println(strings.Join(append([]string{"guest", string(seed)}, args...), " "))
		return nil
	}
	t := tree{"/", args[2]}
	if len(args) > 3 {
		t.root = args[3]
	}
	switch args[1] {
	case "1":
		return t.first()
	case "2":
		return t.second()
	case "3":
		return t.write("etc/seed", []byte(t.seed))
	}
	return fmt.Errorf("no layer %s", args[1])
}

// A tree is the file system of an image.
type tree struct{ root, seed string }

// long is a name beyond the 100 bytes, and with its directory beyond the 255, that a plain tar header can hold.
var long = "data/" + strings.Repeat("long-directory-", 13) + "/" + strings.Repeat("long-name-", 20)

const (
	texts   = 24 // files in data/text
	strange = "data/größe 東京.txt"
)

// first makes the large layer: text, which gets smaller, and random bytes, which do not; a hard link, and names that
// need more than a plain tar header.
func (t tree) first() error {
	for n := range texts {
		if err := t.write(textName(n), t.text(n, 1)); err != nil {
			return err
		}
	}
	for name, content := range map[string][]byte{
		"data/random": t.random("data/random", 2<<20), "data/gone": t.random("data/gone", 10_000),
		long: []byte(t.seed), strange: []byte(t.seed), "data/empty/file": nil,
	} {
		if err := t.write(name, content); err != nil {
			return err
		}
	}
	if err := os.Link(t.path("data/random"), t.path("data/hard")); err != nil {
		return err
	}
	return os.Symlink("text/0.txt", t.path("data/soft"))
}

// second replaces a file of the first layer, removes another, and adds one.
func (t tree) second() error {
	if err := t.write(textName(0), t.text(0, 2)); err != nil {
		return err
	}
	if err := t.write("data/more", t.random("data/more", 300_000)); err != nil {
		return err
	}
	gone := t.path("data/gone")
	if err := os.Remove(gone); err == nil {
		return nil
	}
	// The tree is not a whole one: it is to become the archive of this layer.
	return t.write("data/.wh.gone", nil)
}

func (t tree) check() error {
	want := map[string][]byte{
		"data/random": t.random("data/random", 2<<20), "data/hard": t.random("data/random", 2<<20),
		"data/more": t.random("data/more", 300_000), "data/soft": t.text(0, 2),
		long: []byte(t.seed), strange: []byte(t.seed), "data/empty/file": {},
	}
	for n := range texts {
		want[textName(n)] = t.text(n, 1)
	}
	want[textName(0)] = t.text(0, 2)
	for name, content := range want {
		got, err := os.ReadFile(t.path(name))
		if err != nil {
			return err
		}
		if !bytes.Equal(got, content) {
			return fmt.Errorf("%s: %d bytes that are not the %d wanted", name, len(got), len(content))
		}
	}
	one, err := os.Stat(t.path("data/random"))
	if err != nil {
		return err
	}
	other, err := os.Stat(t.path("data/hard"))
	if err != nil {
		return err
	}
	if !os.SameFile(one, other) {
		return fmt.Errorf("data/hard is no link to data/random")
	}
	for _, name := range []string{"data/gone", "data/.wh.gone"} {
		if _, err := os.Lstat(t.path(name)); !os.IsNotExist(err) {
			return fmt.Errorf("%s should be gone: %v", name, err)
		}
	}
	return nil
}

func (t tree) path(name string) string { return filepath.Join(t.root, name) }

func (t tree) write(name string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(t.path(name)), 0o755); err != nil {
		return err
	}
	return os.WriteFile(t.path(name), content, 0o644)
}

func (t tree) source(name string) *rand.ChaCha8 {
	return rand.NewChaCha8(sha256.Sum256([]byte(t.seed + name)))
}

func (t tree) random(name string, size int) []byte {
	b := make([]byte, size)
	_, _ = t.source(name).Read(b) // never fails
	return b
}

func textName(n int) string { return "data/text/" + strconv.Itoa(n) + ".txt" }

// text is file n of data/text in its nth version: 100,000 bytes and a little more.
func (t tree) text(n, version int) []byte {
	random := rand.New(t.source(fmt.Sprintf("%s %d", textName(n), version)))
	var b bytes.Buffer
	for b.Len() < 100_000 {
		for range 3 + random.IntN(12) {
			fmt.Fprintf(&b, "%s ", words[int(float64(len(words))*random.Float64()*random.Float64())])
		}
		fmt.Fprintf(&b, "%d.\n", random.IntN(1000))
	}
	return b.Bytes()
}

// words are drawn by rank, the first ones often.
var words = strings.Fields(`the of and to a in is that it was for on are as with at be this from have or by one had not but
what all were when we there can an your which their said if do will each about how up out them then she many some so these
would other into has more her two like him see time could no make than first been its who now people my made over did down
only way find use may water long little very after called just where most know container image layer registry manifest
digest blob pull push node peer upstream cache store transfer tag index config gzip archive file directory link name size`)
