package chain

import (
	"fmt"
	"io"
	"os"

	"pier/internal/oci"
)

// File returns a reader of length bytes from offset of f (length < 0: to the end, which is at size), and owns f from then
// on, also where it returns an error. Its WriteTo hands the file itself to the writer, so that a TCP connection is
// fed by sendfile. It returns an error wrapping [oci.ErrRange] if offset is past size.
func File(f *os.File, size, offset, length int64) (io.ReadCloser, error) {
	if offset < 0 || offset > size {
		f.Close()
		return nil, fmt.Errorf("offset %d of %d bytes: %w", offset, size, oci.ErrRange)
	}
	if offset > 0 {
		if _, err := f.Seek(offset, io.SeekStart); err != nil {
			f.Close()
			return nil, err
		}
	}
	if rest := size - offset; length < 0 || length > rest {
		length = rest
	}
	return &section{io.LimitedReader{R: f, N: length}, f}, nil
}

// section is the rest of a file up to a limit. A file that turns out shorter is an error, not an end.
type section struct {
	limited io.LimitedReader
	file    *os.File
}

func (s *section) Read(p []byte) (int, error) {
	n, err := s.limited.Read(p)
	if err == io.EOF && s.limited.N > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// WriteTo implements io.WriterTo.
func (s *section) WriteTo(w io.Writer) (int64, error) {
	n, err := io.Copy(w, &s.limited)
	if err == nil && s.limited.N > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (s *section) Close() error { return s.file.Close() }
