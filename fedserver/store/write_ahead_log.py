"""Whether SQLite's write-ahead log still holds what was committed.

A server that was killed leaves `state.db-wal` behind. SQLite reads it up to the first frame that does not match its
checksum and takes the rest for a transaction that a power cut interrupted: one flipped bit, and everything that was
committed after it is silently gone. Every commit is synced before the next one begins, so a power cut can spoil only
the last transaction in the log. Where more than one ends in or behind the spoilt frame, the file is damaged.

The format is that of https://www.sqlite.org/fileformat2.html#walformat.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_HEADER = struct.Struct(">8I")
"""Magic number, format, page size, checkpoint number, two salts, two checksums."""
_FRAME_HEADER = struct.Struct(">6I")
"""Page number, size of the database in pages after a commit (else 0), two salts, two checksums."""
_MAGIC = 0x377F0682
"""The lowest bit more where checksums read words as big-endian."""


@dataclass(frozen=True, slots=True)
class SpoiltFrame:
    """The first frame, from 1, that is not what was written; `commits` transactions end in it or behind it."""

    number: int
    commits: int


class SpoiltHeader(ValueError):
    """The log has frames, and no header that belongs to them."""


def first_spoilt_frame(log: Path) -> SpoiltFrame | None:
    """Where the log stops being what was written; `None` if nowhere, or if there is no log.

    Frames of an earlier use of the file, behind the last one of this use, are not looked at. Nor is a log that somebody
    writes to meanwhile: its server has read it when it started.

    Raises:
        SpoiltHeader: nothing in the log can be read.
        OSError: the file cannot be read.
    """
    data = _read_at_rest(log)
    if len(data) <= _HEADER.size:
        return None
    magic, _, page_size, _, *salts, sum_0, sum_1 = _HEADER.unpack_from(data)
    if magic & ~1 != _MAGIC:
        raise SpoiltHeader
    checksum = _Checksum(">u4" if magic & 1 else "<u4")
    if checksum.add(data[: _HEADER.size - 8]) != (sum_0, sum_1):
        raise SpoiltHeader
    spoilt: int | None = None
    commits = 0
    for number, (frame, is_this_use) in enumerate(_frames(data, page_size, salts), start=1):
        _, size_after, *_, sum_0, sum_1 = _FRAME_HEADER.unpack_from(frame)
        if spoilt is None and not (is_this_use and _matches(checksum, frame, (sum_0, sum_1))):
            spoilt = number
        commits += spoilt is not None and is_this_use and size_after > 0
    return SpoiltFrame(spoilt, commits) if spoilt is not None and commits else None


def _read_at_rest(log: Path) -> bytes:
    """The log's bytes as they are at one instant; nothing if there is no log, or it changes while it is read."""
    if not log.exists():
        return b""
    before = log.stat()
    data = log.read_bytes()
    after = log.stat()
    return data if (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size) else b""


def _frames(data: bytes, page_size: int, salts: list[int]) -> Iterator[tuple[memoryview, bool]]:
    """Every whole frame, and whether it says that it is of this use of the file."""
    view, size = memoryview(data), _FRAME_HEADER.size + page_size
    for start in range(_HEADER.size, len(data) - size + 1, size):
        frame = view[start : start + size]
        yield frame, list(_FRAME_HEADER.unpack_from(frame)[2:4]) == salts


def _matches(checksum: _Checksum, frame: memoryview, expected: tuple[int, int]) -> bool:
    checksum.add(frame[:8])
    return checksum.add(frame[_FRAME_HEADER.size :]) == expected


class _Checksum:
    """SQLite's running checksum: for each pair of words (x, y), s0 += x + s1, then s1 += y + s0, modulo 2**32.

    Written out, each sum is a sum of products of all words with Fibonacci numbers, the last word's being F(0) in s0 and
    F(1) in s1. So numpy takes in a page at once; a loop over the words of a full log would take a second.
    """

    def __init__(self, words: str) -> None:
        self._words = words
        self._sums = (0, 0)

    def add(self, data: bytes | memoryview) -> tuple[int, int]:
        """Take in a multiple of 8 bytes; returns the sums so far."""
        # The pair that leads from (0, 0) to where the sums are.
        before = np.array([self._sums[0], (self._sums[1] - self._sums[0]) % 2**32], np.uint32)
        words = np.concatenate([before, np.frombuffer(data, self._words)], dtype=np.uint32)
        factors = _fibonacci(len(words) + 1)[::-1]
        self._sums = int(np.dot(words, factors[1:])), int(np.dot(words, factors[:-1]))
        return self._sums


@functools.cache
def _fibonacci(count: int) -> np.ndarray:
    """F(0), F(1) and so on, modulo 2**32. `[count]` uint32."""
    numbers = [0, 1]
    while len(numbers) < count:
        numbers.append((numbers[-2] + numbers[-1]) % 2**32)
    return np.array(numbers, np.uint32)
