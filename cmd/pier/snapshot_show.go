package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pier/internal/snapshot"
)

func verifyCommand() *cobra.Command {
	var s storing
	var id, level string
	cmd := &cobra.Command{
		Use:   "verify --store URL --id ID",
		Short: "Look whether a snapshot is all there",
		Long: `Look whether all objects of a snapshot are in the store, and report each that is not as it must be. Exit status 3 says that there is one.
Levels: list, that they are there; size, and have their size; full, and their content, for which all are read.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			digest, err := parseID(id)
			if err != nil {
				return err
			}
			levels := []snapshot.Level{snapshot.LevelList, snapshot.LevelSize, snapshot.LevelFull}
			if !slices.Contains(levels, snapshot.Level(level)) {
				return usageError{fmt.Errorf("--level %.40q: want list, size or full", level)}
			}
			var v snapshot.Verdict
			err = s.run(cmd, func(ctx context.Context) error {
				store, err := s.open()
				if err != nil {
					return err
				}
				v, err = store.Verify(ctx, digest, snapshot.Level(level))
				return err
			})
			if err != nil {
				return err
			}
			if s.asJSON {
				if err := printJSON(cmd.OutOrStdout(), v); err != nil {
					return err
				}
				return v.Err()
			}
			return reportVerdict(cmd, &s, v)
		},
	}
	s.registerStore(cmd)
	s.register(cmd, true)
	cmd.Flags().StringVar(&id, "id", "", "`ID` of the snapshot")
	cmd.Flags().StringVar(&level, "level", string(snapshot.LevelFull), "how much is looked at: list, size or full")
	return cmd
}

func reportVerdict(cmd *cobra.Command, s *storing, v snapshot.Verdict) error {
	w := cmd.OutOrStdout()
	for _, f := range v.Faults {
		fmt.Fprintf(w, "%s\t%s\t%s\n", f.Fault, f.Digest, printable(f.Detail))
		for _, p := range f.Paths {
			fmt.Fprintf(w, "\t%s\n", printable(p))
		}
	}
	if len(v.Faults) > 0 {
		s.say(cmd, "%s would mend it: 'pier snapshot push --repair' from the directory, or 'pier snapshot sync --repair' from another store that has it", sizeText(v.Needed))
		return v.Err()
	}
	s.say(cmd, "%d files, %d objects, %s: all as they must be (%s)", v.Files, v.Objects, sizeText(v.Bytes), v.Level)
	return nil
}

func diffCommand() *cobra.Command {
	var s storing
	var scan scanning
	cmd := &cobra.Command{
		Use:   "diff [--store URL] (ID | PATH) (ID | PATH)",
		Short: "Say what differs between two snapshots or directories",
		Long: `Say what differs between two snapshots or directories: A for what only the second has, D for what only the first has, M for other content,
P for other permissions only.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageError{fmt.Errorf("want two IDs or directories; see '%s --help'", cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var manifests [2]snapshot.Manifest
			for i, arg := range args {
				m, err := s.manifest(cmd.Context(), &scan, arg)
				if err != nil {
					return err
				}
				manifests[i] = m
			}
			changes := snapshot.Diff(manifests[0], manifests[1])
			if s.asJSON {
				return printJSON(cmd.OutOrStdout(), changes)
			}
			letters := map[string]string{"added": "A", "removed": "D", "content": "M", "mode": "P"}
			for _, c := range changes {
				fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", letters[c.Kind], printable(c.Path))
			}
			return nil
		},
	}
	s.registerStore(cmd)
	s.register(cmd, false)
	scan.register(cmd)
	return cmd
}

// manifest returns that of a snapshot in the store, or of a directory.
func (s *storing) manifest(ctx context.Context, scan *scanning, arg string) (snapshot.Manifest, error) {
	if id, err := snapshot.ParseDigest(arg); err == nil {
		store, err := s.open()
		if err != nil {
			return nil, err
		}
		return store.Manifest(ctx, id)
	}
	scanner, err := scan.scanner(s.jobs, nil)
	if err != nil {
		return nil, err
	}
	return scanner.Scan(ctx, arg)
}

func lsCommand() *cobra.Command {
	var s storing
	var id string
	cmd := &cobra.Command{
		Use:   "ls --store URL [--id ID]",
		Short: "List the snapshots in a store, or the files of one",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := s.open()
			if err != nil {
				return err
			}
			if id != "" {
				return s.listFiles(cmd, store, id)
			}
			items, err := store.Snapshots(cmd.Context())
			if err != nil {
				return err
			}
			if s.asJSON {
				return printJSON(cmd.OutOrStdout(), items)
			}
			t := table{{"SNAPSHOT", "MODIFIED", "MANIFEST"}}
			for _, item := range items {
				t.add(string(item.ID), item.Modified.Local().Format(time.DateTime), sizeText(item.Manifest))
			}
			t.alignRight(2)
			return t.write(cmd.OutOrStdout())
		},
	}
	s.registerStore(cmd)
	s.register(cmd, false)
	cmd.Flags().StringVar(&id, "id", "", "`ID` of the snapshot whose files are listed")
	return cmd
}

func (s *storing) listFiles(cmd *cobra.Command, store *snapshot.Store, id string) error {
	digest, err := parseID(id)
	if err != nil {
		return err
	}
	m, err := store.Manifest(cmd.Context(), digest)
	if err != nil {
		return err
	}
	if s.asJSON {
		return printJSON(cmd.OutOrStdout(), m)
	}
	t := table{{"PERM", "SIZE", "PATH"}}
	for _, e := range m {
		t.add(fmt.Sprintf("%04o", e.Perm), sizeText(e.Size), e.Path)
	}
	t.alignRight(1)
	return t.write(cmd.OutOrStdout())
}

