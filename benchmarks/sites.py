"""A thousand connected sites: what they cost while they wait, how fast all have an offer, and a round of all of them.

Bare sites, each with a certificate and a connection of its own, join; the federation is paused while they wait, so that
one word opens the first round.
Processor time is of the server and its worker. A round is from the word, or from when the last site has heard how the
round before ended, until the last site has heard how this one did; in it, each fetches the model and sends as much.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.crowd import Crowd, start_crowd
from benchmarks.federation import await_end, check_model, start_server
from benchmarks.floor import measure_floor
from benchmarks.options import Options
from benchmarks.processes import MemoryWatch, Peak, cpu_seconds
from benchmarks.rows import Row, Security, Size
from benchmarks.tables import Line, Table
from fedstream.v1 import admin_pb2
from tests.support.processes import RunningServer, Stage, stage

_MODEL_MIB = 0.25
_ROUNDS = 2
_WAIT_SECONDS = 30.0
"""As long as from one keep-alive ping to the next, of either end: each connection has one of both."""

_SETTLE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Found:
    """What one federation showed. `waiting` is the server's peak until the first round opens, `working` after it.

    Processor seconds are per round; what the sites take is the load generator's, and shares the machine.
    """

    joining_seconds: float
    waiting: Peak
    cpu_share: float
    offering_seconds: float
    rounds_seconds: Sequence[float]
    working: Peak
    server_cpu_seconds: float
    sites_cpu_seconds: float


def run(options: Options) -> Table:
    """Measure as often as the options say, in turn with the floor."""
    row = Row(Size(options.num_sites, _MODEL_MIB), Security.MUTUAL_TLS)
    rounds = options.rounds or _ROUNDS
    found: list[Found] = []
    floors: list[float] = []
    for turn in range(options.repeats):
        folder = Path(tempfile.mkdtemp(prefix="sites-", dir=options.folder))
        found.append(measure(row, rounds, folder))
        shutil.rmtree(folder)  # kept after an error, for somebody to look at
        options.say(f"federation {turn + 1}: {found[-1]}")
        floors += measure_floor(row, rounds, options.folder)
        options.say(f"floor {turn + 1}: {', '.join(f'{seconds:.2f}' for seconds in floors[-rounds:])} s")
    title = f"sites: {options.num_sites:,} on connections of their own, mutual TLS"
    return Table(title, _lines(found, floors))


def measure(row: Row, rounds: int, folder: Path, wait_seconds: float = _WAIT_SECONDS) -> Found:
    """Run one federation of bare sites; its logs are left in the folder.

    Raises:
        NotInTime: something has not happened in time; the message has the log.
        WrongResult: the final model differs from the one that it must be.
    """
    with stage(folder) as made:
        server = start_server(made, row, rounds)
        server.until("the model to be made", lambda look: look.state.HasField("global_model") or None)
        waiting = _watch(server)
        early, joining_seconds = _join(made, server, row)
        _pause(server)
        late = start_crowd(made, server.listening, row.size, range(row.size.clients - 1, row.size.clients))
        late.reached("joined")
        sites = Crowd([*early.running, *late.running])
        time.sleep(min(_SETTLE_SECONDS, wait_seconds))
        cpu_share = _cpu_share(server, wait_seconds)
        peak = waiting.stop()
        working = _watch(server)
        before = _cpu(server, sites)
        opened = _resume(server)
        offering_seconds = sites.reached("offered", 1) - opened
        ends = [opened, *(sites.reached("heard", number + 1) for number in range(rounds))]
        cpu = [(now - then) / rounds for now, then in zip(_cpu(server, sites), before, strict=True)]
        await_end(server, sites.running)
        check_model(server, row, rounds)
        seconds = [later - earlier for earlier, later in itertools.pairwise(ends)]
        return Found(joining_seconds, peak, cpu_share, offering_seconds, seconds, working.stop(), *cpu)


def _join(made: Stage, server: RunningServer, row: Row) -> tuple[Crowd, float]:
    """All sites but the last, and how long they took. Who is there is told how many are missing, as in real life."""
    early = start_crowd(made, server.listening, row.size, range(row.size.clients - 1))
    began = early.first("dialling")
    return early, early.reached("joined") - began


def _watch(server: RunningServer) -> MemoryWatch:
    watch = MemoryWatch(server.process.pid)
    watch.start()
    return watch


def _pause(server: RunningServer) -> None:
    with server.administration() as stub:
        stub.Pause(admin_pb2.PauseRequest(), timeout=30.0)


def _resume(server: RunningServer) -> float:
    """When the word was given."""
    with server.administration() as stub:
        began = time.monotonic()
        stub.Resume(admin_pb2.ResumeRequest(), timeout=30.0)
        return began


def _cpu(server: RunningServer, sites: Crowd) -> tuple[float, float]:
    return cpu_seconds([server.process.pid]), cpu_seconds(one.process.pid for one in sites.running)


def _cpu_share(server: RunningServer, seconds: float) -> float:
    before, began = cpu_seconds([server.process.pid]), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds([server.process.pid]) - before) / (time.monotonic() - began)


def _lines(found: Sequence[Found], floors: Sequence[float]) -> list[Line]:
    rounds = [seconds for one in found for seconds in one.rounds_seconds]
    times = statistics.median(rounds) / statistics.median(floors)
    return [
        _line(
            "server's peak memory until the first round, MiB, resident", [one.waiting.resident for one in found], "300"
        ),
        _line("of it own", [one.waiting.own for one in found]),
        _line("processor time while they wait, % of a core", [100 * one.cpu_share for one in found], "5"),
        _line("from the word to the last offer, s", [one.offering_seconds for one in found], "1"),
        _line(f"round, {_MODEL_MIB * 1024:g} KiB down and up each, s", rounds),
        _line("floor, s", floors),
        Line("times the floor", {"measured": times, "at most": "3"}),
        _line("processor time a round, server, s", [one.server_cpu_seconds for one in found]),
        _line("all sites, s", [one.sites_cpu_seconds for one in found]),
        _line("peak memory in the rounds, MiB, resident", [one.working.resident for one in found]),
        _line("all joined, s", [one.joining_seconds for one in found]),
    ]


def _line(name: str, samples: Sequence[float], target: str = "") -> Line:
    return Line(name, {"measured": statistics.median(samples), "at most": target}, {"samples": samples})
