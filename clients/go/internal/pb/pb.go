// Package pb is the contract: what protoc-gen-go and protoc-gen-go-grpc make of ../../../../protos as it stands. What they
// write is not committed; `go generate ./...` makes it.
package pb

//go:generate go run ../stubs ../../../../protos .
