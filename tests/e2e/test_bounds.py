"""Peers of whom nothing is known: too many connections, too many streams, too much metadata, and silence at each step.

Each is refused or ended within its bound, and a site that behaves takes part all the while.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedserver import server as module
from fedserver.server import Listening, Server
from fedserver.services import transfer
from fedserver.services.downloads import MOST_AT_ONCE
from fedstream import limits, wire
from fedstream.errors import DigestMismatch, InvalidRequest, LimitExceeded, ProtocolError
from fedstream.manifest import manifest_of
from fedstream.status import from_rpc_error
from fedstream.tls import CHANNEL_OPTIONS, channel_credentials, fetch_certificate, split_address
from fedstream.v1 import common_pb2, enrolment_pb2, negotiation_pb2, transfer_pb2
from tests.support.joining import joined
from tests.support.processes import soon
from tests.support.serving import BareSite, body_of, chunk_messages, cut, manifest_messages, serving
from tests.support.tasks import random_weights

pytestmark = [pytest.mark.e2e, pytest.mark.numpy_task]

SOON_SECONDS = 20.0
"""For what is bounded by a second or less in these tests."""


@asynccontextmanager
async def a_round(folder: Path, **settings: Any) -> AsyncIterator[tuple[Server, Listening, BareSite, str]]:
    """A site at work on its update, which gets in at the end of the block whatever others did meanwhile."""
    settings = {"min_clients": 1, "rounds": 1, "seed": 1, **settings}
    async with serving(folder, **settings) as (server, listening), BareSite.dial(listening) as site:
        await site.join("alpha", server)
        upload_id = (await site.agree()).upload_id
        yield server, listening, site, upload_id
        if (await site.status(upload_id)).state == transfer_pb2.UPLOAD_STATE_ADMITTED:
            return
        finished = await site.upload(upload_id, server.federation.schema, random_weights(server.federation.schema, 1))
        assert finished.state == transfer_pb2.UPLOAD_STATE_ADMITTED


async def connect(listening: Listening) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A bare TCP connection."""
    return await asyncio.open_connection(*split_address(listening.address))


async def closed_by_server(reader: asyncio.StreamReader) -> bytes:
    """What came before the server closed the connection."""
    with contextlib.suppress(ConnectionResetError):
        return await asyncio.wait_for(reader.read(), SOON_SECONDS)
    return b""


def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


async def refused_in_time(call: Any, limit: str = "message_timeout_seconds", seconds: float = 0.5) -> None:
    """A stream on which nothing more is said is ended with the documented error and a time to come back."""
    with pytest.raises(grpc.RpcError) as caught:
        await asyncio.wait_for(call, SOON_SECONDS)
    error = from_rpc_error(caught.value)
    assert isinstance(error, LimitExceeded), error
    assert error.metadata["limit"] == limit
    assert error.retry_after.total_seconds() == seconds


async def test_connection_that_never_begins_tls_is_closed(tmp_path: Path) -> None:
    async with a_round(tmp_path, handshake_timeout_seconds=0.5) as (_, listening, _, _):
        reader, writer = await connect(listening)
        assert await closed_by_server(reader) == b""
        writer.close()


async def test_connection_that_sends_a_byte_at_a_time_is_closed(tmp_path: Path) -> None:
    async with a_round(tmp_path, handshake_timeout_seconds=0.5) as (_, listening, _, _):
        reader, writer = await connect(listening)
        closed = asyncio.create_task(closed_by_server(reader))
        for byte in b"\x16\x03\x01\x02\x00" * 100:
            if closed.done():
                break
            with contextlib.suppress(ConnectionError):
                writer.write(bytes([byte]))
                await writer.drain()
            await asyncio.sleep(0.1)
        assert await closed == b""
        writer.close()


async def test_connection_that_begins_tls_and_then_says_nothing_is_closed(tmp_path: Path) -> None:
    async with a_round(tmp_path, handshake_timeout_seconds=0.5) as (_, listening, _, _):
        host, port = split_address(listening.address)
        reader, writer = await asyncio.open_connection(host, port, ssl=trusting(), server_hostname="x")
        await closed_by_server(reader)  # after the server's own first frames
        writer.close()


