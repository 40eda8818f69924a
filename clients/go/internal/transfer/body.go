package transfer

import (
	"context"
	"errors"
	"io"

	"fedstream/client/internal/fault"
	"fedstream/client/internal/link"
	"fedstream/client/internal/pb"
	"fedstream/client/internal/store"
	"fedstream/client/internal/wire"
)

// body is the encoded values of the tensors that the server lacks, one after another.
type body struct {
	store   *store.Store
	parcels []store.Parcel
	size    uint64
}

func newBody(kept *store.Store, parcels []store.Parcel, missing []int) *body {
	made := &body{store: kept}
	for _, index := range missing {
		made.parcels = append(made.parcels, parcels[index])
		made.size += parcels[index].Size
	}
	return made
}

// read gives the bytes from offset on, `most` at most.
func (b *body) read(offset uint64, most int) ([]byte, error) {
	data := make([]byte, min(uint64(most), b.size-offset))
	filled, start := uint64(0), uint64(0)
	for _, parcel := range b.parcels {
		end := start + parcel.Size
		if at := offset + filled; at >= start && at < end && filled < uint64(len(data)) {
			part := data[filled:min(uint64(len(data)), filled+end-at)]
			if err := b.store.ReadAt(parcel.Blob, part, at-start); err != nil {
				return nil, err
			}
			filled += uint64(len(part))
		}
		start = end
	}
	return data, nil
}

type writing = link.Stream[pb.WriteChunksRequest, pb.WriteChunksResponse]

// heard is a `committed_size`, or why there will be no more.
type heard struct {
	committed uint64
	err       error
}

// writeBody sends the body from `committed_size` on, and reads to the stream's end.
func (u *Upload) writeBody(ctx context.Context) error {
	stream, err := u.Connection.WriteChunks(ctx)
	if err != nil {
		return err
	}
	defer stream.Close()
	u.began = u.committed
	answers, left := make(chan heard), make(chan struct{})
	defer close(left)
	go listen(stream, answers, left)
	if err := u.sendChunks(stream, answers); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		answer := <-answers
		if errors.Is(answer.err, io.EOF) {
			break
		}
		if answer.err != nil {
			return answer.err
		}
		u.heardCommit(answer.committed)
	}
	if u.committed < u.body.size {
		return fault.Troublef("the server ended the stream at %d of %d bytes", u.committed, u.body.size)
	}
	return nil
}

// listen tells all that comes, the stream's end last, unless nobody listens any more.
func listen(stream *writing, answers chan<- heard, left <-chan struct{}) {
	for {
		message, err := stream.Receive()
		select {
		case answers <- heard{message.GetCommittedSize(), err}:
		case <-left:
			return
		}
		if err != nil {
			return
		}
	}
}

func (u *Upload) sendChunks(stream *writing, answers <-chan heard) error {
	window, most := uint64(u.windowBytes()), u.chunkBytes()
	// An empty one first: the server does not wait for long to hear whose stream it is, and a slow line may take a minute
	// for what follows.
	first := &pb.WriteChunksRequest{UploadId: u.UploadID, Chunk: wire.WriteChunk(u.committed, nil)}
	if err := stream.Send(first); err != nil {
		return u.whyEnded(err, answers)
	}
	for offset := u.committed; offset < u.body.size; {
		data, err := u.body.read(offset, most)
		if err != nil {
			return err
		}
		end := offset + uint64(len(data))
		if err := u.hear(answers, func() bool { return end <= u.committed+window }); err != nil {
			return err
		}
		chunk := &pb.WriteChunksRequest{UploadId: u.UploadID, Chunk: wire.WriteChunk(offset, data)}
		if err := stream.Send(chunk); err != nil {
			return u.whyEnded(err, answers)
		}
		offset = end
	}
	return nil
}

func (u *Upload) heardCommit(committed uint64) {
	u.commit(committed)
	if u.committed > u.began {
		u.Connection.Chunks.NoteRun(u.committed - u.began)
	}
}

// hear takes in what has come, and waits until there is room for more.
func (u *Upload) hear(answers <-chan heard, hasRoom func() bool) error {
	for {
		var answer heard
		select {
		case answer = <-answers:
		default:
			if hasRoom() {
				return nil
			}
			answer = <-answers
		}
		if answer.err != nil {
			return early(answer.err)
		}
		u.heardCommit(answer.committed)
	}
}

// whyEnded gives the error of a stream to which nothing can be sent any more: the other side of it says why.
func (u *Upload) whyEnded(err error, answers <-chan heard) error {
	if !errors.Is(err, io.EOF) {
		return err
	}
	for answer := range answers {
		if answer.err != nil {
			return early(answer.err)
		}
		u.heardCommit(answer.committed)
	}
	return err
}

// early is what an end means that comes while there is more to send.
func early(err error) error {
	if errors.Is(err, io.EOF) {
		return fault.Troublef("the server ended the stream")
	}
	return err
}
