"""Weights on disk: safetensors, written so that a body in manifest order is the file's data section.

The layout is what makes an upload cheap: once the manifest is known, so are the header and the place of every byte, and
a chunk of the body is written straight to where it stays. Any tool that reads safetensors reads the result.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedstream.dtypes import DataType
from fedstream.errors import FedstreamError
from fedstream.manifest import Digest, Manifest, TensorEntry, raw_bytes
from fedstream.schema import RESERVED_NAME, TensorSpec

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
    header: dict[str, object] = {RESERVED_NAME: dict(metadata)} if metadata else {}
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
            longest = min(_MAX_HEADER_BYTES, os.fstat(file.fileno()).st_size - _LENGTH_BYTES)
            if len(prefix) < _LENGTH_BYTES or header_bytes > longest:
                raise WeightsFileError(f"{path} is not a weights file: it has no safetensors header")
            self._header = _parse_header(path, file.read(header_bytes))
            self._data_start = _LENGTH_BYTES + header_bytes
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._check_extent()

    def _check_extent(self) -> None:
        end = 0
        for name, (spec, begin, stop) in self._header.items():
            if begin != end or stop - begin != spec.size_bytes:
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
        _, begin, end = self._header[name]
        return FileSpan(self.path, self._data_start + begin, end - begin)

    def array(self, name: str) -> np.ndarray:
        """A tensor as a read-only view of the mapped file; it may be unaligned."""
        spec, begin, _ = self._header[name]
        if not spec.num_elements:
            return np.zeros(spec.shape, spec.dtype.numpy)
        start = self._data_start + begin
        return np.frombuffer(self._map, spec.dtype.numpy, spec.num_elements, start).reshape(spec.shape)

    def weights(self) -> dict[str, np.ndarray]:
        """All tensors as views, in file order."""
        return {name: self.array(name) for name in self._header}

    def manifest(self) -> Manifest:
        """The manifest of what the file holds now: reads and hashes every byte."""
        return Manifest(tuple(self._entry(name) for name in self._header))

    def _entry(self, name: str) -> TensorEntry:
        spec = self._header[name][0]
        return TensorEntry(name, spec.dtype, spec.shape, Digest.of(raw_bytes(self.array(name))))


_Header = dict[str, tuple[TensorSpec, int, int]]
"""Tensor name to what it is and where its values begin and end in the data section."""


def _parse_header(path: Path, text: bytes) -> _Header:
    try:
        fields = json.loads(text.decode(), object_pairs_hook=_without_repetition)
        fields.pop(RESERVED_NAME, None)
        placed = [_parse_field(name, field) for name, field in fields.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsFileError(f"{path} is not a weights file: its header is damaged ({str(error)[:200]})") from error
    return {spec.name: (spec, begin, end) for spec, begin, end in sorted(placed, key=lambda place: place[1:])}


def _parse_field(name: str, field: dict[str, Any]) -> tuple[TensorSpec, int, int]:
    spec = TensorSpec(name, DataType(field["dtype"]), tuple(_whole_number(length) for length in field["shape"]))
    flaw = spec.flaw()
    if flaw is not None:
        raise ValueError(flaw)
    begin, end = (_whole_number(offset) for offset in field["data_offsets"])
    return spec, begin, end


def _whole_number(value: object) -> int:
    if type(value) is not int or value < 0:  # JSON has true and 2.0 too, which Python would count with
        raise ValueError("a length or an offset is no whole number")
    return value


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name stands twice")
    return fields
