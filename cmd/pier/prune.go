package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"pier/internal/cache"
	"pier/internal/config"
)

func pruneCommand() *cobra.Command {
	var k keeper
	var p cache.Prune
	var older, unused, most string
	var all, asJSON bool
	cmd := &cobra.Command{
		Use:   "prune [PATTERN...]",
		Short: "Remove images from a cache",
		Long: `Remove images from a cache, whether a node runs on it or not. An image goes if all that is said lets it go; what another image needs
stays. Patterns are those of 'pier list'. What was pushed, or came from an archive, is nowhere else, and goes only by its name, as 'pier list'
writes it. With --all, --older-than or --unused-for, and no pattern, the files of interrupted transfers go, too.`,
		Example: `  pier prune --unused-for 30d --dry-run              # what would go?
  pier prune --max-bytes 50GB                        # the least recently used, until 50 GB are left
  pier prune --keep-last 3 'registry.example.com/*'  # of each repository there, but the last three tags
  pier prune alpine:3.19                             # one image`,
		Args: patterns,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			p.Patterns = append(p.Patterns, args...)
			if p.OlderThan, err = parseAge(older); err != nil {
				return usageError{fmt.Errorf("--older-than: %w", err)}
			}
			if p.UnusedFor, err = parseAge(unused); err != nil {
				return usageError{fmt.Errorf("--unused-for: %w", err)}
			}
			if most != "" {
				if p.MaxBytes, err = config.ParseSize(most); err != nil || p.MaxBytes == 0 {
					return usageError{fmt.Errorf("--max-bytes: %q: want a size above 0, for example 50GB", most)}
				}
			}
			if err := cache.CheckPatterns(p.Patterns); err != nil {
				return usageError{err}
			}
			if p.KeepLast < 0 {
				return usageError{fmt.Errorf("--keep-last %d: want 1 or more", p.KeepLast)}
			}
			if len(p.Patterns) == 0 && p.OlderThan == 0 && p.UnusedFor == 0 && p.MaxBytes == 0 && p.KeepLast == 0 && !all {
				return usageError{errors.New("say what goes: a pattern, --older-than, --unused-for, --keep-last, --max-bytes, or --all; see 'pier prune --help'")}
			}
			if err := k.open(false); err != nil {
				return err
			}
			done, err := k.prune(cmd.Context(), p)
			if err = errors.Join(err, k.close()); err != nil {
				return err
			}
			return printPruned(cmd, done, asJSON)
		},
	}
	k.register(cmd)
	flags := cmd.Flags()
	flags.StringArrayVar(&p.Patterns, "pattern", nil, "images of this `PATTERN`, as an argument (repeatable)")
	flags.StringVar(&older, "older-than", "", "images that came longer ago, for example 12h or 30d")
	flags.StringVar(&unused, "unused-for", "", "images that were last used longer ago, for example 12h or 30d")
	flags.IntVar(&p.KeepLast, "keep-last", 0, "all but the so many tags of each repository that came last")
	flags.StringVar(&most, "max-bytes", "", "the least recently used, until this `SIZE` is left, for example 50GB")
	flags.BoolVar(&all, "all", false, "all but what was pushed or came from an archive")
	flags.BoolVar(&p.DryRun, "dry-run", false, "only say what would go")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printPruned(cmd *cobra.Command, done cache.Pruned, asJSON bool) error {
	if asJSON {
		return printJSON(cmd.OutOrStdout(), done)
	}
	if len(done.Images) > 0 {
		t := table{{"IMAGE", "DIGEST", "SIZE", "USED", "SOURCE"}}
		addImages(&t, done.Images, time.Now())
		t.alignRight(2)
		if err := t.write(cmd.OutOrStdout()); err != nil {
			return err
		}
	}
	verb := "removed"
	if done.DryRun {
		verb = "would be removed"
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s %s, %s freed, %s left\n", counted(len(done.Images), "image"), verb, sizeText(done.Bytes), sizeText(done.Left))
	if done.Stay > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s that were pushed or came from an archive stay: to remove one, give its name, as pier list writes it\n", counted(done.Stay, "image"))
	}
	return nil
}

// counted says how many of something there are.
func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
