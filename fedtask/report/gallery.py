"""Which pictures a report has, and how each is drawn. Importing it loads matplotlib."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedtask import plots
from fedtask.report import pictures, tables, words
from fedtask.report.record import FederationRecord, headline_evaluation
from fedtask.task import Evaluation


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of the report: its file name without `.png`, what it shows, and how to draw it."""

    name: str
    description: str
    draw: Callable[[Path], None]


def pictures_of(record: FederationRecord) -> list[Picture]:
    """Those that there is something to show in, in the order of the page."""
    found: list[Picture] = []
    scores = tables.scores_of(record.succeeded)
    if scores:
        found.append(
            Picture(
                "global_progress",
                f"{words.listed([tables.title(scores[0]), *scores[1:]])} of the global model on the holdout, per round",
                lambda path: pictures.global_progress(record.succeeded, record.best_round, path, record.loss_name),
            )
        )
    if record.succeeded:
        found.append(
            Picture(
                "contributions",
                "Training examples and weight of each client, per round",
                lambda path: pictures.contributions(record.succeeded, path),
            )
        )
    evaluation, _ = headline_evaluation(record)
    return found + (_model_pictures(evaluation, record) if evaluation else [])


def _model_pictures(evaluation: Evaluation, record: FederationRecord) -> list[Picture]:
    """Those that the evaluation has all of: a task of somebody else's may leave curves out, or give half of one."""
    found: list[Picture] = []
    size, model = len(evaluation.class_names), words.best_model(record)
    if size and [len(row) for row in evaluation.confusion] == [size] * size:
        draw = partial(plots.confusion_matrix, evaluation)
        found.append(Picture("confusion_matrix", f"Confusion matrix of the {model}", draw))
    if _has_curve(evaluation, "roc_fpr", "roc_tpr"):
        found.append(Picture("roc", f"ROC curve of the {model}", partial(plots.roc, evaluation)))
    if _has_curve(evaluation, "calibration_predicted", "calibration_observed", "calibration_count"):
        draw = partial(plots.calibration, evaluation, record.positive_class or "positive")
        found.append(Picture("calibration", f"Calibration of the {model}", draw))
    return found


def _has_curve(evaluation: Evaluation, *names: str) -> bool:
    """Whether it has the columns of these names, of one length above 0."""
    lengths = {len(evaluation.curves.get(name, ())) for name in names}
    return len(lengths) == 1 and 0 not in lengths
