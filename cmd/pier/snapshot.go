package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/time/rate"

	"pier/internal/bucket"
	"pier/internal/config"
	"pier/internal/oci"
	"pier/internal/snapshot"
)

func snapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Move directories and images between stores, by content",
		Long: `Keep directories, OCI image layouts among them, in stores, by content: what is there already is not sent again, and every byte is
proven wherever it arrives. A store is a directory (file:///directory), a bucket of S3 or what speaks like it (s3://bucket/prefix), or one of
Google Cloud Storage (gs://bucket/prefix). Stores and IDs are those of snapdir.

The query of a store's URL may say more: s3://bucket/prefix?endpoint=http://minio.test:9000&region=us-east-1&profile=name&path-style=true,
gs://bucket/prefix?endpoint=http://127.0.0.1:4443. Credentials come from where the services' own tools have them.

Exit status: 0; 1 for a fault; 2 for a command line that makes no sense; 3 if content is not what its digest says.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return usageError{fmt.Errorf("unknown command %q; see '%s --help'", args[0], cmd.CommandPath())}
		},
	}
	cmd.AddCommand(pushCommand(), pullCommand(), syncCommand(), verifyCommand(), diffCommand(), lsCommand(), revisionsCommand(),
		manifestCommand(), idCommand(), gcCommand(), snapshotLoadCommand(), snapshotServeCommand())
	return cmd
}

// storeVariable names the environment variable for --store.
const storeVariable = "PIER_STORE"

// A storing is what the commands share that work with stores.
type storing struct {
	url     string
	jobs    int
	limit   string
	retries int
	asJSON  bool
	quiet   bool

	meter *snapshot.Meter
}

// register registers the flags that all have. work says whether the command does long work.
func (s *storing) register(cmd *cobra.Command, work bool) {
	flags := cmd.Flags()
	flags.BoolVar(&s.asJSON, "json", false, "print JSON")
	flags.IntVar(&s.jobs, "jobs", 8, "how many files or objects are dealt with at once")
	if !work {
		return
	}
	flags.StringVar(&s.limit, "limit-rate", "", "`RATE` that bytes are sent and fetched with at most, for example 500kB/s or 10MiB")
	flags.IntVar(&s.retries, "max-retries", 5, "how often a request is sent again that failed")
	flags.BoolVarP(&s.quiet, "quiet", "q", false, "show no progress and no summary")
}

// registerStore registers --store.
func (s *storing) registerStore(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.url, "store", "", "`URL` of the store: file:///directory, s3://bucket/prefix or gs://bucket/prefix (environment "+storeVariable+")")
}

// open opens the store that was named.
func (s *storing) open() (*snapshot.Store, error) {
	url := cmp.Or(s.url, os.Getenv(storeVariable))
	if url == "" {
		return nil, usageError{errors.New("no store: say --store URL, or set " + storeVariable)}
	}
	return s.openURL(url)
}

func (s *storing) openURL(url string) (*snapshot.Store, error) {
	cfg := bucket.Config{URL: url, Retries: s.retries, StateDir: cacheDir("uploads"), Log: slog.New(slog.DiscardHandler)}
	switch {
	case s.jobs < 1 || s.jobs > 256:
		return nil, usageError{fmt.Errorf("--jobs %d: want 1 to 256", s.jobs)}
	case s.retries < 0:
		return nil, usageError{fmt.Errorf("--max-retries %d: want 0 or more", s.retries)}
	}
	if s.limit != "" {
		n, err := config.ParseRate(s.limit)
		if err == nil && n == 0 {
			err = errors.New("nothing would ever arrive")
		}
		if err != nil {
			return nil, usageError{fmt.Errorf("--limit-rate: %w", err)}
		}
		cfg.Limit = rate.NewLimiter(rate.Limit(n), 64<<10)
	}
	b, err := bucket.Open(cfg)
	if err != nil {
		return nil, usageError{err}
	}
	return &snapshot.Store{Bucket: b, Jobs: s.jobs, Meter: s.meter}, nil
}

// cacheDir returns a directory for what may be lost; empty: there is none.
func cacheDir(name string) string {
	dir, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "pier", name)
}

// run does long work, and shows how far it is.
func (s *storing) run(cmd *cobra.Command, do func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	go boundMemory(ctx)
	if s.quiet {
		return do(cmd.Context())
	}
	s.meter = &snapshot.Meter{}
	stop := showProgress(cmd.ErrOrStderr(), s.meter)
	defer stop()
	return do(cmd.Context())
}

// boundMemory has memory collected before there is much more of it than is in use: buffers of megabytes would let it double.
func boundMemory(ctx context.Context) {
	const least, room = 44 << 20, 4 << 20 // bytes
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for {
		metrics.Read(live)
		n := int64(live[0].Value.Uint64())
		debug.SetMemoryLimit(max(least, n+n/8+room))
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// result prints what was done: as JSON, or the text.
func (s *storing) result(cmd *cobra.Command, v any, text string) error {
	if s.asJSON {
		return printJSON(cmd.OutOrStdout(), v)
	}
	if text == "" {
		return nil
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), text)
	return err
}

// say prints a line for people.
func (s *storing) say(cmd *cobra.Command, format string, args ...any) {
	if !s.quiet && !s.asJSON {
		fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...)
	}
}

func printJSON(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", b)
	return err
}

// parseID returns the ID that a flag gave.
func parseID(s string) (snapshot.Digest, error) {
	if s == "" {
		return "", usageError{errors.New("no snapshot: say --id ID")}
	}
	id, err := snapshot.ParseDigest(s)
	if err != nil {
		return "", usageError{fmt.Errorf("--id: %w", err)}
	}
	return id, nil
}

// A scanning is what the commands share that read directories.
type scanning struct {
	exclude  []string
	paranoid bool
}

func (s *scanning) register(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&s.exclude, "exclude", nil, "leave out paths that match this extended regular `EXPRESSION`; %common% stands for .git, .cache, node_modules and the like, %system% for /proc, /tmp and the like")
	cmd.Flags().BoolVar(&s.paranoid, "paranoid", false, "read every file, also those that did not change since they were last read")
}

func (s *scanning) scanner(jobs int, meter *snapshot.Meter) (snapshot.Scanner, error) {
	home, _ := os.UserHomeDir() // then %system% has one directory less
	exclude, noFollow, err := snapshot.Exclude(strings.Join(s.exclude, "|"), home)
	if err != nil {
		return snapshot.Scanner{}, usageError{err}
	}
	return snapshot.Scanner{
		Exclude: exclude, NoFollow: noFollow, Jobs: jobs, Digests: cacheDir("digests"), Paranoid: s.paranoid, Meter: meter,
	}, nil
}

// directory returns the one argument that may be there, or this directory.
func directory(args []string) string {
	if len(args) == 0 {
		return "."
	}
	return args[0]
}

// atMostOne is for commands that take one argument or none.
func atMostOne(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return usageError{fmt.Errorf("unexpected argument %q: want %s; see '%s --help'", args[1], what, cmd.CommandPath())}
		}
		return nil
	}
}

// wrongContent reports whether an error is that content is not what its digest says.
func wrongContent(err error) bool {
	return (errors.Is(err, oci.ErrDigestMismatch) || errors.Is(err, snapshot.ErrManifest)) && !errors.Is(err, snapshot.ErrChanged)
}
