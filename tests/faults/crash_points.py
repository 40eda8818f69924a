"""The power goes before and after every durable step, and what was not synced is forgotten.

A federation of 2 sites over 2 rounds runs on a disk that counts its steps: opening, writing, syncing, renaming and
removing files, syncing folders, and commits of SQLite. It is run once for each step, with the power gone before it, and
once with the power gone after it, for each of four ways in which a file system may be found then. Then a new server
starts on what is left; its recovery is crashed at a random step of its own, repeated, and repeated again, and the
federation goes on to its end. Held if nothing that a site was told before the crash has become untrue, recovering again
changes nothing, no file under a final name is torn, and every global model is that of the undisturbed federation.

`count` is the number of crash points, evenly spread over all of them; 0 is every one.

    python -m tests.faults.crash_points --count 0 --seed 0
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import random
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedserver.driver import run_rounds
from fedserver.preparation import prepare
from fedstream.weights_file import WeightsFile
from tests.faults.bench import NUM_SITES, Life, Site
from tests.faults.federation import models_of
from tests.faults.forgetful import ForgetfulFileSystem, Power, PowerCut, Survival
from tests.faults.results import Findings, Order, run_alone
from tests.faults.sites import quiet_clients

PROMISE = "a crash at any durable step loses nothing that was acknowledged, whatever was not synced"


@dataclass(frozen=True, slots=True)
class CrashPoint:
    """Where the power goes, and what is then found."""

    step: int
    after: bool
    survival: Survival


@dataclass(slots=True)
class Trial:
    """One federation with one crash."""

    folder: Path
    rng: random.Random
    sites: list[Site] = field(default_factory=lambda: [Site(index) for index in range(NUM_SITES)])
    problems: list[str] = field(default_factory=list)

    def run(self, point: CrashPoint, reference: dict[int, str]) -> None:
        """Crash, recover, crash in the recovery, recover twice, go on to the end."""
        self._live(self._whole, point.survival, point.step, after=point.after)
        recovery_steps = len(self._live(_recover, Survival.EVERYTHING).steps) if self.rng.random() < 0.5 else 8
        self._live(_recover, point.survival, self.rng.randrange(max(1, recovery_steps)), after=self.rng.random() < 0.5)
        self._live(_recover, Survival.EVERYTHING)
        once = self._picture()
        self._live(_recover, Survival.EVERYTHING)
        if self._picture() != once:
            self.problems.append("recovering a second time changed something")
        self._live(self._whole, Survival.EVERYTHING)
        if models_of(self.folder) != reference:
            self.problems.append(f"other models came out: {models_of(self.folder)}")
        self.problems += [complaint for site in self.sites for complaint in site.complaints]

    def count_steps(self) -> list[str]:
        """The steps of the undisturbed federation."""
        return self._live(self._whole, Survival.EVERYTHING).steps

    def _live(self, work: object, survival: Survival, fails_at: int | None = None, *, after: bool = False) -> Power:
        power = Power(fails_at, after=after)
        files = ForgetfulFileSystem(power)
        life = Life(self.folder, files)
        with contextlib.suppress(PowerCut):
            life.live(work)  # type: ignore[arg-type]
        if power.gone.is_set():
            files.lose_power(survival, self.rng)
            self.problems += torn_files(self.folder)
        return power

    async def _whole(self, life: Life) -> None:
        await prepare(life.federation)
        sites = [asyncio.create_task(site.take_part(life)) for site in self.sites]
        rounds = asyncio.create_task(run_rounds(life.federation, life.desk))
        await asyncio.wait({rounds, *sites}, return_when=asyncio.FIRST_COMPLETED)
        for task in (rounds, *sites):
            if task.done():
                task.result()  # a site never ends by itself: if one did, this raises why

    def _picture(self) -> dict[str, str]:
        """Every row and every byte, but for what holds no facts."""
        with contextlib.closing(sqlite3.connect(self.folder / "state.db")) as database:
            rows = hashlib.sha256("\n".join(database.iterdump()).encode()).hexdigest()
        found = {"rows": rows}
        for path in self.folder.rglob("*"):
            if path.is_file() and not path.name.startswith("state.db"):
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found


async def _recover(life: Life) -> None:
    await life.recover()


def torn_files(folder: Path) -> Iterator[str]:
    """Files under a final name whose bytes are not what the name, or its row, says."""
    for path in (folder / "models").glob("*.safetensors"):
        if _digest_of(path) != path.stem:
            yield f"a torn model under its final name: {path.name}"
    with contextlib.closing(sqlite3.connect(folder / "state.db")) as database:
        try:
            rows = database.execute(
                "SELECT upload_id FROM uploads WHERE state IN ('admitted', 'quarantined')"
            ).fetchall()
        except sqlite3.OperationalError:  # nothing has been made yet
            return
    for (upload_id,) in rows:
        path = folder / "updates" / f"{upload_id}.safetensors"
        if not path.exists() or _digest_of(path) is None:
            yield f"an admitted update is lost or torn: {path.name}"


def _digest_of(path: Path) -> str | None:
    try:
        return WeightsFile(path).manifest().model_digest().hex
    except (OSError, ValueError):
        return None


async def run(order: Order) -> Findings:
    """`order.count` crash points, or all."""
    return await asyncio.to_thread(_run, order)


def _run(order: Order) -> Findings:
    started, rng = time.monotonic(), random.Random(order.seed)
    found = Findings("crash_points", PROMISE)
    with quiet_clients():
        reference = Trial(order.folder / "reference", rng)
        steps = reference.count_steps()
        models = models_of(reference.folder)
        points = list(crash_points(len(steps), order.count))
        for number, point in enumerate(points):
            trial = Trial(order.folder / f"trial-{number}", rng)
            try:
                trial.run(point, models)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
                trial.problems.append(repr(error))
            where = f"{'after' if point.after else 'before'} step {point.step}, {steps[point.step]}"
            found.problems += [f"{where}, {point.survival.name}: {problem}" for problem in trial.problems]
            if not trial.problems:
                shutil.rmtree(trial.folder)
    found.figures = {
        "durable steps of the federation": len(steps),
        "crash points tried": len(points),
        **{f"steps: {kind}": number for kind, number in sorted(Counter(steps).items())},
    }
    found.seconds = time.monotonic() - started
    return found


def crash_points(num_steps: int, count: int) -> Sequence[CrashPoint]:
    """All points of `num_steps` steps, or `count` of them."""
    if not count:
        return [CrashPoint(*one) for one in itertools.product(range(num_steps), (False, True), Survival)]
    pairs = list(itertools.product(range(num_steps), (False, True)))
    chosen = [pairs[index * len(pairs) // count] for index in range(min(count, len(pairs)))]
    return [CrashPoint(step, after, list(Survival)[index % 4]) for index, (step, after) in enumerate(chosen)]


if __name__ == "__main__":
    run_alone(__doc__ or "", 60, run)
