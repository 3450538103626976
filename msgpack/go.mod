// What github.com/hashicorp/memberlist uses of that module, in 600 kB less: the whole has net/rpc, html/template and encoding/gob in it.
module github.com/hashicorp/go-msgpack/v2

go 1.26.0
