package upstream

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"pier/internal/oci"
)

// An Upstream is a registry with settings of its own: an entry of the upstreams file.
type Upstream struct {
	Name        string   `yaml:"name"` // host[:port]
	Description string   `yaml:"description"`
	Scheme      string   `yaml:"scheme"` // "https" (or empty) or "http"
	Auth        Auth     `yaml:"auth"`
	TLS         TLS      `yaml:"tls"`
	Mirrors     []string `yaml:"mirrors"` // host[:port] of registries asked in this order before the upstream itself

	// Repositories are patterns of those that may be asked for, in which * is any text, ? one character and [a-z] one of several. None: all.
	Repositories []string `yaml:"repositories"`
}

// Auth are the credentials of an upstream: a user, and its password from one of three places. The environment and the
// file are read whenever the password is needed.
type Auth struct {
	User            string `yaml:"user"`
	Password        string `yaml:"password"`
	PasswordFromEnv string `yaml:"passwordFromEnv"` // name of a variable
	PasswordFile    string `yaml:"passwordFile"`    // path; white space at the end is cut
}

// TLS are the certificates of an upstream: paths of PEM files.
type TLS struct {
	CA                 string `yaml:"ca"`   // trusted beside the system's
	Cert               string `yaml:"cert"` // of this client, with Key
	Key                string `yaml:"key"`
	InsecureSkipVerify bool   `yaml:"insecure_skip_verify"`
}

// String keeps the password out of logs.
func (a Auth) String() string { return "user " + a.User }

// ReadFile reads an upstreams file: a YAML list of entries. The error joins all faults, each with its entry and field.
func ReadFile(path string) ([]Upstream, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("upstreams: %w", err)
	}
	upstreams, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("upstreams %s:\n%w", path, err)
	}
	return upstreams, nil
}

func parse(b []byte) ([]Upstream, error) {
	var nodes []yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&nodes); err != nil && !errors.Is(err, io.EOF) {
		return nil, errors.Join(yamlFaults("not a list of upstreams", err)...)
	}
	if err := dec.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one document")
	}
	upstreams := make([]Upstream, len(nodes))
	var faults []error
	for i := range nodes {
		// The strict decoder reads only text, so that each entry goes through it on its own.
		text, err := yaml.Marshal(&nodes[i])
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", i+1, err)
		}
		dec := yaml.NewDecoder(bytes.NewReader(text))
		dec.KnownFields(true)
		if err := dec.Decode(&upstreams[i]); err != nil {
			faults = append(faults, yamlFaults(entry(i, upstreams[i].Name), err)...)
		}
	}
	if err := errors.Join(append(faults, validate(upstreams)...)...); err != nil {
		return nil, err
	}
	return upstreams, nil
}

var (
	yamlLine  = regexp.MustCompile(`^line \d+: `) // of a part of the file: it would mislead
	yamlValue = regexp.MustCompile("`[^`]*`?")    // may be a password in the wrong place
)

// yamlFaults returns the faults of a decoding error without the values it met.
func yamlFaults(where string, err error) []error {
	texts := []string{err.Error()}
	if t, ok := errors.AsType[*yaml.TypeError](err); ok {
		texts = t.Errors
	}
	var faults []error
	for _, text := range texts {
		text = yamlValue.ReplaceAllString(yamlLine.ReplaceAllString(text, ""), "a value")
		faults = append(faults, fmt.Errorf("%s: %s", where, text))
	}
	return faults
}

// entry names an entry of the file for people.
func entry(i int, name string) string {
	if name == "" {
		return fmt.Sprintf("entry %d", i+1)
	}
	return fmt.Sprintf("entry %d (%.80s)", i+1, name)
}

// validate returns all that is wrong with upstreams, without looking into files.
func validate(upstreams []Upstream) []error {
	var faults []error
	seen := make(map[string]bool)
	for i, u := range upstreams {
		fault := func(format string, args ...any) {
			faults = append(faults, fmt.Errorf(entry(i, u.Name)+": "+format, args...))
		}
		name, _ := oci.Canonical(u.Name, "")
		switch {
		case u.Name == "":
			fault("name: missing")
		case !validName(name):
			fault("name: not host[:port]")
		case seen[name]:
			fault("name: listed before")
		}
		seen[name] = true
		for _, p := range u.Repositories {
			if p == "" || !validGlob(p) {
				fault("repositories: %.80q is no pattern: * is any text, ? one character, [a-z] one of several", p)
			}
		}
		if u.Scheme != "" && u.Scheme != "https" && u.Scheme != "http" {
			fault("scheme: %.20q is neither https nor http", u.Scheme)
		}
		if u.Scheme == "http" && u.TLS != (TLS{}) {
			fault("tls: of no use with scheme http")
		}
		if (u.TLS.Cert == "") != (u.TLS.Key == "") {
			fault("tls: cert and key go together")
		}
		for j, m := range u.Mirrors {
			m, _ = oci.Canonical(m, "")
			switch {
			case !validName(m):
				fault("mirrors: %.80q is not host[:port]", u.Mirrors[j])
			case m == name:
				fault("mirrors: the upstream itself")
			case slices.Contains(u.Mirrors[:j], u.Mirrors[j]):
				fault("mirrors: %s twice", m)
			}
		}
		if text := u.Auth.fault(); text != "" {
			fault("auth: %s", text)
		}
	}
	return faults
}

func validName(name string) bool {
	return oci.Reference{Registry: name, Repository: "x", Tag: "x"}.Validate() == nil
}

// fault returns what is wrong with a, or "".
func (a Auth) fault() string {
	given := 0
	for _, s := range []string{a.Password, a.PasswordFromEnv, a.PasswordFile} {
		if s != "" {
			given++
		}
	}
	switch {
	case given > 1:
		return "only one of password, passwordFromEnv and passwordFile"
	case a.User == "" && given > 0:
		return "user: missing"
	case a.User != "" && given == 0:
		return "password: missing (or passwordFromEnv, or passwordFile)"
	}
	return ""
}

// password returns the password from where it is.
func (a Auth) password() (string, error) {
	switch {
	case a.PasswordFromEnv != "":
		if s := os.Getenv(a.PasswordFromEnv); s != "" {
			return s, nil
		}
		return "", fmt.Errorf("auth: passwordFromEnv: %s is not set", a.PasswordFromEnv)
	case a.PasswordFile != "":
		b, err := os.ReadFile(a.PasswordFile)
		if err != nil {
			return "", fmt.Errorf("auth: passwordFile: %w", err)
		}
		return strings.TrimRight(string(b), " \t\r\n"), nil
	}
	return a.Password, nil
}

// config reads the certificates.
func (t TLS) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: t.InsecureSkipVerify} //nolint:gosec // the operator's choice
	var faults []error
	if t.CA != "" {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool() // a machine without certificates of its own
		}
		pem, err := os.ReadFile(t.CA)
		switch {
		case err != nil:
			faults = append(faults, fmt.Errorf("tls: ca: %w", err))
		case !pool.AppendCertsFromPEM(pem):
			faults = append(faults, fmt.Errorf("tls: ca: no certificate in %s", t.CA))
		}
		c.RootCAs = pool
	}
	if t.Cert != "" && t.Key != "" {
		cert, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			faults = append(faults, fmt.Errorf("tls: cert: %w", err))
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c, errors.Join(faults...)
}
