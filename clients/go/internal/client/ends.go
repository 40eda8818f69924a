package client

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"fedstream/client/internal/backoff"
	"fedstream/client/internal/durable"
	"fedstream/client/internal/fault"
	"fedstream/client/internal/limits"
	"fedstream/client/internal/logs"
	"fedstream/client/internal/model"
	"fedstream/client/internal/pb"
	"fedstream/client/internal/safetensors"
	"fedstream/client/internal/transfer"
	"fedstream/client/internal/wire"
)

// How long nothing of the final model may come, after which the server is taken to be gone; most of it may be one chunk.
const fetchTime = 3 * time.Minute

// hello is what a session begins with.
func (c *Client) hello() *pb.Hello {
	training, known := c.place.training, c.place.bench.Experience()
	schema := model.Sum([]byte(model.CanonicalSchema(training.Schema())))
	return &pb.Hello{
		Protocol:     &pb.ProtocolRange{Min: limits.Protocol, Max: limits.Protocol},
		ClientName:   c.config.Name,
		SchemaSha256: schema[:],
		Meaning:      wire.WriteMeaning(training.Meaning()),
		Capabilities: &pb.Capabilities{
			Encodings:     append([]pb.Encoding{pb.Encoding_ENCODING_RAW}, c.config.Encodings...),
			MaxChunkBytes: limits.DefaultChunkBytes,
		},
		NumExamples:   training.NumExamples(),
		EpochDuration: wire.WriteDuration(known.Epoch),
		Limits: &pb.SiteLimits{
			MaxEpochs:       c.config.Limits.MaxEpochs,
			MaxTrainingTime: wire.WriteDuration(c.config.Limits.MaxTraining),
		},
		Software:      Software,
		SyntheticData: training.IsSynthetic(),
	}
}

// collect fetches the best model while the server is still there, and writes it for people.
func (c *Client) collect(ctx context.Context, outcome *pb.FederationOutcome) error {
	best := outcome.GetBestModel()
	if best == nil {
		best = outcome.GetLastModel()
	}
	named, err := wire.ReadDigest(best.GetModelDigest())
	if err != nil {
		return fault.Stopf(fault.Unreachable,
			"federation finished: %s\nbut the server names no final model: ask the coordinator for "+
				"it", outcome.GetReason())
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	limit := time.AfterFunc(fetchTime, func() { cancel(errors.New("the server does not answer")) })
	defer limit.Stop()
	download := transfer.Download{
		Connection: c.connection,
		Store:      c.store,
		Schema:     c.place.training.Schema(),
		Patience:   backoff.Usual,
		Log:        c.log,
		ChunkBytes: func() int { return c.place.bench.Terms().MaxChunkBytes },
		OnBytes:    func(done, total uint64) { limit.Reset(fetchTime) },
	}
	entries, err := download.Fetch(ctx, named.SHA256)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fault.Stopf(fault.Unreachable,
			"federation finished: %s\nbut its final model could not be fetched (%v): ask the coordinator "+
				"for it", outcome.GetReason(), err)
	}
	if err := c.save(entries); err != nil {
		return fault.Stopf(fault.BadConfiguration,
			"the final model cannot be written: %v; make room, and ask the coordinator for it", err)
	}
	facts := []any{"best_round", best.GetVersion()}
	if metrics, err := wire.ReadMetrics(outcome.GetMetrics()); err == nil { // they are for people
		facts = append(facts, logs.Metrics(metrics)...)
	}
	c.log.Info("federation over", facts...)
	return nil
}

// requireOut sees that the final model can be written, before rounds of work: that it cannot would be found at the end.
func (c *Client) requireOut() error {
	err := os.MkdirAll(c.config.Out, 0o755)
	if err == nil {
		var probe *os.File
		if probe, err = os.CreateTemp(c.config.Out, ".probe"); err == nil {
			err = errors.Join(probe.Close(), os.Remove(probe.Name()))
		}
	}
	if err != nil {
		return fault.Stopf(fault.BadConfiguration, "--out: models cannot be written to %s: %v", c.config.Out, err)
	}
	return nil
}

func (c *Client) save(entries []model.Entry) error {
	c.saved = filepath.Join(c.config.Out, "GLOBAL_MODEL.safetensors")
	return errors.Join(os.MkdirAll(c.config.Out, 0o755), durable.Write(c.saved, func(to io.Writer) error {
		return safetensors.Write(to, entries, c.store.Read)
	}))
}
