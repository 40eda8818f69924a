"""Messages built field by field, so that they can also be wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import google_crc32c

from fedstream.v1 import common_pb2, transfer_pb2

_TYPES = {
    "BOOL": "BOOL",
    "I8": "INT8",
    "I16": "INT16",
    "I32": "INT32",
    "I64": "INT64",
    "U8": "UINT8",
    "U16": "UINT16",
    "U32": "UINT32",
    "U64": "UINT64",
    "F16": "FLOAT16",
    "BF16": "BFLOAT16",
    "F32": "FLOAT32",
    "F64": "FLOAT64",
}


def data_type(canonical_name: str) -> common_pb2.DataType.ValueType:
    """The element type that canonical descriptions call so, as common.proto says."""
    return common_pb2.DataType.Value(f"DATA_TYPE_{_TYPES[canonical_name]}")


def serialised(message: Any) -> str:
    """The message in hexadecimal."""
    return message.SerializeToString(deterministic=True).hex()


def entry(
    name: str = "kernel",
    dtype: int = common_pb2.DATA_TYPE_FLOAT32,
    shape: Iterable[int] = (1, 2),
    sha256: bytes = b"\x11" * 32,
    size_bytes: int = 8,
    encoded_size_bytes: int | None = None,
    encoding: int = common_pb2.ENCODING_RAW,
) -> transfer_pb2.TensorEntry:
    """An entry that is sound, but for what is given."""
    return transfer_pb2.TensorEntry(
        spec=common_pb2.TensorSpec(name=name, dtype=dtype, shape=shape),  # type: ignore[arg-type]
        digest=common_pb2.Digest(sha256=sha256, size_bytes=size_bytes),
        encoding=encoding,  # type: ignore[arg-type]
        encoded_size_bytes=size_bytes if encoded_size_bytes is None else encoded_size_bytes,
    )


def chunk(write_offset: int, data: bytes, crc32c: int | None = None) -> transfer_pb2.Chunk:
    """A chunk, with its own checksum or the one given."""
    checksum = google_crc32c.value(data) if crc32c is None else crc32c
    return transfer_pb2.Chunk(write_offset=write_offset, crc32c=checksum, data=data)
