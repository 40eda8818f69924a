"""How large the chunks of weights are that a line gets through, learned from what became of earlier ones."""

from __future__ import annotations

from fedstream import limits

LEAST_CHUNK_BYTES = 16 << 10
"""Below it, what a chunk costs beside its data begins to count, and connections that carry less carry no session."""

_RUN_CHUNKS = 16
"""Of a line that is cut after so much, a chunk that is lost in the cut is then no large part."""


class ChunkSize:
    """The most bytes that a chunk to or from one server is to have, for both directions and through all sessions.

    It begins as large as the protocol allows. A chunk that is cut is lost as a whole, so a try that was cut before one
    got through halves it, and a stream that stood still for two minutes quarters it: few tries lead from 2 MiB to what
    the line carries, `LEAST_CHUNK_BYTES` at least. A stream that gets 16 such chunks through without a cut doubles it.
    So one cut costs little, and a line that is mended soon has large chunks again. A server that cannot be reached says
    nothing of the line: that is no cut.
    """

    def __init__(self) -> None:
        self.most_bytes = limits.MAX_CHUNK_BYTES

    def note_cut(self, chunk_bytes: int) -> None:
        """A stream with such chunks was cut before one of them got through."""
        self._lower_to(chunk_bytes // 2)

    def note_stall(self, chunk_bytes: int) -> None:
        """A stream with such chunks stood still until it was given up."""
        self._lower_to(chunk_bytes // 4)

    def note_run(self, num_bytes: int) -> None:
        """One stream has got so many bytes through by now, without a cut."""
        while self.most_bytes < limits.MAX_CHUNK_BYTES and num_bytes >= _RUN_CHUNKS * self.most_bytes:
            self.most_bytes = min(2 * self.most_bytes, limits.MAX_CHUNK_BYTES)

    def _lower_to(self, num_bytes: int) -> None:
        self.most_bytes = min(self.most_bytes, max(num_bytes, LEAST_CHUNK_BYTES))
