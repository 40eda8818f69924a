"""How a tensor of an update may travel: as it is, smaller, or smaller at the price of some precision.

`protos/fedstream/v1/common.proto` has the byte forms. What a lossy encoding carries is how far training moved a tensor;
the result of decoding is what the update is said to be, in its digest and everywhere after. Encoding takes a tensor
whole, since the site has just trained it; decoding goes piece by piece, since a server decodes for many.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import ml_dtypes
import numpy as np
import zstandard

from fedstream.dtypes import DataType
from fedstream.errors import FedstreamError, InvalidManifest
from fedstream.manifest import TensorEntry, raw_bytes
from fedstream.zstd_frame import is_one_frame

BLOCK_ELEMENTS = 256
"""Elements that share a scale: 4 bytes on 256 leave 3.94 of the 4 times that int8 saves, and one large value spoils the
precision of 255 neighbours at most."""

PIECE_BYTES = 1 << 20
"""What is decoded at once, in bytes of values."""

_LARGEST_CODE = 127
_LEVEL = 3
_WINDOW_BYTES = 8 << 20
_SMALLEST_LOSSY = 1024
"""Smaller tensors travel as they are: biases and running statistics are few bytes, and each is of a whole channel."""


class Encoding(enum.Enum):
    """A way to write the values of a tensor. The value is its name in settings and in logs."""

    RAW = "raw"
    ZSTD = "zstd"
    BFLOAT16 = "bfloat16"
    BFLOAT16_ZSTD = "bfloat16+zstd"
    INT8 = "int8"
    INT8_ZSTD = "int8+zstd"

    @property
    def is_compressed(self) -> bool:
        """Whether a zstd frame is around it."""
        return self in (Encoding.ZSTD, Encoding.BFLOAT16_ZSTD, Encoding.INT8_ZSTD)

    @property
    def is_lossy(self) -> bool:
        """Whether the values are not quite those that were encoded."""
        return self.inner is not Encoding.RAW

    @property
    def inner(self) -> Encoding:
        """What is in the frame."""
        return _INNER.get(self, self)


_INNER = {
    Encoding.ZSTD: Encoding.RAW,
    Encoding.BFLOAT16_ZSTD: Encoding.BFLOAT16,
    Encoding.INT8_ZSTD: Encoding.INT8,
}


class DecodingError(FedstreamError):
    """Bytes are not of the encoding that they are said to be of."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """That a tensor travels in `encoding`, and in how many bytes."""

    encoding: Encoding
    size_bytes: int


def suits(encoding: Encoding, entry: TensorEntry) -> bool:
    """Whether a sender is to use an encoding for a tensor; others travel as they are."""
    if not encoding.is_lossy:
        return entry.size_bytes > 0
    return entry.dtype is DataType.FLOAT32 and entry.size_bytes >= 4 * _SMALLEST_LOSSY


def check_encoded(encoded: Encoded, entry: TensorEntry) -> None:
    """Check what was declared, before anything is allocated for it.

    Raises:
        InvalidManifest: the tensor cannot be written so, or not in so many bytes.
    """
    encoding, size = encoded.encoding, encoded.size_bytes
    if encoding is Encoding.RAW and size == entry.size_bytes:
        return  # what nearly all are
    if encoding.is_lossy and entry.dtype is not DataType.FLOAT32:
        message = f"tensor {entry.name} is {entry.dtype.name.lower()}; {encoding.value} is for float32 alone"
        raise InvalidManifest(message, tensor=entry.name)
    inner = _inner_size(encoding, entry)
    fits = 0 < size <= _longest_frame(inner) if encoding.is_compressed else size == inner
    if not fits:
        message = f"tensor {entry.name} cannot have an encoded_size_bytes of {size} in {encoding.value}"
        raise InvalidManifest(message, tensor=entry.name)


def _inner_size(encoding: Encoding, entry: TensorEntry) -> int:
    num_elements = entry.size_bytes // entry.dtype.itemsize
    if encoding.inner is Encoding.BFLOAT16:
        return 2 * num_elements
    if encoding.inner is Encoding.INT8:
        return 4 * _num_blocks(num_elements) + num_elements
    return entry.size_bytes


def _longest_frame(size: int) -> int:
    return size + size // 128 + 512  # what zstd makes of bytes that do not compress is below this


def _most_blocks(size: int) -> int:
    return size // 128 + 512  # zstd's smallest blocks, those of its smallest window, are of 1,024 bytes


def _num_blocks(num_elements: int) -> int:
    return -(-num_elements // BLOCK_ELEMENTS)


def encode(encoding: Encoding, numbers: np.ndarray) -> bytes:
    """The bytes of a tensor.

    Args:
        encoding: how.
        numbers: the tensor's values; for a lossy encoding how far they were moved, float32 and finite. Any shape.
    """
    if encoding.inner is Encoding.BFLOAT16:
        data = bytes(raw_bytes(numbers.astype(ml_dtypes.bfloat16)))
    elif encoding.inner is Encoding.INT8:
        data = _as_int8(numbers.reshape(-1))
    else:
        data = bytes(raw_bytes(numbers))
    return bytes(zstandard.ZstdCompressor(level=_LEVEL).compress(data)) if encoding.is_compressed else data


def _as_int8(moved: np.ndarray) -> bytes:
    padded = np.zeros(_num_blocks(moved.size) * BLOCK_ELEMENTS, np.float32)
    padded[: moved.size] = moved
    blocks = padded.reshape(-1, BLOCK_ELEMENTS)
    scales = (np.abs(blocks).max(axis=1) / np.float32(_LARGEST_CODE)).astype("<f4")
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.rint(blocks / scales[:, None])
    codes[scales == 0] = 0  # also where a block is so close to 0 that its scale is not above it
    codes = np.clip(codes, -_LARGEST_CODE, _LARGEST_CODE).astype(np.int8)
    return bytes(raw_bytes(scales)) + bytes(raw_bytes(codes.reshape(-1)[: moved.size]))


class _Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


BasePiece = Callable[[int, int], np.ndarray]
"""The base's elements from one place to another, flat."""


