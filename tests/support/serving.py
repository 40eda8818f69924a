"""A real server in this process, and a bare client that says exactly what a test tells it to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fedserver.config import ServerConfig
from fedserver.server import Listening, Server
from fedstream import limits, wire
from fedstream.body import Chunk, make_chunk
from fedstream.manifest import Manifest, manifest_of, raw_bytes
from fedstream.schema import ModelSchema, TaskMeaning
from fedstream.tls import CHANNEL_OPTIONS, channel_credentials, fetch_certificate
from fedstream.v1 import (
    admin_pb2_grpc,
    common_pb2,
    negotiation_pb2,
    negotiation_pb2_grpc,
    transfer_pb2,
    transfer_pb2_grpc,
)
from tests.support.joining import joined

PATIENCE_SECONDS = 30.0


@asynccontextmanager
async def serving(folder: Path, **settings: Any) -> AsyncIterator[tuple[Server, Listening]]:
    """A server that lives its whole life in the background of the block, on a free loopback port, with TLS.

    Without the report's pictures, which take longer than most of what is tested with it.
    """
    places = {"listen": "127.0.0.1:0", "state": folder / "state", "out": folder / "out"}
    server = Server(ServerConfig.model_validate({"task": "linear", "pictures": False, **places, **settings}))
    listening = await server.start()
    life = asyncio.create_task(server.run())
    try:
        await asyncio.wait_for(server.federation.ready.wait(), PATIENCE_SECONDS)
        yield server, listening
    finally:
        server.federation.stop(finish_round=False)
        await asyncio.wait_for(life, PATIENCE_SECONDS)
        await server.close()


def end_certificates(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a server takes every certificate that it has given for one that has expired.

    Only calls that begin find out: what is open stays, and handshakes go by the machine's own clock.
    """
    later = time.time() + timedelta(days=1_000).total_seconds()
    monkeypatch.setattr(server.federation.clock, "wall", lambda: later)


class BareSite:
    """One client at the level of messages. Its certificate is for the name that it says last."""

    def __init__(self, listening: Listening, options: Sequence[tuple[str, Any]] = ()) -> None:
        self._listening, self._options = listening, options
        self.name = ""
        self.channel: grpc.aio.Channel
        self.negotiation: negotiation_pb2_grpc.NegotiationServiceAsyncStub
        self.transfer: transfer_pb2_grpc.TransferServiceAsyncStub
        self.stream: Any = None

    @classmethod
    @asynccontextmanager
    async def dial(
        cls, listening: Listening, name: str = "somebody", options: Sequence[tuple[str, Any]] = ()
    ) -> AsyncIterator[BareSite]:
        """Connect, as a member of that name where the server asks for certificates. `options` are of the channel."""
        site = cls(listening, options)
        await site.become(name)
        try:
            yield site
        finally:
            await site.channel.close()

    async def become(self, name: str) -> None:
        """Connect under another name."""
        if self.name:
            await self.channel.close()
        self.name, listening = name, self._listening
        options = [("grpc.use_local_subchannel_pool", 1), *self._options]
        if listening.fingerprint is None:
            self.channel = grpc.aio.insecure_channel(listening.address, options=options)
        else:
            credentials = await _credentials(listening, name)
            self.channel = grpc.aio.secure_channel(listening.address, credentials, options=[*CHANNEL_OPTIONS, *options])
        self.negotiation = negotiation_pb2_grpc.NegotiationServiceStub(self.channel)
        self.transfer = transfer_pb2_grpc.TransferServiceStub(self.channel)

    async def hello(
        self, name: str, schema: ModelSchema, meaning: TaskMeaning, num_examples: int = 10, **fields: Any
    ) -> negotiation_pb2.NegotiateResponse:
        """Open a stream and say hello; returns the first answer that is no notice about waiting."""
        await self.say_hello(name, schema, meaning, num_examples, **fields)
        return await self.hear()

    async def say_hello(
        self, name: str, schema: ModelSchema, meaning: TaskMeaning, num_examples: int = 10, **fields: Any
    ) -> None:
        """Open a stream and say hello, and hear nothing yet."""
        if self._listening.enrolment_address is not None and limits.is_client_name(name) and name != self.name:
            await self.become(name)
        hello = negotiation_pb2.Hello(
            protocol=common_pb2.ProtocolRange(min=1, max=1),
            client_name=name,
            schema_sha256=schema.digest(),
            meaning=wire.write_meaning(meaning),
            num_examples=num_examples,
        )
        hello.MergeFrom(negotiation_pb2.Hello(**fields))
        self.stream = self.negotiation.Negotiate()
        await self.say(hello=hello)

    async def say(self, **kind: Any) -> None:
        """Send one message."""
        await self.stream.write(negotiation_pb2.NegotiateRequest(**kind))

    async def hear(self, *skip: str) -> negotiation_pb2.NegotiateResponse:
        """The next message that is not of a kind to skip."""
        while True:
            async with asyncio.timeout(PATIENCE_SECONDS):  # `wait_for` may forget that its task was cancelled
                message = await self.stream.read()
            assert message is not grpc.aio.EOF, "the server ended the stream"
            if message.WhichOneof("kind") not in ("waiting", "lease_renewal", *skip):
                return message

    async def join(self, name: str, server: Server, num_examples: int = 10) -> None:
        """Say hello and be welcome."""
        schema, meaning = server.federation.schema, server.federation.meaning
        answer = await self.hello(name, schema, meaning, num_examples)
        assert answer.WhichOneof("kind") == "welcome", answer

    async def agree(self) -> negotiation_pb2.Offer:
        """Wait for an offer and take it."""
        offer = (await self.hear()).offer
        await self.say(accept=negotiation_pb2.Acceptance(offer_id=offer.offer_id))
        assert (await self.hear()).WhichOneof("kind") == "confirm"
        return offer

    async def put_manifest(
        self, upload_id: str, manifest: Manifest, num_examples: int = 10
    ) -> transfer_pb2.PutManifestResponse:
        """Give an honest manifest."""
        return await self.transfer.PutManifest(iter(manifest_messages(upload_id, manifest, num_examples)))

    async def write(self, upload_id: str, chunks: Iterable[Chunk]) -> int:
        """Send chunks and return the last committed size.

        Where the server refuses while chunks are on their way, gRPC may report its own failure to send instead of the
        server's reason. Sending again is safe, so this does, until it has the server's word.
        """
        sent = list(chunks)
        for _ in range(20):
            try:
                return await self._write(upload_id, sent)
            except grpc.aio.AioRpcError as error:
                if "from Core" not in (error.details() or ""):
                    raise
        raise AssertionError("the server's reason never arrived")

    async def _write(self, upload_id: str, chunks: Iterable[Chunk]) -> int:
        call = self.transfer.WriteChunks(iter(chunk_messages(upload_id, chunks)))
        committed = 0
        async for response in call:
            assert response.committed_size >= committed, "committed_size decreased"
            committed = response.committed_size
        return committed

    async def finish(self, upload_id: str) -> transfer_pb2.FinishUploadResponse:
        """Complete an upload."""
        return await self.transfer.FinishUpload(transfer_pb2.FinishUploadRequest(upload_id=upload_id))

    async def status(self, upload_id: str) -> transfer_pb2.GetUploadStatusResponse:
        """Ask about an upload."""
        return await self.transfer.GetUploadStatus(transfer_pb2.GetUploadStatusRequest(upload_id=upload_id))

    async def upload(
        self,
        upload_id: str,
        schema: ModelSchema,
        weights: Mapping[str, np.ndarray],
        num_examples: int = 10,
        chunk_bytes: int = 1 << 20,
    ) -> transfer_pb2.FinishUploadResponse:
        """Send a whole honest update."""
        manifest = manifest_of(schema, weights)
        missing = (await self.put_manifest(upload_id, manifest, num_examples)).missing_tensors
        body = body_of(manifest, weights, missing)
        if body:
            assert await self.write(upload_id, cut(body, chunk_bytes)) == len(body)
        return await self.finish(upload_id)

    async def download(self, sha256: bytes, chunk_bytes: int = 1 << 20, offset: int = 0) -> bytes:
        """The body of a whole model from `offset` on."""
        request = transfer_pb2.ReadChunksRequest(model_sha256=sha256, read_offset=offset, max_chunk_bytes=chunk_bytes)
        pieces = [response.chunk.data async for response in self.transfer.ReadChunks(request)]
        return b"".join(pieces)


