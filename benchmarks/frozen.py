"""What a round moves where a small part of the model is trained: shares of the model's size, per client and direction.

The model is of the size of a MobileNetV2 whose head alone is trained: 260 frozen tensors, 8.9 MiB together, and a head
of 1,281 numbers. Rounds count from the second on: in the first each client receives the whole model, once. The server
counts bytes of weights; a relay in between counts all that passes, with TLS, manifests and negotiation. It is read when
all train in the second round, which takes a second in which next to nothing moves, and at the end: between the two each
update and each new model moved once.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.federation import await_end
from benchmarks.options import Options
from benchmarks.tables import Line, Table
from fedstream.v1 import negotiation_pb2
from fedtask.linear import Linear
from tests.support.processes import Look, RunningServer, Stage, stage
from tests.support.proxy import proxied

_SETTINGS = {"features": "1280", "frozen_tensors": "260", "tensor_kib": "35", "epochs": "1", "seconds": "1"}
_CLIENTS = 2
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Moved:
    """Bytes to and from clients, of all clients together."""

    down: int
    up: int

    def since(self, earlier: Moved) -> Moved:
        """What was moved after `earlier`."""
        return Moved(self.down - earlier.down, self.up - earlier.up)


@dataclass(frozen=True, slots=True)
class Found:
    """What the rounds from the second on moved: of weights, by round, and in all, of all these rounds together."""

    weights: Sequence[Moved]
    wire: Moved


def run(options: Options) -> Table:
    """Measure one federation: what it moves is the same each time."""
    rounds = options.rounds or _ROUNDS
    with tempfile.TemporaryDirectory(prefix="frozen-", dir=options.folder) as folder:
        found = asyncio.run(measure(Path(folder), rounds))
    title = f"frozen: % of the model that moves per round and client, of {_CLIENTS} clients"
    weights = [_line(f"weights, round {number}", moved, 1) for number, moved in enumerate(found.weights, 2)]
    return Table(title, [*weights, _line("all bytes on the wire, mean of these rounds", found.wire, rounds)])


async def measure(folder: Path, rounds: int) -> Found:
    """Run a federation of one round more than are measured.

    Raises:
        NotInTime: something has not happened in time; the message has the log.
        WrongResult: a process has failed.
    """
    with stage(folder) as made:
        server = await asyncio.to_thread(_start_server, made, rounds + 1)
        async with proxied(server.listening) as (proxy, listening):
            clients = [
                made.client(f"site-{number}", listening, shard=f"{number}/{_CLIENTS}") for number in range(_CLIENTS)
            ]
            await asyncio.to_thread(server.until, "all to train in the second round", _train_in_second_round)
            first = Moved(proxy.bytes_down, proxy.bytes_up)
            await asyncio.to_thread(await_end, server, clients)
            last = Moved(proxy.bytes_down, proxy.bytes_up)
        return Found(_counted(made, server)[1:], last.since(first))


def _start_server(made: Stage, rounds: int) -> RunningServer:
    settings: dict[str, Any] = dict(_SETTINGS)
    return made.server("--rounds", str(rounds), "--min-clients", str(_CLIENTS), **settings)


def _train_in_second_round(look: Look) -> bool:
    phases = [part.phase for part in look.parts.values()] if look.rounds_over == 1 else []
    return phases == [negotiation_pb2.PHASE_TRAINING] * _CLIENTS


def _counted(made: Stage, server: RunningServer) -> list[Moved]:
    """By round, as the server counts."""
    rounds = made.command("fedserver", "rounds", "--state", str(server.state), "--json").json["rounds"]
    return [Moved(int(one["bytes_sent"]), int(one["bytes_received"])) for one in rounds]


def _line(name: str, moved: Moved, rounds: int) -> Line:
    whole = Linear(_SETTINGS).schema().size_bytes * _CLIENTS * rounds
    shares = {"to a client": 100 * moved.down / whole, "from a client": 100 * moved.up / whole}
    return Line(name, {**shares, "at most": "1"})