async def test_connections_beyond_the_bound_are_closed_and_those_within_it_stay(tmp_path: Path) -> None:
    async with a_round(tmp_path, max_connections=4) as (_, listening, _, _):
        within = [await connect(listening) for _ in range(3)]
        reader, writer = await connect(listening)
        assert await closed_by_server(reader) == b""
        for _, other in (*within, (reader, writer)):
            other.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await other.wait_closed()


async def test_streams_beyond_the_bound_wait_until_one_ends(tmp_path: Path) -> None:
    async with (
        a_round(tmp_path, max_streams_per_connection=3) as (_, listening, _, _),
        BareSite.dial(listening) as greedy,
    ):
        silent = [greedy.negotiation.Negotiate() for _ in range(3)]
        await asyncio.sleep(0.5)
        request = negotiation_pb2.DescribeTaskRequest()
        with pytest.raises(grpc.RpcError) as caught:
            await greedy.negotiation.DescribeTask(request, timeout=1.0)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        silent[0].cancel()
        assert (await greedy.negotiation.DescribeTask(request, timeout=SOON_SECONDS)).task_name == "linear"


async def test_metadata_beyond_the_bound_is_refused(tmp_path: Path) -> None:
    async with a_round(tmp_path) as (_, listening, _, _), BareSite.dial(listening) as site:
        metadata = (("x", "y" * limits.MAX_METADATA_BYTES),)
        with pytest.raises(grpc.RpcError) as caught:
            await site.negotiation.DescribeTask(negotiation_pb2.DescribeTaskRequest(), metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_message_beyond_grpcs_own_bound_is_refused(tmp_path: Path) -> None:
    async with a_round(tmp_path) as (_, listening, _, _), BareSite.dial(listening) as site:
        with pytest.raises(grpc.RpcError) as caught:
            await site.finish("u" * (4 << 20))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_stream_on_which_nothing_comes_is_ended(tmp_path: Path) -> None:
    async with a_round(tmp_path, message_timeout_seconds=0.5) as (server, _, site, upload_id):
        await refused_in_time(site.negotiation.Negotiate().read())
        await refused_in_time(site.transfer.WriteChunks().read())
        await refused_in_time(site.transfer.PutManifest(never()))
        weights = random_weights(server.federation.schema, 1)
        header, *_ = manifest_messages(upload_id, manifest_of(server.federation.schema, weights))
        await refused_in_time(site.transfer.PutManifest(and_then_never(header)))


async def test_update_that_comes_again_and_again_is_refused_beyond_the_bound(tmp_path: Path) -> None:
    async with a_round(tmp_path, max_resent_bytes=500) as (server, _, site, upload_id):
        schema = server.federation.schema
        weights = random_weights(schema, 1)
        manifest = manifest_of(schema, weights)
        missing = (await site.put_manifest(upload_id, manifest)).missing_tensors
        chunks = list(cut(body_of(manifest, weights, missing), 1 << 20))
        assert await site.write(upload_id, chunks) > 0
        with pytest.raises(grpc.RpcError) as caught:
            await site.write(upload_id, chunks * 10)
        error = from_rpc_error(caught.value)
        assert isinstance(error, LimitExceeded)
        assert error.metadata["limit"] == "max_resent_bytes"
        assert (await site.finish(upload_id)).state == transfer_pb2.UPLOAD_STATE_ADMITTED


async def test_update_whose_digests_never_match_is_refused_after_it_came_whole_three_times(tmp_path: Path) -> None:
    settings = {"min_clients": 1, "max_resent_bytes": 100_000, "task": "tests.support.tasks:Shapes"}
    settings |= {"task_settings": {"large_mib": "1"}}
    async with serving(tmp_path, **settings) as (server, listening), BareSite.dial(listening) as site:
        await site.join("alpha", server)
        upload_id = (await site.agree()).upload_id
        schema = server.federation.schema
        weights = random_weights(schema, 1)
        manifest = manifest_of(schema, weights)

        async def come_whole() -> ProtocolError:
            missing = (await site.put_manifest(upload_id, manifest)).missing_tensors
            body = bytearray(body_of(manifest, weights, missing))
            body[0] ^= 1
            try:
                await site.write(upload_id, cut(bytes(body), 1 << 20))
                await site.finish(upload_id)
            except grpc.RpcError as error:
                return from_rpc_error(error)
            raise AssertionError("an update that is not what its digests say was taken")

        assert [type(await come_whole()) for _ in range(4)] == [DigestMismatch] * 3 + [LimitExceeded]


async def asked_for_its_schema(server: Server, site: BareSite) -> Any:
    """A stream whose hello had another schema's digest."""
    call: Any = site.negotiation.Negotiate()
    hello = negotiation_pb2.Hello(
        protocol=common_pb2.ProtocolRange(min=1, max=1),
        client_name="alpha",
        schema_sha256=bytes(32),
        meaning=wire.write_meaning(server.federation.meaning),
        num_examples=1,
    )
    await call.write(negotiation_pb2.NegotiateRequest(hello=hello))
    while (await call.read()).WhichOneof("kind") != "schema_query":
        pass
    return call


async def test_schema_that_does_not_come_to_its_end_is_ended(tmp_path: Path) -> None:
    async with a_round(tmp_path, message_timeout_seconds=0.5) as (server, _, site, _):
        await refused_in_time((await asked_for_its_schema(server, site)).read())


async def test_schema_of_empty_parts_is_refused(tmp_path: Path) -> None:
    async with a_round(tmp_path) as (server, _, site, _):
        call = await asked_for_its_schema(server, site)
        await call.write(negotiation_pb2.NegotiateRequest(schema_part=negotiation_pb2.SchemaPart()))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(call.read(), SOON_SECONDS)
        assert isinstance(from_rpc_error(caught.value), InvalidRequest)


async def test_offer_id_longer_than_any_is_refused_and_not_repeated_to_its_sender(tmp_path: Path) -> None:
    async with a_round(tmp_path, cohort_size=1) as (server, listening, _, _), BareSite.dial(listening) as other:
        await other.join("beta", server)
        await other.say(progress=negotiation_pb2.Progress(offer_id="x" * 65))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await other.hear()
        error = from_rpc_error(caught.value)
        assert isinstance(error, InvalidRequest)
        assert error.message == "an offer_id has at most 64 bytes"


GREEDY = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1_024))
"""A connection on which nothing comes that is not read."""


