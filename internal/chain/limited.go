package chain

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/time/rate"

	"pier/internal/oci"
)

// quantum is how many bytes a limited reader takes and pays for at once. Readers that share a limiter wait in turn, each for
// one quantum, and so get the same share.
const quantum = 64 << 10

// Limited returns a Source whose readers pay for every byte of src at l, which counts bytes and should allow bursts of 64
// KiB; smaller ones cost more turns. A wait ends with the context of the Open. A nil l is no limit: src itself is returned.
// The Source takes blame, and lists, if src does.
func Limited(src oci.Source, l *rate.Limiter) oci.Source {
	if l == nil {
		return src
	}
	return &limited{lists{src}, l}
}

type limited struct {
	lists
	limiter *rate.Limiter
}

// Open implements [oci.Source].
func (l *limited) Open(ctx context.Context, ref oci.Reference, offset, length int64) (io.ReadCloser, oci.Descriptor, error) {
	rc, desc, err := l.Source.Open(ctx, ref, offset, length)
	if err != nil {
		return nil, desc, err
	}
	return &paying{ctx, rc, l.limiter}, desc, nil
}

// Blame implements [oci.Blamer].
func (l *limited) Blame(ref oci.Reference, origin string) { blame(l.Source, ref, origin) }

// paying has no WriteTo: a file that the kernel sends is not counted.
type paying struct {
	ctx     context.Context // of the request this reader belongs to: it waits as long as that
	rc      io.ReadCloser
	limiter *rate.Limiter
}

// Read pays after it has read, since only then it knows for how much. What cannot be paid for is not given out.
func (p *paying) Read(b []byte) (int, error) {
	most := quantum
	if p.limiter.Limit() != rate.Inf {
		most = max(1, min(most, p.limiter.Burst()))
	}
	n, err := p.rc.Read(b[:min(len(b), most)])
	if n > 0 {
		if err := p.pay(n); err != nil {
			return 0, err
		}
	}
	return n, err
}

// pay waits until n bytes are paid for. It does not begin a wait that the context's deadline would end.
func (p *paying) pay(n int) error {
	err := p.limiter.WaitN(p.ctx, n)
	if _, bounded := p.ctx.Deadline(); err != nil && bounded && p.ctx.Err() == nil {
		return fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	}
	return err
}

func (p *paying) Close() error { return p.rc.Close() }
