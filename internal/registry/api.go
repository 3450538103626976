package registry

import (
	"context"

	"pier/internal/oci"
)

// digests tells how much of some content this node has.
func (h *handler) digests(ctx context.Context, w *response, rt route) error {
	desc, err := h.Local.Resolve(ctx, rt.ref)
	if err != nil {
		return err
	}
	return w.sendJSON("application/json", struct {
		Digest    oci.Digest `json:"digest"`
		Size      int64      `json:"size"`      // bytes
		Complete  bool       `json:"complete"`  // all of it is here
		Available int64      `json:"available"` // bytes that are here
	}{rt.ref.Digest, desc.Size, desc.Missing == 0, max(0, desc.Size-desc.Missing)})
}

// api answers with what the function of that name returns.
func (h *handler) api(ctx context.Context, w *response, rt route) error {
	answer := h.API[rt.name]
	if answer == nil {
		return errNoEndpoint
	}
	v, err := answer(ctx, rt.arg)
	if err != nil {
		return err
	}
	return w.sendJSON("application/json", v)
}
