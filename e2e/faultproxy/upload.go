package faultproxy

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// FlipUpload inverts the bits of the byte at an offset of the request's body.
func FlipUpload(offset int64) Fault {
	return func(f *faults) { f.uploadFlips = append(f.uploadFlips, offset) }
}

// CutUpload closes the connection once n bytes of the request's body have come. The other side gets no whole request.
func CutUpload(n int64) Fault { return func(f *faults) { f.uploadCut = &n } }

// SlowUpload takes so many bytes of the request's body a second at most.
func SlowUpload(bytesPerSecond int64) Fault {
	return func(f *faults) { f.uploadRate = bytesPerSecond }
}

var errCut = errors.New("cut")

// upload is the body of a request. It counts, and does what the faults say.
type upload struct {
	io.ReadCloser
	proxy  *Proxy
	ctx    context.Context //nolint:containedctx // of the request
	faults faults
	limit  *rate.Limiter
	pos    int64
	cut    atomic.Bool // as asked for
}

func (p *Proxy) upload(ctx context.Context, body io.ReadCloser, f faults) *upload {
	return &upload{ReadCloser: body, proxy: p, ctx: ctx, faults: f, limit: limiter(f.uploadRate)}
}

// Read implements io.Reader.
func (u *upload) Read(b []byte) (int, error) {
	if cut := u.faults.uploadCut; cut != nil {
		if u.pos >= *cut {
			u.cut.Store(true)
			return 0, errCut
		}
		b = b[:min(int64(len(b)), *cut-u.pos)]
	}
	if u.limit != nil {
		b = b[:min(len(b), u.limit.Burst())]
	}
	n, err := u.ReadCloser.Read(b)
	if u.limit != nil {
		if d := u.limit.ReserveN(time.Now(), n).Delay(); d > 0 {
			select {
			case <-time.After(d):
			case <-u.ctx.Done():
				return 0, u.ctx.Err()
			}
		}
	}
	for _, at := range u.faults.uploadFlips {
		if i := at - u.pos; i >= 0 && i < int64(n) {
			b[i] = ^b[i]
		}
	}
	u.pos += int64(n)
	u.proxy.received.Add(int64(n))
	return n, err
}
