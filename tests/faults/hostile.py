"""A server under attack while a federation goes on: frames and messages that are not sound, and silent connections.

One server process with TLS and the numpy task; four clients that train and upload, round after round, for as long as
the attack lasts. From 4 connections come HTTP/2 frames of any type, length and content; from 12, calls of every RPC
with sound messages changed, random bytes, and now and then what is worst by design (a tensor of 10 GiB, 100,000
tensors, names of 1 MiB, `../` and NUL in names, a zstd bomb); and 500 connections send a byte a second. Of the server
are read, each second: resident memory and open files. Held if the rounds of the clients go on, the server never fails a
call by an error of its own, and memory in the last tenth of the attack is within a tenth of that of its second tenth,
by medians; under two minutes that is not looked at. `count` is the seconds of the attack.

    python -m tests.faults.hostile --count 600
"""

from __future__ import annotations

import asyncio
import logging
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field

from fedserver.server import Listening
from fedserver.store.folder import read_contact
from tests.faults.attackers import Tally, say_nothing, send_frames, send_messages
from tests.faults.endurance import TASK, Meter, take_part
from tests.faults.member import server_process
from tests.faults.results import Findings, Order, run_alone

PROMISE = "whatever peers send, the server goes on, its memory does not grow, and a federation finishes its rounds"
_CLIENTS = 4
_FRAME_SENDERS = 4
_MESSAGE_SENDERS = 12
_SILENT = 500
_ROUNDS = 100_000
"""More than any attack lasts."""

_ENOUGH_SECONDS = 120
"""Until then memory grows as that of any server that has just begun to work."""

_SETTINGS = {
    "min_clients": _CLIENTS,
    "rounds": _ROUNDS,
    "keep_rounds": 2,
    # Short, so that they are reached again and again.
    "handshake_timeout_seconds": 5,
    "message_timeout_seconds": 2,
}
_MIB = 1 << 20


@dataclass(slots=True)
class Attack:
    """What goes on at the same time."""

    listening: Listening
    rounds: int = 0
    tally: Tally = field(default_factory=Tally)

    async def during(self, seconds: int, seed: int, meter: Meter) -> None:
        """Attack, and let the clients take part.

        Raises:
            Exception: a client, or an attacker, met what it should not.
        """
        work = [*self._clients(), *self._attackers(seed)]
        tasks = [asyncio.ensure_future(one) for one in work]
        try:
            for second in range(seconds):
                await asyncio.wait(tasks, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    if task.done():
                        task.result()
                        raise RuntimeError("a client ended before the attack did")
                meter.read()
                if second % 10 == 0:
                    print(".", end="", file=sys.stderr, flush=True)
        finally:
            await _end(tasks)

    def _clients(self) -> list[Awaitable[None]]:
        def on_over(_number: int) -> None:
            self.rounds += 1

        return [take_part(self.listening, index, _ROUNDS, on_over) for index in range(_CLIENTS)]

    def _attackers(self, seed: int) -> list[Awaitable[None]]:
        kinds = [send_frames] * _FRAME_SENDERS + [send_messages] * _MESSAGE_SENDERS + [say_nothing] * _SILENT
        return [
            kind(self.listening, random.Random(seed * 1000 + number), self.tally) for number, kind in enumerate(kinds)
        ]


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel until all have ended: a cancellation that comes while a call ends may be taken for the call's own end."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=1.0)


async def run(order: Order) -> Findings:
    """`order.count` seconds."""
    started, found = time.monotonic(), Findings("hostile", PROMISE)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # that a server hangs up on an attacker is no news
    folder = order.folder / "server"
    async with server_process(folder, _SETTINGS, TASK) as listening:
        meter = Meter(read_contact(folder / "state")["pid"], folder / "state")
        attack = Attack(listening)
        try:
            await attack.during(order.count, order.seed, meter)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            found.problems.append(f"{type(error).__name__}: {error}")
    _judge(found, attack, meter, (folder / "server.log").read_text(errors="replace"))
    found.seconds = time.monotonic() - started
    return found


def _judge(found: Findings, attack: Attack, meter: Meter, log: str) -> None:
    tenth = max(1, len(meter.readings) // 10)
    memory = [one.rss_bytes / _MIB for one in meter.readings] or [0.0]
    early, late = _medians(memory, tenth)
    failures = [line for line in log.splitlines() if '"call failed"' in line]
    found.figures |= {
        "seconds of attack": len(meter.readings),
        **{f"{name} sent": f"{count:,}" for name, count in attack.tally.tried.items()},
        **{f"calls answered {name}": f"{count:,}" for name, count in attack.tally.answers.most_common()},
        "rounds of the federation meanwhile": attack.rounds // _CLIENTS,
        "resident memory, MiB: second tenth, last tenth, peak": f"{early:.0f} {late:.0f} {max(memory):.0f}",
        "open files, at most": max((one.open_files for one in meter.readings), default=0),
        "calls that the server failed": len(failures),
    }
    if len(meter.readings) >= _ENOUGH_SECONDS and late > early * 1.1:
        found.problems.append(f"memory grew from {early:.0f} to {late:.0f} MiB")
    if not attack.rounds:
        found.problems.append("no round went on")
    found.problems += failures[:3]


def _medians(values: Sequence[float], tenth: int) -> tuple[float, float]:
    return statistics.median(values[tenth : 2 * tenth] or values), statistics.median(values[-tenth:])


if __name__ == "__main__":
    run_alone(__doc__ or "", 60, run)
