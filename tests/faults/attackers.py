"""Peers that mean harm: bytes that are no frames, messages that are not sound, connections that say nothing."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import zstandard
from google.protobuf.message import Message

from fedserver.server import Listening
from fedstream.tls import split_address
from fedstream.v1 import common_pb2, negotiation_pb2, transfer_pb2
from tests.fuzz.mutation import mutated
from tests.fuzz.targets import TARGETS
from tests.support.serving import BareSite
from tests.wire.messages import entry

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME_TYPES = 12
_LONGEST_FRAME = 20_000
_CALL_SECONDS = 5.0
_MESSAGES_PER_CALL = 4
_TRANSFER, _NEGOTIATION = "/fedstream.v1.TransferService", "/fedstream.v1.NegotiationService"


@dataclass(frozen=True, slots=True)
class Method:
    """An RPC, the kind of its requests, and inputs to begin from."""

    path: str
    kind: type[Message]
    seeds: Sequence[bytes]


METHODS = (
    Method(f"{_NEGOTIATION}/DescribeTask", negotiation_pb2.DescribeTaskRequest, [b""]),
    Method(f"{_NEGOTIATION}/Negotiate", negotiation_pb2.NegotiateRequest, TARGETS["negotiate_request"].seeds),
    Method(f"{_TRANSFER}/PutManifest", transfer_pb2.PutManifestRequest, TARGETS["put_manifest"].seeds),
    Method(f"{_TRANSFER}/WriteChunks", transfer_pb2.WriteChunksRequest, TARGETS["write_chunks"].seeds),
    Method(f"{_TRANSFER}/ReadChunks", transfer_pb2.ReadChunksRequest, TARGETS["read_chunks"].seeds),
    Method(f"{_TRANSFER}/GetManifest", transfer_pb2.GetManifestRequest, [b"\x0a\x20" + bytes(32)]),
    Method(f"{_TRANSFER}/FinishUpload", transfer_pb2.FinishUploadRequest, [b"\x0a\x01a"]),
    Method(f"{_TRANSFER}/GetUploadStatus", transfer_pb2.GetUploadStatusRequest, [b"\x0a\x01a"]),
)
"""The services' own. All are called as streams of requests, whatever they are."""


@dataclass(slots=True)
class Tally:
    """What was tried, and how it was answered."""

    tried: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)


async def send_frames(listening: Listening, rng: random.Random, tally: Tally) -> None:
    """One connection after the other: HTTP/2's beginning, and then frames of any type, length and content."""
    while True:
        with contextlib.suppress(OSError, ssl.SSLError, asyncio.IncompleteReadError):
            reader, writer = await _dial(listening)
            try:
                writer.write(_PREFACE if rng.random() < 0.9 else rng.randbytes(24))
                for _ in range(rng.randint(1, 50)):
                    if writer.is_closing():
                        break
                    writer.write(_frame(rng))
                    await writer.drain()
                    tally.tried["frames"] += 1
                async with asyncio.timeout(0.05):
                    await reader.read()
            except TimeoutError:
                pass
            finally:
                writer.close()
        await asyncio.sleep(0)


def _frame(rng: random.Random) -> bytes:
    content = rng.randbytes(rng.choice((0, 4, 5, 6, 8, 100, _LONGEST_FRAME)))
    length = len(content) if rng.random() < 0.9 else rng.getrandbits(24)
    head = length.to_bytes(3, "big") + bytes([rng.randrange(_FRAME_TYPES), rng.getrandbits(8)])
    return head + rng.choice((0, 1, 3, rng.getrandbits(31))).to_bytes(4, "big") + content


async def send_messages(listening: Listening, rng: random.Random, tally: Tally) -> None:
    """One call after the other, on one connection: sound messages changed, and what is worst by design."""
    async with BareSite.dial(listening) as site:
        while True:
            method = rng.choice(METHODS)
            bombs = BOMBS.get(method.path, ())
            worst = rng.choice(bombs)() if bombs and rng.random() < 0.05 else None
            requests = [_request(method, rng) for _ in range(rng.randint(1, _MESSAGES_PER_CALL))]
            await _call(site, method, requests if worst is None else worst, tally)


