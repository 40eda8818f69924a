package link

import (
	"testing"

	"fedstream/client/internal/limits"
)

func TestChunksAreHalvedByCutsAndGrowAgainWithWhatGetsThrough(t *testing.T) {
	size := NewChunkSize()
	if size.Most() != limits.MaxChunkBytes {
		t.Fatalf("begins with %d", size.Most())
	}
	size.NoteCut(1 << 20)
	if size.Most() != 1<<19 {
		t.Fatalf("%d after a cut of 1 MiB", size.Most())
	}
	size.NoteCut(1 << 21) // of a stream that began before that
	size.NoteStall(1 << 19)
	if size.Most() != 1<<17 {
		t.Fatalf("%d after a stall", size.Most())
	}
	size.NoteRun(runChunks<<17 - 1)
	if size.Most() != 1<<17 {
		t.Fatalf("%d after too short a run", size.Most())
	}
	size.NoteRun(runChunks << 17)
	if size.Most() != 1<<18 {
		t.Fatalf("%d after a run", size.Most())
	}
	for range 30 {
		size.NoteCut(size.Most())
	}
	if size.Most() != leastChunk {
		t.Fatalf("%d after many cuts", size.Most())
	}
}
