"""Uploads to a server over a real socket: resumed after every cut, within the window, by the rules for each error."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedclient.chunk_size import LEAST_CHUNK_BYTES
from fedclient.requests import Parcel
from fedclient.upload import Delivery, Terms, UpdateUnwanted, Upload
from fedstream import limits
from fedstream.errors import (
    ChecksumMismatch,
    DigestMismatch,
    InvalidManifest,
    LimitExceeded,
    ManifestConflict,
    ManifestRequired,
    ProtocolError,
    RoundClosed,
    Superseded,
    UnknownUpload,
    WrongOffset,
)
from fedstream.files import RealFileSystem, write_durably
from fedstream.manifest import manifest_of
from fedstream.weights_file import WeightsFile, file_parts
from tests.support.scripted import QUICK, Arrived, Scripted, scripted

pytestmark = pytest.mark.numpy_task

CHUNK, WINDOW = 1000, 3500


def make_parcel(server: Scripted, folder: Path) -> Parcel:
    """An update that changed everything but one tensor."""
    rng = np.random.default_rng(3)
    weights = {spec.name: rng.standard_normal(spec.shape).astype(np.float32) for spec in server.schema}
    kept = "further_00000"
    index = [spec.name for spec in server.schema].index(kept)
    weights[kept] = np.frombuffer(server.model.values[index], np.float32)
    manifest = manifest_of(server.schema, weights)
    path = folder / "update.safetensors"
    write_durably(RealFileSystem(), path, file_parts(manifest, weights))
    file = WeightsFile(path)
    spans = {name: file.span(name) for name in file.names}
    return Parcel("upload-1", manifest, spans, num_examples=10, metrics={"loss": 0.5}, epochs=2, training_seconds=1.5)


def ignore(_done: int, _total: int) -> None:
    pass


async def send(
    server: Scripted, folder: Path, parcel: Parcel | None = None, on_bytes: Callable[[int, int], None] = ignore
) -> Delivery:
    connection = await server.connection(folder)
    parcel = parcel or make_parcel(server, folder)
    upload = Upload(connection, parcel, Terms(CHUNK, WINDOW), QUICK, on_bytes)
    try:
        return await upload.run()
    finally:
        await connection.close()


def expected_body(parcel: Parcel, missing: list[int]) -> bytes:
    values = WeightsFile(next(iter(parcel.spans.values())).path).weights()
    return b"".join(values[parcel.manifest.entries[index].name].tobytes() for index in missing)


def arrived(server: Scripted) -> Arrived:
    return server.transfer.uploads["upload-1"]


async def test_upload_whole_sends_missing_tensors_once_and_facts(tmp_path: Path) -> None:
    async with scripted() as server:
        parcel = make_parcel(server, tmp_path)
        delivery = await send(server, tmp_path, parcel)

        upload = arrived(server)
        assert delivery == Delivery("")
        assert [parcel.manifest.entries[index].name for index in upload.missing] == [
            "weights",
            "bias",
            "further_00001",
            "further_00002",
        ]
        assert bytes(upload.body) == expected_body(parcel, upload.missing)
        assert server.transfer.bytes_in == upload.size
        assert (upload.header.num_examples, upload.header.epochs, upload.header.training_seconds) == (10, 2, 1.5)
        assert [(metric.name, metric.value) for metric in upload.header.metrics] == [("loss", 0.5)]
        assert server.transfer.calls == ["PutManifest", "WriteChunks", "FinishUpload"]


@pytest.mark.parametrize("commit_bytes", [1, CHUNK, WINDOW - CHUNK + 1])
async def test_upload_never_has_more_in_flight_than_the_window(tmp_path: Path, commit_bytes: int) -> None:
    async with scripted() as server:
        server.transfer.commit_bytes = commit_bytes
        await send(server, tmp_path)

        assert arrived(server).finished
        assert CHUNK <= server.transfer.largest_flight <= WINDOW


async def test_upload_keeps_the_window_that_the_server_says_of_it_also_after_a_cut(tmp_path: Path) -> None:
    async with scripted() as server:
        window = WINDOW // 4
        server.transfer.window_bytes, server.transfer.commit_bytes = window, window // 2
        server.transfer.cuts = [window]
        await send(server, tmp_path)

        assert arrived(server).finished
        assert server.transfer.calls.count("GetUploadStatus") == 1
        assert window // 2 <= server.transfer.largest_flight <= window


async def test_upload_cut_at_every_chunk_resumes_and_sends_at_most_a_window_twice(tmp_path: Path) -> None:
    async with scripted() as server:
        cuts = 30
        server.transfer.cuts = [CHUNK] * cuts
        server.transfer.commit_bytes = 10**9
        parcel = make_parcel(server, tmp_path)
        told: list[int] = []
        delivery = await send(server, tmp_path, parcel, lambda done, _total: told.append(done))

        upload = arrived(server)
        assert delivery == Delivery("")
        assert sum(before == after for before, after in pairwise(told)) >= cuts  # each try begins with what was there
        assert bytes(upload.body) == expected_body(parcel, upload.missing)
        assert server.transfer.bytes_in <= upload.size + cuts * WINDOW
        assert server.transfer.calls.count("PutManifest") == 1
        assert server.transfer.calls.count("GetUploadStatus") == cuts


@pytest.mark.parametrize(
    ("cut", "most_bytes"), [(0, LEAST_CHUNK_BYTES), (2 * CHUNK, limits.MAX_CHUNK_BYTES)], ids=["at once", "later"]
)
async def test_upload_cut_before_a_chunk_got_through_takes_smaller_ones(
    tmp_path: Path, cut: int, most_bytes: int
) -> None:
    async with scripted() as server:
        server.transfer.cuts = [cut]
        connection, parcel = await server.connection(tmp_path), make_parcel(server, tmp_path)
        await Upload(connection, parcel, Terms(CHUNK, WINDOW), QUICK, ignore).run()
        await connection.close()

        assert arrived(server).finished
        assert connection.chunk_size.most_bytes == most_bytes


async def test_upload_that_the_server_has_forgotten_at_a_cut_begins_with_its_manifest_again(tmp_path: Path) -> None:
    async with scripted() as server:
        server.transfer.cuts = [2 * CHUNK]

        begin = server.transfer._begin

        async def forget_first(name: str, context: Any) -> None:
            if name == "GetUploadStatus":
                server.transfer.uploads.clear()
            await begin(name, context)

        server.transfer._begin = forget_first
        delivery = await send(server, tmp_path)

        assert delivery == Delivery("")
        assert arrived(server).finished
        begun = ["PutManifest", "WriteChunks"]
        assert server.transfer.calls == [*begun, "GetUploadStatus", *begun, "FinishUpload"]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("WriteChunks", WrongOffset("resume", committed_size=0)),
        ("WriteChunks", ChecksumMismatch("again", write_offset=0)),
        ("WriteChunks", ManifestRequired("manifest first")),
        ("WriteChunks", Superseded("another stream")),
        ("FinishUpload", DigestMismatch("again from 0", tensor="bias")),
        ("FinishUpload", ManifestRequired("manifest first")),
    ],
    ids=lambda value: value if isinstance(value, str) else value.reason,
)
async def test_upload_refused_with_a_way_out_takes_it_and_arrives(
    tmp_path: Path, call: str, error: ProtocolError
) -> None:
    async with scripted() as server:
        server.transfer.refusals[call] = [error]
        parcel = make_parcel(server, tmp_path)
        delivery = await send(server, tmp_path, parcel)

        assert delivery == Delivery("")
        assert arrived(server).finished
        assert bytes(arrived(server).body) == expected_body(parcel, arrived(server).missing)


async def test_upload_at_a_limit_comes_back_when_it_was_told_to(tmp_path: Path) -> None:
    async with scripted() as server:
        server.transfer.refusals["PutManifest"] = [LimitExceeded("later", retry_after=timedelta(seconds=0.05))]

        assert await send(server, tmp_path) == Delivery("")
        assert server.transfer.calls.count("PutManifest") == 2


@pytest.mark.parametrize("call", ["PutManifest", "WriteChunks", "FinishUpload"])
@pytest.mark.parametrize("error", [RoundClosed("over", round=1), UnknownUpload("wait")], ids=lambda error: error.reason)
async def test_upload_for_a_closed_round_is_dropped(tmp_path: Path, call: str, error: ProtocolError) -> None:
    async with scripted() as server:
        # gRPC may lose the status that ends a stream being written to; the status call then says the same.
        server.transfer.refusals = {call: [error], "GetUploadStatus": [error]}

        with pytest.raises(UpdateUnwanted, match=error.message):
            await send(server, tmp_path)
        assert server.transfer.calls.count(call) == 1


async def test_upload_in_conflict_with_another_manifest_is_not_tried_again(tmp_path: Path) -> None:
    async with scripted() as server:
        server.transfer.refusals["PutManifest"] = [ManifestConflict("another one")]

        with pytest.raises(ManifestConflict):
            await send(server, tmp_path)
        assert server.transfer.calls == ["PutManifest"]


async def test_upload_with_a_defect_is_not_tried_again(tmp_path: Path) -> None:
    async with scripted() as server:
        server.transfer.refusals["PutManifest"] = [InvalidManifest("a rule is broken")]

        with pytest.raises(InvalidManifest):
            await send(server, tmp_path)
        assert server.transfer.calls == ["PutManifest"]


async def test_upload_whose_digests_never_match_gives_up(tmp_path: Path) -> None:
    async with scripted() as server:
        server.transfer.refusals["FinishUpload"] = [DigestMismatch("no", tensor="bias")] * 10

        with pytest.raises(DigestMismatch):
            await send(server, tmp_path)
        assert server.transfer.calls.count("FinishUpload") == 4


async def test_upload_finished_before_a_cut_is_only_acknowledged_again(tmp_path: Path) -> None:
    async with scripted() as server:
        parcel = make_parcel(server, tmp_path)
        await send(server, tmp_path, parcel)
        before = server.transfer.bytes_in
        assert await send(server, tmp_path, parcel) == Delivery("")

        assert server.transfer.bytes_in == before
        assert server.transfer.calls[-2:] == ["PutManifest", "FinishUpload"]


async def test_upload_of_nothing_new_sends_no_body(tmp_path: Path) -> None:
    async with scripted() as server:
        weights = {
            spec.name: np.frombuffer(data, np.float32).reshape(spec.shape)
            for spec, data in zip(server.schema, server.model.values, strict=True)
        }
        path = tmp_path / "same.safetensors"
        write_durably(RealFileSystem(), path, file_parts(server.model.manifest, weights))
        file = WeightsFile(path)
        spans = {name: file.span(name) for name in file.names}
        parcel = Parcel("upload-1", server.model.manifest, spans, 5, {}, 1, 0.1)

        assert await send(server, tmp_path, parcel) == Delivery("")
        assert server.transfer.calls == ["PutManifest", "FinishUpload"]
