"""The seam between a federation and what it learns.

A task is a class whose constructor takes its settings (text by text, the same on every machine of a federation) and
that has the members of `Task`. It runs in a worker process (`fedtask.worker`): it may import what it likes, be slow,
and crash, without hurting the connection. Weights go in and out as mappings from tensor name to numpy array, in the
order of the schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from fedstream.plan import Plan
from fedstream.schema import ModelSchema, TaskMeaning

Weights = Mapping[str, np.ndarray]
"""Tensor name to values, in schema order. Arrays may be read-only views of a mapped file: copy before writing."""

Metrics = Mapping[str, float | None]
"""Metric name to value; `None` where a metric is undefined, with the reason beside it in `undefined`."""


@dataclass(frozen=True, slots=True)
class SiteOptions:
    """Where a site's examples are and how to read them. Every field but `folder` has a default that works.

    `folder` is laid out as `train/<class>/*` and, if the site has one, `val/<class>/*`; `None` asks for the task's
    generated data (for brain_mri, the phantom), which `shard` and `num_shards` divide like any other.
    `classes` maps a class name of the task to the name of the folder that holds it here (`{"no": "healthy"}`).
    `shard` and `num_shards` divide one folder among clients for trying things out, by `division` (see
    `fedtask.division`), seeded by `division_seed`; a task of images keeps whole what may be the sub-folder of a
    patient. With `num_shards > 1` the folder's `val/` belongs to the coordinator and is not read.
    `max_examples` is the most that may be trained on, 0 for all: a fixed choice of them (`division.limited`), of which
    `num_examples` of the summary and of every update then speak.
    """

    folder: Path | None
    classes: Mapping[str, str] = field(default_factory=dict)
    shard: int = 0
    num_shards: int = 1
    division: str = "even"
    division_seed: int = 0
    cache_folder: Path | None = None
    max_examples: int = 0


@dataclass(frozen=True, slots=True)
class SiteSummary:
    """What a site found in its folder: the only facts about its data that leave the worker process.

    `counts` is examples per split and class, such as `{"train": {"no": 40, "yes": 80}, "val": ...}`. `warnings` are
    plain sentences for the site's operator; they may name files and are never sent to the server. `weaknesses` are
    known defects of the data that must stand beside any score on it; `synthetic` is true for generated data.
    """

    num_examples: int
    counts: Mapping[str, Mapping[str, int]]
    skipped: Mapping[str, int] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    weaknesses: Sequence[str] = ()
    synthetic: bool = False


@dataclass(frozen=True, slots=True)
class EpochReport:
    """One epoch done, or a part of it. `epoch` counts from 1; `fraction` is of the whole fine-tune, 0 to 1."""

    phase: str
    epoch: int
    epochs: int
    fraction: float
    metrics: Metrics = field(default_factory=dict)


Report = Callable[[EpochReport], None]
"""Called by a task as it goes, from its own thread; raises `Cancelled` when the fine-tune is no longer wanted."""


class Cancelled(Exception):
    """Raised inside a fine-tune, by its `report` callback, when the server has withdrawn the work."""


@dataclass(frozen=True, slots=True)
class FineTuned:
    """What a local fine-tune made: every tensor of the schema, and how it went.

    `metrics` are those of the weights returned, with `base_loss` and `base_accuracy` for the base model on the site's
    own validation images: the same model as seen by every site.
    `history` has one mapping of metrics per epoch that was run (`loss`, `accuracy`, `val_loss`, `val_accuracy`, ...).
    """

    weights: Weights
    num_examples: int
    metrics: Metrics
    history: Sequence[Metrics]


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95% interval, both ends included."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A model's scores on a labelled set.

    `metrics` has at least `loss` and, for a classifier, `accuracy`. `undefined` gives the reason for each metric that
    is `None`. `curves` holds what plots need, as lists of numbers by name, of which 1000 evenly spread are kept: for a
    binary task `roc_fpr`, `roc_tpr`, `calibration_predicted`, `calibration_observed`, `calibration_count`.
    `confusion[i][j]` counts examples of class i that were predicted as class j. Where examples come in groups that may
    be alike, such as the images of one patient, `num_groups` says in how many, and `grouped_intervals` has the
    intervals with each group taken as one.
    """

    metrics: Metrics
    num_examples: int
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    undefined: Mapping[str, str] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    confusion: Sequence[Sequence[int]] = ()
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    num_groups: int = 0
    grouped_intervals: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReportWords:
    """What the report calls things of a task: one example, in the singular, and what its loss is, such as
    `cross-entropy`, empty for a loss that has no further name."""

    example: str = "example"
    loss: str = ""


class Task(Protocol):
    """What a federation learns.

    One object of it lives in one worker process, for one model and one site (or one holdout). Methods are called one at
    a time; `open_site` comes before `fine_tune`, `open_holdout`
    before `evaluate`. A task may have one member more: `report_words`, a `ReportWords`.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        """Take the task's settings.

        Raises:
            ValueError: a setting is unknown or out of range; the message names it and says what is allowed.
        """

    def meaning(self) -> TaskMeaning:
        """Class names in label order, the positive class, and the preprocessing."""

    def schema(self) -> ModelSchema:
        """Every tensor that takes part, in order."""

    def default_plan(self) -> Plan:
        """The hyper-parameters a coordinator gets when it names none; its seed is 0."""

    def initial_weights(self, seed: int, source: str | None) -> Weights:
        """The weights of round 0. `source` is the task's own word for where from: a path, a name, `None` for default.

        Raises:
            TaskError: the source cannot be had; the message names the option that mends it.
        """

    def open_site(self, options: SiteOptions) -> SiteSummary:
        """Read and check the folder, once. Later calls of `fine_tune` and `evaluate` use it.

        Raises:
            TaskError: no usable example; the message says what was looked for, where, and what was found.
        """

    def fine_tune(self, base: Weights, plan: Plan, report: Report) -> FineTuned:
        """Train from `base` with fresh optimiser state. The same base, plan and data give the same weights.

        Raises:
            Cancelled: `report` raised it; nothing needs to be undone.
        """

    def open_holdout(self, folder: Path | None, classes: Mapping[str, str]) -> SiteSummary:
        """Read and check a labelled folder laid out as `<class>/*`, once; `None` asks for generated data.

        Raises:
            TaskError: as `open_site`.
        """

    def evaluate(self, weights: Weights) -> Evaluation:
        """Score `weights` on the opened holdout."""

    def export(self, weights: Weights, folder: Path, stem: str) -> list[Path]:
        """Write the model for use without this project, as `folder/stem.*`, and return what was written."""

    def read_model(self, path: Path) -> Weights:
        """Read weights from a model file that this task exported, or that holds the same model.

        Raises:
            TaskError: the file is no such model; the message says how it differs.
        """


class TaskError(Exception):
    """The task cannot do what it was asked, for a reason a person can act on. The message is for that person."""


def reads_class_folders(task: Task) -> bool:
    """Whether the task reads one folder of files per class, as `SiteOptions.folder` is laid out.

    A task that does says so by a true attribute of this name; what any other makes of its folder is its own affair.
    """
    return bool(getattr(task, "reads_class_folders", False))
