// Package servertest runs servers for tests.
package servertest

import (
	"net"
	"testing"

	"google.golang.org/grpc"
)

// Start runs what register adds, on this machine and until the test ends, and gives its address.
func Start(t *testing.T, register func(*grpc.Server)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	running := grpc.NewServer()
	register(running)
	go running.Serve(listener)
	t.Cleanup(running.Stop)
	return listener.Addr().String()
}
