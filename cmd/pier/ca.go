package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"pier/internal/authority"
	"pier/internal/setup"
)

func caCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "The certificate authority of this node, and who trusts it",
		Long: `The proxy of a node answers for registries inside TLS, with certificates that the node's own authority signs.
Each node has its own, made on first use, and its key never leaves the node. Programs that use the proxy have to
trust it; nothing else needs it.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(caInitCommand(), caShowCommand(), caInstallCommand(), caUninstallCommand())
	return cmd
}

func caInitCommand() *cobra.Command {
	var (
		dataDir    string
		hosts      []string
		anyHost    bool
		force      bool
		constraint []string
	)
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make the authority, for the registries it may sign for",
		Long: `Make the certificate authority of this node in --data-dir. It may sign for the well-known public registries and
those named with --host, all that is below these names included, and for nothing else: whoever steals its key can
pretend to be none but these. Whoever trusts the old one has to be told of a new one.`,
		Example: `  pier ca init --host registry.corp --host '*.ecr.eu-central-1.amazonaws.com'
  pier ca init --force --any-host`,
		Args: func(cmd *cobra.Command, args []string) error {
			if anyHost && len(hosts) > 0 {
				return usageError{errors.New("--any-host and --host exclude each other: the first allows every host")}
			}
			return noArgs(cmd, args)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !anyHost {
				for _, registry := range setup.WellKnown() {
					constraint = append(constraint, setup.Server(registry))
				}
				for _, h := range hosts {
					if name, _, err := net.SplitHostPort(h); err == nil {
						h = name // a certificate is for all ports
					}
					constraint = append(constraint, strings.ToLower(h))
				}
			}
			c := changer{dataDir: dataDir}
			_, err := authority.Create(authority.Config{Dir: dataDir, Names: constraint}, force)
			switch {
			case errors.Is(err, fs.ErrExist):
				return fmt.Errorf("there is a certificate authority in %s already: see 'pier ca show', or replace it with --force", dataDir)
			case errors.Is(err, fs.ErrPermission):
				return fmt.Errorf("%w; run it as root, or set --data-dir", err)
			case err != nil:
				return err
			}
			return c.showCA(cmd.OutOrStdout())
		},
	}
	registerDataDir(cmd.Flags(), &dataDir)
	cmd.Flags().StringArrayVar(&hosts, "host", nil, "sign for this `name`, *.name or address too (repeatable)")
	cmd.Flags().BoolVar(&anyHost, "any-host", false, "sign for every host")
	cmd.Flags().BoolVar(&force, "force", false, "replace the authority that is there")
	return cmd
}

func caShowCommand() *cobra.Command {
	var (
		c     changer
		asPEM bool
	)
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the authority, and where it is installed",
		Example: `  pier ca show
  pier ca show --pem > pier.crt   # for a program with a trust store of its own`,
		Args: func(cmd *cobra.Command, args []string) error {
			if asPEM && c.asJSON {
				return usageError{errors.New("--json and --pem exclude each other")}
			}
			return noArgs(cmd, args)
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asPEM {
				a, err := c.authority()
				if err != nil {
					return err
				}
				_, err = cmd.OutOrStdout().Write(a.PEM())
				return err
			}
			return c.showCA(cmd.OutOrStdout())
		},
	}
	registerDataDir(cmd.Flags(), &c.dataDir)
	cmd.Flags().StringVar(&c.root, "root", "", "`directory` below which to look where it is installed")
	cmd.Flags().BoolVar(&c.asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&asPEM, "pem", false, "print the certificate")
	return cmd
}

