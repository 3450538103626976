package config_test

import (
	"strings"
	"testing"
)

// mDNS stands in for other ways to find nodes, and for them alone.
func TestMDNS(t *testing.T) {
	file := write(t, "peers", "")
	for _, tc := range []struct {
		args    []string
		environ []string
		file    string
		want    bool
	}{
		{want: true},
		{args: []string{"--zone=a", "--cluster=b", "--advertise-addr=10.0.0.1"}, want: true},
		{args: []string{"--peers=10.0.0.2"}},
		{environ: []string{"PIER_PEERS_FILE=" + file}},
		{file: "peers-dns: pier.svc"},
		{args: []string{"--peers="}, file: "peers: [a]", want: true},
		{args: []string{"--gossip-listen=none"}},
		{args: []string{"--mdns=false"}},
		{environ: []string{"PIER_MDNS=false"}},
		{file: "mdns: false"},
		{args: []string{"--mdns", "--peers=10.0.0.2"}, want: true},
		{args: []string{"--peers=10.0.0.2"}, file: "mdns: true", want: true},
		{args: []string{"--mdns=false"}, environ: []string{"PIER_MDNS=true"}},
		{args: []string{"--mdns=false", "--gossip-listen="}},
	} {
		c, _, err := load(t, tc.args, tc.environ, tc.file)
		if err != nil || c.MDNS != tc.want {
			t.Errorf("%q %q %q: MDNS %t, %v, want %t", tc.args, tc.environ, tc.file, c.MDNS, err, tc.want)
		}
	}
}

func TestNodes(t *testing.T) {
	long := strings.Repeat("a.", 127)
	for _, tc := range []struct {
		text string
		ok   bool
	}{
		{"10.0.0.2", true}, {"10.0.0.2:1", true}, {"10.0.0.2:65535", true}, {"node2", true}, {"node2.lan.", true}, {"node_2.lan:5000", true}, {"NODE-2:5000", true},
		{"fd00::2", true}, {"[fd00::2]", true}, {"[fd00::2]:5000", true}, {"fe80::1%eth0", true}, {"[fe80::1%eth0]:5000", true}, {"::1", true}, {long, true},
		{"10.0.0.2:0", false}, {"10.0.0.2:65536", false}, {"10.0.0.2:", false}, {"10.0.0.2:http", false}, {":5000", false}, {"10.0.0", false}, {"10.0.0.256", false},
		{"fd00::2:5000:x", false}, {"[fd00::2", false}, {"[fd00::2]5000", false}, {"[node2]:5000", false}, {"[node2]", false}, {"[10.0.0.2]", false}, {"[", false}, {"[]", false}, {"]", false}, {"http://node2", false}, {"node2/x", false},
		{"a b", false}, {"-a", false}, {"a..b", false}, {"a@b", false}, {"0.0.0.0", false}, {"0.0.0.0:5000", false}, {"::", false}, {"[::]:5000", false}, {long + "a", false},
	} {
		for _, flag := range []string{"peers", "advertise-addr"} {
			_, _, err := load(t, []string{"--" + flag, tc.text}, nil, "")
			if (err == nil) != tc.ok {
				t.Errorf("--%s %q: %v, want ok %t", flag, tc.text, err, tc.ok)
			}
		}
	}
}

func TestRate(t *testing.T) {
	for _, tc := range []struct {
		text string
		want int64 // -1: an error
	}{
		{"0", 0}, {"1000", 1000}, {"10MB", 10e6}, {"10MB/s", 10e6}, {"1GiB/s", 1 << 30}, {"0/s", 0},
		{"", -1}, {"/s", -1}, {"10MB/m", -1}, {"10MB/s/s", -1}, {"10Mbit", -1}, {"-1", -1},
	} {
		got, _, err := load(t, []string{"--peer-rate=" + tc.text, "--upstream-rate=" + tc.text}, nil, "")
		if (err == nil) != (tc.want >= 0) || err == nil && (got.PeerRate != tc.want || got.UpstreamRate != tc.want) {
			t.Errorf("%q: got %d and %d, %v, want %d", tc.text, got.PeerRate, got.UpstreamRate, err, tc.want)
		}
	}
}

