"""A server without its process, sockets and worker: all of its own parts, on a disk that may lose power.

A `Life` is what one process would live: services, desk, coordinator, journal and store are those of the server, called
by sites as gRPC would call them. The task is computed in place.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
from google.protobuf.message import Message

from fedserver.clock import SystemClock
from fedserver.config import ServerConfig
from fedserver.desk import Desk
from fedserver.driver import revive
from fedserver.federation import Federation
from fedserver.preparation import prepare
from fedserver.services.negotiation import NegotiationServicer
from fedserver.services.transfer import TransferServicer
from fedserver.store import State
from fedserver.store import folder as folder_module
from fedstream import limits, wire
from fedstream.chunk_messages import WrittenChunk
from fedstream.files import RealFileSystem, write_durably
from fedstream.manifest import manifest_of
from fedstream.v1 import common_pb2, negotiation_pb2, transfer_pb2
from fedstream.weights_file import file_parts
from fedtask.linear import Linear
from fedtask.messages import TaskDescription
from fedtask.task import SiteOptions
from tests.faults.forgetful import ForgetfulFileSystem, PoweredDatabase
from tests.support.serving import body_of, cut, manifest_messages

TASK = {"tensors": "2", "tensor_kib": "4", "epochs": "1"}
NUM_SITES = 2
NUM_ROUNDS = 2
_LIFE_SECONDS = 20.0
_MAX_TRIES = 5


class InPlaceEvaluator:
    """Stands for the server's worker: the same task, computed at once. There is no holdout."""

    summary = None
    test_summary = None

    async def describe(self) -> TaskDescription:
        task = Linear(TASK)
        return TaskDescription(task.meaning(), task.schema().tensors, task.default_plan())

    async def initial_model(self, seed: int, _source: str | None, _from_file: Path | None, out: Path) -> None:
        task = Linear(TASK)
        weights = task.initial_weights(seed, None)
        write_durably(RealFileSystem(), out, file_parts(manifest_of(task.schema(), weights), weights))

    async def open(self) -> None:
        return None

    async def rest(self) -> None:
        return None

    async def evaluate(self, _weights: Path) -> None:
        return None


class Refused(Exception):
    """The server ended a call."""


@dataclass(slots=True)
class Call:
    """What a servicer sees of a call that brings `chunks`; what it writes is in `answers`."""

    chunks: Iterator[WrittenChunk] = field(default_factory=lambda: iter(()))
    answers: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)

    async def read(self) -> Any:
        return next(self.chunks, grpc.aio.EOF)

    async def send_initial_metadata(self, head: object) -> None:
        """No answer is told by its head."""

    async def write(self, message: Message) -> None:
        self.answers.put_nowait(message)

    async def abort(self, _code: object, details: str = "", _trailing: object = ()) -> None:
        raise Refused(details)


@dataclass(slots=True)
class Acknowledged:
    """What a site was told of one round's update. It outlives the server's process, and must stay true."""

    upload_id: str
    committed_size: int = 0
    admitted: bool = False


@dataclass(slots=True)
class Life:
    """One process's life on a folder.

    Raises:
        PowerCut: from anything, once the power is gone.
    """

    folder: Path
    files: ForgetfulFileSystem
    state: State = field(init=False)
    federation: Federation = field(init=False)
    desk: Desk = field(init=False)

    def live(self, work: Callable[[Life], Coroutine[Any, Any, None]]) -> None:
        """Open the folder, do the work in an event loop of its own until it is done or the power is gone, close."""
        config = ServerConfig.model_validate(
            {
                "task": "linear",
                "task_settings": TASK,
                "rounds": NUM_ROUNDS,
                "min_clients": NUM_SITES,
                "keep_rounds": 1,
                "state": self.folder,
                "out": self.folder / "out",
            }
        )
        opened = functools.partial(PoweredDatabase, power=self.files.power)
        with mock.patch.object(folder_module, "Database", opened):
            self.state = State(self.folder, self.files)
        try:
            asyncio.run(self._until_power_is_gone(config, work))
        finally:
            self.desk.close()  # what its threads are at is a step too
            self.state.close()

    async def _until_power_is_gone(
        self, config: ServerConfig, work: Callable[[Life], Coroutine[Any, Any, None]]
    ) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)  # dying tasks say so otherwise
        evaluator: Any = InPlaceEvaluator()
        self.federation = Federation(config, self.state, evaluator, SystemClock())
        self.desk = Desk(self.federation)
        task = asyncio.create_task(work(self))
        give_up = time.monotonic() + _LIFE_SECONDS
        while not task.done() and not self.files.power.gone.is_set():
            await asyncio.wait({task}, timeout=0.005)
            if time.monotonic() > give_up:
                raise TimeoutError(f"the server waits: {self.federation.standing}")
        if not self.files.power.gone.is_set():
            await task

    async def recover(self) -> None:
        """What a server does before it goes on with the rounds."""
        await prepare(self.federation)
        await revive(self.federation, self.desk)


