"""The server is killed with SIGKILL at a random instant of a phase, and started again.

Federations of 4 clients over 3 rounds; each has its server killed once (where the phase is `recover`, twice: the
second time while it recovers from the first). Phases are dealt from a shuffled deck, so that each is aimed at equally
often; how many kills fell in each is read from the server's log, and counted as it is, not as it was aimed. Held if
every federation finishes, no fine-tune is done twice, and every round's global model has the digest that it has in a
federation that nothing disturbed.

    python -m tests.faults.kill_server --count 300 --seed 0
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.federation import (
    NUM_CLIENTS,
    NUM_ROUNDS,
    SLOW_COMING_SECONDS,
    Aim,
    Federation,
    run_federation,
)
from tests.faults.phases import ClientPhase, Phase
from tests.faults.results import Findings, Order, run_alone
from tests.faults.sites import WorkerPool, quiet_clients, trainers

PROMISE = "kill -9 of the server at any instant, and the final model is bit for bit that of an undisturbed federation"
_LEAST_SHARE = 20 / 300
"""Of all kills, what must have fallen in each phase; federations are added until it has, up to a fifth more."""


@dataclass(slots=True)
class Dealer:
    """Deals aims: phases from a shuffled deck, the instant by how long that phase took so far."""

    random: random.Random
    durations: dict[Phase, list[float]] = field(default_factory=lambda: defaultdict(list))

    def learn(self, federation: Federation) -> None:
        """Take note of how long each phase took."""
        for ending in federation.endings:
            for name, seconds in ending.durations:
                self.durations[Phase(name)].append(seconds)

    def deck(self, count: int) -> Iterator[Phase]:
        """So many phases, each as often as any other, up to one, in random order."""
        phases: list[Phase] = []
        while len(phases) < count:
            further = list(Phase)
            self.random.shuffle(further)
            phases += further
        return iter(phases[:count])

    def aims(self, phase: Phase) -> list[Aim]:
        """The kills of one federation."""
        if phase is not Phase.RECOVER:
            return [self._aim(phase)]
        first = self.random.choice([one for one in Phase if one not in (Phase.RECOVER, Phase.FAREWELL)])
        return [self._aim(first), self._aim(Phase.RECOVER)]

    def _aim(self, phase: Phase) -> Aim:
        # `select` is over at once but in the first round, in which clients are slow to come: see `run_federation`.
        usual = SLOW_COMING_SECONDS if phase is Phase.SELECT else statistics.median(self.durations[phase] or [0.0])
        return Aim(phase, self._round(phase), self.random.random() * usual)

    def _round(self, phase: Phase) -> int:
        if phase in (Phase.RECOVER, Phase.REPORT, Phase.FAREWELL):
            return 0
        return 1 if phase is Phase.SELECT else self.random.randint(1, NUM_ROUNDS)


@dataclass(slots=True)
class Tally:
    """What happened so far."""

    reference: dict[int, str]
    fell: Counter[Phase | ClientPhase] = field(default_factory=Counter)
    missed: int = 0
    finished: int = 0
    same_models: int = 0
    trainings: int = 0
    seconds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, federation: Federation, aims: Sequence[Aim]) -> None:
        """Count one federation."""
        kills = [ending.phase for ending in federation.endings if ending.killed]
        # Of two kills the second is the one that was drawn; the first only made something to recover from.
        if len(kills) == len(aims):
            self.fell[kills[-1]] += 1
        else:
            self.missed += 1
        self.finished += not federation.problems
        self.same_models += federation.models == self.reference
        self.trainings += sum(federation.log.count("trained").values())
        self.seconds.append(federation.seconds)
        where = " and ".join(phase.value for phase in kills) or "never"
        self.problems += [f"{federation.folder.name}, killed in {where}: {one}" for one in federation.problems]
        trained, needed = sum(federation.log.count("trained").values()), NUM_CLIENTS * NUM_ROUNDS
        if trained != needed and not federation.problems:
            self.problems.append(f"{federation.folder.name}, killed in {where}: {trained} fine-tunes, not {needed}")
        if federation.models != self.reference:
            self.problems.append(f"{federation.folder.name}, killed in {where}: another model: {federation.models}")


async def run(order: Order) -> Findings:
    """`order.count` federations, and some more where a phase was hit too seldom."""
    started = time.monotonic()
    pools = {order.folder / f"lane-{lane}": WorkerPool() for lane in range(order.lanes)}
    with quiet_clients(), trainers(pools):
        try:
            tally = await _all(order, list(pools))
        finally:
            for pool in pools.values():
                await pool.close()
    found = _findings(tally, order)
    found.seconds = time.monotonic() - started
    return found


async def _all(order: Order, lanes: Sequence[Path]) -> Tally:
    dealer = Dealer(random.Random(order.seed))
    reference = await run_federation(lanes[0] / "reference")
    if reference.problems:
        raise RuntimeError(f"the undisturbed federation failed: {reference.problems}; see {reference.folder}")
    dealer.learn(reference)
    tally = Tally(reference.models)
    await _deal(dealer, tally, dealer.deck(order.count), lanes)
    least, spare = int(order.count * _LEAST_SHARE), order.count // 5
    while spare and (short := [phase for phase in Phase if tally.fell[phase] < least]):
        more = short[:spare]
        spare -= len(more)
        await _deal(dealer, tally, iter(more), lanes)
    return tally


async def _deal(dealer: Dealer, tally: Tally, phases: Iterator[Phase], lanes: Sequence[Path]) -> None:
    async def lane(folder: Path) -> None:
        for phase in phases:
            aims = dealer.aims(phase)
            federation = await run_federation(folder / f"federation-{len(tally.seconds)}", aims)
            dealer.learn(federation)
            tally.add(federation, aims)
            _clear(federation)
            print(".", end="", file=sys.stderr, flush=True)

    await asyncio.gather(*(lane(folder) for folder in lanes))


def _clear(federation: Federation) -> None:
    """Keep the folders of those that failed, for somebody to look at."""
    if not federation.problems:
        import shutil

        shutil.rmtree(federation.folder, ignore_errors=True)


def _findings(tally: Tally, order: Order) -> Findings:
    total = len(tally.seconds)
    least = int(order.count * _LEAST_SHARE)
    short = [phase.value for phase in Phase if tally.fell[phase] < least]
    found = Findings("kill_server", PROMISE, problems=list(tally.problems))
    if short:
        found.problems.append(f"fewer than {least} kills fell in {', '.join(short)}")
    found.figures = {
        "federations": total,
        "finished": tally.finished,
        "with the same models in all rounds": tally.same_models,
        "fine-tunes done, of those needed": f"{tally.trainings} of {total * NUM_CLIENTS * NUM_ROUNDS}",
        "kills that came too late for their phase": tally.missed,
        "seconds per federation, median": statistics.median(tally.seconds),
        **{f"killed in {phase.value}": tally.fell[phase] for phase in Phase},
    }
    return found


if __name__ == "__main__":
    run_alone(__doc__ or "", 28, run)
