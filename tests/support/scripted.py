# ruff: noqa: N802 - methods have the names of the RPCs
"""A server that says what a test's script says, and moves weights honestly except where it is to cut or refuse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf.duration_pb2 import Duration
from grpc_status import rpc_status

from fedclient.calls import Patience
from fedclient.client import Client
from fedclient.config import ClientConfig
from fedclient.connection import Connection
from fedclient.display import LogDisplay
from fedstream import wire
from fedstream.body import admit_chunk, body_size, make_chunk
from fedstream.errors import (
    BodyIncomplete,
    DigestMismatch,
    ManifestRequired,
    PermissionDenied,
    ProtocolError,
    UnknownModel,
)
from fedstream.manifest import Digest, Manifest, manifest_of, raw_bytes
from fedstream.plan import Plan
from fedstream.schema import ModelSchema
from fedstream.status import to_status
from fedstream.v1 import (
    common_pb2,
    negotiation_pb2,
    negotiation_pb2_grpc,
    transfer_pb2,
    transfer_pb2_grpc,
)
from fedtask.linear import Linear

QUICK = Patience(first_seconds=0.01, longest_seconds=0.05)
SETTINGS = {"tensors": "3", "tensor_kib": "16", "seconds": "0.01", "epochs": "2"}
LONG = 60.0


@dataclass
class Model:
    """A model in memory."""

    manifest: Manifest
    values: list[bytes]

    @classmethod
    def of(cls, schema: ModelSchema, weights: Any) -> Model:
        return cls(manifest_of(schema, weights), [bytes(raw_bytes(np.asarray(weights[spec.name]))) for spec in schema])

    def body(self, indexes: Any) -> bytes:
        return b"".join(self.values[index] for index in indexes)


def linear_model(settings: dict[str, str], seed: int = 0) -> tuple[ModelSchema, Model]:
    """The `linear` task's schema and its initial model."""
    task = Linear(settings)
    return task.schema(), Model.of(task.schema(), task.initial_weights(seed, None))


@dataclass
class Arrived:
    """An upload as it has arrived."""

    header: transfer_pb2.UpdateHeader
    manifest: Manifest
    missing: list[int]
    body: bytearray = field(default_factory=bytearray)
    told: int = 0
    finished: bool = False

    @property
    def size(self) -> int:
        return body_size(self.manifest, self.missing)


async def refuse(context: Any, error: ProtocolError) -> None:
    """End a call as the server does for an error of the protocol."""
    status = rpc_status.to_status(to_status(error))
    await context.abort(status.code, status.details, status.trailing_metadata)


