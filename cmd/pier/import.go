package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"pier/internal/config"
)

func importCommand() *cobra.Command {
	var o config.Ociregistry
	var file, out string
	cmd := &cobra.Command{
		Use:   "import-config [FILE]",
		Short: "Print what a configuration of ociregistry is for Pier",
		Long: `Print the configuration of Pier that does what a configuration of ociregistry does: from its file, from its flags, or both, of which flags count
more. What is different is said in remarks. With --out, config.yaml and upstreams.yaml are written to a directory; the second may have passwords.`,
		Example: `  pier import-config /etc/ociregistry/config.yaml
  pier import-config --image-path /var/lib/ociregistry --preload-images list.txt --port 8888
  pier import-config config.yaml --out /etc/pier && pier serve --config /etc/pier/config.yaml`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 2 {
				return usageError{fmt.Errorf("unexpected argument %q: want a file", args[2])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, arg := range args {
				if arg != "serve" && arg != "load" && arg != "list" { // its commands, as they stand on its command line
					file = arg
				}
			}
			read, err := readOciregistry(file, o, cmd.Flags())
			if err != nil {
				return err
			}
			upstreams := "upstreams.yaml"
			if out != "" {
				if upstreams, err = filepath.Abs(filepath.Join(out, upstreams)); err != nil {
					return err
				}
			}
			imported, err := read.Pier(upstreams)
			if err != nil {
				return err
			}
			if out != "" {
				return writeImported(out, imported)
			}
			if imported.Upstreams != nil {
				imported.Config = append(imported.Config, "\n# What follows is the file "+upstreams+".\n---\n"+string(imported.Upstreams)...)
			}
			_, err = cmd.OutOrStdout().Write(imported.Config)
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&out, "out", "", "write the files to this `DIRECTORY`")
	flags.StringVar(&file, "config-file", "", "configuration of ociregistry, as the argument")
	flags.StringVar(&o.ImagePath, "image-path", "", "as of ociregistry: its cache")
	flags.StringVar(&o.PreloadImages, "preload-images", "", "as of ociregistry: a list of images to load at the start")
	flags.StringVar(&o.ImageFile, "load-images", "", "as of ociregistry: a list of images to load")
	flags.StringVar(&o.ImageFile, "image-file", "", "as of ociregistry: a list of images to load")
	flags.BoolVar(&o.List, "list-cache", false, "as of ociregistry: list what is there")
	flags.StringVar(&o.OS, "os", "", "as of ociregistry: the system of images that are loaded")
	flags.StringVar(&o.Arch, "arch", "", "as of ociregistry: the architecture of images that are loaded")
	flags.Int64Var(&o.PullTimeout, "pull-timeout", 0, "as of ociregistry, in milliseconds")
	flags.Int("concurrent", 0, "as of ociregistry: means nothing here")
	flags.StringVar(&o.DefaultNS, "default-ns", "", "as of ociregistry: the registry of names without one")
	flags.StringVar(&o.ConfigPath, "config-path", "", "as of ociregistry: its list of registries")
	flags.IntVar(&o.Port, "port", 0, "as of ociregistry: where it listens")
	flags.StringVar(&o.LogLevel, "log-level", "", "as of ociregistry")
	flags.StringVar(&o.LogFile, "log-file", "", "as of ociregistry")
	flags.BoolVar(&o.AlwaysPullLatest, "always-pull-latest", false, "as of ociregistry")
	flags.BoolVar(&o.AirGapped, "air-gapped", false, "as of ociregistry")
	flags.BoolVar(&o.HelloWorld, "hello-world", false, "as of ociregistry")
	flags.IntVar(&o.Health, "health", 0, "as of ociregistry: port of its health")
	return cmd
}

// readOciregistry returns what the files and then the flags say.
func readOciregistry(file string, flags config.Ociregistry, given *pflag.FlagSet) (o config.Ociregistry, err error) {
	for _, name := range []string{file, flags.ConfigPath} {
		if name == "" {
			continue
		}
		f, err := os.Open(name)
		if err != nil {
			return o, err
		}
		err = errors.Join(o.Read(f), f.Close())
		if err != nil {
			return o, fmt.Errorf("%s: not a configuration of ociregistry: %w", name, err)
		}
	}
	for name, set := range map[string]func(){
		"image-path":         func() { o.ImagePath = flags.ImagePath },
		"preload-images":     func() { o.PreloadImages = flags.PreloadImages },
		"load-images":        func() { o.ImageFile = flags.ImageFile },
		"image-file":         func() { o.ImageFile = flags.ImageFile },
		"list-cache":         func() { o.List = flags.List },
		"default-ns":         func() { o.DefaultNS = flags.DefaultNS },
		"os":                 func() { o.OS = flags.OS },
		"arch":               func() { o.Arch = flags.Arch },
		"pull-timeout":       func() { o.PullTimeout = flags.PullTimeout },
		"port":               func() { o.Port = flags.Port },
		"log-level":          func() { o.LogLevel = flags.LogLevel },
		"log-file":           func() { o.LogFile = flags.LogFile },
		"always-pull-latest": func() { o.AlwaysPullLatest = flags.AlwaysPullLatest },
		"air-gapped":         func() { o.AirGapped = flags.AirGapped },
		"hello-world":        func() { o.HelloWorld = flags.HelloWorld },
		"health":             func() { o.Health = flags.Health },
	} {
		if given.Changed(name) {
			set()
		}
	}
	return o, nil
}

// writeImported writes files that are not there yet.
func writeImported(dir string, imported config.Imported) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, text := range map[string][]byte{"config.yaml": imported.Config, "upstreams.yaml": imported.Upstreams} {
		if text == nil {
			continue
		}
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, os.ErrExist) {
			return fmt.Errorf("%w: move it away, or write to another directory", err)
		}
		if err != nil {
			return err
		}
		_, err = f.Write(text)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}
