package link

import (
	"sync"

	"fedstream/client/internal/limits"
)

const (
	// Below it, what a chunk costs beside its data begins to count, and connections that carry less carry no session.
	leastChunk = 16 << 10
	// Of a line that is cut after so many chunks, one that is lost in the cut is then no large part.
	runChunks = 16
)

// A ChunkSize is the most bytes that a chunk to or from one server is to have, for both directions and through all
// sessions. It is safe for use by several goroutines.
//
// It begins as large as the protocol allows. A chunk that is cut is lost as a whole, so a try that was cut before one got
// through halves it, and a stream that stood still for two minutes quarters it. A stream that gets 16 such chunks through
// without a cut doubles it. A server that cannot be reached says nothing of the line: that is no cut.
type ChunkSize struct {
	mu   sync.Mutex
	most int // guarded by mu
}

// NewChunkSize makes one of which nothing is known yet.
func NewChunkSize() *ChunkSize { return &ChunkSize{most: limits.MaxChunkBytes} }

// Most is the most bytes that the next chunk is to have.
func (c *ChunkSize) Most() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.most
}

// NoteCut says that a stream with chunks of so many bytes was cut before one of them got through.
func (c *ChunkSize) NoteCut(chunkBytes int) { c.lowerTo(chunkBytes / 2) }

// NoteStall says that a stream with chunks of so many bytes stood still until it was given up.
func (c *ChunkSize) NoteStall(chunkBytes int) { c.lowerTo(chunkBytes / 4) }

// NoteRun says that one stream has got so many bytes through by now, without a cut.
func (c *ChunkSize) NoteRun(bytes uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.most < limits.MaxChunkBytes && bytes >= runChunks*uint64(c.most) {
		c.most = min(2*c.most, limits.MaxChunkBytes)
	}
}

func (c *ChunkSize) lowerTo(bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.most = min(c.most, max(bytes, leastChunk))
}
