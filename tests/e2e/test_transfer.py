"""Uploads and downloads against a real server: bit for bit, in every chunk size, and every way to be wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fedserver.server import Listening, Server
from fedstream import limits
from fedstream.body import Chunk, make_chunk
from fedstream.dtypes import DataType
from fedstream.errors import ProtocolError, TransportError
from fedstream.manifest import Digest, Manifest, manifest_of
from fedstream.schema import ModelSchema
from fedstream.status import from_rpc_error
from fedstream.v1 import admin_pb2, common_pb2, negotiation_pb2_grpc, transfer_pb2
from tests.support.serving import BareSite, administration, body_of, cut, manifest_messages, serving
from tests.support.tasks import random_weights

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task]

SHAPES = "tests.support.tasks:Shapes"


@asynccontextmanager
async def a_round(folder: Path, **settings: Any) -> AsyncIterator[tuple[Server, Listening, BareSite, str]]:
    """A server with an open round and one site that has agreed to it; gives the site's upload id too."""
    settings = {"task": SHAPES, "min_clients": 1, "rounds": 3, **settings}
    async with serving(folder, **settings) as (server, listening), BareSite.dial(listening) as site:
        await site.join("alpha", server)
        offer = await site.agree()
        yield server, listening, site, offer.upload_id


def trained(server: Server, seed: int = 1) -> tuple[ModelSchema, dict[str, np.ndarray]]:
    schema = server.federation.schema
    return schema, random_weights(schema, seed)


