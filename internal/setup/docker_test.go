package setup

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
)

const (
	ourProxy  = "http://127.0.0.1:3128"
	ourMirror = "http://127.0.0.1:5001"
)

func docker(version int) Docker {
	return Docker{Proxy: ourProxy, Mirror: ourMirror, Daemon: Daemon{Version: fmt.Sprint(version), Major: version, Containerd: version >= 29}}
}

func setUp(t *testing.T, m *Machine, d Docker) Report {
	t.Helper()
	r, err := m.SetUpDocker(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func undoDocker(t *testing.T, m *Machine) {
	t.Helper()
	if r, err := m.UndoDocker(t.Context()); err != nil || r.Left() > 0 {
		t.Fatalf("%v, %+v", err, r)
	}
}

func TestDockerProxies(t *testing.T) {
	m := newMachine(t, daemonFile, "{\n  \"log-driver\": \"journald\",\n  \"proxies\": {\n    \"no-proxy\": \"corp\"\n  }\n}\n")
	before := tree(t, m)
	r := setUp(t, m, docker(23))
	if r.Mode != ModeProxy || r.Restart != "" || !strings.Contains(strings.Join(r.Notes, "; "), "Docker's next start") {
		t.Errorf("got %+v", r)
	}
	wantSame(t, text(t, m, daemonFile), `{
  "log-driver": "journald",
  "proxies": {
    "no-proxy": "corp",
    "http-proxy": "http://127.0.0.1:3128",
    "https-proxy": "http://127.0.0.1:3128"
  }
}
`)
	undoDocker(t, m)
	wantSame(t, tree(t, m), before)

	// 29 with the classic store does not read hosts.toml.
	d := docker(29)
	d.Daemon.Containerd = false
	if r := setUp(t, m, d); r.Mode != ModeProxy {
		t.Errorf("got %+v", r)
	}
}

// What the daemon takes from its environment would count no more: no-proxy is taken over.
func TestDockerNoProxy(t *testing.T) {
	m := newMachine(t)
	d := docker(28)
	d.Daemon.NoProxy = "registry.corp"
	setUp(t, m, d)
	if got, _ := get([]byte(text(t, m, daemonFile)), []string{"proxies", "no-proxy"}); string(got) != `"registry.corp"` {
		t.Errorf("got %s", got)
	}
}

func TestDockerDropIn(t *testing.T) {
	m := newMachine(t, "/usr/lib/systemd/systemd", "")
	before := tree(t, m)
	setUp(t, m, docker(20))
	wantSame(t, text(t, m, dropInFile), `# Written by pier setup docker.
[Service]
Environment="HTTP_PROXY=http://127.0.0.1:3128"
Environment="HTTPS_PROXY=http://127.0.0.1:3128"
Environment="NO_PROXY=localhost,127.0.0.0/8,::1"
`)
	undoDocker(t, m)
	wantSame(t, tree(t, m), before)

	// Without systemd somebody else starts Docker.
	if _, err := newMachine(t).SetUpDocker(t.Context(), docker(20)); err == nil || !strings.HasSuffix(err.Error(), "add to /etc/default/docker, or wherever dockerd is started,\nexport HTTP_PROXY=http://127.0.0.1:3128\nexport HTTPS_PROXY=http://127.0.0.1:3128\nexport NO_PROXY=localhost,127.0.0.0/8,::1") {
		t.Errorf("got %v", err)
	}
}

func TestDockerMirror(t *testing.T) {
	m := newMachine(t, daemonFile, `{"registry-mirrors": ["https://mirror.corp"]}`)
	before := tree(t, m)
	d := docker(20)
	d.Mode = ModeMirror
	setUp(t, m, d)
	wantSame(t, text(t, m, daemonFile), `{"registry-mirrors": ["http://127.0.0.1:5001", "https://mirror.corp"]}`)
	undoDocker(t, m)
	wantSame(t, tree(t, m), before)
}

func TestForeignProxy(t *testing.T) {
	for _, tc := range []struct {
		name, path, content string
		live                string
		refused             bool
	}{
		{"daemon.json", daemonFile, `{"proxies": {"https-proxy": "http://corp:3128"}}`, "", true},
		{"daemon.json, the same", daemonFile, `{"proxies": {"https-proxy": "http://127.0.0.1:3128"}}`, "", false},
		{"daemon.json, none", daemonFile, `{"proxies": {"https-proxy": ""}}`, "", false},
		{"a drop-in", dropInDir + "/http-proxy.conf", "[Service]\nEnvironment=\"HTTP_PROXY=http://corp:3128\" \"NO_PROXY=x\"\n", "", true},
		{"a drop-in of the same", dropInDir + "/http-proxy.conf", "[Service]\nEnvironment=HTTPS_PROXY=http://127.0.0.1:3128\n", "", false},
		{"a drop-in about other things", dropInDir + "/limits.conf", "[Service]\n#Environment=HTTPS_PROXY=http://corp:3128\nLimitNOFILE=1\n", "", false},
		{"the environment", "/etc/default/docker", "export http_proxy='http://corp:3128'\n", "", true},
		{"the running daemon", "/x", "", "http://corp:3128", true},
		{"the running daemon, from a file of ours", daemonFile, "", ourProxy, false},
	} {
		m := newMachine(t, tc.path, tc.content)
		before := tree(t, m)
		d := docker(28)
		d.Daemon.HTTPSProxy = tc.live
		_, err := m.SetUpDocker(t.Context(), d)
		if refused := err != nil; refused != tc.refused || refused && !strings.Contains(err.Error(), "http://corp:3128") {
			t.Errorf("%s: got %v", tc.name, err)
		}
		if tc.refused {
			wantSame(t, tree(t, m), before)
			m.Force = true
			setUp(t, m, d)
		}
		undoDocker(t, m)
		wantSame(t, tree(t, m), before)
	}

	// Another proxy of our own is no foreign one, whether Docker was restarted meanwhile or not.
	m := newMachine(t)
	setUp(t, m, docker(28))
	d := docker(28)
	d.Proxy, d.Daemon.HTTPProxy = "http://127.0.0.1:3129", ourProxy
	setUp(t, m, d)
	d.Proxy = "http://127.0.0.1:3130"
	d.Daemon.HTTPProxy = "http://127.0.0.1:3129"
	setUp(t, m, d)
}

// dockerd does not start with an option and the setting of the same name.
func TestConflict(t *testing.T) {
	unit := "/usr/lib/systemd/system/docker.service"
	for _, tc := range []struct {
		name, path, content string
		mode                Mode
		want                string
	}{
		{"the unit", unit, "[Service]\nExecStart=/usr/bin/dockerd -H fd:// --https-proxy=http://corp:3128\n", ModeProxy, "--https-proxy (" + unit + ")"},
		{"another option", unit, "[Service]\nExecStart=/usr/bin/dockerd -H fd:// --https-proxy=http://corp:3128\n", ModeMirror, ""},
		{"options", "/etc/default/docker", "DOCKER_OPTS=\"--registry-mirror=http://x\"\n", ModeMirror, "--registry-mirror (/etc/default/docker)"},
		{"a comment", "/etc/default/docker", "#DOCKER_OPTS=\"--dns 8.8.8.8 --registry-mirror=http://x\"\n", ModeMirror, ""},
		{"a drop-in", dropInDir + "/x.conf", "[Service]\nExecStart=\nExecStart=dockerd \\\n  --no-proxy x\n", ModeProxy, "--no-proxy (" + dropInDir + "/x.conf)"},
		{"another file", unit, "[Service]\nExecStart=/usr/bin/dockerd --config-file=/opt/d.json\n", ModeProxy, "--config-file /opt/d.json (" + unit + ")"},
		{"the same file", unit, "[Service]\nExecStart=/usr/bin/dockerd --config-file " + daemonFile + "\n", ModeProxy, ""},
	} {
		m := newMachine(t, tc.path, tc.content)
		m.Force = true // does not help
		d := docker(28)
		d.Mode = tc.mode
		_, err := m.SetUpDocker(t.Context(), d)
		if (err != nil) != (tc.want != "") || err != nil && !strings.HasPrefix(err.Error(), "docker is started with "+tc.want) {
			t.Errorf("%s: got %v", tc.name, err)
		}
	}
}

func TestRestart(t *testing.T) {
	m := newMachine(t, "/usr/lib/systemd/systemd", "")
	d := docker(28)
	d.Daemon.Running = true
	r := setUp(t, m, d)
	wantSame(t, r.Restart, "it reads daemon.json only when it starts")
	wantSame(t, fmt.Sprint(r.Command), "[[systemctl restart docker]]")
	if r = setUp(t, m, d); r.Restart == "" {
		t.Errorf("nothing changed, but the daemon does not use it yet: %+v", r)
	}
	d.Daemon.HTTPProxy, d.Daemon.HTTPSProxy = ourProxy, ourProxy
	if r = setUp(t, m, d); r.Restart != "" {
		t.Errorf("the daemon uses it already: %+v", r)
	}
	d.Mode, d.Daemon.Mirrors = ModeMirror, []string{ourMirror + "/"}
	if r = setUp(t, m, d); r.Restart == "" {
		t.Errorf("daemon.json changed: %+v", r)
	}
	if r = setUp(t, m, d); r.Restart != "" {
		t.Errorf("the daemon uses it already: %+v", r)
	}
	if r, err := m.UndoDocker(t.Context()); err != nil || r.Restart == "" {
		t.Errorf("%v, %+v", err, r)
	}

	d = docker(20)
	d.Daemon.Running = true
	r = setUp(t, m, d)
	wantSame(t, r.Restart, "it reads pier-proxy.conf only when it starts")
	wantSame(t, fmt.Sprint(r.Command), "[[systemctl daemon-reload] [systemctl restart docker]]")

	m = newMachine(t, "/usr/sbin/service", "")
	d.Daemon.Major = 28
	wantSame(t, fmt.Sprint(setUp(t, m, d).Command), "[[service docker restart]]")
}

func TestDaemonJSONNotUnderstood(t *testing.T) {
	m := newMachine(t, daemonFile, "{\"a\": 1,}")
	_, err := m.SetUpDocker(t.Context(), docker(28))
	want := m.Root + daemonFile + `:1:9: a comma before '}'; it is left alone: mend it, or add by hand
{
  "proxies": {
    "http-proxy": "http://127.0.0.1:3128",
    "https-proxy": "http://127.0.0.1:3128",
    "no-proxy": "localhost,127.0.0.0/8,::1"
  }
}`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

func TestAskDaemon(t *testing.T) {
	for _, tc := range []struct {
		version, info string
		want          Daemon
	}{
		{
			`{"Version":"20.10.24+dfsg1","ApiVersion":"1.41"}`, `{"DriverStatus":[["Backing Filesystem","extfs"]],"HttpProxy":"http://p","HttpsProxy":"http://q","NoProxy":"n"}`,
			Daemon{Running: true, Version: "20.10.24+dfsg1", Major: 20, HTTPProxy: "http://p", HTTPSProxy: "http://q", NoProxy: "n"},
		},
		{
			`{"Version":"library-import","ApiVersion":"1.54"}`, `{"DriverStatus":[["driver-type","io.containerd.snapshotter.v1"]],"RegistryConfig":{"Mirrors":["https://m/"],"InsecureRegistryCIDRs":["127.0.0.0/8"],"IndexConfigs":{"docker.io":{"Secure":true},"i.test":{"Secure":false}}}}`,
			Daemon{Running: true, Version: "library-import", Major: 29, Containerd: true, Mirrors: []string{"https://m/"}, Insecure: []string{"127.0.0.0/8", "i.test"}},
		},
		{`{"Version":"dev","ApiVersion":"1.48"}`, `{"DriverStatus":null}`, Daemon{Running: true, Version: "dev", Major: 23}},
		{`{"Version":"dev","ApiVersion":"1.39"}`, `{}`, Daemon{Running: true, Version: "dev", Major: 20}},
	} {
		mux := http.NewServeMux()
		mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, tc.version) })
		mux.HandleFunc("GET /info", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, tc.info) })
		socket := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: mux}}
		srv.Start()
		got, err := AskDaemon(t.Context(), socket)
		srv.Close()
		if a, b := fmt.Sprint(got), fmt.Sprint(tc.want); err != nil || a != b {
			t.Errorf("got %v, %s\nwant %s", err, a, b)
		}
		if _, err := AskDaemon(t.Context(), socket); err == nil || !strings.HasPrefix(err.Error(), "docker at "+socket) {
			t.Errorf("nobody there: got %v", err)
		}
	}
}

