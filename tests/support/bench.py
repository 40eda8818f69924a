"""A federation without network and worker processes: the real rounds, desk and store, driven step by step.

What stands in for the worker builds the task's initial model in this process and gives the scores it was told to give.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fedserver.clock import Clock, SystemClock
from fedserver.config import ServerConfig
from fedserver.coordinator.participation import Participation
from fedserver.coordinator.population import ClientState, Introduction
from fedserver.coordinator.round import Round
from fedserver.desk import Desk, UploadStatus
from fedserver.disk import DiskWatch
from fedserver.driver import revive
from fedserver.federation import Federation
from fedserver.intake import Intake
from fedserver.phases import RoundWork, run_round
from fedserver.preparation import prepare
from fedserver.sessions import Session
from fedserver.store import State, UpdateFacts
from fedserver.store.disk import FreeBytes, free_bytes
from fedserver.upkeep import collect_garbage
from fedstream.files import FileSystem
from fedstream.manifest import manifest_of
from fedstream.schema import ModelSchema
from fedstream.weights_file import file_parts
from fedtask.messages import TaskDescription
from fedtask.task import Evaluation
from tests.support.tasks import Shapes, random_weights

SCHEMA: ModelSchema = Shapes({}).schema()


class Worker:
    """Stands in for `fedserver.evaluation.Evaluator`. `accuracies` are given to the models in turn, then none."""

    def __init__(self, accuracies: Sequence[float]) -> None:
        self._task = Shapes({})
        self._accuracies = list(accuracies)
        self.summary = None
        self.test_summary = None

    async def describe(self) -> TaskDescription:
        return TaskDescription(self._task.meaning(), self._task.schema().tensors, self._task.default_plan())

    async def initial_model(self, seed: int, source: str | None, from_file: Path | None, out: Path) -> None:
        weights = self._task.initial_weights(seed, source)
        write_weights(out, weights)

    async def open(self) -> None:
        return None

    async def rest(self) -> None:
        return None

    async def evaluate(self, _weights: Path) -> Evaluation | None:
        if not self._accuracies:
            return None
        return Evaluation(metrics={"accuracy": self._accuracies.pop(0), "loss": 0.5}, num_examples=4)


def write_weights(path: Path, weights: Mapping[str, np.ndarray]) -> None:
    """A weights file with all tensors of the schema."""
    path.write_bytes(b"".join(bytes(part) for part in file_parts(manifest_of(SCHEMA, weights), weights)))


class Bench:
    """One server process's worth of a federation. A second one on the same folder is the next process."""

    def __init__(
        self,
        folder: Path,
        files: FileSystem | None = None,
        clock: Clock | None = None,
        free: FreeBytes = free_bytes,
        accuracies: Sequence[float] = (),
        **settings: Any,
    ) -> None:
        defaults = {"task": "tests.support.tasks:Shapes", "min_clients": 1, "retry_delay_seconds": 0.01}
        self.config = ServerConfig.model_validate({**defaults, "state": folder, **settings})
        self.state = State(folder, files)
        worker: Any = Worker(accuracies)
        disk = DiskWatch(self.state, self.config.min_free_bytes, self.config.retry_delay_seconds, free)
        self.federation = Federation(self.config, self.state, worker, clock or SystemClock(), disk)
        self.desk = Desk(self.federation)
        self.revived: Intake | None = None
        self._sessions: dict[str, Session] = {}

    @classmethod
    @asynccontextmanager
    async def running(cls, folder: Path, clients: str = "", **settings: Any) -> AsyncIterator[Bench]:
        """Prepared, and with what an earlier process left; one client for each letter of `clients`."""
        bench = cls(folder, **settings)
        try:
            await prepare(bench.federation)
            bench.revived = await revive(bench.federation, bench.desk)
            for name in clients:
                bench.join(name)
            await bench.federation.register.settled()
            yield bench
        finally:
            await bench.federation.register.settled()
            bench.desk.close()
            bench.state.close()

    @property
    def round(self) -> Round:
        assert self.federation.round is not None
        return self.federation.round

    def join(self, name: str, num_examples: int = 10) -> None:
        """A client says hello."""
        self._sessions[name] = self.federation.sessions.open(name)
        self.federation.welcome(Introduction(name, num_examples, "bench"))

    def leave(self, name: str) -> None:
        """Its connection is lost."""
        self.federation.sessions.close(self._sessions.pop(name))
        self.federation.gone(name, ClientState.DISCONNECTED, "the call was cut")

    def part(self, name: str) -> Participation:
        part = self.round.of_client(name)
        assert part is not None
        return part

    async def open_round(self, number: int | None = None) -> asyncio.Task[RoundWork]:
        """Start a round, or go on with the one that was left; returns when clients can work."""
        number = number or (self.revived.round.number if self.revived else len(self.federation.history) + 1)
        running = asyncio.create_task(run_round(self.federation, number, self.revived))
        while not running.done() and (self.federation.round is None or self.round.number != number):  # noqa: ASYNC110 - the driver tells clients only
            await asyncio.sleep(0.001)
        self.revived = None
        return running

    async def end_round(self, running: asyncio.Task[RoundWork]) -> RoundWork:
        """What `run_rounds` does when a round is over."""
        work = await asyncio.wait_for(running, 20.0)
        await self.desk.clear()
        await collect_garbage(self.federation)
        return work

    async def accept(self, name: str) -> str:
        """A client takes its offer; returns the id of its upload."""
        part = self.part(name)
        self.federation.apply(self.round.accept(name, part.offer_id, self.federation.now))
        await self.federation.keep(self.round, part)
        return part.upload_id

    async def begin(self, name: str, weights: Mapping[str, np.ndarray], num_examples: int = 10) -> str:
        """A client takes its offer and gives its manifest."""
        upload_id = await self.accept(name)
        await self.desk.begin(upload_id, manifest_of(SCHEMA, weights), UpdateFacts(num_examples, {"loss": 0.25}))
        return upload_id

    async def write(self, upload_id: str, weights: Mapping[str, np.ndarray], stop: int | None = None) -> None:
        """Send the body, up to `stop`, and make it durable."""
        upload = (await self.desk.at_work(upload_id)).upload
        entries = [upload.manifest.entries[index] for index in upload.missing]
        body = b"".join(weights[entry.name].tobytes() for entry in entries)
        await asyncio.to_thread(upload.write, 0, body[:stop])
        await self.desk.commit(upload_id, upload)

    async def send(self, name: str, weights: Mapping[str, np.ndarray], num_examples: int = 10) -> UploadStatus:
        """A client's whole part in a round."""
        upload_id = await self.begin(name, weights, num_examples)
        await self.write(upload_id, weights)
        return await self.desk.finish(upload_id)

    async def play(self, *seeds: int) -> RoundWork:
        """A round in which clients `a`, `b`, ... send random updates of these seeds."""
        running = await self.open_round()
        for name, seed in zip("abcdefgh", seeds, strict=False):
            await self.send(name, random_weights(SCHEMA, seed))
        return await self.end_round(running)


def image_of(folder: Path, to: Path) -> Path:
    """What a crash at this instant would leave, as long as nothing is being written: a copy without the lock."""
    shutil.copytree(folder, to)
    return to
