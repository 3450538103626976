package main

import (
	"cmp"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"pier/internal/chain"
	"pier/internal/oci"
	"pier/internal/upstream"
)

// A registries is how a command reaches registries by itself, as a node does.
type registries struct {
	upstreams string
	allow     []string
}

func (r *registries) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&r.upstreams, "upstreams", "", "YAML `FILE` of registries with settings of their own, as for 'pier serve' (environment PIER_UPSTREAMS)")
	cmd.Flags().StringSliceVar(&r.allow, "allow-upstream", nil, "`PATTERN` of further registries that may be asked, as for 'pier serve' (environment PIER_ALLOW_UPSTREAM)")
}

// source returns the registries, whose content is proven, and read again from where it was when it is cut.
func (r *registries) source(retries int) (oci.Source, error) {
	cfg := upstream.Config{Allow: r.allow, UserAgent: "pier/" + version}
	if allow := os.Getenv("PIER_ALLOW_UPSTREAM"); len(r.allow) == 0 && allow != "" {
		cfg.Allow = strings.Split(allow, ",")
	}
	if file := cmp.Or(r.upstreams, os.Getenv("PIER_UPSTREAMS")); file != "" {
		list, err := upstream.ReadFile(file)
		if err != nil {
			return nil, err
		}
		cfg.Upstreams = list
	}
	found, err := upstream.New(cfg)
	if err != nil {
		return nil, err
	}
	return listed{chain.Verified(chain.Again(found, retries)), found}, nil
}
