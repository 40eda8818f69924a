"""Chunks made once: the very bytes that protobuf makes, read from the file once for all who ask in time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fedserver.services.shared_chunks import ENTRY_BYTES, ChunkKey, SharedChunks
from fedstream import wire
from fedstream.body import BodyReader, Chunk, make_chunk
from fedstream.v1 import transfer_pb2
from fedstream.weights_file import FileSpan

pytestmark = pytest.mark.numpy_task

BODY = bytes(range(250))


class CountingBody(BodyReader):
    """Counts how often it is read."""

    reads = 0

    def read(self, offset: int, length: int) -> bytes:
        self.reads += 1
        return super().read(offset, length)


@pytest.fixture
def body(tmp_path: Path) -> CountingBody:
    path = tmp_path / "body"
    path.write_bytes(BODY)
    return CountingBody([FileSpan(path, 0, len(BODY))])


def key(offset: int, chunk_bytes: int = 50, model: bytes = b"m", tensors: tuple[int, ...] = ()) -> ChunkKey:
    return ChunkKey(model, tensors, offset, chunk_bytes)


def as_protobuf_has_it(chunk: Chunk) -> bytes:
    return transfer_pb2.ReadChunksResponse(chunk=wire.write_chunk(chunk)).SerializeToString()


async def test_chunk_is_the_serialised_message_and_says_how_much_of_the_body_it_has(body: CountingBody) -> None:
    shared = SharedChunks()
    for offset, size in ((0, 50), (7, 50), (240, 10)):
        chunk = await shared.get(key(offset), body)
        data = BODY[offset : offset + 50]
        assert (chunk.message, chunk.data_bytes) == (as_protobuf_has_it(make_chunk(offset, data)), size)


async def test_chunk_that_was_asked_for_is_not_read_again_and_another_is(body: CountingBody) -> None:
    shared = SharedChunks()
    first = await shared.get(key(0), body)
    assert await shared.get(key(0), body) is first
    assert body.reads == 1
    for number, other in enumerate((key(1), key(0, 49), key(0, model=b"n"), key(0, tensors=(1,))), 2):
        await shared.get(other, body)
        assert body.reads == number


async def test_clients_that_ask_together_share_one_reading(body: CountingBody) -> None:
    shared = SharedChunks()
    chunks = await asyncio.gather(*(shared.get(key(0), body) for _ in range(8)))
    assert all(chunk is chunks[0] for chunk in chunks)
    assert body.reads == 1


async def test_client_that_goes_away_while_its_chunk_is_made_leaves_the_others_theirs(body: CountingBody) -> None:
    shared = SharedChunks()
    first, second = (asyncio.create_task(shared.get(key(0), body)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).data_bytes == 50
    assert first.cancelled()


async def test_chunks_that_were_asked_for_longest_ago_make_room(body: CountingBody) -> None:
    size = len((await SharedChunks().get(key(150), body)).message)
    shared = SharedChunks(limit_bytes=2 * (size + ENTRY_BYTES))
    body.reads = 0
    for offset in (130, 150, 130, 170, 130, 170):  # 150 goes when 170 comes
        await shared.get(key(offset), body)
    assert body.reads == 3
    await shared.get(key(150), body)
    assert body.reads == 4


async def test_chunk_over_the_limit_is_given_and_not_kept(body: CountingBody) -> None:
    shared = SharedChunks(limit_bytes=20)
    for reads in (1, 2):
        assert (await shared.get(key(0), body)).data_bytes == 50
        assert body.reads == reads


async def test_body_is_opened_once_and_chunks_are_kept_until_the_last_client_has_what_it_wants(tmp_path: Path) -> None:
    path, opened = tmp_path / "body", list[CountingBody]()
    path.write_bytes(BODY)

    def open_body() -> CountingBody:
        opened.append(CountingBody([FileSpan(path, 0, len(BODY))]))
        return opened[-1]

    shared = SharedChunks()
    with shared.fetching(b"m", (), open_body) as first:
        with shared.fetching(b"m", (), open_body) as second:
            assert first is second
            await shared.get(key(0), second)
        await shared.get(key(0), first)
        assert opened[0].reads == 1, "one client is still at it"
        with shared.fetching(b"m", (1,), open_body) as other:
            assert other is not first
    with pytest.raises(KeyError):  # closed
        first.read(0, 1)
    with shared.fetching(b"m", (), open_body) as again:
        await shared.get(key(0), again)
        assert opened[-1].reads == 1


async def test_body_that_cannot_be_opened_leaves_nothing_behind(body: CountingBody) -> None:
    def fail() -> BodyReader:
        raise OSError("gone")

    shared = SharedChunks()
    with pytest.raises(OSError, match="gone"), shared.fetching(b"m", (), fail):
        pass
    with shared.fetching(b"m", (), lambda: body) as opened:
        assert opened is body
