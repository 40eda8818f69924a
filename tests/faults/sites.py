"""Real clients, several in one process: fedclient's own `Client`, over real sockets with TLS.

What is saved by this is only what a fault harness pays over and over and learns nothing from: starting Python, and
drawing training histories. Worker processes are real, and go on from one federation to the next.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import stamina.instrumentation
import structlog

from fedclient import workplace
from fedclient.calls import Patience
from fedclient.client import Client
from fedclient.config import ClientConfig
from fedclient.display import LogDisplay
from fedclient.events import TaskOnOffer
from fedclient.training import Trainer
from fedtask.worker import TaskWorker

QUICK = Patience(first_seconds=0.05, longest_seconds=0.2)
"""How clients of the harness come back. Those of the command wait ten times as long, and do the same."""


class SpareTrainer(Trainer):
    """Trains as any other, but hands its worker process on instead of ending it."""

    def __init__(self, task: TaskOnOffer, config: ClientConfig, worker: TaskWorker) -> None:
        super().__init__(task, config)
        self._worker = worker

    async def close(self) -> None:
        """It is for the pool to end."""


@dataclass(slots=True)
class WorkerPool:
    """Worker processes by client name, for one federation at a time."""

    _workers: dict[str, TaskWorker] = field(default_factory=dict)

    def trainer(self, task: TaskOnOffer, config: ClientConfig) -> Trainer:
        """A trainer with the worker of that client."""
        if config.name not in self._workers:
            self._workers[config.name] = TaskWorker(task.task_name, task.settings)
        return SpareTrainer(task, config, self._workers[config.name])

    async def close(self) -> None:
        """End all workers."""
        for worker in self._workers.values():
            await worker.close()


@dataclass(slots=True)
class ClientLog:
    """What the clients of one federation logged, in order."""

    events: list[dict[str, Any]] = field(default_factory=list)

    def count(self, event: str) -> Mapping[tuple[str, int], int]:
        """How often an event came, by client and round."""
        found: dict[tuple[str, int], int] = {}
        for one in self.events:
            if one["event"] == event:
                key = (one["client"], one.get("round", 0))
                found[key] = found.get(key, 0) + 1
        return found


@contextlib.contextmanager
def quiet_clients() -> Iterator[None]:
    """Log lines of clients go to the `ClientLog` bound to them as `sink`, and nowhere else."""
    stamina.instrumentation.set_on_retry_hooks([])
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, _capture], cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.reset_defaults()


def _capture(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Any:
    sink: ClientLog | None = event.pop("sink", None)
    if sink is not None:
        sink.events.append(dict(event))
    raise structlog.DropEvent


@contextlib.contextmanager
def trainers(pools: Mapping[Path, WorkerPool]) -> Iterator[None]:
    """Clients whose output lies under one of these folders take their workers from that pool."""

    def make(task: TaskOnOffer, config: ClientConfig) -> Trainer:
        pool = next((pool for folder, pool in pools.items() if config.out_folder.is_relative_to(folder)), None)
        return pool.trainer(task, config) if pool is not None else Trainer(task, config)

    with mock.patch.object(workplace, "Trainer", make):
        yield


def client_config(folder: Path, address: str, fingerprint: str, index: int, num_clients: int) -> ClientConfig:
    """The settings of one client of a federation on generated data."""
    name = f"site-{index}"
    return ClientConfig.model_validate(
        {
            "server": address,
            "fingerprint": fingerprint,
            "name": name,
            "data": "phantom",
            "shard": f"{index}/{num_clients}",
            "out": folder / name,
            "state_dir": folder / name / "state",
            "pictures": False,
        }
    )


async def run_site(config: ClientConfig, log: ClientLog) -> str:
    """One client from start to end; returns how it ended."""
    structlog.contextvars.bind_contextvars(client=config.name, sink=log)
    return await Client(config, LogDisplay(), patience=QUICK).run()


def start_sites(configs: Sequence[ClientConfig], log: ClientLog) -> list[asyncio.Task[str]]:
    """All clients of a federation, each with log lines of its own."""
    return [asyncio.create_task(run_site(config, log), name=config.name) for config in configs]
