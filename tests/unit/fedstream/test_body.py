"""Bodies: the receiver's rules at each of their boundaries, and reading in any pieces from anywhere. A moment."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import google_crc32c
import pytest

from fedstream.body import BodyReader, Chunk, admit_chunk, body_size, make_chunk
from fedstream.errors import BodyTooLong, ChecksumMismatch, ChunkTooLarge, ProtocolError, WrongOffset
from fedstream.manifest import Manifest
from fedstream.weights_file import FileSpan, WeightsFileError
from tests.support.this_process import mapped_mib, open_files
from tests.unit.fedstream.examples import entry

pytestmark = pytest.mark.numpy_task

BODY = bytes(range(100, 120))


def test_checksum_of_a_chunk_is_crc32c() -> None:
    # The check value of CRC-32C (Castagnoli), and the first vector of RFC 3720, B.4.
    assert make_chunk(7, b"123456789") == Chunk(7, 0xE3069283, b"123456789")
    assert make_chunk(0, bytes(32)) == Chunk(0, 0x8A9136AA, bytes(32))
    assert make_chunk(5, b"") == Chunk(5, 0, b"")


def test_body_size_counts_the_tensors_asked_for() -> None:
    manifest = Manifest((entry("a"), entry("b", shape=(0,), size_bytes=0), entry("c", shape=(1,), size_bytes=4)))
    assert [body_size(manifest, indexes) for indexes in ([], [0], [1], [0, 2], [0, 1, 2])] == [0, 24, 0, 28, 28]


# The receiver's rules: 20 bytes of body, 8 committed, chunks of at most 10.


def admit(offset: int, data: bytes, crc32c: int | None = None) -> bytes:
    chunk = Chunk(offset, google_crc32c.value(data) if crc32c is None else crc32c, data)
    return admit_chunk(chunk, committed_size=8, size_bytes=20, max_chunk_bytes=10)


@pytest.mark.parametrize(
    ("start", "stop", "new"),
    [
        (8, 9, BODY[8:9]),  # the next byte
        (8, 18, BODY[8:18]),  # as large as may be
        (10 - 2, 8, b""),  # a keep-alive at the committed size
        (0, 0, b""),  # a keep-alive behind it
        (0, 8, b""),  # all committed
        (0, 7, b""),
        (3, 5, b""),
        (7, 8, b""),
        (0, 9, BODY[8:9]),  # one byte is new
        (7, 17, BODY[8:17]),
        (0, 10, BODY[8:10]),
    ],
)
def test_chunk_that_begins_at_or_before_the_committed_size_gives_what_is_new(start: int, stop: int, new: bytes) -> None:
    assert admit(start, BODY[start:stop]) == new


def test_chunk_that_ends_the_body_is_taken_and_one_byte_more_is_not() -> None:
    chunk, more = make_chunk(12, BODY[12:]), make_chunk(12, BODY[12:] + b"x")
    assert admit_chunk(chunk, committed_size=12, size_bytes=20, max_chunk_bytes=10) == BODY[12:]
    with pytest.raises(BodyTooLong) as caught:
        admit_chunk(more, committed_size=12, size_bytes=20, max_chunk_bytes=10)
    assert caught.value.message == "the chunk ends at 21, after the body's 20 bytes"
    assert caught.value.metadata == {"body_size": "20"}


def test_chunk_past_the_end_is_refused_also_when_its_head_is_committed_already() -> None:
    chunk = make_chunk(15, bytes(6))
    with pytest.raises(BodyTooLong):
        admit_chunk(chunk, committed_size=20, size_bytes=20, max_chunk_bytes=10)
    assert admit_chunk(make_chunk(15, bytes(5)), committed_size=20, size_bytes=20, max_chunk_bytes=10) == b""


@pytest.mark.parametrize("offset", [9, 20, 2**64 - 1])
@pytest.mark.parametrize("data", [b"", b"x"])
def test_chunk_that_begins_after_the_committed_size_is_refused_with_where_to_resume(offset: int, data: bytes) -> None:
    with pytest.raises(WrongOffset) as caught:
        admit(offset, data)
    assert caught.value.message == f"the chunk starts at {offset} but 8 bytes are committed; resume there"
    assert caught.value.metadata == {"committed_size": "8"}


def test_chunk_over_the_negotiated_size_is_refused_before_its_checksum_is_made() -> None:
    assert admit(8, BODY[8:18])
    with pytest.raises(ChunkTooLarge) as caught:
        admit(8, BODY[8:19], crc32c=0)
    assert caught.value.message == "a chunk of 11 bytes is over the 10 that are taken; send smaller ones"
    assert caught.value.metadata == {"max_chunk_bytes": "10"}


@pytest.mark.parametrize("offset", [0, 8, 9, 99])
def test_chunk_with_a_wrong_checksum_is_refused_wherever_it_stands(offset: int) -> None:
    with pytest.raises(ChecksumMismatch) as caught:
        admit(offset, b"abc", crc32c=google_crc32c.value(b"abc") ^ 1)
    assert caught.value.message == f"the chunk at offset {offset} does not match its crc32c; send it again"
    assert caught.value.metadata == {"write_offset": str(offset)}


def test_keep_alive_with_a_checksum_of_something_is_refused() -> None:
    with pytest.raises(ChecksumMismatch):
        admit(8, b"", crc32c=1)


def test_every_bit_of_a_chunk_flipped_is_found() -> None:
    chunk = make_chunk(8, BODY[8:12])
    for bit in range(32):
        data = bytearray(chunk.data)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolError):
            admit_chunk(Chunk(8, chunk.crc32c, bytes(data)), 8, 20, 10)


def test_body_of_no_bytes_takes_a_keep_alive_and_nothing_else() -> None:
    assert admit_chunk(make_chunk(0, b""), committed_size=0, size_bytes=0, max_chunk_bytes=10) == b""
    with pytest.raises(BodyTooLong):
        admit_chunk(make_chunk(0, b"x"), committed_size=0, size_bytes=0, max_chunk_bytes=10)


# Reading.


@pytest.fixture
def spans(tmp_path: Path) -> list[FileSpan]:
    """The twenty bytes in six pieces of two files, some empty, out of order in their files."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"??" + BODY[9:16] + b"?" + BODY[:4])
    other.write_bytes(BODY[16:] + BODY[4:9])
    return [
        FileSpan(one, 0, 0),
        FileSpan(one, 10, 4),
        FileSpan(other, 4, 5),
        FileSpan(tmp_path / "never made", 3, 0),
        FileSpan(one, 2, 7),
        FileSpan(other, 0, 4),
        FileSpan(other, 9, 0),
    ]


