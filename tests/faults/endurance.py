"""1,000 rounds of 8 clients: does anything of the server grow?

One server process with the numpy task (64 KiB of weights) and a holdout, keeping the updates of the last 10 rounds; 8
clients that really train, in one other process. Of the server are read, after every round: resident memory, open
files, threads, the size of its state directory; and the time that the round took. The medians of the last tenth of the
rounds are compared with those of the first. Held if memory grew by at most 10%, open files and threads by at most 4,
time per round by at most a quarter, and the files of weights not at all once the retention is reached. `count` is the
number of rounds.

    python -m tests.faults.endurance --count 1000
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedserver.server import Listening
from fedserver.store.folder import read_contact
from fedstream import wire
from fedstream.manifest import manifest_of
from fedstream.schema import ModelSchema
from fedstream.v1 import negotiation_pb2
from fedtask.linear import Linear
from fedtask.task import SiteOptions, Weights
from tests.faults.member import Member, server_process
from tests.faults.results import Findings, Order, run_alone
from tests.support.serving import body_of, cut

PROMISE = "memory, open files, threads and time per round do not grow, and the disk follows the retention"
TASK = {"tensors": "4", "tensor_kib": "16", "epochs": "1"}
_CLIENTS = 8
_KEPT_ROUNDS = 10
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Reading:
    """The server after one round."""

    seconds: float
    rss_bytes: int
    open_files: int
    threads: int
    database_bytes: int
    weights_bytes: int
    weights_files: int


@dataclass(slots=True)
class Meter:
    """Reads a server process from outside."""

    pid: int
    state: Path
    last: float = field(default_factory=time.monotonic)
    readings: list[Reading] = field(default_factory=list)

    def read(self) -> None:
        """Take one reading."""
        now, process = time.monotonic(), Path(f"/proc/{self.pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        weights = sizes_of(self.state.glob("*/*.safetensors"))
        reading = Reading(
            seconds=now - self.last,
            rss_bytes=int(status["VmRSS"].split()[0]) << 10,
            open_files=len(list((process / "fd").iterdir())),
            threads=int(status["Threads"]),
            database_bytes=sum(sizes_of(self.state.glob("state.db*"))),
            weights_bytes=sum(weights),
            weights_files=len(weights),
        )
        self.readings.append(reading)
        self.last = now


def sizes_of(paths: Iterable[Path]) -> list[int]:
    """Of those that are still there: the server removes files while they are listed."""
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found.append(path.stat().st_size)
    return found


async def take_part(listening: Listening, index: int, rounds: int, on_over: Callable[[int], None]) -> None:
    """One client: trains and uploads in every round."""
    task = Linear(TASK)
    task.open_site(SiteOptions(None, shard=index, num_shards=_CLIENTS))
    async with Member.join(listening, f"site-{index}", TASK) as member:
        for number in range(1, rounds + 1):
            offer = await member.agree()
            if offer.round != number:
                raise RuntimeError(f"round {offer.round} was offered, not {number}")
            await _fine_tune_and_send(task, member, offer)
            on_over(number)


async def _fine_tune_and_send(task: Linear, member: Member, offer: negotiation_pb2.Offer) -> None:
    sha256 = offer.base_model.model_digest.sha256
    base = _weights_of(await member.site.download(sha256), member.schema)
    tuned = await asyncio.to_thread(task.fine_tune, base, wire.read_plan(offer.plan), lambda _report: None)
    manifest = manifest_of(member.schema, tuned.weights)
    missing = (await member.site.put_manifest(offer.upload_id, manifest)).missing_tensors
    await member.site.write(offer.upload_id, cut(body_of(manifest, tuned.weights, missing), _MIB))
    await member.site.finish(offer.upload_id)


def _weights_of(body: bytes, schema: ModelSchema) -> Weights:
    starts = itertools.accumulate((spec.size_bytes for spec in schema), initial=0)
    return {
        spec.name: np.frombuffer(body, spec.dtype.numpy, spec.num_elements, start).reshape(spec.shape)
        for spec, start in zip(schema, starts, strict=False)
    }


async def run(order: Order) -> Findings:
    """`order.count` rounds."""
    started = time.monotonic()
    settings = {"rounds": order.count + 1, "min_clients": _CLIENTS, "keep_rounds": _KEPT_ROUNDS, "holdout": "phantom"}
    async with server_process(order.folder / "server", settings, TASK) as listening:
        meter = Meter(read_contact(order.folder / "server" / "state")["pid"], order.folder / "server" / "state")
        finished = 0

        def on_over(number: int) -> None:
            nonlocal finished
            finished += 1
            if finished % _CLIENTS == 0:
                meter.read()
                if number % 50 == 0:
                    print(".", end="", file=sys.stderr, flush=True)

        sites = [take_part(listening, index, order.count, on_over) for index in range(_CLIENTS)]
        await asyncio.gather(*sites)
    found = _findings(meter.readings)
    found.seconds = time.monotonic() - started
    return found


_ROWS: Sequence[tuple[str, Callable[[Reading], float]]] = (
    ("resident memory, MiB", lambda one: one.rss_bytes / _MIB),
    ("open files", lambda one: one.open_files),
    ("threads", lambda one: one.threads),
    ("seconds per round", lambda one: one.seconds),
    ("database, MiB", lambda one: one.database_bytes / _MIB),
    ("files of weights", lambda one: one.weights_files),
    ("files of weights, MiB", lambda one: one.weights_bytes / _MIB),
)


def _findings(readings: Sequence[Reading]) -> Findings:
    found = Findings("endurance", PROMISE)
    share = max(1, len(readings) // 10)
    found.figures = {"rounds": len(readings), "clients": _CLIENTS, "rounds kept": _KEPT_ROUNDS}
    values: dict[str, tuple[float, float]] = {}
    for name, value in _ROWS:
        first, last = (statistics.median(map(value, part)) for part in (readings[:share], readings[-share:]))
        values[name] = first, last
        found.figures[f"{name}: first and last {share} rounds"] = f"{first:.3f} {last:.3f}"
    limits = {
        "resident memory, MiB": values["resident memory, MiB"][0] * 1.1,
        "open files": values["open files"][0] + 4,
        "threads": values["threads"][0] + 4,
        "seconds per round": values["seconds per round"][0] * 1.25,
    }
    for name, limit in limits.items():
        if values[name][1] > limit:
            found.problems.append(f"{name} grew from {values[name][0]:.3f} to {values[name][1]:.3f}, over {limit:.3f}")
    kept = [one.weights_files for one in readings[2 * _KEPT_ROUNDS :]]
    if kept and max(kept) > min(kept) + _CLIENTS:  # a round's updates come and go
        found.problems.append(f"between {min(kept)} and {max(kept)} files of weights were kept")
    return found


if __name__ == "__main__":
    run_alone(__doc__ or "", 60, run)
