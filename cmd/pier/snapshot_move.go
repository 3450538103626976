package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"pier/internal/oci"
	"pier/internal/snapshot"
)

func pushCommand() *cobra.Command {
	var s storing
	var p pushing
	cmd := &cobra.Command{
		Use:   "push --store URL [PATH | REF]",
		Short: "Bring a directory or an image into a store, and print the ID",
		Long: `Bring a directory, by default this one, into a store, and print its ID. What the store has is not sent; what did not change since
it was last read is not read. A push that was cut goes on where it was when it is run again.

A reference such as docker.io/library/alpine:3.20 is an image that comes straight from its registry, and becomes an OCI image layout in the
store. Registries are asked as by 'pier serve': with the credentials of Docker's configuration, or those of --upstreams.`,
		Args: atMostOne("one directory or reference"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var sum snapshot.Summary
			err := s.run(cmd, func(ctx context.Context) error {
				store, err := s.open()
				if err != nil {
					return err
				}
				sum, err = p.push(ctx, &s, store, directory(args))
				return err
			})
			if err != nil {
				return err
			}
			s.say(cmd, "%s", summaryText(sum))
			return s.result(cmd, sum, string(sum.ID))
		},
	}
	s.registerStore(cmd)
	s.register(cmd, true)
	p.scanning.register(cmd)
	p.registries.register(cmd)
	registerOptions(cmd, &p.opt)
	flags := cmd.Flags()
	flags.StringVar(&p.opt.Origin.Name, "name", "", "`NAME` that the snapshot is known by in the store's revisions; by default that is the path or reference")
	flags.StringSliceVar(&p.image.Platforms, "platform", nil, "of an image, only what is for this `OS/ARCHITECTURE`; by default all")
	flags.BoolVar(&p.image.Referrers, "referrers", false, "of an image, signatures and what else refers to it, too")
	return cmd
}

// A pushing is what a push was told.
type pushing struct {
	scanning
	registries
	image snapshot.ImageOptions
	opt   snapshot.Options
}

// push brings what is there as a directory, or is a reference, into a store.
func (p *pushing) push(ctx context.Context, s *storing, store *snapshot.Store, arg string) (sum snapshot.Summary, err error) {
	p.opt.Origin.Action = "push"
	_, missing := os.Stat(arg)
	ref, noRef := oci.ParseReference(arg, "docker.io")
	if missing == nil || noRef != nil || strings.HasPrefix(arg, ".") || strings.HasPrefix(arg, "/") {
		if len(p.image.Platforms) > 0 || p.image.Referrers {
			return sum, usageError{fmt.Errorf("%s: --platform and --referrers are for images, and this is a path", arg)}
		}
		scanner, err := p.scanner(s.jobs, s.meter)
		if err != nil {
			return sum, err
		}
		if p.opt.Origin.From, err = filepath.Abs(arg); err != nil {
			return sum, err
		}
		return store.Push(ctx, scanner, p.opt.Origin.From, p.opt)
	}
	if !strings.ContainsAny(arg, "/:@") { // no registry is asked for what may be a name that was mistyped
		return sum, fmt.Errorf("there is no directory %s; if that is an image, say docker.io/library/%[1]s:latest", arg)
	}
	src, err := p.source(s.retries)
	if err != nil {
		return sum, usageError{err}
	}
	p.image.Learned = cacheDir("blobs")
	p.opt.Origin.From = ref.String()
	sum, err = store.PushImage(ctx, src, ref, p.image, p.opt)
	if errors.Is(err, oci.ErrNotFound) || errors.Is(err, oci.ErrUnavailable) {
		err = fmt.Errorf("%w (and there is no directory %s)", err, arg)
	}
	return sum, err
}

func registerOptions(cmd *cobra.Command, opt *snapshot.Options) {
	cmd.Flags().BoolVar(&opt.DryRun, "dry-run", false, "only say what would be sent")
	cmd.Flags().BoolVar(&opt.Repair, "repair", false, "read what the store has of the snapshot, and replace what is damaged")
}

// summaryText says what a push or sync did.
func summaryText(sum snapshot.Summary) string {
	done := "sent"
	if sum.DryRun {
		done = "would send"
	}
	text := fmt.Sprintf("%d files, %s: %s %d objects, %s; skipped %d that were there; saved %s",
		sum.Files, sizeText(sum.Bytes), done, sum.Sent, sizeText(sum.SentSize), sum.Skipped, sizeText(max(sum.Saved, 0)))
	if sum.Repaired > 0 {
		text += fmt.Sprintf("; of those sent, %d replace damaged ones", sum.Repaired)
	}
	return text
}

