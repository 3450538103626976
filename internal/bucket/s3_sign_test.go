package bucket

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7/pkg/signer"
)

// The examples of the documentation that sign names.
func TestSign(t *testing.T) {
	const empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	v := keys{AccessKeyID: "AKIAIOSFODNN7EXAMPLE", SecretAccessKey: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}
	at := time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		method, path string
		header       map[string]string
		signature    string
	}{
		{"GET", "/test.txt", map[string]string{"Range": "bytes=0-9", "X-Amz-Content-Sha256": empty}, "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"},
		{"PUT", "/test%24file.text", map[string]string{
			"Date": "Fri, 24 May 2013 00:00:00 GMT", "X-Amz-Storage-Class": "REDUCED_REDUNDANCY",
			"X-Amz-Content-Sha256": "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
		}, "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"},
		{"GET", "/?lifecycle", map[string]string{"X-Amz-Content-Sha256": empty}, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"},
		{"GET", "/?max-keys=2&prefix=J", map[string]string{"X-Amz-Content-Sha256": empty}, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, "https://examplebucket.s3.amazonaws.com"+c.path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range c.header {
			req.Header.Set(name, value)
		}
		sign(req, v, "us-east-1", at)
		if got := req.Header.Get("Authorization"); !strings.HasSuffix(got, " Signature="+c.signature) {
			t.Errorf("%s %s: got %s, want the signature %s", c.method, c.path, got, c.signature)
		}
	}
}

// Another implementation signs alike.
func TestSignAsOthers(t *testing.T) {
	for _, path := range []string{"/", "/a/b%20c%2Bd%26e%25%C3%BC", "/?list-type=2&prefix=a%2Fb%20c&delimiter=", "/key?partNumber=3&uploadId=x~y-z._%2B%3D"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1:9000/bucket"+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD")
		req.Header.Set("X-Amz-Meta-Words", "a  b   c")
		req.Header.Set("X-Amz-Meta", "d")
		for range 5 { // until both sign in the same second
			theirs := signer.SignV4(*req.Clone(t.Context()), "key", "secret", "token", "eu-central-1")
			sign(req, keys{AccessKeyID: "key", SecretAccessKey: "secret", SessionToken: "token"}, "eu-central-1", time.Now())
			if req.Header.Get("X-Amz-Date") != theirs.Header.Get("X-Amz-Date") {
				continue
			}
			got, want := req.Header.Get("Authorization"), theirs.Header.Get("Authorization")
			if strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(want, " ", "") {
				t.Errorf("%s: got %s, want %s", path, got, want)
			}
			break
		}
	}
}
