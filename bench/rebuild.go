package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"pier/internal/gzexact"
)

// rebuilding is a Docker whose layers a node makes again, and its layers.
type rebuilding struct {
	*forwarding
	content contentTar
	docker  dockerRoot
	data    string // what the node remembers
	layers  []madeLayer
	peak    float64 // resident bytes of the node that learned, at most
}

// A madeLayer is the content as one encoder compressed it.
type madeLayer struct {
	encoder
	image image
	how   gzexact.Recipe
	times []rebuiltLayer // by round
}

// A rebuiltLayer is how long the same layer took.
type rebuiltLayer struct {
	own, alone effort        // of its own encoder, and of the one here
	node       effort        // until a client had it from a node
	first      time.Duration // until the client had its first byte
	peak       float64       // resident bytes of the node, at most
}

// learnFor bounds how long a node may take to find out how its layers are made.
const learnFor = 5 * time.Minute

// rebuild measures layers that are made again.
func (f *forwarding) rebuild(ctx context.Context) error {
	r := &rebuilding{forwarding: f, docker: dockerRoot(filepath.Join(f.dir, "docker")), data: filepath.Join(f.dir, "rebuild-data")}
	missing, err := r.prepare(ctx)
	if err != nil {
		return err
	}
	if err := r.learn(ctx); err != nil {
		return err
	}
	for i := range f.set.rebuilds {
		for k := range r.layers {
			f.say("layers made again, %s, %d of %d", r.layers[k].name, i+1, f.set.rebuilds)
			t, err := r.measure(ctx, i, r.layers[k])
			if err != nil {
				return fmt.Errorf("%s: %w", r.layers[k].name, err)
			}
			r.layers[k].times = append(r.layers[k].times, t)
		}
	}
	several, err := r.several(ctx)
	if err != nil {
		return err
	}
	r.summary(several, missing)
	return nil
}

// prepare makes the layers, and images of them.
func (r *rebuilding) prepare(ctx context.Context) (missing []string, err error) {
	r.say("making the content of layers")
	if r.content, err = r.makeContent(ctx, r.set.content); err != nil {
		return nil, err
	}
	if err := r.docker.create(); err != nil {
		return nil, err
	}
	all, missing, err := encoders(ctx)
	if err != nil {
		return nil, err
	}
	for i, e := range all {
		r.say("a layer of %s", e.name)
		l := madeLayer{encoder: e}
		made := filepath.Join(r.dir, "layer.gz")
		if _, err := compress(ctx, r.content.file, made, e.args...); err != nil {
			return nil, err
		}
		if l.how, err = e.recipe(ctx, r.content.file, made); err != nil {
			return nil, err
		}
		if e.header != "" { // what it made is no layer of its
			if _, err := r.encode(ctx, l, made); err != nil {
				return nil, err
			}
		}
		if l.image, err = r.imageOf(fmt.Sprintf("team/layer%d", i+1), made, l.how); err != nil {
			return nil, err
		}
		r.layers = append(r.layers, l)
	}
	return missing, nil
}

// imageOf moves a layer into an image of upstream's.
func (r *rebuilding) imageOf(repository, layer string, how gzexact.Recipe) (image, error) {
	i := image{repository: repository}
	f, err := os.Open(layer)
	if err != nil {
		return i, err
	}
	defer f.Close()
	d, err := digest.FromReader(f)
	if err != nil {
		return i, err
	}
	info, err := f.Stat()
	if err != nil {
		return i, err
	}
	i.layers = []v1.Descriptor{{MediaType: v1.MediaTypeImageLayer + "+" + how.Compression(), Digest: d, Size: info.Size()}}
	name := filepath.Join(r.root(), i.path("blobs", d.String()))
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return i, err
	}
	if err := os.Rename(layer, name); err != nil {
		return i, err
	}
	return i.write(r.root(), []digest.Digest{r.content.diffID})
}

