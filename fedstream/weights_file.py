"""Weights on disk: safetensors, written so that a body in manifest order is the file's data section.

The layout is what makes an upload cheap: once the manifest is known, so are the header and the place of every byte, and
a chunk of the body is written straight to where it stays. Any tool that reads safetensors reads the result.

A mapped page that was touched counts as the process's memory until it is unmapped. So there are two ways to read: whole
(`WeightsFile.weights`), for whoever works on all of a model, and tensor by tensor (`WeightsFile.on_demand`).
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
_SMALL_BYTES = 256 << 10
"""Tensors up to this are read rather than mapped by `TensorsOnDemand`: it costs less than a map, and no descriptor."""


class WeightsFileError(FedstreamError):
    """A weights file is damaged or is none."""


@dataclass(frozen=True, slots=True)
class FileSpan:
    """`length` bytes of a file from `offset` on."""

    path: Path
    offset: int
    length: int


def header_of(entries: Iterable[TensorEntry | TensorSpec], metadata: Mapping[str, str] | None = None) -> bytes:
    """The file's first bytes, up to where the values of `entries` begin, one after another in that order.

    It says nothing of the values, so it is known before they are.
    """
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
    """An open, read-only weights file. Values are read from disk when they are touched.

    Args:
        path: where it is.
        expected: what it ought to hold, in order. Where its header is just what that would make, as of a file that this
            program has written, it need not be taken apart, which of many small files is most of the work.

    Raises:
        WeightsFileError: at opening, when the file is no well-formed safetensors file.
    """

    def __init__(self, path: Path, expected: Sequence[TensorEntry] = ()) -> None:
        self.path = path
        self._map: mmap.mmap | None = None
        self._metadata: dict[str, str] = {}
        with path.open("rb") as file:
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        size = os.fstat(self._descriptor).st_size
        prefix = os.pread(self._descriptor, _LENGTH_BYTES, 0)
        header_bytes = int.from_bytes(prefix, "little")
        # A file that is shorter than the length itself has less than no room for a header.
        if header_bytes > min(_MAX_HEADER_BYTES, size - _LENGTH_BYTES):
            raise WeightsFileError(f"{path} is not a weights file: it has no safetensors header")
        header = os.pread(self._descriptor, header_bytes, _LENGTH_BYTES)
        if expected and prefix + header == header_of(expected):
            self._header = _placed(expected)
        else:
            self._header, self._metadata = _parse_header(path, header)
        self._data_start = _LENGTH_BYTES + header_bytes
        self._check_extent(size)

    def _check_extent(self, size: int) -> None:
        end = 0
        for name, (spec, begin, stop) in self._header.items():
            if begin != end or stop - begin != spec.size_bytes:
                raise WeightsFileError(f"{self.path} is damaged: tensor {name} does not fit its place")
            end = stop
        if self._data_start + end != size:
            raise WeightsFileError(f"{self.path} is damaged: it should have {self._data_start + end} bytes")

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file says of itself."""
        return self._metadata

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
        """A tensor as a read-only view of the file, which is mapped as a whole; it may be unaligned."""
        if self._map is None:
            self._map = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
        return _view(self._map, self._header[name][0], self.span(name).offset)

    def weights(self) -> dict[str, np.ndarray]:
        """All tensors as views, in file order. What was touched of any stays in memory while one of them is held."""
        return {name: self.array(name) for name in self._header}

    def on_demand(self) -> TensorsOnDemand:
        """All tensors, in file order, each in memory only while it is held."""
        return TensorsOnDemand(self)

    def array_alone(self, name: str) -> np.ndarray:
        """A tensor by itself, read-only: nothing of it stays in memory, or mapped, when it is let go.

        Raises:
            WeightsFileError: the file was cut short after it was opened.
            OSError: it cannot be read.
        """
        spec, span = self._header[name][0], self.span(name)
        if span.length <= _SMALL_BYTES:
            data = os.pread(self._descriptor, span.length, span.offset)
            if len(data) == span.length:
                return _view(data, spec, 0)
        elif span.offset + span.length <= os.fstat(self._descriptor).st_size:  # beyond the end, a page is a signal
            lead = span.offset % mmap.ALLOCATIONGRANULARITY
            start = span.offset - lead
            return _view(
                mmap.mmap(self._descriptor, lead + span.length, access=mmap.ACCESS_READ, offset=start), spec, lead
            )
        raise WeightsFileError(f"{self.path} is damaged: it was cut short at or before tensor {name}")

    def manifest(self) -> Manifest:
        """The manifest of what the file holds now: reads and hashes every byte."""
        return Manifest(tuple(self._entry(name) for name in self._header))

    def _entry(self, name: str) -> TensorEntry:
        spec = self._header[name][0]
        return TensorEntry(name, spec.dtype, spec.shape, Digest.of(raw_bytes(self.array_alone(name))))


class TensorsOnDemand(Mapping[str, np.ndarray]):
    """A weights file's tensors by name, in file order. Each is mapped by itself when it is asked for, every time anew,
    and unmapped when nobody holds it: whoever lets one go before asking for the next has one in memory.

    A large tensor takes a file descriptor while it is held. Safe to use from several threads.
    """

    def __init__(self, file: WeightsFile) -> None:
        self._file = file

    def __getitem__(self, name: str) -> np.ndarray:
        return self._file.array_alone(name)

    def __contains__(self, name: object) -> bool:
        return name in self._file

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.names)

    def __len__(self) -> int:
        return len(self._file.names)


def _view(data: bytes | mmap.mmap, spec: TensorSpec, offset: int) -> np.ndarray:
    if not spec.num_elements:
        return np.zeros(spec.shape, spec.dtype.numpy)
    return np.frombuffer(data, spec.dtype.numpy, spec.num_elements, offset).reshape(spec.shape)


_Header = dict[str, tuple[TensorSpec, int, int]]
"""Tensor name to what it is and where its values begin and end in the data section."""


def _placed(entries: Sequence[TensorEntry]) -> _Header:
    ends = itertools.accumulate(entry.size_bytes for entry in entries)
    return {
        entry.name: (TensorSpec(entry.name, entry.dtype, entry.shape), end - entry.size_bytes, end)
        for entry, end in zip(entries, ends, strict=True)
    }


def _parse_header(path: Path, text: bytes) -> tuple[_Header, dict[str, str]]:
    try:
        fields = json.loads(text.decode(), object_pairs_hook=_without_repetition)
        metadata = {str(key): str(value) for key, value in fields.pop(RESERVED_NAME, {}).items()}
        placed = [_parse_field(name, field) for name, field in fields.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsFileError(f"{path} is not a weights file: its header is damaged ({str(error)[:200]})") from error
    in_order = sorted(placed, key=lambda place: place[1:])
    return {spec.name: (spec, begin, end) for spec, begin, end in in_order}, metadata


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
