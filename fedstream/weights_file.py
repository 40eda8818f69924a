"""Weights on disk: safetensors, written so that a body in manifest order is the file's data section.

The layout is what makes an upload cheap: once the manifest is known, so are the header and the place of every byte, and
a chunk of the body is written straight to where it stays. Any tool that reads safetensors reads the result.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedstream.dtypes import DataType
from fedstream.errors import FedstreamError
from fedstream.manifest import Digest, Manifest, TensorEntry, raw_bytes

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100 << 20  # the format's own bound


class WeightsFileError(FedstreamError):
    """A weights file is damaged or is none."""


@dataclass(frozen=True, slots=True)
class FileSpan:
    """`length` bytes of a file from `offset` on."""

    path: Path
    offset: int
    length: int


def header_of(entries: Iterable[TensorEntry], metadata: Mapping[str, str] | None = None) -> bytes:
    """The file's first bytes, up to where the values of `entries` begin, one after another in that order."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for entry in entries:
        end = begin + entry.size_bytes
        header[entry.name] = {"dtype": entry.dtype.value, "shape": entry.shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format asks that values start on a multiple of 8
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def file_parts(manifest: Manifest, weights: Mapping[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    """The pieces of a weights file, to be written one after another."""
    yield header_of(manifest)
    for entry in manifest:
        yield raw_bytes(weights[entry.name])


class WeightsFile:
    """A mapped, read-only weights file. Values are read from disk when they are touched.

    Raises:
        WeightsFileError: at opening, when the file is no well-formed safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            prefix = file.read(_LENGTH_BYTES)
            header_bytes = int.from_bytes(prefix, "little")
            if len(prefix) < _LENGTH_BYTES or header_bytes > _MAX_HEADER_BYTES:
                raise WeightsFileError(f"{path} is not a weights file: it has no safetensors header")
            self._header = _parse_header(path, file.read(header_bytes))
            self._data_start = _LENGTH_BYTES + header_bytes
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._check_extent()

    def _check_extent(self) -> None:
        end = 0
        for name, (dtype, shape, begin, stop) in self._header.items():
            if begin != end or stop - begin != _size_bytes(dtype, shape):
                raise WeightsFileError(f"{self.path} is damaged: tensor {name} does not fit its place")
            end = stop
        if self._data_start + end != len(self._map):
            raise WeightsFileError(f"{self.path} is damaged: it should have {self._data_start + end} bytes")

    @property
    def names(self) -> list[str]:
        """Tensor names, in the order of their values."""
        return list(self._header)

    def __contains__(self, name: object) -> bool:
        return name in self._header

    def span(self, name: str) -> FileSpan:
        """Where a tensor's values stand in the file."""
        _, _, begin, end = self._header[name]
        return FileSpan(self.path, self._data_start + begin, end - begin)

    def array(self, name: str) -> np.ndarray:
        """A tensor as a read-only view of the mapped file; it may be unaligned."""
        dtype, shape, begin, _ = self._header[name]
        if 0 in shape:
            return np.zeros(shape, dtype.numpy)
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self._map, dtype.numpy, count, self._data_start + begin).reshape(shape)

    def weights(self) -> dict[str, np.ndarray]:
        """All tensors as views, in file order."""
        return {name: self.array(name) for name in self._header}

    def manifest(self) -> Manifest:
        """The manifest of what the file holds now: reads and hashes every byte."""
        return Manifest(tuple(self._entry(name) for name in self._header))

    def _entry(self, name: str) -> TensorEntry:
        dtype, shape, _, _ = self._header[name]
        return TensorEntry(name, dtype, shape, Digest.of(raw_bytes(self.array(name))))


_Header = dict[str, tuple[DataType, tuple[int, ...], int, int]]


def _size_bytes(dtype: DataType, shape: tuple[int, ...]) -> int:
    size = dtype.itemsize
    for length in shape:
        size *= length
    return size


def _parse_header(path: Path, text: bytes) -> _Header:
    try:
        fields = json.loads(text)
        fields.pop("__metadata__", None)
        header: _Header = {}
        for name, field in fields.items():
            begin, end = field["data_offsets"]
            header[name] = (DataType(field["dtype"]), tuple(field["shape"]), begin, end)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsFileError(f"{path} is not a weights file: its header is damaged ({error})") from error
    return dict(sorted(header.items(), key=lambda item: (item[1][2], item[1][3])))
