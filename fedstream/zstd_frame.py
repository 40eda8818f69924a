"""Where a zstd frame ends, by its own headers (RFC 8878, section 3.1.1).

A decompressor that unpacks piece by piece does not say it: it goes on across frames in which there is nothing, and
takes the end of its input for the end of a frame, also where a checksum was to come.
"""

from __future__ import annotations

import io
from typing import BinaryIO

_MAGIC = bytes.fromhex("28b52ffd")
_HAS_CHECKSUM, _IS_SINGLE_SEGMENT = 1 << 2, 1 << 5
_DICTIONARY_ID_BYTES = (0, 1, 2, 4)
_CONTENT_SIZE_BYTES = (0, 2, 4, 8)
_CHECKSUM_BYTES = 4
_IS_LAST = 1
_REPEATED = 1  # the type of a block that is one byte, so many times


def is_one_frame(file: BinaryIO, size_bytes: int, most_blocks: int) -> bool:
    """Whether the next `size_bytes` of a file are one frame, from its first byte to its last. The file is left there.

    What is in the blocks is not looked at. Nothing is allocated, whatever sizes the headers say, and of a frame of more
    than `most_blocks` no more is read: each block takes time, and an empty one is of three bytes.
    """
    begin = file.tell()
    length = _frame_length(file, size_bytes, most_blocks)
    file.seek(begin)
    return length == size_bytes


def _frame_length(file: BinaryIO, most: int, most_blocks: int) -> int | None:
    """How long the frame is with which a file goes on; `None` if there is none, or it has more bytes or blocks."""
    start = file.read(len(_MAGIC) + 1)
    if len(start) <= len(_MAGIC) or not start.startswith(_MAGIC):
        return None
    descriptor = start[-1]
    rest = _rest_of_header(descriptor)
    file.seek(rest, io.SEEK_CUR)
    length = len(start) + rest
    for _ in range(most_blocks):
        header = int.from_bytes(file.read(3), "little")
        size = 1 if header >> 1 & 3 == _REPEATED else header >> 3
        length += 3 + size
        if length > most:
            return None
        file.seek(size, io.SEEK_CUR)
        if header & _IS_LAST:
            return length + (_CHECKSUM_BYTES if descriptor & _HAS_CHECKSUM else 0)
    return None


def _rest_of_header(descriptor: int) -> int:
    """How many bytes the header has after the byte that describes it: window, dictionary and size of the content."""
    single = bool(descriptor & _IS_SINGLE_SEGMENT)
    content_size = _CONTENT_SIZE_BYTES[descriptor >> 6] or (1 if single else 0)
    return (0 if single else 1) + _DICTIONARY_ID_BYTES[descriptor & 3] + content_size
