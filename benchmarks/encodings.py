"""What encodings of updates save, and what they cost in accuracy: brain MRI, the same seeds in each encoding.

Every update is packed as a client packs it, with what was left out of the one before, and unpacked as a server does;
there is no network. Each lossy encoding is paired with raw, seed by seed: the same division, first weights and draws. A
zstd frame changes no value, which is checked for every tensor of every update: such lines need no run of their own.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import structlog

from benchmarks.brain_mri_rounds import gather, play
from benchmarks.journey import Journey, WrongUpdate
from benchmarks.options import Options
from benchmarks.scans import Scans, find_scans
from benchmarks.tables import Line, Table
from fedstream.encodings import Encoding
from fedstream.manifest import raw_bytes
from fedstream.schema import ModelSchema
from fedtask.brain_mri.backbone import initial_weights
from fedtask.brain_mri.training import Training
from fedtask.task import FineTuned, Weights

_FRAMED = {
    Encoding.RAW: Encoding.ZSTD,
    Encoding.BFLOAT16: Encoding.BFLOAT16_ZSTD,
    Encoding.INT8: Encoding.INT8_ZSTD,
}
"""Encodings that change values or keep them all, and what the same values travel as in a zstd frame."""

_CLIENTS = 4
_DIVISION = "dirichlet:0.5"
_ROUNDS = 5
_PLAN = {"epochs": "2", "patience": "0", "products": "float32"}
"""Few epochs and many updates: what an encoding leaves out is to have the chance to add up. The same training on any
processor."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The last model of a federation, scored on the holdout, and the mean bytes of an update by encoding."""

    accuracy: float
    loss: float
    mean_bytes: Mapping[Encoding, float]


def run(options: Options) -> Table:
    """Run all federations; features of the images are computed once for all of them."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))  # not a line per update
    with tempfile.TemporaryDirectory(prefix="encodings-", dir=options.folder) as name:
        scans = find_scans(Path(name), _PLAN)
        rounds, training = options.rounds or _ROUNDS, Training(scans.settings)
        found: dict[Encoding, list[Outcome]] = {encoding: [] for encoding in _FRAMED}
        for seed, encoding in product(range(options.num_seeds), _FRAMED):
            folder = Path(name) / f"{seed}-{encoding.value}"
            found[encoding].append(measure(training, scans, seed, encoding, rounds, folder))
            options.say(f"seed {seed}, {encoding.value}: {found[encoding][-1]}")
    title = f"encodings: {scans.name}, {_CLIENTS} clients, {_DIVISION}, {rounds} rounds of {_PLAN['epochs']} epochs, "
    return Table(f"{title}{options.num_seeds} seeds", _lines(found))


def measure(
    training: Training, scans: Scans, seed: int, encoding: Encoding, rounds: int, folder: Path, clients: int = _CLIENTS
) -> Outcome:
    """Run one federation, of which `seed` decides everything random.

    Raises:
        WrongUpdate: an update did not arrive as it was packed, or other values arrived with zstd than without.
    """
    cohort = gather(scans.settings, scans.folder, clients, _DIVISION, seed)
    lines = [_Uplink(folder / str(site), training.network.schema, encoding) for site in range(clients)]
    weights, scores = initial_weights(scans.settings, seed, scans.backbone), {}
    for number in range(1, rounds + 1):
        played = play(training, cohort, weights, number, None, lambda at, base, update: lines[at].carry(base, update))
        weights, scores = played.weights, played.scores
    sizes = {each: statistics.fmean(size for line in lines for size in line.sizes[each]) for each in lines[0].sizes}
    return Outcome(scores["accuracy"], scores["loss"], sizes)


class _Uplink:
    """Carries a site's updates twice, without a zstd frame and with one, and notes the bytes of each."""

    def __init__(self, folder: Path, schema: ModelSchema, encoding: Encoding) -> None:
        self._journeys = {each: Journey(folder / each.value, schema, each) for each in (encoding, _FRAMED[encoding])}
        self.sizes: dict[Encoding, list[int]] = {each: [] for each in self._journeys}

    def carry(self, base: Weights, update: FineTuned) -> FineTuned:
        arrived = {each: journey.carry(base, update) for each, journey in self._journeys.items()}
        for each, one in arrived.items():
            self.sizes[each].append(one.size_bytes)
        plain, framed = (one.update for one in arrived.values())
        if any(raw_bytes(plain.weights[name]) != raw_bytes(framed.weights[name]) for name in plain.weights):
            raise WrongUpdate("other values arrived with zstd than without")
        return plain


def _lines(found: Mapping[Encoding, Sequence[Outcome]]) -> list[Line]:
    raw = found[Encoding.RAW]
    lines = []
    for encoding, outcomes in found.items():
        lines.append(_scored(encoding, outcomes, raw))
        framed = _FRAMED[encoding]
        note = f"the same values as {encoding.value} to the bit, checked for every tensor of every update"
        lines.append(Line(framed.value, _sizes(framed, outcomes, raw), note=note))
    return lines


def _scored(encoding: Encoding, outcomes: Sequence[Outcome], raw: Sequence[Outcome]) -> Line:
    accuracies, losses = [one.accuracy for one in outcomes], [one.loss for one in outcomes]
    points = [100 * (one.accuracy - other.accuracy) for one, other in zip(outcomes, raw, strict=True)]
    further = [one.loss - other.loss for one, other in zip(outcomes, raw, strict=True)]
    figures = {
        "accuracy": f"{statistics.fmean(accuracies):.4f}",
        "loss": f"{statistics.fmean(losses):.4f}",
        "points to raw": f"{statistics.fmean(points):+.2f}",
        "most of a seed": f"{max(points, key=abs):+.2f}",
        "loss to raw": f"{statistics.fmean(further):+.4f}",
        "most of one seed": f"{max(further, key=abs):+.4f}",
    }
    return Line(encoding.value, _sizes(encoding, outcomes, raw) | figures, {"accuracy": accuracies, "loss": losses})


def _sizes(encoding: Encoding, outcomes: Sequence[Outcome], raw: Sequence[Outcome]) -> dict[str, float | str]:
    size = statistics.fmean(one.mean_bytes[encoding] for one in outcomes)
    times = statistics.fmean(one.mean_bytes[Encoding.RAW] for one in raw) / size
    return {"KiB an update": size / 1024, "times fewer": times}
