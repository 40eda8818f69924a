package client_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"fedstream/client/internal/client"
	"fedstream/client/internal/fault"
	"fedstream/client/internal/link"
	"fedstream/client/internal/pb"
	"fedstream/client/internal/servertest"
)

// server refuses everybody.
type server struct {
	pb.UnimplementedNegotiationServiceServer
	code   codes.Code
	reason string
}

func (s *server) DescribeTask(context.Context, *pb.DescribeTaskRequest) (*pb.DescribeTaskResponse, error) {
	info := &errdetails.ErrorInfo{Reason: s.reason, Domain: "fedstream.v1"}
	said, err := status.New(s.code, "not now").WithDetails(info)
	if err != nil {
		return nil, err
	}
	return nil, said.Err()
}

func TestClientThatIsRefusedEndsAsTheReasonSays(t *testing.T) {
	for reason, ends := range map[string]struct {
		status codes.Code
		exit   int
	}{
		fault.LimitExceeded:    {codes.ResourceExhausted, fault.Unreachable},
		fault.PermissionDenied: {codes.PermissionDenied, fault.Untrusted},
		fault.InvalidRequest:   {codes.InvalidArgument, fault.Defect},
	} {
		refusing := &server{code: ends.status, reason: reason}
		address := servertest.Start(t, func(running *grpc.Server) {
			pb.RegisterNegotiationServiceServer(running, refusing)
		})
		config := client.Config{
			Server: address, StateDir: t.TempDir(), Out: t.TempDir(), Trust: &link.Trust{}, GiveUpAfter: time.Millisecond,
		}
		_, err := client.New(config, nil, slog.New(slog.DiscardHandler)).Run(t.Context())
		var stop *fault.Stop
		if !errors.As(err, &stop) || stop.Code != ends.exit {
			t.Errorf("%s: %v", reason, err)
		}
	}
}
