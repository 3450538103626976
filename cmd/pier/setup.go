package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"pier/internal/config"
	"pier/internal/setup"
)

// Where the doors of `pier serve` are that Docker is pointed to, for who does not say otherwise.
const (
	defaultProxy  = "http://127.0.0.1:3128"
	defaultMirror = defaultNode
)

func setupCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Make programs of this machine use the node",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(setupDockerCommand())
	return cmd
}

// A dockerSetup is what the flags of `pier setup docker` say.
type dockerSetup struct {
	changer
	want    setup.Docker
	mode    string
	version string
	undo    bool
	restart bool
}

func setupDockerCommand() *cobra.Command {
	var s dockerSetup
	cmd := &cobra.Command{
		Use:   "docker",
		Short: "Make Docker ask the node first, or undo that",
		Long: `Change Docker's configuration so that it pulls through the node of this machine. What is changed depends on
the version of Docker, and --mode says otherwise:

  hosts   /etc/docker/certs.d/HOST/hosts.toml for each registry. Docker asks the node first, and the registry
          itself if the node is down. Docker 29 and later, with containerd's image store.
  proxy   proxies in /etc/docker/daemon.json, or before Docker 23 a drop-in of its systemd unit. All that Docker
          fetches goes through the proxy of the node, from any registry. It has to trust the node's certificate
          authority: see 'pier ca install'.
  mirror  registry-mirrors in /etc/docker/daemon.json: images of Docker Hub only.

Everything else in these files stays as it is, and what was there is kept for --undo. A file that is not
understood, or is somebody else's, is left alone. Each run replaces what the one before it set up. Docker is not
restarted without --restart.`,
		Example: `  pier setup docker --dry-run
  pier setup docker --restart
  pier setup docker --registry registry.corp:5000 --registry docker.io
  pier setup docker --root /mnt/image --docker-version 28.2.2
  pier setup docker --undo`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return s.run(cmd.Context(), cmd.OutOrStdout()) },
	}
	f := cmd.Flags()
	f.StringVar(&s.want.Proxy, "proxy", defaultProxy, "`URL` of the node's proxy")
	f.StringVar(&s.want.Mirror, "mirror", defaultMirror, "`URL` of the node door")
	f.StringVar(&s.mode, "mode", string(setup.ModeAuto), "`way` to do it: auto, proxy, mirror or hosts")
	f.StringArrayVar(&s.want.Registries, "registry", nil, "`host[:port]` of a registry that hosts.toml is written for, _default for all others (repeatable; default the well-known public ones)")
	f.StringVar(&s.version, "docker-version", "", "`version` of Docker, where it does not run (default what it answers)")
	f.BoolVar(&s.undo, "undo", false, "restore what was there before")
	f.BoolVar(&s.restart, "restart", false, "restart Docker if that is needed")
	s.register(f)
	return cmd
}

func (s *dockerSetup) run(ctx context.Context, w io.Writer) error {
	if err := s.check(); err != nil {
		return usageError{err}
	}
	m, err := s.machine()
	if err != nil {
		return err
	}
	var r setup.Report
	if s.undo {
		r, err = m.UndoDocker(ctx)
	} else {
		if s.want.Daemon, err = s.daemon(ctx, m); err == nil {
			s.headline(w)
			r, err = m.SetUpDocker(ctx, s.want)
		}
	}
	if err == nil && s.restart && r.Restart != "" {
		if err = s.reachable(ctx, r.Mode); err != nil {
			return s.print(w, r, err)
		}
		if r.Command == nil {
			err = errors.New("neither systemctl nor service is here: restart dockerd as it was started")
		} else {
			var ran []setup.Step
			ran, err = m.RunAll(ctx, r.Command)
			r.Steps, r.Restart = append(r.Steps, ran...), ""
		}
	}
	return s.print(w, r, err)
}

