package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"pier/internal/oci"
)

// A pusher puts the content of an image where the node keeps it that has the directory. Its only tags and manifests are those of that image.
type pusher struct {
	keeper *keeper
	image  oci.Reference
}

// do sends a request about the image's repository, and returns the header and body of the answer.
func (p pusher) do(ctx context.Context, method, what string, query url.Values, contentType string, size int64, body io.Reader) (http.Header, []byte, error) {
	query.Set("ns", p.image.Registry)
	req, err := http.NewRequestWithContext(ctx, method, "http://node/v2/"+p.image.Repository+"/"+what+"?"+query.Encode(), body)
	if err != nil {
		return nil, nil, err
	}
	if body != nil {
		req.ContentLength = size
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := p.keeper.client.Do(req)
	var inner *url.Error
	if errors.As(err, &inner) {
		err = inner.Err
	}
	var answer []byte
	if err == nil {
		defer resp.Body.Close()
		answer, err = io.ReadAll(io.LimitReader(resp.Body, oci.MaxManifest+1))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("the node that uses %s: %w", p.keeper.dir, err)
	}
	switch resp.StatusCode {
	case http.StatusOK, http.StatusCreated:
		return resp.Header, answer, nil
	case http.StatusNotFound:
		return nil, nil, oci.ErrNotFound
	}
	return nil, nil, fmt.Errorf("the node that uses %s: %s: %.500s", p.keeper.dir, resp.Status, printable(strings.TrimSpace(string(answer))))
}

func where(ref oci.Reference) string {
	if ref.Kind == oci.Manifest {
		return "manifests/" + ref.Digest.String()
	}
	return "blobs/" + ref.Digest.String()
}

// Resolve implements [oci.Source].
func (p pusher) Resolve(ctx context.Context, ref oci.Reference) (oci.Descriptor, error) {
	header, _, err := p.do(ctx, http.MethodHead, where(ref), url.Values{}, "", 0, nil)
	if err != nil {
		return oci.Descriptor{}, err
	}
	size, err := strconv.ParseInt(header.Get("Content-Length"), 10, 64)
	return oci.Descriptor{MediaType: header.Get("Content-Type"), Digest: ref.Digest, Size: size}, err
}

// Open implements [oci.Source]: nothing is read back.
func (p pusher) Open(context.Context, oci.Reference, int64, int64) (io.ReadCloser, oci.Descriptor, error) {
	return nil, oci.Descriptor{}, oci.ErrUnsupported
}

// Put implements [oci.Store].
func (p pusher) Put(ctx context.Context, desc oci.Descriptor, r io.Reader) error {
	if oci.IsManifest(desc.MediaType) {
		_, _, err := p.do(ctx, http.MethodPut, "manifests/"+desc.Digest.String(), url.Values{}, desc.MediaType, desc.Size, r)
		return err
	}
	_, _, err := p.do(ctx, http.MethodPost, "blobs/uploads/", url.Values{"digest": {desc.Digest.String()}}, "application/octet-stream", desc.Size, r)
	return err
}

// Delete implements [oci.Store]: nothing is removed.
func (p pusher) Delete(context.Context, oci.Digest) error { return oci.ErrUnsupported }

// Tag implements [oci.Tagger]: the manifest is sent once more, under its name.
func (p pusher) Tag(ctx context.Context, ref oci.Reference, desc oci.Descriptor) error {
	header, text, err := p.do(ctx, http.MethodGet, "manifests/"+desc.Digest.String(), url.Values{}, "", 0, nil)
	if err != nil {
		return err
	}
	_, _, err = p.do(ctx, http.MethodPut, "manifests/"+ref.Tag, url.Values{}, header.Get("Content-Type"), int64(len(text)), bytes.NewReader(text))
	return err
}