// encode makes a layer by its recipe.
func (r *rebuilding) encode(ctx context.Context, l madeLayer, out string) (effort, error) {
	self, err := os.Executable()
	if err != nil {
		return effort{}, err
	}
	return compress(ctx, r.content.file, out, self, "encode", l.how.String())
}

// learn has all layers pass through a node, and Docker unpack them, and waits until the node knows how to make them again.
func (r *rebuilding) learn(ctx context.Context) (err error) {
	r.say("a node learns how %d layers are made", len(r.layers))
	files, err := r.startSelf(ctx, "files", r.root())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, files.stop()) }()
	n, err := r.startDocker(ctx, files.addr, 2)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.stop()) }()
	var digests []digest.Digest
	for _, l := range r.layers {
		if _, err := pullImage(ctx, n.server, l.image); err != nil {
			return err
		}
		digests = append(digests, l.image.layers[0].Digest)
	}
	if err := r.docker.unpack(r.content, digests); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, learnFor)
	defer cancel()
	for known := 0.; known < float64(len(r.layers)); {
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return fmt.Errorf("a node learned how %g of %d layers are made: %w\n%s", known, len(r.layers), err, n.tail())
		}
		if known, err = metric(ctx, n.doors, `pier_layers_learned_total{outcome="exact"}`); err != nil {
			return err
		}
	}
	_, r.peak, err = n.memory()
	return err
}

// startMaker starts a node beside the Docker that learned, with nobody else to get layers from, and waits until it has read what
// Docker has.
func (r *rebuilding) startMaker(ctx context.Context, processors int) (*node, error) {
	nobody, err := freeAddr()
	if err != nil {
		return nil, err
	}
	n, err := r.startDocker(ctx, nobody, processors)
	if err != nil {
		return nil, err
	}
	err = await(ctx, "it can make layers", func(ctx context.Context) (bool, error) {
		layers, err := metric(ctx, n.doors, `pier_docker_layers{state="rebuilt"}`)
		return layers > 0, err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w\n%s", err, n.tail()), n.stop())
	}
	return n, nil
}

// startDocker starts a node beside the Docker, which gets from upstream what Docker does not have.
func (r *rebuilding) startDocker(ctx context.Context, upstream string, processors int) (n *node, err error) {
	n = &node{}
	if n.doors, err = r.freeDoors(false); err != nil {
		return nil, err
	}
	file := filepath.Join(r.dir, "rebuild-upstreams.yaml")
	if err := os.WriteFile(file, []byte("- name: "+upstream+"\n  scheme: http\n"), 0o644); err != nil {
		return nil, err
	}
	n.server = server{addr: n.doors.node, query: "?ns=" + upstream}
	args := append(n.args(), "--proxy-listen", "none", "--upstreams", file, "--data-dir", r.data, "--rebuild-cpu", fmt.Sprint(processors),
		"--store", "docker", "--docker-root", string(r.docker), "--docker-socket", filepath.Join(r.dir, "no-docker.sock"))
	n.process, err = r.start(ctx, "pier", n.doors.node, nil, r.pier, args...)
	return n, err
}

// measure has a layer made by its own encoder, by the one here, and by a node.
func (r *rebuilding) measure(ctx context.Context, round int, l madeLayer) (t rebuiltLayer, err error) {
	out := filepath.Join(r.dir, "out.gz")
	err = inTurn(round,
		func() (err error) { t.own, err = compress(ctx, r.content.file, out, l.args...); return err },
		func() (err error) { t.alone, err = r.encode(ctx, l, out); return err },
		func() error { return r.fromDocker(ctx, l, &t) },
	)
	return t, err
}

// fromDocker gets a layer from a new node, which makes it.
func (r *rebuilding) fromDocker(ctx context.Context, l madeLayer, t *rebuiltLayer) (err error) {
	n, err := r.startMaker(ctx, 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.stop()) }()
	t.node.cpu, _, err = usage(n.process, func() (err error) { t.first, t.node.wall, err = getLayer(ctx, n, l); return err })
	if err != nil {
		return fmt.Errorf("%w\n%s", err, n.tail())
	}
	_, t.peak, err = n.memory()
	return err
}

