// Package transfer moves weights: models in, updates out, resumed where they were cut.
package transfer

import (
	"context"
	"errors"
	"io"
	"log/slog"

	"fedstream/client/internal/backoff"
	"fedstream/client/internal/fault"
	"fedstream/client/internal/limits"
	"fedstream/client/internal/link"
	"fedstream/client/internal/model"
	"fedstream/client/internal/pb"
	"fedstream/client/internal/store"
	"fedstream/client/internal/wire"
)

// How often a model may come damaged before something is wrong for good.
const mostRepairs = 3

// A Download brings one model into the store.
type Download struct {
	Connection *link.Connection
	Store      *store.Store
	Schema     []model.Spec
	Patience   backoff.Patience
	Log        *slog.Logger
	ChunkBytes func() int               // as agreed in the session that there is now
	OnBytes    func(done, total uint64) // of the body that is under way

	received int64
	repairs  int
	cut      int // bytes of the chunks of which the last stream was cut before one came; 0 for none
}

// Fetch gives the model's manifest once every tensor of it is in the store.
func (d *Download) Fetch(ctx context.Context, name model.SHA256) ([]model.Entry, error) {
	try := backoff.Try{
		Doing: "downloading a model", HowFar: func() int64 { return d.received }, Patience: d.Patience, Log: d.Log,
	}
	var entries []model.Entry
	err := try.Until(ctx, func(ctx context.Context) (err error) {
		entries, err = d.once(ctx, name)
		var malformed *fault.Malformed
		if errors.As(err, &malformed) {
			return d.repair(malformed.Message)
		}
		return err
	})
	return entries, err
}

func (d *Download) once(ctx context.Context, name model.SHA256) ([]model.Entry, error) {
	entries, err := d.manifest(ctx, name)
	if err != nil {
		return nil, err
	}
	if d.cut > 0 { // now that the server has answered: one that is away says nothing of the line
		d.Connection.Chunks.NoteCut(d.cut)
		d.cut = 0
	}
	for {
		lacking := d.lacking(entries)
		if len(lacking) == 0 {
			return entries, nil
		}
		if err := d.receive(ctx, name, lacking); err != nil {
			return nil, err
		}
	}
}

// repair asks again for what came damaged, a few times.
func (d *Download) repair(words string) error {
	d.repairs++
	if d.repairs > mostRepairs {
		return errors.New("a model arrives damaged again and again: " + words)
	}
	return fault.Troublef("%s", words)
}

func (d *Download) manifest(ctx context.Context, name model.SHA256) ([]model.Entry, error) {
	stream, err := d.Connection.Manifest(ctx, name)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var entries []model.Entry
	for len(entries) <= len(d.Schema) { // one that is longer is not of this schema
		message, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		part, err := wire.ReadPart(message.GetPart())
		if err != nil {
			return nil, err
		}
		entries = append(entries, part...)
	}
	if err := wire.CheckManifest(entries, d.Schema); err != nil {
		return nil, err
	}
	if model.DigestOf(entries).SHA256 != name {
		return nil, fault.Malformedf(fault.InvalidManifest, "the manifest is that of another model")
	}
	return entries, nil
}

// lacking gives the indexes of tensors that are not here. Two of the same bytes are one blob, and travel once.
func (d *Download) lacking(entries []model.Entry) []indexed {
	var lacking []indexed
	seen := map[model.SHA256]bool{}
	for i, entry := range entries {
		if !seen[entry.SHA256] && !d.Store.Has(entry.SHA256) {
			lacking = append(lacking, indexed{entry, uint32(i)})
		}
		seen[entry.SHA256] = true
	}
	return lacking
}

type indexed struct {
	model.Entry
	index uint32
}

// receive reads one stream: the tensors that are lacking, the first of them from where its bytes on disk end.
func (d *Download) receive(ctx context.Context, name model.SHA256, lacking []indexed) error {
	first, err := d.Store.Partial(lacking[0].SHA256)
	if err != nil {
		return err
	}
	defer first.Close()
	if first.Size >= lacking[0].Size { // it had arrived, but was not counted yet; or it goes
		_, err := first.Adopt()
		return err
	}
	chunkBytes, before := min(d.ChunkBytes(), d.Connection.Chunks.Most()), d.received
	body := &incoming{began: first.Size, have: first.Size, onRun: d.Connection.Chunks.NoteRun}
	request := &pb.ReadChunksRequest{ModelSha256: name[:], ReadOffset: first.Size, MaxChunkBytes: uint32(chunkBytes)}
	for _, tensor := range lacking {
		request.Tensors = append(request.Tensors, tensor.index)
		body.size += tensor.Size
	}
	d.Log.Info("downloading a model", "bytes", body.size, "kept", first.Size, "tensors", len(lacking))
	if body.stream, err = d.Connection.ReadChunks(ctx, request); err != nil {
		return err
	}
	defer body.stream.Close()
	err = d.fillAll(lacking, first, body)
	if refusal := fault.Refused(err, fault.WrongOffset); refusal != nil { // more is here than there is
		return errors.Join(first.Drop(), fault.Troublef("%s", refusal.Message))
	}
	if errors.Is(err, link.ErrStalled) {
		d.Connection.Chunks.NoteStall(chunkBytes)
	} else if fault.IsTrouble(err) && d.received == before {
		d.cut = chunkBytes
	}
	return err
}

func (d *Download) fillAll(lacking []indexed, first *store.Partial, body *incoming) error {
	if err := d.fill(lacking[0], first, body); err != nil {
		return err
	}
	for _, tensor := range lacking[1:] {
		partial, err := d.Store.Partial(tensor.SHA256)
		if err != nil {
			return err
		}
		err = errors.Join(partial.Drop(), d.fill(tensor, partial, body))
		partial.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *Download) fill(tensor indexed, partial *store.Partial, body *incoming) error {
	for partial.Size < tensor.Size {
		data, err := body.take(tensor.Size - partial.Size)
		if err != nil {
			return err
		}
		if err := partial.Append(data); err != nil {
			return err
		}
		d.received += int64(len(data))
		d.OnBytes(body.have-uint64(len(body.left)), body.size)
	}
	isRight, err := partial.Adopt()
	if err == nil && !isRight {
		return d.repair("tensor " + tensor.Name + " does not match its digest")
	}
	return err
}

// incoming is a body as it comes, chunk by chunk.
type incoming struct {
	stream     *link.Stream[pb.ReadChunksRequest, pb.ReadChunksResponse]
	began      uint64       // where the stream began
	have, size uint64       // bytes that have come, and that there are
	left       []byte       // of what has come, what was not taken yet
	onRun      func(uint64) // told how much has come of this stream
}

// take gives the next bytes: most at most, one at least.
func (in *incoming) take(most uint64) ([]byte, error) {
	for len(in.left) == 0 {
		message, err := in.stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil, fault.Troublef("the body ended after %d of %d bytes", in.have, in.size)
		}
		if err != nil {
			return nil, err
		}
		in.left, err = wire.TakeChunk(message.GetChunk(), in.have, in.size, limits.MaxChunkBytes)
		if err != nil { // what came before it is kept, and asked for no more
			return nil, fault.Troublef("%v", err)
		}
		in.have += uint64(len(in.left))
		in.onRun(in.have - in.began)
	}
	data := in.left[:min(most, uint64(len(in.left)))]
	in.left = in.left[len(data):]
	return data, nil
}
