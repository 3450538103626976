package member

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// quick is a pace for tests, about ten times production's.
func quick() pace {
	return pace{
		gossip: 30 * time.Millisecond, probe: 200 * time.Millisecond, timeout: 150 * time.Millisecond,
		sync: 2 * time.Second, forget: time.Second, exchange: time.Second,
		tick: 50 * time.Millisecond, follow: 100 * time.Millisecond, resolve: 100 * time.Millisecond,
		retry: 100 * time.Millisecond, retryMax: 500 * time.Millisecond, lostMax: 500 * time.Millisecond,
		settled: time.Second, ask: 50 * time.Millisecond, window: time.Second, debounce: 10 * time.Millisecond,
		discovery: 100 * time.Millisecond,
	}
}

// A node is a running group.
type node struct {
	*Group
	log  *logs
	stop func() // ends Run gracefully, and waits for it

	mu       sync.Mutex // guards all below
	messages []string
	members  []Member // as Config.Change was last told
}

// start runs a group on a loopback address of its own, until the test ends.
func start(t *testing.T, c Config) *node {
	t.Helper()
	n := &node{log: &logs{}}
	if c.Listen == "" {
		c.Listen = "127.0.0.1:0"
	}
	if c.pace == (pace{}) {
		c.pace = quick()
	}
	if c.Metrics == nil {
		c.Metrics = metrics.NewSet()
	}
	c.Log = slog.New(slog.NewTextHandler(n.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if c.Message == nil {
		c.Message = func(msg []byte) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.messages = append(n.messages, string(msg))
		}
	}
	c.Change = func(all []Member) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.members = all
	}
	var err error
	if n.Group, err = New(c); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(n.stop)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of %s:\n%s", n.name(), n.log)
		}
	})
	return n
}

// crash ends n: nobody hears of it any more, nor can it tell anybody.
func (n *node) crash() {
	n.opened().tcp.Close()
	n.opened().udp.Close()
	n.opened().reader.Load().stop()
	go n.stop() // the test waits for it when it ends
}

func (n *node) name() string { return n.Self().Name }

func (n *node) received() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.messages)
}

// told returns the names that Config.Change was last told.
func (n *node) told() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return names(n.members)
}

func names(members []Member) []string {
	all := make([]string, 0, len(members))
	for _, m := range members {
		all = append(all, m.Name)
	}
	return all
}

// sees waits until n's members are others, and Config.Change was told so.
func (n *node) sees(t *testing.T, others ...*node) {
	t.Helper()
	want := make([]string, 0, len(others))
	for _, o := range others {
		if o != n {
			want = append(want, o.name())
		}
	}
	slices.Sort(want)
	eventually(t, func() string {
		if got := names(n.Members()); !slices.Equal(got, want) {
			return fmt.Sprintf("%s has the members %v, want %v", n.name(), got, want)
		}
		if got := n.told(); !slices.Equal(got, want) {
			return fmt.Sprintf("%s was told of %v, want %v", n.name(), got, want)
		}
		return ""
	})
}

// eventually polls until wrong returns "".
func eventually(t *testing.T, wrong func() string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second) // of a machine that has much else to do
	for {
		what := wrong()
		if what == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// keeps checks for a while that wrong returns "".
func keeps(t *testing.T, d time.Duration, wrong func() string) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if what := wrong(); what != "" {
			t.Fatal(what)
		}
	}
}

// at returns addr as the configuration of peers writes it.
func at(n *node) []string { return []string{n.name()} }

// A logs is a log in memory.
type logs struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// count returns how many lines of that level have text.
func (l *logs) count(level slog.Level, text string) int {
	n := 0
	for line := range strings.Lines(l.String()) {
		if strings.Contains(line, "level="+level.String()) && strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func loopback(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
}
