package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// nginxConfig is for one worker, which is the process itself; its values are a user, a directory for temporary files, an
// address and the directory to serve.
const nginxConfig = `daemon off;
master_process off;
pid %[2]s/nginx.pid;
user %[1]s;
events {}
http {
	client_body_temp_path %[2]s;
	proxy_temp_path %[2]s;
	fastcgi_temp_path %[2]s;
	uwsgi_temp_path %[2]s;
	scgi_temp_path %[2]s;
	access_log off;
	sendfile on;
	server {
		listen %[3]s;
		root %[4]s;
	}
}
`

// startNginx starts nginx over the files of a directory.
func (b *bench) startNginx(ctx context.Context, nginx, root string) (*process, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.dir, "nginx-")
	if err != nil {
		return nil, err
	}
	user := "nobody"
	if os.Geteuid() == 0 {
		user = "root" // the directory is root's alone; any other user's nginx ignores this line
	}
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConfig, user, dir, addr, root), 0o644); err != nil {
		return nil, err
	}
	return b.start(ctx, "nginx", addr, nil, nginx, "-e", "stderr", "-p", dir, "-c", conf)
}