// getLayer gets a layer, and returns when the first byte came, and the last. The node must have made it.
func getLayer(ctx context.Context, n *node, l madeLayer) (first, last time.Duration, err error) {
	c, err := dial(ctx, n.server)
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	want := l.image.layers[0]
	first, last, size, err := c.get(l.image.path("blobs", want.Digest.String()))
	if err != nil {
		return 0, 0, err
	}
	made, err := metric(ctx, n.doors, "pier_rebuilt_bytes_total")
	if err == nil && (size != want.Size || made < float64(want.Size)) {
		err = fmt.Errorf("a layer of %d bytes came with %d, of which the node made %g", want.Size, size, made)
	}
	return first, last, err
}

// several returns how many bytes of a node are resident at most that is asked for all layers at once.
func (r *rebuilding) several(ctx context.Context) (peak float64, err error) {
	n, err := r.startMaker(ctx, 2)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, n.stop()) }()
	err = each(r.layers, func(_ int, l madeLayer) error { _, _, err := getLayer(ctx, n, l); return err })
	if err != nil {
		return 0, fmt.Errorf("%w\n%s", err, n.tail())
	}
	_, peak, err = n.memory()
	return peak, err
}

func (r *rebuilding) summary(several float64, missing []string) {
	t := &r.report
	size := float64(r.content.size)
	t.section("Layers made again: %.0f MB of content, on one processor", size/mb)
	var peaks series
	for _, l := range r.layers {
		figures := func(get func(rebuiltLayer) float64) series { return collect(l.times, get) }
		perSecond := func(get func(rebuiltLayer) effort) string {
			return figures(func(m rebuiltLayer) float64 { return size / mb / get(m).wall.Seconds() }).text(rate)
		}
		t.check(l.name+": encoder, to its own speed, by CPU time", ratio, atLeast(0.8),
			figures(func(m rebuiltLayer) float64 { return float64(m.own.cpu) / float64(m.alone.cpu) }))
		through := figures(func(m rebuiltLayer) float64 { return float64(m.own.wall) / float64(m.node.wall) })
		if l.fast {
			t.note(l.name+": through a node, to its own speed", through.text(ratio))
		} else {
			t.check(l.name+": through a node, to its own speed", ratio, atLeast(0.8), through)
		}
		t.note(l.name+": its own speed, "+l.own, perSecond(func(m rebuiltLayer) effort { return m.own }))
		t.note(l.name+": encoder", perSecond(func(m rebuiltLayer) effort { return m.alone }))
		t.note(l.name+": through a node", perSecond(func(m rebuiltLayer) effort { return m.node }))
		peaks = append(peaks, figures(func(m rebuiltLayer) float64 { return m.peak / mb })...)
	}
	for _, name := range missing {
		t.note(name, "not measured: not on the PATH")
	}
	t.section("A node that makes layers again")
	all := func(get func(rebuiltLayer) float64) (s series) {
		for _, l := range r.layers {
			s = append(s, collect(l.times, get)...)
		}
		return s
	}
	t.check("resident memory, at most", megabytes, never(64), peaks)
	t.check(fmt.Sprintf("resident memory, %d asked for at once, two processors, at most", len(r.layers)), megabytes, never(64), series{several / mb})
	t.check("resident memory, learning how they are made, at most", megabytes, never(64), series{r.peak / mb})
	t.note("first byte at a client", all(func(m rebuiltLayer) float64 { return in(m.first, time.Millisecond) }).text(milliseconds))
	t.note("CPU time of the node, to what the encoder takes alone", all(func(m rebuiltLayer) float64 { return float64(m.node.cpu) / float64(m.alone.cpu) }).text(ratio))
}
