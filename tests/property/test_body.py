"""Bodies: whatever is cut, sent twice or sent in other pieces, what arrives is the body or an error. About 3 s."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstream import wire
from fedstream.body import BodyReader, Chunk, admit_chunk, make_chunk
from fedstream.errors import ProtocolError
from fedstream.v1 import transfer_pb2
from fedstream.weights_file import FileSpan

pytestmark = pytest.mark.numpy_task


@given(st.data(), st.binary(max_size=120))
@settings(max_examples=80, deadline=None)
def test_body_cut_and_resumed_anyhow_arrives_whole(data: st.DataObject, body: bytes) -> None:
    received = b""
    while len(received) < len(body):
        start = data.draw(st.integers(0, len(received)), "resumed at")
        length = data.draw(st.integers(1, 60), "chunk bytes")
        sent = data.draw(st.integers(1, 8), "chunks before the next cut")
        for offset in range(start, min(len(body), start + sent * length), length):
            chunk = make_chunk(offset, body[offset : offset + length])
            message = transfer_pb2.Chunk.FromString(wire.write_chunk(chunk).SerializeToString())
            before = len(received)
            received += admit_chunk(wire.read_chunk(message), before, len(body), 60)
            assert len(received) == max(before, offset + len(chunk.data))
    assert received == body


@given(
    write_offset=st.integers(0, 40) | st.integers(0, 2**64 - 1),
    crc32c=st.none() | st.integers(0, 2**32 - 1),
    data=st.binary(max_size=20),
    committed=st.integers(0, 30),
    more=st.integers(0, 10),
)
@settings(max_examples=500, deadline=None)
def test_chunk_of_anybody_is_admitted_exactly_where_the_rules_allow(
    write_offset: int, crc32c: int | None, data: bytes, committed: int, more: int
) -> None:
    honest = make_chunk(write_offset, data)
    chunk = honest if crc32c is None else Chunk(write_offset, crc32c, data)
    size = committed + more
    allowed = (
        len(data) <= 15
        and chunk.crc32c == honest.crc32c
        and write_offset <= committed
        and write_offset + len(data) <= size
    )
    try:
        new = admit_chunk(chunk, committed, size, 15)
    except ProtocolError:
        assert not allowed
    else:
        assert allowed
        assert new == data[committed - write_offset :]
        assert committed + len(new) <= size


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_body_of_pieces_of_files_reads_as_the_pieces_joined(data: st.DataObject) -> None:
    contents = data.draw(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=4), "files")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(number) for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        spans, expected = [], b""
        for _ in range(data.draw(st.integers(0, 6), "pieces")):
            which = data.draw(st.integers(0, len(contents) - 1))
            start = data.draw(st.integers(0, len(contents[which])))
            length = data.draw(st.integers(0, len(contents[which]) - start))
            spans.append(FileSpan(paths[which], start, length))
            expected += contents[which][start : start + length]
        with BodyReader(spans) as body:
            offset = data.draw(st.integers(0, len(expected) + 5), "offset")
            length = data.draw(st.integers(1, 50), "length")
            assert (body.size_bytes, body.read(offset, length)) == (len(expected), expected[offset : offset + length])
            chunks = list(body.chunks(offset, length))
            assert b"".join(chunk.data for chunk in chunks) == expected[offset:]
            assert [chunk.write_offset for chunk in chunks] == list(range(offset, len(expected), length))
