package upstream

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

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
				return e.auth.credential()
			}
			return r.docker.get(ctx, e.name), nil
		},
	}
}

// accountFor returns the client's account at e, or the node's own where the client brought no credentials. It returns
// an error wrapping [oci.ErrUnauthorized] for credentials that are malformed.
func (r *Registries) accountFor(ctx context.Context, e *endpoint) (account, error) {
	header := oci.Authorization(ctx)
	if header == "" {
		return r.own(e), nil
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
	a.credential = func(context.Context, string) (auth.Credential, error) { return cred, nil }
	return a, nil
}

// clients keeps the tokens of clients that brought their own credentials.
type clients struct {
	timeout time.Duration

	mu    sync.Mutex
	byKey map[string]*tokens // guarded by mu
}

func newClients(timeout time.Duration) *clients {
	return &clients{timeout: timeout, byKey: make(map[string]*tokens)}
}

// tokens returns the cache of one client. It is dropped after [tokenLife], or earlier if there are too many.
func (c *clients) tokens(key string) *tokens {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.byKey[key]; t != nil {
		return t
	}
	if len(c.byKey) >= maxClients {
		for old := range c.byKey {
			delete(c.byKey, old)
			break
		}
	}
	t := newTokens(c.timeout)
	c.byKey[key] = t
	time.AfterFunc(tokenLife, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.byKey[key] == t {
			delete(c.byKey, key)
		}
	})
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
			return "", err
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
