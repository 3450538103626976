package upstream

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/sync/singleflight"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"

	"pier/internal/oci"
)

const (
	tokenLife  = 5 * time.Minute // longer than most registries' own; a token refused before is fetched anew
	maxTokens  = 256             // of one account
	maxClients = 64              // clients whose tokens are kept

	// maxAuthorization is the longest Authorization header of a client that is passed on, in bytes. Servers refuse
	// longer ones in many ways, some by just closing the connection, which would look as if they were not there.
	maxAuthorization = 16 << 10
)

// An account is in whose name an endpoint is asked.
type account struct {
	key        string // distinct for each client; "" is the node itself
	header     string // sent as it is, if not empty
	credential auth.CredentialFunc
	tokens     auth.Cache
}

// own returns the node's account at e: what the operator configured, else what Docker's configuration says, else nobody.
func (r *Registries) own(e *endpoint) account {
	return account{
		tokens: e.tokens,
		credential: func(ctx context.Context, _ string) (auth.Credential, error) {
			if e.auth.User != "" {
				return complete(e.auth.credential())
			}
			return complete(r.docker.get(ctx, e.name), nil)
		},
	}
}

// complete returns credentials that can be used, or none: the token client takes half a pair for a fault of its own.
func complete(cred auth.Credential, err error) (auth.Credential, error) {
	if cred.RefreshToken == "" && cred.AccessToken == "" && (cred.Username == "" || cred.Password == "") {
		return auth.EmptyCredential, err
	}
	return cred, err
}

// accountFor returns the client's account at e, or the node's own where the client brought no credentials. It returns
// an error wrapping [oci.ErrUnauthorized] for credentials that no registry can take.
func (r *Registries) accountFor(ctx context.Context, e *endpoint) (account, error) {
	r.clients.expire()
	header := oci.Authorization(ctx)
	if header == "" {
		return r.own(e), nil
	}
	if len(header) > maxAuthorization || strings.ContainsFunc(header, unicode.IsControl) {
		return account{}, fmt.Errorf("upstream %s: malformed credentials: %w", e.name, oci.ErrUnauthorized)
	}
	if bindsConnection(header) { // connections to upstreams are everybody's
		return account{}, fmt.Errorf("upstream %s: credentials for a connection: %w", e.name, oci.ErrUnauthorized)
	}
	sum := sha256.Sum256([]byte(e.name + "\x00" + header))
	a := account{key: string(sum[:]), header: header}
	scheme, value, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "basic") {
		return a, nil
	}
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(value))
	user, password, ok := strings.Cut(string(b), ":")
	if err != nil || !ok {
		return account{}, fmt.Errorf("upstream %s: malformed basic credentials: %w", e.name, oci.ErrUnauthorized)
	}
	cred := auth.Credential{Username: user, Password: password}
	a.header, a.tokens = "", r.clients.tokens(a.key)
	a.credential = func(context.Context, string) (auth.Credential, error) { return complete(cred, nil) }
	return a, nil
}

// clients keeps the tokens of clients that brought their own credentials, each for [tokenLife] from the first request.
type clients struct {
	timeout time.Duration

	mu    sync.Mutex
	byKey map[string]client // guarded by mu
}

type client struct {
	tokens *tokens
	until  time.Time
}

func newClients(timeout time.Duration) *clients {
	return &clients{timeout: timeout, byKey: make(map[string]client)}
}

// expire drops clients whose time is over. It is called with every request, anybody's: they are few, and a timer for each
// would outlive those that had to make room.
func (c *clients) expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for key, have := range c.byKey {
		if now.After(have.until) {
			delete(c.byKey, key)
		}
	}
}

// tokens returns the cache of one client. It is made anew after [tokenLife], or earlier if there are too many.
func (c *clients) tokens(key string) *tokens {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if have, ok := c.byKey[key]; ok && !now.After(have.until) {
		return have.tokens
	}
	if len(c.byKey) >= maxClients { // those over are gone, see expire
		for old := range c.byKey {
			delete(c.byKey, old)
			break
		}
	}
	t := newTokens(c.timeout)
	c.byKey[key] = client{t, now.Add(tokenLife)}
	return t
}