def test_body_read_from_every_offset_in_every_length_is_that_slice(spans: list[FileSpan]) -> None:
    with BodyReader(spans) as body:
        assert body.size_bytes == 20
        for offset in range(22):
            for length in range(23):
                assert body.read(offset, length) == BODY[offset : offset + length], (offset, length)


@pytest.mark.parametrize("chunk_bytes", [*range(1, 22), 1 << 20])
def test_body_in_chunks_of_every_size_from_every_offset_is_the_rest_of_it(
    spans: list[FileSpan], chunk_bytes: int
) -> None:
    with BodyReader(spans) as body:
        for offset in range(21):
            expected = [
                make_chunk(start, BODY[start : start + chunk_bytes]) for start in range(offset, 20, chunk_bytes)
            ]
            assert list(body.chunks(offset, chunk_bytes)) == expected


def test_body_sent_with_every_cut_and_resumed_behind_it_arrives_whole(spans: list[FileSpan]) -> None:
    with BodyReader(spans) as body:
        for cut in range(21):
            for resume in range(cut + 1):
                received = BODY[:cut]
                for chunk in body.chunks(resume, 3):
                    received += admit_chunk(chunk, len(received), body.size_bytes, 3)
                assert received == BODY


def test_body_of_no_pieces_has_no_chunks() -> None:
    with BodyReader([]) as body:
        assert (body.size_bytes, list(body.chunks()), body.read(0, 10)) == (0, [], b"")


def test_body_whose_file_was_cut_short_gives_what_is_left_and_then_an_error(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(BODY[:6])
    (tmp_path / "rest").write_bytes(BODY[10:])
    spans = [FileSpan(tmp_path / "short", 0, 10), FileSpan(tmp_path / "rest", 0, 10)]
    with BodyReader(spans) as body:
        assert body.read(0, 20) == BODY[:6]  # not with what follows moved into the gap
        chunks = body.chunks(0, 5)
        assert [next(chunks), next(chunks)] == [make_chunk(0, BODY[:5]), make_chunk(5, BODY[5:6])]
        with pytest.raises(WeightsFileError, match="the body ends at 6 of 20 bytes: a file was cut short"):
            next(chunks)


def test_body_whose_file_is_empty_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "short").touch()
    (tmp_path / "whole").write_bytes(BODY)
    before = open_files(tmp_path)
    for bad, error in (("short", WeightsFileError), ("nowhere", FileNotFoundError)):
        with pytest.raises(error, match=bad):
            BodyReader([FileSpan(tmp_path / "whole", 0, 10), FileSpan(tmp_path / bad, 0, 10)])
    assert open_files(tmp_path) == before


def test_bodies_read_by_many_at_once_take_no_memory_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(8 << 20))
    before = mapped_mib(tmp_path)
    bodies = [BodyReader([FileSpan(tmp_path / "large", 0, 8 << 20)]) for _ in range(3)]
    for body in bodies:
        assert sum(len(chunk.data) for chunk in body.chunks()) == 8 << 20
    assert mapped_mib(tmp_path) - before < 4  # mapped, it would be 24 MiB
    for body in bodies:
        body.close()


def test_body_is_not_copied_where_the_tensors_of_a_chunk_follow_each_other_in_a_file(tmp_path: Path) -> None:
    path, size = tmp_path / "tensors", 1 << 16
    path.write_bytes(bytes(32 * size))
    with BodyReader([FileSpan(path, index * size, size) for index in range(32)]) as body:
        tracemalloc.start()
        data = body.read(0, 32 * size)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert len(data) == 32 * size
    assert peak < 1.1 * len(data)


def test_body_closed_gives_its_files_back(spans: list[FileSpan], tmp_path: Path) -> None:
    before = open_files(tmp_path)
    body = BodyReader(spans)
    assert open_files(tmp_path) == before + 2
    body.close()
    body.close()
    assert open_files(tmp_path) == before
    with pytest.raises((KeyError, ValueError)):
        body.read(0, 1)
