package main

import (
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"pier/internal/config"
	"pier/internal/node"
)

func serveCommand(stderr io.Writer) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the node",
		Long: `Run the node until it is told to stop (SIGTERM drains what is being served). Upstreams, certificates of the
node door, the peers file and the cluster key are read again when their files change, and at SIGHUP. Every
flag is also an environment variable, --cache-dir as PIER_CACHE_DIR, and a key of the YAML file that --config
names, as cache-dir.`,
		Example: `  pier serve                                       # beside containerd or Docker, or with a cache of its own
  pier serve --cache-dir /srv/pier --listen :5001  # a cache for the whole site
  pier serve --config /etc/pier/config.yaml`,
		Args: noArgs,
	}
	loader := config.Register(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, warnings, err := loader.Load(os.Environ())
		if err != nil {
			return usageError{err}
		}
		log := newLog(stderr, cfg)
		for _, w := range warnings {
			log.Warn("configuration", "warning", w)
		}
		n, err := node.New(cmd.Context(), cfg, version, log)
		if err != nil {
			return err
		}
		return n.Run(cmd.Context())
	}
	return cmd
}

func newLog(w io.Writer, cfg config.Config) *slog.Logger {
	opts := &slog.HandlerOptions{Level: cfg.LogLevel}
	if cfg.LogFormat == config.FormatJSON {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}
