"""A body: the values of some tensors of a manifest, one after another, and its cutting into chunks."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import google_crc32c
import numpy as np

from fedstream import limits
from fedstream.errors import BodyTooLong, ChecksumMismatch, ChunkTooLarge, WrongOffset
from fedstream.manifest import Manifest
from fedstream.weights_file import FileSpan, WeightsFileError

Bytes = bytes | memoryview
"""Of a chunk's data: a view where it points into the message that it came in."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A slice of a body at `write_offset`; empty `data` is a keep-alive."""

    write_offset: int
    crc32c: int
    data: Bytes


def make_chunk(write_offset: int, data: Bytes) -> Chunk:
    """A chunk with its checksum."""
    return Chunk(write_offset, _checksum(data), data)


def _checksum(data: Bytes) -> int:
    """CRC-32C. The library takes no views, but arrays, which cost no copy either."""
    plain = data if isinstance(data, bytes) else np.frombuffer(data, np.uint8)
    checksum: int = google_crc32c.value(plain)
    return checksum


def body_size(manifest: Manifest, indexes: Sequence[int]) -> int:
    """Bytes of the body that holds the tensors at `indexes`."""
    return sum(manifest.entries[index].size_bytes for index in indexes)


def admit_chunk(chunk: Chunk, committed_size: int, size_bytes: int, max_chunk_bytes: int) -> Bytes:
    """The bytes of `chunk` that are new, to be written at `committed_size`; empty if none are.

    These are the receiver's rules of the transfer: what is committed may come again, and nothing may be left out.

    Args:
        chunk: as received.
        committed_size: bytes the receiver has.
        size_bytes: of the whole body.
        max_chunk_bytes: what the receiver takes.

    Raises:
        ChunkTooLarge: `data` is larger than that.
        ChecksumMismatch: the bytes do not match their crc32c.
        WrongOffset: the chunk starts after `committed_size`.
        BodyTooLong: the chunk reaches past the end of the body.
    """
    length = len(chunk.data)
    if length > max_chunk_bytes:
        message = f"a chunk of {length} bytes is over the {max_chunk_bytes} that are taken; send smaller ones"
        raise ChunkTooLarge(message, max_chunk_bytes=max_chunk_bytes)
    if _checksum(chunk.data) != chunk.crc32c:
        message = f"the chunk at offset {chunk.write_offset} does not match its crc32c; send it again"
        raise ChecksumMismatch(message, write_offset=chunk.write_offset)
    if chunk.write_offset > committed_size:
        message = f"the chunk starts at {chunk.write_offset} but {committed_size} bytes are committed; resume there"
        raise WrongOffset(message, committed_size=committed_size)
    if chunk.write_offset + length > size_bytes:
        message = f"the chunk ends at {chunk.write_offset + length}, after the body's {size_bytes} bytes"
        raise BodyTooLong(message, body_size=size_bytes)
    known = committed_size - chunk.write_offset
    return chunk.data[known:] if known else chunk.data


class BodyReader:
    """Reads a body whose pieces lie in files, which stay open until `close`.

    Read, not mapped: mapped pages would count as this process's memory once for every reader of the same model, and
    where the medium fails, a read is an error and a mapped page a signal.

    Args:
        spans: where the pieces are, in body order.

    Raises:
        WeightsFileError: at opening, when a file is empty that should not be.
    """

    def __init__(self, spans: Sequence[FileSpan]) -> None:
        self._spans = _joined(spans)
        self._starts = [0]
        for span in self._spans:
            self._starts.append(self._starts[-1] + span.length)
        self._descriptors: dict[Path, int] = {}
        try:
            for path in dict.fromkeys(span.path for span in self._spans):
                self._open(path)
        except BaseException:
            self.close()  # nobody will ever hold this object
            raise

    def _open(self, path: Path) -> None:
        descriptor = self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if not os.fstat(descriptor).st_size:
            raise WeightsFileError(f"{path} is empty")

    @property
    def size_bytes(self) -> int:
        """Bytes of the body."""
        return self._starts[-1]

    def close(self) -> None:
        """Close the files. Safe to call twice."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset` on; fewer only at the end of the body, or where a file was cut short."""
        end = min(offset + length, self.size_bytes)
        pieces: list[bytes] = []
        index = bisect.bisect_right(self._starts, offset) - 1
        while offset < end:
            span, start = self._spans[index], self._starts[index]
            stop = min(end, self._starts[index + 1])
            place = span.offset + offset - start
            piece = os.pread(self._descriptors[span.path], stop - offset, place)
            pieces.append(piece)
            if len(piece) < stop - offset:  # what follows must not move into the gap
                break
            offset, index = stop, index + 1
        return b"".join(pieces)  # of one piece, which is what there mostly is, that piece itself

    def chunks(self, offset: int = 0, chunk_bytes: int = limits.DEFAULT_CHUNK_BYTES) -> Iterator[Chunk]:
        """The body from `offset` on, in chunks of `chunk_bytes`, the last one shorter.

        Raises:
            WeightsFileError: a file is shorter than its spans say.
        """
        while offset < self.size_bytes:
            data = self.read(offset, chunk_bytes)
            if not data:
                raise WeightsFileError(f"the body ends at {offset} of {self.size_bytes} bytes: a file was cut short")
            yield make_chunk(offset, data)
            offset += len(data)


def _joined(spans: Sequence[FileSpan]) -> list[FileSpan]:
    """The same bytes in as few spans as can be: what follows each other in a file is read, and copied, as one."""
    joined: list[FileSpan] = []
    for span in spans:
        before = joined[-1] if joined else None
        if before is not None and (before.path, before.offset + before.length) == (span.path, span.offset):
            joined[-1] = replace(before, length=before.length + span.length)
        elif span.length:
            joined.append(span)
    return joined