@dataclass(slots=True)
class Site:
    """A client that remembers what it was told, and complains if it is not so any more."""

    index: int
    acknowledged: dict[int, Acknowledged] = field(default_factory=dict)
    rounds_over: int = 0
    complaints: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its name in the federation."""
        return f"site-{self.index}"

    async def take_part(self, life: Life) -> None:
        """One session, for ever."""
        call, said = Call(), asyncio.Queue[Any]()
        said.put_nowait(self._hello())
        servicer = NegotiationServicer(life.federation)
        session = asyncio.create_task(servicer.Negotiate(_stream(said), call))
        offer = negotiation_pb2.Offer()
        try:
            while True:
                message = await call.answers.get()
                match message.WhichOneof("kind"):
                    case "offer":
                        offer = message.offer
                        self._compare_offer(offer)
                        accept = negotiation_pb2.Acceptance(offer_id=offer.offer_id)
                        said.put_nowait(negotiation_pb2.NegotiateRequest(accept=accept))
                    case "confirm":
                        await self._deliver(life, offer)
                    case "round_outcome":
                        self.rounds_over = message.round_outcome.round
        finally:
            session.cancel()

    def _hello(self) -> negotiation_pb2.NegotiateRequest:
        task = Linear(TASK)
        hello = negotiation_pb2.Hello(
            protocol=common_pb2.ProtocolRange(min=limits.PROTOCOL_VERSION, max=limits.PROTOCOL_VERSION),
            client_name=self.name,
            schema_sha256=task.schema().digest(),
            meaning=wire.write_meaning(task.meaning()),
            num_examples=10,
        )
        return negotiation_pb2.NegotiateRequest(hello=hello)

    def _compare_offer(self, offer: negotiation_pb2.Offer) -> None:
        known = self.acknowledged.get(offer.round)
        if offer.round <= self.rounds_over:
            self._complain(f"round {offer.round} is offered again, though it was over")
        elif known is None:
            self.acknowledged[offer.round] = Acknowledged(offer.upload_id)
        elif known.upload_id != offer.upload_id:
            self._complain(f"round {offer.round} has another upload than before")

    def _complain(self, text: str) -> None:
        self.complaints.append(f"{self.name}: {text}")

    async def _deliver(self, life: Life, offer: negotiation_pb2.Offer) -> None:
        """Upload until it is admitted; what is refused is asked about again, as a client does."""
        refused: list[str] = []
        while len(refused) < _MAX_TRIES:
            try:
                await self._upload(life, offer)
            except Refused as refusal:
                refused.append(str(refusal))
            else:
                return
        self._complain(f"refused {_MAX_TRIES} times in round {offer.round}: {refused[-1]}")

    async def _upload(self, life: Life, offer: negotiation_pb2.Offer) -> None:
        servicer, told = TransferServicer(life.federation, life.desk), self.acknowledged[offer.round]
        request = transfer_pb2.GetUploadStatusRequest(upload_id=offer.upload_id)
        status = await servicer.GetUploadStatus(request, Call())
        if status.committed_size < told.committed_size:
            self._complain(f"{told.committed_size} bytes were committed, now {status.committed_size} are")
            told.committed_size = status.committed_size
        if told.admitted and status.state != transfer_pb2.UPLOAD_STATE_ADMITTED:
            self._complain(f"the update of round {offer.round} was admitted, and is asked for again")
        if status.state == transfer_pb2.UPLOAD_STATE_ADMITTED:  # a server finishes by itself what it had sealed
            told.admitted = True
            return
        weights = self._fine_tune(life, offer)
        manifest = manifest_of(Linear(TASK).schema(), weights)
        begun = await servicer.PutManifest(_each(manifest_messages(offer.upload_id, manifest)), Call())
        if begun.committed_size < status.committed_size:
            self._complain(f"putting the manifest again lost {status.committed_size - begun.committed_size} bytes")
        body = body_of(manifest, weights, begun.missing_tensors)
        for end in (len(body) // 2, len(body)):
            if begun.committed_size < end:
                start = max(begun.committed_size, told.committed_size)
                told.committed_size = await self._write(servicer, offer.upload_id, body[:end], start)
        finish = transfer_pb2.FinishUploadRequest(upload_id=offer.upload_id)
        finished = await servicer.FinishUpload(finish, Call())
        told.admitted = finished.state == transfer_pb2.UPLOAD_STATE_ADMITTED
        if not told.admitted:
            self._complain(f"an honest update was not admitted: {finished}")

    async def _write(self, servicer: TransferServicer, upload_id: str, body: bytes, start: int) -> int:
        call = Call(WrittenChunk(upload_id, chunk) for chunk in cut(body, 2048, start))
        await servicer.WriteChunks(None, call)
        committed = start
        while not call.answers.empty():
            committed = call.answers.get_nowait().committed_size
        return committed

    def _fine_tune(self, life: Life, offer: negotiation_pb2.Offer) -> Mapping[str, Any]:
        task = Linear(TASK)
        task.open_site(SiteOptions(None, shard=self.index, num_shards=NUM_SITES))
        base = life.state.models.get(offer.base_model.model_digest.sha256).weights()
        return task.fine_tune(base, wire.read_plan(offer.plan), lambda _report: None).weights


async def _stream(queue: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    while True:
        yield await queue.get()


async def _each(messages: list[Any]) -> AsyncIterator[Any]:
    for message in messages:
        yield message
