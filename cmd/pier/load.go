package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pier/internal/chain"
	"pier/internal/config"
	"pier/internal/load"
	"pier/internal/oci"
	"pier/internal/snapshot"
)

func loadCommand() *cobra.Command {
	var l loader
	cmd := &cobra.Command{
		Use:   "load [REFERENCE|ARCHIVE...]",
		Short: "Load images into a cache",
		Long: `Load images into a cache, whether a node runs on it or not: from their registries, or from archives that docker save or skopeo wrote. With
--file, what lists name: a reference or an archive on each line, and comments from # on. What is there already is not fetched again. An image
that fails does not keep the others from being loaded; what failed is said at the end, and the exit status is 1. Where a node runs, it asks the
registries, with its own settings; else --upstreams and --allow-upstream say how they are reached.

An argument is a file if it begins with /, ./ or ../, or ends as archives do (.tar, .tar.gz, .tgz); else it is a reference.`,
		Example: `  pier load alpine:3.20 registry.example.com/team/app:v1
  pier load --file images.txt --platform linux/amd64 --referrers
  pier load --cache-dir /media/usb/images --file images.txt  # to carry to a site without a network
  docker save app:v1 -o app.tar && pier load app.tar`,
		RunE: l.run,
	}
	l.keeper.register(cmd)
	l.registries.register(cmd)
	flags := cmd.Flags()
	flags.StringArrayVarP(&l.files, "file", "f", nil, "`LIST` of images and archives, one a line, - for standard input (repeatable)")
	flags.StringSliceVar(&l.options.Platforms, "platform", nil, "only what is for this `OS/ARCHITECTURE` (repeatable; default all)")
	flags.BoolVar(&l.options.Referrers, "referrers", false, "signatures and what else refers to an image, too")
	flags.StringVar(&l.as, "as", "", "`REFERENCE` that the image of an archive is called, if it has no name")
	flags.IntVar(&l.options.Jobs, "jobs", 4, "how many blobs are fetched at once")
	flags.IntVar(&l.retries, "max-retries", 5, "how often a blob is asked for again that is cut")
	flags.BoolVar(&l.asJSON, "json", false, "print JSON")
	flags.BoolVarP(&l.quiet, "quiet", "q", false, "show no progress, and only what failed")
	return cmd
}

// A loader is a load under way.
type loader struct {
	keeper     keeper
	registries registries
	files      []string
	as         string
	options    chain.CopyOptions
	retries    int
	asJSON     bool
	quiet      bool

	unnamed oci.Reference
	meter   *snapshot.Meter
	source  oci.Source // the registries; nil: not needed yet
	results []loaded
}

// loaded is what became of one item.
type loaded struct {
	Image  string     `json:"image"`            // reference, or file
	Digest oci.Digest `json:"digest,omitempty"` // of its manifest
	Bytes  int64      `json:"bytes"`            // of all its blobs
	From   string     `json:"from,omitempty"`   // FILE:LINE of a list, or the archive that it was in
	Error  string     `json:"error,omitempty"`
}

func (l *loader) run(cmd *cobra.Command, args []string) error {
	items, err := l.items(cmd.InOrStdin(), args)
	if err != nil {
		return err
	}
	if l.options.Jobs < 1 || l.options.Jobs > 64 {
		return usageError{fmt.Errorf("--jobs %d: want 1 to 64", l.options.Jobs)}
	}
	if err := l.keeper.open(true); err != nil {
		return err
	}
	stop := func() {}
	if !l.quiet {
		l.meter = &snapshot.Meter{}
		stop = showProgress(cmd.ErrOrStderr(), l.meter)
	}
	defer stop()
	stage := ""
	l.options.Total = func(size int64) { l.meter.Begin(stage, size) }
	l.options.Done = l.meter.Add
	begun := time.Now()
	for i, item := range items {
		if cmd.Context().Err() != nil {
			break
		}
		stage = fmt.Sprintf("%d/%d %s", i+1, len(items), path.Base(item.Text))
		l.meter.Begin(stage, 0)
		l.item(cmd.Context(), item)
	}
	stop()
	if err := l.keeper.close(); err != nil {
		return err
	}
	err = l.report(cmd, time.Since(begun))
	if cause := context.Cause(cmd.Context()); cause != nil {
		err = fmt.Errorf("%w: %d of %d were begun; what is here is not fetched again", cause, len(l.results), len(items))
	}
	return err
}

