package bucket

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"pier/internal/oci"
)

// Whoever says nothing is left; but not where it works on something large.
func TestStall(t *testing.T) {
	quiet := 300 * time.Millisecond
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(quiet)
		_, _ = io.WriteString(w, "done")
	}))
	defer s.Close()
	c := newClient(Config{Log: slog.New(slog.DiscardHandler)})
	for _, test := range []struct {
		stall time.Duration
		fails bool
	}{{time.Minute, false}, {quiet / 3, true}, {time.Minute, false}, {quiet / 3, true}} {
		req, err := http.NewRequestWithContext(patient(t.Context(), test.stall), http.MethodGet, s.URL, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.http.Do(req)
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		var late net.Error
		if (err != nil) != test.fails || err != nil && (!errors.As(err, &late) || !late.Timeout()) {
			t.Errorf("a stall of %v: %v", test.stall, err)
		}
	}
}

// A reading of what is sent that is cut ends, and so does one that is not allowed to.
func TestRequestsEnd(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer s.Close()
	c := newClient(Config{Log: slog.New(slog.DiscardHandler), Retries: 3})
	c.backoff = time.Millisecond
	if _, err := c.do(t.Context(), request{method: http.MethodGet, url: s.URL, ok: []int{200}}); !errors.Is(err, oci.ErrUnavailable) {
		t.Errorf("cut: %v", err)
	}
	c.backoff = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.do(ctx, request{method: http.MethodGet, url: s.URL, ok: []int{200}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("out of time: %v", err)
	}
}
