package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"pier/internal/containerd"
	"pier/internal/oci"
	"pier/internal/oci/ocitest"
	"pier/internal/registry"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"pier": main})
}

// TestScripts runs testdata/*.txtar, which read as the manual. Beside testscript's own commands they have:
//
//	ports A B …      set variables to free ports of 127.0.0.1
//	upstream VAR     start a registry with team/app:v1 and set VAR to its address; VAR_MANIFEST and VAR_LAYER to digests
//	outage, recovery make all upstreams answer 503, and answer again
//	ready URL        wait until URL answers 200
//	until COMMAND …  wait until a command succeeds
//	get STATUS URL   ask once, print headers and body to stdout, and compare the status
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   "testdata",
		Setup: setUpScript,
		Cmds:  map[string]func(*testscript.TestScript, bool, []string){"ports": ports, "upstream": startUpstream, "outage": outage, "recovery": outage, "ready": ready, "until": until, "get": get},
		Condition: func(cond string) (bool, error) {
			if cond != "containerd" {
				return false, fmt.Errorf("unknown condition %s", cond)
			}
			_, found := containerd.Detect()
			return found, nil
		},
		RequireUniqueNames: true,
	})
}

// state is what the commands of one script share.
type state struct {
	mu   sync.Mutex // guards down
	down bool
}

func setUpScript(env *testscript.Env) error {
	env.Values["state"] = &state{}
	env.Setenv("HOME", env.WorkDir+"/home")
	env.Setenv("PIER_GOSSIP_LISTEN", "none") // scripts run at the same time: their nodes are no peers,
	env.Setenv("PIER_PROXY_LISTEN", "none")  // and no proxies unless they say so
	env.Setenv("PIER_DATA_DIR", env.WorkDir+"/data")
	return os.Mkdir(env.WorkDir+"/home", 0o755)
}

func stateOf(ts *testscript.TestScript) *state { return ts.Value("state").(*state) }

// ports chooses free ports below those that the system gives to connections (ip_local_port_range): none takes one before it is used.
func ports(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		for tries := 0; ; tries++ {
			port := strconv.Itoa(10_000 + rand.N(22_000))
			l, err := net.Listen("tcp", "127.0.0.1:"+port)
			if err != nil && tries < 100 {
				continue
			}
			ts.Check(err)
			defer l.Close() // after all are chosen
			ts.Setenv(name, port)
			break
		}
	}
}

func startUpstream(ts *testscript.TestScript, _ bool, args []string) {
	st := stateOf(ts)
	var content ocitest.Memory
	ref := oci.Reference{Registry: "docker.io", Repository: "team/app", Tag: "v1"}
	layer := ocitest.Bytes(1, 300_000)
	manifest := content.Image(ref, layer)
	handler := registry.New(registry.Config{Source: &content})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		st.mu.Lock()
		down := st.down
		st.mu.Unlock()
		if down {
			http.Error(w, "outage", http.StatusServiceUnavailable)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	ts.Defer(srv.Close)
	ts.Setenv(args[0], strings.TrimPrefix(srv.URL, "http://"))
	ts.Setenv(args[0]+"_MANIFEST", manifest.Digest.String())
	ts.Setenv(args[0]+"_LAYER", ocitest.Digest(layer).String())
}

func outage(ts *testscript.TestScript, neg bool, _ []string) {
	st := stateOf(ts)
	st.mu.Lock()
	defer st.mu.Unlock()
	st.down = !st.down
	_ = neg
}

// client trusts any certificate: the scripts make their own.
var client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
	DisableKeepAlives: true,
	TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
}}

func ready(ts *testscript.TestScript, _ bool, args []string) {
	for range 200 {
		resp, err := client.Get(args[0])
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		time.Sleep(25 * time.Millisecond)
	}
	ts.Fatalf("%s is not ready after 5 seconds", args[0])
}

func until(ts *testscript.TestScript, _ bool, args []string) {
	for range 100 {
		if ts.Exec(args[0], args[1:]...) == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	ts.Fatalf("%q does not succeed within 10 seconds", args)
}

func get(ts *testscript.TestScript, _ bool, args []string) {
	resp, err := client.Get(args[1])
	ts.Check(err)
	defer resp.Body.Close()
	_ = resp.Header.Write(ts.Stdout())
	if resp.ContentLength < 10_000 {
		_, err = io.Copy(ts.Stdout(), resp.Body)
	} else {
		var n int64
		n, err = io.Copy(io.Discard, resp.Body)
		fmt.Fprintf(ts.Stdout(), "%d bytes\n", n)
	}
	ts.Check(err)
	if got := fmt.Sprint(resp.StatusCode); got != args[0] {
		ts.Fatalf("%s: status %s, want %s", args[1], got, args[0])
	}
}