func pullCommand() *cobra.Command {
	var s storing
	var opt snapshot.PullOptions
	var id string
	cmd := &cobra.Command{
		Use:   "pull --store URL --id ID [PATH]",
		Short: "Make a directory what a snapshot says",
		Long: `Make a directory, by default this one, what a snapshot says. Files that are right stay; others are written beside and renamed. If
there are files that the snapshot does not have, nothing is changed, unless --delete allows to remove them.`,
		Args: atMostOne("one directory"),
		RunE: func(cmd *cobra.Command, args []string) error {
			digest, err := parseID(id)
			if err != nil {
				return err
			}
			var done snapshot.Pulled
			err = s.run(cmd, func(ctx context.Context) error {
				store, err := s.open()
				if err != nil {
					return err
				}
				opt.Digests = cacheDir("digests")
				done, err = store.Pull(ctx, digest, directory(args), opt)
				return err
			})
			if err != nil {
				return err
			}
			s.say(cmd, "%s", pulledText(done))
			return s.result(cmd, done, "")
		},
	}
	s.registerStore(cmd)
	s.register(cmd, true)
	flags := cmd.Flags()
	flags.StringVar(&id, "id", "", "`ID` of the snapshot")
	flags.BoolVar(&opt.Delete, "delete", false, "remove files that the snapshot does not have")
	flags.BoolVar(&opt.Linked, "linked", false, "share the bytes of a store that is a directory: by reflinks, or by hard links for files of the same permissions, which must then never be written to")
	flags.BoolVar(&opt.DryRun, "dry-run", false, "only say what would be done")
	flags.BoolVar(&opt.Paranoid, "paranoid", false, "read every file that is there, also those that did not change since they were last read")
	return cmd
}

func pulledText(p snapshot.Pulled) string {
	fetched, removed := "fetched", "removed"
	if p.DryRun {
		fetched, removed = "would fetch", "would remove"
	}
	text := fmt.Sprintf("%d files, %s: %s %d objects, %s; %d files were right, %d made from others; saved %s",
		p.Files, sizeText(p.Bytes), fetched, p.Fetched, sizeText(p.Size), p.Skipped, p.Copied, sizeText(max(p.Saved, 0)))
	if p.Removed > 0 {
		text += fmt.Sprintf("; %s %d", removed, p.Removed)
	}
	return text
}

func syncCommand() *cobra.Command {
	var s storing
	var opt snapshot.Options
	var from, to, name string
	var ids []string
	var all bool
	cmd := &cobra.Command{
		Use:   "sync --from URL --to URL (--id ID... | --all)",
		Short: "Bring snapshots of one store into another",
		Long:  `Bring snapshots of one store into another. What the other has is not sent; nothing is kept here.`,
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case from == "" || to == "":
				return usageError{errors.New("say --from URL and --to URL")}
			case all == (len(ids) > 0):
				return usageError{errors.New("say which snapshots: --id ID, which may be there several times, or --all")}
			}
			var sums []snapshot.Summary
			err := s.run(cmd, func(ctx context.Context) error {
				source, err := s.openURL(from)
				if err != nil {
					return err
				}
				target, err := s.openURL(to)
				if err != nil {
					return err
				}
				digests, err := chosen(ctx, source, ids, all)
				if err != nil {
					return err
				}
				origins, err := origins(ctx, source, digests)
				if err != nil {
					return err
				}
				var failed error
				for _, id := range digests {
					opt.Origin = snapshot.Revision{Action: "sync", Name: cmp.Or(name, origins[id].Name), From: source.Bucket.String(), Of: origins[id].Series()}
					sum, err := target.Sync(ctx, source, id, opt)
					if err != nil && ctx.Err() != nil {
						return err
					}
					if err != nil { // the others may be well
						failed = errors.Join(failed, fmt.Errorf("snapshot %s: %w", id, err))
						continue
					}
					sums = append(sums, sum)
				}
				return failed
			})
			for _, sum := range sums {
				s.say(cmd, "%s", summaryText(sum))
			}
			if err != nil {
				return err
			}
			if s.asJSON {
				return printJSON(cmd.OutOrStdout(), append([]snapshot.Summary{}, sums...))
			}
			for _, sum := range sums {
				fmt.Fprintln(cmd.OutOrStdout(), sum.ID)
			}
			return nil
		},
	}
	s.register(cmd, true)
	registerOptions(cmd, &opt)
	flags := cmd.Flags()
	flags.StringVar(&from, "from", "", "`URL` of the store that has them")
	flags.StringVar(&to, "to", "", "`URL` of the store that shall have them")
	flags.StringArrayVar(&ids, "id", nil, "`ID` of a snapshot")
	flags.BoolVar(&all, "all", false, "all that there are")
	flags.StringVar(&name, "name", "", "`NAME` that the snapshots are known by in the other store's revisions; by default those that they have in the first")
	return cmd
}

// origins returns who brought snapshots into a store last. What nobody knows that of is a thing of its own.
func origins(ctx context.Context, store *snapshot.Store, digests []snapshot.Digest) (map[snapshot.Digest]snapshot.Revision, error) {
	found := make(map[snapshot.Digest]snapshot.Revision)
	for _, id := range digests {
		found[id] = snapshot.Revision{Of: string(id)}
	}
	revisions, err := store.Revisions(ctx, "", "")
	for _, r := range revisions {
		found[r.ID] = r
	}
	return found, err
}

// chosen returns the snapshots that were asked for.
func chosen(ctx context.Context, store *snapshot.Store, ids []string, all bool) (digests []snapshot.Digest, err error) {
	if !all {
		for _, s := range ids {
			id, err := parseID(s)
			if err != nil {
				return nil, err
			}
			digests = append(digests, id)
		}
		return digests, nil
	}
	items, err := store.Snapshots(ctx)
	for _, item := range items {
		digests = append(digests, item.ID)
	}
	if err == nil && len(items) == 0 {
		err = fmt.Errorf("%s: there are no snapshots", store.Bucket)
	}
	return digests, err
}