// tokens is an auth.Cache for one account at one registry: bounded, and each token kept for [tokenLife] at most. Those
// who need the same token at once fetch it once, and one of them leaving does not stop the others.
type tokens struct {
	timeout time.Duration // of a fetch
	flight  singleflight.Group

	mu      sync.Mutex // guards all below
	scheme  auth.Scheme
	byScope map[string]token
}

type token struct {
	value string
	until time.Time
}

func newTokens(timeout time.Duration) *tokens { return &tokens{timeout: timeout} }

// GetScheme implements auth.Cache.
func (t *tokens) GetScheme(context.Context, string) (auth.Scheme, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.scheme == auth.SchemeUnknown {
		return t.scheme, errdef.ErrNotFound
	}
	return t.scheme, nil
}

// GetToken implements auth.Cache.
func (t *tokens) GetToken(_ context.Context, _ string, scheme auth.Scheme, scope string) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	tok, ok := t.byScope[scope]
	if !ok || scheme != t.scheme || time.Now().After(tok.until) {
		return "", errdef.ErrNotFound
	}
	return tok.value, nil
}

// Set implements auth.Cache.
func (t *tokens) Set(ctx context.Context, _ string, scheme auth.Scheme, scope string, fetch func(context.Context) (string, error)) (string, error) {
	ch := t.flight.DoChan(scheme.String()+" "+scope, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.timeout)
		defer cancel()
		value, err := fetch(ctx)
		if err != nil {
			return "", tokenFault(err)
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.scheme != scheme || len(t.byScope) >= maxTokens {
			t.byScope = nil
		}
		if t.byScope == nil {
			t.byScope = make(map[string]token)
		}
		t.scheme = scheme
		t.byScope[scope] = token{value, time.Now().Add(tokenLife)}
		return value, nil
	})
	select {
	case res := <-ch:
		value, _ := res.Val.(string)
		return value, res.Err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// errNoToken says that a token server was asked, and answered with no token.
var errNoToken = errors.New("no token")

// tokenFault marks what came of a token request with [errNoToken], unless it is a status, or the network's fault.
func tokenFault(err error) error {
	_, network := errors.AsType[net.Error](err) // *url.Error among them
	if network || tokenStatus(err) != 0 || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, auth.ErrBasicCredentialNotFound) {
		return err
	}
	return fmt.Errorf("%w: %w", errNoToken, err)
}

// dockerConfig is Docker's configuration file with the credentials and credential helpers it names, read again when it
// changes: `docker login` takes effect at once.
type dockerConfig struct {
	log *slog.Logger

	mu    sync.Mutex // guards all below
	path  string
	mtime time.Time
	size  int64
	store *credentials.DynamicStore // nil: there is none
}

// get returns the credentials for a registry, or none. A configuration that cannot be read, or a credential helper that
// fails, is logged and means none: most content needs none.
func (d *dockerConfig) get(ctx context.Context, name string) auth.Credential {
	store := d.load(ctx)
	if store == nil {
		return auth.EmptyCredential
	}
	cred, err := store.Get(ctx, credentials.ServerAddressFromRegistry(name))
	if err != nil && ctx.Err() == nil {
		d.log.WarnContext(ctx, "no credentials from docker's configuration", "registry", name, "error", err)
	}
	return cred
}

func (d *dockerConfig) load(ctx context.Context) *credentials.DynamicStore {
	dir := os.Getenv("DOCKER_CONFIG")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil
		}
		dir = filepath.Join(home, ".docker")
	}
	path := filepath.Join(dir, "config.json")
	info, err := os.Stat(path) //nolint:gosec // the environment is the operator's
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.path, d.store = "", nil
		return nil
	}
	if path == d.path && info.ModTime().Equal(d.mtime) && info.Size() == d.size {
		return d.store
	}
	d.path, d.mtime, d.size = path, info.ModTime(), info.Size()
	if d.store, err = credentials.NewStore(path, credentials.StoreOptions{}); err != nil {
		d.store = nil
		d.log.WarnContext(ctx, "docker's configuration cannot be read", "path", path, "error", err)
	}
	return d.store
}
