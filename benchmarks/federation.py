"""One federation as users run it, `fedserver run` and N times `fedclient run`, watched from outside.

Where there are more sites than this machine can run clients, bare ones can stand in for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from benchmarks import arithmetic, shift
from benchmarks.course import Course
from benchmarks.crowd import start_crowd
from benchmarks.floor import ROOT
from benchmarks.processes import MemoryWatch, cpu_seconds
from benchmarks.rows import Row, Security
from fedstream.weights_file import WeightsFile
from tests.support.processes import Running, RunningServer, Stage, stage

_ROUND_SECONDS = 300.0
_POLL_SECONDS = 0.02

Members = Callable[[Stage, RunningServer, Row], Sequence[Running]]
"""Starts the sites of a federation."""


class WrongResult(Exception):
    """The federation's model is not what it must be."""


def full_clients(made: Stage, server: RunningServer, row: Row) -> Sequence[Running]:
    """Each site a `fedclient run`."""
    count = row.size.clients
    return [
        made.client(
            f"site-{number}",
            server.listening,
            *("--task", shift.REFERENCE),
            python_path=ROOT,
            shard=f"{number}/{count}",
            pictures=True,
        )
        for number in range(count)
    ]


def bare_sites(made: Stage, server: RunningServer, row: Row) -> Sequence[Running]:
    """A few processes that speak the protocol for all of them."""
    return start_crowd(made, server.listening, row.size).running


def run_federation(row: Row, rounds: int, folder: Path, members: Members = full_clients) -> Course:
    """Run one round more than are measured, and check the final model bit by bit.

    Args:
        row: how large, and how connected.
        rounds: how many are measured.
        folder: an empty one.
        members: what its sites are.

    Raises:
        NotInTime: something has not happened in time; the message has the log.
        WrongResult: the final model differs from the one that it must be.
    """
    with stage(folder) as made:
        server = start_server(made, row, rounds + 1)
        watch = MemoryWatch(server.process.pid)
        watch.start()
        clients = members(made, server, row)
        pids = [client.process.pid for client in clients]
        _await_published(server, 1)
        before = cpu_seconds([server.process.pid]), cpu_seconds(pids)
        _await_published(server, rounds + 1)
        after = cpu_seconds([server.process.pid]), cpu_seconds(pids)
        await_end(server, clients)
        peak = watch.stop()
        published = server.said("published")
        check_model(server, row, rounds + 1)
    return Course(
        ends=[datetime.fromisoformat(event["timestamp"]).timestamp() for event in published],
        server_cpu_seconds=(after[0] - before[0]) / rounds,
        client_cpu_seconds=(after[1] - before[1]) / rounds,
        peak=peak,
    )


def start_server(made: Stage, row: Row, rounds: int, *options: str) -> RunningServer:
    """The server of a federation in which all clients are in each of so many rounds."""
    options += ("--rounds", str(rounds), "--min-clients", str(row.size.clients), "--seed", str(arithmetic.SEED))
    options += ("--plaintext",) if row.security is Security.PLAIN else ()
    return made.server(*options, task=shift.REFERENCE, python_path=ROOT, mib=row.size.mib)


def await_end(server: RunningServer, clients: Sequence[Running]) -> None:
    """Return when all have ended by themselves.

    Raises:
        NotInTime: one has not.
        WrongResult: one has failed.
    """
    for running in (*clients, server):
        if status := running.wait():
            raise WrongResult(f"{running.log.name} ended with status {status}:\n{running.text}")


def _await_published(server: RunningServer, count: int) -> None:
    deadline = time.monotonic() + _ROUND_SECONDS * count
    while len(server.said("published")) < count:
        if server.process.poll() is not None or time.monotonic() > deadline:
            raise WrongResult(f"{count} rounds were due, and the server said\n{server.text}")
        time.sleep(_POLL_SECONDS)


def check_model(server: RunningServer, row: Row, rounds: int) -> None:
    """Each tensor of the last model must be that of round 0 plus the number of rounds.

    Raises:
        WrongResult: one is not.
    """
    digest = server.said("published")[-1]["model"]
    [path] = (server.state / "models").glob(f"{digest}*.safetensors")
    wrong = arithmetic.first_wrong(WeightsFile(path).weights(), rounds)
    if wrong is not None:
        raise WrongResult(f"tensor {wrong} of {row} is not its initial value plus {rounds}")