async def test_site_that_does_not_read_is_not_listened_to_without_end(tmp_path: Path) -> None:
    async with (
        a_round(tmp_path, cohort_size=1) as (server, listening, _, _),
        BareSite.dial(listening, options=GREEDY) as other,
    ):
        await other.join("beta", server)
        session = server.federation.sessions._open["beta"]
        unheard = negotiation_pb2.CounterOffer(offer_id="x" * 64, reason="r" * 1_000)
        with contextlib.suppress(TimeoutError):  # when what is sent is not taken any more
            while session.num_unsaid < 200:
                async with asyncio.timeout(2.0):
                    await other.say(counter_offer=unheard)
        assert 90 < session.num_unsaid < 110


LARGE = {"task": "tests.support.tasks:Shapes", "task_settings": {"large_mib": "12"}}


async def downloads(server: Server, site: BareSite, count: int) -> list[Any]:
    """So many downloads, of which nothing is read."""
    request = transfer_pb2.ReadChunksRequest(
        model_sha256=server.federation.model.digest.sha256, max_chunk_bytes=limits.MAX_CHUNK_BYTES
    )
    calls = [site.transfer.ReadChunks(request) for _ in range(count)]
    await asyncio.sleep(1.0)
    return calls


async def test_site_that_asks_for_downloads_and_reads_none_gets_a_few(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with (
        a_round(tmp_path, **LARGE) as (server, listening, _, _),
        BareSite.dial(listening, "greedy", GREEDY) as greedy,
    ):
        calls = await downloads(server, greedy, MOST_AT_ONCE)
        [one_more] = await downloads(server, greedy, 1)
        await refused_in_time(one_more.read(), "downloads_of_one_site", 10.0)
        calls[0].cancel()
        await asyncio.sleep(0.5)
        [another] = await downloads(server, greedy, 1)
        assert (await asyncio.wait_for(another.read(), SOON_SECONDS)).chunk.data
    assert "call failed" not in capsys.readouterr().out  # whoever hangs up is no defect of the server


async def test_downloads_that_nobody_takes_are_ended_and_go_on_counting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transfer, "STANDSTILL_SECONDS", 0.5)
    async with (
        a_round(tmp_path, **LARGE) as (server, listening, _, _),
        BareSite.dial(listening, "greedy", GREEDY) as greedy,
    ):
        await downloads(server, greedy, MOST_AT_ONCE)
        said: list[str] = []

        def num_ended() -> int:
            said.append(capsys.readouterr().out)
            return "".join(said).count("a download was not taken")

        await soon("all of them to be ended", lambda: num_ended() == MOST_AT_ONCE)
        # gRPC keeps what was written for each until it is read, though the server has ended it.
        [one_more] = await downloads(server, greedy, 1)
        await refused_in_time(one_more.read(), "downloads_of_one_site", 10.0)


