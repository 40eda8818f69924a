"""Many bare sites in one process: `python -m benchmarks.crowd_ends ORDER`, prints a line of JSON at each step.

A bare site speaks the protocol and does nothing else. It has a connection of its own with a client's options, says
hello, takes each offer, fetches the model, adds its step and sends it back: no worker, no files, no plots. What its
process takes is the price of a message's other end, and a hundred of them fit where one `fedclient` does.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from benchmarks import shift
from benchmarks.arithmetic import step_of
from fedclient.connection import CHANNEL_OPTIONS
from fedserver.open_files import allow_many_open_files
from fedstream import limits, tls, wire
from fedstream.manifest import manifest_of
from fedstream.v1 import (
    common_pb2,
    negotiation_pb2,
    negotiation_pb2_grpc,
    transfer_pb2,
    transfer_pb2_grpc,
)
from tests.support.joining import joined
from tests.support.serving import chunk_messages, cut, manifest_messages

_EXAMPLES = 100
_DIALLING = 16
"""How many connect at a time: a TLS handshake takes a millisecond of either end's processor, and a thousand that begin
together end together."""


@dataclass(frozen=True, slots=True)
class Order:
    """Sites `first` to `first + count`, not inclusive, of `total` that there are in all.

    `admin` and `enrolment` are where they are invited and join; `enrolment` is `None` without TLS.
    """

    address: str
    admin: str
    enrolment: str | None
    first: int
    count: int
    total: int
    mib: float


def main() -> None:
    """Live the sites' lives, to the federation's end."""
    allow_many_open_files()
    asyncio.run(_Crowd(Order(**json.loads(sys.argv[1]))).run())


class _Crowd:
    """The sites of this process. It tells when the last of them has reached a step, on the machine's steady clock."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._task = shift.Shift({"mib": str(order.mib)})
        self._dialling = asyncio.Semaphore(_DIALLING)
        self._reached: defaultdict[tuple[str, int], int] = defaultdict(int)
        self._credentials: dict[int, grpc.ChannelCredentials] = {}

    async def run(self) -> None:
        """To the end of the federation."""
        order = self._order
        numbers = range(order.first, order.first + order.count)
        await asyncio.gather(*(self._enrol(number) for number in numbers))
        print(json.dumps({"event": "dialling", "at": time.monotonic()}), flush=True)
        async with asyncio.TaskGroup() as lives:
            for number in numbers:
                lives.create_task(self._live(number))

    async def _enrol(self, number: int) -> None:
        """Have a site join, which is not part of what is measured."""
        order = self._order
        if order.enrolment is not None:
            async with self._dialling:
                found = (await joined(order.admin, order.enrolment, _name(number))).credentials()
            self._credentials[number] = tls.channel_credentials(found.authority, found.identity)

    async def _live(self, number: int) -> None:
        async with self._channel(number) as channel:
            site = _Site(channel, self._task, step_of(number, self._order.total))
            async with self._dialling:
                await site.join(_name(number))
            self._note("joined", 0)
            while (message := await site.hear()) is not None:
                if message.WhichOneof("kind") == "offer":
                    self._note("offered", message.offer.round)
                    await site.take_part(message.offer)
                elif message.WhichOneof("kind") == "round_outcome":
                    self._note("heard", message.round_outcome.round)

    @asynccontextmanager
    async def _channel(self, number: int) -> Any:
        address, options = self._order.address, [*CHANNEL_OPTIONS, *tls.CHANNEL_OPTIONS]
        credentials = self._credentials.get(number)
        if credentials is None:
            channel = grpc.aio.insecure_channel(address, options=options)
        else:
            channel = grpc.aio.secure_channel(address, credentials, options=options)
        async with channel:
            yield channel

    def _note(self, step: str, round_number: int) -> None:
        self._reached[step, round_number] += 1
        if self._reached[step, round_number] == self._order.count:
            print(json.dumps({"event": step, "round": round_number, "at": time.monotonic()}), flush=True)


def _name(number: int) -> str:
    return f"site-{number:04}"


class _Site:
    """One site."""

    def __init__(self, channel: grpc.aio.Channel, task: shift.Shift, step: np.float32) -> None:
        self._task, self._step = task, step
        self._transfer = transfer_pb2_grpc.TransferServiceStub(channel)
        self._stream: Any = negotiation_pb2_grpc.NegotiationServiceStub(channel).Negotiate(wait_for_ready=True)

    async def join(self, name: str) -> None:
        """Say hello, and be welcome."""
        hello = negotiation_pb2.Hello(
            protocol=common_pb2.ProtocolRange(min=limits.PROTOCOL_VERSION, max=limits.PROTOCOL_VERSION),
            client_name=name,
            schema_sha256=self._task.schema().digest(),
            meaning=wire.write_meaning(self._task.meaning()),
            num_examples=_EXAMPLES,
        )
        await self._say(hello=hello)
        await self._hear_of("welcome")

    async def hear(self) -> negotiation_pb2.NegotiateResponse | None:
        """What the server says next; `None` when it has said how the federation ended."""
        heard = await self._stream.read()
        if heard is grpc.aio.EOF:
            raise ConnectionError("the server ended the stream before the federation's end")
        message: negotiation_pb2.NegotiateResponse = heard
        if message.WhichOneof("kind") != "federation_outcome":
            return message
        await self._stream.done_writing()
        await self._stream.code()  # a site that hangs up first is one that was cut off, and would be waited for
        return None

    async def take_part(self, offer: negotiation_pb2.Offer) -> None:
        """From the acceptance to the word that the update is in."""
        await self._say(accept=negotiation_pb2.Acceptance(offer_id=offer.offer_id))
        await self._hear_of("confirm")
        await self._send(offer.upload_id, await self._fetch(offer.base_model.model_digest.sha256))

    async def _fetch(self, sha256: bytes) -> bytes:
        """The model's body, all tensors one after the other."""
        request = transfer_pb2.ReadChunksRequest(model_sha256=sha256, max_chunk_bytes=limits.DEFAULT_CHUNK_BYTES)
        return b"".join([response.chunk.data async for response in self._transfer.ReadChunks(request)])

    async def _send(self, upload_id: str, base: bytes) -> None:
        trained = np.frombuffer(base, np.float32) + self._step
        schema = self._task.schema()
        weights = dict(zip((spec.name for spec in schema), np.split(trained, len(schema)), strict=True))
        manifest = manifest_of(schema, weights)
        await self._transfer.PutManifest(iter(manifest_messages(upload_id, manifest, _EXAMPLES)))
        await self._write(upload_id, trained.tobytes())
        finished = await self._transfer.FinishUpload(transfer_pb2.FinishUploadRequest(upload_id=upload_id))
        assert finished.state == transfer_pb2.UPLOAD_STATE_ADMITTED, finished

    async def _write(self, upload_id: str, body: bytes) -> None:
        chunks = chunk_messages(upload_id, cut(body, limits.DEFAULT_CHUNK_BYTES))
        committed = [response.committed_size async for response in self._transfer.WriteChunks(iter(chunks))]
        assert committed[-1] == len(body), committed

    async def _say(self, **kind: Any) -> None:
        await self._stream.write(negotiation_pb2.NegotiateRequest(**kind))

    async def _hear_of(self, *kinds: str) -> None:
        """Wait for one of these kinds, past notices of other things."""
        while (message := await self.hear()) is not None:
            if message.WhichOneof("kind") in kinds:
                return
            if message.WhichOneof("kind") in ("declined", "withdraw", "cancel"):
                break
        raise ConnectionError(f"waited for {', '.join(kinds)}, and heard {message}")


if __name__ == "__main__":
    main()
