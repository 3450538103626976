package registry

import (
	"bufio"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// Pushers are those who may push: by name and password, for which they get a token, as the token authentication of the distribution project has
// it: https://distribution.github.io/distribution/spec/auth/token/. Whoever only pulls gets a token without a name.
type Pushers struct {
	key   [sha256.Size]byte // of tokens; new at each start
	turn  chan struct{}     // held by whoever checks a password, which costs on purpose
	queue chan struct{}     // held by them, and by those who wait for that

	mu      sync.Mutex // guards all below
	users   map[string][]byte
	known   map[[sha256.Size]byte]time.Time // pairs of name and password that were right, until when
	waiting map[string]int                  // of those in the queue, how many come from an address
}

const (
	tokenLife   = time.Hour
	tokenPrefix = "pier1."    // tells our tokens from those of registries, also after a restart
	remembered  = time.Minute // a right password, so that one push checks it once
	maxPairs    = 64
	maxChecks   = 32 // passwords that are checked, or wait for it; beyond, whoever guesses must not keep others waiting

	maxChecksFrom = 8 // of them, from one address
)

// NewPushers returns those that a file of htpasswd -B lists.
func NewPushers(file string) (*Pushers, error) {
	p := &Pushers{turn: make(chan struct{}, 1), queue: make(chan struct{}, maxChecks), waiting: make(map[string]int)}
	_, _ = rand.Read(p.key[:]) // never fails
	return p, p.Reload(file)
}

// Reload reads the file again. On an error all stays as it was.
func (p *Pushers) Reload(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("push-htpasswd: %w", err)
	}
	defer f.Close()
	users := make(map[string][]byte)
	lines := bufio.NewScanner(f)
	for number := 1; lines.Scan(); number++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		name, hash, ok := strings.Cut(line, ":")
		if _, err := bcrypt.Cost([]byte(hash)); !ok || name == "" || err != nil {
			return fmt.Errorf("%s:%d: want a name and a password as htpasswd -B writes them: name:$2y$…", file, number)
		}
		users[name] = []byte(hash)
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if len(users) == 0 {
		return fmt.Errorf("%s: nobody is in it: add somebody with htpasswd -B %[1]s NAME", file)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.users, p.known = users, make(map[[sha256.Size]byte]time.Time)
	return nil
}

// right returns an error unless a name has a password. A name that is not listed takes as long.
func (p *Pushers) right(from, name, password string) error {
	pair := sha256.Sum256([]byte(strconv.Itoa(len(name)) + ":" + name + password))
	p.mu.Lock()
	hash, listed := p.users[name]
	until := p.known[pair]
	if !listed {
		for _, hash = range p.users {
			break
		}
	}
	p.mu.Unlock()
	if listed && time.Now().Before(until) {
		return nil
	}
	leave, err := p.enter(from)
	if err != nil {
		return err
	}
	defer leave()
	p.turn <- struct{}{}
	err = bcrypt.CompareHashAndPassword(hash, []byte(password))
	<-p.turn
	if err != nil || !listed {
		return errPusher
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.known) >= maxPairs {
		clear(p.known)
	}
	p.known[pair] = time.Now().Add(remembered)
	return nil
}

// enter takes a place in the queue of those whose passwords are checked, of which whoever guesses must not have all.
func (p *Pushers) enter(from string) (leave func(), err error) {
	host, _, err := net.SplitHostPort(from)
	if err != nil {
		host = from
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting[host] >= maxChecksFrom || len(p.queue) == cap(p.queue) {
		return nil, errBusy
	}
	p.waiting[host]++
	p.queue <- struct{}{} // there is room, and nobody else fills it
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.waiting[host]--; p.waiting[host] == 0 {
			delete(p.waiting, host)
		}
		<-p.queue
	}, nil
}

// has reports whether a name is listed.
func (p *Pushers) has(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.users[name]
	return ok
}

// token returns one for a name; "" for nobody in particular.
func (p *Pushers) token(name string, now time.Time) string {
	text := strconv.FormatInt(now.Add(tokenLife).Unix(), 10) + ":" + name
	return tokenPrefix + encode([]byte(text)) + "." + encode(p.sum(text, name))
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// sum authenticates the text of a token. It is another one once the password of its holder is.
func (p *Pushers) sum(text, name string) []byte {
	h := hmac.New(sha256.New, p.key[:])
	h.Write([]byte(text))
	p.mu.Lock()
	defer p.mu.Unlock()
	h.Write(p.users[name])
	return h.Sum(nil)
}

// holder returns the name that a token is for.
func (p *Pushers) holder(token string, now time.Time) (name string, ok bool) {
	rest, _ := strings.CutPrefix(token, tokenPrefix)
	first, second, _ := strings.Cut(rest, ".")
	text, err := base64.RawURLEncoding.DecodeString(first)
	sum, sumErr := base64.RawURLEncoding.DecodeString(second)
	ends, name, _ := strings.Cut(string(text), ":")
	if err != nil || sumErr != nil || !hmac.Equal(sum, p.sum(string(text), name)) {
		return "", false
	}
	at, err := strconv.ParseInt(ends, 10, 64)
	return name, err == nil && now.Unix() < at && (name == "" || p.has(name))
}

// errPusher is the error for whoever does not show to be one of those who may push.
var errPusher = errors.New("credentials of this node are wanted")

// who returns who a request is from, "" for nobody in particular, and whether its credentials are meant for this node: they must go nowhere else.
func (p *Pushers) who(r *http.Request) (name string, ours bool, err error) {
	header := r.Header.Get("Authorization")
	if token, ok := cutScheme(header, "Bearer"); ok && strings.HasPrefix(token, tokenPrefix) {
		if name, ok = p.holder(token, time.Now()); !ok {
			return "", true, errPusher
		}
		return name, true, nil
	}
	name, password, ok := r.BasicAuth()
	if !ok || !p.has(name) {
		return "", false, nil
	}
	if err := p.right(r.RemoteAddr, name, password); err != nil {
		return "", true, err
	}
	return name, true, nil
}

func cutScheme(header, scheme string) (string, bool) {
	first, rest, ok := strings.Cut(header, " ")
	return strings.TrimSpace(rest), ok && strings.EqualFold(first, scheme)
}

// admitPush returns an error for a request that may not push.
func (h *handler) admitPush(r *http.Request) error {
	if h.Pushers == nil {
		return nil
	}
	name, _, err := h.Pushers.who(r)
	if err == nil && name == "" {
		err = errPusher
	}
	return err
}

// base answers /v2/, by which clients find out how to show who they are.
func (h *handler) base(w *response, r *http.Request) error {
	if h.Push != nil && h.Pushers != nil {
		if r.Header.Get("Authorization") == "" {
			return errPusher // clients that only pull get a token, too
		}
		if _, _, err := h.Pushers.who(r); err != nil {
			return err
		}
	}
	return w.sendBytes(http.StatusOK, "application/json", []byte("{}"))
}

// tokens answers /v2/token.
func (h *handler) tokens(w *response, r *http.Request) error {
	if h.Pushers == nil {
		return errNoEndpoint
	}
	name, password, ok := r.BasicAuth()
	if ok {
		if err := h.Pushers.right(r.RemoteAddr, name, password); err != nil {
			return err
		}
	}
	now := time.Now()
	token := h.Pushers.token(name, now)
	w.rw.Header().Set("Cache-Control", "no-store")
	return w.sendJSON("application/json", struct {
		Token  string    `json:"token"`
		Access string    `json:"access_token"`
		Life   int       `json:"expires_in"` // seconds
		Issued time.Time `json:"issued_at"`
	}{token, token, int(tokenLife.Seconds()), now.UTC()})
}

// challenge says where a client gets a token.
func (h *handler) challenge(r *http.Request, rt route) string {
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	text := fmt.Sprintf("Bearer realm=%q,service=\"pier\"", scheme+"://"+r.Host+"/v2/token")
	if rt.name != "" {
		text += fmt.Sprintf(",scope=%q", "repository:"+rt.name+":pull,push")
	}
	return text
}