// TestPeerFaults holds the whole message of every fault about peers.
func TestPeerFaults(t *testing.T) {
	file, long := write(t, "any", ""), strings.Repeat("x", 65)
	for _, tc := range []struct {
		name string
		args []string
		file string
		want []string // lines; FILE is the file's path
	}{
		{
			name: "values", args: []string{"--peer-slots=many", "--mdns=maybe", "--peer-rate=fast"}, file: "fetchers: 1.5\nupstream-rate: [1]\n",
			want: []string{
				`--peer-slots: "many": write a whole number`,
				`--mdns: "maybe": write true or false`,
				`--peer-rate: "fast" is no rate: write a whole number of bytes per second, or one with a unit, for example 500kB/s or 10MB/s`,
				`FILE:1: fetchers: 1.5 where a whole number should be`,
				`FILE:2: upstream-rate: a list where a whole number of bytes per second, or text such as 10MB/s should be`,
			},
		},
		{
			name: "places", args: []string{"--peers=http://a,d d,b:0,c", "--advertise-addr=0.0.0.0:7946", "--peers-dns=pier.svc:7946", "--peers-file=/does/not/exist", "--cluster-key-file=/"},
			want: []string{
				`peers: "http://a" is a URL: leave out its scheme`,
				`peers: "d d" is no node: write host or host:port, for example 10.0.0.2, node2.lan:5000 or [fd00::2]:5000`,
				`peers: "b:0": port "0": write a number from 1 to 65535, or leave it out with its colon`,
				`advertise-addr: "0.0.0.0:7946": 0.0.0.0 is every address of a machine: write one of them`,
				`peers-dns: "pier.svc:7946" is no name: write one that DNS knows, without a port, for example pier.kube-system.svc.cluster.local`,
				`peers-file: stat /does/not/exist: no such file or directory: correct the path, or let this user read it`,
				`cluster-key-file: / is a directory: name a file in it`,
			},
		},
		{
			name: "names and numbers", args: []string{"--cluster=", "--zone=a b", "--peer-slots=0", "--fetchers=9"},
			want: []string{
				`cluster: "": write a name of 1 to 63 bytes without spaces, quotes, backslashes, <, > and &`,
				`zone: "a b": write a name of at most 63 bytes without spaces, quotes, backslashes, <, > and &`,
				`peer-slots: 0: write a number of at least 1; to serve no other node, set peer-listen to none`,
				`fetchers: 9: write a number from 1 to 8`,
			},
		},
		{
			name: "long and unprintable names", args: []string{"--cluster=" + long, "--zone=a\x00", "--fetchers=0"},
			want: []string{
				`cluster: "` + long + `": write a name of 1 to 63 bytes without spaces, quotes, backslashes, <, > and &`,
				`zone: "a\x00": write a name of at most 63 bytes without spaces, quotes, backslashes, <, > and &`,
				`fetchers: 0: write a number from 1 to 8`,
			},
		},
		{
			name: "gossip on the address of another door", args: []string{"--gossip-listen=:5000"},
			want: []string{`peer-listen and gossip-listen both listen on port 5000 of the same address: change one of them`},
		},
		{
			name: "no peers, and ways to find some", args: []string{"--gossip-listen=none", "--peers=a", "--mdns", "--peers-file=" + file, "--peers-dns=b"},
			want: []string{`gossip-listen is none, so this node has no peers, but peers, peers-file, peers-dns, mdns would find some: remove one or the other`},
		},
		{
			name: "no peers, and mDNS", file: "gossip-listen: none\nmdns: true\n",
			want: []string{`gossip-listen is none, so this node has no peers, but mdns would find some: remove one or the other`},
		},
		{
			name: "nothing follows from what was meant", file: "gossip-listn: :1\nmdns: true\n", args: []string{"--peer-slots=x"},
			want: []string{
				`--peer-slots: "x": write a whole number`,
				`FILE:1: unknown key "gossip-listn": did you mean gossip-listen?`,
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var path string
			if tc.file != "" {
				path = write(t, "faulty.yaml", tc.file)
				tc.args = append([]string{"--config=" + path}, tc.args...)
			}
			_, _, err := load(t, tc.args, nil, "")
			if err == nil {
				t.Fatal("no error")
			}
			got, want := err.Error(), strings.Join(tc.want, "\n")
			if path != "" {
				got = strings.ReplaceAll(got, path, "FILE")
			}
			if got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestAKeyInPlaceOfItsFileIsNotRepeated(t *testing.T) {
	key := strings.Repeat("2bab8e01", 8)
	_, _, err := load(t, []string{"--cluster-key-file", key}, nil, "")
	if err == nil || strings.Contains(err.Error(), key) || !strings.Contains(err.Error(), "cluster-key-file") {
		t.Errorf("got error %v, want one that names the flag and not the key", err)
	}
}
