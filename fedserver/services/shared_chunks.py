"""Models as they travel, opened and cut into chunks once for all clients that fetch the same at the same time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fedstream.body import BodyReader
from fedstream.chunk_messages import encode_read_chunks

SHARED_BYTES = 32 << 20
"""A round's clients begin to fetch its model together and drift apart by what their connections buffer, a few MiB each.
Whoever falls behind further has its chunks made anew, as before."""

ENTRY_BYTES = 512
"""About what is kept beside each message. A client may ask for chunks of one byte."""


@dataclass(frozen=True, slots=True)
class ChunkKey:
    """Which chunk: of which model (by sha256), of which of its tensors (indexes), from where, of at most what size."""

    model: bytes
    tensors: tuple[int, ...]
    offset: int
    chunk_bytes: int


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """A serialised `ReadChunksResponse`, and how many bytes of the body are in it."""

    message: bytes
    data_bytes: int


@dataclass(slots=True)
class _Fetched:
    body: BodyReader
    clients: int = 0


class SharedChunks:
    """Keeps the chunks that were asked for last. Used from the event loop; chunks are made in threads.

    Args:
        limit_bytes: how much is kept, at most; a chunk larger than that is not kept.
    """

    def __init__(self, limit_bytes: int = SHARED_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[ChunkKey, EncodedChunk] = OrderedDict()
        self._kept_bytes = 0
        # One chunk is made at a time: clients that begin together ask for the same one together.
        self._making = asyncio.Lock()
        self._bodies: dict[tuple[bytes, tuple[int, ...]], _Fetched] = {}

    @contextmanager
    def fetching(
        self, model: bytes, tensors: tuple[int, ...], open_body: Callable[[], BodyReader]
    ) -> Iterator[BodyReader]:
        """The body of these tensors of a model, for as long as a client fetches it; opened by the first of several.

        When the last one has what it wants, it is closed, and when nobody fetches anything, no chunk is kept any more.
        """
        key = model, tensors
        if key not in self._bodies:
            self._bodies[key] = _Fetched(open_body())
        fetched = self._bodies[key]
        fetched.clients += 1
        try:
            yield fetched.body
        finally:
            fetched.clients -= 1
            if not fetched.clients:
                self._bodies.pop(key).body.close()
            if not self._bodies:
                self._kept.clear()
                self._kept_bytes = 0

    async def get(self, key: ChunkKey, body: BodyReader) -> EncodedChunk:
        """The chunk, read from `body` if it is not at hand.

        Raises:
            WeightsFileError: a file of the body was cut short.
        """
        if (chunk := self._find(key)) is not None:
            return chunk
        async with self._making:
            if (chunk := self._find(key)) is None:
                chunk = await asyncio.to_thread(_encode, body, key)
                self._keep(key, chunk)
            return chunk

    def _find(self, key: ChunkKey) -> EncodedChunk | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def _keep(self, key: ChunkKey, chunk: EncodedChunk) -> None:
        self._kept[key] = chunk
        self._kept_bytes += _size(chunk)
        while self._kept_bytes > self._limit_bytes:
            self._kept_bytes -= _size(self._kept.popitem(last=False)[1])


def _size(chunk: EncodedChunk) -> int:
    return len(chunk.message) + ENTRY_BYTES


def _encode(body: BodyReader, key: ChunkKey) -> EncodedChunk:
    chunk = next(body.chunks(key.offset, key.chunk_bytes))
    return EncodedChunk(encode_read_chunks(chunk), len(chunk.data))
