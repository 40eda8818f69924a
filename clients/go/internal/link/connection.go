package link

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/keepalive"

	"fedstream/client/internal/fault"
	"fedstream/client/internal/limits"
	"fedstream/client/internal/pb"
)

const (
	// Deadline of a call that only asks or tells: over it, the connection is taken for broken.
	quick = 60 * time.Second
	// Deadline of a call in which the server digests a model.
	long = 600 * time.Second
)

// A Connection is the one channel to a server. It is safe for use by several goroutines.
type Connection struct {
	address string
	trust   *Trust
	// Chunks is what was learned of the line.
	Chunks *ChunkSize

	mu      sync.Mutex
	channel *grpc.ClientConn // guarded by mu; nil until the first call
}

// New makes a connection that opens when it is used.
func New(address string, trust *Trust) *Connection {
	return &Connection{address: address, trust: trust, Chunks: NewChunkSize()}
}

// Close ends it. A call after that opens it anew, with the certificate that there is then.
func (c *Connection) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.channel != nil {
		c.channel.Close()
		c.channel = nil
	}
}

// open gives the channel. One whose last try failed is replaced: it would answer with that failure until its own back-off
// is over, and coming back is this client's own affair.
func (c *Connection) open() (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.channel != nil && c.channel.GetState() != connectivity.TransientFailure {
		return c.channel, nil
	}
	if c.channel != nil {
		c.channel.Close()
		c.channel = nil
	}
	channel, err := dial(c.address, c.trust)
	c.channel = channel
	return channel, err
}

func dial(address string, trust *Trust) (*grpc.ClientConn, error) {
	host, port, err := SplitAddress(address)
	if err != nil {
		return nil, &fault.Stop{Code: fault.BadConfiguration, Message: err.Error()}
	}
	trusted, err := trust.credentials(address)
	if err != nil {
		return nil, err
	}
	return grpc.NewClient("dns:///"+JoinAddress(host, port),
		grpc.WithTransportCredentials(trusted),
		// A NAT forgets an idle connection after minutes, some after one; a ping each half minute also finds a dead peer.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: 30 * time.Second, Timeout: 20 * time.Second, PermitWithoutStream: true,
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: 200 * time.Millisecond, Multiplier: 2, Jitter: 0.2, MaxDelay: 5 * time.Second,
			},
			MinConnectTimeout: 10 * time.Second,
		}),
		grpc.WithIdleTimeout(0),
		grpc.WithMaxHeaderListSize(limits.MaxMetadataBytes),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
	)
}

// call makes one call with a deadline.
func call[T any](
	ctx context.Context, c *Connection, within time.Duration, once func(context.Context, *grpc.ClientConn) (T, error),
) (T, error) {
	channel, err := c.open()
	if err != nil {
		var none T
		return none, err
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	answer, err := once(ctx, channel)
	return answer, c.trust.translate(err)
}

// DescribeTask asks what the federation learns.
func (c *Connection) DescribeTask(ctx context.Context) (*pb.DescribeTaskResponse, error) {
	return call(ctx, c, quick, func(ctx context.Context, channel *grpc.ClientConn) (*pb.DescribeTaskResponse, error) {
		return pb.NewNegotiationServiceClient(channel).DescribeTask(ctx, &pb.DescribeTaskRequest{})
	})
}

// Enrol exchanges a token for a certificate.
func (c *Connection) Enrol(ctx context.Context, request *pb.EnrolRequest) (*pb.EnrolResponse, error) {
	return call(ctx, c, quick, func(ctx context.Context, channel *grpc.ClientConn) (*pb.EnrolResponse, error) {
		return pb.NewEnrolmentServiceClient(channel).Enrol(ctx, request)
	})
}

// RenewCertificate asks for the next certificate.
func (c *Connection) RenewCertificate(ctx context.Context) (*pb.RenewCertificateResponse, error) {
	return call(ctx, c, quick, func(ctx context.Context, channel *grpc.ClientConn) (*pb.RenewCertificateResponse, error) {
		return pb.NewCertificateServiceClient(channel).RenewCertificate(ctx, &pb.RenewCertificateRequest{})
	})
}

// UploadStatus asks how far an upload is.
func (c *Connection) UploadStatus(ctx context.Context, uploadID string) (*pb.GetUploadStatusResponse, error) {
	return call(ctx, c, quick, func(ctx context.Context, channel *grpc.ClientConn) (*pb.GetUploadStatusResponse, error) {
		return pb.NewTransferServiceClient(channel).GetUploadStatus(ctx, &pb.GetUploadStatusRequest{UploadId: uploadID})
	})
}

// FinishUpload completes an upload.
func (c *Connection) FinishUpload(ctx context.Context, uploadID string) (*pb.FinishUploadResponse, error) {
	return call(ctx, c, long, func(ctx context.Context, channel *grpc.ClientConn) (*pb.FinishUploadResponse, error) {
		return pb.NewTransferServiceClient(channel).FinishUpload(ctx, &pb.FinishUploadRequest{UploadId: uploadID})
	})
}

// PutManifest gives an update's manifest.
func (c *Connection) PutManifest(
	ctx context.Context, header *pb.UpdateHeader, parts []*pb.ManifestPart,
) (*pb.PutManifestResponse, error) {
	return call(ctx, c, long, func(ctx context.Context, channel *grpc.ClientConn) (*pb.PutManifestResponse, error) {
		stream, err := pb.NewTransferServiceClient(channel).PutManifest(ctx)
		if err != nil {
			return nil, err
		}
		messages := []*pb.PutManifestRequest{{Kind: &pb.PutManifestRequest_Header{Header: header}}}
		for _, part := range parts {
			messages = append(messages, &pb.PutManifestRequest{Kind: &pb.PutManifestRequest_Part{Part: part}})
		}
		for _, message := range messages {
			if err := stream.Send(message); errors.Is(err, io.EOF) {
				break // the answer says why
			} else if err != nil {
				return nil, err
			}
		}
		return stream.CloseAndRecv()
	})
}
