package fault_test

import (
	"errors"
	"maps"
	"testing"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"fedstream/client/internal/fault"
	"fedstream/client/internal/vectors"
)

func TestErrorsReadAsTheVectorsSay(t *testing.T) {
	for _, vector := range vectors.Read(t, "errors.txt") {
		t.Run(vector.Text(t, "reason"), func(t *testing.T) {
			said := &spb.Status{}
			if err := proto.Unmarshal(vector.Bytes(t, "status"), said); err != nil {
				t.Fatal(err)
			}
			refusal := fault.Refused(fault.FromRPC(status.FromProto(said).Err()), vector.Text(t, "reason"))
			if refusal == nil {
				t.Fatal("not read as the refusal that it is")
			}
			var metadata map[string]string
			vector.Into(t, "metadata", &metadata)
			if refusal.Message != vector.Text(t, "message") || !maps.Equal(refusal.Metadata, metadata) {
				t.Errorf("read as %+v", refusal)
			}
			if vector.Has("retry_seconds") {
				var seconds float64
				vector.Into(t, "retry_seconds", &seconds)
				if refusal.RetryAfter != time.Duration(seconds*float64(time.Second)) {
					t.Errorf("to be tried again after %v", refusal.RetryAfter)
				}
			}
		})
	}
}

func TestWhatIsNotTheServersWordIsTrouble(t *testing.T) {
	for _, err := range []error{status.Error(codes.Internal, "?"), errors.New("broken"), status.Error(codes.PermissionDenied, "a proxy")} {
		if !fault.IsTrouble(fault.FromRPC(err)) {
			t.Errorf("%v is no trouble", err)
		}
	}
}
