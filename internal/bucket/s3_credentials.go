package bucket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"pier/internal/oci"
)

const (
	metadataWait = 2 * time.Second  // for one answer of the service that tells a machine its credentials
	identityWait = 10 * time.Second // for credentials from all services together
	noneFor      = time.Minute      // after which credentials are looked for again where there were none
	renewAgain   = 10 * time.Second // after an attempt that failed, while those at hand are good
)

// An identity is who requests come from: where AWS's own tools look for that. Those are the environment, the shared files, and the
// role of the process, the container or the machine. If there is none of these requests are not signed.
type identity struct {
	profile string // of the shared files, and nowhere else is looked; empty: the usual

	mu    sync.Mutex // guards what follows, and is held while others are asked
	value keys
	until time.Time // when value is to be asked for again; zero: never
	known bool      // value is what was found, even if that is nothing
}

func newIdentity(profile string) *identity { return &identity{profile: profile} }

// get returns the credentials to sign with, without a key if there are none.
func (id *identity) get(ctx context.Context) (keys, error) {
	id.mu.Lock()
	defer id.mu.Unlock()
	now := time.Now()
	if id.known && (id.until.IsZero() || now.Before(id.until)) {
		return id.value, nil
	}
	ctx, cancel := context.WithTimeout(ctx, identityWait)
	defer cancel()
	v, err := id.find(ctx)
	switch {
	case err != nil && id.known && id.value.Expiration.After(now):
		id.until = now.Add(renewAgain)
		return id.value, nil
	case err != nil:
		return keys{}, err
	}
	id.value, id.known, id.until = v, true, time.Time{}
	switch {
	case v.AccessKeyID == "":
		id.until = now.Add(noneFor)
	case !v.Expiration.IsZero():
		id.until = now.Add(v.Expiration.Sub(now) * 4 / 5)
	}
	return v, nil
}

// expire has the next get ask for credentials, and reports whether there were any.
func (id *identity) expire() bool {
	id.mu.Lock()
	defer id.mu.Unlock()
	had := id.known && id.value.AccessKeyID != ""
	id.known = false
	return had
}

// find looks for credentials. There being none is an error only if something says that there are.
func (id *identity) find(ctx context.Context) (keys, error) {
	if id.profile == "" {
		k := ofEnvironment()
		switch {
		case (k.AccessKeyID == "") != (k.SecretAccessKey == ""):
			return k, fmt.Errorf("%w: set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or neither", oci.ErrUnauthorized)
		case k.AccessKeyID != "":
			return k, nil
		}
	}
	profile := firstOf(id.profile, os.Getenv("AWS_PROFILE"))
	k, err := ofFile(firstOf(profile, "default"))
	if err == nil && k.AccessKeyID != "" && k.SecretAccessKey != "" {
		return k, nil
	}
	if profile != "" {
		if err == nil {
			err = errors.New("there are none")
		}
		return keys{}, fmt.Errorf("%w: credentials of the profile %q: %w", oci.ErrUnauthorized, profile, err)
	}
	return role(ctx)
}

// role returns the credentials of the role that this process has, if any.
func role(ctx context.Context) (k keys, err error) {
	client := &http.Client{Timeout: identityWait}
	const token, container, relative = "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI" //nolint:gosec // names of variables
	by := token
	switch {
	case os.Getenv(token) != "":
		k, err = ofWebIdentity(ctx, client, os.Getenv(token))
	case os.Getenv(relative) != "" || os.Getenv(container) != "":
		by = "AWS_CONTAINER_CREDENTIALS"
		k, err = ofContainer(ctx, client)
	case os.Getenv("AWS_EC2_METADATA_DISABLED") == "true":
		return keys{}, nil
	default:
		return machineRole(ctx)
	}
	if err != nil {
		return keys{}, fmt.Errorf("credentials by %s: %w: %w", by, oci.ErrUnavailable, err)
	}
	return k, nil
}

// machineRole returns the credentials of the role of this machine, if it is one of EC2 and has one.
func machineRole(ctx context.Context) (keys, error) {
	transport := &http.Transport{ // there is no way to it by a proxy
		DialContext:       (&net.Dialer{Timeout: metadataWait / 2}).DialContext,
		DisableKeepAlives: true,
	}
	ctx, cancel := context.WithTimeout(ctx, 2*metadataWait)
	defer cancel()
	k, err := ofMachine(ctx, &http.Client{Transport: transport, Timeout: metadataWait})
	if caller := context.Cause(ctx); err != nil && errors.Is(caller, context.Canceled) {
		return keys{}, caller
	}
	if err != nil {
		return keys{}, nil // it is none, or has none
	}
	return k, nil
}