async def test_calls_to_enrol_that_never_come_to_their_request_keep_nobody_out_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ages = {"grpc.max_connection_age_ms": 1_000, "grpc.max_connection_age_grace_ms": 500}
    shorter = tuple((name, ages.get(name, value)) for name, value in module.ENROLMENT_OPTIONS)
    assert set(ages) <= dict(shorter).keys()
    monkeypatch.setattr(module, "ENROLMENT_OPTIONS", shorter)
    async with a_round(tmp_path) as (_, listening, _, _):
        assert listening.enrolment_address is not None
        certificate = await asyncio.to_thread(fetch_certificate, listening.enrolment_address, listening.fingerprint)
        credentials = channel_credentials(certificate)
        service = enrolment_pb2.DESCRIPTOR.services_by_name["EnrolmentService"].full_name
        async with AsyncExitStack() as connections:
            silent = []
            for _ in range(4):
                options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
                channel = grpc.aio.secure_channel(listening.enrolment_address, credentials, options=options)
                await connections.enter_async_context(channel)
                silent += [channel.stream_unary(f"/{service}/Enrol")() for _ in range(16)]
            waiting = [asyncio.create_task(call.wait_for_connection()) for call in silent]
            await _until_refused(connections, listening, credentials, service)
            site = await asyncio.wait_for(
                joined(listening.admin_address, listening.enrolment_address, "gamma"), SOON_SECONDS
            )
            assert site.membership() is not None
            for one in (*silent, *waiting):
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


async def _until_refused(
    connections: AsyncExitStack, listening: Listening, credentials: grpc.ChannelCredentials, service: str
) -> None:
    """Return when nobody else can enrol."""
    assert listening.enrolment_address is not None
    options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
    channel = grpc.aio.secure_channel(listening.enrolment_address, credentials, options=options)
    await connections.enter_async_context(channel)
    while True:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(f"/{service}/Enrol")(b"", timeout=SOON_SECONDS)
        if caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return
        await asyncio.sleep(0.01)


_HEADERS, _SETTINGS = 1, 4


def frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    """A frame of HTTP/2."""
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content


