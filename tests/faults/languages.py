"""A federation of clients in four languages, whose server and two of whose clients are killed at random instants.

One client each in Python, JavaScript, Go and C++, over TLS; they train `brain_mri_head` on generated features. In each
federation the server is killed once, and two of the clients once each, with SIGKILL, at instants drawn from the time
that an undisturbed federation takes; all are started again at once with the folders they had. Held if every federation
finishes and each round's global model is that of the undisturbed one. `count` is the number of federations.

    python -m tests.faults.languages --count 20 --seed 0
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedserver.addresses import lasting_port
from tests.faults.federation import cancelled_at_end, fingerprint_of, models_of
from tests.faults.results import Findings, Order, run_alone
from tests.support.cpp import CPP
from tests.support.features import write_wide_site
from tests.support.foreign import ForeignClient
from tests.support.go import GO
from tests.support.node import NODE

PROMISE = "kill -9 of the server and of clients in any language at any instant leaves the final model as it was"
FOREIGN: Sequence[ForeignClient] = (NODE, GO, CPP)
NUM_ROUNDS = 3
_KILLED_CLIENTS = 2
_WIDTH = 1 << 18
"""Features of which a kernel takes 1 MiB, in 16 chunks."""
_SETTINGS = {"backbone": "none", "features": str(_WIDTH), "epochs": "2", "patience": "0"}
_TRAINING_SECONDS = "0.3"
_TIMEOUT_SECONDS = 180.0


@dataclass(slots=True)
class Ended:
    """What came out of one federation. `killed` are the names of what was killed, and when, in seconds."""

    folder: Path
    killed: list[tuple[str, float]] = field(default_factory=list)
    models: dict[int, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def missing() -> str:
    """Why there are not all languages here; empty if there are."""
    return "; ".join(reason for client in FOREIGN if (reason := client.missing()))


async def run(order: Order) -> Findings:
    """`order.count` federations, one after the other: four runtimes at a time are load enough."""
    if reason := missing():
        return Findings("languages", PROMISE, skipped=reason)
    for client in FOREIGN:
        client.build()
    started, drawn = time.monotonic(), random.Random(order.seed)
    reference = await run_federation(order.folder / "reference", {})
    if reference.problems:
        raise RuntimeError(f"the undisturbed federation failed: {reference.problems}; see {reference.folder}")
    ended = []
    for number in range(order.count):
        ended.append(await run_federation(order.folder / f"federation-{number}", _aims(drawn, reference.seconds)))
        if ended[-1].models != reference.models:
            ended[-1].problems.append(f"another model: {ended[-1].models}")
        if not ended[-1].problems:
            shutil.rmtree(ended[-1].folder)
        print(".", end="", file=sys.stderr, flush=True)
    found = _findings(reference, ended)
    found.seconds = time.monotonic() - started
    return found


def _aims(drawn: random.Random, seconds: float) -> Mapping[str, float]:
    """Whom to kill, and how long after the start of the federation."""
    names = ["python", *(client.language for client in FOREIGN)]
    chosen = ["server", *drawn.sample(names, _KILLED_CLIENTS)]
    return {name: drawn.uniform(0.1, seconds) for name in chosen}


def _findings(reference: Ended, ended: Sequence[Ended]) -> Findings:
    kills = Counter(name for one in ended for name, _ in one.killed)
    figures: dict[str, object] = {
        "federations": len(ended),
        "finished with the same models": sum(not one.problems for one in ended),
        "kills": dict(sorted(kills.items())),
        "seconds undisturbed": reference.seconds,
        "seconds, most": max((one.seconds for one in ended), default=0.0),
    }
    problems = [f"{one.folder.name}, killed {one.killed}: {words}" for one in ended for words in one.problems]
    return Findings("languages", PROMISE, figures, problems)


async def run_federation(folder: Path, aims: Mapping[str, float]) -> Ended:
    """A federation in which these processes are killed after so many seconds, and started again."""
    folder.mkdir(parents=True)  # noqa: ASYNC240 - nothing else is going on yet
    ended, started, port = Ended(folder), time.monotonic(), lasting_port()
    server = asyncio.create_task(_kept("server", _server(folder, port), folder, aims, ended))
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS), cancelled_at_end(server):
            fingerprint = await fingerprint_of(folder)
            trust = ["--server", f"127.0.0.1:{port}", "--fingerprint", fingerprint]
            sites = [
                asyncio.create_task(_kept(name, [*words, *trust, *_site(folder, name)], folder, aims, ended))
                for name, words in _commands().items()
            ]
            async with cancelled_at_end(*sites):
                await asyncio.gather(*sites)
            await server
    except TimeoutError:
        ended.problems.append(f"not over after {_TIMEOUT_SECONDS:.0f} s")
    ended.seconds = time.monotonic() - started
    with contextlib.suppress(sqlite3.Error):
        ended.models = models_of(folder / "state")
    return ended


def _server(folder: Path, port: int) -> list[str]:
    settings = [word for key, value in _SETTINGS.items() for word in ("--task-set", f"{key}={value}")]
    return [
        *(sys.executable, "-m", "fedserver.cli", "run", "--task", "brain_mri_head", *settings),
        *("--listen", f"127.0.0.1:{port}", "--rounds", str(NUM_ROUNDS), "--min-clients", str(len(FOREIGN) + 1)),
        *("--state", str(folder / "state"), "--out", str(folder / "out"), "--open-enrolment", "--log-json"),
    ]


def _commands() -> Mapping[str, Sequence[str]]:
    """How a client in each language is started. Their training waits a moment, so that kills fall into it."""
    own = [sys.executable, "-m", "fedclient.cli", "run", "--log-json"]
    return {"python": own, **{client.language: client.slow for client in FOREIGN}}


def _site(folder: Path, name: str) -> list[str]:
    place = folder / name
    place.mkdir()
    data = write_wide_site(place, _WIDTH, _SETTINGS)
    return ["--name", name, "--data", str(data), "--out", str(place / "out"), "--state-dir", str(place / "state")]


async def _kept(name: str, command: Sequence[str], folder: Path, aims: Mapping[str, float], ended: Ended) -> None:
    """Run a process to its end, killed once if there is an aim, and then started again."""
    begun = time.monotonic()
    delay = aims.get(name)
    while True:
        process = await _start(name, command, folder)
        try:
            killed = delay is not None and await _outlived(process, delay)
            if not killed:
                await process.wait()
        finally:
            _end(process)
            await process.wait()
        if not killed:
            break
        ended.killed.append((name, round(time.monotonic() - begun, 3)))
        delay = None
    if process.returncode:
        ended.problems.append(f"{name} ended with status {process.returncode}")


async def _start(name: str, command: Sequence[str], folder: Path) -> asyncio.subprocess.Process:
    with (folder / f"{name}.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "SLOW_HEAD_SECONDS": _TRAINING_SECONDS},
        )


async def _outlived(process: asyncio.subprocess.Process, seconds: float) -> bool:
    """Whether it still runs after that time."""
    ended = asyncio.create_task(process.wait())
    done, _ = await asyncio.wait({ended}, timeout=seconds)
    ended.cancel()
    return not done


def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    run_alone(__doc__ or "", 20, run)
