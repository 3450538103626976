// What github.com/hashicorp/memberlist uses of that module, in 100 kB less.
module github.com/hashicorp/go-sockaddr

go 1.26.0