// reachable returns an error if Docker is to pull through a proxy that is not there: after a restart it could pull nothing.
func (s *dockerSetup) reachable(ctx context.Context, mode setup.Mode) error {
	u, err := url.Parse(s.want.Proxy)
	if s.undo || mode != setup.ModeProxy || s.force || err != nil {
		return nil //nolint:nilerr // check has seen it
	}
	dialer := net.Dialer{Timeout: 3 * time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return fmt.Errorf("docker is set up, but not restarted, for nothing answers at %s: start 'pier serve', then run this again: %w", s.want.Proxy, err)
	}
	return conn.Close()
}

// check returns everything that is wrong with the flags.
func (s *dockerSetup) check() error {
	modes := []setup.Mode{setup.ModeAuto, setup.ModeProxy, setup.ModeMirror, setup.ModeHosts}
	s.want.Mode = setup.Mode(s.mode)
	errs := []error{checkRegistries("registry", s.want.Registries), checkURL("proxy", s.want.Proxy, "http"), checkURL("mirror", s.want.Mirror, "http", "https")}
	if !slices.Contains(modes, s.want.Mode) {
		errs = append(errs, fmt.Errorf("mode: %.80q is none of auto, proxy, mirror and hosts", s.mode))
	}
	if len(s.want.Registries) > 0 && (s.want.Mode == setup.ModeProxy || s.want.Mode == setup.ModeMirror) {
		errs = append(errs, fmt.Errorf("registry: mode %s is not for single registries", s.mode))
	}
	return errors.Join(errs...)
}

// daemon returns what is known of Docker. It is an error if nothing is, and has to be.
func (s *dockerSetup) daemon(ctx context.Context, m *setup.Machine) (setup.Daemon, error) {
	needless := s.want.Mode == setup.ModeMirror || s.want.Mode == setup.ModeHosts
	switch {
	case s.version != "":
		d, err := m.AssumeDaemon(s.version)
		if d.Major == 0 && err != nil {
			err = usageError{fmt.Errorf("docker-version: %w", err)}
		}
		return d, err
	case m.Root != "" && needless:
		return m.AssumeDaemon("")
	case m.Root != "":
		return setup.Daemon{}, usageError{errors.New("with --root say what Docker is there: --docker-version 28.2.2")}
	}
	d, err := setup.AskDaemon(ctx, setup.DefaultSocket())
	if err != nil && needless {
		return m.AssumeDaemon("")
	}
	if err != nil {
		return d, fmt.Errorf("%w; start Docker, or say which it is: --docker-version 28.2.2", err)
	}
	return d, nil
}

// headline says what Docker was found.
func (s *dockerSetup) headline(w io.Writer) {
	d := s.want.Daemon
	if s.asJSON || d.Version == "" {
		return
	}
	store := "its classic image store"
	if d.Containerd {
		store = "containerd's image store"
	}
	fmt.Fprintf(w, "Docker %s with %s\n", printable(d.Version), store)
}

// A changer is what the commands that change other programs' configuration have in common.
type changer struct {
	dataDir string
	root    string
	dryRun  bool
	force   bool
	asJSON  bool
}

func (c *changer) register(f *pflag.FlagSet) {
	registerDataDir(f, &c.dataDir)
	f.StringVar(&c.root, "root", "", "`directory` that stands in front of every path that is changed: of an image, for instance")
	f.BoolVar(&c.dryRun, "dry-run", false, "change nothing, and say what would be changed")
	f.BoolVar(&c.force, "force", false, "replace files and settings that are somebody else's too; originals are kept")
	f.BoolVar(&c.asJSON, "json", false, "print JSON")
}

// registerDataDir declares --data-dir as `pier serve` does.
func registerDataDir(f *pflag.FlagSet, dir *string) {
	serve := pflag.NewFlagSet("", pflag.ContinueOnError)
	config.Register(serve)
	name := "data-dir"
	value := serve.Lookup(name).DefValue
	if env := os.Getenv("PIER_DATA_DIR"); env != "" {
		value = env
	}
	f.StringVar(dir, name, value, "`directory` of what the node remembers, as 'pier serve' has it (environment PIER_DATA_DIR)")
}