@dataclass
class Transfer(transfer_pb2_grpc.TransferServiceServicer):
    """Moves weights. `cuts` ends streams after so many more bytes each, and at 0 also a question about an upload
    and a stream before its first chunk; `refusals` answers calls of a name with errors.

    The bodies of models in `held` are not given, as over a line that is far slower than rounds are, and `reached` is
    set by whoever asks for one. `largest_flight` is the most that was ever sent beyond what had been told to be
    committed; `bytes_in` and `bytes_out` count all data, also what came twice.
    """

    models: dict[bytes, Model] = field(default_factory=dict)
    uploads: dict[str, Arrived] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    refusals: dict[str, list[ProtocolError]] = field(default_factory=dict)
    commit_bytes: int = 1
    window_bytes: int = 0
    held: set[bytes] = field(default_factory=set)
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[str] = field(default_factory=list)
    largest_flight: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def publish(self, model: Model) -> Digest:
        digest = model.manifest.model_digest()
        self.models[digest.sha256] = model
        return digest

    async def _begin(self, name: str, context: Any) -> None:
        self.calls.append(name)
        if self.refusals.get(name):
            await refuse(context, self.refusals[name].pop(0))

    async def _count_down(self, count: int, context: Any) -> None:
        if self.cuts:
            self.cuts[0] -= count
            if self.cuts[0] <= 0:
                self.cuts.pop(0)
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the test cut the connection")

    async def PutManifest(self, requests: Any, context: Any) -> Any:
        await self._begin("PutManifest", context)
        entries = []
        header = transfer_pb2.UpdateHeader()
        async for request in requests:
            if request.HasField("header"):
                header = request.header
            entries += wire.read_part(request.part)
        known = {entry.digest for model in self.models.values() for entry in model.manifest}
        manifest = Manifest(tuple(entries))
        missing = [index for index, entry in enumerate(manifest) if entry.digest not in known]
        upload = self.uploads.setdefault(header.upload_id, Arrived(header, manifest, missing))
        return transfer_pb2.PutManifestResponse(
            missing_tensors=upload.missing,
            body_size_bytes=upload.size,
            committed_size=len(upload.body),
            window_bytes=self.window_bytes,
        )

    async def WriteChunks(self, requests: Any, context: Any) -> None:
        await self._begin("WriteChunks", context)
        await self._count_down(0, context)
        upload = None
        async for request in requests:
            upload = upload or self.uploads[request.upload_id]
            chunk = wire.read_chunk(request.chunk)
            self.bytes_in += len(chunk.data)
            self.largest_flight = max(self.largest_flight, chunk.write_offset + len(chunk.data) - upload.told)
            try:
                upload.body += admit_chunk(chunk, len(upload.body), upload.size, 1 << 20)
            except ProtocolError as error:
                await refuse(context, error)
            await self._count_down(len(chunk.data), context)
            if len(upload.body) - upload.told >= self.commit_bytes:
                await asyncio.sleep(0.002)  # time in which an impatient sender would send more
                upload.told = len(upload.body)
                await context.write(transfer_pb2.WriteChunksResponse(committed_size=upload.told))
        if upload is not None:
            upload.told = len(upload.body)
            await context.write(transfer_pb2.WriteChunksResponse(committed_size=upload.told))

    async def GetUploadStatus(self, request: Any, context: Any) -> Any:
        await self._begin("GetUploadStatus", context)
        await self._count_down(0, context)
        upload = self.uploads.get(request.upload_id)
        if upload is None:
            state = transfer_pb2.UPLOAD_STATE_AWAITING_MANIFEST
            return transfer_pb2.GetUploadStatusResponse(state=state)
        upload.told = len(upload.body)
        state = transfer_pb2.UPLOAD_STATE_ADMITTED if upload.finished else transfer_pb2.UPLOAD_STATE_OPEN
        return transfer_pb2.GetUploadStatusResponse(
            committed_size=upload.told,
            body_size_bytes=upload.size,
            state=state,
            window_bytes=self.window_bytes,
        )

    async def FinishUpload(self, request: Any, context: Any) -> Any:
        await self._begin("FinishUpload", context)
        upload = self.uploads.get(request.upload_id)
        if upload is None:
            await refuse(context, ManifestRequired("manifest first"))
        elif len(upload.body) < upload.size:
            await refuse(context, BodyIncomplete("more", committed_size=len(upload.body), body_size=upload.size))
        elif not self._digests_match(upload):
            del self.uploads[request.upload_id]
            await refuse(context, DigestMismatch("wrong bytes"))
        else:
            upload.finished = True
        return transfer_pb2.FinishUploadResponse(state=transfer_pb2.UPLOAD_STATE_ADMITTED)

    def _digests_match(self, upload: Arrived) -> bool:
        start = 0
        for index in upload.missing:
            entry = upload.manifest.entries[index]
            if Digest.of(bytes(upload.body[start : start + entry.size_bytes])) != entry.digest:
                return False
            start += entry.size_bytes
        return True

    async def GetManifest(self, request: Any, context: Any) -> None:
        await self._begin("GetManifest", context)
        model = self.models.get(request.model_sha256)
        if model is None:
            await refuse(context, UnknownModel("no such model"))
        else:
            for part in wire.manifest_parts(model.manifest):
                await context.write(transfer_pb2.GetManifestResponse(num_tensors=len(model.manifest), part=part))

    async def ReadChunks(self, request: Any, context: Any) -> None:
        await self._begin("ReadChunks", context)
        if request.model_sha256 in self.held:
            self.reached.set()
            await asyncio.Event().wait()
        await self._count_down(0, context)
        model = self.models[request.model_sha256]
        body = model.body(request.tensors or range(len(model.values)))
        for offset in range(request.read_offset, len(body), request.max_chunk_bytes):
            data = body[offset : offset + request.max_chunk_bytes]
            self.bytes_out += len(data)
            await context.write(transfer_pb2.ReadChunksResponse(chunk=wire.write_chunk(make_chunk(offset, data))))
            await self._count_down(len(data), context)


