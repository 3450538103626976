package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pier/internal/cache"
	"pier/internal/oci"
)

func listCommand() *cobra.Command {
	var k keeper
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list [PATTERN...]",
		Short: "List the images of a cache",
		Long: `List the images of a cache, whether a node runs on it or not: what they are called, how large they are, when they were last used, and
where they came from. A pattern is a name, with or without the tag, in which * is any text, ? one character and [a-z] one of several.`,
		Example: `  pier list
  pier list alpine 'registry.example.com/*'
  pier list --cache-dir /srv/pier --json`,
		Args: patterns,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := k.open(false); err != nil {
				return err
			}
			list, err := k.images(cmd.Context(), args)
			if err = errors.Join(err, k.close()); err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), list)
			}
			t := table{{"IMAGE", "DIGEST", "SIZE", "USED", "SOURCE"}}
			addImages(&t, list, time.Now())
			t.alignRight(2)
			return t.write(cmd.OutOrStdout())
		},
	}
	k.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// patterns is for commands that take patterns.
func patterns(_ *cobra.Command, args []string) error {
	if err := cache.CheckPatterns(args); err != nil {
		return usageError{err}
	}
	return nil
}

// addImages adds a row for each name of images.
func addImages(t *table, list []cache.Image, now time.Time) {
	for _, img := range list {
		names := img.Names
		if len(names) == 0 {
			names = []string{""}
		}
		for _, name := range names {
			t.add(shortName(name), shortDigest(img.Digest), sizeText(img.Size), ago(now.Sub(img.Used)), img.Source)
		}
	}
}

// shortName leaves out what people leave out of names, and the digest that has a column of its own.
func shortName(name string) string {
	name = strings.TrimPrefix(strings.TrimPrefix(name, oci.DockerHub+"/"), "library/")
	if repository, digest, ok := strings.Cut(name, "@"); ok {
		return repository + "@" + shortDigest(oci.Digest(digest))
	}
	return name
}

// shortDigest is enough of a digest to tell it from the others.
func shortDigest(d oci.Digest) string {
	if s := d.String(); len(s) > 19 {
		return s[:19]
	}
	return d.String()
}

// ago says how long ago something was.
func ago(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < time.Minute:
		return "just now"
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", d/time.Minute)
	case d < 2*day:
		return fmt.Sprintf("%dh ago", d/time.Hour)
	}
	return fmt.Sprintf("%dd ago", d/day)
}