func (c *changer) machine() (*setup.Machine, error) {
	m := &setup.Machine{DryRun: c.dryRun, Force: c.force}
	var err error
	if m.DataDir, err = filepath.Abs(c.dataDir); err != nil {
		return nil, err
	}
	if c.root != "" && filepath.Clean(c.root) != "/" {
		if m.Root, err = filepath.Abs(c.root); err != nil {
			return nil, err
		}
		if info, err := os.Stat(m.Root); err != nil || !info.IsDir() {
			return nil, usageError{fmt.Errorf("root: %s is no directory", m.Root)}
		}
	}
	return m, nil
}

// print prints what was done, also when err ended it, and returns the error of the command.
func (c *changer) print(w io.Writer, r setup.Report, err error) error {
	if c.asJSON {
		if r.Steps == nil {
			r.Steps = []setup.Step{}
		}
		if err != nil && len(r.Steps) == 0 {
			return err
		}
		return errors.Join(json.NewEncoder(w).Encode(r), err, leftError(r))
	}
	for _, s := range r.Steps {
		fmt.Fprintln(w, stepText(s))
	}
	if err != nil {
		return err
	}
	if len(r.Steps) == 0 {
		fmt.Fprintln(w, "there is nothing to do")
	}
	if r.Restart != "" {
		has := "has"
		if c.dryRun {
			has = "would have"
		}
		fmt.Fprintf(w, "Docker %s to be restarted: %s", has, r.Restart)
		for _, c := range r.Command {
			fmt.Fprint(w, "\n  ", strings.Join(c, " "))
		}
		fmt.Fprintln(w)
	}
	for _, n := range r.Notes {
		fmt.Fprintln(w, "note:", n)
	}
	return leftError(r)
}

// leftError returns an error if something was not done.
func leftError(r setup.Report) error {
	switch n := r.Left(); n {
	case 0:
		return nil
	case 1:
		return errors.New("one file was left alone: it says above what to do by hand")
	default:
		return fmt.Errorf("%d files were left alone: it says above what to do by hand", n)
	}
}

// stepText is a step in a line, or in several where there is text to be added by hand.
func stepText(s setup.Step) string {
	verb := map[setup.Action][2]string{
		setup.Write:   {"would write", "wrote"},
		setup.Keep:    {"unchanged", "unchanged"},
		setup.Remove:  {"would remove", "removed"},
		setup.Restore: {"would restore", "restored"},
		setup.Leave:   {"left alone", "left alone"},
		setup.Run:     {"to be run:", "ran"},
	}[s.Action]
	text := verb[0]
	if s.Done {
		text = verb[1]
	}
	text += " " + s.Path + s.Line
	first, rest, more := strings.Cut(s.Detail, "\n")
	if first != "" {
		text += " (" + first + ")"
	}
	if more {
		text += ":\n    " + strings.ReplaceAll(strings.TrimSpace(rest), "\n", "\n    ")
	}
	return text
}

// checkRegistries returns which of the names are none.
func checkRegistries(flag string, names []string) error {
	var errs []error
	for _, n := range names {
		if !setup.ValidHost(n) {
			errs = append(errs, fmt.Errorf("%s: %.80q is no registry: write host or host:port, in lower case", flag, n))
		}
	}
	return errors.Join(errs...)
}

// checkURL reports a URL that is not scheme://host[:port] alone.
func checkURL(flag, text string, schemes ...string) error {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" || !slices.Contains(schemes, u.Scheme) {
		return fmt.Errorf("%s: %.200q is no URL of a node: write one like %s://127.0.0.1:3128", flag, text, schemes[0])
	}
	return nil
}
