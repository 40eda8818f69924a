package work

import (
	"context"
	"log/slog"
	"slices"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"fedstream/client/internal/link"
	"fedstream/client/internal/pb"
	"fedstream/client/internal/servertest"
	"fedstream/client/internal/store"
	"fedstream/client/internal/store/storetest"
)

// asked is a server that is only asked of uploads; it knows one, if any.
type asked struct {
	pb.UnimplementedTransferServiceServer
	state pb.UploadState
	of    []string
}

func (a *asked) GetUploadStatus(
	_ context.Context, request *pb.GetUploadStatusRequest,
) (*pb.GetUploadStatusResponse, error) {
	a.of = append(a.of, request.GetUploadId())
	if a.state != pb.UploadState_UPLOAD_STATE_UNSPECIFIED {
		return &pb.GetUploadStatusResponse{State: a.state}, nil
	}
	info := &errdetails.ErrorInfo{Reason: "UNKNOWN_UPLOAD", Domain: "fedstream.v1"}
	said, err := status.New(codes.NotFound, "which?").WithDetails(info)
	if err != nil {
		return nil, err
	}
	return nil, said.Err()
}

// sent is an update of which this was left out.
func sent(left store.Remainder) *store.Update {
	return &store.Update{OfferID: "1", UploadID: "u1", Packed: &store.Packed{LeftOut: []store.Remainder{left}}}
}

func TestUpdateOfWhichNothingWasHeardAgainIsAskedForBeforeTheNext(t *testing.T) {
	for state, counts := range map[pb.UploadState]string{
		pb.UploadState_UPLOAD_STATE_ADMITTED:    "of it",
		pb.UploadState_UPLOAD_STATE_QUARANTINED: "before it",
		pb.UploadState_UPLOAD_STATE_OPEN:        "before it",
		pb.UploadState_UPLOAD_STATE_UNSPECIFIED: "before it", // a server that does not know it any more
	} {
		server := &asked{state: state}
		address := servertest.Start(t, func(running *grpc.Server) { pb.RegisterTransferServiceServer(running, server) })
		shop := &Shop{
			Connection: link.New(address, &link.Trust{}), Store: storetest.Open(t, t.TempDir()), Federation: "f",
			Log: slog.New(slog.DiscardHandler),
		}
		t.Cleanup(shop.Connection.Close)
		if err := shop.Store.SetLeftOut("f", "u0", []store.Remainder{{Name: "before it"}}); err != nil {
			t.Fatal(err)
		}
		if err := shop.Store.Record(sent(store.Remainder{Name: "of it"})); err != nil {
			t.Fatal(err)
		}
		for _, offer := range []Offer{{ID: "1", UploadID: "u1"}, {ID: "2", UploadID: "u2"}} { // the first is sent again
			if err := newJob(offer, shop, nil).settleEarlierUpdates(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		left := shop.Store.LeftOut("f")
		if len(left) != 1 || left[0].Name != counts || !slices.Equal(server.of, []string{"u1"}) {
			t.Errorf("%v: %v counts, after questions of %v", state, left, server.of)
		}
	}
}

func TestUpdateIsAskedForUntilItIsKnownThatTheServerHasIt(t *testing.T) {
	folder := t.TempDir()
	first := storetest.Open(t, folder)
	left := store.Remainder{Name: "x"}
	if err := first.Record(sent(left)); err != nil {
		t.Fatal(err)
	}
	first.Close()
	next := storetest.Open(t, folder)
	if found, err := next.Unsettled(); err != nil || len(found) != 1 || found[0].UploadID != "u1" {
		t.Errorf("%v, %v", found, err)
	}
	if err := next.SetLeftOut("f", "u1", []store.Remainder{left}); err != nil {
		t.Fatal(err)
	}
	if found, err := next.Unsettled(); err != nil || len(found) != 0 {
		t.Errorf("%v, %v", found, err)
	}
}