// items returns what is to be loaded.
func (l *loader) items(stdin io.Reader, args []string) (items []load.Item, err error) {
	for _, name := range l.files {
		var list []load.Item
		if name == "-" {
			list, err = load.ParseList(stdin, "standard input", oci.DockerHub)
		} else {
			list, err = load.ReadList(name, oci.DockerHub)
		}
		if err != nil {
			return nil, err
		}
		items = append(items, list...)
	}
	for _, arg := range args {
		items = append(items, load.Parse(arg, oci.DockerHub))
	}
	if l.as != "" {
		if l.unnamed, err = oci.ParseReference(l.as, oci.DockerHub); err != nil {
			return nil, usageError{fmt.Errorf("--as: %w", err)}
		}
	}
	if err := config.CheckPlatforms(l.options.Platforms); err != nil {
		return nil, usageError{fmt.Errorf("--platform: %w", err)}
	}
	if len(items) == 0 && len(l.files) == 0 {
		return nil, usageError{errors.New("nothing to load: give references or archives, or a list of them by --file")}
	}
	return items, nil
}

// item loads one item.
func (l *loader) item(ctx context.Context, item load.Item) {
	err := item.Err
	switch {
	case err != nil:
	case item.File != "":
		err = l.archive(ctx, item)
	default:
		err = l.image(ctx, item)
	}
	if err != nil {
		l.results = append(l.results, loaded{Image: item.Text, From: item.From, Error: strings.TrimPrefix(err.Error(), item.Text+": ")})
	}
}

// image loads an image from its registry.
func (l *loader) image(ctx context.Context, item load.Item) (err error) {
	result := loaded{Image: item.Ref.String(), From: item.From}
	if l.keeper.cache == nil {
		result.Digest, err = l.keeper.pull(ctx, item.Ref, l.counting(&result))
	} else {
		result.Digest, err = l.fetch(ctx, item.Ref, l.counting(&result))
	}
	if err == nil {
		l.results = append(l.results, result)
	}
	return err
}

// fetch copies an image from its registry into the directory.
func (l *loader) fetch(ctx context.Context, ref oci.Reference, opt chain.CopyOptions) (oci.Digest, error) {
	if l.source == nil {
		var err error
		if l.source, err = l.registries.source(l.retries); err != nil {
			return "", err
		}
	}
	img, err := chain.Copy(ctx, l.keeper.cache, l.source, ref, opt)
	if err != nil {
		return "", err
	}
	return img.Root.Digest, nil
}

// counting returns the options of a load whose bytes are counted.
func (l *loader) counting(result *loaded) chain.CopyOptions {
	opt := l.options
	opt.Total = func(size int64) {
		result.Bytes = size
		l.options.Total(size)
	}
	return opt
}

// archive loads the images of an archive.
func (l *loader) archive(ctx context.Context, item load.Item) error {
	archive, err := load.Open(ctx, item.File, l.unnamed)
	if err != nil {
		return err
	}
	defer archive.Close()
	for _, ref := range archive.Names() {
		result := loaded{Image: ref.String(), From: item.Text}
		opt := l.counting(&result)
		opt.Sparse = true
		var to chain.Target = l.keeper.cache
		if l.keeper.cache == nil {
			to = pusher{&l.keeper, ref}
		}
		img, err := chain.Copy(ctx, to, chain.Verified(archive), ref, opt)
		if err != nil {
			return fmt.Errorf("%s: %w", ref, err)
		}
		result.Digest = img.Root.Digest
		l.results = append(l.results, result)
	}
	return nil
}

// report says what was loaded, and what was not.
func (l *loader) report(cmd *cobra.Command, took time.Duration) error {
	failed, size := 0, int64(0)
	for _, r := range l.results {
		if r.Error != "" {
			failed++
		}
		size += r.Bytes
	}
	if l.asJSON {
		if err := printJSON(cmd.OutOrStdout(), l.results); err != nil {
			return err
		}
	} else {
		for _, r := range l.results {
			switch {
			case r.Error != "" && r.From != "":
				fmt.Fprintf(cmd.ErrOrStderr(), "failed: %s (%s): %s\n", printable(r.Image), printable(r.From), printable(r.Error))
			case r.Error != "":
				fmt.Fprintf(cmd.ErrOrStderr(), "failed: %s: %s\n", printable(r.Image), printable(r.Error))
			case !l.quiet:
				fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", r.Digest, r.Image)
			}
		}
		if !l.quiet {
			fmt.Fprintf(cmd.ErrOrStderr(), "%d loaded, %d failed, %s in %s\n", len(l.results)-failed, failed, sizeText(size), took.Round(time.Second))
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d could not be loaded", failed, len(l.results))
	}
	return nil
}
