"""How long after the last update the new model is there, against making one model of that size durable, in turn.

Counted from when all bytes of the last update are committed: it is checked against its digests, sealed, looked at and
folded; then the cohort is screened, and the new model made, digested, written, synced and recorded. The floor is one
model that is at hand: digested tensor by tensor, written, synced, named. All in one process, without a network.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import shift
from benchmarks.arithmetic import first_wrong, initial_model, step_of
from benchmarks.options import Options
from benchmarks.rows import Size
from benchmarks.tables import Line, Table
from fedserver.aggregation import strategy_named
from fedserver.coordinator.participation import Participation
from fedserver.coordinator.round import Picked, Round, RoundRules
from fedserver.federation import ref_of
from fedserver.intake import Intake
from fedserver.store import State, UpdateFacts, Upload
from fedstream.files import RealFileSystem, write_durably
from fedstream.manifest import described, manifest_of, raw_bytes
from fedstream.weights_file import file_parts

SIZES = ("8x100",)
_EXAMPLES = 100
_NUMBER = 1


def run(options: Options) -> Table:
    """Measure every size."""
    lines = [_measure(size, options) for size in options.sizes(SIZES)]
    return Table("publish: seconds from the last update committed to the new model published", lines)


@dataclass(frozen=True, slots=True)
class _Sample:
    taken: float
    published: float
    floor: float

    @property
    def ratio(self) -> float:
        return (self.taken + self.published) / self.floor


def _measure(size: Size, options: Options) -> Line:
    samples = []
    for turn in range(options.repeats):
        with tempfile.TemporaryDirectory(prefix="publish-", dir=options.folder) as folder:
            samples.append(_Sample(*asyncio.run(_round(size, Path(folder))), _floor(size, Path(folder))))
        options.say(f"{size}, {turn + 1}: {samples[-1]}")
    figures = {
        "update checked, sealed, folded": statistics.median(sample.taken for sample in samples),
        "model made and stored": statistics.median(sample.published for sample in samples),
        "one model digested, written, synced": statistics.median(sample.floor for sample in samples),
        "times that": statistics.median(sample.ratio for sample in samples),
    }
    return Line(str(size), figures, {"times_that": [sample.ratio for sample in samples]})


async def _round(size: Size, folder: Path) -> tuple[float, float]:
    """Seconds to take in the last update, and seconds from there to the published model."""
    schema = shift.Shift({"mib": str(size.mib)}).schema()
    with _state(folder / "state") as state:
        base = state.models.add(0, schema, described(schema, initial_model(size.mib)))
        round_ = Round.open(_NUMBER, ref_of(base), _RULES, [_picked(rank) for rank in range(size.clients)], 0.0)
        intake = Intake(schema, base, strategy_named("fedavg"), round_)
        *others, last = round_.participations
        for part in others:
            await _take(intake, part, _received(state, size, part))
        upload = _received(state, size, last)
        began = time.perf_counter()
        await _take(intake, last, upload)
        taken = time.perf_counter()
        assert not await intake.screen(range(size.clients))
        model = await intake.publish(state.models, _NUMBER)
        published = time.perf_counter()
        assert first_wrong(model.weights(), _NUMBER) is None
    return taken - began, published - taken


async def _take(intake: Intake, part: Participation, upload: Upload) -> None:
    await asyncio.to_thread(upload.verify, intake.base)
    refused = await intake.admit(part, upload.seal)
    assert not refused, refused


def _received(state: State, size: Size, part: Participation) -> Upload:
    """A client's update, all of it committed."""
    add = step_of(part.rank, size.clients)
    weights = {name: values + add for name, values in initial_model(size.mib).items()}
    manifest = manifest_of(shift.Shift({"mib": str(size.mib)}).schema(), weights)
    upload = state.uploads.begin(part.upload_id, manifest, range(len(manifest)), UpdateFacts(_EXAMPLES))
    for entry in manifest:
        upload.write(upload.received_size, bytes(raw_bytes(weights[entry.name])))
    upload.committed(upload.sync())
    return upload


def _floor(size: Size, folder: Path) -> float:
    weights, schema = initial_model(size.mib), shift.Shift({"mib": str(size.mib)}).schema()
    began = time.perf_counter()
    manifest = manifest_of(schema, weights)
    write_durably(RealFileSystem(), folder / "floor.safetensors", file_parts(manifest, weights))
    return time.perf_counter() - began


@contextmanager
def _state(folder: Path) -> Iterator[State]:
    state = State(folder)
    try:
        yield state
    finally:
        state.close()


_RULES = RoundRules(min_clients=1, reporting_goal=1, timeout_seconds=1e6, longest_seconds=1e6, lease_seconds=1e6)


def _picked(rank: int) -> Picked:
    plan = shift.Shift({"mib": "1"}).default_plan()
    return Picked(f"site-{rank}", plan, _EXAMPLES, f"offer-{rank}", f"{rank:032x}")