func revisionsCommand() *cobra.Command {
	var s storing
	var name string
	cmd := &cobra.Command{
		Use:   "revisions --store URL [PATH | --name NAME]",
		Short: "Say who brought which snapshot into a store, when and from where",
		Args:  atMostOne("one path"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if name != "" && len(args) > 0 {
				return usageError{errors.New("a path or --name, not both")}
			}
			store, err := s.open()
			if err != nil {
				return err
			}
			from := ""
			if len(args) > 0 {
				if from, err = filepath.Abs(args[0]); err != nil {
					return err
				}
			}
			revisions, err := store.Revisions(cmd.Context(), name, from)
			if err != nil {
				return err
			}
			if s.asJSON {
				return printJSON(cmd.OutOrStdout(), append([]snapshot.Revision{}, revisions...))
			}
			t := table{{"TIME", "SNAPSHOT", "SIZE", "ACTION", "NAME", "FROM", "BY"}}
			for _, r := range revisions {
				t.add(r.Time.Local().Format(time.DateTime), string(r.ID), sizeText(r.Bytes), r.Action, r.Name, r.From, r.User+"@"+r.Host)
			}
			t.alignRight(2)
			return t.write(cmd.OutOrStdout())
		},
	}
	s.registerStore(cmd)
	s.register(cmd, false)
	cmd.Flags().StringVar(&name, "name", "", "only those of the snapshots of that `NAME`")
	return cmd
}

func manifestCommand() *cobra.Command {
	var s storing
	var scan scanning
	var id string
	cmd := &cobra.Command{
		Use:   "manifest [PATH | --store URL --id ID]",
		Short: "Print the manifest of a directory or snapshot",
		Long:  `Print the manifest of a directory, by default this one, or of a snapshot: for each file and directory its type, permissions, digest, size and path.`,
		Args:  atMostOne("one directory"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if id != "" && len(args) > 0 {
				return usageError{errors.New("a directory or --id, not both")}
			}
			if _, err := parseID(id); id != "" && err != nil {
				return err
			}
			arg := id
			if id == "" {
				arg = asPath(directory(args))
			}
			m, err := s.manifest(cmd.Context(), &scan, arg)
			if err != nil {
				return err
			}
			if s.asJSON {
				return printJSON(cmd.OutOrStdout(), m)
			}
			_, err = cmd.OutOrStdout().Write(m.Text())
			return err
		},
	}
	s.registerStore(cmd)
	s.register(cmd, false)
	scan.register(cmd)
	cmd.Flags().StringVar(&id, "id", "", "`ID` of a snapshot in the store")
	return cmd
}

// asPath returns a path that cannot be taken for an ID.
func asPath(arg string) string {
	if _, err := snapshot.ParseDigest(arg); err == nil {
		return "./" + arg
	}
	return arg
}

func idCommand() *cobra.Command {
	var s storing
	var scan scanning
	cmd := &cobra.Command{
		Use:   "id [PATH | -]",
		Short: "Print the ID that a directory has, or a manifest",
		Long:  `Print the ID that a directory, by default this one, has as a snapshot; or, for -, that of the manifest on standard input.`,
		Args:  atMostOne("one directory"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var m snapshot.Manifest
			var err error
			if len(args) == 1 && args[0] == "-" {
				m, err = snapshot.Parse(cmd.InOrStdin())
			} else {
				m, err = s.manifest(cmd.Context(), &scan, asPath(directory(args)))
			}
			if err != nil {
				return err
			}
			return s.result(cmd, map[string]any{"id": m.ID()}, string(m.ID()))
		},
	}
	s.register(cmd, false)
	scan.register(cmd)
	return cmd
}

func gcCommand() *cobra.Command {
	var s storing
	var keep snapshot.Retention
	var older string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "gc --store URL",
		Short: "Remove what no snapshot needs, and old snapshots",
		Long: `Remove the objects that no snapshot needs. With --keep-last or --older-than, old snapshots first: those that are neither among the last
of their name or path, nor younger. While a push or sync is at work in the store, nothing is removed.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if keep.Last < 0 {
				return usageError{fmt.Errorf("--keep-last %d: want 1 or more", keep.Last)}
			}
			if keep.Older, err = parseAge(older); err != nil {
				return usageError{fmt.Errorf("--older-than: %w", err)}
			}
			var c snapshot.Collection
			err = s.run(cmd, func(ctx context.Context) error {
				store, err := s.open()
				if err != nil {
					return err
				}
				c, err = store.GC(ctx, keep, dryRun)
				return err
			})
			if err != nil {
				return err
			}
			removed := "removed"
			if dryRun {
				removed = "would remove"
			}
			for _, id := range c.Snapshots {
				s.say(cmd, "%s snapshot %s", removed, id)
			}
			s.say(cmd, "%s %d snapshots and %d objects, %s; %d snapshots stay, %s",
				removed, len(c.Snapshots), c.Objects, sizeText(c.Bytes), c.Kept, sizeText(c.Stays))
			return s.result(cmd, c, "")
		},
	}
	s.registerStore(cmd)
	s.register(cmd, true)
	flags := cmd.Flags()
	flags.IntVar(&keep.Last, "keep-last", 0, "keep the last so many snapshots of each name or path")
	flags.StringVar(&older, "older-than", "", "remove only snapshots that came longer ago, for example 12h or 30d")
	flags.BoolVar(&dryRun, "dry-run", false, "only say what would be removed")
	return cmd
}

// parseAge is time.ParseDuration, with days; an empty text is none.
func parseAge(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 16)
		d = time.Duration(n) * 24 * time.Hour
	}
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%.40q is no age: write for example 12h or 30d", text)
	}
	return d, nil
}
