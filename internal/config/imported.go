package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// An Ociregistry is a configuration of ociregistry, as far as it means something here: the keys of its file, which its flags set, too.
type Ociregistry struct {
	ImagePath        string            `yaml:"imagePath"`
	LogLevel         string            `yaml:"logLevel"`
	LogFile          string            `yaml:"logFile"`
	PreloadImages    string            `yaml:"preloadImages"`
	ImageFile        string            `yaml:"imageFile"`
	Port             int               `yaml:"port"`
	OS               string            `yaml:"os"`
	Arch             string            `yaml:"arch"`
	PullTimeout      int64             `yaml:"pullTimeout"` // milliseconds
	AlwaysPullLatest bool              `yaml:"alwaysPullLatest"`
	AirGapped        bool              `yaml:"airGapped"`
	HelloWorld       bool              `yaml:"helloWorld"`
	Health           int               `yaml:"health"` // port
	ConfigPath       string            `yaml:"configPath"`
	DefaultNS        string            `yaml:"defaultNs"`
	Registries       []ociregistryHost `yaml:"registries"`
	Prune            struct {
		Enabled   bool   `yaml:"enabled"`
		Duration  string `yaml:"duration"`
		Type      string `yaml:"type"`
		Frequency string `yaml:"frequency"`
		Freq      string `yaml:"freq"`
		Count     int    `yaml:"count"`
		Expr      string `yaml:"expr"`
		DryRun    bool   `yaml:"dryRun"`
		Dryrun    bool   `yaml:"dryrun"` // as its source has it
	} `yaml:"pruneConfig"`
	ServerTLS struct {
		Cert       string `yaml:"cert"`
		Key        string `yaml:"key"`
		CA         string `yaml:"ca"`
		ClientAuth string `yaml:"clientAuth"`
	} `yaml:"serverTlsConfig"`

	Load, List bool // its flags --load-images and --list-cache, which were commands

	unknown []string // keys that mean nothing here, with their lines
}

// ociregistryHost is one of its registries.
type ociregistryHost struct {
	Name        string `yaml:"name"`
	Description string `yaml:"description"`
	Scheme      string `yaml:"scheme"`
	Auth        struct {
		User            string `yaml:"user"`
		Password        string `yaml:"password"`
		PasswordFromEnv string `yaml:"passwordFromEnv"`
		Provider        string `yaml:"provider"`
	} `yaml:"auth"`
	TLS struct {
		CA                 string `yaml:"ca"`
		Cert               string `yaml:"cert"`
		Key                string `yaml:"key"`
		InsecureSkipVerify bool   `yaml:"insecureSkipVerify"`
		Older              bool   `yaml:"insecure_skip_verify"`
	} `yaml:"tls"`
}

// maxImported is the size of the largest configuration that is read, in bytes.
const maxImported = 1 << 20

