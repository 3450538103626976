package docker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// sockets are where Docker listens: by its own default, and where a rootless one does for the user with this ID.
func sockets() []string {
	list := []string{"/run/docker.sock", "/var/run/docker.sock"}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		list = append(list, dir+"/docker.sock")
	}
	return list
}

// Detect returns the socket of a Docker in one of the usual places.
func Detect() (socket string, ok bool) {
	for _, path := range sockets() {
		if fi, err := os.Stat(path); err == nil && fi.Mode().Type() == fs.ModeSocket {
			return path, true
		}
	}
	return sockets()[0], false
}

// Info is what Docker says of itself.
type Info struct {
	Version string
	Root    string // its data root
	Driver  string // of storage: "overlay2", or with Containerd a snapshotter

	// Containerd says that images are in the image store of a containerd, which listens at ContainerdSocket where Docker says so.
	Containerd       bool
	ContainerdSocket string
}

const (
	askTimeout = 10 * time.Second // it counts images
	maxAnswer  = 4 << 20          // bytes of an answer that is read whole
)

// Ask asks the Docker at a socket what it is.
func Ask(ctx context.Context, socket string) (Info, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	c := newClient(socket)
	defer c.http.CloseIdleConnections()
	var answer struct {
		ServerVersion, DockerRootDir, Driver string
		DriverStatus                         [][2]string
		Containerd                           struct{ Address string }
	}
	if err := c.get(ctx, "/info", &answer); err != nil {
		return Info{}, err
	}
	info := Info{
		Version: answer.ServerVersion, Root: answer.DockerRootDir, Driver: answer.Driver,
		ContainerdSocket: strings.TrimPrefix(answer.Containerd.Address, "unix://"),
	}
	for _, pair := range answer.DriverStatus {
		if pair[0] == "driver-type" && strings.HasPrefix(pair[1], "io.containerd.snapshotter") {
			info.Containerd = true
		}
	}
	if info.Containerd && info.ContainerdSocket == "" {
		// The containerd that dockerd starts where the system has none, by dockerd's own default.
		if own := "/var/run/docker/containerd/containerd.sock"; isSocket(own) {
			info.ContainerdSocket = own
		}
	}
	return info, nil
}

func isSocket(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().Type() == fs.ModeSocket
}

// client speaks the part of Docker's API that is needed, version unnamed: the daemon then speaks its newest.
type client struct {
	socket string
	http   *http.Client
}

func newClient(socket string) *client {
	var d net.Dialer
	return &client{socket, &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", socket)
		},
		MaxIdleConns: 1, IdleConnTimeout: time.Minute, ResponseHeaderTimeout: askTimeout,
	}}}
}

// open sends a GET and returns the body of its answer, which the caller closes.
func (c *client) open(ctx context.Context, path string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("docker: this user may not use %s: run as root, or as a member of the group that owns it, or leave Docker out with --store", c.socket)
		}
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return nil, fmt.Errorf("docker: %s: %w", c.socket, err)
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("docker: %s: GET %s: status %d", c.socket, path, resp.StatusCode)
	}
	return resp.Body, nil
}

func (c *client) get(ctx context.Context, path string, v any) error {
	body, err := c.open(ctx, path)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(v); err != nil {
		return fmt.Errorf("docker: %s: GET %s: %w", c.socket, path, err)
	}
	return nil
}

// events calls changed whenever images come, go, or change their names, until ctx ends or the daemon is gone. Before the first,
// it calls up once the daemon listens.
func (c *client) events(ctx context.Context, changed func()) error {
	body, err := c.open(ctx, "/events?filters="+url.QueryEscape(`{"type":["image"]}`))
	if err != nil {
		return err
	}
	defer body.Close()
	changed() // whatever happened while nobody listened
	dec := json.NewDecoder(body)
	for {
		var event struct{}
		if err := dec.Decode(&event); err != nil {
			return fmt.Errorf("docker: %s: events: %w", c.socket, err)
		}
		changed()
	}
}

// IsClassic reports whether a data root has Docker's classic store in it. An empty root is Docker's own default.
func IsClassic(root string) bool {
	fi, err := os.Stat(filepath.Join(cmp.Or(root, DefaultRoot), "image", "overlay2", "layerdb"))
	return err == nil && fi.IsDir()
}

// DefaultRoot is where Docker keeps its data unless it was told otherwise.
const DefaultRoot = "/var/lib/docker"
