package bucket

import (
	"bytes"
	"encoding/xml"
	"errors"
	"net/http"
	"strings"
	"unicode"

	"pier/internal/oci"
)

// maxText is how much of what a service says about an error is passed on, in runes.
const maxText = 200

// s3Classes are the classes of codes; those of others come from the status.
// https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
var s3Classes = map[string]error{
	"NoSuchKey":     oci.ErrNotFound,
	"NoSuchBucket":  oci.ErrNotFound,
	"NoSuchUpload":  oci.ErrNotFound,
	"NoSuchVersion": oci.ErrNotFound,

	"AccessDenied":      oci.ErrDenied,
	"AllAccessDisabled": oci.ErrDenied,
	"AccountProblem":    oci.ErrDenied,

	"AuthorizationHeaderMalformed": oci.ErrUnauthorized,
	"ExpiredToken":                 oci.ErrUnauthorized,
	"ExpiredTokenException":        oci.ErrUnauthorized,
	"InvalidAccessKeyId":           oci.ErrUnauthorized,
	"InvalidToken":                 oci.ErrUnauthorized,
	"RequestTimeTooSkewed":         oci.ErrUnauthorized,
	"SignatureDoesNotMatch":        oci.ErrUnauthorized,
	"TokenRefreshRequired":         oci.ErrUnauthorized,

	"RequestLimitExceeded": oci.ErrRateLimited,
	"SlowDown":             oci.ErrRateLimited,
	"Throttling":           oci.ErrRateLimited,
	"ThrottlingException":  oci.ErrRateLimited,
	"TooManyRequests":      oci.ErrRateLimited,

	"BadDigest":                  oci.ErrUnavailable, // it did not come as it was sent
	"InternalError":              oci.ErrUnavailable,
	"OperationAborted":           oci.ErrUnavailable,
	"RequestTimeout":             oci.ErrUnavailable,
	"ServiceUnavailable":         oci.ErrUnavailable,
	"XAmzContentSHA256Mismatch":  oci.ErrUnavailable,
	"XAmzContentChecksumFailure": oci.ErrUnavailable,

	"InvalidRange":       oci.ErrRange,
	"MethodNotAllowed":   oci.ErrUnsupported,
	"NotImplemented":     oci.ErrUnsupported,
	"PreconditionFailed": ErrExists,
}

// parseS3Error returns the error that an answer says; nil if it says none.
func parseS3Error(status int, body []byte) *statusError {
	var answer struct {
		XMLName xml.Name
		Code    string
		Message string
		Region  string
	}
	success := status < http.StatusMultipleChoices
	if success && !bytes.Contains(body, []byte("<Error")) {
		return nil
	}
	if xml.Unmarshal(body, &answer) != nil || answer.XMLName.Local != "Error" {
		if success {
			return nil
		}
		answer.Code, answer.Message, answer.Region = "", "", ""
	}
	e := &statusError{status: status, code: clean(answer.Code), text: clean(answer.Message), region: answer.Region}
	class, known := s3Classes[e.code]
	switch {
	case known:
		e.class = class
		e.again = errors.Is(class, oci.ErrRateLimited) || errors.Is(class, oci.ErrUnavailable)
	case status == http.StatusNotImplemented:
		e.class = oci.ErrUnsupported
	default:
		e.class = classOf(status)
	}
	if e.code == "NoSuchBucket" {
		e.text = noSuchBucket
	}
	return e
}

// clean returns what a service says without what a terminal would obey, and not much of it.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if r := []rune(s); len(r) > maxText {
		s = string(r[:maxText])
	}
	return strings.TrimSpace(s)
}

// is reports whether an error of the service has one of these codes.
func is(err error, codes ...string) bool {
	var failed *statusError
	if !errors.As(err, &failed) {
		return false
	}
	for _, code := range codes {
		if failed.code == code {
			return true
		}
	}
	return false
}

// hasStatus reports whether the service answered with a status.
func hasStatus(err error, status int) bool {
	var failed *statusError
	return errors.As(err, &failed) && failed.status == status
}
