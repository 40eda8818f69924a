package wire

import (
	"hash/crc32"

	"fedstream/client/internal/fault"
	"fedstream/client/internal/pb"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// WriteChunk writes a slice of a body.
func WriteChunk(offset uint64, data []byte) *pb.Chunk {
	return &pb.Chunk{WriteOffset: offset, Crc32C: crc32.Checksum(data, castagnoli), Data: data}
}

// TakeChunk gives what is new in a chunk that comes where `have` bytes of a body of `size` are there; nothing for a
// keep-alive. The rules R-CH-1 to R-CH-5 apply in this order.
func TakeChunk(chunk *pb.Chunk, have, size uint64, maxChunkBytes int) ([]byte, error) {
	data, offset := chunk.GetData(), chunk.GetWriteOffset()
	switch {
	case len(data) > maxChunkBytes:
		return nil, fault.Malformedf(fault.ChunkTooLarge, "a chunk has %d bytes", len(data))
	case crc32.Checksum(data, castagnoli) != chunk.GetCrc32C():
		return nil, fault.Malformedf(fault.ChecksumMismatch, "the chunk at %d was damaged on its way", offset)
	case offset > have:
		return nil, fault.Malformedf(fault.WrongOffset, "a chunk came for %d, not %d", offset, have)
	case offset+uint64(len(data)) > size:
		return nil, fault.Malformedf(fault.BodyTooLong, "a chunk reaches beyond the %d bytes of its body", size)
	}
	known := min(have-offset, uint64(len(data)))
	return data[known:], nil
}
