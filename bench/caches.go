package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// caches measures other pull-through caches in front of the same upstream, where they are installed. Their figures have no
// bounds, and fewer repeats.
func (b *single) caches(ctx context.Context) error {
	for _, name := range []string{"docker-registry", "registry"} {
		path, err := program(name)
		if err != nil {
			continue
		}
		if err := b.otherCache(ctx, name, path); err != nil {
			return err
		}
	}
	return nil
}

// A cacheRound is a pull without, and one through a new cache.
type cacheRound struct {
	direct, through pull
}

// otherCache measures distribution's registry.
func (b *single) otherCache(ctx context.Context, name, path string) error {
	rounds := make([]cacheRound, b.set.other)
	for i := range rounds {
		r := &rounds[i]
		b.say("%s, %d of %d", name, i+1, len(rounds))
		err := inTurn(i,
			func() (err error) { r.direct, err = pullImage(ctx, server{addr: b.upstream.addr}, b.image); return err },
			func() error {
				return b.throughCache(ctx, name, path, func(p *process) (err error) {
					r.through, err = pullImage(ctx, server{addr: p.addr}, b.image)
					return err
				})
			},
		)
		if err != nil {
			return err
		}
	}
	var one pull
	var many crowd
	err := errors.Join(
		b.throughCache(ctx, name, path, func(p *process) (err error) {
			one, err = pullImage(ctx, server{addr: p.addr}, b.small)
			return err
		}),
		b.throughCache(ctx, name, path, func(p *process) (err error) {
			many, err = b.crowd(ctx, p, server{addr: p.addr}, b.small, many)
			return err
		}),
	)
	if err != nil {
		return err
	}
	r := &b.report
	r.section("For comparison: %s as a pull-through cache", version(ctx, path, "--version"))
	r.note("one client: first byte, later than direct",
		collect(rounds, func(c cacheRound) float64 { return in(c.through.first-c.direct.first, time.Millisecond) }).text(milliseconds))
	r.note("one client: whole layer, to direct",
		collect(rounds, func(c cacheRound) float64 { return float64(c.through.layer) / float64(c.direct.layer) }).text(ratio))
	r.note(fmt.Sprintf("%d clients: GETs of a blob that reach upstream", clients), series{many.blob}.text(count))
	r.note(fmt.Sprintf("%d clients: all done, to one client, a layer of %d MB", clients, b.small.layers[0].Size/mb), series{float64(many.all) / float64(one.all)}.text(ratio))
	return nil
}

// throughCache runs f with a new, empty cache.
func (b *single) throughCache(ctx context.Context, name, path string, f func(*process) error) (err error) {
	type object = map[string]any
	addr, err := freeAddr()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(b.dir, name+"-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	config, err := json.Marshal(object{ // JSON is YAML
		"version": "0.1", "log": object{"level": "error", "accesslog": object{"disabled": true}},
		"storage": object{"filesystem": object{"rootdirectory": filepath.Join(dir, "data")}},
		"http":    object{"addr": addr, "secret": "bench"},
		"proxy":   object{"remoteurl": "http://" + b.upstream.addr},
	})
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(file, config, 0o644); err != nil {
		return err
	}
	p, err := b.start(ctx, name, addr, nil, path, "serve", file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	return f(p)
}