class Talk:
    """One session, from the server's side."""

    def __init__(self, requests: Any, context: Any) -> None:
        self._requests = aiter(requests)
        self._context = context
        self.heard: list[tuple[float, Any]] = []

    async def hear(self, kind: str, within: float = 20.0) -> Any:
        """The next message of that kind; others are noted and passed over."""
        async with asyncio.timeout(within):
            while True:
                message = await anext(self._requests)
                self.heard.append((asyncio.get_running_loop().time(), message))
                if message.WhichOneof("kind") == kind:
                    return getattr(message, kind)

    async def say(self, **kind: Any) -> None:
        await self._context.write(negotiation_pb2.NegotiateResponse(**kind))

    async def welcome(
        self, max_chunk_bytes: int = 4096, window_bytes: int = 16384, rounds: int = 2, protocol: int = 1
    ) -> Any:
        """Hear the hello and welcome the client."""
        hello = await self.hear("hello")
        welcome = negotiation_pb2.Welcome(
            protocol=protocol,
            max_chunk_bytes=max_chunk_bytes,
            window_bytes=window_bytes,
            rounds=rounds,
            client_name=hello.client_name,
        )
        await self.say(welcome=welcome)
        return hello

    async def offer(
        self,
        base: Digest,
        number: int = 1,
        epochs: int = 2,
        remaining: float = LONG,
        lease: float = LONG,
        said_to_be: int = 0,
    ) -> None:
        """Offer a round; it may be `said_to_be` another one than it is."""
        offer = negotiation_pb2.Offer(
            offer_id=f"offer-{number}",
            upload_id=f"upload-{number}",
            round=said_to_be or number,
            base_model=common_pb2.ModelRef(version=number - 1, model_digest=wire.write_digest(base)),
            plan=wire.write_plan(plan(epochs)),
            time_remaining=seconds(remaining),
            lease=seconds(lease),
        )
        await self.say(offer=offer)

    async def confirm(self, number: int = 1, epochs: int = 2, lease: float = LONG) -> None:
        confirmation = negotiation_pb2.Confirmation(
            offer_id=f"offer-{number}",
            plan=wire.write_plan(plan(epochs)),
            time_remaining=seconds(LONG),
            lease=seconds(lease),
        )
        await self.say(confirm=confirmation)

    async def agree(self, base: Digest, number: int = 1, epochs: int = 2, lease: float = LONG) -> None:
        """Offer, hear the acceptance, confirm."""
        await self.offer(base, number, epochs, lease=lease)
        assert (await self.hear("accept")).offer_id == f"offer-{number}"
        await self.confirm(number, epochs, lease)

    async def end(self, model: Digest) -> None:
        """The federation is over."""
        ref = common_pb2.ModelRef(version=1, model_digest=wire.write_digest(model))
        outcome = negotiation_pb2.FederationOutcome(reason="all rounds done", last_model=ref, best_model=ref)
        await self.say(federation_outcome=outcome)
        await asyncio.sleep(0.3)  # the client fetches the model

    async def cut(self) -> None:
        """End the session as a broken network does."""
        await self._context.abort(grpc.StatusCode.UNAVAILABLE, "the test cut the connection")

    async def refuse(self, error: ProtocolError) -> None:
        """End the session by a rule."""
        await refuse(self._context, error)


Script = Callable[[Talk], Awaitable[None]]


class Negotiation(negotiation_pb2_grpc.NegotiationServiceServicer):
    """Plays one script per session; what goes wrong in a script is raised when the server is closed."""

    def __init__(self, settings: dict[str, str], task: str = "linear") -> None:
        self.settings = settings
        self.task = task
        self.scripts: list[Script] = []
        self.failures: list[BaseException] = []

    async def DescribeTask(self, _request: Any, _context: Any) -> Any:
        return negotiation_pb2.DescribeTaskResponse(
            federation_name="test", task_name=self.task, task_settings=self.settings
        )

    async def Negotiate(self, requests: Any, context: Any) -> None:
        if not self.scripts:
            self.failures.append(AssertionError("the client came once more than the test has scripts"))
            await refuse(context, PermissionDenied("the play is over"))
        script = self.scripts.pop(0)
        try:
            await script(Talk(requests, context))
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the test is to show it
            self.failures.append(error)
            await refuse(context, PermissionDenied("the script failed"))  # for good, so that no client tries again


@dataclass
class Scripted:
    """A scripted server at an address."""

    address: str
    negotiation: Negotiation
    transfer: Transfer
    schema: ModelSchema
    model: Model
    base: Digest

    def config(self, folder: Path, **settings: Any) -> ClientConfig:
        """Settings of a client of it, all of whose files go below `folder`. Pictures would be most of its work."""
        given = {"server": self.address, "plaintext": True, "name": "site", "data": "phantom", "pictures": False}
        folders = {"out": folder / "out", "state_dir": folder / "state"}
        return ClientConfig.model_validate({**given, **folders, **settings})

    def client(self, folder: Path, **settings: Any) -> Client:
        return Client(self.config(folder, **settings), LogDisplay(), QUICK)

    async def connection(self, folder: Path) -> Connection:
        connection = Connection(self.config(folder))
        await connection.open()
        return connection


@asynccontextmanager
async def scripted(*scripts: Script, settings: dict[str, str] = SETTINGS) -> AsyncIterator[Scripted]:
    """A scripted server on a free port."""
    schema, model = linear_model(settings)
    negotiation, transfer = Negotiation(dict(settings)), Transfer()
    negotiation.scripts = list(scripts)
    server = grpc.aio.server()
    negotiation_pb2_grpc.add_NegotiationServiceServicer_to_server(negotiation, server)  # type: ignore[no-untyped-call]
    transfer_pb2_grpc.add_TransferServiceServicer_to_server(transfer, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield Scripted(f"127.0.0.1:{port}", negotiation, transfer, schema, model, transfer.publish(model))
    finally:
        await server.stop(0)
        for failure in negotiation.failures:  # before what the client made of it
            raise failure


def plan(epochs: int) -> Plan:
    return Plan(epochs, 32, 0.5, 0, seed=7)


def seconds(value: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(value * 1e9))
    return duration
