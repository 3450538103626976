// What github.com/hashicorp/memberlist and internal/mdns use of that module, in 500 kB less: the whole has every type of record in it.
module github.com/miekg/dns

go 1.26.0
