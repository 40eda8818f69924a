"""Plays a session of `tests/wire/sessions.py` to the real services, and sees that they say what it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from fedserver.farewell import say_farewell
from fedserver.federation import FederationState
from fedserver.preparation import prepare
from fedserver.services.negotiation import NegotiationServicer
from fedserver.services.transfer import TransferServicer
from fedstream.dtypes import DataType
from fedstream.manifest import manifest_of
from fedstream.plan import Plan
from fedstream.schema import ModelSchema, TaskMeaning, TensorSpec
from fedstream.status import STATUS_DETAILS_KEY
from fedstream.v1 import transfer_pb2
from fedstream.weights_file import file_parts
from fedtask.messages import TaskDescription
from tests.support.bench import Bench
from tests.support.clocks import SetClock
from tests.wire import steps as happening
from tests.wire.steps import Step

PATIENCE_SECONDS = 20.0
SCHEMA = ModelSchema(
    (TensorSpec("kernel", DataType.FLOAT32, (1, 2)), TensorSpec("step", DataType.INT64, (), trainable=False))
)
MEANING = TaskMeaning(("no", "yes"), "yes", "2 numbers as they are")
NAMES = {4: "0b" * 4, 16: "0d" * 16}
"""What is drawn at random in a server is this, by its number of bytes."""


def write_model(path: Path) -> None:
    """The initial model, as a weights file."""
    weights = {"kernel": np.array([[1.0, -2.0]], "<f4"), "step": np.array(3, "<i8")}
    path.write_bytes(b"".join(bytes(part) for part in file_parts(manifest_of(SCHEMA, weights), weights)))


class Worker:
    """Describes and makes the model of the sessions."""

    summary = test_summary = None

    async def describe(self) -> TaskDescription:
        return TaskDescription(MEANING, SCHEMA.tensors, Plan(3, 32, 0.5, 0, 0))

    async def initial_model(self, _seed: int, _source: str | None, _file: Path | None, out: Path) -> None:
        write_model(out)

    async def open(self) -> None:
        return None

    async def rest(self) -> None:
        return None

    async def evaluate(self, _weights: Path) -> None:
        return None


class Ended(Exception):
    """The server ended a call with a status."""


class Call:
    """A call as its servicer sees it. What the client says goes in by `say`; `None` closes its side."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[Message | None] = asyncio.Queue()
        self.answers: asyncio.Queue[Message] = asyncio.Queue()
        self.task: asyncio.Task[Any] | None = None

    async def requests(self) -> AsyncIterator[Any]:
        while (message := await self.said.get()) is not None:
            yield message

    async def read(self) -> Any:
        message = await self.said.get()
        return grpc.aio.EOF if message is None else message

    async def send_initial_metadata(self, head: object) -> None:
        """No answer is told by its head."""

    async def write(self, message: Message | bytes) -> None:
        is_read = isinstance(message, bytes)  # ReadChunks answers with what is serialised already
        self.answers.put_nowait(transfer_pb2.ReadChunksResponse.FromString(message) if is_read else message)

    async def abort(self, _code: Any, _details: str = "", trailing: Any = ()) -> None:
        self.answers.put_nowait(status_pb2.Status.FromString(dict(trailing)[STATUS_DETAILS_KEY]))
        raise Ended

    async def answer(self) -> Message:
        return await asyncio.wait_for(self.answers.get(), PATIENCE_SECONDS)

    async def end(self) -> None:
        assert self.task is not None
        await asyncio.wait_for(self.task, PATIENCE_SECONDS)


def parsed(message: Message) -> Any:
    """A message, or what is in a status: the bytes of an ErrorInfo depend on the order of its metadata."""
    if not isinstance(message, status_pb2.Status):
        return message
    (detail,) = message.details
    return message.code, message.message, error_details_pb2.ErrorInfo.FromString(detail.value)


