package registry

import (
	"fmt"
	"mime"
	"strconv"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/oci"
)

// accepted is what an Accept header says about manifests. Nothing else of it matters: a registry gives content as it is.
type accepted struct {
	any   bool // a wildcard that covers manifests, or no header at all
	index bool
	image bool
}

// onlyImages reports whether the client can read images but no indexes.
func (a accepted) onlyImages() bool { return a.image && !a.index && !a.any }

// maxAccept bounds the elements of an Accept header. The longest list among clients known has about ten.
const maxAccept = 64

// parseAccept reads the Accept headers of a request. Empty elements are skipped; what [mime.ParseMediaType] does not
// understand is an error wrapping errAccept.
func parseAccept(headers []string) (accepted, error) {
	var a accepted
	n := 0
	for _, header := range headers {
		for header != "" {
			var element string
			element, header = cutElement(header)
			if element == "" {
				continue
			}
			if n++; n > maxAccept {
				return accepted{}, fmt.Errorf("more than %d elements: %w", maxAccept, errAccept)
			}
			if err := a.add(element); err != nil {
				return accepted{}, err
			}
		}
	}
	a.any = a.any || n == 0
	return a, nil
}

func (a *accepted) add(element string) error {
	mediaType := element
	if !isPlain(element) {
		t, params, err := mime.ParseMediaType(element)
		if err != nil {
			return fmt.Errorf("element %.80q: %w", element, errAccept)
		}
		if q, err := strconv.ParseFloat(params["q"], 64); err == nil && q == 0 {
			return nil // "not acceptable", by RFC 9110, section 12.4.2
		}
		mediaType = t
	}
	switch mediaType {
	case "*", "*/*", "application/*":
		a.any = true
	case v1.MediaTypeImageIndex, oci.MediaTypeDockerList:
		a.index = true
	case v1.MediaTypeImageManifest, oci.MediaTypeDockerManifest:
		a.image = true
	}
	return nil
}

// isPlain reports whether s is a media type as clients nearly always write it, lower case and without parameters: such
// a one need not be parsed.
func isPlain(s string) bool {
	slash := -1
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '.' || c == '+' || c == '-' || c == '*':
		case c == '/' && slash < 0:
			slash = i
		default:
			return false
		}
	}
	return slash > 0 && slash < len(s)-1
}

// cutElement cuts the first element off a comma-separated list and trims it. A comma in a quoted string does not count.
func cutElement(list string) (element, rest string) {
	quoted := false
	for i := 0; i < len(list); i++ {
		switch c := list[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\' && quoted:
			i++
		case c == ',' && !quoted:
			return strings.Trim(list[:i], " \t"), list[i+1:]
		}
	}
	return strings.Trim(list, " \t"), ""
}
