package chain

import (
	"bytes"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"pier/internal/oci"
	"pier/internal/oci/ocitest"
)

// A peer finds wrong what was proven here: it is read again, and not offered any more.
func TestDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &ocitest.Memory{}
		b := ocitest.Bytes(1, 1000)
		ref := blobOf(src, b)
		o := First(quiet, Once(quiet, "memory", src))
		if _, _, err := ocitest.ReadAll(t.Context(), o, ref); err != nil {
			t.Fatal(err)
		}
		o.Doubt(ref)
		synctest.Wait()
		if _, _, err := o.Open(t.Context(), ref, 0, -1); err != nil {
			t.Errorf("doubted without reason: %v", err)
		}
		wrong := bytes.Clone(b)
		wrong[5] ^= 1
		src.AddAs(ref.Digest, "", wrong)
		o.Doubt(ref) // again so soon: not listened to
		synctest.Wait()
		if _, _, err := o.Open(t.Context(), ref, 0, -1); err != nil {
			t.Errorf("doubted twice in ten minutes: %v", err)
		}
		time.Sleep(doubtAgain + time.Second)
		o.Doubt(ref)
		synctest.Wait()
		if _, _, err := o.Open(t.Context(), ref, 0, -1); !errors.Is(err, oci.ErrNotFound) {
			t.Errorf("doubted with reason: got error %v, want ErrNotFound", err)
		}
	})
}

// Who doubts everything must not make the node remember it all.
func TestDoubtIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Once(quiet, "memory", &ocitest.Memory{}).(*once)
		o.Doubt(app.WithDigest(ocitest.Absent))
		if len(o.doubted) != 0 {
			t.Error("doubt of content that is not here is remembered")
		}
		for i := range maxDoubted + 10 {
			o.doubt(ocitest.Digest([]byte{byte(i), byte(i >> 8)}))
		}
		if len(o.doubted) != maxDoubted {
			t.Errorf("%d doubts remembered, want %d", len(o.doubted), maxDoubted)
		}
		time.Sleep(doubtAgain)
		if !o.doubt(ocitest.Absent) || len(o.doubted) != 1 {
			t.Errorf("%d doubts remembered after their time, want 1", len(o.doubted))
		}
	})
}
