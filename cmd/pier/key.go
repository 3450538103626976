package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"pier/internal/clusterkey"
)

func keyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Make the key of a cluster",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "new",
		Short: "Print a new cluster key",
		Long: `Print a new cluster key, as the text of the file that 'pier serve --cluster-key-file' reads.

Nodes with a key encrypt what they tell each other, and talk only to nodes that have it too. Whoever can read
the file can join: let only root, or the user that Pier runs as, read it. Make it on one machine:

  umask 077
  pier key new > /etc/pier/cluster.key

copy it to every node, and start each with --cluster-key-file /etc/pier/cluster.key.

The file holds up to three keys, one a line. The first is used, all are accepted, and what follows a # does not
count. So a key is replaced while the cluster runs. The file is read again within seconds of a change; finish
each step on every node before the next:

  1. Add the new key as the second line of the file, on every node.
  2. Make it the first line, on every node.
  3. Delete the old line, on every node.`,
		Example: `  (umask 077; pier key new > cluster.key)`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(cmd.OutOrStdout(), clusterkey.New())
			return err
		},
	})
	return cmd
}
