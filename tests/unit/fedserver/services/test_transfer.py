"""A stream of chunks as the service handles it: answers while it is open, and errors while it waits for its sender."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message

from fedserver.services import downloads, transfer
from fedserver.services.callers import CALLER, Caller
from fedserver.services.transfer import TransferServicer
from fedserver.store import UploadState
from fedstream import limits, wire
from fedstream.body import Bytes, make_chunk
from fedstream.chunk_messages import WrittenChunk
from fedstream.manifest import Manifest, manifest_of
from fedstream.v1 import common_pb2, transfer_pb2
from tests.support.bench import SCHEMA, Bench
from tests.support.full_disk import FullDisk
from tests.support.serving import manifest_messages
from tests.support.tasks import random_weights

pytestmark = pytest.mark.numpy_task

WEIGHTS = random_weights(SCHEMA, 1)


class Refused(grpc.aio.AbortError):
    """The server ended the call with this code."""


class Call:
    """What a servicer sees of a call that sends these messages, and never closes its side."""

    def __init__(self, *messages: WrittenChunk) -> None:
        self.answers: asyncio.Queue[Any] = asyncio.Queue()
        self._messages = [*messages]

    async def read(self) -> WrittenChunk:
        if not self._messages:
            await asyncio.Event().wait()
        return self._messages.pop(0)

    async def send_initial_metadata(self, head: object) -> None:
        """No answer is told by its head."""

    async def write(self, message: Message | bytes) -> None:
        self.answers.put_nowait(message)

    async def abort(self, code: Any, details: str = "", _trailing: object = ()) -> None:
        raise Refused(f"{code.name}: {details}")


async def body_of(bench: Bench, upload_id: str, weights: Mapping[str, np.ndarray]) -> bytes:
    upload = (await bench.desk.at_work(upload_id)).upload
    return b"".join(weights[upload.manifest.entries[index].name].tobytes() for index in upload.missing)


def all_at_once(upload_id: str, body: Bytes) -> Call:
    return Call(WrittenChunk(upload_id, make_chunk(0, body)))


async def test_committed_size_is_told_while_the_stream_is_open(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        running = await bench.open_round()
        upload_id = await bench.begin("a", WEIGHTS)
        body = await body_of(bench, upload_id, WEIGHTS)
        call = all_at_once(upload_id, body)
        servicer = TransferServicer(bench.federation, bench.desk)
        stream = asyncio.create_task(servicer.WriteChunks(None, call))
        answer = await asyncio.wait_for(call.answers.get(), 10.0)
        assert answer.committed_size == len(body)
        assert bench.state.database.query("SELECT committed_size FROM uploads") == [(len(body),)]
        stream.cancel()
        await asyncio.gather(stream, return_exceptions=True)
        running.cancel()


async def test_site_that_uploads_and_says_nothing_else_is_seen(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        running = await bench.open_round()
        upload_id = await bench.begin("a", WEIGHTS)
        bench.federation.population["a"].last_seen = 0.0
        began = bench.federation.clock.wall()
        call = all_at_once(upload_id, await body_of(bench, upload_id, WEIGHTS))
        stream = asyncio.create_task(TransferServicer(bench.federation, bench.desk).WriteChunks(None, call))
        await asyncio.wait_for(call.answers.get(), 10.0)
        assert bench.federation.population["a"].last_seen >= began
        stream.cancel()
        await asyncio.gather(stream, return_exceptions=True)
        running.cancel()


async def test_stream_that_waits_for_its_sender_holds_nothing_of_what_came(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        running = await bench.open_round()
        upload_id = await bench.begin("a", WEIGHTS)
        body = await body_of(bench, upload_id, WEIGHTS)
        pieces = [np.frombuffer(piece, np.uint8) for piece in (body[:8], body[8:])]
        chunks = (make_chunk(place, memoryview(piece)) for place, piece in zip((0, 8), pieces, strict=True))
        call = Call(*(WrittenChunk(upload_id, chunk) for chunk in chunks))
        held = [weakref.ref(piece) for piece in pieces]
        pieces.clear()
        stream = asyncio.create_task(TransferServicer(bench.federation, bench.desk).WriteChunks(None, call))
        while (await asyncio.wait_for(call.answers.get(), 10.0)).committed_size < len(body):
            pass
        assert [piece() for piece in held] == [None, None]
        stream.cancel()
        await asyncio.gather(stream, return_exceptions=True)
        running.cancel()


async def test_stream_that_is_open_when_its_round_ends_hears_of_that_and_not_of_a_newer_stream(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        running = await bench.open_round()
        upload_id = await bench.begin("a", WEIGHTS)
        body = await body_of(bench, upload_id, WEIGHTS)
        call = Call(WrittenChunk(upload_id, make_chunk(0, body)))
        stream = asyncio.create_task(TransferServicer(bench.federation, bench.desk).WriteChunks(None, call))
        assert (await asyncio.wait_for(call.answers.get(), 10.0)).committed_size == len(body)
        assert not stream.done()  # it is open, and waits for more
        bench.federation.stop(finish_round=False)
        await bench.end_round(running)
        with pytest.raises(Refused, match="FAILED_PRECONDITION: round 1 does not wait for this update: round 1 closed"):
            await asyncio.wait_for(stream, 10.0)


async def test_stream_that_begins_while_its_round_ends_hears_of_that(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        running = await bench.open_round()
        upload_id = await bench.begin("a", WEIGHTS)

        class Beginning(Call):
            async def send_initial_metadata(self, head: object) -> None:
                bench.federation.stop(finish_round=False)
                await bench.end_round(running)

        stream = TransferServicer(bench.federation, bench.desk).WriteChunks(
            None, Beginning(WrittenChunk(upload_id, make_chunk(0, b"")))
        )
        with pytest.raises(Refused, match="FAILED_PRECONDITION: round 1 does not wait for this update: round 1 closed"):
            await asyncio.wait_for(stream, 10.0)


async def test_body_may_come_byte_by_byte_but_not_between_empty_chunks_without_end(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a", max_resent_bytes=1_000) as bench:
        running = await bench.open_round()
        upload_id = await bench.begin("a", WEIGHTS)
        body = await body_of(bench, upload_id, WEIGHTS)
        assert len(body) * 64 > 1_000
        bytewise = [WrittenChunk(upload_id, make_chunk(place, body[place : place + 1])) for place in range(len(body))]
        servicer = TransferServicer(bench.federation, bench.desk)
        empty = [WrittenChunk(upload_id, make_chunk(len(body), b""))] * 16
        message = "RESOURCE_EXHAUSTED: over 1000 bytes of this update came more than once, 64 counted for each"
        with pytest.raises(Refused, match=message):
            await asyncio.wait_for(servicer.WriteChunks(None, Call(*bytewise, *empty)), 10.0)
        assert (await bench.desk.finish(upload_id)).state is UploadState.ADMITTED
        await bench.end_round(running)


async def test_disk_that_refuses_a_commit_ends_a_stream_that_waits_for_its_sender(tmp_path: Path) -> None:
    disk = FullDisk()
    async with Bench.running(tmp_path, "a", files=disk) as bench:
        running = await bench.open_round()
        upload_id = await bench.begin("a", WEIGHTS)
        call = all_at_once(upload_id, await body_of(bench, upload_id, WEIGHTS))
        disk.fill(1, start=disk.steps + 2)  # the write is taken, its fsync is not
        servicer = TransferServicer(bench.federation, bench.desk)
        with pytest.raises(Refused, match="RESOURCE_EXHAUSTED"):
            await asyncio.wait_for(servicer.WriteChunks(None, call), 10.0)
        assert (call.answers.qsize(), bench.desk.status(upload_id).committed_size) == (0, 0)
        running.cancel()


_NO_TIME = r"training_seconds is .*; it is a number of seconds"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"training_seconds": float("nan")}, _NO_TIME),
        ({"training_seconds": float("inf")}, _NO_TIME),
        ({"training_seconds": -1.0}, _NO_TIME),
        ({"metrics": [common_pb2.Metric(name="auc")]}, "metric auc has neither a value nor the reason why it has none"),
    ],
)
async def test_manifest_with_a_header_that_breaks_a_rule_is_refused_and_leaves_nothing(
    tmp_path: Path, said: dict[str, Any], why: str
) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        running = await bench.open_round()
        upload_id = await bench.accept("a")
        messages = manifest_messages(upload_id, manifest_of(SCHEMA, WEIGHTS))
        messages[0].header.MergeFrom(transfer_pb2.UpdateHeader(**said))

        async def sent() -> AsyncIterator[transfer_pb2.PutManifestRequest]:
            for message in messages:
                yield message

        with pytest.raises(Refused, match=f"INVALID_ARGUMENT: {why}"):
            await TransferServicer(bench.federation, bench.desk).PutManifest(sent(), Call())
        assert bench.state.database.query("SELECT * FROM uploads") == []
        running.cancel()


@pytest.mark.parametrize("declared", [len(SCHEMA), limits.MAX_TENSORS, 1])
async def test_no_more_of_a_manifest_is_gathered_than_the_model_or_the_manifest_has(
    tmp_path: Path, declared: int
) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        running = await bench.open_round()
        header, part = manifest_messages(await bench.accept("a"), manifest_of(SCHEMA, WEIGHTS))
        header.header.num_tensors = declared
        taken = 0

        async def without_end() -> AsyncIterator[transfer_pb2.PutManifestRequest]:
            nonlocal taken
            yield header
            while taken < 100:
                taken += 1
                yield part

        with pytest.raises(Refused, match="INVALID_ARGUMENT"):
            await TransferServicer(bench.federation, bench.desk).PutManifest(without_end(), Call())
        assert taken == (2 if declared >= len(SCHEMA) else 1)
        running.cancel()


async def test_manifest_is_that_of_the_model_that_is_asked_for(tmp_path: Path) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        await bench.play(1)
        servicer = TransferServicer(bench.federation, bench.desk)
        models = [bench.state.models.of_version(version) for version in (0, 1)]
        for model in [*models, models[1], models[0]]:
            call = Call()
            await servicer.GetManifest(transfer_pb2.GetManifestRequest(model_sha256=model.digest.sha256), call)
            answer = call.answers.get_nowait()
            assert (answer.num_tensors, call.answers.empty()) == (len(SCHEMA), True)
            assert Manifest(tuple(wire.read_part(answer.part))) == model.manifest
    assert models[0].manifest != models[1].manifest


class NotTaken(Call):
    """A call whose client reads nothing."""

    async def write(self, _message: Message | bytes) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize("call", ["GetManifest", "ReadChunks"])
async def test_site_may_ask_for_a_few_downloads_at_once_and_those_it_does_not_take_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    async with Bench.running(tmp_path, "a") as bench:
        servicer, sha256 = TransferServicer(bench.federation, bench.desk), bench.federation.model.digest.sha256
        requests = {
            "GetManifest": transfer_pb2.GetManifestRequest(model_sha256=sha256),
            "ReadChunks": transfer_pb2.ReadChunksRequest(model_sha256=sha256),
        }

        async def asks(context: Call, name: str = call) -> None:
            CALLER.set(Caller("greedy", b"", name, "", SimpleNamespace()))  # type: ignore[arg-type]
            await asyncio.wait_for(getattr(servicer, name)(requests[name], context), 10.0)

        asked = [asyncio.create_task(asks(NotTaken())) for _ in range(downloads.MOST_AT_ONCE - 1)]
        await asyncio.sleep(0.05)
        await asyncio.create_task(asks(Call()))
        monkeypatch.setattr(transfer, "STANDSTILL_SECONDS", 0.1)
        with pytest.raises(Refused, match="UNAVAILABLE: what was sent was not taken for too long"):
            await asyncio.create_task(asks(NotTaken()))
        for name in requests:  # the one that stood still goes on counting
            with pytest.raises(Refused, match="RESOURCE_EXHAUSTED: this site has 8 downloads"):
                await asyncio.create_task(asks(Call(), name))
        for one in asked:
            one.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
