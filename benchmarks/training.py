"""Local training with kept features, against `model.fit` on the whole network with the same layers trained, in turn.

One site with some of the training images. Both start from the same weights and are scored on the same images after
equally many epochs. An epoch here is training alone, without validation, and with features at hand; computing them is
paid once, in the first round that a site takes part in.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
SETTINGS = {"fine_tune": UPPER, "batch_norm": "frozen", "learning_rate": "0.0001"}


@dataclass(frozen=True, slots=True)
class Pair:
    """A first fine-tune and one of a later round, from the same weights, and the first one's scores."""

    first: Fit
    later: Fit
    accuracy: float
    loss: float

    def seconds(self, rounds: int) -> float:
        """What so many rounds of a site take."""
        return self.first.total_seconds + (rounds - 1) * self.later.total_seconds


def run(options: Options) -> Table:
    """Measure both, as often as is asked for."""
    with tempfile.TemporaryDirectory(prefix="training-", dir=options.folder) as name:
        scans = find_scans(Path(name), SETTINGS)
        site, val = _site(scans)
        plain, kept = [], []
        for seed in range(options.repeats):
            for pairs, measure in ((plain, measure_plain), (kept, measure_kept)):
                pairs.append(measure(scans, site, val, _plan(scans, seed), Path(name) / str(seed)))
                options.say(f"{measure.__name__}, seed {seed}: {_told(pairs[-1])}")
    title = f"training: {scans.name}, {len(site.train)} images of {scans.settings.image_size}, {_EPOCHS} epochs a round"
    return Table(title, _lines(plain, kept, len(site.train)))


def _site(scans: Scans) -> tuple[Site, ImageSet]:
    """A site without validation, of images from all over the folder, and the images that models are scored on."""
    site = open_site(SiteOptions(scans.folder), scans.settings.class_names, scans.settings.image_size)
    num = min(_IMAGES, len(site.train))
    chosen = np.linspace(0, len(site.train) - 1, num).astype(int)
    return Site(site.train.subset(chosen), site.val.subset([]), site.summary, site.skipped), site.val


def _plan(scans: Scans, seed: int) -> Plan:
    return Plan(_EPOCHS, scans.settings.batch_size, scans.settings.learning_rate, 0, seed)


def measure_plain(scans: Scans, site: Site, val: ImageSet, plan: Plan, _folder: Path) -> Pair:
    """Measure `model.fit`."""
    base, plain = initial_weights(scans.settings, plan.seed, scans.backbone), PlainFit(scans.settings, plan)
    first, later = plain.fit(site.train, base), plain.fit(site.train, base)
    return _scored(Training(scans.settings), scans, val, first, later)


def measure_kept(scans: Scans, site: Site, val: ImageSet, plan: Plan, folder: Path) -> Pair:
    """Measure the task's training, with features in files as a client keeps them; in `folder`, which is empty."""
    base, training = initial_weights(scans.settings, plan.seed, scans.backbone), Training(scans.settings)
    first, later = (_fine_tune(training, site, base, plan, folder) for _ in range(2))
    return _scored(training, scans, val, first, later)


def _fine_tune(training: Training, site: Site, base: Weights, plan: Plan, folder: Path) -> Fit:
    ended: list[Moment] = []

    def note(report: EpochReport) -> None:
        if report.metrics:  # an epoch's end, and no moment within it
            ended.append(Moment.now())

    began = Moment.now()
    tuned = training.fine_tune(site, base, plan, note, folder)
    return fit_of(began, ended, tuned.weights)


def _scored(training: Training, scans: Scans, val: ImageSet, first: Fit, later: Fit) -> Pair:
    names = scans.settings.class_names
    metrics = binary_evaluation(val.labels, training.predict(val, first.weights), names, names[1]).metrics
    return Pair(first, later, metrics["accuracy"] or 0.0, metrics["loss"] or 0.0)


def _told(pair: Pair) -> str:
    epoch = f"{pair.later.epoch_seconds:.1f} s an epoch, {pair.later.processor_seconds:.1f} s of the processor"
    return f"{epoch}, accuracy {pair.accuracy:.4f}, loss {pair.loss:.4f}"


_FIGURES: Mapping[str, Callable[[Pair], float]] = {
    "s an epoch": lambda pair: pair.later.epoch_seconds,
    "processor s an epoch": lambda pair: pair.later.processor_seconds,
    "s once": lambda pair: pair.first.once_seconds,
    "s first round": lambda pair: pair.seconds(1),
    f"s {_ROUNDS} rounds": lambda pair: pair.seconds(_ROUNDS),
}


def _lines(plain: Sequence[Pair], kept: Sequence[Pair], num_images: int) -> list[Line]:
    note = f"{_ROUNDS} rounds are the first fine-tune and {_ROUNDS - 1} times the second; once: features, and compiling"
    times = {
        name: [figure(theirs) / figure(ours) for theirs, ours in zip(plain, kept, strict=True)]
        for name, figure in _FIGURES.items()
    }
    faster = {name: statistics.median(samples) for name, samples in times.items()}
    return [
        _line("model.fit", plain, num_images),
        _line("features kept", kept, num_images),
        Line("times faster", {"images/s": faster["s an epoch"], **faster}, times, note),
    ]


def _line(name: str, pairs: Sequence[Pair], num_images: int) -> Line:
    samples = {heading: [figure(pair) for pair in pairs] for heading, figure in _FIGURES.items()}
    medians = {heading: statistics.median(each) for heading, each in samples.items()}
    scores = {
        "accuracy": f"{statistics.fmean(pair.accuracy for pair in pairs):.4f}",
        "loss": f"{statistics.fmean(pair.loss for pair in pairs):.4f}",
    }
    return Line(name, {"images/s": num_images / medians["s an epoch"], **medians, **scores}, samples)
