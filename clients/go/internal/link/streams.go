package link

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"

	"fedstream/client/internal/fault"
	"fedstream/client/internal/model"
	"fedstream/client/internal/pb"
)

// How long a stream of chunks may stand still before it is taken for broken.
const stall = 120 * time.Second

// ErrStalled is the Trouble of a stream that stands still.
var ErrStalled = fault.Troublef("the stream stood still for too long")

// A Stream is a call of several messages whose errors are in this client's own kinds. Its end is io.EOF.
type Stream[Out, In any] struct {
	stream grpc.ClientStream
	ctx    context.Context
	cancel context.CancelCauseFunc
	trust  *Trust

	patience time.Duration
	watch    *time.Timer // nil where a stream may stand still
}

// Negotiate opens a session's stream. It has no deadline.
func (c *Connection) Negotiate(ctx context.Context) (*Stream[pb.NegotiateRequest, pb.NegotiateResponse], error) {
	begin := func(ctx context.Context, channel *grpc.ClientConn) (grpc.ClientStream, error) {
		return pb.NewNegotiationServiceClient(channel).Negotiate(ctx)
	}
	return open[pb.NegotiateRequest, pb.NegotiateResponse](ctx, c, 0, begin)
}

// Manifest opens a stream of a published model's manifest. A server may have to digest the model first.
func (c *Connection) Manifest(
	ctx context.Context, name model.SHA256,
) (*Stream[pb.GetManifestRequest, pb.GetManifestResponse], error) {
	begin := func(ctx context.Context, channel *grpc.ClientConn) (grpc.ClientStream, error) {
		return pb.NewTransferServiceClient(channel).GetManifest(ctx, &pb.GetManifestRequest{ModelSha256: name[:]})
	}
	return open[pb.GetManifestRequest, pb.GetManifestResponse](ctx, c, long, begin)
}

// WriteChunks opens a stream of an update's body.
func (c *Connection) WriteChunks(ctx context.Context) (*Stream[pb.WriteChunksRequest, pb.WriteChunksResponse], error) {
	begin := func(ctx context.Context, channel *grpc.ClientConn) (grpc.ClientStream, error) {
		return pb.NewTransferServiceClient(channel).WriteChunks(ctx)
	}
	return open[pb.WriteChunksRequest, pb.WriteChunksResponse](ctx, c, stall, begin)
}

// ReadChunks opens a stream of a model's body.
func (c *Connection) ReadChunks(
	ctx context.Context, request *pb.ReadChunksRequest,
) (*Stream[pb.ReadChunksRequest, pb.ReadChunksResponse], error) {
	begin := func(ctx context.Context, channel *grpc.ClientConn) (grpc.ClientStream, error) {
		return pb.NewTransferServiceClient(channel).ReadChunks(ctx, request)
	}
	return open[pb.ReadChunksRequest, pb.ReadChunksResponse](ctx, c, stall, begin)
}

func open[Out, In any](
	ctx context.Context,
	c *Connection,
	patience time.Duration,
	begin func(context.Context, *grpc.ClientConn) (grpc.ClientStream, error),
) (*Stream[Out, In], error) {
	channel, err := c.open()
	if err != nil {
		return nil, err
	}
	opened := &Stream[Out, In]{trust: c.trust, patience: patience}
	opened.ctx, opened.cancel = context.WithCancelCause(ctx)
	if patience > 0 {
		opened.watch = time.AfterFunc(patience, func() { opened.cancel(ErrStalled) })
	}
	opened.stream, err = begin(opened.ctx, channel)
	if err != nil {
		opened.Close()
		return nil, opened.translate(err)
	}
	return opened, nil
}

// Send writes one message. If the stream has ended, io.EOF: Receive says why.
func (s *Stream[Out, In]) Send(message *Out) error { return s.done(s.stream.SendMsg(message)) }

// Receive gives the next message; io.EOF once the server has ended the stream with OK.
func (s *Stream[Out, In]) Receive() (*In, error) {
	message := new(In)
	err := s.done(s.stream.RecvMsg(message))
	return message, err
}

// CloseSend says that nothing more will be sent.
func (s *Stream[Out, In]) CloseSend() error { return s.done(s.stream.CloseSend()) }

// Close gives the stream up.
func (s *Stream[Out, In]) Close() {
	if s.watch != nil {
		s.watch.Stop()
	}
	s.cancel(context.Canceled)
}

func (s *Stream[Out, In]) done(err error) error {
	if err == nil && s.watch != nil {
		s.watch.Reset(s.patience)
	}
	return s.translate(err)
}

func (s *Stream[Out, In]) translate(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	if errors.Is(context.Cause(s.ctx), ErrStalled) {
		return ErrStalled
	}
	return s.trust.translate(err)
}
