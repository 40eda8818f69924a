"""One small federation with a real server process that may be killed again and again, to its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedserver.addresses import lasting_port
from tests.faults.phases import ClientPhase, Phase
from tests.faults.sites import ClientLog, client_config, start_sites

NUM_CLIENTS = 4
NUM_ROUNDS = 3
TASK_SETTINGS = {"tensors": "8", "tensor_kib": "256", "seconds": "0.05", "epochs": "2"}
"""2 MiB of weights, so that every phase takes a while, and training of a tenth of a second."""

TIMEOUT_SECONDS = 180.0
SLOW_COMING_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Aim:
    """When a process is to be killed: so long after the entry into a phase, in that round or later."""

    phase: Phase | ClientPhase
    round: int
    delay_seconds: float


@dataclass(frozen=True, slots=True)
class Ending:
    """How one process ended: killed in `phase`, or by itself with `status`."""

    killed: bool
    status: int
    phase: Phase | ClientPhase
    durations: Sequence[tuple[str, float]]


@dataclass(slots=True)
class Federation:
    """What came out of a federation. `models` are the global models' digests by round, `seconds` of wall-clock time."""

    folder: Path
    endings: list[Ending] = field(default_factory=list)
    log: ClientLog = field(default_factory=ClientLog)
    models: dict[int, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def server_command(folder: Path, port: int, **options: str) -> list[str]:
    """The command of the server of a federation that lives in `folder`."""
    settings = [word for key, value in TASK_SETTINGS.items() for word in ("--task-set", f"{key}={value}")]
    return [
        *(sys.executable, "-c", "from fedserver.cli import main; main()", "run", "--task", "linear", *settings),
        *("--holdout", "phantom", "--listen", f"127.0.0.1:{port}", "--rounds", str(NUM_ROUNDS)),
        *("--min-clients", str(NUM_CLIENTS), "--state", str(folder / "state"), "--out", str(folder / "out")),
        *("--open-enrolment", "--log-json", "--log-level", "debug", "--no-pictures"),
        *(word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", value)),
    ]


async def run_guarded(of: str, command: Sequence[str], log: Path, aims: Sequence[Aim], endings: list[Ending]) -> int:
    """Run a `server` or a `client`, killed once for each aim and started again; returns how it ended by itself."""
    left = list(aims)
    while True:
        aim = left.pop(0) if left else None
        ending = await _guarded(of, command, log, aim)
        endings.append(ending)
        if not ending.killed:
            return ending.status


async def _guarded(of: str, command: Sequence[str], log: Path, aim: Aim | None) -> Ending:
    order = {
        "of": of,
        "command": list(command),
        "log": str(log),
        "phase": aim.phase.value if aim else None,
        "round": aim.round if aim else 0,
        "delay": aim.delay_seconds if aim else 0.0,
    }
    guard = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.guard", json.dumps(order)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert guard.stdin is not None
    assert guard.stdout is not None
    try:
        report = await guard.stdout.read()
        await guard.wait()
    except asyncio.CancelledError:
        guard.stdin.close()  # it ends the server, and then itself
        await guard.wait()
        raise
    said: Any = json.loads(report)
    phase = Phase(said["phase"]) if of == "server" else ClientPhase(said["phase"])
    return Ending(said["killed"], said["status"], phase, [(name, took) for name, took in said["durations"]])


async def fingerprint_of(folder: Path) -> str:
    """The fingerprint of the server's certificate, once it serves."""
    path = folder / "state" / "server.json"
    while not path.exists():  # noqa: ASYNC110 - another process makes it
        await asyncio.sleep(0.01)
    fingerprint: str = json.loads(path.read_text())["fingerprint"]
    return fingerprint


@asynccontextmanager
async def cancelled_at_end(*tasks: asyncio.Task[Any]) -> AsyncIterator[None]:
    """Tasks that do not outlive the block."""
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run_federation(folder: Path, aims: Sequence[Aim] = ()) -> Federation:
    """A federation of `NUM_CLIENTS` clients over `NUM_ROUNDS` rounds, its server killed as the aims say.

    Where it is to be killed while it waits for clients, the last one comes late.
    """
    _make_empty(folder)
    found, started = Federation(folder), time.monotonic()
    port, sites = lasting_port(), list[asyncio.Task[str]]()
    server = asyncio.create_task(
        run_guarded("server", server_command(folder, port), folder / "server.log", aims, found.endings)
    )
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS), cancelled_at_end(server):
            fingerprint = await _while_it_lives(server, fingerprint_of(folder))
            configs = [
                client_config(folder, f"127.0.0.1:{port}", fingerprint, index, NUM_CLIENTS)
                for index in range(NUM_CLIENTS)
            ]
            *first, last = configs
            sites += start_sites(first, found.log)
            if any(aim.phase is Phase.SELECT for aim in aims):
                await _ready(folder)
                await asyncio.sleep(SLOW_COMING_SECONDS)
            sites += start_sites([last], found.log)
            await _to_the_end(server, sites, found)
    except TimeoutError:
        found.problems.append(f"not over after {TIMEOUT_SECONDS:.0f} s")
        found.problems += [f"{site.get_name()} had ended: {_ending_of(site)}" for site in sites if site.done()]
    except RuntimeError as error:
        found.problems.append(str(error))
    found.seconds = time.monotonic() - started
    with contextlib.suppress(sqlite3.Error):
        found.models = models_of(folder / "state")
    found.problems += _repeated_trainings(found.log)
    if found.problems:
        (folder / "clients.log").write_text("".join(f"{event}\n" for event in found.log.events))
    return found


def _ending_of(site: asyncio.Task[str]) -> str:
    return "cancelled" if site.cancelled() else repr(site.exception())


async def _ready(folder: Path) -> None:
    """Return when the server waits for clients."""
    log = folder / "server.log"
    while b'"event": "ready"' not in log.read_bytes():  # noqa: ASYNC110 - another process writes it
        await asyncio.sleep(0.01)


async def _while_it_lives(server: asyncio.Task[int], wanted: Coroutine[Any, Any, str]) -> str:
    found = asyncio.create_task(wanted)
    await asyncio.wait({server, found}, return_when=asyncio.FIRST_COMPLETED)
    if found.done():
        return found.result()
    found.cancel()
    raise RuntimeError(f"the server ended with status {server.result()} before it served")


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


async def _to_the_end(server: asyncio.Task[int], sites: list[asyncio.Task[str]], found: Federation) -> None:
    async with cancelled_at_end(*sites):
        status = await server
        if status:
            found.problems.append(f"the server ended with status {status}")
        done, waiting = await asyncio.wait(sites, timeout=20.0)
    found.problems += [f"{site.get_name()} ended with {site.exception()!r}" for site in done if site.exception()]
    found.problems += [f"{site.get_name()} never heard how the federation ended" for site in waiting]


def _repeated_trainings(log: ClientLog) -> list[str]:
    trained: Mapping[tuple[str, int], int] = log.count("trained")
    return [
        f"{client} finished training {count} times in round {number}"
        for (client, number), count in trained.items()
        if count > 1
    ]


def models_of(state: Path) -> dict[int, str]:
    """The digest of the global model that each round made, in hex."""
    with contextlib.closing(sqlite3.connect(f"file:{state / 'state.db'}?mode=ro", uri=True)) as database:
        return {number: sha256.hex() for number, sha256 in database.execute("SELECT version, sha256 FROM versions")}