async def _credentials(listening: Listening, name: str) -> grpc.ChannelCredentials:
    if listening.enrolment_address is not None:
        folder = await joined(listening.admin_address, listening.enrolment_address, name)
        found = folder.credentials()
        return channel_credentials(found.authority, found.identity)
    assert listening.fingerprint is not None, "there is TLS"
    return channel_credentials(await asyncio.to_thread(fetch_certificate, listening.address, listening.fingerprint))


def administration(listening: Listening) -> tuple[grpc.aio.Channel, admin_pb2_grpc.AdminServiceStub]:
    """The server's administration, over its unix socket."""
    channel = grpc.aio.insecure_channel(listening.admin_address)
    return channel, admin_pb2_grpc.AdminServiceStub(channel)


def manifest_messages(
    upload_id: str, manifest: Manifest, num_examples: int = 10
) -> list[transfer_pb2.PutManifestRequest]:
    """The messages of an honest PutManifest."""
    header = transfer_pb2.UpdateHeader(
        upload_id=upload_id,
        num_tensors=len(manifest),
        model_digest=wire.write_digest(manifest.model_digest()),
        num_examples=num_examples,
    )
    parts = [transfer_pb2.PutManifestRequest(part=part) for part in wire.manifest_parts(manifest)]
    return [transfer_pb2.PutManifestRequest(header=header), *parts]


def chunk_messages(upload_id: str, chunks: Iterable[Chunk]) -> Iterable[transfer_pb2.WriteChunksRequest]:
    """The messages of a WriteChunks."""
    for chunk in chunks:
        yield transfer_pb2.WriteChunksRequest(upload_id=upload_id, chunk=wire.write_chunk(chunk))


def body_of(manifest: Manifest, weights: Mapping[str, np.ndarray], indexes: Sequence[int]) -> bytes:
    """The body that holds the tensors at `indexes`."""
    return b"".join(bytes(raw_bytes(weights[manifest.entries[index].name])) for index in indexes)


def cut(body: bytes, chunk_bytes: int, start: int = 0) -> Iterable[Chunk]:
    """A body as chunks, from `start` on."""
    for offset in range(start, len(body), chunk_bytes):
        yield make_chunk(offset, body[offset : offset + chunk_bytes])
