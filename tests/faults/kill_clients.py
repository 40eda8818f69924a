"""Two of four clients are killed with SIGKILL, and their workers with them, each at a random instant of a phase.

They are started again at once with the same state folder. Phases of a client are dealt from a shuffled deck, and where
a kill fell is read from the client's log. Held if every federation finishes, every round's global model is that of the
undisturbed federation, and no local training that was finished is ever begun again. `count` is the number of
federations; two clients are killed in each.

    python -m tests.faults.kill_clients --count 300 --seed 0
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import shutil
import sqlite3
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fedclient.config import ClientConfig
from fedserver.addresses import lasting_port
from tests.faults.federation import (
    NUM_CLIENTS,
    NUM_ROUNDS,
    Aim,
    Ending,
    cancelled_at_end,
    fingerprint_of,
    models_of,
    run_guarded,
    server_command,
)
from tests.faults.phases import ClientPhase, Phase, read_event
from tests.faults.results import Findings, Order, run_alone
from tests.faults.sites import client_config

PROMISE = "kill -9 of clients at any instant repeats no finished training, and the final model is the same"
_KILLED = 2
_TIMEOUT_SECONDS = 180.0
_TRAINED = "trained"
_TRAINS = "training"


@dataclass(slots=True)
class Ended:
    """What came out of one federation. `trained` and `begun` count fine-tunes by client and round."""

    folder: Path
    endings: dict[int, list[Ending]] = field(default_factory=lambda: defaultdict(list))
    models: dict[int, str] = field(default_factory=dict)
    trained: Counter[tuple[str, int]] = field(default_factory=Counter)
    begun: Counter[tuple[str, int]] = field(default_factory=Counter)
    resent: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


async def run_federation(folder: Path, aims: dict[int, Aim]) -> Ended:
    """A federation in which the clients with these numbers are killed as the aims say."""
    folder.mkdir(parents=True)  # noqa: ASYNC240 - nothing else is going on yet
    ended, started, port = Ended(folder), time.monotonic(), lasting_port()
    command, log = server_command(folder, port), folder / "server.log"
    server = asyncio.create_task(run_guarded("server", command, log, (), []))
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS), cancelled_at_end(server):
            fingerprint = await fingerprint_of(folder)
            sites = [
                asyncio.create_task(_site(folder, port, fingerprint, index, aims.get(index), ended.endings[index]))
                for index in range(NUM_CLIENTS)
            ]
            async with cancelled_at_end(*sites):
                statuses = await asyncio.gather(*sites)
                ended.problems += [
                    f"site-{i} ended with status {status}" for i, status in enumerate(statuses) if status
                ]
            if status := await server:
                ended.problems.append(f"the server ended with status {status}")
    except TimeoutError:
        ended.problems.append(f"not over after {_TIMEOUT_SECONDS:.0f} s")
    ended.seconds = time.monotonic() - started
    with contextlib.suppress(sqlite3.Error):
        ended.models = models_of(folder / "state")
    for index in range(NUM_CLIENTS):
        _read_log(f"site-{index}", folder / f"site-{index}.log", ended)
    return ended


async def _site(folder: Path, port: int, fingerprint: str, index: int, aim: Aim | None, endings: list[Ending]) -> int:
    config = client_config(folder, f"127.0.0.1:{port}", fingerprint, index, NUM_CLIENTS)
    return await run_guarded(
        "client", site_command(config), folder / f"{config.name}.log", [aim] if aim else [], endings
    )


def site_command(config: ClientConfig) -> list[str]:
    """The command of a client with a process of its own."""
    shard, num_shards = config.shard
    assert config.fingerprint is not None, "the harness has servers with open enrolment"
    command = [sys.executable, "-m", "fedclient.cli", "run", "--log-json", "--no-pictures", "--data", "phantom"]
    command += ["--server", config.server, "--fingerprint", config.fingerprint, "--name", config.name]
    command += ["--shard", f"{shard}/{num_shards}", "--out", str(config.out_folder)]
    return [*command, "--state-dir", str(config.state_folder)]


def _read_log(client: str, log: Path, ended: Ended) -> None:
    """Count fine-tunes, and look for one that is begun after the same one was finished."""
    number = 0
    for event in map(read_event, log.read_bytes().splitlines()):
        number = event.get("round", number)
        if event.get("event") == _TRAINED:
            ended.trained[client, number] += 1
        elif event.get("event") == _TRAINS and "batch_size" in event:
            ended.begun[client, number] += 1
            if ended.trained[client, number]:
                ended.problems.append(f"{client} trained again in round {number}, though it had finished")
        elif str(event.get("event")).startswith("this round is trained already"):
            ended.resent += 1


@dataclass(slots=True)
class Dealer:
    """Deals aims from a shuffled deck of phases; the instant by how long that phase took so far."""

    random: random.Random
    durations: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    deck: list[ClientPhase] = field(default_factory=list)

    def learn(self, ended: Ended) -> None:
        """Take note of how long each phase took."""
        for ending in itertools.chain.from_iterable(ended.endings.values()):
            for name, seconds in ending.durations:
                self.durations[name].append(seconds)

    def aims(self) -> dict[int, Aim]:
        """Whom to kill in one federation, and when."""
        return {index: self._aim() for index in self.random.sample(range(NUM_CLIENTS), _KILLED)}

    def _aim(self) -> Aim:
        if not self.deck:
            self.deck = list(ClientPhase)
            self.random.shuffle(self.deck)
        phase = self.deck.pop()
        number = 0 if phase is ClientPhase.JOIN else self.random.randint(1, NUM_ROUNDS)
        typical = statistics.median(self.durations[phase.value] or [0.0])
        return Aim(phase, number, self.random.random() * typical)


@dataclass(slots=True)
class Tally:
    """What happened so far."""

    reference: dict[int, str]
    fell: Counter[Phase | ClientPhase] = field(default_factory=Counter)
    all: list[Ended] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, ended: Ended) -> None:
        """Count one federation, and keep its folder if it failed."""
        kills = [ending.phase for endings in ended.endings.values() for ending in endings if ending.killed]
        self.fell.update(kills)
        self.all.append(ended)
        if ended.models != self.reference:
            ended.problems.append(f"another model: {ended.models}")
        where = " and ".join(phase.value for phase in kills)
        self.problems += [f"{ended.folder.name}, killed in {where}: {problem}" for problem in ended.problems]
        if not ended.problems:
            shutil.rmtree(ended.folder)


async def run(order: Order) -> Findings:
    """`order.count` federations."""
    started = time.monotonic()
    dealer = Dealer(random.Random(order.seed))
    reference = await run_federation(order.folder / "reference", {})
    if reference.problems:
        raise RuntimeError(f"the undisturbed federation failed: {reference.problems}; see {reference.folder}")
    dealer.learn(reference)
    tally = Tally(reference.models)

    async def lane(numbers: Iterator[int]) -> None:
        for number in numbers:
            ended = await run_federation(order.folder / f"federation-{number}", dealer.aims())
            dealer.learn(ended)
            tally.add(ended)
            print(".", end="", file=sys.stderr, flush=True)

    numbers = iter(range(order.count))
    await asyncio.gather(*(lane(numbers) for _ in range(order.lanes)))
    found = _findings(tally)
    found.seconds = time.monotonic() - started
    return found


def _findings(tally: Tally) -> Findings:
    trained = [count for ended in tally.all for count in ended.trained.values()]
    found = Findings("kill_clients", PROMISE, problems=list(tally.problems))
    found.figures = {
        "federations": len(tally.all),
        "finished": sum(not one.problems for one in tally.all),
        "with the same models in all rounds": sum(one.models == tally.reference for one in tally.all),
        "clients killed": tally.fell.total(),
        "updates that made up the models": len(tally.all) * NUM_CLIENTS * NUM_ROUNDS,
        "fine-tunes finished, by the log": sum(trained),
        "fine-tunes finished more than once": sum(count > 1 for count in trained),
        "fine-tunes begun, of which some were killed": sum(sum(one.begun.values()) for one in tally.all),
        "finished fine-tunes sent again after a restart": sum(one.resent for one in tally.all),
        "seconds per federation, median": statistics.median(one.seconds for one in tally.all),
        **{f"killed while {phase.value}": tally.fell[phase] for phase in ClientPhase},
    }
    return found


if __name__ == "__main__":
    run_alone(__doc__ or "", 10, run)