def call_without_room(path: str, message: bytes = b"", *, goes_on: bool = False) -> bytes:
    """What begins a connection over which no byte of an answer may come, only its head and its status, and a call."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x", "te": "trailers"}
    fields |= {"content-type": "application/grpc"}
    head = b"".join(b"\0" + b"".join(bytes([len(part)]) + part.encode() for part in field) for field in fields.items())
    no_window = (4).to_bytes(2, "big") + bytes(4)
    begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(_SETTINGS, 0, 0, no_window) + frame(_HEADERS, 4, 1, head)
    return begin + frame(0, not goes_on, 1, b"\0" + len(message).to_bytes(4, "big") + message)


def room() -> bytes:
    """What gives the answers room after all."""
    return frame(_SETTINGS, 0, 0, (4).to_bytes(2, "big") + (1 << 16).to_bytes(4, "big"))


async def head_of_answer(reader: asyncio.StreamReader) -> bool:
    """Wait for the next head that comes over such a connection; whether it is the answer's end, with its status."""
    kind, flags = -1, 0
    while kind != _HEADERS:
        start = await reader.readexactly(9)
        kind, flags = start[3], start[4]
        await reader.readexactly(int.from_bytes(start[:3], "big"))
    return bool(flags & 1)


async def watch_the_health_without_room(port: int) -> asyncio.StreamWriter:
    """Ask for every change of a server's health, and take nothing of what it is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(call_without_room("/grpc.health.v1.Health/Watch"))
    assert not await head_of_answer(reader)  # what follows has no room
    return writer


async def test_peer_that_watches_the_health_and_takes_no_answer_keeps_a_server_neither_from_starting_nor_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports, bound, start_ports, peers = [], module._bound, Server._start_ports, []

    def noted(listen: str, bind: Callable[[], int]) -> int:
        ports.append(bound(listen, bind))
        return ports[-1]

    async def start_watched(server: Server) -> None:
        await start_ports(server)
        peers.append(await watch_the_health_without_room(ports[0]))

    monkeypatch.setattr(module, "_bound", noted)
    monkeypatch.setattr(Server, "_start_ports", start_watched)
    monkeypatch.setattr(module, "_LEAVE_SECONDS", 0.1)
    async with asyncio.timeout(2 * SOON_SECONDS), serving(tmp_path, plaintext=True):
        pass
    peers[0].close()


async def test_download_whose_beginning_is_taken_too_late_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transfer, "STANDSTILL_SECONDS", 0.5)
    async with a_round(tmp_path, plaintext=True) as (server, listening, _, _):
        request = transfer_pb2.ReadChunksRequest(model_sha256=server.federation.model.digest.sha256)
        reader, writer = await connect(listening)
        writer.write(call_without_room("/fedstream.v1.TransferService/ReadChunks", request.SerializeToString()))
        assert not await head_of_answer(reader)
        await soon("the end of the download", lambda: "a download was not taken" in capsys.readouterr().out)
        writer.write(room())
        assert await asyncio.wait_for(head_of_answer(reader), SOON_SECONDS)
        writer.close()


async def test_stream_of_an_upload_that_hears_its_first_answer_late_has_ended_by_a_newer_one(tmp_path: Path) -> None:
    async with a_round(tmp_path, plaintext=True) as (server, listening, site, upload_id):
        schema = server.federation.schema
        weights = random_weights(schema, 1)
        manifest = manifest_of(schema, weights)
        missing = (await site.put_manifest(upload_id, manifest)).missing_tensors
        chunks = list(cut(body_of(manifest, weights, missing), 1 << 20))
        (request,) = chunk_messages(upload_id, chunks)
        reader, writer = await connect(listening)
        path, message = "/fedstream.v1.TransferService/WriteChunks", request.SerializeToString()
        writer.write(call_without_room(path, message, goes_on=True))
        await soon("the first answer", lambda: server.federation.traffic.received > 0)
        assert not await head_of_answer(reader)
        await site.write(upload_id, chunks)
        writer.write(room())
        assert await asyncio.wait_for(head_of_answer(reader), SOON_SECONDS)
        writer.close()


async def never() -> AsyncIterator[Any]:
    await asyncio.Event().wait()
    yield None


async def and_then_never(message: Any) -> AsyncIterator[Any]:
    yield message
    await asyncio.Event().wait()
