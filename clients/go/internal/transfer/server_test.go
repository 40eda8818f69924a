package transfer_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"fedstream/client/internal/backoff"
	"fedstream/client/internal/link"
	"fedstream/client/internal/model"
	"fedstream/client/internal/pb"
	"fedstream/client/internal/servertest"
	"fedstream/client/internal/wire"
)

var (
	patience = backoff.Patience{First: time.Millisecond, Longest: 2 * time.Millisecond}
	quiet    = slog.New(slog.DiscardHandler)
)

// weights is a model of three tensors, one of them empty.
type weights struct {
	schema  []model.Spec
	values  [][]byte
	entries []model.Entry
}

func makeWeights(fill byte) weights {
	made := weights{values: [][]byte{filled(16, fill), {}, filled(12, fill+1)}}
	for i, name := range []string{"a", "none", "b"} {
		spec := model.Spec{Name: name, DType: "U8", Shape: []uint64{uint64(len(made.values[i]))}, Role: "weight"}
		made.schema = append(made.schema, spec)
		made.entries = append(made.entries, model.EntryOf(spec, made.values[i]))
	}
	return made
}

func filled(size int, fill byte) []byte {
	data := make([]byte, size)
	for i := range data {
		data[i] = fill + byte(i)
	}
	return data
}

// server is a small one, of a single model and a single upload, that does to its client what a test asks for.
type server struct {
	pb.UnimplementedTransferServiceServer
	model weights

	chunkBytes int  // of what it sends
	sendOnly   int  // bytes in its first stream; below 0 for all
	spoilOnce  bool // a byte of its first stream

	takeOnly    int // bytes of the body in its first stream, before it cuts it; below 0 for all
	answerEvery int // bytes after which it says what is committed
	mostChunk   int // that it takes
	failures    map[string][]string

	mu       sync.Mutex
	asked    []*pb.ReadChunksRequest // guarded by mu, like all below
	calls    []string
	hasPut   bool
	missing  []uint32
	body     []byte
	size     int
	window   uint32 // of the upload; 0 is as the session's terms say
	ahead    int    // the most that was ever sent beyond what it had said is committed
	finished bool
}

func newServer(published weights) *server {
	return &server{model: published, chunkBytes: 5, sendOnly: -1, takeOnly: -1, answerEvery: 1, mostChunk: 1 << 20, failures: map[string][]string{}}
}

// serve starts it, and gives a connection to it.
func (s *server) serve(t *testing.T) *link.Connection {
	t.Helper()
	address := servertest.Start(t, func(running *grpc.Server) { pb.RegisterTransferServiceServer(running, s) })
	connection := link.New(address, &link.Trust{})
	t.Cleanup(connection.Close)
	return connection
}

func refusal(reason string) error {
	said, err := status.New(codes.FailedPrecondition, reason).WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: "fedstream.v1"})
	if err != nil {
		panic(err)
	}
	return said.Err()
}

// fails gives the next error that a test has planned for a call, if there is one. CUT is one of the network.
func (s *server) fails(call string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, call)
	planned := s.failures[call]
	if len(planned) == 0 {
		return nil
	}
	s.failures[call] = planned[1:]
	if planned[0] == "CUT" {
		return status.Error(codes.Unavailable, "cut")
	}
	return refusal(planned[0])
}

func (s *server) GetManifest(
	_ *pb.GetManifestRequest, stream grpc.ServerStreamingServer[pb.GetManifestResponse],
) error {
	if err := s.fails("GetManifest"); err != nil {
		return err
	}
	for _, part := range wire.ManifestParts(raw(s.model.entries)) {
		if err := stream.Send(&pb.GetManifestResponse{NumTensors: uint32(len(s.model.entries)), Part: part}); err != nil {
			return err
		}
	}
	return nil
}

func raw(entries []model.Entry) []wire.Travelling {
	var tensors []wire.Travelling
	for _, entry := range entries {
		tensors = append(tensors, wire.Travelling{Entry: entry, Encoding: pb.Encoding_ENCODING_RAW, EncodedSize: entry.Size})
	}
	return tensors
}

