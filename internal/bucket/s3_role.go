package bucket

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// keys are what requests are signed with.
type keys struct {
	AccessKeyID     string
	SecretAccessKey string
	SessionToken    string
	Expiration      time.Time // zero: never
}

// String keeps the secrets out of logs.
func (k keys) String() string { return "key " + k.AccessKeyID }

const maxSecret = 1 << 20 // bytes of a file or an answer that has credentials

// ofEnvironment returns the keys that the environment has.
func ofEnvironment() keys {
	return keys{
		AccessKeyID:     firstOf(os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_ACCESS_KEY")),
		SecretAccessKey: firstOf(os.Getenv("AWS_SECRET_ACCESS_KEY"), os.Getenv("AWS_SECRET_KEY")),
		SessionToken:    os.Getenv("AWS_SESSION_TOKEN"),
	}
}

// ofFile returns the keys of a profile of the shared credentials file.
// https://docs.aws.amazon.com/cli/v1/userguide/cli-configure-files.html
func ofFile(profile string) (k keys, err error) {
	name := os.Getenv("AWS_SHARED_CREDENTIALS_FILE")
	if name == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return k, err
		}
		name = filepath.Join(home, ".aws", "credentials")
	}
	f, err := os.Open(name) //nolint:gosec // the environment says which, and is trusted
	if err != nil {
		return k, err
	}
	defer f.Close()
	section := ""
	lines := bufio.NewScanner(io.LimitReader(f, maxSecret))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if inner, ok := strings.CutPrefix(line, "["); ok {
			inner, _, _ = strings.Cut(inner, "]")
			section = strings.TrimSpace(inner)
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok || section != profile || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue
		}
		switch value = strings.TrimSpace(value); strings.ToLower(strings.TrimSpace(name)) {
		case "aws_access_key_id":
			k.AccessKeyID = value
		case "aws_secret_access_key":
			k.SecretAccessKey = value
		case "aws_session_token":
			k.SessionToken = value
		}
	}
	return k, lines.Err()
}

// An asking is how a service is asked for the keys of a role.
type asking struct {
	client *http.Client
	method string
	url    string
	header map[string]string
	form   url.Values
}

func (a asking) answer(ctx context.Context) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, a.method, a.url, strings.NewReader(a.form.Encode()))
	if err != nil {
		return nil, err
	}
	if a.form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for name, value := range a.header {
		req.Header.Set(name, value)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		var inner *url.Error // without the URL, which may have a token
		if errors.As(err, &inner) {
			err = inner.Err
		}
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New("status " + resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, maxSecret))
}

// parseRole reads the keys of a role as containers and machines are told them.
func parseRole(b []byte) (keys, error) {
	var answer struct {
		Code, AccessKeyID, SecretAccessKey, Token string
		Expiration                                time.Time
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return keys{}, errors.New("the answer is no JSON") // the error may have parts of it
	}
	if answer.Code != "" && answer.Code != "Success" || answer.AccessKeyID == "" {
		return keys{}, fmt.Errorf("the answer has no keys (%.40q)", answer.Code)
	}
	return keys{answer.AccessKeyID, answer.SecretAccessKey, answer.Token, answer.Expiration}, nil
}

// ofContainer asks the service that a container is told of.
// https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html
func ofContainer(ctx context.Context, client *http.Client) (keys, error) {
	a := asking{client: client, method: http.MethodGet, url: os.Getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI"), header: map[string]string{}}
	if path := os.Getenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"); path != "" {
		a.url = "http://169.254.170.2" + path
	}
	token := os.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN")
	if name := os.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"); name != "" {
		b, err := os.ReadFile(name) //nolint:gosec // the environment says which, and is trusted
		if err != nil {
			return keys{}, err
		}
		token = string(bytes.TrimSpace(b))
	}
	if token != "" {
		a.header["Authorization"] = token
	}
	b, err := a.answer(ctx)
	if err != nil {
		return keys{}, err
	}
	return parseRole(b)
}

// ofMachine asks the service that tells a machine of EC2 its role, in the second version of how that is done.
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
func ofMachine(ctx context.Context, client *http.Client) (keys, error) {
	base := strings.TrimRight(firstOf(os.Getenv("AWS_EC2_METADATA_SERVICE_ENDPOINT"), "http://169.254.169.254"), "/") + "/latest/"
	token, err := asking{
		client: client, method: http.MethodPut, url: base + "api/token", header: map[string]string{"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": strconv.Itoa(21600)},
	}.answer(ctx)
	if err != nil {
		return keys{}, err
	}
	header := map[string]string{"X-Aws-Ec2-Metadata-Token": string(token)}
	const roles = "meta-data/iam/security-credentials/"
	names, err := asking{client: client, method: http.MethodGet, url: base + roles, header: header}.answer(ctx)
	if err != nil {
		return keys{}, err
	}
	name, _, _ := strings.Cut(strings.TrimSpace(string(names)), "\n")
	b, err := asking{client: client, method: http.MethodGet, url: base + roles + url.PathEscape(name), header: header}.answer(ctx)
	if err != nil {
		return keys{}, err
	}
	return parseRole(b)
}

// ofWebIdentity changes a token, which Kubernetes gives a pod, for the keys of a role.
// https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html
func ofWebIdentity(ctx context.Context, client *http.Client, tokenFile string) (keys, error) {
	token, err := os.ReadFile(tokenFile) //nolint:gosec // the environment says which, and is trusted
	if err != nil {
		return keys{}, err
	}
	endpoint := os.Getenv("AWS_ENDPOINT_URL_STS")
	if endpoint == "" {
		endpoint = "https://sts.amazonaws.com"
		if region := firstOf(os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION")); regionName.MatchString(region) {
			endpoint = "https://sts." + region + ".amazonaws.com"
			if strings.HasPrefix(region, "cn-") {
				endpoint += ".cn"
			}
		}
	}
	b, err := asking{client: client, method: http.MethodPost, url: endpoint, form: url.Values{
		"Action": {"AssumeRoleWithWebIdentity"}, "Version": {"2011-06-15"}, "RoleArn": {os.Getenv("AWS_ROLE_ARN")},
		"RoleSessionName": {firstOf(os.Getenv("AWS_ROLE_SESSION_NAME"), "pier")}, "WebIdentityToken": {string(bytes.TrimSpace(token))},
	}}.answer(ctx)
	if err != nil {
		return keys{}, err
	}
	var answer struct {
		Result struct {
			Credentials struct {
				AccessKeyID     string    `xml:"AccessKeyId"`
				SecretAccessKey string    `xml:"SecretAccessKey"`
				SessionToken    string    `xml:"SessionToken"`
				Expiration      time.Time `xml:"Expiration"`
			} `xml:"Credentials"`
		} `xml:"AssumeRoleWithWebIdentityResult"`
	}
	if xml.Unmarshal(b, &answer) != nil || answer.Result.Credentials.AccessKeyID == "" {
		return keys{}, errors.New("the answer has no keys")
	}
	return keys(answer.Result.Credentials), nil
}