def _request(method: Method, rng: random.Random) -> bytes:
    data = rng.choice(method.seeds)
    if rng.random() < 0.7:
        return mutated(method.kind, data, rng.getrandbits(32))
    return rng.randbytes(rng.choice((0, 1, 10, 1000, 100_000)))


async def _call(site: BareSite, method: Method, requests: Sequence[bytes], tally: Tally) -> None:
    call: Any = site.channel.stream_stream(method.path)(iter(requests), timeout=_CALL_SECONDS)
    tally.tried["messages"] += len(requests)
    try:
        async for _ in call:
            pass
    except grpc.RpcError as error:
        tally.answers[error.code().name] += 1
    else:
        tally.answers["OK"] += 1


async def say_nothing(listening: Listening, rng: random.Random, tally: Tally) -> None:
    """Connections that begin, send a byte now and then, and wait; opened anew when the server has had enough."""
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(*split_address(listening.address))
            tally.tried["silent connections"] += 1
            try:
                while not reader.at_eof() and not writer.is_closing():
                    writer.write(rng.randbytes(1))
                    await writer.drain()
                    await asyncio.sleep(rng.uniform(0.5, 2.0))
            finally:
                writer.close()
        await asyncio.sleep(0.1)


async def _dial(listening: Listening) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = split_address(listening.address)
    if listening.fingerprint is None:
        return await asyncio.open_connection(host, port)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return await asyncio.open_connection(host, port, ssl=context)


# What is worst by design. The upload does not exist: for one that does, tests/e2e/test_transfer.py has the same.


def _huge_manifest() -> list[bytes]:
    """A tensor of 10 GiB is declared."""
    part = transfer_pb2.ManifestPart(entries=[entry("huge", shape=[10 << 28], size_bytes=10 << 30)])
    return [_header(1), transfer_pb2.PutManifestRequest(part=part).SerializeToString()]


def _many_tensors() -> list[bytes]:
    """100,000 tensors, a thousand to a part."""
    one = transfer_pb2.ManifestPart(entries=[entry(f"tensor_{i}") for i in range(1000)])
    return [_header(100_000), *[transfer_pb2.PutManifestRequest(part=one).SerializeToString()] * 100]


def _long_name() -> list[bytes]:
    """A name of 1 MiB."""
    hello = negotiation_pb2.Hello(
        protocol=common_pb2.ProtocolRange(min=1, max=1), client_name="n" * (1 << 20), num_examples=1
    )
    return [negotiation_pb2.NegotiateRequest(hello=hello).SerializeToString()]


def _climbing_names() -> list[bytes]:
    """`../` and NUL in every name."""
    hello = negotiation_pb2.Hello(
        protocol=common_pb2.ProtocolRange(min=1, max=1), client_name="../../\0etc/passwd", num_examples=1
    )
    hello.meaning.class_names.extend(["../no", "\0yes"])
    return [negotiation_pb2.NegotiateRequest(hello=hello).SerializeToString()]


def _bomb() -> list[bytes]:
    """A chunk that would be 1 GiB if anybody unpacked it."""
    packed = zstandard.ZstdCompressor(level=1).compress(bytes(64 << 20))
    chunk = transfer_pb2.Chunk(write_offset=0, data=packed)
    return [transfer_pb2.WriteChunksRequest(upload_id="../../\0", chunk=chunk).SerializeToString()]


def _header(num_tensors: int) -> bytes:
    header = transfer_pb2.UpdateHeader(upload_id="../../\0", num_tensors=num_tensors, num_examples=1)
    return transfer_pb2.PutManifestRequest(header=header).SerializeToString()


BOMBS: dict[str, Sequence[Callable[[], list[bytes]]]] = {
    f"{_TRANSFER}/PutManifest": (_huge_manifest, _many_tensors),
    f"{_NEGOTIATION}/Negotiate": (_long_name, _climbing_names),
    f"{_TRANSFER}/WriteChunks": (_bomb,),
}
