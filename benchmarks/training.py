"""Local training with kept features, against `model.fit` on the whole network with the same layers trained, in turn.

One site with some of the training images. Both start from the same weights and are scored on the same images after
equally many epochs. An epoch here is training alone, without validation, and with features at hand; computing them is
paid once, in the first round that a site takes part in.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.epochs import Fit, Moment, fit_of
from benchmarks.options import Options
from benchmarks.plain_fit import PlainFit
from benchmarks.scans import Scans, find_scans
from benchmarks.tables import Line, Table
from fedstream.plan import Plan
from fedtask.brain_mri.backbone import initial_weights
from fedtask.brain_mri.settings import UPPER
from fedtask.brain_mri.training import Training
from fedtask.images.image_set import ImageSet
from fedtask.images.site import Site, open_site
from fedtask.metrics import binary_evaluation
from fedtask.task import EpochReport, SiteOptions, Weights

_IMAGES = 512
_EPOCHS = 5
_ROUNDS = 5
_PLAIN = "model.fit"
SETTINGS = {"fine_tune": UPPER, "batch_norm": "frozen", "learning_rate": "0.0001"}


@dataclass(frozen=True, slots=True)
class Measured:
    """A first fine-tune and one of a later round, from the same weights, and the first one's scores."""

    first: Fit
    later: Fit
    accuracy: float
    loss: float

    def seconds(self, rounds: int) -> float:
        """What so many rounds of a site take."""
        return self.first.total_seconds + (rounds - 1) * self.later.total_seconds


def run(options: Options) -> Table:
    """Measure every way in turn, as often as is asked for."""
    with tempfile.TemporaryDirectory(prefix="training-", dir=options.folder) as name:
        scans = find_scans(Path(name), SETTINGS)
        site, val = _site(scans)
        found: dict[str, list[Measured]] = {way: [] for way in _WAYS}
        for seed, way in product(range(options.repeats), _WAYS):
            one = _WAYS[way](scans, site, val, _plan(scans, seed), Path(name) / f"{way} {seed}")
            options.say(f"{way}, seed {seed}: {_told(one)}")
            found[way].append(one)
    title = f"training: {scans.name}, {len(site.train)} images of {scans.settings.image_size}, {_EPOCHS} epochs a round"
    return Table(title, list(_lines(found, len(site.train))))


def _site(scans: Scans) -> tuple[Site, ImageSet]:
    """A site without validation, of images from all over the folder, and the images that models are scored on."""
    site = open_site(SiteOptions(scans.folder), scans.settings.class_names, scans.settings.image_size)
    num = min(_IMAGES, len(site.train))
    chosen = np.linspace(0, len(site.train) - 1, num).astype(int)
    return Site(site.train.subset(chosen), site.val.subset([]), site.summary, site.skipped), site.val


def _plan(scans: Scans, seed: int) -> Plan:
    return Plan(_EPOCHS, scans.settings.batch_size, scans.settings.learning_rate, 0, seed)


def measure_plain(scans: Scans, site: Site, val: ImageSet, plan: Plan, _folder: Path) -> Measured:
    """Measure `model.fit`."""
    base, plain = initial_weights(scans.settings, plan.seed, scans.backbone), PlainFit(scans.settings, plan)
    first, later = plain.fit(site.train, base), plain.fit(site.train, base)
    return _scored(Training(scans.settings), scans, val, first, later)


def measure_kept(scans: Scans, site: Site, val: ImageSet, plan: Plan, folder: Path) -> Measured:
    """Measure the task's training, with features in files as a client keeps them; in `folder`, which is empty."""
    base, training = initial_weights(scans.settings, plan.seed, scans.backbone), Training(scans.settings)
    first, later = (_fine_tune(training, site, base, plan, folder) for _ in range(2))
    return _scored(training, scans, val, first, later)


def measure_kept_float32(scans: Scans, site: Site, val: ImageSet, plan: Plan, folder: Path) -> Measured:
    """The same, on any processor as on one that is not made for bfloat16."""
    alike = replace(scans, settings=replace(scans.settings, products="float32"))
    return measure_kept(alike, site, val, plan, folder)


_WAYS: Mapping[str, Callable[[Scans, Site, ImageSet, Plan, Path], Measured]] = {
    _PLAIN: measure_plain,
    "features kept, float32": measure_kept_float32,
    "features kept": measure_kept,
}


def _fine_tune(training: Training, site: Site, base: Weights, plan: Plan, folder: Path) -> Fit:
    ended: list[Moment] = []

    def note(report: EpochReport) -> None:
        if report.metrics:  # an epoch's end, and no moment within it
            ended.append(Moment.now())

    began = Moment.now()
    tuned = training.fine_tune(site, base, plan, note, folder)
    return fit_of(began, ended, tuned.weights)


def _scored(training: Training, scans: Scans, val: ImageSet, first: Fit, later: Fit) -> Measured:
    names = scans.settings.class_names
    metrics = binary_evaluation(val.labels, training.predict(val, first.weights), names, names[1]).metrics
    return Measured(first, later, metrics["accuracy"] or 0.0, metrics["loss"] or 0.0)


def _told(one: Measured) -> str:
    epoch = f"{one.later.epoch_seconds:.1f} s an epoch, {one.later.processor_seconds:.1f} s of the processor"
    return f"{epoch}, accuracy {one.accuracy:.4f}, loss {one.loss:.4f}"


_FIGURES: Mapping[str, Callable[[Measured], float]] = {
    "s an epoch": lambda one: one.later.epoch_seconds,
    "processor s an epoch": lambda one: one.later.processor_seconds,
    "s once": lambda one: one.first.once_seconds,
    "s first round": lambda one: one.seconds(1),
    f"s {_ROUNDS} rounds": lambda one: one.seconds(_ROUNDS),
}


def _lines(found: Mapping[str, Sequence[Measured]], num_images: int) -> Iterator[Line]:
    note = f"{_ROUNDS} rounds are the first fine-tune and {_ROUNDS - 1} times the second; once: features, and compiling"
    for way, measured in found.items():
        yield _line(way, measured, num_images)
        if way != _PLAIN:
            yield _faster(found[_PLAIN], measured, note)


def _faster(plain: Sequence[Measured], kept: Sequence[Measured], note: str) -> Line:
    samples = {
        heading: [figure(theirs) / figure(ours) for theirs, ours in zip(plain, kept, strict=True)]
        for heading, figure in _FIGURES.items()
    }
    medians = {heading: statistics.median(each) for heading, each in samples.items()}
    return Line("  times faster", {"images/s": medians["s an epoch"], **medians}, samples, note)


def _line(name: str, measured: Sequence[Measured], num_images: int) -> Line:
    samples = {heading: [figure(one) for one in measured] for heading, figure in _FIGURES.items()}
    medians = {heading: statistics.median(each) for heading, each in samples.items()}
    scores = {
        "accuracy": f"{statistics.fmean(one.accuracy for one in measured):.4f}",
        "loss": f"{statistics.fmean(one.loss for one in measured):.4f}",
    }
    return Line(name, {"images/s": num_images / medians["s an epoch"], **medians, **scores}, samples)