func (s *server) ReadChunks(
	request *pb.ReadChunksRequest, stream grpc.ServerStreamingServer[pb.ReadChunksResponse],
) error {
	s.mu.Lock()
	s.asked = append(s.asked, request)
	isFirst := len(s.asked) == 1
	s.mu.Unlock()
	var body []byte
	for _, index := range request.GetTensors() {
		body = append(body, s.model.values[index]...)
	}
	offset := int(request.GetReadOffset())
	if offset > len(body) {
		return refusal("WRONG_OFFSET")
	}
	end := len(body)
	if isFirst && s.sendOnly >= 0 {
		end = min(end, offset+s.sendOnly)
	}
	// A keep-alive, and bytes that are there already, are to be expected.
	chunks := []*pb.Chunk{wire.WriteChunk(uint64(offset), nil), wire.WriteChunk(uint64(max(offset-3, 0)), body[max(offset-3, 0):offset])}
	for at := offset; at < end; at += s.chunkBytes {
		chunks = append(chunks, wire.WriteChunk(uint64(at), body[at:min(at+s.chunkBytes, end)]))
	}
	if isFirst && s.spoilOnce {
		last := chunks[len(chunks)-1]
		spoilt := append([]byte{}, last.Data...)
		spoilt[0] ^= 1
		chunks[len(chunks)-1] = wire.WriteChunk(last.WriteOffset, spoilt)
	}
	for _, chunk := range chunks {
		if err := stream.Send(&pb.ReadChunksResponse{Chunk: chunk}); err != nil {
			return err
		}
	}
	if end < len(body) {
		return status.Error(codes.Unavailable, "cut")
	}
	return nil
}

func (s *server) PutManifest(stream grpc.ClientStreamingServer[pb.PutManifestRequest, pb.PutManifestResponse]) error {
	var entries []*pb.TensorEntry
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		entries = append(entries, message.GetPart().GetEntries()...)
	}
	if err := s.fails("PutManifest"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished {
		return refusal("ROUND_CLOSED")
	}
	s.missing, s.size, s.hasPut = nil, 0, true
	for i, entry := range entries {
		if model.SHA256(entry.GetDigest().GetSha256()) != s.model.entries[i].SHA256 {
			s.missing = append(s.missing, uint32(i))
			s.size += int(entry.GetEncodedSizeBytes())
		}
	}
	return stream.SendAndClose(&pb.PutManifestResponse{
		MissingTensors: s.missing, BodySizeBytes: uint64(s.size), CommittedSize: uint64(len(s.body)),
		WindowBytes: s.window,
	})
}

func (s *server) WriteChunks(stream grpc.BidiStreamingServer[pb.WriteChunksRequest, pb.WriteChunksResponse]) error {
	if err := s.fails("WriteChunks"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	took, answered := 0, len(s.body)
	tell := func() error {
		answered = len(s.body)
		return stream.Send(&pb.WriteChunksResponse{CommittedSize: uint64(answered)})
	}
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return tell()
		}
		if err != nil {
			return err
		}
		data, err := wire.TakeChunk(message.GetChunk(), uint64(len(s.body)), uint64(s.size), 1<<20)
		if err != nil {
			return refusal("WRONG_OFFSET")
		}
		if len(data) > s.mostChunk {
			return refusal("CHUNK_TOO_LARGE")
		}
		if s.takeOnly >= 0 && took+len(data) > s.takeOnly {
			s.body = append(s.body, data[:s.takeOnly-took]...) // the rest got lost
			s.takeOnly = -1
			return status.Error(codes.Unavailable, "cut")
		}
		s.body, took = append(s.body, data...), took+len(data)
		s.ahead = max(s.ahead, len(s.body)-answered)
		if len(s.body)-answered >= s.answerEvery || len(s.body) == s.size {
			if err := tell(); err != nil {
				return err
			}
		}
	}
}

func (s *server) GetUploadStatus(_ context.Context, _ *pb.GetUploadStatusRequest) (*pb.GetUploadStatusResponse, error) {
	if err := s.fails("GetUploadStatus"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	state := pb.UploadState_UPLOAD_STATE_AWAITING_MANIFEST
	if s.hasPut {
		state = pb.UploadState_UPLOAD_STATE_OPEN
	}
	if s.finished {
		state = pb.UploadState_UPLOAD_STATE_ADMITTED
	}
	return &pb.GetUploadStatusResponse{
		CommittedSize: uint64(len(s.body)), BodySizeBytes: uint64(s.size), State: state, WindowBytes: s.window,
	}, nil
}

func (s *server) FinishUpload(_ context.Context, _ *pb.FinishUploadRequest) (*pb.FinishUploadResponse, error) {
	s.mu.Lock()
	s.finished = s.finished || s.hasPut && len(s.body) == s.size && len(s.failures["FinishUpload"]) == 0
	s.mu.Unlock()
	if err := s.fails("FinishUpload"); err != nil {
		return nil, err
	}
	return &pb.FinishUploadResponse{State: pb.UploadState_UPLOAD_STATE_ADMITTED}, nil
}
