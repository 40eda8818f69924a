"""Messages with a chunk on the fast path: the bytes that protobuf writes, and the values that it reads. About 4 s."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedstream.body import Chunk, make_chunk
from fedstream.chunk_messages import decode_read_chunks, decode_write_chunks, encode_read_chunks, encode_write_chunks
from fedstream.v1 import transfer_pb2

pytestmark = pytest.mark.numpy_task

CHUNKS = st.builds(
    Chunk,
    write_offset=st.sampled_from([0, 1, 127, 128, 1 << 20, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
    | st.integers(0, (1 << 64) - 1),
    crc32c=st.sampled_from([0, 1, (1 << 32) - 1]) | st.integers(0, (1 << 32) - 1),
    data=st.binary(max_size=300),
)
UPLOAD_IDS = st.text(max_size=200)


def as_message(chunk: Chunk) -> transfer_pb2.Chunk:
    return transfer_pb2.Chunk(write_offset=chunk.write_offset, crc32c=chunk.crc32c, data=bytes(chunk.data))


@given(UPLOAD_IDS, CHUNKS)
@settings(max_examples=500, deadline=None)
def test_write_chunks_is_written_as_protobuf_does_and_read_back(upload_id: str, chunk: Chunk) -> None:
    message = encode_write_chunks(upload_id, chunk)
    assert message == transfer_pb2.WriteChunksRequest(upload_id=upload_id, chunk=as_message(chunk)).SerializeToString()
    assert decode_write_chunks(message) == (upload_id, chunk)


@given(CHUNKS)
@settings(max_examples=300, deadline=None)
def test_read_chunks_is_written_as_protobuf_does_and_read_back(chunk: Chunk) -> None:
    message = encode_read_chunks(chunk)
    assert message == transfer_pb2.ReadChunksResponse(chunk=as_message(chunk)).SerializeToString()
    assert decode_read_chunks(message) == chunk


def outcome(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except DecodeError:
        return DecodeError


def by_protobuf(message: bytes) -> Any:
    request = transfer_pb2.WriteChunksRequest.FromString(message)
    return request.upload_id, Chunk(request.chunk.write_offset, request.chunk.crc32c, request.chunk.data)


def response_by_protobuf(message: bytes) -> Any:
    chunk = transfer_pb2.ReadChunksResponse.FromString(message).chunk
    return Chunk(chunk.write_offset, chunk.crc32c, chunk.data)


@given(st.data())
@settings(max_examples=2_000, deadline=None)
def test_mutated_message_is_read_as_protobuf_reads_it_or_refused_likewise(data: st.DataObject) -> None:
    message = bytearray(encode_write_chunks(data.draw(st.text(max_size=4)), data.draw(CHUNKS)))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(message)))
        kind = data.draw(st.sampled_from(["flip", "insert", "remove", "cut", "append"]))
        if kind == "flip" and place < len(message):
            message[place] = data.draw(st.integers(0, 255))
        elif kind == "insert":
            message[place:place] = data.draw(st.binary(max_size=5))
        elif kind == "remove":
            del message[place : place + data.draw(st.integers(1, 5))]
        elif kind == "cut":
            del message[place:]
        else:
            message += data.draw(st.binary(max_size=12))
    hostile = bytes(message)
    assert outcome(lambda: decode_write_chunks(hostile)) == outcome(lambda: by_protobuf(hostile))
    assert outcome(lambda: decode_read_chunks(hostile)) == outcome(lambda: response_by_protobuf(hostile))


@given(st.binary(max_size=40))
@example(b"")
@example(b"\x0a\x02\xff\xfe")  # an upload id that is not UTF-8
@example(b"\x12\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01")
@example(b"\x12\x02\x08\x01\x12\x02\x08\x02")  # a chunk twice: protobuf merges them
@settings(max_examples=1_000, deadline=None)
def test_any_bytes_are_read_as_protobuf_reads_them_or_refused_likewise(message: bytes) -> None:
    assert outcome(lambda: decode_write_chunks(message)) == outcome(lambda: by_protobuf(message))
    assert outcome(lambda: decode_read_chunks(message)) == outcome(lambda: response_by_protobuf(message))


def test_data_points_into_the_message() -> None:
    message = encode_write_chunks("u", make_chunk(5, bytes(1000)))
    data = decode_write_chunks(message).chunk.data
    assert isinstance(data, memoryview)
    assert data.obj is message
