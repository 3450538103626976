// Command pier distributes container images: every node on which it runs is one from which the others load.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "pier:", err)
		os.Exit(exitStatus(err))
	}
}

// A usageError is the caller's fault, not ours or the world's.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

// exitStatus is 2 for a command line or configuration that makes no sense, 3 for content that is not what its digest says, and 1 for all else.
func exitStatus(err error) int {
	switch {
	case errors.As(err, new(usageError)):
		return 2
	case wrongContent(err):
		return 3
	}
	return 1
}

// noArgs is for commands that take flags alone.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return usageError{fmt.Errorf("unexpected argument %q; see '%s --help'", args[0], cmd.CommandPath())}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	root := &cobra.Command{
		Use:   "pier",
		Short: "Container images, from the nearest place that has them",
		Long: `Pier makes this machine a node from which container runtimes and other nodes load images:
what the runtime has, what the cache keeps, and what registries supply.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return usageError{fmt.Errorf("unknown command %q; see 'pier --help'", args[0])}
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see '%s --help'", err, cmd.CommandPath())}
	})
	root.AddCommand(serveCommand(stderr), peersCommand(), locateCommand(), loadCommand(), listCommand(), pruneCommand(), importCommand(), snapshotCommand(), setupCommand(), caCommand(), keyCommand(), versionCommand())
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return root.ExecuteContext(ctx)
}