async def refusal(awaitable: Any) -> ProtocolError:
    """The protocol's error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    error = from_rpc_error(caught.value)
    assert isinstance(error, ProtocolError), error
    return error


async def assert_serves_on(server: Server, site: BareSite, upload_id: str) -> None:
    """The same site can still bring its update in, and the round succeeds."""
    schema, weights = trained(server)
    assert (await site.upload(upload_id, schema, weights)).state == transfer_pb2.UPLOAD_STATE_ADMITTED
    outcome = (await site.hear()).round_outcome
    assert (outcome.succeeded, outcome.reason) == (True, "reporting goal of 1 reached")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("chunk_bytes", [64 << 10, 1 << 20, limits.MAX_CHUNK_BYTES])
async def test_model_with_a_large_a_scalar_and_an_empty_tensor_comes_back_bit_for_bit(
    tmp_path: Path, chunk_bytes: int
) -> None:
    async with a_round(tmp_path, task_settings={"large_mib": "65"}) as (server, _, site, upload_id):
        schema, weights = trained(server)
        finished = await site.upload(upload_id, schema, weights, chunk_bytes=chunk_bytes)
        assert finished.state == transfer_pb2.UPLOAD_STATE_ADMITTED
        model = (await site.hear()).round_outcome.global_model
        body = await site.download(model.model_digest.sha256, chunk_bytes)
        expected = dict(weights)
        expected["flags"] = server.federation.state.models.of_version(0).weights()["flags"]  # never averaged
        manifest = manifest_of(schema, expected)
        assert body == body_of(manifest, expected, range(len(manifest)))
        assert model.model_digest.sha256 == manifest.model_digest().sha256


async def test_small_model_comes_back_bit_for_bit_at_every_chunk_size_from_one_byte(tmp_path: Path) -> None:
    async with a_round(tmp_path, rounds=10_000) as (server, _, site, first_id):
        upload_id = first_id
        for number, chunk_bytes in enumerate([*range(1, 24), 31, 64, 127, 500, 1024]):
            schema, weights = trained(server, seed=number + 10)
            assert (await site.upload(upload_id, schema, weights, chunk_bytes=chunk_bytes)).state
            model = (await site.hear()).round_outcome.global_model
            expected = {**weights, "flags": server.federation.state.models.of_version(0).weights()["flags"]}
            manifest = manifest_of(schema, expected)
            body = await site.download(model.model_digest.sha256, chunk_bytes)
            assert body == body_of(manifest, expected, range(len(manifest)))
            upload_id = (await site.agree()).upload_id


@pytest.mark.parametrize(
    ("asked_for", "comes"),
    [
        (0, limits.DEFAULT_CHUNK_BYTES),
        (limits.MAX_CHUNK_BYTES, limits.MAX_CHUNK_BYTES),
        (limits.MAX_CHUNK_BYTES + 1, limits.MAX_CHUNK_BYTES),
        (2**32 - 1, limits.MAX_CHUNK_BYTES),
    ],
)
async def test_chunks_of_a_download_fit_a_message_however_large_they_may_be(
    tmp_path: Path, asked_for: int, comes: int
) -> None:
    async with a_round(tmp_path, task_settings={"large_mib": "9"}) as (server, _, site, _):
        sha256, body_bytes = server.federation.model.digest.sha256, server.federation.schema.size_bytes
        request = transfer_pb2.ReadChunksRequest(model_sha256=sha256, max_chunk_bytes=asked_for)
        sizes = [len(answer.chunk.data) async for answer in site.transfer.ReadChunks(request)]
        assert sizes == [comes] * (body_bytes // comes) + [body_bytes % comes]


async def test_download_resumes_at_every_offset(tmp_path: Path) -> None:
    async with a_round(tmp_path) as (server, _, site, _):
        model = server.federation.model
        whole = await site.download(model.digest.sha256)
        for offset in (0, 1, 7, len(whole) // 2, len(whole) - 1, len(whole)):
            assert await site.download(model.digest.sha256, offset=offset) == whole[offset:]
        error = await refusal(site.download(model.digest.sha256, offset=len(whole) + 1))
        assert (error.reason, error.metadata["committed_size"]) == ("WRONG_OFFSET", str(len(whole)))


async def test_reason_why_a_metric_of_an_update_has_no_value_reaches_the_operator(tmp_path: Path) -> None:
    async with a_round(tmp_path) as (server, listening, site, upload_id):
        schema, weights = trained(server)
        messages = manifest_messages(upload_id, manifest_of(schema, weights))
        messages[0].header.metrics.add(name="auc", undefined_reason="only one class")
        await site.transfer.PutManifest(iter(messages))
        await assert_serves_on(server, site, upload_id)
        channel, admin = administration(listening)
        async with channel:
            found = await admin.GetRound(admin_pb2.GetRoundRequest(number=1))
        (metric,) = found.participations[0].metrics
        assert (metric.name, metric.undefined_reason) == ("auc", "only one class")


async def test_update_equal_to_the_base_needs_no_body(tmp_path: Path) -> None:
    async with a_round(tmp_path) as (server, _, site, upload_id):
        schema, base = trained(server)[0], server.federation.model.weights()
        response = await site.put_manifest(upload_id, manifest_of(schema, base))
        assert (list(response.missing_tensors), response.body_size_bytes) == ([], 0)
        assert (await site.finish(upload_id)).state == transfer_pb2.UPLOAD_STATE_ADMITTED
        outcome = (await site.hear()).round_outcome
        assert outcome.global_model.model_digest.sha256 == server.federation.model.digest.sha256


async def test_upload_cut_in_the_middle_resumes_at_the_committed_size(tmp_path: Path) -> None:
    async with a_round(tmp_path) as (server, _, site, upload_id):
        schema, weights = trained(server)
        manifest = manifest_of(schema, weights)
        missing = (await site.put_manifest(upload_id, manifest)).missing_tensors
        body = body_of(manifest, weights, missing)
        assert await site.write(upload_id, cut(body[:501], 100)) == 501
        assert (await site.status(upload_id)).committed_size == 501
        again = await site.put_manifest(upload_id, manifest)
        assert (again.missing_tensors, again.committed_size) == (missing, 501)
        assert await site.write(upload_id, cut(body, 100, start=400)) == len(body)  # overlaps what is committed
        assert (await site.finish(upload_id)).state == transfer_pb2.UPLOAD_STATE_ADMITTED
        assert (await site.finish(upload_id)).state == transfer_pb2.UPLOAD_STATE_ADMITTED  # the same again
        assert (await site.status(upload_id)).state == transfer_pb2.UPLOAD_STATE_ADMITTED


async def test_newer_stream_of_an_upload_takes_over_and_the_older_is_aborted(tmp_path: Path) -> None:
    async with a_round(tmp_path) as (server, listening, site, upload_id):
        schema, weights = trained(server)
        manifest = manifest_of(schema, weights)
        missing = (await site.put_manifest(upload_id, manifest)).missing_tensors
        body = body_of(manifest, weights, missing)
        older = site.transfer.WriteChunks()
        message = transfer_pb2.WriteChunksRequest(upload_id=upload_id)
        message.chunk.write_offset, message.chunk.crc32c = 0, make_chunk(0, b"").crc32c
        await older.write(message)
        await asyncio.sleep(0.1)
        async with BareSite.dial(listening, site.name) as newer:
            assert await newer.write(upload_id, cut(body, 300)) == len(body)
        assert (await refusal(older.read())).reason == "SUPERSEDED"
        assert (await site.finish(upload_id)).state == transfer_pb2.UPLOAD_STATE_ADMITTED


def spoiled(chunk: Chunk, **fields: Any) -> Chunk:
    return replace(chunk, **fields)


@pytest.mark.parametrize(
    ("reason", "code", "spoil"),
    [
        ("WRONG_OFFSET", grpc.StatusCode.OUT_OF_RANGE, lambda chunk: spoiled(chunk, write_offset=5)),
        ("CHECKSUM_MISMATCH", grpc.StatusCode.DATA_LOSS, lambda chunk: spoiled(chunk, crc32c=chunk.crc32c ^ 1)),
        (
            "CHECKSUM_MISMATCH",
            grpc.StatusCode.DATA_LOSS,
            lambda chunk: spoiled(chunk, data=bytes([chunk.data[0] ^ 1]) + chunk.data[1:]),
        ),
        ("BODY_TOO_LONG", grpc.StatusCode.OUT_OF_RANGE, lambda chunk: make_chunk(0, chunk.data + b"x")),
        (
            "CHUNK_TOO_LARGE",
            grpc.StatusCode.INVALID_ARGUMENT,
            lambda _: make_chunk(0, bytes(limits.MAX_CHUNK_BYTES + 1)),
        ),
    ],
)
async def test_malformed_chunk_gets_its_documented_error_and_the_server_serves_on(
    tmp_path: Path, reason: str, code: grpc.StatusCode, spoil: Any
) -> None:
    async with a_round(tmp_path) as (server, _, site, upload_id):
        schema, weights = trained(server)
        manifest = manifest_of(schema, weights)
        missing = (await site.put_manifest(upload_id, manifest)).missing_tensors
        body = body_of(manifest, weights, missing)
        error = await refusal(site.write(upload_id, [spoil(make_chunk(0, body))]))
        assert (error.reason, error.code) == (reason, code.name)
        await assert_serves_on(server, site, upload_id)


async def test_short_body_is_incomplete_and_can_be_completed(tmp_path: Path) -> None:
    async with a_round(tmp_path) as (server, _, site, upload_id):
        schema, weights = trained(server)
        manifest = manifest_of(schema, weights)
        missing = (await site.put_manifest(upload_id, manifest)).missing_tensors
        body = body_of(manifest, weights, missing)
        await site.write(upload_id, cut(body[:-1], 100))
        error = await refusal(site.finish(upload_id))
        facts = (error.reason, error.metadata["committed_size"], error.metadata["body_size"])
        assert facts == ("BODY_INCOMPLETE", str(len(body) - 1), str(len(body)))
        await assert_serves_on(server, site, upload_id)


async def test_wrong_digest_throws_the_body_away_and_the_upload_starts_again(tmp_path: Path) -> None:
    async with a_round(tmp_path) as (server, _, site, upload_id):
        schema, weights = trained(server)
        manifest = manifest_of(schema, weights)
        missing = (await site.put_manifest(upload_id, manifest)).missing_tensors
        body = bytearray(body_of(manifest, weights, missing))
        body[-1] ^= 1
        await site.write(upload_id, cut(bytes(body), 100))
        error = await refusal(site.finish(upload_id))
        assert (error.reason, error.metadata["tensor"]) == ("DIGEST_MISMATCH", "large")
        assert (await site.status(upload_id)).state == transfer_pb2.UPLOAD_STATE_AWAITING_MANIFEST
        await assert_serves_on(server, site, upload_id)


def renamed(manifest: Manifest) -> Manifest:
    return Manifest((replace(manifest.entries[0], name="other"), *manifest.entries[1:]))


def retyped(manifest: Manifest) -> Manifest:
    return Manifest((replace(manifest.entries[0], dtype=DataType.INT32), *manifest.entries[1:]))


def oversized(manifest: Manifest) -> Manifest:
    entry = manifest.entries[0]
    return Manifest((replace(entry, digest=Digest(entry.digest.sha256, 10 << 30)), *manifest.entries[1:]))


def climbing(manifest: Manifest) -> Manifest:
    return Manifest((replace(manifest.entries[0], name="../\0"), *manifest.entries[1:]))


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("SCHEMA_MISMATCH", renamed),
        ("SCHEMA_MISMATCH", retyped),
        ("SCHEMA_MISMATCH", lambda manifest: Manifest(manifest.entries[1:])),
        ("SCHEMA_MISMATCH", lambda manifest: Manifest(manifest.entries[::-1])),
        ("INVALID_MANIFEST", lambda manifest: Manifest((*manifest.entries, manifest.entries[0]))),
        ("INVALID_MANIFEST", oversized),
        ("INVALID_MANIFEST", climbing),
    ],
)
async def test_manifest_that_does_not_fit_gets_its_documented_error(tmp_path: Path, reason: str, change: Any) -> None:
    async with a_round(tmp_path) as (server, _, site, upload_id):
        schema, weights = trained(server)
        error = await refusal(site.put_manifest(upload_id, change(manifest_of(schema, weights))))
        assert error.reason == reason
        await assert_serves_on(server, site, upload_id)


async def test_manifest_messages_out_of_order_get_their_documented_errors(tmp_path: Path) -> None:
    async with a_round(tmp_path) as (server, _, site, upload_id):
        schema, weights = trained(server)
        header, *parts = manifest_messages(upload_id, manifest_of(schema, weights))
        too_few = transfer_pb2.PutManifestRequest()
        too_few.CopyFrom(header)
        too_few.header.num_tensors += 1
        unknown_encoding = transfer_pb2.PutManifestRequest()
        unknown_encoding.CopyFrom(parts[0])
        unknown_encoding.part.entries[0].encoding = common_pb2.ENCODING_UNSPECIFIED
        wrong_digest = transfer_pb2.PutManifestRequest()
        wrong_digest.CopyFrom(header)
        wrong_digest.header.model_digest.sha256 = bytes(32)
        for messages, reason in (
            (parts, "INVALID_REQUEST"),
            ([header, header, *parts], "INVALID_REQUEST"),
            ([header], "INVALID_MANIFEST"),
            ([too_few, *parts], "INVALID_MANIFEST"),
            ([header, unknown_encoding], "INVALID_MANIFEST"),
            ([wrong_digest, *parts], "INVALID_MANIFEST"),
        ):
            assert (await refusal(site.transfer.PutManifest(iter(messages)))).reason == reason
        await assert_serves_on(server, site, upload_id)


async def test_stream_that_ends_before_its_first_message_is_taken_for_one_that_broke(tmp_path: Path) -> None:
    async with a_round(tmp_path) as (server, _, site, upload_id):
        with pytest.raises(grpc.RpcError) as caught:
            await site.transfer.PutManifest(iter(()))
        assert isinstance(from_rpc_error(caught.value), TransportError)
        silent = negotiation_pb2_grpc.NegotiationServiceStub(site.channel).Negotiate()
        await silent.done_writing()
        with pytest.raises(grpc.RpcError) as caught:
            await silent.read()
        assert isinstance(from_rpc_error(caught.value), TransportError)
        await assert_serves_on(server, site, upload_id)


NO_MESSAGE = b"\x0a\xff"  # a field whose length is missing


async def test_bytes_that_are_no_message_are_an_invalid_request_and_no_news(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_round(tmp_path) as (server, _, site, upload_id):
        service = "/fedstream.v1.TransferService"
        calls = (
            site.channel.unary_unary(f"{service}/FinishUpload")(NO_MESSAGE),
            site.channel.unary_stream(f"{service}/ReadChunks")(NO_MESSAGE).read(),
            site.channel.stream_unary(f"{service}/PutManifest")(iter([NO_MESSAGE])),
            site.channel.stream_stream(f"{service}/WriteChunks")(iter([NO_MESSAGE])).read(),
            site.channel.stream_stream("/fedstream.v1.NegotiationService/Negotiate")(iter([NO_MESSAGE])).read(),
        )
        for call in calls:
            assert (await refusal(call)).reason == "INVALID_REQUEST"
        assert "Traceback" not in caplog.text
        await assert_serves_on(server, site, upload_id)


async def test_second_different_manifest_is_a_conflict(tmp_path: Path) -> None:
    async with a_round(tmp_path) as (server, _, site, upload_id):
        schema, weights = trained(server)
        await site.put_manifest(upload_id, manifest_of(schema, weights))
        error = await refusal(site.put_manifest(upload_id, manifest_of(schema, trained(server, seed=2)[1])))
        assert error.reason == "MANIFEST_CONFLICT"
        await assert_serves_on(server, site, upload_id)


async def test_calls_for_an_unknown_upload_or_model_are_not_found(tmp_path: Path) -> None:
    async with a_round(tmp_path) as (server, _, site, upload_id):
        schema, weights = trained(server)
        manifest = manifest_of(schema, weights)
        for call in (
            site.put_manifest("none", manifest),
            site.write("none", cut(b"abc", 1)),
            site.finish("none"),
            site.status("none"),
        ):
            assert (await refusal(call)).reason == "UNKNOWN_UPLOAD"
        assert (await refusal(site.download(bytes(32)))).reason == "UNKNOWN_MODEL"
        assert (await refusal(site.finish(upload_id))).reason == "MANIFEST_REQUIRED"
        assert (await refusal(site.write(upload_id, cut(b"abc", 1)))).reason == "MANIFEST_REQUIRED"
        await assert_serves_on(server, site, upload_id)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
async def test_update_that_is_not_finite_is_quarantined_and_the_server_serves_on(tmp_path: Path, poison: float) -> None:
    async with a_round(tmp_path) as (server, _, site, upload_id):
        schema, weights = trained(server)
        weights["large"] = weights["large"].copy()
        weights["large"][3] = poison
        finished = await site.upload(upload_id, schema, weights)
        assert finished.state == transfer_pb2.UPLOAD_STATE_QUARANTINED
        assert finished.reason.startswith("not_finite: ")
        assert "large" in finished.reason
        outcome = (await site.hear()).round_outcome
        assert (outcome.succeeded, outcome.outcome_reason) == (False, finished.reason)
        await assert_serves_on(server, site, (await site.agree()).upload_id)


async def test_upload_for_an_offer_that_expired_is_refused(tmp_path: Path) -> None:
    async with a_round(tmp_path, lease_seconds=0.3, retry_delay_seconds=0.0) as (server, _, site, upload_id):
        schema, weights = trained(server)
        await site.put_manifest(upload_id, manifest_of(schema, weights))
        assert (await site.hear()).WhichOneof("kind") == "cancel"
        error = await refusal(site.write(upload_id, cut(b"abc", 1)))
        assert error.reason in ("ROUND_CLOSED", "UNKNOWN_UPLOAD")
        outcome = (await site.hear("offer")).round_outcome
        assert (outcome.succeeded, outcome.reason) == (False, "0 of at least 1 updates: every client has answered")
