package node

import (
	"context"
	"net/http"
	"runtime/pprof"
	"strconv"
	"time"
)

// maxProfile bounds how long the processor is profiled for one request.
const maxProfile = 5 * time.Minute

// profiles serves profiles where 'go tool pprof' looks for them. The package that the language has for it would add 450 kB to the
// program, for pages that nobody reads.
func profiles(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/pprof/{name}", func(w http.ResponseWriter, r *http.Request) {
		name := r.PathValue("name")
		if name == "profile" {
			profileProcessor(r.Context(), w, r.FormValue("seconds"))
			return
		}
		p := pprof.Lookup(name)
		if p == nil {
			http.Error(w, "no such profile: there are profile, heap, allocs, goroutine, threadcreate, block and mutex", http.StatusNotFound)
			return
		}
		debug, _ := strconv.Atoi(r.FormValue("debug")) // 0, which is what is meant without one
		w.Header().Set("Content-Type", "application/octet-stream")
		if debug > 0 {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		}
		_ = p.WriteTo(w, debug) // to a client that is gone
	})
}

func profileProcessor(ctx context.Context, w http.ResponseWriter, seconds string) {
	d := 30 * time.Second
	if n, err := strconv.Atoi(seconds); err == nil && n > 0 {
		d = min(time.Duration(n)*time.Second, maxProfile)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if err := pprof.StartCPUProfile(w); err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	defer pprof.StopCPUProfile()
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
