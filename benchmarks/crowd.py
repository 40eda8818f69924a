"""Bare sites as processes, some hundred in each, watched by what they print (see `benchmarks.crowd_ends`)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.crowd_ends import Order
from benchmarks.floor import ROOT
from benchmarks.rows import Size
from fedserver.server import Listening
from tests.support.processes import Running, Stage, until

PROCESSES = 4
"""Two cores are busy with two of them; four wait for one another less where a machine has more."""

_STEP_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Crowd:
    """Some of a federation's sites."""

    running: Sequence[Running]

    def reached(self, step: str, round_number: int = 0) -> float:
        """When the last site was so far, on the machine's steady clock. Waits for it.

        Args:
            step: `dialling`, `joined`, and in a round `offered` and `heard` (how it ended).
            round_number: from 1, of a step in a round.

        Raises:
            NotInTime: a process has ended before, or some minutes have passed; the message has its log.
        """
        return max(self._reached(step, round_number))

    def first(self, step: str) -> float:
        """When the first process was so far. Waits for the last."""
        return min(self._reached(step))

    def _reached(self, step: str, round_number: int = 0) -> list[float]:
        return [_reached(one, step, round_number) for one in self.running]


def start_crowd(made: Stage, listening: Listening, size: Size, numbers: range | None = None) -> Crowd:
    """Start the sites `numbers` of the federation, by default all.

    Args:
        made: ends them.
        listening: where the server is.
        size: how many sites the federation has in all, and their model.
        numbers: which of them, from 0.
    """
    chosen = numbers if numbers is not None else range(size.clients)
    bounds = [chosen.start + len(chosen) * part // PROCESSES for part in range(PROCESSES + 1)]
    orders = [
        Order(
            address=listening.address,
            admin=listening.admin_address,
            enrolment=listening.enrolment_address,
            first=first,
            count=stop - first,
            total=size.clients,
            mib=size.mib,
        )
        for first, stop in itertools.pairwise(bounds)
        if stop > first
    ]
    return Crowd([_start(made, order) for order in orders])


def _start(made: Stage, order: Order) -> Running:
    last = order.first + order.count - 1
    command = ["benchmarks.crowd_ends", json.dumps(asdict(order))]
    return made.start(f"sites-{order.first}-{last}", command, ROOT)


def _reached(one: Running, step: str, round_number: int) -> float:
    def look() -> float | None:
        found = [line["at"] for line in one.said(step) if line.get("round", 0) == round_number]
        assert found or one.process.poll() is None, f"{one.log.name} ended:\n{one.text}"
        return found[0] if found else None

    return until(f"sites of {one.log.name} to be {step}", look, _STEP_SECONDS)
