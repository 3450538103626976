// Package load reads what images are brought in by: lists of references, and archives of images as docker save and skopeo write them. An
// archive is an [oci.Source]; bringing what it has where it is kept is left to others.
package load

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"pier/internal/oci"
)

// An Item is one thing to load.
type Item struct {
	Text string // as it was given
	From string // where: FILE:LINE, or empty for a command line
	File string // an archive; empty: Ref is to be pulled
	Ref  oci.Reference
	Err  error // why it cannot be loaded: it makes no sense
}

const (
	maxLine  = 4 << 10 // bytes of a line of a list
	maxItems = 100_000 // lines that say something
)

// Parse returns what an argument of a command line means: a file if it is written as one (with a directory, or a name that ends as archives
// do), else a reference.
func Parse(text, defaultRegistry string) Item {
	i := Item{Text: text}
	for _, kind := range []string{"docker-archive:", "oci-archive:"} {
		if file, ok := strings.CutPrefix(text, kind); ok {
			i.File = file
			return i
		}
	}
	if isFile(text) {
		i.File = text
		return i
	}
	i.Ref, i.Err = oci.ParseReference(text, defaultRegistry)
	if i.Err == nil {
		return i
	}
	if _, err := os.Stat(text); err == nil {
		i.Err = fmt.Errorf("%w: to load the file of that name, write ./%s", i.Err, text)
	}
	return i
}

func isFile(text string) bool {
	for _, start := range []string{"/", "./", "../"} {
		if strings.HasPrefix(text, start) {
			return true
		}
	}
	for _, end := range []string{".tar", ".tar.gz", ".tgz"} {
		if strings.HasSuffix(text, end) && filepath.Base(text) != end {
			return true
		}
	}
	return false
}

// ParseList reads a list: a reference or an archive's file on each line, and comments from # on. Lines that make no sense are items with an
// error; names of files are relative to the list's directory. The error is one of reading.
func ParseList(r io.Reader, name, defaultRegistry string) (items []Item, err error) {
	lines := bufio.NewReaderSize(r, maxLine)
	for number := 1; err == nil; number++ {
		at := fmt.Sprintf("%s:%d", name, number)
		var line []byte
		line, err = lines.ReadSlice('\n')
		text := bare(string(line))
		long := errors.Is(err, bufio.ErrBufferFull)
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = lines.ReadSlice('\n')
		}
		switch {
		case long:
			items = append(items, Item{Text: text, From: at, Err: fmt.Errorf("the line is longer than %d bytes: %w", maxLine, oci.ErrNameInvalid)})
		case text != "":
			i := Parse(text, defaultRegistry)
			if i.From = at; i.File != "" && !filepath.IsAbs(i.File) {
				i.File = filepath.Join(filepath.Dir(name), i.File)
			}
			items = append(items, i)
		}
		if len(items) > maxItems {
			return items[:maxItems], fmt.Errorf("%s: there are more than %d: split the list", at, maxItems)
		}
	}
	if errors.Is(err, io.EOF) {
		return items, nil
	}
	return items, fmt.Errorf("%s: %w", name, err)
}

// bare returns a line without comment and spaces. A # within a word is no comment.
func bare(line string) string {
	line = strings.TrimPrefix(line, "\ufeff") // as some editors begin a file
	for i := range len(line) {
		if line[i] == '#' && (i == 0 || line[i-1] == ' ' || line[i-1] == '\t') {
			line = line[:i]
			break
		}
	}
	return strings.TrimSpace(line)
}

// ReadList is ParseList for a file.
func ReadList(name, defaultRegistry string) ([]Item, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ParseList(f, name, defaultRegistry)
}
