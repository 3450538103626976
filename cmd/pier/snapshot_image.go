package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"pier/internal/cache"
	"pier/internal/chain"
	"pier/internal/containerd"
	"pier/internal/oci"
	"pier/internal/registry"
	"pier/internal/snapshot"
)

func snapshotLoadCommand() *cobra.Command {
	var s storing
	var l loading
	cmd := &cobra.Command{
		Use:   "load --store URL --id ID (--cache-dir DIR | --containerd)",
		Short: "Load the images of a snapshot into a cache or containerd",
		Long: `Load the images of a snapshot that is an OCI image layout: into the cache of a node that does not run, or into containerd, straight from the
store. Images have the names that the layout has for them; one without a name needs --as. What is there already is not fetched.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			digest, err := parseID(l.id)
			if err != nil {
				return err
			}
			if (l.cacheDir == "") == (l.socket == "") {
				return usageError{errors.New("say where to: --cache-dir DIR or --containerd")}
			}
			var names []oci.Reference
			err = s.run(cmd, func(ctx context.Context) error {
				store, err := s.open()
				if err != nil {
					return err
				}
				names, err = l.load(ctx, &snapshot.Library{Store: store, Only: digest}, s.jobs, s.meter)
				return err
			})
			if err != nil {
				return err
			}
			if s.asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]any{"images": texts(names)})
			}
			for _, name := range names {
				fmt.Fprintln(cmd.OutOrStdout(), name)
			}
			return nil
		},
	}
	s.registerStore(cmd)
	s.register(cmd, true)
	flags := cmd.Flags()
	flags.StringVar(&l.id, "id", "", "`ID` of the snapshot")
	flags.StringVar(&l.cacheDir, "cache-dir", "", "`DIRECTORY` of the cache to load into")
	flags.StringVar(&l.socket, "containerd", "", "load into the containerd whose `SOCKET` this is; without a value, the one that is found")
	flags.Lookup("containerd").NoOptDefVal = "auto"
	flags.StringVar(&l.namespace, "namespace", "k8s.io", "`NAMESPACE` of containerd")
	flags.StringVar(&l.as, "as", "", "`REFERENCE` that the image is called, if the snapshot is of one")
	flags.StringSliceVar(&l.platforms, "platform", nil, "only what is for this `OS/ARCHITECTURE`; by default all")
	return cmd
}

func texts(names []oci.Reference) []string {
	list := make([]string, len(names))
	for i, name := range names {
		list[i] = name.String()
	}
	return list
}

// A loading is what a load was told.
type loading struct {
	id, cacheDir, socket, namespace, as string
	platforms                           []string
}

func (l *loading) load(ctx context.Context, from *snapshot.Library, jobs int, meter *snapshot.Meter) (names []oci.Reference, err error) {
	if names, err = from.Names(ctx); err != nil {
		return nil, err
	}
	opt := chain.CopyOptions{ImageOptions: chain.ImageOptions{Platforms: l.platforms, Referrers: true, Sparse: true}, Jobs: jobs, Done: meter.Add}
	if l.as != "" {
		if opt.As, err = oci.ParseReference(l.as, "docker.io"); err != nil {
			return nil, usageError{fmt.Errorf("--as: %w", err)}
		}
	}
	switch {
	case len(names) == 0:
		return nil, fmt.Errorf("snapshot %s has no image with a name: push a layout with --name, or a reference", l.id)
	case l.as != "" && len(names) > 1:
		return nil, usageError{fmt.Errorf("--as: there are %d images in the snapshot", len(names))}
	}
	to, done, err := l.target(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		meter.Begin("loading", 0)
		if _, err := chain.Copy(ctx, to, chain.Verified(from), name, opt); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", name, err), done())
		}
	}
	if l.as != "" {
		names = []oci.Reference{opt.As}
	}
	return names, done()
}

// target returns where images are loaded into, and what closes it.
func (l *loading) target(ctx context.Context) (to chain.Target, done func() error, err error) {
	if l.cacheDir != "" {
		c, err := cache.Open(cache.Config{Dir: l.cacheDir, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			return nil, nil, fmt.Errorf("%w (a node that runs loads from 'pier snapshot serve')", err)
		}
		return c, c.Close, nil
	}
	cfg, found := containerd.Detect()
	if l.socket != "auto" {
		cfg.Socket, found = l.socket, true
	}
	if !found {
		return nil, nil, errors.New("no containerd here: its socket is in none of the usual places; say --containerd=SOCKET")
	}
	w, err := containerd.NewWriter(ctx, cfg.Socket, l.namespace)
	if err != nil {
		return nil, nil, err
	}
	return w, w.Close, nil
}

func snapshotServeCommand() *cobra.Command {
	var s storing
	var listen, id string
	cmd := &cobra.Command{
		Use:   "serve --store URL",
		Short: "Serve the images of a store to whoever pulls",
		Long: `Serve the images of a store as a registry, straight from there: of all snapshots that are OCI image layouts, or of one. An image is pulled by
the name that its layout has for it: docker.io/team/app:v1 as localhost:5000/team/app:v1, registry.test/team/app:v1 as
localhost:5000/registry.test/team/app:v1, or by its own name by nodes and runtimes for which this is a mirror. Whoever reaches the address can pull.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var only snapshot.Digest
			if id != "" {
				var err error
				if only, err = parseID(id); err != nil {
					return err
				}
			}
			store, err := s.open()
			if err != nil {
				return err
			}
			go boundMemory(cmd.Context())
			library := &snapshot.Library{Store: store, Only: only}
			names, err := library.Names(cmd.Context())
			if err != nil {
				return err
			}
			l, err := (&net.ListenConfig{}).Listen(cmd.Context(), "tcp", listen)
			if err != nil {
				return err
			}
			s.say(cmd, "%d images of %s at http://%s", len(names), store.Bucket, l.Addr())
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelInfo}))
			return serveUntil(cmd.Context(), l, registry.New(registry.Config{Source: listed{chain.Verified(library), library}, Door: "snapshot", Log: log}))
		},
	}
	s.registerStore(cmd)
	s.register(cmd, true)
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:5000", "`ADDRESS` to listen on")
	cmd.Flags().StringVar(&id, "id", "", "`ID` of the only snapshot that is served")
	return cmd
}

// listed is a source that can list.
type listed struct {
	oci.Source
	oci.Lister
}

// serveUntil serves until ctx ends, and what is being served then for ten seconds more.
func serveUntil(ctx context.Context, l net.Listener, h http.Handler) error {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		return server.Close()
	}
	return nil
}
