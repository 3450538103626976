package docker

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"pier/internal/gzexact"
	"pier/internal/oci"
)

// A recipe says how a layer is made again.
type recipe struct {
	diffID oci.Digest // what it contains
	size   int64      // bytes of the layer
	how    gzexact.Recipe
}

// recipes are those that were found, in memory and in a file of lines "digest diffID size recipe", the last of a digest counting.
// What was tried in vain stands there as "- diffID 0 tried": it is not tried again. It is not safe for use by several at once.
type recipes struct {
	path     string
	file     *os.File // open for appending
	byDigest map[oci.Digest]recipe
	tried    map[oci.Digest]bool // diff IDs
}

const (
	maxRecipes = 1 << 14   // 5 MB of memory if all are there, 300 bytes a layer
	maxLines   = 64 << 20  // bytes of the file that are read
	triedWord  = "tried-2" // changes when more encoders are known, so that all is tried again
)

// openRecipes reads the file at path, and writes it anew without what does not count any more.
func openRecipes(path string, log *slog.Logger) (*recipes, error) {
	r := &recipes{path: path, byDigest: make(map[oci.Digest]recipe), tried: make(map[oci.Digest]bool)}
	bad, err := r.read()
	if err != nil {
		return nil, fmt.Errorf("docker: %w", err)
	}
	if bad > 0 {
		log.Warn("lines of the file of recipes make no sense and are dropped; those layers are learned anew", "file", path, "lines", bad)
	}
	if err := r.rewrite(); err != nil {
		return nil, fmt.Errorf("docker: %w", err)
	}
	return r, nil
}

func (r *recipes) read() (bad int, err error) {
	f, err := os.Open(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewReader(io.LimitReader(f, maxLines))
	for {
		line, more, err := lines.ReadLine()
		if err == io.EOF {
			return bad, nil
		}
		if err != nil {
			return bad, err
		}
		if more || !r.parse(string(line)) { // a line that does not fit is none, in several pieces
			bad++
		}
	}
}

// parse takes one line, and reports whether it makes sense.
func (r *recipes) parse(line string) bool {
	fields := strings.SplitN(line, " ", 4)
	if len(fields) != 4 {
		return false
	}
	diffID, err := oci.ParseDigest(fields[1])
	if err != nil {
		return false
	}
	if fields[0] == "-" {
		if fields[3] == triedWord {
			r.tried[diffID] = true
		}
		return true
	}
	dgst, err := oci.ParseDigest(fields[0])
	if err != nil {
		return false
	}
	size, err := strconv.ParseInt(fields[2], 10, 64)
	if err != nil || size <= 0 {
		return false
	}
	how, err := gzexact.ParseRecipe(fields[3])
	if err != nil || len(r.byDigest) >= maxRecipes {
		return false
	}
	r.byDigest[dgst] = recipe{diffID, size, how}
	return true
}

// rewrite replaces the file by one of what counts, and opens it.
func (r *recipes) rewrite() error {
	f, err := os.OpenFile(r.path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	for d, entry := range r.byDigest {
		fmt.Fprint(w, line(d, entry))
	}
	for d := range r.tried {
		fmt.Fprint(w, triedLine(d))
	}
	err = errors.Join(w.Flush(), f.Sync(), os.Rename(r.path+".new", r.path))
	if err != nil {
		f.Close()
		return err
	}
	r.file = f
	return nil
}

func line(d oci.Digest, e recipe) string {
	return fmt.Sprintf("%s %s %d %s\n", d, e.diffID, e.size, e.how)
}

func triedLine(diffID oci.Digest) string { return fmt.Sprintf("- %s 0 %s\n", diffID, triedWord) }

func (r *recipes) get(d oci.Digest) (recipe, bool) {
	e, ok := r.byDigest[d]
	return e, ok
}

// put notes a recipe. It is there for this process even if the error says that the disk did not take it.
func (r *recipes) put(d oci.Digest, e recipe) error {
	if _, known := r.byDigest[d]; !known && len(r.byDigest) >= maxRecipes {
		return fmt.Errorf("docker: %d recipes are known, which is as many as are kept: remove %s to begin anew", maxRecipes, r.path)
	}
	r.byDigest[d] = e
	return r.append(line(d, e))
}

// full reports whether there is no room for more.
func (r *recipes) full() bool { return len(r.byDigest) >= maxRecipes || len(r.tried) >= maxRecipes }

// drop forgets a recipe that made something else.
func (r *recipes) drop(d oci.Digest) error {
	delete(r.byDigest, d)
	return r.renew()
}

// renew writes the file anew. If that fails, the old one goes on.
func (r *recipes) renew() error {
	old := r.file
	if err := r.rewrite(); err != nil {
		return fmt.Errorf("docker: %w", err)
	}
	return old.Close()
}

// giveUp notes that nothing makes a layer of this content.
func (r *recipes) giveUp(diffID oci.Digest) error {
	if len(r.tried) >= maxRecipes {
		return nil
	}
	r.tried[diffID] = true
	return r.append(triedLine(diffID))
}

func (r *recipes) append(line string) error {
	if _, err := r.file.WriteString(line); err != nil {
		return fmt.Errorf("docker: %w", err)
	}
	return nil
}

func (r *recipes) close() error { return r.file.Close() }