// Read reads a file of ociregistry: its configuration, or the list of registries alone that its flag --config-path named. Of keys that are not
// known here, a remark will say so.
func (o *Ociregistry) Read(r io.Reader) error {
	text, err := io.ReadAll(io.LimitReader(r, maxImported+1))
	if err != nil {
		return err
	}
	if len(text) > maxImported {
		return fmt.Errorf("larger than %d bytes", maxImported)
	}
	var into any = o
	var first yaml.Node
	if err := yaml.Unmarshal(text, &first); err == nil && len(first.Content) == 1 && first.Content[0].Kind == yaml.SequenceNode {
		into = &o.Registries
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	var unknown *yaml.TypeError
	err = dec.Decode(into)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if !errors.As(err, &unknown) {
		return err
	}
	var other []string // but fields: text where a number is wanted
	for _, e := range unknown.Errors {
		if strings.Contains(e, " not found in type ") {
			o.unknown = append(o.unknown, strings.SplitN(e, " not found in type ", 2)[0])
		} else {
			other = append(other, e)
		}
	}
	switch {
	case len(other) > 0:
		return errors.New(strings.Join(other, "; "))
	case len(first.Content) == 1 && first.Content[0].Kind == yaml.MappingNode && 2*len(unknown.Errors) >= len(first.Content[0].Content):
		return errors.New("nothing in it is known: " + strings.Join(o.unknown, "; "))
	}
	return nil
}

// An Imported is a configuration of Pier that does what another did.
type Imported struct {
	Config    []byte // YAML, with remarks
	Upstreams []byte // YAML; nil: none are listed
}

// Pier returns the configuration that does the same here. upstreams is the file that its second part will be in.
func (o *Ociregistry) Pier(upstreams string) (Imported, error) {
	var w settings
	w.remark("Made from a configuration of ociregistry by pier import-config.")
	w.set("listen", fmt.Sprintf(":%d", cmp.Or(o.Port, 8080)))
	w.remark("What ociregistry kept is not read: pier load --file LIST brings the images again, from their registries or from ociregistry.")
	w.set("cache-dir", filepath.Join(cmp.Or(o.ImagePath, "/var/lib/ociregistry"), "pier"))
	w.remark("As ociregistry, this serves a cache and nothing else. Without these lines it also serves what containerd or Docker has, and shares with other nodes.")
	for _, door := range []string{"store", "peer-listen", "gossip-listen", "proxy-listen"} {
		w.set(door, "none")
	}
	if o.DefaultNS != "" {
		w.set("default-registry", o.DefaultNS)
	}
	if err := o.serving(&w); err != nil {
		return Imported{}, err
	}
	o.loading(&w)
	var out Imported
	if len(o.Registries) > 0 {
		w.remark("ociregistry verifies no certificate of a registry without tls settings; Pier does. Where one cannot be verified, give its ca there.")
		w.set("upstreams", upstreams)
		var err error
		if out.Upstreams, err = o.upstreams(&w); err != nil {
			return out, err
		}
	}
	switch {
	case o.Prune.Enabled && o.Prune.Type == "pattern":
		w.remark("Images of a pattern are removed by a command, which knows * and ? and no regular expressions: pier prune PATTERN. It was: " + o.Prune.Expr)
	case o.Prune.Enabled:
		w.remark("Old images are removed by a timer, also while the node serves (every " + cmp.Or(o.Prune.Frequency, o.Prune.Freq, "1d") + "): " + o.prune())
	}
	if o.Prune.Enabled && o.Prune.Count > 0 {
		w.remark(fmt.Sprintf("pruneConfig.count %d, images at once, means nothing here: all that is old enough goes.", o.Prune.Count))
	}
	for _, key := range o.unknown {
		w.remark("Not known here, and left out: " + key)
	}
	out.Config = w.Bytes()
	return out, nil
}

// serving writes what concerns clients.
func (o *Ociregistry) serving(w *settings) error {
	w.set("metrics-listen", "none")
	if o.Health > 0 {
		w.drop("metrics-listen")
		w.remark("Health is /healthz, and readiness /readyz, beside /metrics.")
		w.set("metrics-listen", fmt.Sprintf(":%d", o.Health))
	}
	if o.ServerTLS.Cert != "" {
		w.set("tls-cert", o.ServerTLS.Cert)
		w.set("tls-key", o.ServerTLS.Key)
		switch {
		case o.ServerTLS.ClientAuth == "verify" && o.ServerTLS.CA != "":
			w.set("tls-client-ca", o.ServerTLS.CA)
		case o.ServerTLS.ClientAuth == "verify":
			return errors.New("serverTlsConfig: clientAuth verify without ca takes certificates of any authority that the system trusts, which Pier does not do: give the ca that those of your clients are of")
		}
	}
	if level := strings.ToLower(o.LogLevel); level != "" {
		w.set("log-level", map[string]string{"debug": "debug", "trace": "debug", "info": "info", "warn": "warn", "warning": "warn"}[level])
		if level == "error" || level == "fatal" || level == "panic" {
			w.set("log-level", "error")
		}
	}
	if o.LogFile != "" {
		w.remark("The log is written to standard error, for the service manager to keep, and not to " + o.LogFile + ".")
	}
	if o.HelloWorld {
		w.remark("There is no hello world: pier load hello-world brings it.")
	}
	if o.List {
		w.remark("The flag --list-cache is a command: pier list")
	}
	return nil
}

// loading writes what concerns registries.
func (o *Ociregistry) loading(w *settings) {
	if o.PullTimeout > 0 {
		w.set("pull-timeout", (time.Duration(o.PullTimeout) * time.Millisecond).String())
	}
	if o.AlwaysPullLatest {
		w.remark("Tags are asked for again after 30 s, all of them (tag-ttl), so there is nothing to set for latest.")
	}
	if o.AirGapped {
		w.set("air-gapped", "true")
	}
	platform := cmp.Or(o.OS, "linux") + "/" + cmp.Or(o.Arch, runtime.GOARCH)
	if o.PreloadImages != "" {
		w.set("preload", o.PreloadImages)
		w.set("preload-platform", platform)
	}
	if o.ImageFile != "" || o.Load {
		w.remark("Images are loaded, also while the node serves, by: pier load --platform " + platform + " --file " + cmp.Or(o.ImageFile, "LIST"))
	}
}

func (o *Ociregistry) prune() string {
	text := "pier prune --unused-for "
	if o.Prune.Type == "created" {
		text = "pier prune --older-than "
	}
	text += cmp.Or(o.Prune.Duration, "30d")
	if o.Prune.DryRun || o.Prune.Dryrun {
		text += " --dry-run"
	}
	return text
}

// upstreams returns the list of registries.
func (o *Ociregistry) upstreams(w *settings) ([]byte, error) {
	var list yaml.Node
	list.Kind = yaml.SequenceNode
	for _, h := range o.Registries {
		if h.Auth.Provider != "" {
			w.remark(fmt.Sprintf("Credentials of the provider %.40q for %.80s are had by a credential helper: log in with docker login, whose configuration Pier reads.", h.Auth.Provider, h.Name))
		}
		entry := &yaml.Node{Kind: yaml.MappingNode}
		put(entry, "name", h.Name)
		put(entry, "description", h.Description)
		put(entry, "scheme", h.Scheme)
		if h.Auth.User != "" {
			auth := &yaml.Node{Kind: yaml.MappingNode}
			put(auth, "user", h.Auth.User)
			put(auth, "password", h.Auth.Password)
			put(auth, "passwordFromEnv", h.Auth.PasswordFromEnv)
			entry.Content = append(entry.Content, scalar("auth"), auth)
		}
		tls := &yaml.Node{Kind: yaml.MappingNode}
		put(tls, "ca", h.TLS.CA)
		put(tls, "cert", h.TLS.Cert)
		put(tls, "key", h.TLS.Key)
		if h.TLS.InsecureSkipVerify || h.TLS.Older {
			tls.Content = append(tls.Content, scalar("insecure_skip_verify"), &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: "true"})
		}
		if len(tls.Content) > 0 {
			entry.Content = append(entry.Content, scalar("tls"), tls)
		}
		list.Content = append(list.Content, entry)
	}
	return yaml.Marshal(&list)
}

func put(entry *yaml.Node, key, value string) {
	if value != "" {
		entry.Content = append(entry.Content, scalar(key), scalar(value))
	}
}

func scalar(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s} }

// settings are lines of a configuration.
type settings struct{ lines []string }

func (s *settings) remark(text string) {
	s.lines = append(s.lines, "# "+strings.Join(strings.Fields(text), " ")) // on one line, whatever is quoted
}

func (s *settings) set(key, value string) {
	if value == "" {
		return
	}
	s.drop(key)
	text, err := yaml.Marshal(map[string]string{key: value})
	if value == "true" {
		text, err = []byte(key+": true\n"), nil
	}
	if err == nil { // always, of texts
		s.lines = append(s.lines, strings.TrimSuffix(string(text), "\n"))
	}
}

func (s *settings) drop(key string) {
	for i, line := range s.lines {
		if strings.HasPrefix(line, key+":") {
			s.lines = append(s.lines[:i], s.lines[i+1:]...)
			return
		}
	}
}

// Bytes returns the lines.
func (s *settings) Bytes() []byte { return []byte(strings.Join(s.lines, "\n") + "\n") }