def decode(encoded: Encoded, file: BinaryIO, entry: TensorEntry, base: BasePiece) -> Iterator[np.ndarray]:
    """The values of a tensor, flat, in pieces of `PIECE_BYTES` and a last one of what is left.

    Args:
        encoded: as declared, and checked.
        file: stands where the encoded bytes begin; no more than these are read of it.
        entry: of the tensor.
        base: where a lossy encoding starts from.

    Raises:
        DecodingError: the bytes are not what they are declared to be. What came before is of no use.
    """
    most_blocks = _most_blocks(_inner_size(encoded.encoding, entry))
    if encoded.encoding.is_compressed and not is_one_frame(file, encoded.size_bytes, most_blocks):
        message = f"tensor {entry.name} is not in one whole zstd frame of at most {most_blocks} blocks"
        raise DecodingError(f"{message}, with nothing before or after it")
    limited: _Source = _Limited(file, encoded.size_bytes)
    source: _Source = limited
    if encoded.encoding.is_compressed:
        unpacker = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
        source = unpacker.stream_reader(limited, read_across_frames=False)  # type: ignore[arg-type]
    try:
        yield from _DECODERS[encoded.encoding.inner](source, entry, base)
        if source.read(1) or limited.read(1):
            raise DecodingError(f"tensor {entry.name} has more bytes than its values need")
    except zstandard.ZstdError as error:
        raise DecodingError(f"tensor {entry.name} is not in a zstd frame that is taken here: {error}") from error


class _Limited:
    """A file's next bytes, and no more."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file, self._left = file, size_bytes

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data


def _read_exactly(source: _Source, size: int, entry: TensorEntry) -> bytes:
    parts: list[bytes] = []
    left = size
    while left and (part := source.read(left)):
        parts.append(part)
        left -= len(part)
    if left:
        raise DecodingError(f"tensor {entry.name} has fewer bytes than its values need")
    return b"".join(parts)


def _pieces(entry: TensorEntry) -> Iterator[tuple[int, int]]:
    num_elements, step = entry.size_bytes // entry.dtype.itemsize, PIECE_BYTES // entry.dtype.itemsize
    for start in range(0, num_elements, step):
        yield start, min(start + step, num_elements)


def _decode_raw(source: _Source, entry: TensorEntry, _base: BasePiece) -> Iterator[np.ndarray]:
    for start, stop in _pieces(entry):
        data = _read_exactly(source, (stop - start) * entry.dtype.itemsize, entry)
        yield np.frombuffer(data, entry.dtype.numpy)


def _decode_bfloat16(source: _Source, entry: TensorEntry, base: BasePiece) -> Iterator[np.ndarray]:
    for start, stop in _pieces(entry):
        moved = np.frombuffer(_read_exactly(source, 2 * (stop - start), entry), ml_dtypes.bfloat16)
        yield _sum(base(start, stop), moved.astype(np.float32))


def _decode_int8(source: _Source, entry: TensorEntry, base: BasePiece) -> Iterator[np.ndarray]:
    num_blocks = _num_blocks(entry.size_bytes // entry.dtype.itemsize)
    scales = np.frombuffer(_read_exactly(source, 4 * num_blocks, entry), "<f4")
    for start, stop in _pieces(entry):  # a piece is a whole number of blocks, but for the last
        codes = np.frombuffer(_read_exactly(source, stop - start, entry), np.int8).astype(np.float32)
        of_each = np.repeat(scales[start // BLOCK_ELEMENTS : _num_blocks(stop)], BLOCK_ELEMENTS)[: stop - start]
        with np.errstate(over="ignore", invalid="ignore"):
            np.multiply(of_each, codes, out=codes)
        yield _sum(base(start, stop), codes)


def _sum(base: np.ndarray, moved: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found by whoever looks at the update
        np.add(base, moved, out=moved)
    return moved


_DECODERS = {Encoding.RAW: _decode_raw, Encoding.BFLOAT16: _decode_bfloat16, Encoding.INT8: _decode_int8}
