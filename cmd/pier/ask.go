package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pier/internal/config"
)

// An asker asks a running node on behalf of a command.
type asker struct {
	node   string // URL of a door, "" for the default
	asJSON bool   // print what the node answers
}

// defaultNode is the node door of `pier serve` without flags.
const defaultNode = "http://127.0.0.1:5001"

const (
	askTimeout = 15 * time.Second // the node asks others meanwhile
	maxAnswer  = 64 << 20         // bytes; ten thousand members take a few MB
)

// errUnknown is a node's answer that it knows of nothing by that name.
var errUnknown = errors.New("nothing is known of it")

func (a *asker) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.node, "node", "", "`URL` of the node to ask: its node or metrics door (environment "+config.NodeVariable+"; default "+defaultNode+")")
	cmd.Flags().BoolVar(&a.asJSON, "json", false, "print JSON")
}

// get asks for /api/v1/<name>[/<arg>], sets v to the answer, and returns it as it came.
func (a *asker) get(ctx context.Context, name, arg string, v any) ([]byte, error) {
	base, err := a.base()
	if err != nil {
		return nil, err
	}
	address := base + "/api/v1/" + name
	if arg != "" {
		address += "/" + url.PathEscape(arg)
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{DisableKeepAlives: true} // and no proxy: it may be the node itself
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, unreachable(base, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("the answer of the node at %s broke off: %w", base, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, refusal(base, name, resp.Status, body)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return nil, notOurs(base)
	}
	return body, nil
}

// base returns the URL of the node without a slash at its end.
func (a *asker) base() (string, error) {
	text, from := a.node, "--node"
	if text == "" {
		text, from = os.Getenv(config.NodeVariable), config.NodeVariable
	}
	text = cmp.Or(text, defaultNode)
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || (u.Scheme != "http" && u.Scheme != "https") {
		return "", usageError{fmt.Errorf("%s: %.200q is no URL of a node: write one like %s", from, text, defaultNode)}
	}
	return strings.TrimSuffix(text, "/"), nil
}

// unreachable says what to do about a node that could not be asked.
func unreachable(base string, err error) error {
	switch {
	case errors.As(err, new(*tls.CertificateVerificationError)), errors.As(err, new(tls.AlertError)):
		return fmt.Errorf("the node at %s: %w; ask its metrics door instead, for example --node http://127.0.0.1:9090", base, err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the node at %s did not answer within %s", base, askTimeout)
	}
	return fmt.Errorf("no node answers at %s: %w; is 'pier serve' running? Say where with --node URL or %s", base, err, config.NodeVariable)
}

// refusal is the error for an answer other than 200.
func refusal(base, name, status string, body []byte) error {
	var doc struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(body, &doc) != nil || len(doc.Errors) == 0 {
		return notOurs(base)
	}
	switch first := doc.Errors[0]; {
	case strings.HasPrefix(status, "404 ") && first.Code == "UNSUPPORTED":
		return fmt.Errorf("the node at %s does not answer %s there: ask its node or metrics door, or one that is not older than this program", base, name)
	case strings.HasPrefix(status, "404 "):
		return errUnknown
	default:
		return fmt.Errorf("the node at %s: %s: %s%s", base, status, printable(first.Message), advice(name, status))
	}
}

// advice says what to do about a refusal with that status.
func advice(name, status string) (text string) {
	if strings.HasPrefix(status, "5") {
		text = "; its log says why"
	}
	if name == "locate" && !strings.HasPrefix(status, "400 ") { // the registry was asked what a tag names
		text += "; its metrics door tells what the nodes know, and asks no registry"
	}
	return text
}

func notOurs(base string) error {
	return fmt.Errorf("what answers at %s is no node: say where one is with --node URL or %s", base, config.NodeVariable)
}