class Player:
    """Plays one session.

    Args:
        bench: a federation that has just been prepared.
        clock: its clock.
    """

    def __init__(self, bench: Bench, clock: SetClock) -> None:
        self._bench, self._clock = bench, clock
        self._negotiation = NegotiationServicer(bench.federation)
        self._transfer = TransferServicer(bench.federation, bench.desk)
        self._stream: Call | None = None
        self._at_work: list[asyncio.Task[Any]] = []

    async def play(self, steps: list[Step]) -> None:
        """Every step, in order; what a call of the TransferService says is one."""
        for call, group in groupby(enumerate(steps), lambda pair: self._call_number(steps, pair[0])):
            one = [step for _, step in group]
            if call is None:
                for step in one:
                    await self._take(step)
            else:
                await self._call(one[0].call, one)

    def _call_number(self, steps: list[Step], index: int) -> int | None:
        """Where the call of the TransferService begins that a step is part of: a client speaks first, and but once."""
        if steps[index].call in ("", "Negotiate"):
            return None
        before = steps[index - 1]
        begins = (before.call, before.who) != (steps[index].call, "client") and steps[index].who == "client"
        return index if begins else self._call_number(steps, index - 1)

    async def close(self) -> None:
        """End what is still at work."""
        stream = [self._stream.task] if self._stream is not None and self._stream.task is not None else []
        for task in (*self._at_work, *stream):
            task.cancel()
        await asyncio.gather(*self._at_work, *stream, return_exceptions=True)

    async def _take(self, step: Step) -> None:
        self._clock.advance(step.seconds)
        self._bench.federation.touch()
        if step.message is None:
            await self._happens(step.happens)
        elif step.who == "client":
            self._open_stream().said.put_nowait(step.message)
        else:
            assert parsed(await self._open_stream().answer()) == parsed(step.message)

    def _open_stream(self) -> Call:
        if self._stream is None:
            self._stream = Call()
            self._stream.task = asyncio.create_task(self._negotiation.Negotiate(self._stream.requests(), self._stream))
        return self._stream

    async def _happens(self, what: str) -> None:
        federation, stream = self._bench.federation, self._open_stream()
        if what == happening.OPENS:
            self._at_work.append(await self._bench.open_round())
        elif what == happening.FEDERATION_ENDS:
            farewell = say_farewell(federation, "all 1 rounds done")
            self._at_work.append(asyncio.create_task(farewell))
        elif what == happening.STOPPED:
            federation.stop(finish_round=False)
        elif what in (happening.CLOSES_SIDE, happening.CUT):
            stream.said.put_nowait(None)
        if what in (happening.ENDS_OK, happening.CUT):
            await stream.end()
            self._stream = None

    async def _call(self, name: str, steps: list[Step]) -> None:
        said = [step.message for step in steps if step.who == "client"]
        expected = [step.message for step in steps if step.who == "server"]
        found = await self._heard(getattr(self._transfer, name), said)
        # How often a WriteChunks is answered depends on how fast the disk is; the last answer does not.
        found = found[-1:] if name == "WriteChunks" else found
        assert [parsed(message) for message in found] == [parsed(message) for message in expected]

    async def _heard(self, method: Callable[..., Any], said: list[Message | None]) -> list[Message]:
        call = Call()
        for message in (*said, None):
            call.said.put_nowait(message)
        is_stream = method.__name__ in ("PutManifest", "WriteChunks")
        try:
            result = await asyncio.wait_for(method(call.requests() if is_stream else said[0], call), PATIENCE_SECONDS)
        except Ended:
            result = None
        answers = [call.answers.get_nowait() for _ in range(call.answers.qsize())]
        return answers if result is None else [*answers, result]


async def replay(folder: Path, steps: list[Step], monkeypatch: pytest.MonkeyPatch) -> None:
    """Play a session to a server that is just so far that its client may come."""
    monkeypatch.setattr("fedserver.drawing_up.secrets.token_hex", NAMES.__getitem__)
    clock = SetClock(1000.0)
    bench = Bench(folder, clock=clock, rounds=1)
    bench.federation.evaluator = Worker()  # type: ignore[assignment]
    await prepare(bench.federation)
    bench.desk.open()
    bench.federation.stand(FederationState.WAITING, "for 1 more client")
    player = Player(bench, clock)
    try:
        await player.play(steps)
    finally:
        await player.close()
        await bench.federation.register.settled()
        bench.desk.close()
        bench.state.close()