func TestAssumeDaemon(t *testing.T) {
	for _, tc := range []struct {
		version, config string
		major           int
		containerd      bool
	}{
		{"20.10.24+dfsg1", "", 20, false},
		{"28.2.2", "", 28, false},
		{"28.2.2", `{"features": {"containerd-snapshotter": true}}`, 28, true},
		{"v29.0.0-rc.1", "", 29, true},
		{"29", `{"storage-driver": "overlay2"}`, 29, false},
		{"29.1", `{"storage-driver": "overlayfs", "features": {"containerd-snapshotter": false}}`, 29, false},
	} {
		m := newMachine(t, daemonFile, tc.config)
		if d, err := m.AssumeDaemon(tc.version); err != nil || d.Major != tc.major || d.Containerd != tc.containerd || d.Running {
			t.Errorf("%s with %s: got %v %+v", tc.version, tc.config, err, d)
		}
	}
	for _, version := range []string{"latest", "-1.2", "0"} {
		if d, err := newMachine(t).AssumeDaemon(version); err == nil {
			t.Errorf("%q: got %+v", version, d)
		}
	}
}

// A report is read by scripts too.
func TestReportJSON(t *testing.T) {
	b, err := json.Marshal(setUp(t, newMachine(t), docker(28)))
	if err != nil || !strings.Contains(string(b), `"steps":[{"action":"write","done":true,"path":`) {
		t.Errorf("got %s, %v", b, err)
	}
}

// Another proxy's password is nobody's business but its own.
func TestProxyPasswordIsNotTold(t *testing.T) {
	for proxy, want := range map[string]string{
		"http://user:s3cret@proxy.corp:3128": "http://USER:PASSWORD@proxy.corp:3128", "user:s3cret@proxy.corp:3128": "USER:PASSWORD@proxy.corp:3128",
		"http://user:s3cret@@proxy.corp": "http://USER:PASSWORD@proxy.corp", "http://proxy.corp:3128": "http://proxy.corp:3128",
	} {
		m := newMachine(t, daemonFile, `{"proxies": {"http-proxy": "`+proxy+`"}}`)
		_, err := m.SetUpDocker(t.Context(), Docker{Mode: ModeProxy, Proxy: "http://127.0.0.1:3128", Daemon: Daemon{Major: 28, Version: "28.0.0"}})
		if err == nil || strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), "another proxy, "+want+" (") {
			t.Errorf("%s: got error %v", proxy, err)
		}
	}
}