func caInstallCommand() *cobra.Command {
	var (
		c    changer
		want setup.Authority
	)
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Make programs of this machine trust the authority",
		Long: `Make programs of this machine trust the certificate authority of this node, and say what was done. Without a
flag that says where, it is the system's trust store (Debian, Red Hat, Alpine, SUSE, Arch and what is like them).
'pier ca uninstall' undoes all of it.`,
		Example: `  pier ca install
  pier ca install --docker registry.corp:5000 --docker quay.io
  pier ca install --system --containerd docker.io`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(checkRegistries("docker", want.Docker), checkRegistries("containerd", want.Containerd)); err != nil {
				return usageError{err}
			}
			m, err := c.machine()
			if err != nil {
				return err
			}
			a, err := c.authority()
			if err != nil {
				return err
			}
			if time.Now().After(a.NotAfter()) {
				return fmt.Errorf("the certificate authority expired on %s: run 'pier ca init --force' first", a.NotAfter().Format(time.DateOnly))
			}
			want.PEM = a.PEM()
			want.System = want.System || len(want.Docker)+len(want.Containerd) == 0
			r, err := m.InstallAuthority(cmd.Context(), want)
			return c.print(cmd.OutOrStdout(), r, err)
		},
	}
	cmd.Flags().BoolVar(&want.System, "system", false, "in the system's trust store (default if no other place is named)")
	cmd.Flags().StringArrayVar(&want.Docker, "docker", nil, "for Docker, when it pulls from this `registry` (repeatable)")
	cmd.Flags().StringArrayVar(&want.Containerd, "containerd", nil, "for containerd, when it pulls from this `registry` (repeatable)")
	c.register(cmd.Flags())
	return cmd
}

func caUninstallCommand() *cobra.Command {
	var c changer
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Undo what 'pier ca install' did; the authority stays",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := c.machine()
			if err != nil {
				return err
			}
			r, err := m.UninstallAuthority(cmd.Context())
			return c.print(cmd.OutOrStdout(), r, err)
		},
	}
	c.register(cmd.Flags())
	return cmd
}

// authority returns the one of this node, which is there already.
func (c *changer) authority() (*authority.Authority, error) {
	a, err := authority.Load(authority.Config{Dir: c.dataDir})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("no certificate authority in %s: 'pier serve' makes it when it starts; if it has another --data-dir, or runs as another user, name its directory with --data-dir; or make one with 'pier ca init'", c.dataDir)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w; run it as root, or as the user that the node runs as", err)
	}
	return a, err
}

// A caInfo is what is told of an authority.
type caInfo struct {
	File        string            `json:"file"`
	Subject     string            `json:"subject"`
	Fingerprint string            `json:"fingerprint"` // SHA-256, hexadecimal
	NotBefore   time.Time         `json:"not_before"`
	NotAfter    time.Time         `json:"not_after"`
	AnyHost     bool              `json:"any_host"`
	Names       []string          `json:"names,omitempty"` // it may sign for these and all below them, if not AnyHost
	Installed   []setup.Installed `json:"installed"`
}

func (c *changer) showCA(w io.Writer) error {
	a, err := c.authority()
	if err != nil {
		return err
	}
	m, err := c.machine()
	if err != nil {
		return err
	}
	info := caInfo{
		File: filepath.Join(c.dataDir, "ca.crt"), Subject: a.Subject(), Fingerprint: a.Fingerprint(),
		NotBefore: a.NotBefore(), NotAfter: a.NotAfter(), Installed: []setup.Installed{},
	}
	info.Names = a.Names()
	info.AnyHost = info.Names == nil
	installed, err := m.Installed(a.PEM())
	if err != nil {
		return err
	}
	info.Installed = append(info.Installed, installed...)
	if c.asJSON {
		return json.NewEncoder(w).Encode(info)
	}
	return info.write(w)
}

func (i caInfo) write(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "file\t%s\nsubject\t%s\nSHA-256\t%s\n", i.File, printable(i.Subject), i.Fingerprint)
	expired := ""
	if time.Now().After(i.NotAfter) {
		expired = ", expired: run 'pier ca init --force', and install it again"
	}
	fmt.Fprintf(tw, "valid\t%s to %s%s\n", i.NotBefore.Format(time.DateOnly), i.NotAfter.Format(time.DateOnly), expired)
	column := func(heading string, lines []string) {
		for _, l := range lines {
			fmt.Fprintf(tw, "%s\t%s\n", heading, printable(l))
			heading = ""
		}
	}
	if i.AnyHost {
		column("signs for", []string{"any host"})
	}
	column("signs for", i.Names)
	var places []string
	for _, p := range i.Installed {
		if !p.Current {
			p.Path += " (another one: run 'pier ca install' again)"
		}
		places = append(places, p.Path)
	}
	if places == nil {
		places = []string{"nowhere: see 'pier ca install --help'"}
	}
	column("installed", places)
	return tw.Flush()
}
